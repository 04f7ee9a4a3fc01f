"""Words on the command line that belong to an option are named with what to type."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fedmoe_app import ConfigError
from fedmoe_app.cli.misplaced import overrides_of

HERE = Path(".")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    connection = '[superlink.lab]\naddress = "10.0.0.1:8000"\ninsecure = true\n'
    (tmp_path / "config.toml").write_text(connection)
    (tmp_path / "my rows.csv").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("command", "word", "typed"),
    [
        ("run", "mine.toml", "fedmoe run . -c mine.toml"),
        ("compare", "mine.toml", "fedmoe compare . -c mine.toml"),
        ("run", "seed=3", "fedmoe run . -c seed=3"),
        ("run", "data.alpha=1/2", "fedmoe run . -c data.alpha=0.5"),
        ("run", "scheme=fedalign", "fedmoe run . -c 'scheme=\"fedalign\"'"),
        ("run", "fedalign", "fedmoe run . --scheme fedalign"),
        ("compare", "fedalign", "fedmoe compare . --schemes fedalign"),
        ("run", "olmoe-tiny", "fedmoe run . -c 'model.name=\"olmoe-tiny\"'"),
        ("run", "my rows.csv", "fedmoe run . -c 'data.source=\"my rows.csv\"'"),
    ],
)
def test_a_word_in_the_place_of_the_app_is_told_its_option(
    command: str, word: str, typed: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"type {typed}")):
        overrides_of(command, [], Path(word))
    assert shlex.split(typed)[:3] == ["fedmoe", command, "."]


def test_so_is_one_in_the_place_of_a_connection() -> None:
    with pytest.raises(ConfigError, match=re.escape("fedmoe run mine.toml: stands alone")):
        overrides_of("run", [], HERE, "mine.toml")
    with pytest.raises(ConfigError, match=re.escape("type fedmoe run . -c seed=2")):
        overrides_of("run", ["data.alpha=0.1"], HERE, "seed=2", ["scheme=fedmoe"])
    with pytest.raises(ConfigError, match=re.escape("fedmoe run y z: unexpected")):
        overrides_of("run", [], HERE, "x", ["y", "z"])


def test_folders_and_connections_have_their_places(folder: Path) -> None:
    (folder / "fedmoe").mkdir()
    assert overrides_of("run", None, Path("fedmoe")) == {}
    assert overrides_of("run", ["seed=3"], HERE, "lab") == {"seed": 3}
    assert overrides_of("run", ["seed=3"], HERE, "not-there") == {"seed": 3}  # refused later
    assert overrides_of("run", ["seed=3"], Path("/nowhere")) == {"seed": 3}


def test_a_value_apart_from_its_key_is_put_to_it() -> None:
    with pytest.raises(ConfigError, match="type -c data.alpha=0.1"):
        overrides_of("run", ["data.alpha"], HERE, "=", ["0.1"])
    with pytest.raises(ConfigError, match="type -c data.alpha=0.1"):
        overrides_of("compare", ["data.alpha"], Path("0.1"))
