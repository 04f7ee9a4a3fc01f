"""A project of one's own: a Flower app with a scheme, its tests and a run config.

The files are templates in the folder ``project`` beside this module. The run config is written
with all its keys, since Flower sets only keys that stand in ``pyproject.toml``.
"""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.files import new_folder
from fedmoe_app.config.reference import toml_block

_TEMPLATES = Path(__file__).with_name("project")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*([-_][A-Za-z0-9]+)*")
_RULE = "letters, digits and single - or _ between them, beginning with a letter"
# File of the project: its template. {package} is the name of the package.
FILES = {
    "pyproject.toml": "pyproject.toml",
    "short.toml": "short.toml",
    "{package}/scheme.py": "scheme.py",
    "tests/test_scheme.py": "test_scheme.py",
    "Makefile": "Makefile",
    "README.md": "README.md",
    ".gitignore": "gitignore",
}


@dataclass(frozen=True)
class Project:
    """What a new project is called.

    Attributes:
        name: of the project and its folder, such as ``my-moe``.
        publisher: whose app it is, for Flower.
    """

    name: str
    publisher: str

    @property
    def package(self) -> str:
        """The name of its Python package, such as ``my_moe``."""
        return self.name.replace("-", "_").lower()

    @property
    def scheme(self) -> str:
        """What ``scheme`` is in its run config."""
        return f"{self.package}.scheme:OwnScheme"


def write_project(folder: Path, publisher: str) -> Project:
    """Write a project into a new or empty folder, whole or not at all.

    Args:
        folder: its last part is the project's name.
        publisher: whose app it is, for Flower.

    Raises:
        ConfigError: a name that cannot be a package's, or would hide one that is installed; a
            folder that holds something, or a file of that name.
        OSError: the folder cannot be written.
    """
    folder = folder.expanduser().absolute()
    project = Project(folder.name, publisher)
    _check_names(project)
    _check_free(folder)
    files = _written(project)
    with new_folder(folder) as draft:
        for name, text in files.items():
            path = draft / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return project


def _check_names(project: Project) -> None:
    for what, name in (("FOLDER", project.name), ("--publisher", project.publisher)):
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{what} {name}: a name takes {_RULE}, such as my-moe")
    package = project.package
    if keyword.iskeyword(package):
        raise ConfigError(f"FOLDER {project.name}: {package} is a word of Python; choose another")
    if package == "tests" or find_spec(package) is not None:
        raise ConfigError(
            f"FOLDER {project.name}: Python has a package {package} already, which it would "
            "hide; choose another name"
        )


def _check_free(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"FOLDER {folder}: there is a file of this name")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"FOLDER {folder}: it holds files already, which stay as they are; name a new folder"
        )


def _written(project: Project) -> dict[str, str]:
    """Return the text of each file by its path in the project."""
    values = {
        "name": project.name,
        "package": project.package,
        "publisher": project.publisher,
        "version": metadata.version("fedmoe"),
        "block": toml_block({"scheme": project.scheme}).rstrip(),
    }
    # The names in them are checked, and none of the files is HTML.
    templates = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    texts = {
        path.format(package=project.package): templates.get_template(f"{name}.jinja").render(values)
        for path, name in FILES.items()
    }
    return texts | {f"{project.package}/__init__.py": f'"""The scheme of {project.name}."""\n'}
