"""A project of one's own: its files, its run config, its tests, a run of it; wrong names."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from flwr.common.config import validate_config

from fedmoe_app import ConfigError, default_run_config
from fedmoe_app.cli.new import FILES, write_project
from fedmoe_app.config.overrides import app_defaults, read_overrides
from fedmoe_app.config.parse import parse_run_config
from fedmoe_app.config.reference import stale


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_project(tmp_path / "my-moe", "lab")
    return tmp_path / "my-moe"


def test_all_files_are_there_and_nothing_is_left_to_fill_in(project: Path) -> None:
    found = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    wanted = {name.format(package="my_moe") for name in FILES}
    assert found == wanted | {"my_moe/__init__.py"}
    for name in found:
        text = (project / name).read_text(encoding="utf-8")
        assert "{{" not in text.replace('{{"beta"', ""), name
        assert text.endswith("\n"), name


def test_its_run_config_is_whole_and_names_its_scheme(project: Path) -> None:
    flat = app_defaults(project)
    assert flat == default_run_config() | {"scheme": "my_moe.scheme:OwnScheme"}
    short = parse_run_config(flat | read_overrides([str(project / "short.toml")]))
    assert short.num_server_rounds == 1


def test_flower_takes_it_for_an_app(project: Path) -> None:
    config = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    valid, errors, _ = validate_config(config, check_module=True, project_dir=project)
    assert (valid, errors) == (True, [])


def test_its_code_passes_the_linter(project: Path) -> None:
    for words in (["check", "--select", "E,F,I,UP,B,SIM,RUF"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *words, "--line-length", "100", "--no-cache"]
        done = subprocess.run([*ruff, "."], cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_new_keys_come_in_and_its_own_values_stay(project: Path) -> None:
    assert stale(project) == {}
    path = project / "pyproject.toml"
    before = path.read_text(encoding="utf-8")
    own = before.replace("seed = 42 ", "seed = 7  ")
    path.write_text(own.replace("\nmin-clients = 2", "\n#"), encoding="utf-8")
    assert stale(project) == {path: own}


def test_a_key_that_is_gone_is_named(project: Path) -> None:
    path = project / "pyproject.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("\nseed = ", "\nseeds = "), encoding="utf-8")
    with pytest.raises(ConfigError, match="seeds: unknown key; rename it to seed, or take it out"):
        stale(project)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("2x", "a name takes letters"),
        ("a b", "a name takes letters"),
        ("a--b", "a name takes letters"),
        ("a\x1b", "a name takes letters"),
        ("Class", "class is a word of Python"),
        ("torch", "Python has a package torch already"),
        ("fedmoe-app", "Python has a package fedmoe_app already"),
        ("tests", "Python has a package tests already"),
    ],
)
def test_wrong_names_are_refused_and_nothing_is_written(
    tmp_path: Path, name: str, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        write_project(tmp_path / name, "lab")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_publisher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='--publisher a"b: a name takes letters'):
        write_project(tmp_path / "my-moe", 'a"b')


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="it holds files already, which stay as they are"):
        write_project(tmp_path / "full", "lab")
    with pytest.raises(ConfigError, match="there is a file of this name"):
        write_project(tmp_path / "file", "lab")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "my-moe").mkdir()
    assert write_project(tmp_path / "my-moe", "lab").package == "my_moe"
    assert (tmp_path / "my-moe" / "pyproject.toml").is_file()


def test_its_tests_pass(project: Path) -> None:
    pytest_ = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    done = subprocess.run(pytest_, cwd=project, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


@pytest.mark.slow
def test_it_runs_on_simulated_nodes(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fedmoe_app.cli.main", "run", ".", "--clients", "2",
         "-c", "short.toml", "--output", "results", "--name", "first"],
        cwd=project, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "scheme: OwnScheme(beta=0.5)" in done.stdout
    assert (project / "results" / "first" / "report.html").is_file()
