"""Names of hosts and addresses of services, as people type them.

They are held to the rules here before any library sees them: one that looks a name up encodes it
first, and says of "ü..de" only that a label is empty or too long.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address

from fedmoe_app.config.errors import ConfigError

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_PORTS = range(1, 1 << 16)


def is_host(text: str) -> bool:
    """Tell whether a text is an IP address or a DNS name, in ASCII, perhaps after a ``*.``."""
    return _is_address(text) or _is_name(text)


def check_address(text: str, option: str) -> str:
    """Return an address ``HOST:PORT``; an IPv6 address stands in brackets.

    Args:
        text: as it was given.
        option: its name, for the message.

    Raises:
        ConfigError: with the value and what is expected.
    """
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        is_good = _is_address(host[1:-1], must_be_v6=True)
    else:
        is_good = ":" not in host and is_host(host)
    if is_good and port.isascii() and port.isdecimal() and int(port) in _PORTS:
        return text
    raise ConfigError(
        f"{option} {text!r}: must be HOST:PORT, with a DNS name in ASCII (lab1.example.org, or "
        "xn--... for a name with other letters), an IPv4 address (192.0.2.7) or an "
        f"IPv6 address in brackets ([2001:db8::7]), and a port from 1 to {_PORTS[-1]}"
    )


def _is_address(text: str, must_be_v6: bool = False) -> bool:
    try:
        found = ip_address(text)
    except ValueError:
        return False
    return isinstance(found, IPv6Address) or not must_be_v6


def _is_name(text: str) -> bool:
    labels = text.removeprefix("*.").split(".")
    # A name of digits and dots is an address with an error in it.
    return len(text) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdecimal()
