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

from fedmoe_app.config import default_run_config, flatten_run_config, parse_run_config
from fedmoe_app.launching.environment import default_environment
from fedmoe_app.launching.overrides import read_overrides
from tests.conftest import REPOSITORY

DOCKER, UNITS = REPOSITORY / "docker", REPOSITORY / "docs" / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
SECRET_FILE = re.compile(r"\$\{KEYS[^}]*\}/([\w.-]+):")


def mounted(service: str) -> set[str]:
    """Names of the files of the key folder that a container sees."""
    found = (SECRET_FILE.match(volume) for volume in SERVICES[service].get("volumes", []))
    return {match[1] for match in found if match}


def test_each_container_sees_only_the_keys_it_needs() -> None:
    keys = {service: mounted(service) - {"ca.crt"} for service in SERVICES}
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


def test_app_code_runs_apart_with_its_nodes_data_only() -> None:
    for service, container in SERVICES.items():
        runs_code = service in ("server-app", "demo-data") or service.startswith("client-app")
        assert container["image"].startswith("fedmoe/app" if runs_code else "fedmoe/flower")
        assert container["read_only"] and container["cap_drop"] == ["ALL"]
    for n in range(3):
        client = SERVICES[f"client-app-{n}"]
        assert client["networks"] == [f"node-{n}"]
        assert COMPOSE["networks"][f"node-{n}"] == {"internal": True}
        assert client["volumes"] == [f"${{DATA}}/node-{n}:/data:ro", f"state-{n}:/state"]


def test_only_the_control_port_is_published_and_only_on_this_machine() -> None:
    published = {name: c["ports"] for name, c in SERVICES.items() if "ports" in c}
    assert published == {"superlink": ["127.0.0.1:${CONTROL_PORT:-8000}:8000"]}


def test_nodes_start_after_the_superlink_is_healthy_and_has_their_keys() -> None:
    for n in range(3):
        assert SERVICES[f"supernode-{n}"]["depends_on"] == {
            "superlink": {"condition": "service_healthy"},
            "register": {"condition": "service_completed_successfully"},
        }
        assert SERVICES[f"client-app-{n}"]["depends_on"] == {
            f"supernode-{n}": {"condition": "service_healthy"}
        }
    running = [name for name in SERVICES if name not in ("register", "cli", "demo-data")]
    for name in running:
        assert SERVICES[name]["healthcheck"]["test"] == [
            "CMD",
            "fedmoe",
            "health",
            "127.0.0.1:9190",
        ]
        assert "--health-server-address" in str(SERVICES[name]["command"])


def test_the_nodes_budgets_differ_and_the_gpu_file_names_each_node() -> None:
    configs = [SERVICES[f"supernode-{n}"]["environment"]["NODE_CONFIG"] for n in range(3)]
    data = 'data-path="/data/train.jsonl"'
    assert configs == [
        f"partition-id={n} {data} expert-budget={budget}" for n, budget in enumerate((2, 4, 8))
    ]
    gpu = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())["services"]
    assert sorted(gpu) == [f"client-app-{n}" for n in range(3)]


def test_the_demos_run_config_is_valid() -> None:
    flat = default_run_config(REPOSITORY / "pyproject.toml")
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


def test_the_command_line_needs_nothing_that_the_light_image_lacks() -> None:
    """What `fedmoe` imports to certify, register and run; heavy packages would not be there."""
    code = (
        "import sys, fedmoe_app.cli, fedmoe_app.deployment.certificates, "
        "fedmoe_app.deployment.health, fedmoe_app.launching.runner; "
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "datasets", "pandas", "matplotlib", "safetensors", "ray"}
    assert set(done.stdout.split()) & heavy == set()


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
