"""Short whole runs on toy texts, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import flat_config
from tests.homes import home_with_cache
from tests.toy import write_topics


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = home_with_cache(tmp_path)
    monkeypatch.setenv("FEDMOE_HOME", str(home))
    monkeypatch.setattr("fedmoe_app.report.plots.plot_run", lambda path: None)
    return home


def short_run(folder: Path, **overrides: Any) -> dict[str, Any]:
    """Two short rounds on toy texts; the same file for every run of a test."""
    source = folder / "topics.jsonl"
    if not source.exists():
        write_topics(source, 12)
    return flat_config(
        **{
            "num-server-rounds": 2,
            "output-dir": str(folder / "out"),
            "data.source": str(source),
            "data.test-source": str(source),
            "data.max-length": 12,
            "train.max-steps": 2,
        }
        | overrides
    )
