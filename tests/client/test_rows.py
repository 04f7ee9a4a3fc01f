"""The cache of encoded rows: the same rows, never stale, never a node's own file."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import datasets
import pytest

from fedmoe_app import ConfigError, ModelState
from fedmoe_app.client import rows as prepared
from fedmoe_app.client.rows import ClientRows, client_rows
from fedmoe_app.config.node import Node
from fedmoe_app.data.encoding import Encoded
from fedmoe_app.tasks.setup import load_setup, server_data
from fedmoe_app.wire.records import TrainTask
from tests.conftest import make_config
from tests.data.chat_templates import CHATML, GEMMA, messages

ROWS = [{"instruction": f"Say {i}.", "response": f"It is {i}."} for i in range(12)]
LM = {"data.task": "causal-lm", "data.partition": "iid"}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def cached(home: Path) -> int:
    folder = home / "cache" / "rows"
    return len(list(folder.iterdir())) if folder.is_dir() else 0


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with the session's corpus and tokenizer, but without rows."""
    from fedmoe_app.config.paths import cache_dir

    (tmp_path / "home" / "cache").mkdir(parents=True)
    for folder in cache_dir().iterdir():
        if folder.name.startswith(("corpus-", "tokenizer-")):
            (tmp_path / "home" / "cache" / folder.name).symlink_to(folder)
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def rows_of(node: Node, fingerprint: str | None = None, **overrides: Any) -> ClientRows:
    config = make_config(**LM | overrides)
    data = server_data(config.data)
    task = TrainTask(1, ModelState(), data.label_names, fingerprint or data.fingerprint)
    return client_rows(config, node, task, load_setup(config, data.label_names))


def test_the_second_time_gives_the_same_rows_from_the_disk(tmp_path: Path, home: Path) -> None:
    source = {"data.source": write(tmp_path / "a.jsonl", ROWS)}
    node = Node(0, 0, 2, None)
    first, second = rows_of(node, **source), rows_of(node, **source)
    assert (first.train, first.test) == (second.train, second.test)
    assert first.train.num_cut == second.train.num_cut
    assert cached(home) == 1


def test_partitions_models_lengths_and_changed_files_are_kept_apart(
    tmp_path: Path, home: Path
) -> None:
    source = {"data.source": write(tmp_path / "a.jsonl", ROWS)}
    node = Node(0, 0, 2, None)
    base = rows_of(node, **source)
    others = [
        rows_of(Node(1, 1, 2, None), **source),
        rows_of(node, **source, **{"data.max-length": 8}),
        rows_of(node, **source, **{"model.name": "switch-tiny"}),
    ]
    write(tmp_path / "a.jsonl", [{**row, "response": "No."} for row in ROWS])
    others.append(rows_of(node, **source))
    assert all(other.train != base.train for other in others)
    assert cached(home) == 5


def test_another_text_in_the_template_s_file_gives_other_rows(tmp_path: Path, home: Path) -> None:
    rows = [{"messages": messages(f"Say {i}.", f"It is {i}.")} for i in range(12)]
    template = tmp_path / "own.jinja"
    source = {
        "data.source": write(tmp_path / "a.jsonl", rows),
        "data.chat-template": str(template),
    }
    node = Node(0, 0, 2, None)
    found = []
    for text in (CHATML, GEMMA, CHATML):
        template.write_text(text)
        found.append(rows_of(node, **source).train)
    assert found[0] == found[2] != found[1]
    assert found[0][0]["prompt_length"] > 0
    assert cached(home) == 2


@pytest.mark.parametrize("source", ["embedded", "file"])
def test_another_tokenizer_gives_other_rows(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    path = source if source == "embedded" else write(tmp_path / "a.jsonl", ROWS)
    config = make_config(**LM | {"data.source": path})
    monkeypatch.setattr(prepared, "_encode", lambda *_: ClientRows(Encoded([], 0), Encoded([], 0)))
    for count, key in ((1, "tokenizers 1"), (2, "tokenizers 2"), (2, "tokenizers 1")):
        monkeypatch.setattr(prepared, "tokenizer_key", lambda key=key: key)
        client_rows(config, Node(0, 0, 2, None), TrainTask(1, ModelState(), (), ""), None)  # type: ignore[arg-type]
        assert cached(home) == count


@pytest.fixture
def places(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """All folders that a library might write to: ours, that of Hugging Face, the temporary one."""
    hub, temporary = tmp_path / "huggingface", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("HF_HOME", str(hub))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", hub / "datasets")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", hub / "datasets/downloads")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return [home, hub, temporary]


@pytest.mark.parametrize("name", ["own.jsonl", "own.jsonl.gz"])
def test_a_nodes_own_file_is_never_copied(tmp_path: Path, places: list[Path], name: str) -> None:
    rows = [{"instruction": f"Say {i}.", "response": f"private marker {i}"} for i in range(12)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    own = tmp_path / name
    own.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    encoded = rows_of(Node(0, None, None, str(own)), **{"data.source": "nodes"})
    assert len(encoded.train) + len(encoded.test) == len(rows)
    files = [file for place in places for file in place.rglob("*") if file.is_file()]
    assert [file for file in files if b"private marker" in file.read_bytes()] == []
    assert list(places[-1].iterdir()) == []


def test_another_copy_than_the_servers_is_refused_and_not_kept(tmp_path: Path, home: Path) -> None:
    source = {"data.source": write(tmp_path / "a.jsonl", ROWS)}
    with pytest.raises(ConfigError, match=r"fingerprint \w+, the server's other"):
        rows_of(Node(0, 0, 2, None), fingerprint="other", **source)
    assert cached(home) == 0
