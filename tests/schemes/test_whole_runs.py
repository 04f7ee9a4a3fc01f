"""Schemes in whole runs: state on server and clients, statistics up, signals down, and a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedmoe_app import SCHEMES, read_metrics
from fedmoe_app.config.names import ADAPTERS_ONLY, WITH_ARGS
from tests.bases import save_base
from tests.invariant.runs import RESUMED, SHORT, Config, GoldenRun, run_golden
from tests.schemes.conftest import SharedRuns

STATEFUL = ("fedavgm", "fedadam", "fedyogi", "scaffold", "feddyn")
OF_ONE_OTHER_CLASS = ("fedntd", "fedlmd")  # with two classes their softmax runs over one
ARGS = {"scaffold": '{"population": 3}', "feddyn": '{"population": 3}'}


def of_scheme(scheme: str, **more: Any) -> GoldenRun:
    return GoldenRun({"scheme": scheme, "scheme-args": ARGS.get(scheme, ""), **more})


def tensors(results: Path, name: str = "state") -> dict[str, torch.Tensor]:
    newest = max((results / "checkpoints").iterdir())
    return load_file(newest / f"{name}.safetensors")


@pytest.mark.parametrize("scheme", [name for name in WITH_ARGS if name not in STATEFUL])
def test_a_run_is_complete_and_another_than_that_of_fedavg(scheme: str, runs: SharedRuns) -> None:
    mode: Config = {"model.train": "expert-lora"} if scheme in ADAPTERS_ONLY else {}
    results = runs.of(of_scheme(scheme, **SHORT, **mode))
    assert [line["status"] for line in read_metrics(results)] == ["ok"] * 3
    plain = tensors(runs.of(of_scheme("fedavg", **SHORT, **mode)))
    differs = any(not torch.equal(t, plain[name]) for name, t in tensors(results).items())
    assert differs == (scheme not in OF_ONE_OTHER_CLASS)


@pytest.mark.parametrize("scheme", STATEFUL)
def test_state_is_in_the_checkpoint_and_a_resumed_run_goes_on_bit_for_bit(
    scheme: str, runs: SharedRuns
) -> None:
    run = of_scheme(scheme, **RESUMED)
    whole, resumed = runs.of(run), runs.resumed(run, after=1)
    assert [line["status"] for line in read_metrics(whole)] == ["ok"] * 3
    for name in ("state", "server-state", "broadcast"):
        mine, other = tensors(whole, name), tensors(resumed, name)
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine), name
    state = tensors(whole, "server-state")
    assert all(key.startswith("steps.0.") for key in state)
    assert any(tensor.any() for tensor in state.values())


def test_control_variates_add_up(runs: SharedRuns) -> None:
    """All three clients take part in every round: c is the mean of their c_i."""
    run = of_scheme("scaffold", **{"keep-client-state": True})
    results, home = runs.of(run), runs.home_of(run) / "clients"
    c = tensors(results, "server-state")
    newest = [max(client.glob("round-*.safetensors")) for client in home.glob("*/client-*")]
    kept = [load_file(path) for path in newest]
    assert len(kept) == 3
    for name in kept[0]:
        mean = sum(own.get(name, torch.zeros(())) for own in kept) / 3
        torch.testing.assert_close(c[f"steps.0.{name}"], mean, rtol=1e-4, atol=1e-6)
    assert tensors(results, "broadcast").keys() == {
        f"scaffold/{key.removeprefix('steps.0.')}" for key in c
    }


@pytest.mark.parametrize(
    ("scheme", "rounds", "moved"), [("ffalora", 2, "B"), ("rolora", 2, "A"), ("rolora", 3, "B")]
)
def test_a_half_of_the_adapters_stays(
    scheme: str, rounds: int, moved: str, runs: SharedRuns
) -> None:
    """In the last round one half moves at most; under RoLoRA by turns."""
    run = of_scheme(scheme, **{"model.train": "expert-lora", "num-server-rounds": rounds})
    results = runs.of(run)
    folders = sorted((results / "checkpoints").iterdir())[-2:]
    before, last = (load_file(folder / "state.safetensors") for folder in folders)
    halves = {h for k in last for h in "AB" if f"lora_{h}" in k and not last[k].equal(before[k])}
    assert halves == {moved}


def test_every_scheme_is_registered_once() -> None:
    assert len(set(SCHEMES.values())) == len(SCHEMES)


@pytest.mark.parametrize("scheme", ["scaffold", "fedavgm", "multikrum", "grammerge"])
def test_experts_that_are_modules_of_their_own(scheme: str, material: Path, tmp_path: Path) -> None:
    """Switch has a module an expert, the other runs a family with fused ones."""
    save_base(tmp_path / "switch", "SwitchTransformers")
    run = of_scheme(scheme, **SHORT, **{"model.name": str(tmp_path / "switch")})
    results = run_golden(run, material, tmp_path)
    assert [line["status"] for line in read_metrics(results)] == ["ok"] * 3
