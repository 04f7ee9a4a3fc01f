"""Names of the codecs, for whoever checks a config; no heavy import. And the version of it all."""

from __future__ import annotations

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
