"""``report.html`` of a run that goes on, written anew after each round."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmoe_app.report.page import State, write_page
from fedmoe_app.report.run_page import run_page
from fedmoe_app.results.callbacks import Callback
from fedmoe_app.results.folder import METRICS_FILE, read_metrics
from fedmoe_app.results.lease import TakenOverError
from fedmoe_app.results.metrics import RoundRecord

logger = logging.getLogger("fedmoe")

# Writing may take this share of a run: a page that takes longer than a tenth of a round is written
# less often than every round.
MAX_SHARE = 0.1


class LiveReport(Callback):
    """Keeps a run's page up to date; no fault of the page costs the run.

    Args:
        folder: of the run; its ``metrics.jsonl`` is what the page shows.
        flat: its flat run config.
    """

    def __init__(self, folder: Path, flat: Mapping[str, Any]) -> None:
        self._folder, self._flat = folder, dict(flat)
        self._asked = self._flat["num-server-rounds"]
        self._not_before = 0.0
        self._broken = False

    def on_round(self, record: RoundRecord) -> None:
        """Write the page of the run so far, unless that was done just now."""
        if time.monotonic() >= self._not_before:
            self._write(State("running", f"after round {record.server_round} of {self._asked}"))

    def on_end(self, error: BaseException | None) -> None:
        """Write the page of the run as it ended: complete, or failed with the reason."""
        if isinstance(error, TakenOverError) or not (self._folder / METRICS_FILE).is_file():
            return
        if error is None:
            self._write(State("complete", f"{self._asked} rounds"))
        else:
            self._write(State("failed", f"{type(error).__name__}: {error}"))

    def _write(self, state: State) -> None:
        if self._broken:
            return
        started = time.monotonic()
        try:
            if lines := read_metrics(self._folder):
                write_page(self._folder, run_page(self._folder, self._flat, lines, state))
        except Exception as error:  # a scheme's own diagnostics, a full disk: the run goes on
            self._broken = True
            logger.warning("no report.html: %s: %s", type(error).__name__, error)
        taken = time.monotonic() - started
        self._not_before = started + taken / MAX_SHARE
