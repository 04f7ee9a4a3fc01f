import shutil
from importlib import metadata
from pathlib import Path

import pytest

import fedmoe_app
from fedmoe_app.config.overrides import app_defaults
from fedmoe_app.launch import app_folder as module
from fedmoe_app.launch.app_folder import app_folder
from tests.conftest import REPOSITORY


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path / "home"))
    return folder


def test_a_folder_that_is_named_is_taken(elsewhere: Path) -> None:
    assert app_folder(Path("other")) == Path("other")
    (elsewhere / "pyproject.toml").touch()
    assert app_folder(Path(".")) == Path(".")


def test_a_clone_is_found_from_anywhere(elsewhere: Path) -> None:
    assert app_folder(Path(".")) == REPOSITORY


def test_an_installed_package_becomes_an_app(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package without a clone around it, as a wheel leaves it in site-packages."""
    package = tmp_path / "site-packages" / "fedmoe_app"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("# the package\n")
    (package / "__pycache__").mkdir()
    shipped = tmp_path / "share" / "pyproject.toml"
    shipped.parent.mkdir()
    shutil.copyfile(REPOSITORY / "pyproject.toml", shipped)
    monkeypatch.setattr(fedmoe_app, "__file__", str(package / "__init__.py"))

    class Shipped:
        name = "pyproject.toml"

        def locate(self) -> Path:
            return shipped

    monkeypatch.setattr(metadata, "files", lambda name: [Shipped()])
    folder = app_folder(Path("."))
    assert app_defaults(folder)["scheme"] == "fedavg"
    assert [path.name for path in (folder / "fedmoe_app").iterdir()] == ["__init__.py"]
    assert app_folder(Path(".")) == folder
    (package / "__init__.py").write_text("# a later version\n")
    assert app_folder(Path(".")) != folder


def test_without_any_app_the_reader_says_so(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fedmoe_app, "__file__", str(tmp_path / "fedmoe_app" / "__init__.py"))
    monkeypatch.setattr(module.metadata, "files", lambda name: None)
    assert app_folder(Path(".")) == Path(".")
