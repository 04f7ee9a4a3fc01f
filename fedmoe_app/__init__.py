"""Federated fine-tuning of Mixture-of-Experts language models, as a Flower app.

What programs of others use is here by name: ``from fedmoe_app import Scheme, run_in_process``.
These names stay; where a module lies inside is nobody's business but this package's. A name is
imported when it is asked for, so that ``import fedmoe_app`` stays light (PEP 562).
"""

import logging
from importlib import import_module
from typing import Any

# bitsandbytes warns at import, once a process, that an optional CPU kernel is not installed. peft
# imports it whether or not a model is quantised.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_BY_MODULE = {
    # A run, and what it leaves behind
    "api": ("Comparison", "Picture", "RunResult", "compare_schemes", "load_run", "run"),
    "config.errors": ("ConfigError", "DataError"),
    "config.schema": ("DataConfig", "ModelConfig", "RunConfig", "TrainConfig", "WireConfig"),
    "config.parse": ("default_run_config", "flatten_run_config", "parse_run_config"),
    "compare.in_process": ("run_in_process",),
    "results.folder": ("ResultsError", "read_metrics"),
    "results.status": ("read_status",),
    # What a scheme is made of and is given
    "schemes": ("SCHEMES", "make_scheme"),
    "schemes.base": ("Plan", "Run", "Scheme"),
    "schemes.views": (
        "Block",
        "BlockUpdates",
        "ExpertUpdates",
        "LocalClient",
        "LocalStep",
        "Now",
        "Outputs",
        "Reply",
        "RoundInfo",
        "SharedUpdates",
        "Trained",
    ),
    "schemes.parts": (
        "Admit",
        "Assign",
        "Client",
        "ExpertProbe",
        "FeatureTerm",
        "Field",
        "Freeze",
        "Histogram",
        "InBatch",
        "Keeps",
        "Logits",
        "Mean",
        "MeanGradient",
        "OfInputs",
        "OfOutput",
        "OfReceived",
        "OfUpdate",
        "Once",
        "Outgoing",
        "OutputTerm",
        "PersonalCopy",
        "RoundProbe",
        "RouterTerm",
        "Scaled",
        "Server",
        "Signal",
        "Split",
        "Start",
        "Step",
        "Summed",
        "TaskLoss",
        "TeacherTerm",
        "Telling",
        "Together",
        "WeightTerm",
        "Weighted",
    ),
    "schemes.sums": ("PairRule",),
    "moe.shape": ("ModelShape",),
    "moe.state": ("ModelState",),
    "moe.routing": ("RoutingStats",),
    "wire.update": ("ClientUpdate",),
    # The schemes, and their pure mathematics on tensors alone
    "schemes.fedavg": ("FedAvg",),
    "schemes.fedprox": ("FedProx",),
    "schemes.fedmoe": ("FedMoE",),
    "schemes.pflmoe": ("PFLMoE",),
    "schemes.combine": ("Combination",),
    "schemes.hfedmoe": (
        "HFedMoE",
        "expert_importance",
        "expert_weights",
        "gate_weights",
        "information_bottleneck",
        "select_experts",
    ),
    "schemes.fcmoe": ("FCMoE", "consensus_update", "importance", "retention"),
    "schemes.fedalign": (
        "FedAlignMoE",
        "consistency_weights",
        "gate_regulariser",
        "routing_reference",
        "semantic_weights",
    ),
    # Models
    "moe.layers": ("MoELayer", "UnsupportedModelError", "find_moe_layers"),
    "moe.loading": ("LoadSpec", "load_model"),
}
PUBLIC = {name: f"{__name__}.{module}" for module, names in _BY_MODULE.items() for name in names}
__all__ = list(PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for; see PEP 562."""
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    """List the public names with everything else."""
    return sorted({*globals(), *PUBLIC})
