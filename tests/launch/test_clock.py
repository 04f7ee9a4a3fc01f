"""A SuperLink is asked which times it accepts: by Flower's own code, over gRPC or HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fedmoe_app.cli.doctor import FAILURE, OK, WARNING, examine
from fedmoe_app.flower.fleet import UnreachableError
from fedmoe_app.launch.clock import ClockFault, check_clock
from fedmoe_app.launch.processes import free_port
from fedmoe_app.launch.watched import clock_fault
from tests.launch.superlinks import WithClock, superlink_without_nodes

HOUR = 3600.0


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> Iterator[WithClock]:
    """Return an address, given by how many seconds this machine's clock is ahead of it."""
    with superlink_without_nodes(monkeypatch) as with_clock:
        yield with_clock


@pytest.mark.parametrize("ahead", [0.0, 4.0, -300.0])
def test_what_the_superlink_accepts_is_no_fault(superlink: WithClock, ahead: float) -> None:
    assert check_clock(superlink(ahead), None, insecure=True) is None


@pytest.mark.parametrize(
    "ahead", [6.0, 100.0, 290.0, 1000.0, HOUR, 5.5 * HOUR - 40, -306.0, -1799.0, -14 * HOUR]
)
def test_how_far_it_is_off_is_found(superlink: WithClock, ahead: float) -> None:
    fault = check_clock(superlink(ahead), None, insecure=True, seconds=60)
    assert fault is not None
    assert fault.seconds == pytest.approx(ahead, abs=2.0)


def test_what_is_said() -> None:
    assert "clock is 100 s ahead of the SuperLink's; a node may be 5 s" in str(ClockFault(100.0))
    assert "clock is 17 min behind the SuperLink's" in str(ClockFault(-1000.0))
    assert "clock is 5.5 h ahead of" in str(ClockFault(5.5 * HOUR))
    assert "more than 30 minutes off" in str(ClockFault(None))
    assert "by how much could not be found out" in str(ClockFault(None, in_time=False))


def test_a_clock_of_another_year(superlink: WithClock) -> None:
    assert check_clock(superlink(400 * 24 * HOUR), None, True, seconds=60) == ClockFault(None)


def test_nobody_there_is_no_fault_of_the_clock() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(UnreachableError):
        check_clock(address, None, insecure=True)
    assert clock_fault(["--superlink", address, "--insecure"]) is None


def test_doctor_compares_clocks(superlink: WithClock) -> None:
    def found(address: str) -> tuple[str, str]:
        finding = examine(address)[-1]
        return finding.state, finding.found

    assert found(superlink(0.0)) == (OK, "accepts this machine's clock")
    state, text = found(superlink(900.0))
    assert (state, "15 min ahead" in text) == (FAILURE, True)
    assert found(f"127.0.0.1:{free_port()}")[0] == WARNING
