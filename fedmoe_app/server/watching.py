"""What looks on while a run goes on: its live page and its trackers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedmoe_app.config.parse import flatten_run_config
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.report.live import LiveReport
from fedmoe_app.results.folder import METRICS_FILE
from fedmoe_app.results.scalars import scalars
from fedmoe_app.results.trackers import open_trackers

logger = logging.getLogger("fedmoe")


class Watchers:
    """Tells page and trackers of each round, and how the run ended.

    A tracker that fails is left out from then on, with a warning: it must not cost the run.

    Args:
        config: of the run.
        folder: where its results go.
        first_round: of this part of the run.
    """

    def __init__(self, config: RunConfig, folder: Path, first_round: int = 0) -> None:
        self._folder = folder
        self._page = LiveReport(folder, flatten_run_config(config))
        self._trackers = open_trackers(config, folder, first_round)

    def round_done(self, line: Mapping[str, Any]) -> None:
        """Tell of a round whose line is in ``metrics.jsonl``."""
        self._page.refresh(line["round"])
        values = scalars(line)
        self._tell(lambda tracker: tracker.log(line["round"], values))

    def close(self, error: BaseException | None) -> None:
        """Tell how the run ended."""
        if (self._folder / METRICS_FILE).is_file():
            self._page.close(error)
        self._tell(lambda tracker: tracker.close(failed=error is not None))

    def _tell(self, what: Callable[[Any], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                what(tracker)
            except Exception as fault:  # another's package, a network, a disk
                del self._trackers[name]
                logger.warning("%s: %s: %s", name, type(fault).__name__, fault)
