import socket
from collections.abc import Iterator
from importlib import metadata

import pytest
from rich.console import Console

from fedmoe_app.cli import doctor
from fedmoe_app.cli.doctor import FAILURE, OK, WARNING, Finding


def found(name: str) -> Finding:
    return next(finding for finding in doctor.examine() if finding.what == name)


def test_what_is_installed_is_found() -> None:
    findings = {finding.what: finding for finding in doctor.examine()}
    assert findings["flwr"] == Finding("flwr", OK, metadata.version("flwr"))
    assert findings["quantization nf4"].state == OK
    assert not [finding for finding in findings.values() if finding.state == FAILURE]
    console = Console(record=True, width=120)
    doctor.print_findings(list(findings.values()), console)
    assert "bitsandbytes" in console.export_text()


def test_brackets_of_a_remedy_are_no_markup() -> None:
    console = Console(record=True, width=120)
    row = Finding("disk at /a [/b]", WARNING, "[/c]", "pip install 'fedmoe[gpu]'")
    doctor.print_findings([row], console)
    text = console.export_text()
    assert all(part in text for part in (row.what, row.found, row.remedy))


def test_a_version_outside_the_range_and_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return "1.41.0" if name == "flwr" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    flwr, peft = found("flwr"), found("peft")
    assert flwr.state == WARNING
    assert "1.41.0" in flwr.found
    assert peft.state == FAILURE
    assert peft.remedy.startswith("pip install 'peft")


def test_a_taken_port_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(doctor, "CONTROL_PORT", port)
        assert found(f"port {port}").state == WARNING


def test_a_look_that_fails_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def _broken() -> Iterator[Finding]:
        raise RuntimeError("no answer")
        yield

    monkeypatch.setattr(doctor, "_CHECKS", (_broken,))
    assert doctor.examine() == [
        Finding("broken", WARNING, "could not be looked at: RuntimeError: no answer")
    ]


def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda *args: False)
    assert found("results").state == FAILURE
