import io

from rich.console import Console

from fedmoe_app.compare.summary import results_of, summarise
from fedmoe_app.compare.tables import markdown, markdown_table, print_summary, rich_table
from tests.compare.fakes import broken, example


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
    assert "0.400 (1 of 2 seeds)" in text
    assert "+0.100 (1 of 2 seeds)" in text
    assert "1, 1 failed" in text
    assert "failed: fedprox, dirichlet 0.1, seed 2: ValueError: a | b" in text


def test_what_went_wrong_stands_beside_the_runs() -> None:
    plan, outcomes = broken()
    results = results_of(plan, outcomes)
    text = markdown(plan, summarise(plan, results), results, "accuracy")
    assert "0.700 ± 0.141 (2 of 3 seeds)" in text
    assert "| 2, 1 failed, 3 replies missing |" in text
    assert (
        "failed: fedavg, iid, seed 2: no accuracy after the last round; round 2: 1 usable" in text
    )
    console = Console(file=io.StringIO(), width=110)
    console.print(rich_table(plan, summarise(plan, results), "accuracy"))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "3 replies" in printed
    assert "2 of 3 seeds" in printed


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
