"""The code in the docs runs, and what they name exists."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from fedmoe_app import SCHEMES, make_scheme, read_metrics, run_in_process
from fedmoe_app.compare.plan import read_schemes
from fedmoe_app.config.names import WITH_ARGS
from fedmoe_app.config.overrides import read_overrides
from fedmoe_app.config.overview import rows
from fedmoe_app.config.parse import flatten_table
from fedmoe_app.report.plots import FILES
from fedmoe_app.schemes import COMBINE, parts
from fedmoe_app.schemes.parts import Part
from tests.compare.test_in_process import SMALL
from tests.conftest import REPOSITORY, flat_config, make_config
from tests.test_experiments import OF_SCHEMES

DOCS = REPOSITORY / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
PAGES_OF = rows(DOCS / "schemes")  # page: its schemes
# Page of docs/schemes: the table of the run config that it describes.
TABLES = {
    page: name
    for page, own in PAGES_OF.items()
    for name in own
    if any(key.startswith(f"{name}.") for key in flat_config())
}
# Pages of schemes that take their parameters from scheme-args.
ARGUMENTS = tuple(page for page, own in PAGES_OF.items() if own.keys() <= WITH_ARGS.keys())
SCHEME_PAGES = tuple(PAGES_OF)
# These go with every scheme.
HEAD = {"closed-form-head": "head", "averaged-model": "average"}
PLOTS = {f"{name}.png" for name in FILES}
FILE_ENDINGS = {"py", "toml", "png", "csv", "json", "jsonl", "md"}
SECTIONS = sorted({key.split(".")[0] for key in flat_config() if "." in key})
KEY = re.compile(rf"(?<![\w./-])({'|'.join(SECTIONS)})\.([a-z][a-z-]*)(?![\w./(-])")


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def scheme_page(name: str) -> str:
    return text_of(DOCS / "schemes" / f"{name}.md")


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


# -- code --------------------------------------------------------------------------------------


@pytest.fixture
def own_schemes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of docs/own-scheme.md in a folder that Python imports from."""
    blocks = re.findall(r"```python\n(# (\S+)\n.*?)```", text_of(DOCS / "own-scheme.md"), re.DOTALL)
    for code, name in blocks:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code, encoding="utf-8")
    (tmp_path / "my_schemes" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in [name for name in sys.modules if name.partition(".")[0] == "my_schemes"]:
        monkeypatch.delitem(sys.modules, module)
    return tmp_path


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("scheme", "args", "experts_sent"),
    [
        ("my_schemes.momentum:MyFedAvgM", {"beta": 0.5}, 16),
        ("my_schemes.trimmed:TrimmedMean", {"share": 0.4}, 16),
        ("my_schemes.steady:SteadyGates", {"experts": 3}, 6),  # of 2 layers
    ],
)
def test_the_own_schemes_of_the_docs_run(
    own_schemes: Path, scheme: str, args: dict[str, float], experts_sent: int
) -> None:
    overrides = SMALL | {
        "output-dir": str(own_schemes / "out"),
        "scheme": scheme,
        "scheme-args": json.dumps(args),
    }
    lines = read_metrics(run_in_process(flat_config(**overrides), 3))
    assert [line["status"] for line in lines] == ["ok"] * 3
    assert lines[-1]["loss"] != lines[0]["loss"]  # two rounds: a median need not help yet
    sent = [client["experts_sent"] for client in lines[-1]["clients"]]
    assert max(sent) <= experts_sent
    assert scheme.partition(":")[0] in sys.modules


def test_the_tests_of_own_schemes_in_the_docs_pass(own_schemes: Path) -> None:
    tests = runpy.run_path(str(own_schemes / "tests" / "test_my_schemes.py"))
    found = [tests[name] for name in tests if name.startswith("test_")]
    assert len(found) == 5
    for test in found:
        test()


def test_the_page_on_own_schemes_names_every_kind_of_part_and_counts_its_concepts() -> None:
    page = text_of(DOCS / "own-scheme.md")
    kinds = [
        name
        for name, kind in vars(parts).items()
        if isinstance(kind, type) and issubclass(kind, Part) and kind.__module__ == parts.__name__
    ]
    families = {"Part", "Statistic", "Measured", "Select", "Term", "Rule", "Probe"}  # of kinds
    assert [n for n in kinds if n not in families and not re.search(rf"\b{n}\b", page)] == []
    rows = re.findall(r"^\| (\d+) \| \*\*", page, re.MULTILINE)
    assert rows == [str(i + 1) for i in range(len(rows))]
    assert len(rows) == 17 and "**Seventeen in all**" in page


@pytest.mark.usefixtures("cells_here", "no_pictures")
def test_the_page_on_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", text_of(DOCS / "python.md"), re.DOTALL))
    script = tmp_path / "page.py"
    script.write_text(code, encoding="utf-8")
    found = runpy.run_path(str(script))
    assert len(found["labels"]) == 8
    assert list(found["found"].summary["scheme"]) == ["fedavg", "fedprox"]


def test_the_run_config_of_the_first_run_can_be_run() -> None:
    text = re.search(r"```toml\n(.*?)```", text_of(DOCS / "first-run.md"), re.DOTALL)
    assert text
    config = make_config(**flatten_table(tomllib.loads(text[1])))
    assert (config.num_server_rounds, config.data.label_field) == (5, "kind")


# -- the site ----------------------------------------------------------------------------------


def pages_of(navigation: object) -> list[str]:
    """All pages below an entry of mkdocs' nav."""
    if isinstance(navigation, str):
        return [navigation]
    entries = navigation.values() if isinstance(navigation, dict) else navigation
    assert isinstance(entries, Iterable)
    return [page for entry in entries for page in pages_of(entry)]


def test_every_page_is_in_the_navigation_of_the_site_once() -> None:
    site = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
    nav = runpy.run_path(str(DOCS / "hooks.py"))["with_schemes"](site["nav"], DOCS)
    assert sorted(pages_of(nav)) == sorted(["index.md", *pages])


# -- names -------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The names by which links reach a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    links = re.findall(r"\]\(([^)\s]+)\)", text_of(page))
    broken = []
    for link in (link for link in links if not re.match(r"[a-z]+:", link)):
        place, _, anchor = link.partition("#")
        target = page.parent / place if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@every_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


@every_page
def test_experiments_that_are_named_exist(page: Path) -> None:
    named = set(re.findall(r"experiments/[\w-]+\.toml", text_of(page)))
    assert {name for name in named if not (REPOSITORY / name).is_file()} == set()


@every_page
def test_keys_that_are_named_exist(page: Path) -> None:
    named = {
        f"{section}.{key}" for section, key in KEY.findall(text_of(page)) if key not in FILE_ENDINGS
    }
    assert named - flat_config().keys() == set()


def test_a_wrong_name_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A b\n[a](no.md) [b](page.md#a-b) [c](#a-c) [d](https://x.org/no)")
    assert broken_links(page) == ["no.md", "#a-c"]
    found = KEY.findall("`fcmoe.lambda`, fedmoe.py, x.data.alpha, data.alpha=0.1, train.jsonl.gz")
    assert found == [("fcmoe", "lambda"), ("fedmoe", "py"), ("data", "alpha")]


@pytest.mark.parametrize("name", SCHEME_PAGES)
def test_plots_and_diagnostics_that_are_named_exist(name: str) -> None:
    page = scheme_page(name)
    assert set(re.findall(r"[\w-]+\.png", page)) <= PLOTS
    sources = [
        path
        for room in ("schemes", "aggregation")
        for path in (REPOSITORY / "fedmoe_app" / room).glob("*.py")
    ]
    code = "".join(source.read_text(encoding="utf-8") for source in sources)
    for diagnostic in re.findall(r"diagnostics\.(\w+)", page):
        assert f'"{diagnostic}"' in code


# -- the pages of the schemes ------------------------------------------------------------------


def documented(name: str) -> dict[str, str]:
    """The keys of a page's table of parameters, with the defaults that it prints."""
    _, _, rest = scheme_page(name).partition("## Parameters\n")
    table, _, _ = rest.partition("\n## ")
    return dict(re.findall(r"^\| `([\w.-]+)` \| (.+?) \| .+ \|$", table, re.MULTILINE))


def same(printed: str, default: bool | float | int | str) -> bool:
    if isinstance(default, bool):
        return printed == str(default).lower()
    return printed == default if isinstance(default, str) else float(printed) == default


@pytest.mark.parametrize("name", [*TABLES, *HEAD])
def test_a_page_lists_all_parameters_with_their_defaults(name: str) -> None:
    prefix = f"{(TABLES | HEAD)[name]}."
    defaults = {key: value for key, value in flat_config().items() if key.startswith(prefix)}
    found = documented(name)
    assert found.keys() == defaults.keys()
    assert [key for key, printed in found.items() if not same(printed, defaults[key])] == []


def test_the_pages_list_all_arguments_with_their_defaults() -> None:
    pages = "".join(scheme_page(name) for name in ARGUMENTS)
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\S+) \| .+ \|$", pages, re.MULTILINE)
    defaults = {
        (name, entry.name): entry.default for name in WITH_ARGS for entry in fields(SCHEMES[name])
    }
    assert {row[:2] for row in rows} == defaults.keys()
    assert [row for row in rows if not same(row[2], defaults[row[:2]])] == []


@pytest.mark.parametrize("name", [*SCHEME_PAGES, *HEAD])
def test_a_page_has_its_parts(name: str) -> None:
    page = scheme_page(name)
    assert "## Paper against ours\n" in page
    for word in (
        "**The client",
        "**The server",
        "**Travels",
        "fedmoe run . -c",
        "## What to look at",
    ):
        assert word in page


def commands(name: str, program: str) -> list[list[str]]:
    """The words of a page's command lines that begin with ``program``."""
    lines = scheme_page(name).replace("\\\n", "").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(program)]


@pytest.mark.parametrize("name", ["README", *SCHEME_PAGES, *HEAD])
def test_the_commands_of_a_page_build_their_schemes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    runs = commands(name, "fedmoe run")
    assert runs
    for words in runs:
        given = [value for option, value in pairwise(words) if option == "-c"]
        make_scheme(make_config(**read_overrides(given)))
    for words in commands(name, "fedmoe compare"):
        for entry in read_schemes(words[words.index("--schemes") + 1]):
            make_scheme(make_config(**entry.overrides))


def test_every_scheme_has_one_page() -> None:
    names = [name for own in PAGES_OF.values() for name in own]
    assert sorted(names) == sorted([*SCHEMES, COMBINE])


def test_the_overview_has_the_rows_of_the_pages() -> None:
    table = re.findall(r"^\| \[`(\w+)`\]\(([\w-]+)\.md\) (\|.*)$", scheme_page("README"), re.M)
    assert [name for name, *_ in table] == [*SCHEMES, COMBINE]
    assert all(PAGES_OF[page][name] == f"| `{name}` {row}" for name, page, row in table)


def test_every_experiment_with_a_scheme_stands_on_a_page() -> None:
    pages = "".join(scheme_page(name) for name in SCHEME_PAGES)
    assert [name for name in OF_SCHEMES if f"experiments/{name}.toml" not in pages] == []


# -- Flower ------------------------------------------------------------------------------------


def uses_what_flower_does_not_promise(path: Path) -> bool:
    """Whether a module imports more of Flower than its public packages."""
    public = {"flwr", "flwr.app", "flwr.serverapp", "flwr.clientapp"}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return any(name.partition(".")[0] == "flwr" and name not in public for name in names)


def test_one_room_alone_depends_on_flowers_version_and_its_modules_are_listed() -> None:
    code = REPOSITORY / "fedmoe_app"
    using = {
        path.relative_to(code).as_posix()
        for path in code.rglob("*.py")
        if uses_what_flower_does_not_promise(path)
    }
    room = {path.relative_to(code).as_posix() for path in (code / "flower").glob("[!_]*.py")}
    assert using <= room
    listed = re.findall(r"fedmoe_app/(flower/\w+\.py)", text_of(DOCS / "reference" / "flower.md"))
    assert set(listed) == room
