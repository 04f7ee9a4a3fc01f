"""The published names: all of them are there, under their names, with their arguments."""

from __future__ import annotations

import inspect
import pkgutil
import subprocess
import sys

import pytest
import torch

import fedmoe_app

# Home module and arguments of each. This list only ever grows.
CONTRACT = {
    "expert_importance": ("hfedmoe", "(probs, lam)"),
    "information_bottleneck": ("hfedmoe", "(probs, lam, beta)"),
    "select_experts": ("hfedmoe", "(scores, budget, routed=None)"),
    "expert_weights": ("hfedmoe", "(usage, num_examples, tau)"),
    "gate_weights": ("hfedmoe", "(usage, importance, tau, normalise=True)"),
    "importance": ("fcmoe", "(counts, deltas)"),
    "consensus_update": ("fcmoe", "(deltas, counts, *, weights=None, project=True)"),
    "retention": ("fcmoe", "(own_delta, global_old, global_new, mode)"),
    "consistency_weights": ("fedalign", "(prob, margin, *, uniform=False)"),
    "routing_reference": ("fedalign", "(prob, margin, *, uniform=False)"),
    "semantic_weights": (
        "fedalign",
        "(regions, deltas, beta=1.0, temperature=1.0, *, direction=True, threshold=None)",
    ),
    "gate_regulariser": (
        "fedalign",
        "(probs, reference, overlap, top_k, eta, kl, *, temperature=1.0, adaptive=True)",
    ),
}


def test_no_name_is_lost() -> None:
    assert set(CONTRACT) <= set(fedmoe_app.PUBLIC) <= set(dir(fedmoe_app))


def test_a_star_gives_all_of_them() -> None:
    found: dict[str, object] = {}
    exec("from fedmoe_app import *", found)
    assert found.keys() >= fedmoe_app.PUBLIC.keys()


def test_no_name_stands_for_two_things() -> None:
    names = [name for names in fedmoe_app._BY_MODULE.values() for name in names]
    assert len(set(names)) == len(names)


def test_no_name_is_that_of_a_room() -> None:
    """Once a room is imported, its name would give the room."""
    rooms = {module.name for module in pkgutil.iter_modules(fedmoe_app.__path__)}
    assert rooms & fedmoe_app.PUBLIC.keys() == set()


@pytest.mark.parametrize("name", fedmoe_app.PUBLIC)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(fedmoe_app, name).__doc__


@pytest.mark.parametrize("name", CONTRACT)
def test_a_public_function_is_there(name: str) -> None:
    module, arguments = CONTRACT[name]
    function = getattr(fedmoe_app, name)
    assert function.__module__ == f"fedmoe_app.schemes.{module}"
    assert function.__doc__
    signature = inspect.signature(function)
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    assert str(inspect.Signature(plain)) == arguments


def test_an_unknown_name_is_an_ordinary_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'expert_wieghts'"):
        fedmoe_app.expert_wieghts  # noqa: B018  (asking is the test)


def test_expert_weights_by_hand() -> None:
    # τ = 0.25: expert 0 is used by clients 0 and 2, which have 1 and 3 examples; expert 1 by
    # client 1 alone; expert 2 by nobody; expert 3 by all three, of 1 + 4 + 3 = 8 examples.
    usage = torch.tensor([[0.5, 0.1, 0.1, 0.3], [0.2, 0.5, 0.0, 0.3], [0.25, 0.2, 0.05, 0.5]])
    weights = fedmoe_app.expert_weights(usage, torch.tensor([1, 4, 3]), 0.25)
    assert weights.dtype == torch.float32
    assert weights.tolist() == [
        [0.25, 0.0, 0.0, 0.125],
        [0.0, 1.0, 0.0, 0.5],
        [0.75, 0.0, 0.0, 0.375],
    ]


def test_the_package_alone_is_light() -> None:
    code = "import sys, fedmoe_app; print([n for n in ('torch', 'numpy') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
