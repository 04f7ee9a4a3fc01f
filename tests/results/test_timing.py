"""Seconds of the clients in a metrics line."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedmoe_app import ClientUpdate, ModelState, RoutingStats
from fedmoe_app.results.metrics import client_seconds

NOTHING = torch.zeros(1, 1)
ROUTING = RoutingStats(*[NOTHING] * 6, tokens=torch.zeros(1))
UPDATE = ClientUpdate(2, 10, ModelState(), ROUTING, {"train-loss": 1.0})


def timed(**seconds: float) -> ClientUpdate:
    return replace(UPDATE, metrics={f"seconds-{name}": s for name, s in seconds.items()})


def test_what_the_client_does_not_know_of_is_upload() -> None:
    update = timed(start=1.0, download=2.0, train=4.5, cpu=3.0)
    assert client_seconds([update], {"client 2": 10.0}) == {
        "clients": [
            {
                "client": 2,
                "start": 1.0,
                "download": 2.0,
                "train": 4.5,
                "cpu": 3.0,
                "upload": 2.5,
                "total": 10.0,
            }
        ]
    }


def test_a_wrong_clock_gives_no_negative_upload() -> None:
    (line,) = client_seconds([timed(download=60.0)], {"client 2": 10.0})["clients"]
    assert (line["upload"], line["total"]) == (0.0, 10.0)


def test_without_a_round_trip_there_is_no_upload() -> None:
    (line,) = client_seconds([timed(train=1.0)], {})["clients"]
    assert line == {"client": 2, "train": 1.0}


def test_clients_that_tell_nothing_leave_no_entry() -> None:
    assert client_seconds([UPDATE], {"client 2": 1.0}) == {}
