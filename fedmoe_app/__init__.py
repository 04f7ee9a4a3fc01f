"""Federated fine-tuning of Mixture-of-Experts language models, as a Flower app.

The published functions of the schemes are here by name, ``from fedmoe_app import expert_weights``;
torch is imported when the first of them is asked for.
"""

import logging
from importlib import import_module
from typing import Any

# bitsandbytes warns at import, once a process, that an optional CPU kernel is not installed. peft
# imports it whether or not a model is quantised.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# The public functions by name, each with its module: pure mathematics, on tensors alone. They stay,
# with their arguments and shapes: programs of others call them.
PUBLIC = {
    "expert_importance": "fedmoe_app.schemes.hfedmoe",
    "information_bottleneck": "fedmoe_app.schemes.hfedmoe",
    "select_experts": "fedmoe_app.schemes.hfedmoe",
    "expert_weights": "fedmoe_app.schemes.hfedmoe",
    "gate_weights": "fedmoe_app.schemes.hfedmoe",
    "importance": "fedmoe_app.schemes.fcmoe",
    "consensus_update": "fedmoe_app.schemes.fcmoe",
    "retention": "fedmoe_app.schemes.fcmoe",
    "consistency_weights": "fedmoe_app.schemes.fedalign",
    "routing_reference": "fedmoe_app.schemes.fedalign",
    "semantic_weights": "fedmoe_app.schemes.fedalign",
    "gate_regulariser": "fedmoe_app.schemes.fedalign",
}


def __getattr__(name: str) -> Any:
    """Import a public function when it is asked for; see PEP 562."""
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    """List the public functions with everything else."""
    return sorted({*globals(), *PUBLIC})
