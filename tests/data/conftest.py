from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedmoe_app.config.schema import DataConfig
from fedmoe_app.data.corpus import Corpus, load_corpus
from tests.homes import home_with_cache

REPOSITORY = Path(__file__).parents[2]
MakeConfig = Callable[..., DataConfig]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of a test go to its own folder."""
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "home"


@pytest.fixture(scope="session")
def usual_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the cache that all other tests use: its corpus is built once."""
    return home_with_cache(tmp_path_factory.mktemp("usual"))


@pytest.fixture
def with_corpus(usual_home: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDMOE_HOME", str(usual_home))
    return usual_home


@pytest.fixture
def corpus(with_corpus: Path) -> Corpus:
    return load_corpus()


@pytest.fixture(scope="session")
def default_data_config() -> DataConfig:
    return DataConfig()


@pytest.fixture
def config(default_data_config: DataConfig) -> MakeConfig:
    """The default data config with some keys changed, checked as a run config is."""

    def make(**changes: object) -> DataConfig:
        values = default_data_config.model_dump(by_alias=True)
        values |= {name.replace("_", "-"): value for name, value in changes.items()}
        return DataConfig.model_validate(values)

    return make
