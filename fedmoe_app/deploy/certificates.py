"""The folder of a deployment's certificates and keys: made as a whole, extended, never overwritten.

======================  ====  ==================================================================
``ca.crt``              0644  certificate of the authority; every machine needs it
``ca.key``              0600  its key: signs further server certificates; goes nowhere
``server.crt``          0644  the SuperLink's certificate
``server.key``          0600  its key; only the SuperLink needs it
``superexec.secret``    0600  shared by the SuperLink and a SuperExec in a container of its own
``node-N``              0600  private key of node N; only that node needs it
``node-N.pub``          0644  its public key, for ``flwr supernode register``
======================  ====  ==================================================================

The folder itself has mode 0700.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.files import new_folder
from fedmoe_app.config.hosts import is_host
from fedmoe_app.deploy.authority import Pair, make_authority, make_node_key, make_server, matches

CA_CERTIFICATE, CA_KEY = "ca.crt", "ca.key"
SERVER_CERTIFICATE, SERVER_KEY = "server.crt", "server.key"
SECRET = "superexec.secret"

_PUBLIC_ENDINGS = (".crt", ".pub")
_NODE = re.compile(r"node-(\d+)(?:\.pub)?")

Files = Mapping[str, bytes]


def create(
    folder: Path, hosts: Sequence[str], num_nodes: int, days: int, now: datetime | None = None
) -> list[Path]:
    """Make the folder with everything in it, at once or not at all; return the files.

    Args:
        folder: must not exist, or be empty.
        hosts: DNS names and IP addresses by which the nodes reach the SuperLink.
        num_nodes: key pairs to make, ``node-0`` and so on.
        days: until the server's certificate ends.
        now: the time at which validity begins; by default the present.

    Raises:
        ConfigError: a host that is neither a name nor an address, or a folder that holds files.
    """
    check_hosts(hosts)
    if not hosts:
        raise ConfigError("--host: name what the nodes call the SuperLink's machine")
    now = now or datetime.now(UTC)
    authority = make_authority(now, days)
    server = make_server(authority, hosts, now, days)
    files = {
        CA_CERTIFICATE: authority.public,
        CA_KEY: authority.private,
        SERVER_CERTIFICATE: server.public,
        SERVER_KEY: server.private,
        SECRET: secrets.token_hex(32).encode(),
    }
    files |= _node_files(range(num_nodes))
    _publish_folder(folder, files)
    return [folder / name for name in files]


def extend(
    folder: Path, hosts: Sequence[str], num_nodes: int, days: int, now: datetime | None = None
) -> list[Path]:
    """Add key pairs of further nodes and, with hosts, a server certificate; return the files.

    The new nodes follow the highest number there is. The certificate is signed by the folder's
    authority, so that the nodes need no new ``ca.crt``; an earlier one has to be moved away first.

    Raises:
        ConfigError: no authority in the folder, or a file that would be overwritten.
    """
    check_hosts(hosts)
    files: dict[str, bytes] = {}
    if hosts:
        server = make_server(_read_authority(folder), hosts, now or datetime.now(UTC), days)
        files |= {SERVER_CERTIFICATE: server.public, SERVER_KEY: server.private}
    if not (folder / CA_CERTIFICATE).is_file():
        raise ConfigError(f"{folder}: holds no {CA_CERTIFICATE} to extend; leave out --add")
    first = 1 + max(
        (int(found[1]) for found in map(_NODE.fullmatch, os.listdir(folder)) if found), default=-1
    )
    files |= _node_files(range(first, first + num_nodes))
    _add_files(folder, files)
    return [folder / name for name in files]


def node_names(folder: Path) -> list[str]:
    """Return the nodes whose public keys lie in the folder, in the order of their numbers."""
    found = [_NODE.fullmatch(path.name) for path in folder.glob("node-*.pub")]
    return [f"node-{number}" for number in sorted(int(match[1]) for match in found if match)]


def check_hosts(hosts: Iterable[str]) -> None:
    """Refuse what is neither a DNS name nor an IP address, such as ``host:port``.

    Raises:
        ConfigError: the value and what is expected.
    """
    for host in hosts:
        if not is_host(host):
            raise ConfigError(
                f"--host {host!r}: must be a DNS name (lab1.example.org) or an IP address "
                "(192.0.2.7), without a port"
            )


def _node_files(numbers: Iterable[int]) -> dict[str, bytes]:
    pairs = {f"node-{number}": make_node_key(f"node-{number}") for number in numbers}
    files: dict[str, bytes] = {}
    for name, pair in pairs.items():
        files |= {name: pair.private, f"{name}.pub": pair.public}
    return files


def _read_authority(folder: Path) -> Pair:
    try:
        authority = Pair((folder / CA_KEY).read_bytes(), (folder / CA_CERTIFICATE).read_bytes())
        fits = matches(authority)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: no usable {CA_KEY} and {CA_CERTIFICATE} ({error})") from None
    if not fits:
        raise ConfigError(f"{folder / CA_KEY}: is not the key of {CA_CERTIFICATE}")
    return authority


def _publish_folder(folder: Path, files: Files) -> None:
    """Write all files beside ``folder``, then give it its name."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name a folder")
    _refuse_present(folder, sorted(os.listdir(folder)) if folder.is_dir() else [])
    try:
        with new_folder(folder, modes=None) as draft:  # each file has its own
            for name, contents in files.items():
                _write(draft / name, contents)
    except OSError:
        _refuse_present(folder, sorted(os.listdir(folder)) if folder.is_dir() else [])
        raise


def _add_files(folder: Path, files: Files) -> None:
    """Write files into a folder that is there; either all of them are added or none."""
    added: list[Path] = []
    with tempfile.TemporaryDirectory(prefix=".draft-", dir=folder) as draft:
        for name, contents in files.items():
            _write(Path(draft) / name, contents)
        try:
            for name in files:
                os.link(Path(draft) / name, folder / name)  # fails where a rename would replace
                added.append(folder / name)
        except FileExistsError:
            _withdraw(added)
            _refuse_present(folder, [name])
        except BaseException:
            _withdraw(added)
            raise


def _withdraw(added: Iterable[Path]) -> None:
    for path in added:
        path.unlink()


def _refuse_present(folder: Path, names: Sequence[str]) -> None:
    if names:
        raise ConfigError(
            f"{folder / names[0]}: is there already, and nothing is overwritten; name another "
            "folder, move the file away, or add to the folder's authority with --add"
        )


def _write(path: Path, contents: bytes) -> None:
    """Write a new file, on the disk when this returns; private unless its name says public."""
    mode = 0o644 if path.suffix in _PUBLIC_ENDINGS else 0o600
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(handle, mode)  # whatever the umask is
        file.write(contents)
        file.flush()
        os.fsync(handle)
