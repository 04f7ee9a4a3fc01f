import json
from datetime import datetime
from pathlib import Path

import pytest

from fedmoe_app import ConfigError
from fedmoe_app.config.overrides import (
    app_defaults,
    check,
    read_overrides,
    with_absolute_paths,
    with_output_dir,
    with_run_name,
    with_template,
)
from fedmoe_app.launch.resume import clients_to_resume, config_to_resume
from fedmoe_app.results.folder import RunFolder
from tests.conftest import REPOSITORY, flat_config

NOW = datetime(2026, 1, 2, 3, 4, 5)


def test_pairs_have_the_types_of_toml() -> None:
    text = 'a=1 data.alpha=0.5 b=true scheme="x y" args=\'{"lam": 0.5}\''
    expected = {"a": 1, "data.alpha": 0.5, "b": True, "scheme": "x y", "args": '{"lam": 0.5}'}
    assert read_overrides([text]) == expected


def test_later_items_win_over_files_and_pairs(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('seed = 1\nscheme = "fedprox"\n[data]\nalpha = 0.1\n')
    given = read_overrides(["seed=7 data.alpha=9.0", str(file), "seed=2"])
    assert given == {"seed": 2, "data.alpha": 0.1, "scheme": "fedprox"}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("scheme=fedavg", r"scheme=fedavg: strings stand in quotes; type -c 'scheme=\"fedavg\"'"),
        ("seed", r"'seed': cannot read 'seed'"),
        ("seed=1 , b=2", r"cannot read ','"),
        ("seed=[1]", r"seed=\[1\]: give a number"),
        ("nowhere.toml", r"nowhere\.toml: no such file"),
    ],
)
def test_what_cannot_be_read_is_named(item: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_overrides([item])


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        read_overrides([str(tmp_path / "bad.toml")])


def test_defaults_are_those_of_the_app() -> None:
    assert app_defaults(REPOSITORY)["data.source"] == "embedded"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no pyproject.toml"), ("a = = 1", "not TOML"), ("[project]", "tool.flwr.app.config")],
)
def test_a_folder_without_an_app_is_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content:
        (tmp_path / "pyproject.toml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        app_defaults(tmp_path)


def test_paths_that_exist_become_absolute(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("")
    flat = {"data.source": "train.jsonl", "model.name": "qwen3moe-tiny", "data.test-source": ""}
    assert with_absolute_paths(flat, tmp_path) == flat | {
        "data.source": str(tmp_path / "train.jsonl")
    }


def test_each_of_several_files_becomes_absolute(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.csv"):
        (tmp_path / name).touch()
    flat = {"data.source": "a.jsonl, b.csv,~nobody/c.csv", "data.test-source": "b.csv"}
    assert with_absolute_paths(flat, tmp_path) == {
        "data.source": f"{tmp_path}/a.jsonl,{tmp_path}/b.csv,~nobody/c.csv",
        "data.test-source": f"{tmp_path}/b.csv",
    }


def test_a_list_stays_a_list_and_a_path_with_commas_whole(tmp_path: Path) -> None:
    for name in ("a.csv", "b, v2.csv", "[1].csv"):
        (tmp_path / name).touch()
    (tmp_path / "labels.txt").touch()
    flat = {
        "data.source": '["a.csv", "b, v2.csv", "not-there.csv"]',
        "data.test-source": "b, v2.csv",
        "data.label-names-file": "labels.txt",
    }
    assert with_absolute_paths(flat, tmp_path) == {
        "data.source": f'["{tmp_path}/a.csv", "{tmp_path}/b, v2.csv", "not-there.csv"]',
        "data.test-source": f"{tmp_path}/b, v2.csv",
        "data.label-names-file": f"{tmp_path}/labels.txt",
    }
    assert with_absolute_paths({"data.source": "[1].csv"}, tmp_path) == {
        "data.source": f"{tmp_path}/[1].csv"
    }


def test_files_in_a_folder_with_a_comma_become_a_list(tmp_path: Path) -> None:
    folder = tmp_path / "my data, v2"
    folder.mkdir()
    for name in ("a.csv", "b.csv"):
        (folder / name).touch()
    assert with_absolute_paths({"data.source": "a.csv,b.csv"}, folder) == {
        "data.source": f'["{folder}/a.csv", "{folder}/b.csv"]'
    }


def test_what_is_not_there_stays_as_it_was_typed(tmp_path: Path) -> None:
    flat = {"data.source": "/data/my data, v2/train.jsonl", "data.label-names-file": "x.txt"}
    assert with_absolute_paths(flat, tmp_path) == flat


def test_the_home_folder_is_that_of_who_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.csv").touch()
    (tmp_path / "model").mkdir()
    flat = {
        "data.source": "~/a.csv,~/a.csv",
        "data.test-source": "~/a.csv",
        "model.name": "~/model",
    }
    assert with_absolute_paths(flat, Path("/nowhere")) == {
        "data.source": f"{tmp_path}/a.csv,{tmp_path}/a.csv",
        "data.test-source": f"{tmp_path}/a.csv",
        "model.name": f"{tmp_path}/model",
    }


@pytest.mark.parametrize(
    ("key", "word"),
    [("data.source", "embedded"), ("data.source", "nodes"), ("model.name", "olmoe-tiny")],
)
def test_words_and_presets_are_no_paths_even_where_a_folder_is_called_so(
    tmp_path: Path, key: str, word: str
) -> None:
    (tmp_path / word).mkdir()
    assert with_absolute_paths({key: word}, tmp_path) == {key: word}


def test_a_model_folder_becomes_absolute(tmp_path: Path) -> None:
    (tmp_path / "my,model").mkdir()
    flat = with_absolute_paths({"model.name": "my,model"}, tmp_path)
    assert flat == {"model.name": f"{tmp_path}/my,model"}


def test_a_template_travels_as_its_text(tmp_path: Path) -> None:
    text = "{% for message in messages %}ä{% endfor %}"
    (tmp_path / "own.jinja").write_text(text, encoding="utf-8-sig")
    for value in ("own.jinja", str(tmp_path / "own.jinja"), text):
        flat = with_absolute_paths({"data.chat-template": value}, tmp_path)
        assert flat == with_template(flat, tmp_path) == {"data.chat-template": text}
    for word in ("auto", "always", "never", "own.txt"):
        (tmp_path / word).touch()
        assert with_template({"data.chat-template": word}, tmp_path) == {"data.chat-template": word}
    with pytest.raises(ConfigError, match=r'"no\.jinja": .* cannot be read \(No such file'):
        with_template({"data.chat-template": "no.jinja"}, tmp_path)


def test_run_name_is_scheme_and_time() -> None:
    assert with_run_name({"scheme": "fedavg", "run-name": ""}, NOW)["run-name"] == (
        "fedavg-20260102-030405"
    )
    assert with_run_name({"scheme": "my.mod:Cls", "run-name": ""}, NOW)["run-name"] == (
        "my.mod-Cls-20260102-030405"
    )
    assert with_run_name({"scheme": "fedavg", "run-name": "x"}, NOW)["run-name"] == "x"


def test_output_dir_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path))
    assert with_output_dir({"output-dir": ""})["output-dir"] == str(tmp_path / "results")
    assert with_output_dir({"output-dir": "/a"})["output-dir"] == "/a"


def test_fewer_nodes_than_min_clients_are_refused() -> None:
    flat = flat_config(**{"min-clients": 3})
    assert check(flat, 3).min_clients == 3
    assert check(flat, None).min_clients == 3
    with pytest.raises(ConfigError, match=r"--clients 2: .* min-clients = 3"):
        check(flat, 2)


@pytest.mark.parametrize("names", ["a", "a, b, a", "['a', 'b']", '["a", ""]'])
def test_names_that_are_no_classes_are_refused_with_the_config(names: str) -> None:
    with pytest.raises(ConfigError, match="run config: data.label-names = "):
        check(flat_config(**{"data.label-names": names}), None)


def test_a_run_goes_on_with_its_own_config_unless_told_otherwise(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.write_config({"seed": 7, "data.alpha": 0.1, "run-name": "run"})
    flat = {"seed": 7, "data.alpha": 0.1, "run-name": "run"}
    assert config_to_resume(run.path) == flat | {"resume": str(run.path)}
    checkpoint = run.path / "checkpoints" / "round-00002"
    assert config_to_resume(checkpoint) == flat | {"resume": str(checkpoint)}
    # On a SuperLink of another machine it is the server that looks.
    assert config_to_resume(tmp_path / "elsewhere") == {"resume": str(tmp_path / "elsewhere")}


def test_a_run_goes_on_with_as_many_simulated_clients(tmp_path: Path) -> None:
    assert clients_to_resume(tmp_path, 3) == 3
    assert clients_to_resume(tmp_path, None) is None
    status = {"state": "failed", "num_partitions": 5}
    (tmp_path / "status.json").write_text(json.dumps(status))
    assert clients_to_resume(tmp_path, None) == clients_to_resume(tmp_path, 5) == 5
    with pytest.raises(ConfigError, match="--clients 3: the run that is to go on has 5"):
        clients_to_resume(tmp_path, 3)
