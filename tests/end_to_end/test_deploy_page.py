"""The five commands of docs/deploy.md, as they stand there, typed on two hosts of their own."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from fedmoe_app import read_metrics
from fedmoe_app.launch.environment import run_environment
from fedmoe_app.launch.processes import ProcessGroup
from tests.conftest import REPOSITORY
from tests.end_to_end.namespaces import separate_hosts, skip_without_namespaces
from tests.end_to_end.processes import CONNECTED, SERVING, Host, wait_for_line
from tests.end_to_end.test_leaks import LABELS, good_lines

pytestmark = pytest.mark.slow


def five_commands() -> list[str]:
    """Return the code of the page's first section, one text a numbered command."""
    page = (REPOSITORY / "docs" / "deploy.md").read_text(encoding="utf-8")
    found = re.search(r"## Five commands.*?```bash\n(.*?)```", page, re.DOTALL)
    assert found
    commands = [part.strip() for part in re.split(r"# \d  .*\n", found[1])[1:]]
    assert len(commands) == 5
    return commands


def test_the_five_commands_make_a_deployment_that_runs(tmp_path: Path) -> None:
    skip_without_namespaces()
    data = tmp_path / "train.jsonl"
    data.write_text(good_lines("Some text of the node"))
    environment = run_environment(tmp_path / "flwr") | {"HOME": str(tmp_path)}
    with separate_hosts(2) as (lab, node), ProcessGroup(environment) as group:

        def start(command: str, host: Host, folder: Path, log: Path) -> subprocess.Popen[str]:
            text = command.replace("lab1.example.org", lab.address)
            text = text.replace("/data/train.jsonl", str(data))
            with log.open("w") as file:
                return group.start([*host.prefix, "bash", "-c", text], file, cwd=folder)

        def finish(command: str) -> str:
            log = tmp_path / "command.log"
            assert start(command, lab, REPOSITORY, log).wait(timeout=300) == 0, log.read_text()
            return log.read_text()

        certificates, superlink, register, supernode, run = five_commands()
        assert "node-2.pub" in finish(certificates)
        log = tmp_path / "superlink.log"
        wait_for_line(start(superlink, lab, tmp_path, log), log, SERVING)
        assert "serving" in finish("fedmoe health 127.0.0.1:9190")
        assert finish(register).splitlines()[-1] == "node-2: registered"
        log = tmp_path / "node.log"
        wait_for_line(start(supernode, node, tmp_path / "keys", log), log, CONNECTED)
        # One node of the three, and data that is there.
        changes = f"num-server-rounds=1 min-clients=1 data.label-names='{LABELS}'"
        run = run.split("  #")[0] + f" -c \"{changes} data.test-source='{data}'\""
        output = finish(f"{run} --output {tmp_path} --name run")
    assert output.splitlines()[-1] == f"results: {tmp_path / 'run'}"
    last = read_metrics(tmp_path / "run")[-1]
    assert [client["client"] for client in last["clients"]] == [0]
    assert group.alive() == []


def test_the_commands_that_certificates_prints_run_on_the_nodes_own_files(tmp_path: Path) -> None:
    """Two nodes on one machine; only the first lines are changed, as they say."""
    skip_without_namespaces()
    keys, node_keys = tmp_path / "my keys", tmp_path / "copied"
    node_keys.mkdir()
    environment = run_environment(tmp_path / "flwr") | {"HOME": str(tmp_path)}
    with separate_hosts(2) as (lab, machine), ProcessGroup(environment) as group:

        def start(text: str, host: Host, folder: Path, log: Path) -> subprocess.Popen[str]:
            with log.open("w") as file:
                return group.start([*host.prefix, "bash", "-c", text], file, cwd=folder)

        def finish(text: str) -> str:
            log = tmp_path / "command.log"
            assert start(text, lab, tmp_path, log).wait(timeout=300) == 0, log.read_text()
            return log.read_text()

        printed = finish(f"fedmoe certificates '{keys}' --host {lab.address} --nodes 2")
        superlink, register, node, run = re.split(r"^(?=# )", printed, flags=re.MULTILINE)[1:]
        log = tmp_path / "superlink.log"
        wait_for_line(start(superlink, lab, tmp_path, log), log, SERVING)
        assert finish(register).splitlines()[-1] == "node-1: registered"
        for number in (0, 1):
            data = tmp_path / f"data of {number}.jsonl"
            data.write_text(good_lines(f"Some text of node {number}"))
            for name in ("ca.crt", f"node-{number}"):
                (node_keys / name).write_bytes((keys / name).read_bytes())
            first = f"N={number} DATA='{data}'"
            text = node.replace("N=0 DATA=/data/train.jsonl", first)
            assert first in text
            log = tmp_path / f"node-{number}.log"
            wait_for_line(start(text, machine, node_keys, log), log, CONNECTED)
        text = run.replace("LABELS=negative,positive", f"LABELS={LABELS}").rstrip()
        output = finish(f"{text} --rounds 1 --output '{tmp_path}' --name run")
    assert output.splitlines()[-1] == f"results: {tmp_path / 'run'}"
    last = read_metrics(tmp_path / "run")[-1]
    assert [client["client"] for client in last["clients"]] == [0, 1]
