"""What comes after ``fedmoe certificates``: a shell script, to be copied in parts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import tomli_w

from fedmoe_app.config.names import LOOPBACK
from fedmoe_app.flower.fleet import CONTROL_PORT, fleet

_ONE_PORT = f"""\
# With this release of Flower, who reaches the nodes' port {CONTROL_PORT} can start runs, too: let a
# proxy in front of it pass on /v1/fleet/ alone.
"""
_NODE_PORT = 9094  # of node 0's own processes; the next node takes the next one


@dataclass(frozen=True)
class Deployment:
    """What the commands are made of.

    Attributes:
        folder: of certificates and keys; absolute.
        hosts: names and addresses of the SuperLink's machine, as in its certificate.
        nodes: number of nodes.
        connection: name of the connection to the SuperLink.
        config: Flower configuration that the connection has yet to be added to; None if it is
            there.
    """

    folder: Path
    hosts: Sequence[str]
    nodes: int
    connection: str
    config: Path | None = None


def next_commands(deployment: Deployment) -> str:
    """Return the commands that start the SuperLink, the nodes and a run on their own data."""
    parts = [_superlink(deployment), _register(deployment), _node(deployment), _run(deployment)]
    return "\n\n".join(parts)


def _superlink(deployment: Deployment) -> str:
    host, folder = _address(deployment.hosts), deployment.folder
    everywhere = "[::]" if host.startswith("[") else "0.0.0.0"
    authority, certificate, key = (
        shlex.quote(str(folder / name)) for name in ("ca.crt", "server.crt", "server.key")
    )
    caution = _ONE_PORT if fleet().node_port == CONTROL_PORT else ""
    listening = fleet().listen_options(everywhere, CONTROL_PORT, fleet().node_port)
    where = " ".join(word if word.startswith("--") else f"'{word}'" for word in listening)
    return f"""\
{caution}# Next, on the SuperLink's machine; ca.key stays where it is:
fedmoe superlink --ssl-ca-certfile {authority} \\
  --ssl-certfile {certificate} --ssl-keyfile {key} \\
  --enable-supernode-auth --database superlink.db \\
  {where} --health-server-address {LOOPBACK}:9190"""


def _register(deployment: Deployment) -> str:
    folder = shlex.quote(str(deployment.folder))
    command = f"fedmoe register {folder} {shlex.quote(deployment.connection)}"
    adding = _add_connection(deployment) if deployment.config else ""
    return f"# there, in another shell:\n{adding}{command}"


def _add_connection(deployment: Deployment) -> str:
    assert deployment.config is not None
    home, file = (shlex.quote(str(p)) for p in (deployment.config.parent, deployment.config))
    authority = str(deployment.folder / "ca.crt")
    entry = {"address": f"{LOOPBACK}:{CONTROL_PORT}", "root-certificates": authority}
    table = tomli_w.dumps({"superlink": {deployment.connection: entry}})
    return f"mkdir -p {home} && cat >>{file} <<'END'\n\n{table}END\n"


def _node(deployment: Deployment) -> str:
    last = deployment.nodes - 1
    superlink = shlex.quote(f"{_address(deployment.hosts)}:{fleet().node_port}")
    return f"""\
# on each node, in a folder with ca.crt and its node-N; N is its number, 0 to {last}, DATA its file:
N=0 DATA=/data/train.jsonl
fedmoe supernode --superlink {superlink} --root-certificates ca.crt \\
  --auth-supernode-private-key "node-$N" --port "$(({_NODE_PORT} + N))" \\
  --node-config "partition-id=$N data-path=\\"$DATA\\"\""""


def _run(deployment: Deployment) -> str:
    # A run waits for two nodes unless it is told otherwise.
    fewer = " min-clients=1" if deployment.nodes == 1 else ""
    config = f'data.source=\\"nodes\\" data.label-names=\\"$LABELS\\"{fewer}'
    return f"""\
# then, on the SuperLink's machine; LABELS are the class names in the nodes' files:
LABELS=negative,positive
fedmoe run . {shlex.quote(deployment.connection)} -c "{config}\""""


def _address(hosts: Sequence[str]) -> str:
    """Return a host that can be connected to, an IPv6 address in brackets."""
    concrete = [host for host in hosts if not host.startswith("*.")]
    host = concrete[0] if concrete else hosts[0].replace("*", "superlink", 1)
    try:
        return f"[{host}]" if isinstance(ip_address(host), IPv6Address) else host
    except ValueError:
        return host
