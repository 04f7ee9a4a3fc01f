"""Whatever is wrong with a node's own file, no message and no traceback holds a value of it."""

from __future__ import annotations

import gzip
import json
import traceback
from pathlib import Path

import pytest

from fedmoe_app import DataError
from fedmoe_app.data.files import _without_values
from fedmoe_app.data.sources import load_node_file
from tests.conftest import make_config

ROW = "Mrs Sentinel of ward 7"
GOOD = json.dumps({"text": ROW, "label": "a"}) + "\n"
CLASSES = ("a", "b")
BROKEN = {
    "header-missing.csv": f"{ROW},a\n{ROW} again,b\n",
    "too-many-fields.csv": f'text,label\n{ROW},a\n{ROW},a,"{ROW}"\n',
    "open-quote.csv": f'text,label\n"{ROW},a\n',
    "other-label.csv": f"text,label\n{ROW},{ROW}\n",
    "other-columns.jsonl": json.dumps({ROW: ROW}),
    "no-object.jsonl": GOOD + json.dumps(ROW),
    "broken-line.jsonl": GOOD + GOOD[:-9],
    "mixed-types.jsonl": GOOD + json.dumps({"text": 7, "label": ROW}),
    "array.json": json.dumps([{"text": ROW, "label": "a"}, ROW]),
    "not-packed.jsonl.gz": ROW,
    "nothing.parquet": ROW * 5,
}


CASES = [("classification", name) for name in BROKEN]
CASES += [("multiple-choice", name) for name in ("header-missing.csv", "other-columns.jsonl")]


@pytest.mark.parametrize(("task", "name"), CASES)
def test_errors_of_a_nodes_file_quote_no_value(task: str, name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(BROKEN[name])
    changes = {
        "data.task": task,
        "data.source": "nodes",
        "data.test-source": "/t.jsonl",
        "data.partition": "iid",
    }
    names = {"data.label-names": ",".join(CLASSES)} if task == "classification" else {}
    with pytest.raises(DataError) as caught:
        load_node_file(file, make_config(**changes, **names).data, CLASSES)
    shown = "".join(traceback.format_exception(caught.value))
    assert name in shown
    for word in (*ROW.split()[:2], "ward"):
        assert word not in shown
    assert ROW[:2] not in str(caught.value).replace(name, "")


def test_what_a_library_quotes_is_left_out() -> None:
    error = ValueError("Could not convert 'Mrs Sentinel' with type str: tried \"int64\"\nrow: 5")
    assert _without_values(error) == "Could not convert ... with type str: tried ..."
    assert _without_values(ValueError("unknown value 'Mrs Senti")) == "unknown value ..."
    assert _without_values(gzip.BadGzipFile("Not a gzipped file (b'Mr')")) == (
        "Not a gzipped file (...)"
    )
    assert _without_values(ValueError("")) == "ValueError"
