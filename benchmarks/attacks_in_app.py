"""Real rounds of the app, in one process, in which the last of ten clients lies.

On texts of made-up topics, which a preset of half a million parameters learns in a few rounds.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from benchmarks.cells import run_config
from benchmarks.hostile import ATTACKS, HEAD_SUMS, LABELS, MEASURED, no_attack, turned
from fedmoe_app import ClientUpdate, TrainConfig, read_metrics, run_in_process
from fedmoe_app.data.encoded import Encoded
from fedmoe_app.data.tokenizer import embedded_tokenizer
from fedmoe_app.wire.bounds import TaskBounds

CLIENTS, ROUNDS, CLASSES = 10, 6, 8
TRAIN_ROWS, TEST_ROWS, MAX_LENGTH = 1000, 1000, 14
WORDS_A_TOPIC, WORDS_A_TEXT, OF_TOPIC = 8, 8, 0.6  # share of a text's words that are of its topic
LIAR = CLIENTS - 1  # it is asked last, and so has seen what the others sent
# Schemes of these tables that are another one with settings.
WITH = {"closed-form head": {"scheme": "fedavg", "head.closed-form": "every-round"}}
_ON_UPDATES = ATTACKS | MEASURED
BOUNDS = TaskBounds(TrainConfig(), MAX_LENGTH, top_k=2)  # the preset's K


def federate_in_app(
    scheme: str, attack: str, guard: str, alpha: float, seed: int
) -> dict[str, Any]:
    """Carry out a run; return the final accuracy and the number of refused replies."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_texts(folder, seed)
        flat = run_config(
            {
                "scheme": scheme,
                "seed": seed,
                "num-server-rounds": ROUNDS,
                "evaluate-every": ROUNDS,
                "diagnostics": False,
                "server-device": "cpu",
                "output-dir": str(folder),
                "run-name": "run",
                "keep-checkpoints": 1,
                "robust.guard": guard,
                "data.source": str(folder / "train.jsonl"),
                "data.test-source": str(folder / "test.jsonl"),
                "data.alpha": alpha,
                "data.max-length": MAX_LENGTH,
                "data.num-samples": 0,
                "train.learning-rate": 4e-3,
                **WITH.get(scheme, {}),
            }
        )
        with (
            hostile_client(attack),
            patch("fedmoe_app.report.plots.plot_run", lambda path: None),
            patch("fedmoe_app.report.live.LiveReport.on_round", lambda self, record: None),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            lines = read_metrics(run_in_process(flat, CLIENTS))
    return {
        "accuracy": lines[-1]["accuracy"],
        "refused": sum(len(line["failures"]) for line in lines),
    }


@contextlib.contextmanager
def hostile_client(attack: str) -> Iterator[None]:
    """Let the last client lie, by changing what it trains on, measures or encodes."""
    from fedmoe_app.client import encode
    from fedmoe_app.client import round as client_round

    honest, rows_of = encode.encode_reply, client_round.client_rows
    sent: dict[int, list[ClientUpdate]] = {}

    def encode_reply(update: ClientUpdate, task: Any, *rest: Any) -> Any:
        others = sent.setdefault(task.server_round, [])
        if update.client == LIAR:
            update = _ON_UPDATES.get(attack, no_attack)(update, others, BOUNDS)
        others.append(update)
        return honest(update, task, *rest)

    def client_rows(config: Any, node: Any, *rest: Any) -> Any:
        rows = rows_of(config, node, *rest)
        if attack != LABELS or node.client != LIAR:
            return rows
        other: list[Any] = [
            {**r, "labels": turned(cast(int, r["labels"]), CLASSES)} for r in rows.train
        ]
        return replace(rows, train=Encoded(other, rows.train.num_cut))

    measure = client_round.ClientRound.measure

    def measured(self: Any) -> Any:
        found = measure(self)
        lies = attack in HEAD_SUMS and self.node.client == LIAR
        return HEAD_SUMS[attack](found) if lies else found

    with (
        patch.object(client_round.ClientRound, "measure", measured),
        patch.object(encode, "encode_reply", encode_reply),
        patch.object(client_round, "client_rows", client_rows),
    ):
        yield


def write_texts(folder: Path, seed: int) -> None:
    """Write texts of topics that have words of their own, and others in between."""
    tokens = (token for token in embedded_tokenizer().get_vocab() if token[0] == "Ġ")
    words = sorted(token[1:] for token in tokens if token[1:].isalpha() and 4 < len(token) < 10)
    draw = random.Random(seed)
    draw.shuffle(words)
    topics = [words[i * WORDS_A_TOPIC : (i + 1) * WORDS_A_TOPIC] for i in range(CLASSES)]
    any_word = [word for topic in topics for word in topic]
    for name, number in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
        rows = []
        for i in range(number):
            own = topics[i % CLASSES]
            text = [
                draw.choice(own if draw.random() < OF_TOPIC else any_word)
                for _ in range(WORDS_A_TEXT)
            ]
            rows.append(json.dumps({"text": " ".join(text), "label": f"topic {i % CLASSES}"}))
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
