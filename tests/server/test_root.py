"""The server's own training, which FLTrust compares clients with: in whole runs, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fedmoe_app import ConfigError, read_metrics, run_in_process
from tests.conftest import flat_config
from tests.invariant.runs import GoldenRun, make_material, run_golden
from tests.toy import TOPICS, write_topics

pytestmark = pytest.mark.usefixtures("no_pictures")

FLTRUST = {"scheme": "fltrust", "robust.guard": "off"}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


def test_a_run_is_complete_and_can_be_repeated(material: Path, tmp_path: Path) -> None:
    results = [run_golden(GoldenRun(FLTRUST), material, folder(tmp_path, n)) for n in "ab"]
    first, second = (load_file(path / "model" / "model.safetensors") for path in results)
    assert all(tensor.equal(second[name]) for name, tensor in first.items())
    lines = read_metrics(results[0])
    assert [line["status"] for line in lines] == ["ok"] * 4
    assert all(len(line["diagnostics"]["admitted"]) == 3 for line in lines[1:])
    assert not lines[0]["accuracy"] == lines[-1]["accuracy"] == 0


def folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def of_nodes(tmp_path: Path, **keys: Any) -> dict[str, Any]:
    write_topics(tmp_path / "rows.jsonl", 12)
    data = {"data.source": "nodes", "data.label-names": json.dumps(list(TOPICS))}
    short = {"num-server-rounds": 1, "train.max-steps": 1, "data.max-length": 12}
    return flat_config(**FLTRUST | data | short | {"output-dir": str(tmp_path / "out")} | keys)


def test_without_rows_of_its_own_the_server_refuses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'scheme = "fltrust": the server has no .*root-source'):
        run_in_process(of_nodes(tmp_path), 2)


def test_with_a_file_of_them_it_trains_where_nodes_bring_theirs(tmp_path: Path) -> None:
    own = str(tmp_path / "rows.jsonl")
    nodes = [{"partition-id": i, "data-path": own} for i in range(2)]
    results = run_in_process(of_nodes(tmp_path, **{"robust.root-source": own}), 2, nodes)
    line = read_metrics(results)[1]
    # They train on the very rows of the server's.
    assert line["status"] == "ok" and min(line["diagnostics"]["admitted"]) > 0.3
