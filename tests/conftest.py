"""What the whole suite shares: the default run config, one thread, no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# A busy machine is no fault, and a commit passes or fails the same way each time: its examples are
# fixed. ``make fuzz`` draws new ones.
hypothesis.settings.register_profile("fedmoe", deadline=None, derandomize=True)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile("fedmoe")

from fedmoe_app.launch.environment import set_default_environment  # noqa: E402

set_default_environment()  # as the commands do, before a library reads it

from fedmoe_app import RunConfig, default_run_config, parse_run_config  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


def flat_config(**overrides: bool | float | int | str) -> dict[str, bool | float | int | str]:
    """The flat default run config with overrides; keys as in the config (``data.alpha``)."""
    return default_run_config() | overrides


def make_config(**overrides: bool | float | int | str) -> RunConfig:
    """The typed default run config with overrides."""
    return parse_run_config(overrides)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def draw_nothing(specs: Mapping[Path, object], points: float | None = None) -> list[Path]:
    """In place of the function that draws pictures: leave empty files."""
    for path in specs:
        path.touch()
    return list(specs)


@pytest.fixture(scope="module")
def no_pictures() -> Iterator[None]:
    """The pictures of this module's runs are empty files: drawing takes longer than training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedmoe_app.report.files.save", draw_nothing)
        yield


@pytest.fixture
def cells_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of a comparison are in this process, not in others that take long to start."""
    from fedmoe_app.compare import compare as comparing

    monkeypatch.setattr(comparing, "run_cells", partial(_run_cells_here, comparing.run_cells))


def _run_cells_here(run_cells: Callable[..., Any], *given: Any, here: bool) -> Any:
    return run_cells(*given, here=True)
