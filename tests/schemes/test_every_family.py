"""Every registered scheme in whole runs, messages and all, on each kind of family."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedmoe_app import SCHEMES, ConfigError, UnsupportedModelError, read_metrics
from fedmoe_app.config.names import ADAPTERS_ONLY, COMBINE
from tests.bases import save_base
from tests.invariant.runs import CLIENTS, Config, GoldenRun, make_material, run_golden
from tests.invariant.runs import SCHEMES as SETTINGS

LISTED, FUSED = "SwitchTransformers", "Mixtral"  # a module an expert; all in one
OF_POPULATION = ("scaffold", "feddyn")
# What says how a run can be had, in a reason why it cannot.
WAY_OUT = re.compile(r"\b(choose|set|needs|switch)\b")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_material(tmp_path_factory.mktemp("material"))
    for family in (LISTED, FUSED):
        save_base(folder / family, family)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("family", [LISTED, FUSED])
@pytest.mark.parametrize("name", [*SCHEMES, COMBINE])
def test_a_whole_run_is_complete(name: str, family: str, material: Path, tmp_path: Path) -> None:
    own: Config = {"scheme": name, "num-server-rounds": 2, "model.name": str(material / family)}
    mode: Config = {"model.train": "expert-lora"} if name in ADAPTERS_ONLY else {}
    if name in OF_POPULATION:
        mode = {"scheme-args": f'{{"population": {CLIENTS}}}'}
    run = GoldenRun({**own, **mode, **SETTINGS.get(name, {})})
    try:
        lines = read_metrics(run_golden(run, material, tmp_path))
    except (ConfigError, UnsupportedModelError) as error:
        assert WAY_OUT.search(str(error)), error
        pytest.skip(f"refused: {error}")
    assert [line["status"] for line in lines] == ["ok"] * 3
    assert all(line["failures"] == [] for line in lines)
    assert lines[2]["loss"] != lines[0]["loss"]
