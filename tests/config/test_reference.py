"""What is generated of the run config's fields: pyproject.toml's block, the page, explanations."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pytest
from flwr.common.config import flatten_dict

from fedmoe_app import ConfigError, RunConfig, default_run_config
from fedmoe_app.config.overrides import app_defaults
from fedmoe_app.config.reference import PAGE, WRITE, explain, page, stale, toml_block
from tests.conftest import REPOSITORY

DEFAULTS = default_run_config()


def test_the_generated_files_say_what_the_code_says() -> None:
    names = [str(path.relative_to(REPOSITORY)) for path in stale(REPOSITORY)]
    assert names == [], f"the run config has changed; write them anew: {WRITE}"


def test_flower_reads_the_defaults_of_the_code() -> None:
    table = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    read = flatten_dict(table["tool"]["flwr"]["app"]["config"])
    assert list(read.items()) == list(DEFAULTS.items())
    assert [type(value) for value in read.values()] == [type(value) for value in DEFAULTS.values()]
    assert app_defaults(REPOSITORY) == DEFAULTS


def test_every_key_says_what_it_does() -> None:
    assert [name for name, field in RunConfig.all_keys() if not field.description] == []


def test_no_line_of_the_block_is_too_long_but_for_its_value() -> None:
    long = [line for line in toml_block().splitlines() if len(line) > 100]
    assert [line.partition(" =")[0] for line in long] == ["prompt-format"]


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_page_has_a_row_for_every_key(name: str) -> None:
    (row,) = [line for line in page().splitlines() if line.startswith(f"| `{name}` |")]
    assert row.replace(r"\|", "").count("|") == 6


def test_the_page_says_what_may_change_in_a_resumed_run() -> None:
    rows = {line.split("`")[1]: line for line in page().splitlines() if line.startswith("| `")}
    assert rows["data.num-samples"].endswith("| may change |")
    assert rows["data.alpha"].endswith(" |  |")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("data.alpha", ["data.alpha = 0.5\n", "values: number > 0\n", "resumed run: stays as it"]),
        ("model.dtype", ["values: float32, bfloat16\n"]),
        ("projection-size", ["values: integer ≥ 64, in steps of 4\n"]),
        ("data.local-test-fraction", ["values: number ≥ 0, < 1\n"]),
        ("diagnostics", ["values: true, false\n", "resumed run: may change"]),
        ("fedprox", ["[tool.flwr.app.config.fedprox]\nproximal-mu = 0.01 "]),
    ],
)
def test_a_key_or_table_is_explained(name: str, parts: list[str]) -> None:
    text = explain(name)
    assert [part for part in parts if part not in text] == []


@pytest.mark.parametrize(
    ("name", "hint"), [("data.alfa", "did you mean data.alpha?"), ("zzz", "`fedmoe config` shows")]
)
def test_an_unknown_key_has_a_hint(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        explain(name)
    assert str(error.value).startswith(f"{name}: unknown key; {hint}")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A copy of this app's generated files, one of them changed by hand."""
    (tmp_path / PAGE).parent.mkdir(parents=True)
    shutil.copyfile(REPOSITORY / PAGE, tmp_path / PAGE)
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(text.replace("alpha = 0.5", "alpha = 9.0"))
    return tmp_path


def test_only_what_is_stale_is_written_and_the_rest_of_the_file_stays(app: Path) -> None:
    before = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert stale(app) == {app / "pyproject.toml": before}


def test_an_app_without_docs_gets_no_page(app: Path) -> None:
    shutil.rmtree(app / "docs")
    assert stale(app).keys() == {app / "pyproject.toml"}


def test_a_place_for_the_block_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; name the app's folder with --app"):
        stale(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(ConfigError, match="the run config is not between the lines"):
        stale(tmp_path)


def test_an_app_that_lacks_a_key_is_told_how_to_get_it(app: Path) -> None:
    path = app / "pyproject.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("seed = 42", ""))
    with pytest.raises(ConfigError, match=f"missing from the run config: seed; .*: {WRITE} --app"):
        app_defaults(app)
