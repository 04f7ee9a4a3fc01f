"""Every registered scheme on experts that are modules of their own, and on fused ones.

Quick: two clients train on Switch, whose experts nothing else here runs under every scheme, and
the server combines what they send. Slow: whole runs of both kinds of family.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmoe_app import SCHEMES, ConfigError, ModelState, Plan, Run, make_scheme, read_metrics
from fedmoe_app.aggregation.aggregate import aggregate
from fedmoe_app.aggregation.streaming import round_info
from fedmoe_app.client.root import train_on_root
from fedmoe_app.client.round import train_client
from fedmoe_app.config.names import ADAPTERS_ONLY, COMBINE, WITH_RESIDUAL
from fedmoe_app.config.node import Node
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.layers import UnsupportedModelError, read_state
from fedmoe_app.schemes.base import flat_signals
from fedmoe_app.tasks.setup import Setup, load_setup, server_data
from fedmoe_app.wire.records import TrainTask
from tests.bases import save_base
from tests.conftest import make_config
from tests.homes import link_cache
from tests.invariant.runs import COMMON, Config, GoldenRun, make_material, run_golden
from tests.invariant.runs import SCHEMES as SETTINGS

NAMES = (*SCHEMES, COMBINE)
LISTED, FUSED = "SwitchTransformers", "Mixtral"
CLIENTS = 2
OF_POPULATION = ("scaffold", "feddyn")
# What says how a run can be had, in a reason why it cannot.
WAY_OUT = re.compile(r"\b(choose|set|needs|switch)\b")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_material(tmp_path_factory.mktemp("material"))
    for family in (LISTED, FUSED):
        save_base(folder / family, family)
    return folder


def settings_of(name: str) -> Config:
    """A run config under which a scheme can run and does something."""
    mode: Config = {"model.train": "expert-lora"} if name in ADAPTERS_ONLY else {}
    args = f'{{"population": {CLIENTS}}}' if name in OF_POPULATION else ""
    return {"scheme": name, "scheme-args": args, **SETTINGS.get(name, {}), **mode}


@contextmanager
def refused_with_a_way_out() -> Iterator[None]:
    """Skip what is refused, as long as the reason says what to do."""
    try:
        yield
    except (ConfigError, UnsupportedModelError) as error:
        assert WAY_OUT.search(str(error)), error
        pytest.skip(f"refused: {error}")


# -- two clients and a fold --------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    link_cache(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDMOE_HOME", str(folder))
        yield folder


def config_of(name: str, family: str, material: Path) -> RunConfig:
    own: dict[str, Any] = {
        "model.name": str(material / family),
        "data.source": str(material / "texts-train.jsonl"),
        "data.test-source": str(material / "texts-test.jsonl"),
        "train.max-steps": 1,
        "train.learning-rate": 1e-2,
    }
    return make_config(**{**COMMON, **settings_of(name), **own})


def one_round(config: RunConfig, setup: Setup, plan: Plan, state: ModelState) -> ModelState:
    """The global state after two clients' round, told what they would be told."""
    data = server_data(config.data)
    fingerprint = setup.base_fingerprint
    task = TrainTask(1, state, data.label_names, data.fingerprint, base_fingerprint=fingerprint)
    nodes = [Node(client, client, CLIENTS, None) for client in range(CLIENTS)]
    updates = [train_client(config, node, task) for node in nodes]
    root = None
    if plan.needs_root:
        rows = setup.task.encode(data.test)
        root = train_on_root(config, setup, rows, state, server_round=1)
    found = aggregate(state, updates, plan, round_info(1, updates), root=root)
    after = ModelState()
    for key, tensor in found.tensors:
        after.insert(key, tensor)
    assert all(bool(tensor.isfinite().all()) for tensor in flat_signals(found.told).values())
    return after


@pytest.fixture(scope="module")
def setups(home: Path) -> Callable[[RunConfig], tuple[Setup, ModelState]]:
    """What the server loads and starts from, once for each way of training."""
    loaded: dict[str, tuple[Setup, ModelState]] = {}

    def get(config: RunConfig) -> tuple[Setup, ModelState]:
        key = f"{config.model.model_dump_json()}, residual {config.scheme in WITH_RESIDUAL}"
        if key not in loaded:
            setup = load_setup(config, server_data(config.data).label_names)
            loaded[key] = setup, read_state(setup.model, setup.layers)
        return loaded[key]

    return get


@pytest.mark.parametrize("name", NAMES)
def test_a_round_moves_the_model_and_stays_finite(
    name: str, material: Path, setups: Callable[[RunConfig], tuple[Setup, ModelState]]
) -> None:
    with refused_with_a_way_out():
        config = config_of(name, LISTED, material)
        setup, state = setups(config)
        plan = Plan.of(make_scheme(config), setup.shape)
        plan.check(Run(setup.shape, task=config.data.task))
    before, after = dict(state.named()), dict(one_round(config, setup, plan, state).named())
    assert after.keys() == before.keys()
    assert all(bool(tensor.isfinite().all()) for tensor in after.values())
    moved = [key for key, tensor in after.items() if not torch.equal(tensor, before[key])]
    assert any(".experts." in key for key in moved)


# -- whole runs --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", [LISTED, FUSED])
@pytest.mark.parametrize("name", NAMES)
def test_a_whole_run_is_complete(name: str, family: str, material: Path, tmp_path: Path) -> None:
    config = settings_of(name) | {"model.name": str(material / family), "num-server-rounds": 2}
    if name in OF_POPULATION:
        config |= {"scheme-args": '{"population": 3}'}  # golden runs have three clients
    with refused_with_a_way_out():
        lines = read_metrics(run_golden(GoldenRun(config), material, tmp_path))
    assert [line["status"] for line in lines] == ["ok"] * 3
    assert all(line["failures"] == [] for line in lines)
    assert lines[2]["loss"] != lines[0]["loss"]
