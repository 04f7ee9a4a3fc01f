"""``fedmoe doctor``: what works on this machine, what does not, and how to mend it."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from rich import box

from fedmoe_app.cli.gpus import EXTRA, Driver, has_nvml, read_driver, why_unused
from fedmoe_app.config.paths import home
from fedmoe_app.flower.fleet import CONTROL_PORT, UnreachableError, fleet
from fedmoe_app.flower.release import is_tried
from fedmoe_app.launch.processes import program
from fedmoe_app.results.table import human_bytes
from fedmoe_app.shown.terminal import Console, Table, literal

OK, WARNING, FAILURE = "ok", "warning", "FAILURE"
_SHOWN = ("flwr", "torch", "transformers", "peft", "bitsandbytes", "datasets", "grpcio")
_MAX_ERROR = 0.2  # mean error of a quantised weight over its mean size
_MIN_MEMORY, _MIN_DISK = 2e9, 2e9  # bytes, for the demo
_STYLES = {OK: "green", WARNING: "yellow", FAILURE: "bold red"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name.
        state: OK, WARNING (some features do not work) or FAILURE (nothing does).
        found: what is there.
        remedy: what to do; empty where all is well.
    """

    what: str
    state: str
    found: str
    remedy: str = ""


def examine(superlink: str = "", root_certificates: Path | None = None) -> list[Finding]:
    """Look at everything; a look that itself fails is a warning.

    Args:
        superlink: ``HOST:PORT`` of a Fleet API, whose clock this machine's is compared with; ""
            for none.
        root_certificates: its CA; None for a SuperLink without TLS.
    """
    findings = [finding for check in _CHECKS for finding in _guarded(check)]
    if superlink:
        findings.append(_same_time(superlink, root_certificates))
    return findings


def print_findings(findings: list[Finding], console: Console) -> None:
    """Print a row a finding."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("", "what", "found", "what to do"):
        table.add_column(header, overflow="fold")
    for finding in findings:
        state = literal(finding.state, _STYLES[finding.state])
        table.add_row(state, finding.what, finding.found, finding.remedy)
    console.print(table)


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:
        name = check.__name__.strip("_")
        yield Finding(name, WARNING, f"could not be looked at: {type(error).__name__}: {error}")


def _versions() -> Iterator[Finding]:
    yield Finding("Python", OK, platform.python_version())
    wanted = {r.name: r for r in map(Requirement, metadata.requires("fedmoe") or [])}
    for name in _SHOWN:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, FAILURE, "not installed", f"pip install '{wanted[name]}'")
            continue
        specifier = wanted[name].specifier
        if specifier.contains(version, prereleases=True) or (name == "flwr" and is_tried(version)):
            yield Finding(name, OK, version)
        else:
            yield Finding(
                name,
                WARNING,
                f"{version}, tested with {specifier}",
                f"pip install '{wanted[name]}'",
            )


def _gpu() -> Iterator[Finding]:
    import torch

    driver = read_driver()
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _usable(index, driver)
    elif driver and driver.cards:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        yield Finding("GPU", WARNING, *why_unused(driver, torch.version.cuda, hidden))
    else:
        built = "a CPU build of torch" if torch.version.cuda is None else "no usable device"
        yield Finding(
            "GPU", WARNING, built, "small models train on the CPU; for more, a CUDA build of torch"
        )


def _usable(index: int, driver: Driver | None) -> Finding:
    """Describe a GPU that torch can use, in torch's numbering."""
    import torch

    uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    card = next((card for card in driver.cards if card.uuid == uuid), None) if driver else None
    if driver is None or card is None:  # a part of a card (MIG) has an own name
        free, total = torch.cuda.mem_get_info(index)
        found = f"{torch.cuda.get_device_name(index)}, {_room_in(free, total)}"
        remedy = "" if has_nvml() else f"pip install '{EXTRA}' shows driver and programs, too"
        return Finding(f"GPU {index}", OK, found, remedy)
    cuda = ".".join(map(str, driver.cuda))
    return Finding(
        f"GPU {index}",
        OK,
        f"{card.name}, {_room_in(card.free, card.total)}, {card.processes} programs on it; "
        f"driver {driver.version} for CUDA up to {cuda}, torch for {torch.version.cuda}",
    )


def _room_in(free: int, total: int) -> str:
    return f"{human_bytes(free)} of {human_bytes(total)} free"


def _four_bits() -> Iterator[Finding]:
    import torch

    from fedmoe_app.moe.quantised.packed import KINDS, pack

    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    for kind in KINDS:
        packed = pack(weight, kind, transposed=False).weight(0, 64, torch.float32).dequantise()
        error = float((packed - weight[0]).abs().mean() / weight.abs().mean())
        remedy = "" if error < _MAX_ERROR else "pip install --force-reinstall bitsandbytes"
        state = WARNING if remedy else OK
        yield Finding(f"quantization {kind}", state, f"on {device}, error {error:.1%}", remedy)


def _programs() -> Iterator[Finding]:
    names = ("flwr", "flower-superlink", "flower-supernode")
    missing = [name for name in names if shutil.which(program(name)) is None]
    if missing:
        yield Finding("Flower's programs", FAILURE, f"no {', '.join(missing)}", "pip install flwr")
    else:
        yield Finding("Flower's programs", OK, ", ".join(names))


def _engine() -> Iterator[Finding]:
    docker = shutil.which("docker")
    if docker is None:
        yield Finding("Docker", WARNING, "not installed", "only `make compose-demo` needs it")
        return
    answer = subprocess.run(
        [docker, "info", "--format", "{{.ServerVersion}}"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    if answer.returncode:
        yield Finding("Docker", WARNING, "no engine answers", "start it: systemctl start docker")
    else:
        yield Finding("Docker", OK, f"engine {answer.stdout.strip()}")


def _ports() -> Iterator[Finding]:
    # Some releases have one port for both.
    uses = {fleet().node_port: "SuperNodes of a SuperLink", CONTROL_PORT: "control of a SuperLink"}
    for port, use in sorted(uses.items()):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                yield Finding(f"port {port}", OK, f"free ({use})")
            except OSError as error:
                remedy = "give a SuperLink other ports, or end what listens there"
                yield Finding(f"port {port}", WARNING, f"taken: {error.strerror} ({use})", remedy)


def _room() -> Iterator[Finding]:
    free = psutil.virtual_memory().available
    yield _enough("memory", free, _MIN_MEMORY, "end other programs, or run fewer clients at a time")
    folder = home()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    writable = os.access(existing, os.W_OK)
    if not writable:
        yield Finding("results", FAILURE, f"{folder} cannot be written", "set FEDMOE_HOME")
        return
    disk = shutil.disk_usage(existing).free
    yield _enough(f"disk at {folder}", disk, _MIN_DISK, "set FEDMOE_HOME to a larger disk")


def _enough(what: str, free: float, wanted: float, remedy: str) -> Finding:
    if free >= wanted:
        return Finding(what, OK, f"{human_bytes(free)} free")
    return Finding(what, WARNING, f"only {human_bytes(free)} free", remedy)


def _clock() -> Iterator[Finding]:
    from fedmoe_app.launch.clock import AHEAD, BEHIND, is_synchronised

    if is_synchronised():
        yield Finding("clock", OK, "set by NTP")
        return
    yield Finding(
        "clock",
        WARNING,
        "nobody is known to set it",
        f"a SuperLink turns away a node whose clock is {AHEAD:.0f} s ahead of its own or "
        f"{BEHIND:.0f} s behind; timedatectl set-ntp true; fedmoe doctor --superlink "
        f"HOST:{fleet().node_port} "
        "compares the two",
    )


def _same_time(superlink: str, root_certificates: Path | None) -> Finding:
    from fedmoe_app.launch.clock import check_clock

    what = f"clock of {superlink}"
    try:
        fault = check_clock(superlink, root_certificates, insecure=root_certificates is None)
    except UnreachableError as error:
        remedy = "start it, or give --root-certificates if it has TLS"
        return Finding(what, WARNING, f"it does not answer: {error}", remedy)
    if fault is None:
        return Finding(what, OK, "accepts this machine's clock")
    found, _, remedy = str(fault).partition(". ")
    return Finding(what, FAILURE, found, remedy)


def _network() -> Iterator[Finding]:
    offline = os.environ.get("HF_HUB_OFFLINE", "") in ("1", "ON", "YES", "TRUE")
    found = "off (HF_HUB_OFFLINE=1)" if offline else "on"
    yield Finding("model hub", OK, found, "fedmoe run --online allows downloads" if offline else "")


_CHECKS = (_versions, _gpu, _four_bits, _programs, _engine, _ports, _room, _clock, _network)
