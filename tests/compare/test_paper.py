"""Tables for a paper: what is bold, what is escaped, what the caption says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedmoe_app.compare.compare import report
from fedmoe_app.compare.figures import figures_in
from fedmoe_app.compare.paper import clear_best, paper_table, write_table
from fedmoe_app.compare.plan import Plan
from fedmoe_app.compare.reading import Comparison
from fedmoe_app.compare.summary import results_of
from fedmoe_app.compare.tables import cells_csv, summary_csv, text_table
from fedmoe_app.results.classes import Classes
from fedmoe_app.results.folder import RunFolder
from fedmoe_app.results.table import write_rounds
from fedmoe_app.shown.tables import latex
from tests.compare.fakes import example, lines, plan_and_outcomes

COMMAND = "fedmoe compare --schemes a_b,c -c 'data.alpha=0.1'"


def of(runs: dict[tuple[str, str, int], list[float]]) -> Comparison:
    plan, outcomes = plan_and_outcomes({key: lines(0.1, *curve) for key, curve in runs.items()})
    return Comparison(plan, outcomes, {}, COMMAND)


def best(scores: dict[str, list[float]]) -> str | None:
    """What is bold, of schemes with these accuracies by seed."""
    found = of({(name, "iid", s): [value] for name, values in scores.items()
                for s, value in enumerate(values)})  # fmt: skip
    return clear_best(found.plan, results_of(found.plan, found.outcomes), "iid")


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [
        # Seeds move both alike: the paired differences are 0.10, 0.11, 0.12.
        ({"a": [0.1, 0.5, 0.9], "b": [0.2, 0.61, 1.02]}, "b"),
        # The means are as far apart, but the differences are -0.1, 0.1, 0.33.
        ({"a": [0.3, 0.5, 0.7], "b": [0.2, 0.6, 1.03]}, None),
        # Above the one, not beyond the interval of the other.
        ({"a": [0.1, 0.2], "b": [0.8, 0.9], "c": [0.9, 0.7]}, None),
        ({"a": [0.1], "b": [0.9]}, None),  # one seed has no interval
        ({"a": [0.1, 0.2]}, None),  # nothing to be better than
        ({"a": [0.5, 0.6], "b": [0.5, 0.6]}, None),
    ],
)
def test_bold_is_what_the_paired_intervals_say(
    scores: dict[str, list[float]], wanted: str | None
) -> None:
    assert best(scores) == wanted


@pytest.fixture
def comparison() -> Comparison:
    runs = {("a_b", part, s): [0.1 + 0.1 * s] for part in ("iid", "dirichlet 0.1") for s in (1, 2)}
    runs |= {("c", part, s): [0.4 + 0.1 * s] for part in ("iid", "dirichlet 0.1") for s in (1, 2)}
    return of(runs)


def test_latex_has_groups_bold_and_escaped_names(comparison: Comparison) -> None:
    text = write_table(paper_table(comparison), "latex")
    assert r"    \multicolumn{5}{l}{\emph{dirichlet 0.1}} \\" in text
    # s/√2·t(0.975, 1) = 0.0707/1.414·12.706 = 0.635
    assert r"    a\_b & 0.250 $\pm$ 0.635 & -- &" in text
    assert r"    c & \textbf{0.550 $\pm$ 0.635} & +0.300 $\pm$ 0.000 &" in text
    assert r"Made by \texttt{fedmoe compare --schemes a\_b,c -c \textquotesingle{}data" in text
    assert text.count(r"\midrule") == 2
    assert text.index(r"\toprule") < text.index(r"\bottomrule")


def test_markdown_has_a_column_of_partitions_and_the_caption(comparison: Comparison) -> None:
    text = write_table(paper_table(comparison), "markdown")
    assert "| c | iid | **0.550 ± 0.635** | +0.300 ± 0.000 |" in text
    assert "over 2 seeds. 2 clients (iid, dirichlet 0.1), 1 round." not in text  # it had 2
    assert f"Made by `{COMMAND}`." in text


def test_failures_and_the_reference_stand_in_the_table() -> None:
    plan, outcomes = example()
    table = paper_table(Comparison(plan, outcomes, {}))
    names = [row[0] for _, rows in table.groups for row in rows]
    assert names[0] == "centralised"
    assert "fedprox (1 failed)" in names
    assert table.command == ""
    assert "Made by" not in write_table(table, "latex")


def test_all_that_latex_acts_on_is_escaped() -> None:
    assert latex(r"a_b{c}$d$ 5% #1 & ~^\x") == (
        r"a\_b\{c\}\$d\$ 5\% \#1 \& \textasciitilde{}\textasciicircum{}\textbackslash{}x"
    )
    assert latex("a\nb\x1b") == r"a\textbackslash{}nb\textbackslash{}x1b"


# -- macro-F1 ----------------------------------------------------------------------------------


def test_macro_f1_of_a_run_that_classifies(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run").path
    entries = lines(0.1, 0.5)
    assert figures_in(run, entries, 1).macro_f1 is None
    classes = Classes(1, ("no", "yes"), np.array([[3, 1], [0, 4]]))
    import json

    (run / "classes.jsonl").write_text(json.dumps(classes.line()) + "\n")
    # F1 = 6/7 and 8/9
    assert figures_in(run, entries, 1).macro_f1 == pytest.approx((6 / 7 + 8 / 9) / 2)


def with_macro_f1() -> tuple[Plan, Comparison]:
    from dataclasses import replace

    plan, outcomes = example()
    for number, key in enumerate(outcomes.figures):
        outcomes.figures[key] = replace(outcomes.figures[key], macro_f1=0.1 * (number % 3))
    return plan, Comparison(plan, outcomes, {})


def test_macro_f1_has_a_column_where_a_run_has_it() -> None:
    plan, found = with_macro_f1()
    results, rows, metric = report(plan, found.outcomes)
    headers, cells = text_table(plan, rows, metric)
    assert headers[5] == "macro-F1"
    assert {len(row) for row in cells} == {len(headers)}
    assert cells[0][5] == "0.050 ± 0.071"  # 0.0 and 0.1
    assert "macro-F1" in paper_table(found).headers
    assert "macro_f1" in cells_csv(results).splitlines()[0]
    assert "macro_f1_mean,macro_f1_std" in summary_csv(rows).splitlines()[0]
    plan, outcomes = example()
    _, rows, metric = report(plan, outcomes)
    assert "macro-F1" not in text_table(plan, rows, metric)[0]


# -- a run -------------------------------------------------------------------------------------


def test_the_rounds_of_a_run() -> None:
    found = write_rounds(lines(0.1, 0.5), "markdown").splitlines()
    assert found[0].startswith("| round | loss | accuracy | bytes up |")
    assert found[3] == "| 1 | 1.0000 | 0.5000 | 20 B | - | - | 0 | 1.5 |"
    text = write_rounds(lines(0.1, 0.5), "latex")
    assert r"  1 & 1.0000 & 0.5000 & 20 B & - & - & 0 & 1.5 \\" in text
    assert text.startswith("% \\usepackage{booktabs}\n\\begin{tabular}{rrrrrrrr}")
