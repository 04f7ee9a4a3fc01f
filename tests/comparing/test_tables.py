import io

from rich.console import Console

from fedmoe_app.comparing.summary import results_of, summarise
from fedmoe_app.comparing.tables import (
    markdown,
    markdown_table,
    print_summary,
    rich_table,
)
from tests.comparing.fakes import example


def test_markdown_names_what_was_compared_and_what_failed() -> None:
    plan, outcomes = example()
    results = results_of(plan, outcomes)
    text = markdown(plan, summarise(plan, results), results, "accuracy")
    assert text.startswith("# Comparison of fedavg, fedprox\n")
    assert "2 clients, 2 rounds, seeds 1, 2. " in text
    row = next(line for line in text.splitlines() if line.startswith("| fedprox") and "iid" in line)
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "fedprox",
        "iid",
        "0.785 ± 0.021",
        "0.594 to 0.976",
        "+0.135 (-0.310 to +0.580)",
        "0.400",
        "0.0100",
        "1.0 (reached 1 of 2)",
        "2.0 (reached 1 of 2)",
        "20 B",
        "4 s",
        "2",
    ]
    assert "0.400 (one seed)" in text
    assert "1, 1 failed" in text
    assert "failed: fedprox, dirichlet 0.1, seed 2: ValueError: a | b" in text


def test_markdown_table_escapes_bars() -> None:
    assert markdown_table(["a"], [["b|c"]]) == ["| a    |", "| ---- |", "| b\\|c |"]


def test_without_a_terminal_the_summary_is_markdown() -> None:
    plan, outcomes = example()
    file = io.StringIO()
    print_summary(plan, summarise(plan, results_of(plan, outcomes)), "token accuracy", file)
    printed = file.getvalue().splitlines()
    assert len(printed) == 7
    assert "| global token accuracy |" in printed[0]


def test_no_figure_is_cut_on_a_narrow_terminal() -> None:
    plan, outcomes = example()
    rows = summarise(plan, results_of(plan, outcomes))
    console = Console(file=io.StringIO(), width=110)
    console.print(rich_table(plan, rows, "accuracy"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("0.785 ± 0.021", "0.594 to 0.976", "-0.310 to +0.580", "1 of 2", "1 failed"):
        assert part in text
    narrow = Console(file=io.StringIO(), width=60)
    narrow.print(rich_table(plan, rows, "accuracy"))
    assert "…" not in narrow.file.getvalue()  # type: ignore[attr-defined]
