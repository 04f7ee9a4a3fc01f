"""The images' commands in environments with exactly the packages of these images.

Every command of the compose files, every health check and what docker/demo.sh calls is run, with
Flower itself. A package that the light image lacks, imported anywhere on their way, fails here.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from fedmoe_app.launch.processes import ProcessGroup
from fedmoe_app.results.status import COMPLETED, StatusFile
from tests.conftest import REPOSITORY
from tests.deploy.containers import DOCKER, Machine, image_of, image_variables, read_services
from tests.deploy.environments import build, closure, listed
from tests.end_to_end.processes import CONNECTED

IMAGES = ("flower", "app")
LINE = {
    **{"round": 1, "status": "ok", "loss": 1.0, "accuracy": 0.5, "metric": "accuracy"},
    **{"num_clients": 1, "bytes_up": 10, "bytes_down": 20, "clients": [{"client": 0}]},
    **{"failures": [], "seconds": {"round": 0.0}},
}


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The ``bin`` of an environment for each image."""
    folder = tmp_path_factory.mktemp("images")
    return {image: build(folder / image, listed(image, folder)) for image in IMAGES}


def run(bins: Mapping[str, Path], *command: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in the light environment, with the image's variables."""
    variables = image_variables() | {"PATH": f"{bins['flower']}:/usr/bin:/bin", "HOME": str(home)}
    variables |= {"FLWR_HOME": str(home / "flwr"), "FEDMOE_HOME": str(home / "fedmoe")}
    return subprocess.run(
        [str(bins["flower"] / command[0]), *command[1:]],
        capture_output=True,
        text=True,
        env=variables,
        cwd=home,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )


def test_the_light_environment_has_what_the_list_brings_and_nothing_else(
    bins: dict[str, Path], tmp_path: Path
) -> None:
    code = "from importlib import metadata; print(*{d.name for d in metadata.distributions()})"
    done = run(bins, "python", "-c", code, home=tmp_path)
    expected = closure(listed("flower", tmp_path)) | {"fedmoe"}
    assert {name.lower().replace("_", "-") for name in done.stdout.split()} == expected
    absent = {"torch", "jinja2", "transformers", "datasets", "vl-convert-python", "ray"}
    assert expected & absent == set()
    for name in ("torch", "jinja2", "vl_convert", "pandas"):
        assert run(bins, "python", "-c", f"import {name}", home=tmp_path).returncode == 1


def test_every_command_explains_itself(bins: dict[str, Path], tmp_path: Path) -> None:
    """All of ``fedmoe`` is there to be asked for help, also what only the app's image can do."""
    code = (
        "from typer.main import get_command\n"
        "from typer.testing import CliRunner\n"
        "from fedmoe_app.cli.main import app\n"
        "for name in get_command(app).commands:\n"
        "    done = CliRunner().invoke(app, [name, '--help'])\n"
        "    print(name, done.exit_code, done.exception or '')\n"
    )
    done = run(bins, "python", "-c", code, home=tmp_path)
    answers = dict(line.rstrip().split(maxsplit=1) for line in done.stdout.splitlines())
    assert done.stderr == ""
    assert set(answers.values()) == {"0"}
    assert {"certificates", "register", "health", "supernode", "superexec", "run"} <= set(answers)


def test_results_are_read_without_the_app(bins: dict[str, Path], tmp_path: Path) -> None:
    results = tmp_path / "fedmoe" / "results" / "demo"
    results.mkdir(parents=True)
    lines = [LINE | {"round": number, "accuracy": number} for number in (0, 1)]
    (results / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    StatusFile(results, scheme="fedavg", num_rounds=1, round=1).end(COMPLETED)
    for command in (("table", str(results)), ("status", str(results)), ("status",), ("stop",)):
        done = run(bins, "fedmoe", *command, home=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), command
    assert "1.0000" in run(bins, "fedmoe", "table", str(results), home=tmp_path).stdout


@pytest.mark.parametrize(
    ("command", "package"),
    [
        (("plot", "demo"), "vl_convert"),
        (("inspect", "qwen3moe-tiny", "--app", str(REPOSITORY)), ""),
        (("superexec", "--runtime-api-address", "127.0.0.1:1"), "torch"),
    ],
)
def test_what_needs_the_whole_app_says_so(
    command: tuple[str, ...], package: str, bins: dict[str, Path], tmp_path: Path
) -> None:
    done = run(bins, "fedmoe", *command, home=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(
        rf"error: this command needs the package '{package or '.*'}', which is not installed here; "
        r".*in a container of the image fedmoe/app \(.*\)\n",
        done.stderr,
    ), done.stderr


def demo_commands() -> dict[str, list[str]]:
    """The ``fedmoe`` commands of docker/demo.sh by name."""
    text = (DOCKER / "demo.sh").read_text().replace("\\\n", " ")
    found = re.findall(r"(?<=\s)fedmoe ([a-z]+ [^|&;\n#]*)", text)
    return {command.split()[0]: ["fedmoe", *shlex.split(command)] for command in found}


def start(machine: Machine, stack: ExitStack, *names: str) -> None:
    """Start services until the health check of each says yes; the stack ends them."""
    processes = {}
    for name in names:
        group = stack.enter_context(ProcessGroup(machine.environment(name)))
        processes[name] = machine.start(group, name)
    for name, process in processes.items():
        machine.wait_until_healthy(name, process)


def make_keys(folder: Path, bins: Mapping[str, Path], home: Path) -> None:
    """Run the demo's own ``fedmoe certificates``."""
    command = [word.replace("/demo/keys", str(folder)) for word in demo_commands()["certificates"]]
    done = run(bins, *command, home=home)
    assert done.returncode == 0, done.stderr
    (folder / "public").mkdir()
    for key in folder.glob("*.pub"):
        (folder / "public" / key.name).write_bytes(key.read_bytes())


@pytest.fixture
def machine(bins: dict[str, Path], tmp_path: Path, echo_app: Path) -> Machine:
    """A server's and a node's services, and an app that trains nothing."""
    for path in ("data", "results", "models", "configs"):
        (tmp_path / path).mkdir()
    make_keys(tmp_path / "keys", bins, tmp_path)
    shutil.copy(DOCKER / "demo.toml", tmp_path / "configs")
    names = ("keys", "data", "results", "models", "configs")
    values = {name.upper(): str(tmp_path / name) for name in names}
    values |= {"SUPERLINK": "superlink:9092", "NODE": "0"}
    values |= {"NODE_CONFIG": 'partition-id=0 data-path="/data/train.jsonl"'}
    machine = Machine(tmp_path, bins, values, echo_app)
    machine.load("compose.server.yaml", "compose.node.yaml")
    return machine


def demo_run(*options: str) -> list[str]:
    """The demo's own ``fedmoe run`` with further options."""
    return [w.replace("/demo/demo", "/configs/demo") for w in demo_commands()["run"]] + [*options]


@pytest.mark.deployment
def test_the_light_services_work_with_the_packages_of_their_image(machine: Machine) -> None:
    """From registration to a run's table; the app's ServerApp asks no node."""
    server_app = machine.app / "echo_app" / "server_app.py"
    asking = "_ask(grid, nodes) if server_round else []"
    assert asking in server_app.read_text()
    server_app.write_text(server_app.read_text().replace(asking, "[]"))
    with ExitStack() as stack:
        start(machine, stack, "superlink")
        assert machine.finish("register").splitlines()[0] == "node-0: registered"
        assert "Usage: fedmoe" in machine.finish("cli")
        start(machine, stack, "supernode", "server-app")
        assert CONNECTED in machine.log("supernode").read_text()
        output = machine.finish("cli", demo_run("-c", "min-clients=1"))
        assert "runs" in machine.finish("cli", ["flwr", "list", "lab", "--format", "json"])
    check_results(machine, output)


@pytest.mark.slow
def test_the_files_of_several_machines_run_an_app(machine: Machine) -> None:
    """The same with a client-app, which has torch to import."""
    with ExitStack() as stack:
        start(machine, stack, "superlink")
        machine.finish("register")
        start(machine, stack, "supernode", "server-app", "client-app")
        output = machine.finish("cli", demo_run("-c", "min-clients=1"))
    check_results(machine, output)
    assert re.search(r"^ +2 .* 1 +0 ", output, re.MULTILINE), output


def check_results(machine: Machine, output: str) -> None:
    assert output.splitlines()[-1].startswith("results: ")
    results = Path(machine.values["RESULTS"]) / "demo"
    assert {"metrics.jsonl", "flower.log"} <= {path.name for path in results.iterdir()}
    assert "accuracy" in machine.finish("cli", ["fedmoe", "table", "/state/results/demo"])


def test_every_service_of_the_light_image_was_run() -> None:
    """The test above names the services; a new one has to be added to it."""
    assert light_services("compose.server.yaml") == {"superlink", "register", "cli"}
    assert light_services("compose.node.yaml") == {"supernode"}
    files = {path.name for path in DOCKER.glob("compose*.yaml")}
    whole = {name for name in files if not name.endswith(".gpu.yaml")}
    assert whole == {"compose.yaml", "compose.server.yaml", "compose.node.yaml"}


def light_services(file: str) -> set[str]:
    services = read_services(file)
    return {name for name, service in services.items() if image_of(service) == "flower"}


def test_the_all_in_one_file_has_the_same_commands() -> None:
    """What was run above holds for it, too."""
    one = read_services("compose.yaml")
    apart = read_services("compose.server.yaml") | read_services("compose.node.yaml")
    assert light_services("compose.yaml") == {
        *("superlink", "register", "cli"),
        *("supernode-0", "supernode-1", "supernode-2"),
    }
    for name, service in one.items():
        if name != "demo-data":
            like = apart[re.sub(r"-\d+$", "", name)]
            assert service.get("healthcheck") == like.get("healthcheck"), name
            assert comparable(service["command"]) == comparable(like["command"]), name


def comparable(command: Iterable[str]) -> list[str]:
    """A command without what tells nodes and machines apart."""
    words = [re.sub(r"^(--superlink|--node-config)=.*", r"\1", word) for word in command]
    return [re.sub(r"(?<=supernode)-\d+|/nodes$|/keys$", "", word) for word in words]
