"""Every file in experiments/ is a valid run config."""

import tomllib
from pathlib import Path

import pytest

from fedmoe_app.config import flatten_table
from fedmoe_app.schemes import make_scheme
from tests.conftest import REPOSITORY, flat_config, make_config

FILES = sorted((REPOSITORY / "experiments").glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_experiment_overrides_known_keys_with_valid_values(path: Path) -> None:
    overrides = flatten_table(tomllib.loads(path.read_text()))
    assert overrides.keys() <= flat_config().keys()
    make_scheme(make_config(**overrides))
