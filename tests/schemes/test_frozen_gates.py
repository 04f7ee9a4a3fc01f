"""Schemes for gates on models whose gates are frozen (``model.gates = false``)."""

from __future__ import annotations

import pytest

from fedmoe_app import Combination, ConfigError, FedAlignMoE, ModelShape, Run, Scheme

TRAINED = ModelShape(2, 8, 2)
FROZEN = ModelShape(2, 8, 2, gates_trained=False)


@pytest.mark.parametrize("gates", ["private", "consistency"])
def test_fedalign_refuses_to_align_frozen_gates(gates: str) -> None:
    scheme = FedAlignMoE(gates=gates, lam=0.25)
    scheme.check(Run(TRAINED))
    message = (
        rf'fedalign.gates = "{gates}" with fedalign.lam = 0.25: .*model.gates = false.*'
        r'choose model.gates = true, or fedalign.gates = "average"'
    )
    with pytest.raises(ConfigError, match=message):
        scheme.check(Run(FROZEN))


@pytest.mark.parametrize("scheme", [FedAlignMoE(gates="average"), FedAlignMoE(lam=0.0), Scheme()])
def test_what_aligns_no_gates_serves_frozen_ones(scheme: Scheme) -> None:
    scheme.check(Run(FROZEN))


def test_only_the_gates_of_a_combination_need_trained_ones() -> None:
    fedalign = FedAlignMoE()
    Combination(loss=fedalign, experts=fedalign).check(Run(FROZEN))
    Combination(gates=fedalign).check(Run(TRAINED))
    with pytest.raises(ConfigError, match="fedalign.gates"):
        Combination(gates=fedalign).check(Run(FROZEN))
