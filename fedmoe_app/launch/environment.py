"""The environment that Flower and Ray are run in, and how ``flwr`` typed by hand gets it.

``fedmoe`` sets it for itself and for the programs that it starts; ``fedmoe flwr`` starts Flower's
own command in it. Who wants to type ``flwr`` alone asks for it: ``make flwr-hook`` writes a
``.pth`` file into the virtual environment. Python reads it at every start, so all programs there
have these variables, others than Flower's, too. A variable that the user set stays as it is.
"""

from __future__ import annotations

import json
import os
import sysconfig
import zlib
from pathlib import Path

import psutil

from fedmoe_app.config.files import write_atomic
from fedmoe_app.config.names import LOOPBACK
from fedmoe_app.flower.words import LOCAL_PORT, VARIABLES

HOOK = "fedmoe-environment.pth"

_CONFIG = """\
# Flower's connections for this checkout. `flwr run .` takes the default one and starts a
# SuperLink in the background for it (`fedmoe stop` ends it).
[superlink]
default = "local"

[superlink.local]
address = ":local:"
options.num-supernodes = {num_clients}
options.backend.client-resources.num-cpus = 1

# A SuperLink elsewhere, for `flwr run . lab` and `fedmoe run . lab`:
# [superlink.lab]
# address = "host:8000"
# root-certificates = "/absolute/path/ca.crt"   # or: insecure = true
"""


def flwr_home() -> Path:
    """Return the folder of Flower's configuration, ``$FLWR_HOME`` or ``~/.flwr``."""
    return Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")


def default_environment() -> dict[str, str]:
    """Return the variables that a run of this app wants unless the user set them."""
    return {
        **VARIABLES,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        # Nobody reads Ray's metrics, and the thread that gathers them can crash a worker that
        # ends on a busy machine ("SIGSEGV ... RunHarvesterLoop" over half the screen).
        "RAY_enable_metrics_collection": "0",
        # A worker for each CPU, started before there is work: clients get workers of their own.
        "RAY_prestart_worker_first_driver": "0",
        # Nothing is fetched from a model hub unless asked for.
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # A log shows a progress bar as noise, and a new head is no reason for a warning.
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def set_default_environment() -> None:
    """Set those variables in this process, before a library reads them at its import."""
    for name, value in default_environment().items():
        os.environ.setdefault(name, value)


def run_environment(flwr_home: Path) -> dict[str, str]:
    """Return the whole environment of Flower's programs: the user's over the defaults."""
    environment = default_environment() | dict(os.environ)
    environment |= {"FLWR_HOME": str(flwr_home), "PYTHONUNBUFFERED": "1"}
    # Flower's programs start one another by name, in an activated environment or not.
    environment["PATH"] = os.pathsep.join([_scripts(), environment.get("PATH", os.defpath)])
    # Ray would join this cluster, whose nodes need not have the app's environment.
    environment.pop("RAY_ADDRESS", None)
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [environment.get(name, ""), LOOPBACK, "localhost"]
        environment[name] = ",".join(host for host in hosts if host)
    return environment


def install_hook(flwr_home: Path, num_clients: int, site_packages: Path | None = None) -> Path:
    """Write the ``.pth`` file, and the Flower configuration in ``flwr_home`` if there is none.

    Returns the path of the ``.pth`` file; ``site_packages`` is by default the running
    environment's.
    """
    flwr_home.mkdir(parents=True, exist_ok=True)
    config = flwr_home / "config.toml"
    if not config.exists():
        write_atomic(config, _CONFIG.format(num_clients=num_clients))
    folder = site_packages or Path(sysconfig.get_path("purelib"))
    variables = default_environment() | {
        "FLWR_HOME": str(flwr_home.absolute()),
        LOCAL_PORT: str(local_port(flwr_home)),
    }
    return write_atomic(folder / HOOK, _hook_text(variables))


def local_port(flwr_home: Path) -> int:
    """Return the port of the SuperLink that ``flwr run`` starts by itself.

    It differs from checkout to checkout: a SuperLink of another one keeps that one's environment.
    """
    return 20000 + zlib.crc32(str(flwr_home.absolute()).encode()) % 10000


def stop_local_superlinks(flwr_home: Path) -> int:
    """End the SuperLinks that ``flwr run`` left in the background; return how many."""
    found = [process for process in psutil.process_iter() if _is_superlink(process, flwr_home)]
    for process in found:
        process.terminate()
    _, late = psutil.wait_procs(found, timeout=10)
    for process in late:
        process.kill()
    return len(found)


def _is_superlink(process: psutil.Process, flwr_home: Path) -> bool:
    try:
        command = process.cmdline()[:2]
        environment = process.environ()
    except (psutil.Error, OSError):
        return False
    is_superlink = any(Path(part).name == "flower-superlink" for part in command)
    return is_superlink and environment.get("FLWR_HOME") == str(flwr_home.absolute())


def _scripts() -> str:
    return sysconfig.get_path("scripts")


def _hook_text(variables: dict[str, str]) -> str:
    # A line of a .pth file that begins with `import` is run as Python, all of it in one line.
    # Flower's programs start one another by name, hence PATH.
    set_all = f"[os.environ.setdefault(*item) for item in {json.dumps(variables)}.items()]"
    path = (
        f"os.environ.update(PATH=os.pathsep.join(dict.fromkeys([{json.dumps(_scripts())}, "
        "*os.environ.get('PATH', os.defpath).split(os.pathsep)])))"
    )
    return f"import os; {set_all}; {path}\n"
