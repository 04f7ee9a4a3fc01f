import shutil
from importlib import metadata
from pathlib import Path

import pytest

import fedmoe_app
from fedmoe_app.config.overrides import app_defaults
from fedmoe_app.flower.supernode import bundle_of
from fedmoe_app.launch import app_folder as module
from fedmoe_app.launch.app_folder import app_folder, lean_copy
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


def flower_app(folder: Path, include: str) -> Path:
    """Write an app in whose folder much lies that is none of its bundle's."""
    (folder / "pyproject.toml").parent.mkdir()
    (folder / "pyproject.toml").write_text(
        f"""[project]
name = "mine"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "me"
fab-include = {include}
[tool.flwr.app.components]
serverapp = "mine.app:server"
clientapp = "mine.app:client"
"""
    )
    (folder / ".gitignore").write_text("secret.py\n/mine/local/\n")
    for name in (
        *("mine/app.py", "mine/deep/er/part.py", "mine/table.json", "mine/secret.py"),
        *("mine/local/x.py", "mine/__pycache__/app.py", "mine/test_app.py", "LICENSE", "data.json"),
        *("other/part.py", ".venv/lib/python3/site-packages/torch.py", ".venv/LICENSE"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}\n")
    (folder / "mine" / "link.py").symlink_to("app.py")
    (folder / "mine" / "linked").symlink_to(folder / "other")
    return folder


@pytest.mark.parametrize("include", ['["mine/**/*.py", "/mine/*.json", "/LICENSE"]', '["/mine"]'])
def test_a_lean_copy_makes_the_same_bundle_without_a_look_at_the_rest(
    include: str, tmp_path: Path
) -> None:
    app = flower_app(tmp_path / "app", include)
    bundle = bundle_of(app)
    copy = lean_copy(app, tmp_path / "copy")
    assert copy.name == "app"
    assert {path.name for path in copy.iterdir()} <= {
        "pyproject.toml", ".gitignore", "mine", "LICENSE"
    }  # fmt: skip
    assert bundle_of(copy) == bundle


def test_a_folder_that_is_a_link_is_in_no_bundle(tmp_path: Path) -> None:
    """What lies behind it may be anybody's. Flower enters none, and says the same of a copy."""
    app = flower_app(tmp_path / "app", '["/mine/**/*.py", "/elsewhere/**/*.py"]')
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "private.py").write_text("1")
    (app / "elsewhere").symlink_to(outside)
    copy = lean_copy(app, tmp_path / "copy")
    assert not list(copy.rglob("private.py"))
    for folder in (app, copy):
        with pytest.raises(ValueError, match='did not match any files: "/elsewhere'):
            bundle_of(folder)


def test_an_app_whose_config_is_a_link_stays_where_it_is(tmp_path: Path) -> None:
    app = flower_app(tmp_path / "app", '["/mine/**/*.py"]')
    (app / "pyproject.toml").rename(tmp_path / "config.toml")
    (app / "pyproject.toml").symlink_to(tmp_path / "config.toml")
    assert lean_copy(app, tmp_path / "copy") == app


@pytest.mark.parametrize("include", ['["**/*.py"]', '["*.py"]', '["../x/*.py"]', '["mi*/*.py"]'])
def test_an_app_whose_bundle_may_hold_any_file_stays_where_it_is(
    include: str, tmp_path: Path
) -> None:
    app = flower_app(tmp_path / "app", include)
    assert lean_copy(app, tmp_path / "copy") == app
    assert not (tmp_path / "copy").exists()


def test_what_is_no_app_is_left_to_flower(tmp_path: Path) -> None:
    assert lean_copy(tmp_path, tmp_path / "copy") == tmp_path


def test_the_app_of_this_repository_has_a_lean_copy(tmp_path: Path) -> None:
    assert lean_copy(REPOSITORY, tmp_path) == tmp_path / REPOSITORY.name
