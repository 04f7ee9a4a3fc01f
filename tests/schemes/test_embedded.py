"""Every scheme end to end on the embedded task: real docstrings, real model, real messages."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fedmoe_app import SCHEMES, read_metrics, run_in_process
from fedmoe_app.config.names import COMBINE
from tests.compare.test_in_process import SMALL
from tests.conftest import flat_config

pytestmark = pytest.mark.usefixtures("no_pictures")

# The others run whole on a smaller model in test_whole_runs.py and among the golden runs.
SOME = ("fedavg", "hfedmoe", "fedalign")
OTHERS = [name for name in (*SCHEMES, COMBINE) if name not in SOME]


@pytest.mark.parametrize(
    "scheme", [*SOME, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_a_scheme_learns_on_the_embedded_task(scheme: str, tmp_path: Path) -> None:
    overrides = SMALL | {"output-dir": str(tmp_path), "scheme": scheme}
    # More text than SMALL, each seen twice: fewer steps lower no loss, more epochs overfit.
    overrides |= {"data.max-train-examples": 960, "num-server-rounds": 2}
    overrides |= {"data.partition": "iid", "data.max-test-examples": 200}
    lines = read_metrics(run_in_process(flat_config(**overrides), 3))
    assert [line["status"] for line in lines] == ["ok"] * 3
    assert all(line["failures"] == [] for line in lines)
    assert all(len(line["clients"]) == 3 for line in lines[1:])
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
