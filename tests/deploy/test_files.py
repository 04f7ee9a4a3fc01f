"""The files of a deployment: compose, images and systemd units say what docs/deploy.md promises."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmoe_app import default_run_config, flatten_run_config, parse_run_config
from fedmoe_app.config.overrides import read_overrides
from fedmoe_app.config.policy import DEFAULT_PATH
from fedmoe_app.launch.environment import default_environment
from tests.conftest import REPOSITORY
from tests.deploy.containers import read_services
from tests.deploy.environments import DOCKER

UNITS = REPOSITORY / "docs" / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES = read_services("compose.yaml")
SERVER, NODE = read_services("compose.server.yaml"), read_services("compose.node.yaml")
SECRET_FILE = re.compile(r"\$\{KEYS[^}]*\}/([^:]+):")
MODELS = "${MODELS:-models}:/models:ro"
HEALTH_CHECK = ["CMD", "fedmoe", "health", "127.0.0.1:9190"]


def mounted(container: dict[str, Any]) -> set[str]:
    """Names of the files of the key folder that a container sees."""
    volumes = [re.sub(r"\$\{NODE:[^}]*\}", "N", volume) for volume in container.get("volumes", [])]
    found = (SECRET_FILE.match(volume) for volume in volumes)
    return {match[1] for match in found if match}


def test_each_container_sees_only_the_keys_it_needs() -> None:
    keys = {name: mounted(container) - {"ca.crt"} for name, container in SERVICES.items()}
    public = {f"node-{n}.pub" for n in range(3)}
    assert keys == {
        "superlink": {"server.crt", "server.key", "superexec.secret"},
        "server-app": {"superexec.secret"},
        "register": public,
        **{f"supernode-{n}": {f"node-{n}"} for n in range(3)},
        **{f"client-app-{n}": set() for n in range(3)},
        "demo-data": set(),
        "cli": set(),
    }
    apart = {name: mounted(container) - {"ca.crt"} for name, container in (SERVER | NODE).items()}
    assert apart == {
        "superlink": keys["superlink"],
        "server-app": {*keys["server-app"], "public"},
        "register": {"public"},
        "cli": set(),
        "supernode": {"node-N"},
        "client-app": set(),
    }


def test_app_code_runs_apart_with_its_nodes_data_only() -> None:
    for service, container in [*SERVICES.items(), *SERVER.items(), *NODE.items()]:
        runs_code = service in ("server-app", "demo-data") or service.startswith("client-app")
        assert container["image"].startswith("fedmoe/app" if runs_code else "fedmoe/flower")
        assert container["read_only"] and container["cap_drop"] == ["ALL"]
    for n in range(3):
        client = SERVICES[f"client-app-{n}"]
        assert client["networks"] == [f"node-{n}"]
        assert COMPOSE["networks"][f"node-{n}"] == {"internal": True}
        assert client["volumes"] == [f"${{DATA}}/node-{n}:/data:ro", MODELS, f"state-{n}:/state"]
    assert NODE["client-app"]["networks"] == ["own"]
    networks = yaml.safe_load((DOCKER / "compose.node.yaml").read_text())["networks"]
    assert networks["own"] == {"internal": True}


def test_both_halves_of_a_node_see_its_policy() -> None:
    policy = "${POLICY:-policy}:/etc/fedmoe:ro"
    for service in ("supernode", "client-app"):
        assert policy in NODE[service]["volumes"]
    assert Path("/etc/fedmoe") == DEFAULT_PATH.parent


def test_models_are_mounted_where_the_apps_code_runs() -> None:
    for service, container in [*SERVICES.items(), *SERVER.items(), *NODE.items()]:
        runs_app = service == "server-app" or service.startswith("client-app")
        assert (MODELS in container.get("volumes", [])) == runs_app, service


def test_only_the_nodes_port_is_published_to_other_machines() -> None:
    control = "127.0.0.1:${CONTROL_PORT:-8000}:8000"
    assert ports(SERVICES) == {"superlink": [control]}
    assert ports(SERVER) == {"superlink": ["${FLEET_PORT:-9092}:9092", control]}
    assert ports(NODE) == {}


def ports(services: dict[str, Any]) -> dict[str, list[str]]:
    return {name: c["ports"] for name, c in services.items() if "ports" in c}


def test_nodes_start_after_the_superlink_is_healthy_and_has_their_keys() -> None:
    for n in range(3):
        assert SERVICES[f"supernode-{n}"]["depends_on"] == {
            "superlink": {"condition": "service_healthy"},
            "register": {"condition": "service_completed_successfully"},
        }
        assert SERVICES[f"client-app-{n}"]["depends_on"] == {
            f"supernode-{n}": {"condition": "service_healthy"}
        }
    tools = ("register", "cli", "demo-data")
    for name, container in [*SERVICES.items(), *SERVER.items(), *NODE.items()]:
        asked = container.get("healthcheck", {}).get("test")
        assert asked == (None if name in tools else HEALTH_CHECK)
        assert (asked is None) != ("--health-server-address=127.0.0.1:9190" in container["command"])


def test_the_nodes_budgets_differ_and_the_gpu_files_name_who_uses_them() -> None:
    configs = [SERVICES[f"supernode-{n}"]["command"][-1] for n in range(3)]
    data = 'data-path="/data/train.jsonl"'
    assert configs == [
        f"--node-config=partition-id={n} {data} expert-budget={budget}"
        for n, budget in enumerate((2, 4, 8))
    ]
    users = {"": [f"client-app-{n}" for n in range(3)], "server.": ["server-app"]}
    for kind, names in (users | {"node.": ["client-app"]}).items():
        gpu = yaml.safe_load((DOCKER / f"compose.{kind}gpu.yaml").read_text())["services"]
        assert sorted(gpu) == names


@pytest.mark.parametrize(
    ("file", "services"), [("server.env", SERVER), ("node-0.env", NODE)], ids=["server", "node"]
)
def test_the_settings_to_copy_are_those_that_the_compose_files_take(
    file: str, services: dict[str, Any]
) -> None:
    text = (DOCKER / file).read_text()
    given = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", text, re.MULTILINE))
    used = str(services)
    taken = set(re.findall(r"\$\{([A-Z_]+)", used))
    assert given.keys() - {"COMPOSE_PROJECT_NAME"} <= taken
    build = {"BASE_IMAGE", "PIP_OPTIONS", "TORCH", "FEDMOE_TAG", "FLEET_PORT", "CONTROL_PORT"}
    assert taken - build == given.keys() - {"COMPOSE_PROJECT_NAME"}
    required = set(re.findall(r"\$\{([A-Z_]+):\?", used))
    assert required <= set(re.findall(r"^([A-Z_]+)=", text, re.MULTILINE))


def test_the_services_of_this_machine_start_nodes_that_start_quickly() -> None:
    """Compose files, units, pages and what ``fedmoe certificates`` prints agree."""
    for container in [SERVICES["supernode-0"], NODE["supernode"]]:
        assert container["command"][:2] == ["fedmoe", "supernode"]
    for container in [SERVICES["client-app-0"], NODE["client-app"]]:
        assert container["command"][:2] == ["fedmoe", "superexec"]
    assert "ExecStart=/opt/fedmoe/.venv/bin/fedmoe supernode " in unit("supernode@.service")
    commands = re.compile(r"^(?:CUDA_VISIBLE_DEVICES=\d )?flower-supernode ", re.MULTILINE)
    for page in [*(REPOSITORY / "docs").rglob("*.md"), REPOSITORY / "README.md"]:
        assert commands.findall(page.read_text()) == [], page


def unit(name: str) -> str:
    return (UNITS / name).read_text().replace("\\\n", " ")


@pytest.mark.parametrize("name", ["superlink.service", "supernode@.service"])
def test_units_write_where_they_may(name: str) -> None:
    text = unit(name)
    assert "ProtectSystem=strict" in text  # nothing can be written but the folder of StateDirectory
    (state,) = re.findall(r"^StateDirectory=(.*)$", text, re.MULTILINE)
    variables = dict(re.findall(r"(?:^Environment=| )(\w+)=(%S\S*)", text, re.MULTILINE))
    assert set(variables) == {"FEDMOE_HOME", "FLWR_HOME", "HOME"}
    assert variables["FEDMOE_HOME"] == f"%S/{state}"
    assert all(Path(folder).is_relative_to(f"%S/{state}") for folder in variables.values())


def test_the_page_runs_with_the_variables_of_the_unit() -> None:
    page = (REPOSITORY / "docs" / "deploy.md").read_text()
    (command,) = re.findall(r"sudo -u fedmoe env (.*?)/opt/fedmoe", page, re.DOTALL)
    variables = dict(item.split("=") for item in command.replace("\\\n", " ").split())
    text = unit("superlink.service").replace("%S", "/var/lib")
    for name, value in variables.items():
        assert f"{name}={value}" in text.split() + text.replace("Environment=", "").split()
    config = tomllib.loads((UNITS / "config.toml").read_text())["superlink"]
    assert config["lab"]["root-certificates"] == "/etc/fedmoe/ca.crt"
    assert "useradd" in page and "systemctl enable --now" in page


def test_the_demos_run_config_is_valid() -> None:
    flat = default_run_config()
    flat |= read_overrides([str(DOCKER / "demo.toml")])
    assert flatten_run_config(parse_run_config(flat))["data.source"] == "nodes"


def test_images_have_flowers_environment() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    wanted = {k: v for k, v in default_environment().items() if not k.startswith("RAY")}
    missing = [key for key, value in wanted.items() if f"{key}={value}" not in text]
    assert missing == []


def test_the_build_sees_only_listed_files() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "fedmoe_app",
        "docker/requirements.py",
    }


def test_the_light_image_has_no_torch_and_the_other_everything_but_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = DOCKER / "requirements.py"
    monkeypatch.setattr(
        sys, "argv", [str(script), str(REPOSITORY / "pyproject.toml"), str(tmp_path)]
    )
    runpy.run_path(str(script), run_name="__main__")
    light, everything = (
        (tmp_path / name).read_text().splitlines() for name in ("flower.txt", "app.txt")
    )
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert len(everything) == len(project["dependencies"])
    assert set(light) < set(everything)
    assert [line for line in light if line.startswith(("torch", "transformers"))] == []
    assert "simulation" not in " ".join(everything)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    bin_folder = str(Path(sys.executable).parent)
    for name in ("superlink.service", "supernode@.service"):
        text = (UNITS / name).read_text().replace("/opt/fedmoe/.venv/bin", bin_folder)
        (tmp_path / name.replace("@", "@0")).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.iterdir())],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
