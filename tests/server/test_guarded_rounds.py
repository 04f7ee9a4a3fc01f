"""The guard in whole rounds: streaming, order of arrival, checkpoints, metrics, and runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fedmoe_app import SCHEMES, ClientUpdate, ModelState, read_metrics, run_in_process
from fedmoe_app.aggregation.guard import STRENGTHS, Guard, Strength
from fedmoe_app.aggregation.sizes import size_of
from fedmoe_app.aggregation.store import Spool
from fedmoe_app.client import encode
from fedmoe_app.results.folder import list_checkpoints
from fedmoe_app.server.collect import AGAINST, UpdateCollector
from tests.aggregation.test_streaming import GIVEN, HOLDERS, ORDERS, Server
from tests.conftest import flat_config
from tests.homes import home_with_cache
from tests.toy import assert_same, write_topics

LIAR = 2


def scaled(update: ClientUpdate, factor: float) -> ClientUpdate:
    changes = ModelState()
    for key, tensor in update.changes.named():
        changes.insert(key, factor * tensor)
    return replace(update, changes=changes)


def experienced() -> Guard:
    """A guard that has seen one honest round; the random numbers of it differ by much."""
    guard = Guard(Strength(20, 10))
    guard.learn({update.client: size_of(update) for update in GIVEN})
    return guard


def guarded(server: Server, guard: Guard) -> Server:
    """A server of the streaming tests, with a guard."""
    own = server.collector
    server.collector = UpdateCollector(
        *(own._spec, server.registry, server.spool, HOLDERS, 0, own._streaming),
        guard=guard,
        num_asked=len(HOLDERS),
    )
    return server


@pytest.mark.parametrize("name", SCHEMES)
def test_an_honest_round_is_summed_as_it_comes_bit_for_bit(name: str, tmp_path: Path) -> None:
    scheme = SCHEMES[name]()
    plain = Server(scheme, Spool(tmp_path, limit=0))
    for update in GIVEN:
        plain.reply(update)
    server = guarded(Server(scheme, Spool(tmp_path, limit=0)), experienced())
    for update in GIVEN:
        server.reply(update)
    assert all(server.sums.has_taken(client) for client in HOLDERS)
    assert_same(server.fold(), plain.fold())


@pytest.mark.parametrize("name", ["fedavg", "fedmoe", "hfedmoe", "fcmoe", "fedalign"])
def test_a_liar_is_bounded_in_any_order_of_arrival(name: str, tmp_path: Path) -> None:
    scheme = SCHEMES[name]()
    given = [scaled(u, -2000) if u.client == LIAR else u for u in GIVEN]
    sizes = {update.client: size_of(update) for update in given}
    _, verdict = experienced().close(given, sizes, ())
    assert verdict.factors[LIAR] < 0.1
    assert all(verdict.factors[c] == 1 for c in HOLDERS if c != LIAR)
    wanted: ModelState | None = None
    for order in ORDERS:
        server = guarded(Server(scheme, Spool(tmp_path, limit=100)), experienced())
        for client in order:
            server.reply(given[client])
        assert not server.sums.has_taken(LIAR)
        collected = server.collector.finish()
        assert collected.guarded == verdict
        state = server.fold(collected)
        wanted = wanted or state
        assert_same(state, wanted)
        server.spool.close()


def alike(update: ClientUpdate) -> ClientUpdate:
    """An update that goes the way of all, since none of its changes is negative."""
    changes = ModelState()
    for key, tensor in update.changes.named():
        changes.insert(key, tensor.abs())
    return replace(update, changes=changes)


@pytest.mark.parametrize("name", ["fedavg", "hfedmoe", "fedalign"])
def test_who_turns_the_sign_is_left_out_in_any_order_of_arrival(name: str, tmp_path: Path) -> None:
    scheme, usual = SCHEMES[name](), [alike(update) for update in GIVEN]
    honest = guarded(Server(scheme, Spool(tmp_path, limit=100)), experienced())
    for update in usual:
        if update.client != LIAR:
            honest.reply(update)
    wanted = honest.fold()
    for order in ORDERS:
        guard = Guard(Strength(20, 10, direction=3))
        for _ in range(2):  # the first one draws the places of sketches
            guard.learn({update.client: guard.size_of(update, {}) for update in usual})
        server = guarded(Server(scheme, Spool(tmp_path, limit=100)), guard)
        for client in order:
            server.reply(scaled(usual[client], -1 if client == LIAR else 1))
        collected = server.collector.finish()
        assert collected.rejected == {f"client {LIAR}": f"reply rejected: {AGAINST}"}
        assert collected.kinds == {"direction": 1}
        assert LIAR not in collected.bytes_up
        assert_same(server.fold(collected), wanted)
        server.spool.close()


def test_a_first_round_has_the_bounds_of_its_own_medians(tmp_path: Path) -> None:
    server = guarded(Server(SCHEMES["fedavg"](), Spool(tmp_path)), Guard(STRENGTHS["default"]))
    for update in GIVEN:
        server.reply(scaled(update, -50) if update.client == LIAR else update)
    assert not any(server.sums.has_taken(client) for client in HOLDERS)
    collected = server.collector.finish()
    assert collected.guarded is not None
    assert collected.guarded.factors[LIAR] < 0.1


# -- runs -----------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = home_with_cache(tmp_path)
    monkeypatch.setenv("FEDMOE_HOME", str(home))
    monkeypatch.setattr("fedmoe_app.report.plots.plot_run", lambda path: None)
    return home


@pytest.fixture
def liar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Client 2 sends twenty times its changes, and says that it has data without end."""
    honest = encode.encode_reply

    def lie(update: ClientUpdate, *rest: Any) -> Any:
        if update.client == LIAR:
            update = replace(scaled(update, -20), num_examples=10**7, num_partitions=0)
        return honest(update, *rest)

    monkeypatch.setattr(encode, "encode_reply", lie)


def run(folder: Path, name: str, clients: int = 4, **overrides: Any) -> Path:
    source = folder / "topics.jsonl"
    if not source.exists():
        write_topics(source, 16)
    return run_in_process(
        flat_config(
            **{
                "num-server-rounds": 3,
                "output-dir": str(folder / "out"),
                "run-name": name,
                "data.source": str(source),
                "data.test-source": str(source),
                "data.max-length": 12,
                "data.partition": "iid",
                "train.max-steps": 2,
                "diagnostics": False,
                "wire.downloads": "full",
            }
            | overrides
        ),
        clients,
    )


def timeless(path: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key != "seconds"}
        for line in read_metrics(path)
    ]


@pytest.mark.usefixtures("home", "liar")
def test_a_resumed_run_bounds_as_the_one_that_went_on(tmp_path: Path) -> None:
    whole = run(tmp_path, "whole", **{"keep-checkpoints": 3})
    first = run(tmp_path, "first", **{"keep-checkpoints": 3})
    checkpoint = next(path for path in list_checkpoints(first) if path.name == "round-00001")
    again = run(tmp_path, "first", resume=str(checkpoint))
    assert timeless(again) == timeless(whole)
    states = [load_file(path / "model" / "model.safetensors") for path in (whole, again)]
    assert all(bool((states[0][key] == states[1][key]).all()) for key in states[0])
    header = json.loads((list_checkpoints(again)[0] / "checkpoint.json").read_text())
    assert set(header["guard"]["known"]) == {"0", "1", "2", "3"}


@pytest.mark.usefixtures("home", "liar")
def test_what_the_guard_did_stands_in_the_metrics(tmp_path: Path) -> None:
    lines = read_metrics(run(tmp_path, "run"))[1:]
    for line in lines:
        clients = {client["client"]: client for client in line["clients"]}
        liar, honest = clients.pop(LIAR), list(clients.values())
        assert liar["num_examples"] == 10**7
        assert liar["counts_as"] <= 4 * max(client["num_examples"] for client in honest)
        assert liar["clipped_to"] < 0.5
        assert all(client["clipped_to"] == 1 for client in honest)
        assert all(client["counts_as"] == client["num_examples"] for client in honest)
        assert set(line["guard"]["typical"]) == {"dense", "gates", "expert", "whole"}
    off = read_metrics(run(tmp_path, "off", **{"robust.guard": "off"}))[-1]
    assert "guard" not in off
    assert "clipped_to" not in off["clients"][0]


@pytest.fixture
def turned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Client 2 turns the sign of its changes."""
    honest = encode.encode_reply

    def lie(update: ClientUpdate, *rest: Any) -> Any:
        return honest(scaled(update, -1) if update.client == LIAR else update, *rest)

    monkeypatch.setattr(encode, "encode_reply", lie)


@pytest.mark.usefixtures("home", "turned")
def test_a_turned_sign_is_rejected_and_the_same_after_a_resume(tmp_path: Path) -> None:
    settings = {"robust.guard": "tight", "num-server-rounds": 4, "keep-checkpoints": 4}
    whole = run(tmp_path, "whole", 8, **settings)
    first, second, third, fourth = read_metrics(whole)[1:]
    for line in (first, second):  # no direction is known yet
        assert not line["rejected"]
    for line in (third, fourth):
        assert line["rejected"] == {"direction": 1}
        assert [client["client"] for client in line["clients"]] == [0, 1, 3, 4, 5, 6, 7]
        assert [AGAINST in failure["reason"] for failure in line["failures"]] == [True]
    before = timeless(whole)
    checkpoint = next(path for path in list_checkpoints(whole) if path.name == "round-00002")
    assert timeless(run(tmp_path, "whole", 8, resume=str(checkpoint), **settings)) == before


@pytest.mark.usefixtures("home")
def test_an_honest_run_is_the_one_without_a_guard(tmp_path: Path) -> None:
    on, off = (run(tmp_path, name, **{"robust.guard": name}) for name in ("default", "off"))
    states = [load_file(path / "model" / "model.safetensors") for path in (on, off)]
    assert all(bool((states[0][key] == states[1][key]).all()) for key in states[0])
    assert read_metrics(on)[-1]["loss"] == read_metrics(off)[-1]["loss"]
