"""Which releases of Flower are taken, with a word or without, and which are refused."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from fedmoe_app.flower.fleet import fleet
from fedmoe_app.flower.release import UnsupportedFlowerError, caution, release_of, speaks_http


@pytest.mark.parametrize("version", ["1.39.0", "1.39.2", "1.42.0", "1.42.1.dev3"])
def test_releases_that_were_tried_need_no_word(version: str) -> None:
    assert caution(version) == ""


@pytest.mark.parametrize("version", ["1.40.0", "1.43.0", "2.0.0rc1"])
def test_other_releases_are_taken_with_a_word(version: str) -> None:
    assert f"flwr {version}: fedmoe was tried with 1.39 and 1.42" in caution(version)


@pytest.mark.parametrize("version", ["1.38.0", "0.19.0"])
def test_older_releases_are_refused_with_the_way_out(version: str) -> None:
    with pytest.raises(UnsupportedFlowerError, match=r"too old .* pip install 'flwr\[simulation\]"):
        caution(version)


def test_what_is_no_version_is_named() -> None:
    with pytest.raises(UnsupportedFlowerError, match="flwr nightly: not a version like"):
        release_of("nightly")


def test_the_way_to_the_superlink_is_that_of_the_release() -> None:
    assert [speaks_http(version) for version in ("1.39.9", "1.40.0", "1.42.0")] == [
        False,
        True,
        True,
    ]
    assert fleet().node_port == (8000 if speaks_http() else 9092)


@pytest.mark.parametrize(
    ("version", "code", "said"),
    [("9.9.0", 0, "warning: flwr 9.9.0: fedmoe was tried with"), ("1.30.0", 1, "is too old")],
)
def test_a_command_says_it_once(version: str, code: int, said: str, tmp_path: Path) -> None:
    """A package of another version stands before the installed one on the path."""
    about = tmp_path / f"flwr-{version}.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text(f"Metadata-Version: 2.1\nName: flwr\nVersion: {version}\n")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv[1:] = ['flwr', '--version'];"
        "from fedmoe_app.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr.count(said) == 1
    assert (metadata.version("flwr") in done.stdout) == (code == 0)
