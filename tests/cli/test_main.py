import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from fedmoe_app.cli import main
from fedmoe_app.launch import flower, runner
from fedmoe_app.launch.connections import write_connection
from fedmoe_app.launch.launched import Launch, read_launch
from fedmoe_app.results.events import ResultsAt, TableFollows
from fedmoe_app.results.folder import ResultsError, RunFolder
from tests.conftest import REPOSITORY, flat_config
from tests.homes import link_cache

LINE = {
    "round": 0,
    "status": "ok",
    "loss": 2.0,
    "accuracy": 0.125,
    "metric": "accuracy",
    "train_loss": None,
    "num_clients": 0,
    "bytes_up": 0,
    "bytes_down": 0,
    "clients": [],
    "failures": [],
    "routing": {"count": []},
    "seconds": {"round": 1.0},
}
COMPLETED = flower.Outcome("42", "finished:completed", "")

Fake = Callable[..., flower.Outcome]


class Call:
    """What the command line asked the launcher for."""

    overrides: dict[str, Any]
    simulation: flower.Simulation | None = None


@pytest.fixture
def fedmoe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str], str]]:
    """Call the command line; returns exit code, lines printed, error."""
    link_cache(tmp_path)
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path))
    monkeypatch.chdir(REPOSITORY)

    def call(*arguments: str) -> tuple[int, list[str], str]:
        monkeypatch.setattr(sys, "argv", ["fedmoe", *arguments])
        with pytest.raises(SystemExit) as end:
            main.main()
        captured = capsys.readouterr()
        code = end.value.code
        return int(code or 0), captured.out.splitlines(), captured.err

    return call


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Call:
    """A launcher that writes the first metrics line and completes."""
    seen = Call()

    def fake(
        app: Path, overrides: dict[str, Any], simulation: flower.Simulation, output: flower.Output
    ) -> flower.Outcome:
        seen.overrides, seen.simulation = overrides, simulation
        output.show("round 1/6: 8 clients train")
        _folder(overrides).append(LINE)
        return COMPLETED

    monkeypatch.setattr(flower, "run_simulation", fake)
    return seen


def _folder(overrides: dict[str, Any]) -> RunFolder:
    return RunFolder(Path(overrides["output-dir"]) / overrides["run-name"])


def test_a_run_ends_with_the_table_and_the_folder(
    fedmoe: Callable[..., Any], simulated: Call, tmp_path: Path
) -> None:
    code, lines, error = fedmoe("run", "--name", "a")
    assert (code, error) == (0, "")
    assert "round 1/6: 8 clients train" in lines
    assert any("0.1250" in line for line in lines)
    assert lines[-1] == f"results: {tmp_path / 'results' / 'a'}"
    assert (tmp_path / "results" / "a" / "flower.log").is_file()
    assert simulated.simulation == flower.Simulation(8, 1, 0.0)


def test_options_reach_the_run_config(
    fedmoe: Callable[..., Any], simulated: Call, tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    file.write_text('scheme = "fedprox"\n[train]\nthreads = 2\n')
    options = ["-c", str(file), "-c", "data.alpha=0.25", "--clients", "3", "--rounds", "2"]
    code, _, error = fedmoe("run", ".", *options, "--scheme", "fedmoe", "--output", str(tmp_path))
    assert (code, error) == (0, "")
    assert simulated.overrides["scheme"] == "fedmoe"
    assert simulated.overrides["num-server-rounds"] == 2
    assert simulated.overrides["data.alpha"] == 0.25
    assert simulated.overrides["output-dir"] == str(tmp_path)
    assert simulated.overrides["run-name"].startswith("fedmoe-2")
    assert simulated.simulation == flower.Simulation(3, 2, 0.0)


def test_the_table_of_the_server_app_is_not_printed_twice(
    fedmoe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "results" / "a"

    def fake(*arguments: Any) -> flower.Outcome:
        _folder(arguments[1]).append(LINE)
        output = arguments[-1]
        output.hear(TableFollows())
        output.show(" round  loss  accuracy  bytes up  bytes down  clients  failed  seconds")
        output.hear(ResultsAt(str(folder)))
        for line in (f"12:00:01 {ResultsAt(str(folder)).text}", "last words"):
            output.show(line)
        return COMPLETED

    monkeypatch.setattr(flower, "run_simulation", fake)
    _, lines, _ = fedmoe("run", "--name", "a")
    assert sum("bytes up" in line for line in lines) == 1
    assert lines[-2:] == ["last words", f"results: {folder}"]


def test_a_failed_run_is_one_paragraph_and_exit_code_one(
    fedmoe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = flower.Outcome("42", "finished:failed", "all clients failed")
    monkeypatch.setattr(flower, "run_simulation", lambda *_: failed)
    code, lines, error = fedmoe("run")
    assert code == 1
    assert error.startswith("error: the run ended as finished:failed: all clients failed (whole")
    assert error.count("\n") == 1
    assert not any("results:" in line for line in lines)


def test_an_interruption_ends_with_130(
    fedmoe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> flower.Outcome:
        raise KeyboardInterrupt

    monkeypatch.setattr(flower, "run_simulation", interrupt)
    code, lines, _ = fedmoe("run")
    assert code == 130
    assert lines[-1].startswith("interrupted; log: ")


def test_the_page_of_an_interrupted_run_no_longer_says_that_it_runs(
    fedmoe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(app: Path, overrides: dict[str, Any], *_: Any) -> flower.Outcome:
        folder = _folder(overrides)
        folder.append(LINE)
        folder.write_config(overrides)
        (folder.path / "report.html").write_text("running")
        raise KeyboardInterrupt

    monkeypatch.setattr(flower, "run_simulation", interrupt)
    assert fedmoe("run", "--output", str(tmp_path), "--name", "a")[0] == 130
    assert "after round 0 of 6: stopped" in (tmp_path / "a" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "num-server-rounds = 0: Input should be greater than or equal to 1"),
        (["-c", "data.alfa=1"], "data.alfa: unknown key; choose one of source, "),
        (["-c", 'data.alpha="x"'], 'data.alpha = "x": Input should be a valid number'),
        (["--clients", "1"], "--clients 1: the run config asks for min-clients = 2"),
        (
            ["-c", "data.alpha=1/2"],
            "as a decimal number; type -c data.alpha=0.5",
        ),
        ([".", "-c", "data.alpha", "=", "0.1"], "without spaces; type -c data.alpha=0.1"),
        (["fedalign"], "type fedmoe run . --scheme fedalign"),
        (["mine.toml"], "type fedmoe run . -c mine.toml"),
        ([".", "a", "b"], "fedmoe run b: unexpected"),
        (["/nowhere"], "no pyproject.toml"),
        ([".", "lab", "--clients", "2"], "leave out CONNECTION"),
        (["--name", "a/b"], "plain folder name"),
        (["--scheme", "fedalgin"], 'scheme = "fedalgin": unknown; choose one of fedavg, '),
        (["--resume", "/nowhere"], "--resume /nowhere: no such folder"),
        (["--output", "/proc/no"], 'output-dir = "/proc/no": No such file or directory; name a'),
        (["--output", str(REPOSITORY / "README.md")], 'README.md": File exists; name a folder'),
    ],
)
def test_a_wrong_value_stops_before_anything_starts(
    fedmoe: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(flower, "run_simulation", lambda *_: pytest.fail("started"))
    code, _, error = fedmoe("run", *arguments)
    assert code == 2
    assert error.startswith("error: ")
    assert message in error


def test_a_missing_data_file_stops_before_anything_starts(
    fedmoe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower, "run_simulation", lambda *_: pytest.fail("started"))
    code, lines, error = fedmoe("run", "-c", 'data.source="no.jsonl"')
    assert (code, lines) == (2, [])
    assert error.startswith('error: data.source = "no.jsonl": there is no such file')


def test_an_unknown_scheme_is_not_sent_to_a_superlink(
    fedmoe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    write_connection(tmp_path / "flwr", "lab", "far:1")
    monkeypatch.setattr(flower, "run_connected", lambda *_: pytest.fail("started"))
    code, _, error = fedmoe("run", ".", "lab", "--scheme", "fedalgin")
    assert code == 2
    assert "choose one of fedavg" in error


def test_a_folder_without_a_checkpoint_cannot_be_resumed(
    fedmoe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(flower, "run_simulation", lambda *_: pytest.fail("started"))
    code, _, error = fedmoe("run", "--resume", str(tmp_path))
    assert code == 2
    assert f"--resume {tmp_path}: no checkpoint there" in error


def test_a_run_without_a_round_has_no_table(fedmoe: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    code, lines, error = fedmoe("table", str(tmp_path))
    assert (code, lines) == (1, [])
    assert "no round is done yet" in error


def test_what_the_system_refuses_is_one_line(fedmoe: Callable[..., Any]) -> None:
    code, _, error = fedmoe("partition", "--output", "/proc/no/picture.png")
    assert code == 1
    assert error.startswith("error: /proc/no")
    assert error.count("\n") == 1
    assert "Errno" not in error


def test_a_used_name_is_refused(fedmoe: Callable[..., Any], simulated: Call) -> None:
    assert fedmoe("run", "--name", "a")[0] == 0
    code, _, error = fedmoe("run", "--name", "a")
    assert code == 2
    assert "choose another name with --name" in error


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: int
) -> None:
    words = ["table", str(tmp_path)]
    words.insert(place, "--debug")
    monkeypatch.setattr(sys, "argv", ["fedmoe", *words])
    with pytest.raises(ResultsError):
        main.main()


def test_an_unknown_connection_names_those_there_are(
    fedmoe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    write_connection(tmp_path / "flwr", "lab", "far:1")
    code, _, error = fedmoe("run", ".", "lap")
    assert code == 1
    assert "connection 'lap': not in " in error
    assert "connections there: lab" in error


def test_a_connection_elsewhere_keeps_its_own_result_folder(
    fedmoe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    write_connection(tmp_path / "flwr", "lab", "far:1")
    seen = {}

    def fake(app: Path, overrides: dict[str, Any], *_: Any) -> flower.Outcome:
        seen.update(overrides)
        _[-1].hear(ResultsAt("/there/a"))
        return COMPLETED

    monkeypatch.setattr(flower, "run_connected", fake)
    code, lines, _ = fedmoe("run", ".", "lab", "--name", "a")
    assert code == 0
    assert (seen["output-dir"], seen["run-name"]) == ("", "a")
    assert lines[-1] == "results: /there/a"


def test_table_and_plot_of_a_run(fedmoe: Callable[..., Any], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a")
    folder.append(LINE)
    code, lines, _ = fedmoe("table", str(folder.path))
    assert code == 0
    assert any("0.1250" in line for line in lines)
    code, lines, _ = fedmoe("plot", str(folder.path))
    assert (code, lines) == (0, [str(folder.path / "accuracy.png")])


def test_screen_keeps_the_last_result_line(capsys: pytest.CaptureFixture[str]) -> None:
    screen = runner.Screen()
    for event, line in (
        (ResultsAt("/a"), "results: /a"),
        (TableFollows(), "bytes up  bytes down"),
        (ResultsAt("/a"), "results: /a"),
    ):
        screen.hear(event)
        screen(line)
    assert screen.results == "/a"
    assert capsys.readouterr().out == "results: /a\nbytes up  bytes down\n"


def test_cpus_and_gpus_of_a_simulated_node(fedmoe: Callable[..., Any], simulated: Call) -> None:
    cpus = os.cpu_count() or 1
    code, _, error = fedmoe("run", ".", "--clients", "2", "--cpus", str(cpus))
    assert (code, error) == (0, "")
    assert simulated.simulation == flower.Simulation(2, cpus, 0.0)
    code, _, error = fedmoe("run", ".", "--cpus", str(cpus + 1))
    assert code == 2
    assert f"--cpus {cpus + 1}: this machine has {cpus} CPUs" in error


# -- resume ------------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The folder of a run of five simulated clients that has ended after round 0."""
    folder = RunFolder(tmp_path / "results" / "old")
    folder.write_config(flat_config(**{"seed": 9, "min-clients": 3, "run-name": "old"}))
    folder.append(LINE)
    (folder.path / "checkpoints" / "round-00000").mkdir(parents=True)
    (folder.path / "status.json").write_text('{"state": "failed", "num_partitions": 5}')
    (folder.path / "flower.log").write_text("first part")
    return folder.path


def test_a_run_is_resumed_with_its_config_and_clients(
    fedmoe: Callable[..., Any], stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Call()

    def fake(
        app: Path, overrides: dict[str, Any], simulation: flower.Simulation, output: flower.Output
    ) -> flower.Outcome:
        seen.overrides, seen.simulation = overrides, simulation
        output.log.write("second part")
        return COMPLETED

    monkeypatch.setattr(flower, "run_simulation", fake)
    code, lines, _ = fedmoe("run", "--resume", str(stopped), "--rounds", "8")
    assert (code, lines[-1]) == (0, f"results: {stopped}")
    assert seen.simulation is not None
    assert seen.simulation.num_clients == 5
    assert (seen.overrides["seed"], seen.overrides["num-server-rounds"]) == (9, 8)
    assert seen.overrides["resume"] == str(stopped)
    assert (stopped / "flower.log").read_text() == "first part"
    assert (stopped / "flower-2.log").read_text() == "second part"


def test_a_failed_run_ends_with_how_to_go_on(
    fedmoe: Callable[..., Any], stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = flower.Outcome("42", "finished:failed", "too few nodes")
    monkeypatch.setattr(flower, "run_simulation", lambda *_: failed)
    code, _, error = fedmoe("run", "--resume", str(stopped))
    assert code == 1
    assert error.splitlines()[-1] == f"to go on: fedmoe resume {stopped}"


def test_a_run_is_resumed_by_its_name_as_it_was_started(
    fedmoe: Callable[..., Any], stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Call()

    def fake(
        app: Path, overrides: dict[str, Any], simulation: flower.Simulation, output: flower.Output
    ) -> flower.Outcome:
        seen.overrides, seen.simulation = overrides | {"app": str(app)}, simulation
        output.show(f"12:00:00 results: {stopped}")
        return COMPLETED

    monkeypatch.setattr(flower, "run_simulation", fake)
    launch = {"app": str(REPOSITORY), "clients": 5, "gpus": 0.0, "cpus": 2}
    (stopped / "launch.json").write_text(json.dumps(launch))
    monkeypatch.chdir("/")
    code, lines, error = fedmoe("resume", "old", "--rounds", "8")
    assert (code, error, lines[-1]) == (0, "", f"results: {stopped}")
    assert seen.simulation == flower.Simulation(5, 2, 0.0)
    assert seen.overrides["resume"] == str(stopped)
    assert (seen.overrides["seed"], seen.overrides["num-server-rounds"]) == (9, 8)
    assert seen.overrides["app"] == str(REPOSITORY)
    assert read_launch(stopped) == Launch(str(REPOSITORY), "", 5, 0.0, 2)


def test_a_run_on_a_connection_is_resumed_there(
    fedmoe: Callable[..., Any],
    stopped: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    write_connection(tmp_path / "flwr", "lab", "127.0.0.1:1")
    write_connection(tmp_path / "flwr", "other", "127.0.0.1:2")
    (tmp_path / "flwr" / "config.toml").write_text(
        '[superlink.lab]\naddress = "127.0.0.1:1"\n[superlink.other]\naddress = "127.0.0.1:2"\n'
    )
    asked = []

    def fake(app: Path, overrides: dict[str, Any], connection: Any, output: Any) -> flower.Outcome:
        asked.append((connection.name, overrides["resume"]))
        return COMPLETED

    monkeypatch.setattr(flower, "run_connected", fake)
    launch = {"app": str(REPOSITORY), "connection": "lab"}
    (stopped / "launch.json").write_text(json.dumps(launch))
    assert fedmoe("resume", "old")[0] == 0
    assert fedmoe("resume", str(stopped), "other")[0] == 0
    assert asked == [("lab", str(stopped)), ("other", str(stopped))]
    assert fedmoe("resume", "old", "--clients", "2")[0] == 2


def test_of_a_run_that_flower_started_the_nodes_must_be_named(
    fedmoe: Callable[..., Any], stopped: Path
) -> None:
    told = {"state": "failed", "num_partitions": 5, "simulated": False}
    (stopped / "status.json").write_text(json.dumps(told))
    code, _, error = fedmoe("resume", "old")
    assert code == 2
    assert "name the connection: fedmoe resume RUN CONNECTION" in error


def test_how_a_run_was_started_lies_in_its_folder(
    fedmoe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fake(app: Path, overrides: dict[str, Any], *rest: Any) -> flower.Outcome:
        folder = _folder(overrides)
        folder.append(LINE)
        rest[-1].show(f"12:00:00 results: {folder.path}")
        return COMPLETED

    monkeypatch.setattr(flower, "run_simulation", fake)
    assert fedmoe("run", "--name", "a", "--clients", "3")[0] == 0
    launch = read_launch(tmp_path / "results" / "a")
    assert launch == Launch(str(REPOSITORY), clients=3)


# -- help --------------------------------------------------------------------------------------


def test_every_command_has_an_example_and_every_option_a_line() -> None:
    commands = typer.main.get_command(main.app).commands  # type: ignore[attr-defined]
    shown = {name: command for name, command in commands.items() if not command.hidden}
    for name, command in shown.items():
        assert (command.epilog or "").startswith(f"Example: fedmoe {name}"), name
        options = [each for each in command.params if each.param_type_name == "option"]
        silent = [option.name for option in options if not option.help]
        assert silent == [], name
