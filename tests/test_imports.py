"""A client process imports what its round needs and no more: it is started for each message."""

from __future__ import annotations

import subprocess
import sys

# Each takes about as long to import as all of this app: drawing and statistics, that come with
# flwr-datasets; quantisation and adapters, that come with peft and with transformers' Trainer.
HEAVY = ("flwr_datasets", "matplotlib", "seaborn", "peft", "bitsandbytes", "transformers.trainer")


def test_a_plain_client_leaves_heavy_modules_alone() -> None:
    code = (
        "import sys, fedmoe_app.client_app, fedmoe_app.client.round, fedmoe_app.wire.records; "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip() == "[]"


def test_telling_a_number_and_listing_clients_need_no_torch() -> None:
    """The one is a node's answer to a question, the other a command of a light image."""
    code = (
        "import sys, fedmoe_app.client_app, fedmoe_app.config.node, fedmoe_app.wire.numbers, "
        "fedmoe_app.wire.question, fedmoe_app.server.client_list; "
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip() == "[]"
