"""Hostile names and labels through every command, page, table, picture and log of the app.

A new command must be named in ``COMMANDS``; whatever else is printed, drawn or written elsewhere
than in ``fedmoe_app/shown`` is found in the source.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import fedmoe_app
from fedmoe_app import read_metrics, run_in_process
from fedmoe_app.cli import main
from fedmoe_app.compare import compare, tables
from fedmoe_app.compare.folder import ComparisonFolder
from fedmoe_app.compare.page import comparison_page
from fedmoe_app.compare.reading import read_comparison
from fedmoe_app.launch.live import LiveScreen, Screen
from fedmoe_app.results.events import Replied, RoundStarted
from fedmoe_app.results.folder import RunFolder
from fedmoe_app.results.status import STATUS_FILE
from fedmoe_app.shown.terminal import Console
from fedmoe_app.shown.text import visible
from tests.compare.fakes import lines, plan_and_outcomes
from tests.conftest import REPOSITORY, flat_config
from tests.homes import link_cache
from tests.report.html.runs import line, write_run
from tests.shown.hostile import ACTING, HOSTILE, ORDINARY

# All of one kind of trouble in a name that a folder or a file can have.
NAME = "_[x] $y_{$ :smile: \x1b[31m\u202e'\"<b> =1|2 שלום 中"
FILE = "$y_{$ (x) :smile: \x1b[31m\u202e <b> שלום.jsonl"
SHOWN = NAME.replace("\x1b", r"\x1b").replace("\u202e", r"\u202e")
Run = Callable[..., str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a model, a run that lost a client, under hostile names."""
    from transformers import MixtralConfig

    home = tmp_path_factory.mktemp("home")
    labels = [text for text in (*HOSTILE, *ORDINARY) if text.strip() == text]
    rows = [{"text": f"text {i}", "label": labels[i % len(labels)]} for i in range(5 * len(labels))]
    (home / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": str(home / FILE), "partition": "iid", "max-length": 8}
    (home / "data.toml").write_text(tomli_w.dumps({"data": data}))
    MixtralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, vocab_size=64,
    ).save_pretrained(home / NAME / "model")  # fmt: skip
    run_in_process(
        flat_config(
            **{
                "num-server-rounds": 1, "output-dir": str(home), "run-name": NAME + "run",
                "train.max-steps": 1, **{f"data.{key}": value for key, value in data.items()},
            }
        ),
        3,
        [
            {"partition-id": 0, "num-partitions": 2},
            {"partition-id": 1, "num-partitions": 2},
            {"partition-id": 2, "data-path": f"/{NAME}\n12:00:00 results: forged.jsonl"},
        ],
    )  # fmt: skip
    _make_worse(home / f"{NAME}run")
    return home


def _make_worse(run: Path) -> None:
    """Put hostile names where this app writes none, but a file that is read again may have them."""
    entries = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    changed = [json.dumps(entry | {"metric": NAME}) + "\n" for entry in entries]
    (run / "metrics.jsonl").write_text("".join(changed))
    status = json.loads((run / STATUS_FILE).read_text())
    worse = {"scheme": NAME, "error": NAME, "state": "failed"}
    (run / STATUS_FILE).write_text(json.dumps(status | worse))


@pytest.fixture
def fedmoe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """Call the command line; returns what both outputs got."""
    link_cache(tmp_path / NAME)
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path / NAME))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    monkeypatch.chdir(REPOSITORY)

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["fedmoe", *arguments])
        with pytest.raises(SystemExit):
            main.main()
        captured = capfd.readouterr()
        return captured.out + captured.err

    return call


# Arguments of each command, and what its output must hold. {run}, {home} and {new} are folders.
COMMANDS: dict[str, tuple[list[str], str]] = {
    "table": (["{run}"], "_[x] $y_{$"),
    "status": (["{run}"], f"scheme    {SHOWN}"),
    "plot": (["{run}"], f"{SHOWN}run/routing.png"),
    "report": (["{run}"], f"{SHOWN}run/report.html"),
    "export": (["{run}", "--output", "{new}"], SHOWN),
    "predict": (["{run}", "{name}"], ""),
    "chat": (["{run}", "--message", "{name}"], 'is for "causal-lm"'),
    "push": (["{run}", "{name}/m", "--dry-run"], "no name of a repository"),
    "carve": (["{home}/{name}", "--output", "{new}"], SHOWN),
    "partition": (
        ["--clients", "2", "-c", "{home}/data.toml"],
        "[/closed]",
    ),
    "inspect": (
        ["{home}/{name}/model", "-c", "data.task='causal-lm'", "-c", "data.partition='iid'"],
        f"{SHOWN}/model: mixtral",
    ),
    "preview": (["-c", "{home}/data.toml"], "classification"),
    "new": (["{new}"], SHOWN),
    "config": (["{name}"], f"{SHOWN}: unknown key"),
    "doctor": ([], f"{SHOWN}"),
    "resume": (["{run}", "--app", "{home}"], "pyproject.toml"),
    "run": (["--name", "{name}/", "-c", "num-server-rounds=1"], SHOWN[:5]),
    "compare": (["--schemes", "{name}.toml"], f"{SHOWN}.toml: no such file"),
    "certificates": (["{new}", "--nodes", "1", "--host", "localhost"], f"{SHOWN}/ca.crt"),
    "register": (["{home}", "{name}"], "connection '_[x] $y_{$ :smile: \\x1b[31m"),
    "health": (["{name}"], ""),
    "supernode": (["--isolation={name}"], "--isolation"),
    "superexec": (["--plugin-type={name}"], ""),
    "stop": ([], "SuperLink"),
    "flwr": (["{name}"], "No such command"),
    "superlink": (["--isolation={name}"], "--isolation"),
    "hook": ([], "FLWR_HOME"),  # without its argument: it writes into the environment
}


def test_every_command_is_looked_at() -> None:
    found = {command.name or command.callback.__name__ for command in main.app.registered_commands}  # type: ignore[union-attr]
    assert found == COMMANDS.keys(), "add the new command to COMMANDS of this test"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_prints_hostile_names_as_they_are(
    command: str, place: Path, fedmoe: Run, tmp_path: Path
) -> None:
    arguments, wanted = COMMANDS[command]
    names = {"run": f"{place}/{NAME}run", "home": str(place), "new": f"{tmp_path}/new {NAME}",
             "name": NAME}  # fmt: skip
    out = fedmoe(command, *(text.format(**names) for text in arguments))
    flat = "".join(out.split())
    assert "".join(wanted.split()) in flat
    assert not ACTING.search(out), ascii(out)
    assert "Traceback" not in out


def test_files_of_a_run_act_on_no_terminal_and_read_back(place: Path, fedmoe: Run) -> None:
    run = place / f"{NAME}run"
    fedmoe("report", str(run))
    texts = {path.name: path.read_text() for path in run.iterdir() if path.suffix in
             (".jsonl", ".json", ".toml", ".html", ".log")}  # fmt: skip
    assert len(texts) >= 5
    for name, text in texts.items():
        assert not ACTING.search(text), name
    assert tomllib.loads(texts["config.toml"])["run-name"] == f"{NAME}run"
    log = [json.loads(text) for text in texts["log.jsonl"].splitlines()]
    assert {entry["run"] for entry in log} == {f"{NAME}run"}
    failed = next(entry for entry in log if entry["event"] == "failure")
    assert visible(f"/{NAME}") in failed["reason"]
    assert not [entry for entry in log if entry["message"].startswith("results: forged")]
    page = texts["report.html"].partition("<body>")[2]
    assert "<b>" not in page
    assert page.count("</script>") == 3


def test_lines_of_a_run_are_written_so_that_they_read_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / NAME)
    texts = [*HOSTILE, *ORDINARY]
    folder.append({"round": 0, "texts": texts})
    folder.append_samples(0, [{"prompt": text} for text in texts])
    (entry,) = read_metrics(folder.path)
    assert entry["texts"] == texts
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert not ACTING.search((folder.path / name).read_text())


# -- pictures ---------------------------------------------------------------------------------


def texts_of(value: Any) -> Iterator[str]:
    """All texts of a spec."""
    if isinstance(value, str):
        yield value
    for item in (
        value.values()
        if isinstance(value, dict)
        else value
        if isinstance(value, list | tuple)
        else ()
    ):
        yield from texts_of(item)


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The texts of all pictures as they come to the program that draws; none may act."""
    texts: list[str] = []
    real = subprocess.run

    def run(*arguments: Any, **options: Any) -> Any:
        for file in json.loads(options["input"]).get("files", ()):
            for text in texts_of(file["spec"]):
                assert not ACTING.search(text)
                texts.append(text)
        return real(*arguments, **options)

    monkeypatch.setattr("fedmoe_app.shown.pictures.subprocess.run", run)
    yield texts


@pytest.mark.filterwarnings("error")
def test_pictures_of_a_run_and_of_its_data(place: Path, fedmoe: Run, saved: list[str]) -> None:
    assert "png" in fedmoe("plot", str(place / f"{NAME}run"))
    assert any("$y_{$ :smile: \\x1b[31m" in text for text in saved)  # the metric
    saved.clear()
    options = ("-c", f"{place}/data.toml", "-c", "data.partition='dirichlet'")
    assert "png" in fedmoe("partition", *options)
    assert {"$0-$50", "$a_{$", "[/closed]", "-0.5", "_hidden", "العربية"} <= set(saved)


# -- comparisons ------------------------------------------------------------------------------

SCHEMES = (NAME, "[/closed]", "=1+2", "e\u0301", "\u00e9", " ", "x" * 300 + "1", "x" * 300 + "2")
PARTITION = f"natural by {NAME}"


REASON = f"=ValueError: {NAME}"


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of hostile schemes; the last one failed with a hostile reason."""
    path = tmp_path_factory.mktemp("comparison") / NAME
    runs: dict[tuple[str, str, int], Any] = {(s, PARTITION, 1): lines(0.1, 0.5) for s in SCHEMES}
    runs[SCHEMES[-1], PARTITION, 1] = REASON
    plan, outcomes = plan_and_outcomes(runs)
    with ComparisonFolder(path) as folder:
        folder.write_plan(plan)
    for cell in plan.cells[:-1]:
        kept = write_run(path / "cells" / cell.key, [line(0), line(1)], scheme="fedavg", seed=1)
        about = {"scheme": cell.scheme, "partition": PARTITION, "seed": 1, "clients": 2}
        (kept / "cell.json").write_text(json.dumps(about))
    compare.write_report(path, plan, *compare.report(plan, outcomes))
    return path


@pytest.mark.parametrize("form", ["text", "markdown", "latex"])
def test_a_comparison_is_printed_again_as_a_table(comparison: Path, fedmoe: Run, form: str) -> None:
    out = fedmoe("table", str(comparison), "--format", form)
    assert not ACTING.search(out), ascii(out)
    assert "Traceback" not in out
    assert {"text": "| =1+2", "markdown": "| =1+2", "latex": r"\textbar{}2"}[form] in out


def test_a_comparison_reads_back_with_its_names_and_failures(comparison: Path) -> None:
    found = read_comparison(comparison)
    assert found.plan.schemes == SCHEMES
    failed = next(cell for cell in found.plan.cells if cell.key in found.outcomes.failures)
    assert (failed.scheme, failed.partition) == (SCHEMES[-1], PARTITION)
    assert found.outcomes.failures[failed.key] == visible(REASON)


def test_tables_of_a_comparison(comparison: Path) -> None:
    for name in ("comparison.csv", "summary.csv", "comparison.md", "comparison.toml"):
        assert not ACTING.search((comparison / name).read_text()), name
    rows = list(csv.DictReader((comparison / "comparison.csv").open(newline="")))
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "@"))]
    text = (comparison / "comparison.md").read_text()
    table = [row for row in text.splitlines() if row.startswith("|")]
    assert len(table) == 2 + len(SCHEMES)
    assert len({row.replace(r"\|", "").count("|") for row in table}) == 1
    assert any(row.startswith('| " " ') for row in table)


class Terminal(io.StringIO):
    """A terminal that keeps what it is sent."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("file", [io.StringIO(), Terminal()])
def test_the_summary_on_a_terminal_and_in_a_pipe(
    comparison: Path, file: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    found = read_comparison(comparison)
    _, rows, _ = compare.report(found.plan, found.outcomes)
    tables.print_summary(found.plan, rows, NAME, file)
    out = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())  # rich's own colours
    assert not ACTING.search(out)
    assert "[/closed]" in out


@pytest.mark.filterwarnings("error")
def test_pictures_of_a_comparison(comparison: Path, saved: list[str], tmp_path: Path) -> None:
    found = read_comparison(comparison)
    compare.write_report(tmp_path, found.plan, *compare.report(found.plan, found.outcomes))
    names = {text.strip() for text in saved}
    assert {"[/closed]", "=1+2", r"e\u0301", "\u00e9", '" "'} <= names
    assert any(text.startswith("_[x] $y") for text in names)


def test_the_page_of_a_comparison(comparison: Path) -> None:
    page = comparison_page(NAME, read_comparison(comparison))
    assert not ACTING.search(page)
    assert page.count("</script>") == 3
    assert "<b>" not in page.partition("<body>")[2]
    found = re.search(r'id="data">(.*?)</script>', page)
    assert found is not None
    names = [entry["name"] for entry in json.loads(found[1])["charts"]["accuracy-0"]["legend"]]
    assert any(name.startswith("_[x] $y_{$ :smile:") for name in names)
    assert not [name for name in names if ACTING.search(name)]


# -- the screen of a run ----------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_the_screen_of_a_run(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    console = Console(file=terminal, force_terminal=True, width=200, color_system=None)
    sent = [f"12:00:01   client 3 failed: {text}", f"error: {text}"]
    sent = [part for each in sent for part in each.split("\n")]
    with LiveScreen(None, console) as screen:
        screen.hear(RoundStarted(1, 2, 3))
        screen.hear(Replied(text, {}, 1, 3, text))
        for each in sent:
            screen(each)
    for each in sent:
        Screen()(each)
    own = re.sub(r"\x1b\[(\?25[lh]|2K|1A)|\r", "", terminal.getvalue())  # how rich moves about
    assert not ACTING.search(own), ascii(own)
    assert not ACTING.search(capsys.readouterr().out)
    if not ({"\x1b", "\t", "\r"} & set(text)):  # colours go, and tabs are spaces there
        assert visible(sent[-1]) in own


# -- the source -------------------------------------------------------------------------------

PACKAGE = Path(fedmoe_app.__file__).parent
# Nothing of these may be used outside fedmoe_app/shown: its function is to be used instead.
BANNED_CALLS = {
    "print": "terminal.say",
    "typer.echo": "terminal.say",
    "click.echo": "terminal.say",
    "sys.stdout.write": "terminal.say",
    "sys.stderr.write": "terminal.say",
    "csv.writer": "tables.csv_text",
    "csv.DictWriter": "tables.csv_text",
    "logging.Formatter": "logs.LineFormatter",
}
BANNED_METHODS = {
    "savefig": "pictures.save",
    **{f"vegalite_to_{kind}": "pictures.save" for kind in ("png", "svg", "pdf", "html", "url")},
}
BANNED_IMPORTS = {
    "rich.console.Console": "terminal.Console",
    "rich.table.Table": "terminal.Table",
    "rich.text.Text": "terminal.literal",
    "rich.print": "terminal.say",
    "rich.markup": "terminal.literal",
    "rich.panel": "terminal.literal",
    "matplotlib.pyplot": "pictures.save",
    "vl_convert": "pictures.save",
    "altair": "pictures.save",
    "builtins.print": "terminal.say",
}


def dotted(node: ast.expr) -> str:
    """Return ``a.b.c`` of a name or of attributes of one; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if isinstance(node, ast.Attribute) and inner else ""


def uses(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Yield line, what is used there, and the function that is meant for it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if better := BANNED_CALLS.get(name) or BANNED_METHODS.get(method):
                yield node.lineno, name or method, better
        elif isinstance(node, ast.ImportFrom | ast.Import):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                name = f"{module}{alias.name}"
                parents = [name, name.rpartition(".")[0]]
                if better := next((BANNED_IMPORTS[n] for n in parents if n in BANNED_IMPORTS), ""):
                    yield node.lineno, name, better


def test_texts_leave_the_app_through_shown_only() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {what}: use fedmoe_app.shown.{better}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if "shown" not in path.relative_to(PACKAGE).parts
        for number, what, better in uses(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "print('x')", "import typer\ntyper.echo(x)", "import sys\nsys.stdout.write(x)",
        "figure.savefig('a.png')", "v.vegalite_to_png(s)", "import vl_convert",
        "import csv\ncsv.writer(file)",
        "from rich.console import Console", "from rich.table import Column, Table",
        "import rich.markup", "from rich.panel import Panel", "from rich import print",
        "import logging\nhandler.setFormatter(logging.Formatter('x'))",
    ],
)  # fmt: skip
def test_the_look_at_the_source_finds_what_it_should(source: str) -> None:
    assert list(uses(ast.parse(source)))
