"""The services of the compose files as processes of this machine: no engine, the same commands.

A service's command and health check are read from its compose file, its variables from the
Dockerfile. They run in an environment with its image's packages and no other
(:mod:`tests.deploy.environments`). What a container has of its own is put in place by
rewriting:

- absolute paths (``/keys/ca.crt``) become paths under a folder of the service, where its mounts are
  links;
- addresses (``superlink:8000``, ``127.0.0.1:9190``) become free ports of the loopback address, one
  for each service and port.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fedmoe_app.config.names import LOOPBACK
from fedmoe_app.launch.processes import ProcessGroup, free_port
from tests.deploy.environments import DOCKER

IMAGES = re.compile(r"fedmoe/(\w+)")
_VARIABLE = re.compile(r"\$\{(\w+)(?::[-?]([^}]*))?\}")
_OPTIONAL = re.compile(r"\$\{\w+:-([^}]*)\}")
PATIENCE = 90.0  # seconds until a service is healthy; a busy machine is slow

Service = dict[str, Any]


def read_services(name: str) -> dict[str, Service]:
    """The services of a compose file, with what they extend."""
    services = yaml.safe_load((DOCKER / name).read_text())["services"]
    return {key: _extended(service) for key, service in services.items()}


def _extended(service: Service) -> Service:
    if "extends" not in service:
        return service
    source = service["extends"]
    base = yaml.safe_load((DOCKER / source["file"]).read_text())["services"][source["service"]]
    own = {key: value for key, value in service.items() if key != "extends"}
    tmpfs = [*base.get("tmpfs", []), *own.pop("tmpfs", [])]
    return {**base, **own, "tmpfs": tmpfs}


def image_of(service: Service) -> str:
    """``flower`` or ``app``."""
    found = IMAGES.match(service["image"])
    assert found, service["image"]
    return found[1]


def image_variables() -> dict[str, str]:
    """The ``ENV`` of the Dockerfile's stage that both images are made from."""
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^ENV (.*)$", text, re.MULTILINE)
    return dict(item.split("=", 1) for item in shlex.split(line))


@dataclass
class Machine:
    """What runs the services of some compose files; its parts are named as in the files.

    Attributes:
        folder: for everything that the services write.
        bins: the ``bin`` of each image's environment.
        values: of the compose files' variables.
        app: what lies at ``/app`` in the images.
    """

    folder: Path
    bins: Mapping[str, Path]
    values: dict[str, str]
    app: Path
    services: dict[str, Service] = field(default_factory=dict)
    _ports: dict[tuple[str, int], int] = field(default_factory=dict)

    def load(self, *files: str) -> None:
        """Know the services of these compose files."""
        for file in files:
            self.services |= read_services(file)

    def port(self, service: str, port: int) -> int:
        """The port of this machine that stands for one of a service."""
        key = service, port
        if key not in self._ports:
            self._ports[key] = free_port(list(self._ports.values()))
        return self._ports[key]

    def command(self, name: str, command: Sequence[str] | None = None) -> list[str]:
        """A command of a service, its own by default, as it is typed on this machine."""
        given = self.services[name]["command"] if command is None else command
        first, *rest = [self._local(name, str(word)) for word in given]
        return [str(self.bins[image_of(self.services[name])] / first), *rest]

    def health_check(self, name: str) -> list[str]:
        """The health check of a service, as it is typed on this machine."""
        kind, *command = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        return self.command(name, command)

    def environment(self, name: str) -> dict[str, str]:
        """The variables of a service's container, and no others."""
        given = image_variables() | dict(self.services[name].get("environment", {}))
        found = {key: self._local(name, value) for key, value in given.items()}
        scripts = self.bins[image_of(self.services[name])]
        return found | {"PATH": f"{scripts}:/usr/bin:/bin"}

    def start(self, group: ProcessGroup, name: str) -> subprocess.Popen[str]:
        """Start a service's command in the group of its own environment."""
        with self.log(name).open("w") as log:
            return group.start(self.command(name), log, cwd=self.root(name))

    def finish(self, name: str, command: Sequence[str] | None = None) -> str:
        """Run a command of a service to its end; return what it printed."""
        done = subprocess.run(
            self.command(name, command),
            env=self.environment(name),
            cwd=self.root(name),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * PATIENCE,
        )
        assert done.returncode == 0, f"{name}: {command}: {done.stdout[-3000:]}"
        return done.stdout

    def wait_until_healthy(self, name: str, process: subprocess.Popen[str]) -> None:
        """Ask by the service's own health check until it says yes."""
        deadline = time.monotonic() + PATIENCE
        while True:
            asked = subprocess.run(
                self.health_check(name), env=self.environment(name), capture_output=True, text=True
            )
            if asked.returncode == 0:
                return
            said = f"{name}: {asked.stdout}{asked.stderr}{self.log(name).read_text()[-3000:]}"
            assert asked.stdout.endswith("not serving\n"), said
            assert process.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.5)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def root(self, name: str) -> Path:
        """The folder that stands for a container's ``/``, with its mounts."""
        root = self.folder / "roots" / name
        if not root.is_dir():
            for path in ("tmp", "home/app/flwr", "state"):
                (root / path).mkdir(parents=True)
            (root / "app").symlink_to(self.app)
            for volume in sorted(self.services[name].get("volumes", []), key=len):
                self._mount(name, root, volume)
        return root

    def _mount(self, name: str, root: Path, volume: str) -> None:
        source, target = self._filled(volume).removesuffix(":ro").split(":")
        inside = root / target.lstrip("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        if source.startswith(("/", ".")):
            outside = DOCKER / source
            if outside.suffix == ".toml":  # names paths and addresses of the container
                inside.write_text(self._local(name, outside.read_text()))
            else:
                assert outside.exists(), f"{name} mounts {outside}, which is not there"
                inside.symlink_to(outside)
        else:
            inside.mkdir(parents=True, exist_ok=True)

    def _filled(self, text: str) -> str:
        """Put in the values of variables, as Compose does."""

        def value(found: re.Match[str]) -> str:
            default = _OPTIONAL.match(found[0])
            return self.values.get(found[1], default[1]) if default else self.values[found[1]]

        return _VARIABLE.sub(value, text).replace("$$", "$")

    def _local(self, name: str, text: str) -> str:
        text = self._filled(text)
        names = "|".join(map(re.escape, [*self.services, "0.0.0.0", LOOPBACK]))

        def address(found: re.Match[str]) -> str:
            service = name if found[1] in ("0.0.0.0", LOOPBACK) else found[1]
            return f"{LOOPBACK}:{self.port(service, int(found[2]))}"

        text = re.sub(rf"(?<![\w.-])({names}):(\d+)", address, text)
        text = re.sub(r"^--port=(\d+)$", lambda m: f"--port={self.port(name, int(m[1]))}", text)
        text = text.replace("=0.0.0.0", f"={LOOPBACK}")
        root = self.folder / "roots" / name
        return re.sub(r"(?<![\w./}])/(?=[a-z])", f"{root}/", text)
