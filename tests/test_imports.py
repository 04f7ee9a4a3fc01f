"""A client process imports what its round needs and no more: it is started for each message."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Each takes about as long to import as all of this app: drawing and statistics, that come with
# flwr-datasets; quantisation and adapters, that come with peft and with transformers' Trainer.
HEAVY = ("flwr_datasets", "matplotlib", "seaborn", "peft", "bitsandbytes", "transformers.trainer")


def printed_by(code: str) -> str:
    """Run code in a Python of its own, which has imported nothing yet; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout.strip()


def test_a_plain_client_leaves_heavy_modules_alone() -> None:
    code = (
        "import sys, fedmoe_app.client_app, fedmoe_app.client.round, fedmoe_app.wire.records; "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert printed_by(code) == "[]"


def test_a_server_leaves_adapters_and_drawing_alone() -> None:
    """Every run waits for the server's imports; most presets are trained without adapters."""
    code = (
        "import sys, fedmoe_app.server_app, fedmoe_app.server.run, fedmoe_app.client.root, "
        "fedmoe_app.client.trainable_modes; "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert printed_by(code) == "[]"


@pytest.mark.parametrize("train", ["all", "expert-lora"])
def test_a_client_that_has_prepared_itself_has_the_heavy_modules(train: str) -> None:
    code = f"""
import sys
from flwr.app import Context, Message, RecordDict
from fedmoe_app.client_app import app
from fedmoe_app.flower.process import task_identity
before = "torch" in sys.modules
with task_identity():
    message = Message(RecordDict(), 1, "query.prepare")
    app(message, Context(1, 1, {{}}, RecordDict(), {{"model.train": "{train}"}}))
print(before, [n for n in ("torch", "transformers", "datasets", "peft") if n in sys.modules])
"""
    found = ["torch", "transformers", "datasets", *["peft"] * (train != "all")]
    assert printed_by(code) == f"False {found}"


def test_telling_a_number_and_listing_clients_need_no_torch() -> None:
    """The one is a node's answer to a question, the other a command of a light image."""
    code = (
        "import sys, fedmoe_app.client_app, fedmoe_app.config.node, fedmoe_app.wire.numbers, "
        "fedmoe_app.wire.question, fedmoe_app.server.client_list; "
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    assert printed_by(code) == "[]"
