"""The figures of a run page that are words and tables: summary, rounds, clients, failures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedmoe_app.config.lists import base_names
from fedmoe_app.results.best import best_of, kept_line
from fedmoe_app.results.folder import SAMPLES_FILE
from fedmoe_app.results.metrics import CLIENT_COLUMNS
from fedmoe_app.results.table import MISSING, human_bytes
from fedmoe_app.results.values import Line
from fedmoe_app.shown.duration import duration

MAX_FAILURES = 200
MAX_SAMPLES = 20
MAX_SAMPLE_TEXT = 2000  # characters


class Fact(NamedTuple):
    """One tile of the summary."""

    name: str
    value: str
    note: str = ""


class Cell(NamedTuple):
    """One table cell: what is shown, and what it is sorted by."""

    text: str
    sort: float | str | None = None


class Table(NamedTuple):
    """A table that can be sorted by each column; ``bad`` are positions of rows to mark."""

    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    bad: frozenset[int] = frozenset()


def summary(flat: dict[str, Any], lines: Sequence[Line], metric: str) -> list[Fact]:
    """Return scheme, model, data, clients, rounds, final figures, bytes and time."""
    rounds = [line for line in lines if line["round"] != 0]
    clients = {client["client"] for line in rounds for client in line["clients"]}
    return [
        Fact(f"global {metric}", *_last(lines, "accuracy", "{:.3f}")),
        Fact("loss", *_last(lines, "loss", "{:.3f} nats")),
        *_kept(lines),
        Fact("scheme", str(flat["scheme"])),
        Fact("model", _base_name(flat["model.name"]), f"trained: {flat['model.train']}"),
        Fact("data", base_names(str(flat["data.source"])), _partition(flat)),
        _clients(clients, rounds),
        Fact("rounds", f"{len(rounds)} of {flat['num-server-rounds']}", _failed_rounds(rounds)),
        Fact("sent up", human_bytes(_sum(rounds, "bytes_up")), "all clients and rounds"),
        Fact("sent down", human_bytes(_sum(rounds, "bytes_down")), "all clients and rounds"),
        Fact("time", duration(sum(_seconds(line) for line in lines)), "sum of the rounds"),
        Fact("lost replies", str(len(failures(rounds))), "failures of clients, see below"),
        *_privacy(rounds),
    ]


def _clients(clients: set[int], rounds: Sequence[Line]) -> Fact:
    if any(line.get("num_clients", 0) is None for line in rounds):
        return Fact("clients", MISSING, "not told: differential privacy")
    return Fact("clients", str(len(clients)), "that sent a usable update")


def _privacy(rounds: Sequence[Line]) -> list[Fact]:
    """Return what the run has spent; nothing without differential privacy."""
    promised = last_of(rounds, "example_privacy")
    if promised is not None:
        note = f"a node, by the run's settings; δ = {promised['delta']:g}"
        return [Fact("privacy of examples", f"ε ≤ {promised['epsilon']:.3g}", note)]
    spent = last_of(rounds, "privacy")
    if spent is None:
        return []
    note = f"δ = {spent['delta']:g}, {spent['releases']} releases"
    return [Fact("privacy spent", f"ε = {spent['epsilon']:.3g}", note)]


def last_of(lines: Sequence[Line], key: str) -> Any:
    """Return a value of the last line that has one; None where none has."""
    return next((line[key] for line in reversed(lines) if line.get(key)), None)


def where_scored(lines: Sequence[Line]) -> str:
    """Say on what data the global model was scored: the server can score the initial model."""
    first = next((line for line in lines if line["round"] == 0), None)
    on_server = first is not None and first.get("loss") is not None
    return "the server's test set" if on_server else "the clients' own test examples"


def rounds_table(lines: Sequence[Line], metric: str) -> Table:
    """One row a round."""
    headers = ("round", metric, "loss", "training loss", "up", "down", "clients", "lost", "seconds")
    rows = []
    for line in lines:
        trained = line["round"] != 0
        rows.append(
            (
                Cell(str(line["round"]), line["round"]),
                _number(line.get("accuracy")),
                _number(line.get("loss")),
                _number(line.get("train_loss")),
                _bytes(line["bytes_up"] if trained else None),
                _bytes(line["bytes_down"] if trained else None),
                _count(line["num_clients"] if trained else None),
                _count(len(failures([line])) if trained else None),
                _number(_seconds(line), "{:.1f}"),
            )
        )
    bad = frozenset(i for i, line in enumerate(lines) if line.get("status", "ok") != "ok")
    return Table(headers, rows, bad)


def last_of_clients(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return each client's figures of the last round it was in, with sums over all rounds."""
    found: dict[int, dict[str, Any]] = {}
    for line in lines:
        for client in line["clients"]:
            before = found.get(client["client"], {"rounds": 0, "up": 0, "down": 0, "lost": 0})
            found[client["client"]] = {
                **client,
                "last_round": line["round"],
                "rounds": before["rounds"] + 1,
                "up": before["up"] + (client.get("bytes_up") or 0),
                "down": before["down"] + (client.get("bytes_down") or 0),
                "lost": before["lost"] + bool(client.get("state_lost")),
            }
    return [found[number] for number in sorted(found)]


def clients_table(clients: Sequence[dict[str, Any]], metric: str) -> Table:
    """One row a client; columns that no client has a value in are left out."""
    columns = {
        "client": [Cell(str(c["client"]), c["client"]) for c in clients],
        "rounds": [_count(c["rounds"]) for c in clients],
        "last round": [_count(c["last_round"]) for c in clients],
        "examples": [_count(c.get("num_examples")) for c in clients],
        **{
            title.format(metric=metric): [_told(c.get(key), whole) for c in clients]
            for key, title, whole in CLIENT_COLUMNS
        },
        "experts sent": [_count(c.get("experts_sent")) for c in clients],
        "sent up": [_bytes(c["up"]) for c in clients],
        "sent down": [_bytes(c["down"]) for c in clients],
        "state lost": [_count(c["lost"] or None) for c in clients],
    }
    kept = {
        name: cells for name, cells in columns.items() if any(c.sort is not None for c in cells)
    }
    return Table(list(kept), list(zip(*kept.values(), strict=True)))


def failures(lines: Iterable[Line]) -> list[tuple[int, str, str]]:
    """Return round, client and reason of every reply that was asked for and not usable."""
    return [
        (line["round"], str(each["who"]), str(each["reason"]))
        for line in lines
        for each in line.get("failures") or ()
        if each["who"] != "round"
    ]


def failures_table(lines: Sequence[Line]) -> tuple[Table, int]:
    """Return the first failures, those of whole rounds included, and how many are left out."""
    found = [
        (line["round"], str(each["who"]), str(each["reason"]))
        for line in lines
        for each in line.get("failures") or ()
    ]
    rows = [
        (Cell(str(number), number), Cell(who, who), Cell(reason, reason))
        for number, who, reason in found[:MAX_FAILURES]
    ]
    bad = frozenset(i for i, (_, who, _) in enumerate(found[:MAX_FAILURES]) if who == "round")
    return Table(("round", "who", "reason"), rows, bad), max(0, len(found) - MAX_FAILURES)


def last_samples(folder: Path) -> tuple[int | None, list[dict[str, str]]]:
    """Return the round of the last answers in ``samples.jsonl``, and these; None without."""
    file = folder / SAMPLES_FILE
    if not file.is_file():
        return None, []
    whole = file.read_text(encoding="utf-8").rpartition("\n")[0]
    found = [json.loads(text) for text in whole.split("\n") if text.strip()]
    if not found:
        return None, []
    last = found[-1]["round"]
    chosen = [sample for sample in found if sample["round"] == last][:MAX_SAMPLES]
    keys = ("prompt", "expected", "generated")
    return last, [{key: _cut(str(sample.get(key, ""))) for key in keys} for sample in chosen]


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SAMPLE_TEXT else f"{text[:MAX_SAMPLE_TEXT]} …"


def _last(lines: Sequence[Line], key: str, form: str) -> tuple[str, str]:
    """Return the value of the kept model and the round that it is of."""
    known = [(line["round"], line[key]) for line in lines if line.get(key) is not None]
    if not known:
        return MISSING, "not known yet"
    kept = kept_line(lines)
    number, value = known[-1] if kept.get(key) is None else (kept["round"], kept[key])
    first = f", {form.format(known[0][1])} before round 1" if known[0][0] == 0 != number else ""
    return form.format(value), f"after round {number}{first}"


def _kept(lines: Sequence[Line]) -> list[Fact]:
    """Return which round's model is kept, where that is not the last one's."""
    best = best_of(lines)
    if best is None:
        return []
    note = f"best {best['by']} on validation rows, {best['value']:.3f}"
    return [Fact("kept model", f"of round {best['round']}", note)]


def _base_name(value: Any) -> str:
    """Return a name as it is, and the last part of a path."""
    path = Path(str(value))
    return path.name if path.is_absolute() else str(value)


def _partition(flat: dict[str, Any]) -> str:
    kind = str(flat["data.partition"])
    return f"{kind}, α = {flat['data.alpha']:g}" if kind == "dirichlet" else kind


def _failed_rounds(rounds: Sequence[Line]) -> str:
    failed = sum(line.get("status", "ok") != "ok" for line in rounds)
    return f"{failed} failed" if failed else "none failed"


def _sum(lines: Iterable[Line], key: str) -> int:
    return sum(int(line.get(key) or 0) for line in lines)


def _seconds(line: Line) -> float:
    return float((line.get("seconds") or {}).get("round") or 0.0)


def _number(value: float | None, form: str = "{:.3f}") -> Cell:
    return Cell(MISSING) if value is None else Cell(form.format(value), value)


def _told(value: float | None, whole: bool) -> Cell:
    return _count(value) if whole else _number(value)


def _count(value: float | None) -> Cell:
    return Cell(MISSING) if value is None else Cell(f"{value:.0f}", value)


def _bytes(value: int | None) -> Cell:
    return Cell(human_bytes(value), value)
