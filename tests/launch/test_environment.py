import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import psutil
import pytest

from fedmoe_app.launch.environment import (
    default_environment,
    install_hook,
    local_port,
    run_environment,
    set_default_environment,
    stop_local_superlinks,
)


def test_what_the_user_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("FLWR_TELEMETRY_ENABLED", raising=False)
    environment = run_environment(tmp_path)
    assert environment["HF_HUB_OFFLINE"] == "0"
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment["FLWR_HOME"] == str(tmp_path)


def test_a_foreign_ray_cluster_and_proxies_are_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("NO_PROXY", "example.org")
    environment = run_environment(tmp_path)
    assert "RAY_ADDRESS" not in environment
    assert environment["NO_PROXY"] == "example.org,127.0.0.1,localhost"


def test_the_programs_of_this_environment_come_first(tmp_path: Path) -> None:
    first = run_environment(tmp_path)["PATH"].split(os.pathsep)[0]
    assert Path(first) == Path(sys.executable).parent


def test_the_hook_sets_what_is_not_set(tmp_path: Path) -> None:
    """Run the line of the .pth file as Python does at its start."""
    hook = install_hook(tmp_path / "flwr", 5, site_packages=tmp_path)
    text = hook.read_text()
    assert text.startswith("import ")
    assert text.count("\n") == 1
    code = f"{text}\nimport json; print(json.dumps(dict(os.environ)))"
    environment = {"HF_HUB_OFFLINE": "0", "PATH": "/bin"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, check=True
    )
    seen = json.loads(done.stdout)
    assert seen["HF_HUB_OFFLINE"] == "0"
    assert seen["FLWR_HOME"] == str(tmp_path / "flwr")
    assert seen["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}/bin"
    expected = default_environment() | {"HF_HUB_OFFLINE": "0"}
    assert expected.items() <= seen.items()


def test_the_flower_configuration_is_written_once(tmp_path: Path) -> None:
    install_hook(tmp_path / "flwr", 5, site_packages=tmp_path)
    config = tmp_path / "flwr" / "config.toml"
    local = tomllib.loads(config.read_text())["superlink"]["local"]
    assert local["address"] == ":local:"
    assert local["options"]["num-supernodes"] == 5
    install_hook(tmp_path / "flwr", 6, site_packages=tmp_path)
    assert tomllib.loads(config.read_text())["superlink"]["local"] == local


def test_flower_reads_the_configuration(tmp_path: Path) -> None:
    install_hook(tmp_path, 5, site_packages=tmp_path)
    from flwr.cli.flower_config import parse_superlink_connection

    table = tomllib.loads((tmp_path / "config.toml").read_text())["superlink"]["local"]
    options = parse_superlink_connection(table, "local").options
    assert options is not None
    assert options.num_supernodes == 5
    assert options.backend is not None
    assert options.backend.client_resources is not None
    assert options.backend.client_resources.num_cpus == 1


def test_ports_differ_between_checkouts(tmp_path: Path) -> None:
    assert 20000 <= local_port(tmp_path / "a") < 30000
    assert local_port(tmp_path / "a") != local_port(tmp_path / "b")


def test_only_the_superlink_of_this_home_is_ended(tmp_path: Path) -> None:
    fake = tmp_path / "flower-superlink"
    fake.write_text("import time; time.sleep(60)")
    homes = [tmp_path / "mine", tmp_path / "other"]
    mine, other = (
        subprocess.Popen([sys.executable, str(fake)], env={"FLWR_HOME": str(home)})
        for home in homes
    )
    try:
        assert stop_local_superlinks(homes[0]) == 1
        assert mine.poll() is not None
        assert other.poll() is None
    finally:
        mine.kill()
        other.kill()
        other.wait()


def test_a_command_sets_the_environment_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_DEDUP_LOGS", "1")
    monkeypatch.delenv("FLWR_TELEMETRY_ENABLED", raising=False)
    set_default_environment()
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert os.environ["RAY_DEDUP_LOGS"] == "1"  # what the user set stays


def test_flowers_own_command_gets_the_environment(tmp_path: Path) -> None:
    """A stand-in for flwr, called beside a Python whose environment has nothing set."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(sys.executable)
    fake = programs / "flwr"
    fake.write_text('#!/bin/sh\necho "$@" "$FLWR_TELEMETRY_ENABLED" "$HF_HUB_OFFLINE"\nexit 3\n')
    fake.chmod(0o755)
    code = (
        f"import sys; sys.executable = {str(programs / 'python')!r}; "
        "sys.argv = ['fedmoe', 'flwr', 'run', '.', '--stream', '--help']; "
        "from fedmoe_app.cli.main import main; main()"
    )
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("FLWR_", "HF_"))}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | {"FLWR_HOME": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["run", ".", "--stream", "--help", "0", "1"], done.stderr
    assert done.returncode == 3


def test_a_signal_ends_flowers_program_too(tmp_path: Path) -> None:
    """What ends ``fedmoe superlink`` must not leave a SuperLink behind."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(sys.executable)
    fake = programs / "flower-superlink"
    fake.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    fake.chmod(0o755)
    code = (
        f"import sys; sys.executable = {str(programs / 'python')!r}; "
        "sys.argv = ['fedmoe', 'superlink']; from fedmoe_app.cli.main import main; main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        time.sleep(0.05)
        assert process.poll() is None
    process.terminate()
    process.wait(60)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
