"""Class names from the config to the nodes, and texts that a tokenizer leaves nothing of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedmoe_app import DataError, LoadSpec, load_model, read_metrics, run_in_process
from fedmoe_app.config.node import Node
from fedmoe_app.tasks.setup import check_setup, client_data, server_data
from tests.conftest import flat_config, make_config
from tests.data.test_tokenless import tokenizer

pytestmark = pytest.mark.usefixtures("no_pictures")

BOTH = ("Other", "Health, safety")
ROWS = [{"text": f"good day number {i}", "label": BOTH[i % 2]} for i in range(24)]


def write_lines(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(folder: Path, nodes: list[dict[str, Any]] | None = None, **overrides: Any) -> Any:
    flat = flat_config(**{"num-server-rounds": 1, "output-dir": str(folder / "out")} | overrides)
    return read_metrics(run_in_process(flat, 2, nodes))[1]


def two_nodes(path: Path) -> list[dict[str, Any]]:
    return [{"partition-id": i, "data-path": str(path)} for i in (0, 1)]


@pytest.mark.parametrize("key", ["data.label-names", "data.label-names-file"])
def test_nodes_are_told_names_with_commas(tmp_path: Path, key: str) -> None:
    path = write_lines(tmp_path / "rows.jsonl", ROWS)
    labels = write_lines(tmp_path / "labels.txt", [])
    labels.write_text("\n".join(BOTH))
    named = json.dumps(BOTH) if key == "data.label-names" else str(labels)
    line = run(tmp_path, two_nodes(path), **{"data.source": "nodes", key: named})
    assert [client["client"] for client in line["clients"]] == [0, 1]
    assert line["failures"] == []


def test_a_node_with_a_partition_need_not_have_the_file_of_names(tmp_path: Path) -> None:
    path, labels = write_lines(tmp_path / "rows.jsonl", ROWS), tmp_path / "labels.txt"
    labels.write_text("\n".join(BOTH))
    overrides = {"data.source": str(path), "data.label-names-file": str(labels)}
    config = make_config(**overrides, **{"data.partition": "iid"})
    data = server_data(config.data)
    assert data.label_names == BOTH
    labels.unlink()
    node = Node.from_config({"partition-id": 0, "num-partitions": 2}, 7)
    part = client_data(config, node, data.label_names, data.fingerprint)
    assert part.train.num_rows + (part.test.num_rows if part.test else 0) == len(ROWS) // 2


def test_files_with_commas_are_read_as_a_list(tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a, old.jsonl", ROWS[:12])
    second = write_lines(tmp_path / "b.jsonl", ROWS[12:])
    for value, rows in ((json.dumps([str(first), str(second)]), 24), (str(first), 12)):
        data = server_data(make_config(**{"data.source": value, "data.test-source": value}).data)
        assert data.test is not None
        assert (len(data.train), len(data.test)) == (rows, rows)


def test_the_server_refuses_one_class(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", ROWS[::2])
    with pytest.raises(DataError, match=r'rows.jsonl": every row has the class "Other"'):
        server_data(make_config(**{"data.source": str(path)}).data)


# -- texts without tokens ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model whose tokenizer drops all but English letters and adds no special token."""
    path, words = tmp_path_factory.mktemp("model"), tokenizer()
    options = {"vocab_size": len(words), "pad_token_id": 0, "eos_token_id": 2}
    load_model(LoadSpec("qwen3moe-tiny", task="causal-lm", **options)).save_pretrained(path)
    words.save_pretrained(path)
    return path


def test_texts_without_tokens_do_not_stop_a_run(tmp_path: Path, folder: Path) -> None:
    mixed = [{"text": ("one two" if i % 3 else "★"), "label": "xy"[i % 2]} for i in range(24)]
    good = write_lines(tmp_path / "good.jsonl", mixed)
    nothing = write_lines(tmp_path / "nothing.jsonl", [mixed[0]] * 8)
    nodes = [*two_nodes(good), {"partition-id": 2, "data-path": str(nothing)}]
    overrides = {"data.source": "nodes", "data.label-names": "x, y", "model.name": str(folder)}
    line = run(tmp_path, nodes, **overrides, **{"data.test-source": str(good)})
    assert [client["client"] for client in line["clients"]] == [0, 1]
    assert all(client["num_examples"] < 16 for client in line["clients"])
    (failure,) = line["failures"]
    assert "no text gives a token with this tokenizer" in failure["reason"]


def test_a_test_set_without_tokens_stops_before_a_folder_is_made(
    tmp_path: Path, folder: Path
) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", [{"text": "★", "label": "x"}])
    overrides = {"data.source": "nodes", "data.label-names": "x, y", "model.name": str(folder)}
    with pytest.raises(DataError, match="the test set has no example left"):
        run(tmp_path, two_nodes(rows), **overrides, **{"data.test-source": str(rows)})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "names", "message"),
    [
        ({"model.head": "label-words"}, ("one", "★"), 'label "★" gives no token'),
        ({"model.head": "label-words"}, ("one two", "one"), "begin with the same token"),
        ({"data.max-length": 9999}, ("a", "b"), "data.max-length = 9999: .* at most"),
    ],
)
def test_what_a_saved_model_does_not_take_is_known_from_its_config(
    folder: Path, overrides: dict[str, Any], names: tuple[str, ...], message: str
) -> None:
    config = make_config(**{"model.name": str(folder)} | overrides)
    with pytest.raises(ValueError, match=message):
        check_setup(config, names)


def test_other_classes_than_a_saved_head_has_are_known_from_its_config(tmp_path: Path) -> None:
    words = tokenizer()
    options = {"vocab_size": len(words), "pad_token_id": 0, "task": "classification"}
    load_model(LoadSpec("qwen3moe-tiny", label_names=("x", "y"), **options)).save_pretrained(
        tmp_path
    )
    words.save_pretrained(tmp_path)
    config = make_config(**{"model.name": str(tmp_path)})
    assert check_setup(config, ("x", "y")).num_experts == 8
    with pytest.raises(ValueError, match="has the classes x, y but the run has x, z"):
        check_setup(config, ("x", "z"))


def test_a_tokenizer_without_padding_is_known_before(tmp_path: Path) -> None:
    words = tokenizer(eos=False)
    words.pad_token = None
    options = {"vocab_size": len(words), "pad_token_id": 0}
    load_model(LoadSpec("qwen3moe-tiny", task="causal-lm", **options)).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="neither a padding nor an end-of-sequence token"):
        check_setup(make_config(**{"model.name": str(tmp_path)}), ("x", "y"))
