"""Where a run's records go."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmoe_app import ConfigError
from fedmoe_app.server.recorder import new_folder
from tests.conftest import make_config


def test_a_folder_that_the_server_may_not_write_to_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = make_config(**{"output-dir": str(tmp_path / "file" / "results")})
    with pytest.raises(ConfigError, match=r'output-dir = ".*/file/results": Not a directory.*user'):
        new_folder(config)
