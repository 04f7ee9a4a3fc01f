"""How each class did: figures by hand, the file, and where a run shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedmoe_app import ResultsError, load_run, read_metrics, run_in_process
from fedmoe_app.report.classes import MAX_DRAWN, OTHERS, classes_table, confusion_cube
from fedmoe_app.results.classes import Classes, read_classes
from fedmoe_app.tasks.base import Score
from tests.conftest import flat_config
from tests.toy import TOPICS, write_topics

pytestmark = pytest.mark.usefixtures("no_pictures")

# 4 rows of a: 3 right, 1 taken for b; 2 of b: 1 right, 1 taken for a; none of c, one b... of it.
HAND = Classes(3, ("a", "b", "c"), np.array([[3, 1, 0], [1, 1, 0], [0, 0, 0]]))


def test_figures_by_hand() -> None:
    assert HAND.support.tolist() == [4, 2, 0]
    assert HAND.precision.tolist() == [3 / 4, 1 / 2, 0]
    assert HAND.recall.tolist() == [3 / 4, 1 / 2, 0]
    assert HAND.f1.tolist() == [3 / 4, 1 / 2, 0]
    assert HAND.macro_f1 == (3 / 4 + 1 / 2) / 2  # nothing is of c, and nothing was taken for it
    assert HAND.majority == 4 / 6
    assert HAND.worst_confusions == [(0, 1, 1), (1, 0, 1)]


@given(arrays(np.int64, (4, 4), elements=st.integers(0, 9)))
def test_a_line_reads_back_and_accuracy_is_the_recall_weighted_by_rows(matrix: np.ndarray) -> None:
    found = Classes(1, ("a", "b", "c", "d"), matrix)
    cells = {(row, column): count for row, column, count in found.line()["confusion"]}
    assert all(matrix[place] == cells.get(place, 0) for place in np.ndindex(4, 4))
    right = found.support @ found.recall
    assert right == pytest.approx(matrix.trace())
    assert 0 <= found.macro_f1 <= 1


def test_scores_add_up_their_matrices() -> None:
    one, two = torch.eye(2, dtype=torch.int64), torch.ones(2, 2, dtype=torch.int64)
    total = Score() + Score(1.0, 2, 2, one) + Score(1.0, 2, 4, two)
    assert total.confusion is not None
    assert total.confusion.tolist() == [[2, 1], [1, 2]]
    assert (Score() + Score(1.0, 1, 1)).confusion is None  # a task without classes


def test_the_table_names_the_class_that_one_is_most_often_taken_for() -> None:
    table = classes_table(HAND)
    assert [row[-1].text for row in table.rows] == ["b (1)", "a (1)", "-"]
    assert [cell.text for cell in table.rows[0]][:5] == ["a", "4", "0.750", "0.750", "0.750"]


def test_of_many_classes_those_with_most_mistakes_are_drawn() -> None:
    count = 150
    matrix = np.diag(np.full(count, 5))
    for row in range(0, 2 * MAX_DRAWN, 2):  # each of these and its neighbour have a mistake
        matrix[row, row + 1] = 1 + row
    cube, remark = confusion_cube(Classes(1, tuple(f"c{i}" for i in range(count)), matrix))
    rows, columns = cube.axes
    assert len(rows.labels) == MAX_DRAWN
    assert rows.labels[-1] == f"c{2 * MAX_DRAWN - 1}"
    assert columns.labels == (*rows.labels, OTHERS)
    assert np.allclose(cube.values.sum(axis=1), 1)  # no row is lost
    assert "Of 150 classes the 24" in remark
    few, nothing = confusion_cube(HAND)
    assert (few.values[0] == [0.75, 0.25, 0]).all()
    assert np.isnan(few.values[2]).all()
    assert nothing == ""


def test_a_run_tells_how_its_classes_did(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flat = flat_config(
        **{
            "num-server-rounds": 1,
            "output-dir": str(tmp_path),
            "data.source": str(write_topics(tmp_path / "train.jsonl", 8)),
            "data.test-source": str(write_topics(tmp_path / "test.jsonl", 3)),
            "data.partition": "iid",
            "data.max-length": 12,
        }
    )
    folder = run_in_process(flat, 2)
    scored = read_classes(folder)
    lines = read_metrics(folder)
    assert [each.round for each in scored] == [0, 1]
    for each, line in zip(scored, lines, strict=True):
        assert each.confusion.trace() / each.confusion.sum() == pytest.approx(line["accuracy"])
    run = load_run(folder)
    assert list(run.classes.index) == sorted(TOPICS)
    assert run.classes["rows"].tolist() == [3] * 4
    assert run.confusion.to_numpy().sum() == 12
    page = run.report().read_text()
    assert "Who is taken for whom" in page
    assert "majority baseline" in page
    log = (folder / "log.jsonl").read_text()
    assert "always giving the most frequent class would reach accuracy 0.250" in log
    assert "kitchen" not in log  # class names are the user's


def test_a_line_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.jsonl").write_text(
        '{"round": 1, "names": ["a"], "confusion": [[0, 4, 1]]}\n'
    )
    with pytest.raises(ResultsError, match="not a line of this file"):
        read_classes(tmp_path)
