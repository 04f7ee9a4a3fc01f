"""Every built-in scheme on a family of each kind: two clients train, the server folds.

Switch has a module an expert, Mixtral fused experts. A scheme that cannot be had refuses before the
run, with the reason. One round on Switch is fast; two rounds, in which clients hear what was told
and go on from what they kept, are slow.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedmoe_app import UnsupportedModelError
from fedmoe_app.config.names import ADAPTERS_ONLY, COMBINE, SCHEME_NAMES, WITH_RESIDUAL
from tests.bases import save_base
from tests.invariant.runs import make_material
from tests.schemes.one_round import CLIENTS, Played, config_of, play

FAMILIES = {"switch": "SwitchTransformers", "mixtral": "Mixtral"}
OF_POPULATION = ("scaffold", "feddyn")
# Each goes the way of another that is fast; two rounds of it are slow tests below.
ALIKE = {
    *("fedlc", "fedadam", "fedyogi", "rolora", "median", "multikrum", "centredclip"),
    *("geometricmedian", "trustedclip", "fedlmd", "hfedmoe", "fcmoe"),
}
COMBINED = {
    "combine.selection": "hfedmoe",
    "combine.loss": "logitadjust",
    "combine.gates": "hfedmoe",
    "combine.experts": "fcmoe",
}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_material(tmp_path_factory.mktemp("material"))
    for name, family in FAMILIES.items():
        save_base(folder / name, family)
    return folder


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path))


def settings_of(scheme: str) -> dict[str, Any]:
    found: dict[str, Any] = {"scheme": scheme}
    if scheme in ADAPTERS_ONLY:
        found["model.train"] = "expert-lora"
    if scheme in OF_POPULATION:
        found["scheme-args"] = json.dumps({"population": CLIENTS})
    return found | (COMBINED if scheme == COMBINE else {})


def check(played: Played) -> None:
    assert played.after.keys() == played.before.keys() == played.reported.keys()
    assert all(bool(tensor.isfinite().all()) for tensor in played.after.values())
    moved = {key for key, tensor in played.after.items() if not tensor.equal(played.before[key])}
    assert any(".experts." in key for key in moved)


@pytest.mark.parametrize("scheme", [n for n in SCHEME_NAMES if n not in ALIKE | {*WITH_RESIDUAL}])
def test_a_scheme_trains_experts_that_are_modules(scheme: str, material: Path) -> None:
    check(play(config_of(material, "switch", **settings_of(scheme))))


@pytest.mark.parametrize("scheme", WITH_RESIDUAL)
def test_a_residual_needs_fused_experts(scheme: str, material: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="choose a family with fused experts"):
        play(config_of(material, "switch", **settings_of(scheme)))
    check(play(config_of(material, "mixtral", **settings_of(scheme))))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_a_scheme_goes_on_in_a_second_round(scheme: str, family: str, material: Path) -> None:
    if family == "switch" and scheme in WITH_RESIDUAL:
        pytest.skip("refused: test_a_residual_needs_fused_experts")
    check(play(config_of(material, family, **settings_of(scheme)), rounds=2))
