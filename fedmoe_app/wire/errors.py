"""Why a reply cannot be used; no heavy import."""

from __future__ import annotations


class InvalidUpdateError(ValueError):
    """A client reply that the server must not use; the message is the reason.

    Attributes:
        kind: what the metrics count it under: ``protocol``, ``codec``, ``checksum``, ``size``,
            ``missing`` (or unknown), ``values`` (NaN, infinite, out of range), ``metrics``,
            ``client`` (another's number), ``replay`` (it answers another message), ``disk``; the
            guard adds ``direction`` (its change goes against the rounds before).
    """

    def __init__(self, reason: str, kind: str = "values") -> None:
        super().__init__(reason)
        self.kind = kind
