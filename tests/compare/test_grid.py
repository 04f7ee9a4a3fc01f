"""A grid: what is tried, what is chosen by validation rows alone, and that it goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedmoe_app import ConfigError, ResultsError, compare_schemes
from fedmoe_app.compare import compare as comparing
from fedmoe_app.compare.grid import MAX_POINTS, grid_of, read_grid
from fedmoe_app.compare.page import comparison_page
from fedmoe_app.compare.plan import Cell
from fedmoe_app.compare.reading import read_comparison
from fedmoe_app.results.folder import RunFolder
from tests.compare.fakes import RESULTS, lines
from tests.toy import write_topics

RATES = (0.001, 0.01)
# Validation accuracy by scheme and learning rate; the test's is the other way round.
SCORES: Mapping[tuple[str, float], float | None] = {
    ("fedavg", 0.001): 0.6,
    ("fedavg", 0.01): 0.8,
    ("fedprox", 0.001): 0.7,
    ("fedprox", 0.01): None,
}


def scored_run(cell: Cell, draft: Path) -> Path:
    """Write lines whose accuracy on validation rows depends on the learning rate."""
    with (draft.parents[1] / "calls.txt").open("a") as calls:
        calls.write(f"{cell.label}\n")
    rate = float(cell.flat["train.learning-rate"])
    score = SCORES[cell.scheme, rate]
    if score is None:
        raise ValueError("diverged")
    folder = RunFolder(draft / RESULTS)
    folder.write_config(cell.flat | {"output-dir": str(draft)})
    for line in lines(0.1, 0.1, 1 - score):
        earlier = {"validation": {"accuracy": 0.99 if line["round"] == 1 else score, "loss": 1.0}}
        folder.append(line | earlier)  # round 1 is better, but the last round is what is kept
    return folder.path


@pytest.fixture
def faked(no_pictures: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real = comparing.run_cells

    def run_here(cells: Any, folder: Any, workers: int, run: Any, here: bool) -> Any:
        return real(cells, folder, workers, scored_run, here=True)

    monkeypatch.setattr(comparing, "run_cells", run_here)
    yield


def compare(tmp_path: Path, seeds: tuple[int, ...] = (1, 2), **options: Any) -> Any:
    return compare_schemes(
        options.pop("schemes", ["fedavg", "fedprox"]),
        seeds=seeds,
        clients=2,
        config={"num-server-rounds": 2, "data.source": str(write_topics(tmp_path / "t.jsonl", 8))},
        output=tmp_path / "out",
        centralised=False,
        grid={"train.learning-rate": RATES},
        **options,
    )


def test_each_row_is_run_with_what_is_best_for_it_on_validation_rows(
    faked: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare(tmp_path)
    assert found.cells["accuracy"].tolist() == pytest.approx([0.2, 0.3, 0.2, 0.3])  # 1 - score
    plan = read_comparison(found.path).plan
    chosen = {choice.scheme: choice for choice in plan.choices}
    assert chosen["fedavg"].point == "train.learning-rate = 0.01"
    assert chosen["fedprox"].point == "train.learning-rate = 0.001"
    assert list(chosen["fedprox"].scores.values()) == [0.7, None]  # one point failed
    rates = {cell.scheme: cell.flat["train.learning-rate"] for cell in plan.cells}
    assert rates == {"fedavg": 0.01, "fedprox": 0.001}
    assert {cell.seed for cell in plan.cells} == {1, 2}  # no tuning run is among them
    assert all(cell.flat["keep-best"] == "" for cell in plan.cells)
    page = comparison_page("mine", read_comparison(found.path))
    assert "What the grid chose" in page
    out = capsys.readouterr().out
    assert "chosen: fedavg, dirichlet 0.5: train.learning-rate = 0.01" in out
    (told,) = [text for text in out.splitlines() if "not tried" in text]
    assert "fedprox, dirichlet 0.5, train.learning-rate = 0.01, seed 101" in told
    assert "learning-rate = 0.01" in (found.path / "comparison.md").read_text()


def test_the_same_call_with_more_seeds_tunes_nothing_again(faked: None, tmp_path: Path) -> None:
    compare(tmp_path, seeds=(1,), schemes=["fedavg"])
    before = (tmp_path / "out" / "calls.txt").read_text().splitlines()
    assert before == [
        "fedavg, dirichlet 0.5, train.learning-rate = 0.001, seed 101",
        "fedavg, dirichlet 0.5, train.learning-rate = 0.01, seed 101",
        "fedavg, dirichlet 0.5, seed 1",
    ]
    compare(tmp_path, seeds=(1, 2), schemes=["fedavg"])
    after = (tmp_path / "out" / "calls.txt").read_text().splitlines()
    assert after[len(before) :] == ["fedavg, dirichlet 0.5, seed 2"]


def test_a_row_of_which_no_point_came_to_its_end_is_named(
    faked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCORES, ("fedprox", 0.001), None)  # type: ignore[arg-type]
    with pytest.raises(ResultsError, match=r"fedprox, dirichlet 0\.5: no point of the grid"):
        compare(tmp_path)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["train.learning-rat=1"], "did you mean train.learning-rate"),
        (["data.alpha=0.1,0.5"], "share data, model and rounds"),
        (["num-server-rounds=1,2"], "share data, model and rounds"),
        (["train.learning-rate"], "KEY=VALUE,VALUE"),
        (["train.learning-rate=1e-3,"], "KEY=VALUE,VALUE"),
        (["train.learning-rate=1e-3,1e-3"], "more than once"),
        (["seed=1,2"], "options of their own"),
        (["train.max-steps=1", "train.max-steps=2"], "more than once"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(items: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_grid(items, (101,), (1,))


def test_a_tuning_seed_is_no_seed_of_the_comparison_and_points_are_bounded() -> None:
    with pytest.raises(ConfigError, match="--tuning-seeds 2: also among --seeds"):
        grid_of({"train.learning-rate": [1e-3]}, (2, 101), (1, 2))
    with pytest.raises(ConfigError, match="points, at most"):
        grid_of({"train.max-steps": range(MAX_POINTS + 1)}, (101,), (1,))


def test_points_are_all_combinations_and_words_need_no_quotes() -> None:
    grid = read_grid(["train.learning-rate=1e-4,3e-4", "combine.loss=none,fedprox"], (9,), (1,))
    assert [tuple(point.values()) for point in grid.points] == [
        (1e-4, "none"),
        (1e-4, "fedprox"),
        (3e-4, "none"),
        (3e-4, "fedprox"),
    ]


def test_a_wrong_value_is_found_before_anything_is_run(faked: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train.max-steps"):
        compare_schemes(
            ["fedavg"], output=tmp_path / "out", grid={"train.max-steps": [1, -1]}, clients=2
        )
    assert not (tmp_path / "out").exists()
