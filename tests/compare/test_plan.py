from typing import Any

import pytest

from fedmoe_app import ConfigError
from fedmoe_app.compare.plan import (
    Plan,
    SchemeEntry,
    dirichlet,
    make_plan,
    own_partition,
    read_schemes,
)
from tests.conftest import flat_config


def plan(
    schemes: str | list[SchemeEntry] = "fedavg,fedprox",
    alphas: tuple[float, ...] = (),
    seeds: tuple[int, ...] = (1, 2),
    clients: int = 3,
    centralised: bool = True,
    fixed: dict[str, Any] | None = None,
    **overrides: Any,
) -> Plan:
    shared = flat_config(**overrides)
    rows = read_schemes(schemes) if isinstance(schemes, str) else schemes
    columns = dirichlet(alphas, shared) if alphas else [own_partition(shared)]
    return make_plan(shared, rows, columns, seeds, clients, fixed, centralised)


def test_cells_are_schemes_by_partitions_by_seeds_with_one_reference_a_seed() -> None:
    found = plan(alphas=(0.1, 0.5))
    assert [cell.label for cell in found.cells[:5]] == [
        "centralised, seed 1",
        "fedavg, dirichlet 0.1, seed 1",
        "fedprox, dirichlet 0.1, seed 1",
        "fedavg, dirichlet 0.5, seed 1",
        "fedprox, dirichlet 0.5, seed 1",
    ]
    assert len(found.cells) == 10
    assert found.schemes == ("centralised", "fedavg", "fedprox")
    assert found.partitions == ("dirichlet 0.1", "dirichlet 0.5")
    assert len({cell.key for cell in found.cells}) == 10


def test_the_run_configs_of_the_cells() -> None:
    central, first, second = plan(alphas=(0.1,), seeds=(7,), **{"evaluate-every": 5}).cells
    assert (central.clients, first.clients) == (1, 3)
    assert central.flat["data.partition"] == "iid"
    assert (central.flat["scheme"], central.flat["min-clients"]) == ("fedavg", 1)
    assert (first.flat["data.partition"], first.flat["data.alpha"]) == ("dirichlet", 0.1)
    assert {cell.flat["seed"] for cell in (central, first, second)} == {7}
    assert {cell.flat["evaluate-every"] for cell in (central, first, second)} == {1}
    assert {k for k in first.flat if first.flat[k] != second.flat[k]} == {"scheme"}


def test_without_alphas_the_own_partition_is_the_only_column() -> None:
    assert plan(**{"data.partition": "iid"}).partitions == ("iid",)
    overrides = {"data.partition": "natural", "data.partition-by": "domain"}
    assert plan(**overrides).partitions == ("natural by domain",)
    assert plan(**{"data.alpha": 0.25}).partitions == ("dirichlet 0.25",)


def test_the_reference_may_be_left_out() -> None:
    assert plan(centralised=False).schemes == ("fedavg", "fedprox")
    assert len(plan(centralised=False).cells) == 4


def test_keys_tell_settings_seeds_and_clients_apart_but_not_places() -> None:
    keys = {
        cell.key
        for found in (
            plan("fedavg"),
            plan("fedavg", clients=4),
            plan("fedavg", **{"train.learning-rate": 1e-3}),
        )
        for cell in found.cells[1:2]
    }
    assert len(keys) == 3
    elsewhere = plan("fedavg", **{"output-dir": "/somewhere", "run-name": "mine"})
    assert [cell.key for cell in elsewhere.cells] == [cell.key for cell in plan("fedavg").cells]


def test_more_seeds_belong_to_the_same_comparison() -> None:
    assert plan(seeds=(1,)).key == plan(seeds=(1, 2)).key
    assert plan("fedavg").key != plan("fedprox").key
    assert plan(alphas=(0.1,)).key != plan(alphas=(0.2,)).key


def test_a_file_changes_its_own_row_only() -> None:
    rows = [
        SchemeEntry("fedprox", {"scheme": "fedprox"}),
        SchemeEntry("strong", {"scheme": "fedprox", "fedprox.proximal-mu": 1.0}),
    ]
    first, second = plan(rows, seeds=(1,), centralised=False).cells
    assert (first.flat["fedprox.proximal-mu"], second.flat["fedprox.proximal-mu"]) == (0.01, 1.0)


def test_what_is_fixed_stands_above_the_rows() -> None:
    rows = [SchemeEntry("long", {"scheme": "fedavg", "num-server-rounds": 25})]
    assert plan(rows, fixed={"num-server-rounds": 3}).cells[1].flat["num-server-rounds"] == 3


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"num-server-rounds": 25}, "num-server-rounds = 25, but 6"),
        ({"data.alpha": 0.1}, "data.alpha = 0.1, but 0.5"),
        ({"model.name": "olmoe-tiny"}, "model.name = 'olmoe-tiny', but 'qwen3moe-tiny'"),
    ],
)
def test_a_row_with_data_model_or_rounds_of_its_own_is_refused(
    overrides: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError, match=f"mine: {key} for the other rows"):
        plan([SchemeEntry("mine", {"scheme": "fedavg"} | overrides)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schemes": "fedalgin"}, 'fedalgin: scheme = "fedalgin": unknown; choose one of'),
        ({"schemes": "nowhere:Mine"}, 'scheme = "nowhere:Mine": cannot be imported'),
        ({"schemes": [SchemeEntry("x", {"fedprx.mu": 1})]}, "x: run config: fedprx: unknown key"),
        ({"clients": 1}, "--clients 1: the run config asks for min-clients = 2"),
        ({"seeds": (2**31,)}, "seed = 2147483648"),
        ({"fixed": {"num-server-rounds": 0}}, "num-server-rounds = 0"),
        ({"data.source": "nodes"}, 'data.source = "nodes": a comparison makes the partitions'),
    ],
)
def test_what_is_wrong_is_found_before_anything_runs(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(**arguments)
