"""What is refused before a SuperLink is started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedmoe_app import SCHEMES, DataError, Run, find_moe_layers, make_scheme
from fedmoe_app.config.names import (
    ADAPTERS_ONLY,
    COMBINE,
    EMBEDDED_CLASSES,
    EMBEDDED_ROWS,
    PRESET_CLASSES,
    PRESET_EXPERTS,
    PRESET_NAMES,
    SCHEME_NAMES,
)
from fedmoe_app.config.parse import check_labels_known
from fedmoe_app.data import sources
from fedmoe_app.data.corpus import LIBRARIES, TRAIN_PER_CLASS
from fedmoe_app.data.tokenizer import LABEL_TOKENS
from fedmoe_app.launch.preflight import check_scheme_name, check_simulated, check_sources
from fedmoe_app.moe.loading import PRESETS, LoadSpec, empty_model
from fedmoe_app.tasks.setup import check_setup
from tests.conftest import flat_config, make_config
from tests.data.chat_templates import GEMMA, messages


def write_rows(path: Path, count: int = 8) -> Path:
    rows = [{"body": f"text {i}", "kind": "ab"[i % 2]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def own_data(path: Path, **overrides: bool | float | int | str) -> dict[str, object]:
    columns = {"data.text-field": "body", "data.label-field": "kind", "data.partition": "iid"}
    return {"data.source": str(path)} | columns | overrides


def test_the_names_known_without_torch_are_those_of_the_registries() -> None:
    assert (*SCHEMES, COMBINE) == SCHEME_NAMES
    assert tuple(PRESETS) == PRESET_NAMES


def test_what_ships_with_the_package_is_taken_without_importing_torch() -> None:
    flat = flat_config(scheme="fcmoe")
    code = (
        "import sys; from fedmoe_app.config.parse import parse_run_config; "
        "from fedmoe_app.launch.preflight import check_simulated; "
        f"check_simulated(parse_run_config({flat!r}), 8); "
        "print([name for name in ('torch', 'datasets', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_files_that_fit_are_taken(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl")
    check_simulated(make_config(**own_data(path, **{"data.test-source": str(path)})), 4)


def test_a_client_list_is_nothing_for_simulated_nodes() -> None:
    config = make_config(**{"client-list": "/keys/clients.toml"})
    with pytest.raises(ValueError, match='client-list = "/keys/clients.toml": simulated nodes'):
        check_simulated(config, 8)
    with pytest.raises(ValueError, match="client-list = .*must be an absolute path"):
        make_config(**{"client-list": "clients.toml"})


@pytest.mark.parametrize("name", ["fedalgin", "package.module"])
def test_an_unknown_scheme_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f'"{name}": unknown; choose one of fedavg, .*combine'):
        check_simulated(make_config(scheme=name), 8)


def test_a_class_of_the_user_is_imported_here_but_not_for_a_superlink_elsewhere() -> None:
    config = make_config(scheme="no_such_package.module:Mine")
    with pytest.raises(ValueError, match="cannot be imported.*No module named 'no_such_package'"):
        check_simulated(config, 8)
    check_scheme_name(config.scheme)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"scheme-args": '{"lam": 1}'}, "scheme-args = .*only for your own scheme"),
        ({"scheme": "combine", "combine.loss": "pflmoe"}, 'combine.loss = "pflmoe": choose one of'),
        ({"model.name": "qwen3moe-tinny"}, 'model.name = "qwen3moe-tinny": not a preset'),
        ({"data.source": "nodes"}, "simulated nodes bring no data of their own"),
        (
            {"data.source": "/no/such/file.jsonl"},
            'data.source = "/no/such/file.jsonl": there is no such file',
        ),
        (
            {"data.test-source": "/no/test.csv"},
            'data.test-source = "/no/test.csv": there is no such',
        ),
    ],
)
def test_what_is_not_there_is_refused(overrides: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_simulated(make_config(**overrides), 8)


def test_a_model_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the folder holds no usable model"):
        check_sources(make_config(**{"model.name": str(tmp_path)}), 8)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.text-field": "text"}, r'data.text-field = "text": .*choose one of body, kind'),
        ({"data.label-field": "topic"}, 'data.label-field = "topic": .*no such column'),
        (
            {"data.partition": "natural", "data.partition-by": "site"},
            'data.partition-by = "site": .*no such column',
        ),
        ({"data.min-partition-size": 3}, "8 examples are too few for 4 clients of 3 or more"),
    ],
)
def test_a_file_without_the_columns_or_rows_is_refused(
    tmp_path: Path, overrides: dict[str, str | int], message: str
) -> None:
    path = write_rows(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match=message):
        check_sources(make_config(**own_data(path, **overrides)), 4)


def test_a_broken_file_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"body": "a", "kind": "b"}\n{"body": \n')
    with pytest.raises(ValueError, match="line 2 is not valid JSON"):
        check_sources(make_config(**own_data(path)), 2)


def test_conversations_that_a_template_refuses_are_found(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    said = [messages("Hi", "Yes"), messages(("system", "S"), "Hi", "Yes")] * 3
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in said))
    chats = {"data.source": str(path), "data.task": "causal-lm", "data.partition": "iid"}
    check_sources(make_config(**chats), 2)
    chats |= {"data.chat-template": GEMMA}
    with pytest.raises(DataError, match=r"chat\.jsonl, row 2: .*System role not supported"):
        check_sources(make_config(**chats), 2)
    check_sources(make_config(**chats, **{"data.system-messages": "merge"}), 2)


# -- what the ServerApp would find, too, only later --------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"scheme": "fedmoe", "fedmoe.experts-per-client": 9},
            "fedmoe.experts-per-client = 9: the model has 8 experts a layer",
        ),
        (
            {"scheme": "fedalign", "model.train": "experts", "model.gates": False},
            "gates are frozen",
        ),
        ({"scheme": "fedalign", "rounds": "buffered"}, 'rounds = "buffered": this scheme'),
        ({"model.experts-in-memory": "chosen"}, 'experts-in-memory = "chosen": .*is a preset'),
        ({"model.name": "switch-tiny", "model.head": "sequence"}, 'choose "label-words"'),
        (
            {"data.task": "causal-lm", "data.metric": "exact-match", "data.max-length": 512},
            "data.max-length = 512 and data.max-new-tokens = 64: together more than the 512",
        ),
        ({"data.text-field": "body"}, 'data.text-field = "body": .*no such column'),
        ({"data.label-names": "a, b"}, "label .* is not one of the 2 label names a, b"),
        ({"data.partition": "natural"}, "natural.*9 clients, but column .label. has only 8 values"),
        ({"data.min-partition-size": 2000}, "min-partition-size = 2000"),
        ({"data.max-train-examples": 5}, "num-partitions = 9: 5 examples are there"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    tmp_path: Path, overrides: dict[str, str | int | bool], message: str
) -> None:
    if "data.task" in overrides:  # the embedded corpus has no instructions
        rows = [{"instruction": f"say {i}", "response": str(i)} for i in range(9)]
        path = tmp_path / "chats.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        overrides = overrides | {"data.source": str(path), "data.partition": "iid"}
    with pytest.raises(ValueError, match=message):
        check_simulated(make_config(**overrides), 9)


def test_one_class_is_refused_with_the_file_and_the_class(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"body": "a", "kind": "x"}\n{"body": "b", "kind": "x"}\n')
    message = rf'data.source = "{path}": every row has the class "x"; .*data.label-names'
    with pytest.raises(ValueError, match=message):
        check_sources(make_config(**own_data(path)), 2)
    named = make_config(**own_data(path, **{"data.label-names": "x, y"}))
    assert check_sources(named, 2) == ("x", "y")  # a class that no row has is no fault


def test_classes_with_commas_are_named_by_a_list_or_a_file(tmp_path: Path) -> None:
    path, labels = tmp_path / "my data, v2.jsonl", tmp_path / "labels.txt"
    path.write_text('{"body": "a", "kind": "Health, safety"}\n{"body": "b", "kind": "Other"}\n')
    labels.write_text("Other\nHealth, safety\n")
    listed = own_data(path, **{"data.label-names": '["Other", "Health, safety"]'})
    filed = own_data(path, **{"data.label-names-file": str(labels)})
    for flat in (listed, filed):
        assert check_sources(make_config(**flat), 2) == ("Other", "Health, safety")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.label-names": "a, b, a"}, '"a" stands there twice'),
        ({"data.label-names": "a"}, 'only the class "a"'),
        ({"data.label-names-file": "/no/labels.txt"}, 'label-names-file = "/no/labels.txt"'),
        ({"data.test-source": "other.jsonl"}, "row 1: label 'c' is not one of the 2"),
        ({"data.test-source": "empty.jsonl"}, "every row is empty in"),
        (
            {"data.source": "/data/my rows, v2.csv"},
            '"/data/my rows, v2.csv" was looked for as one path and as 2 paths',
        ),
    ],
)
def test_names_and_files_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: dict[str, str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_rows(tmp_path / "rows.jsonl")
    (tmp_path / "other.jsonl").write_text('{"body": "a", "kind": "c"}\n')
    (tmp_path / "empty.jsonl").write_text('{"body": " ", "kind": "a"}\n')
    with pytest.raises(ValueError, match=message):
        check_sources(make_config(**own_data(path) | overrides), 2)


def test_nodes_with_their_own_data_need_names_before_a_connection_is_made() -> None:
    unnamed = make_config(**{"data.source": "nodes"}).data
    with pytest.raises(ValueError, match="name at least two.*as a list.*label-names-file"):
        check_labels_known(unnamed)
    for overrides in (
        {"data.label-names": '["a, b", "c"]'},
        {"data.label-names-file": "/on/the/server.txt"},
        {"data.task": "multiple-choice", "data.partition": "iid"},
    ):
        check_labels_known(make_config(**{"data.source": "nodes"} | overrides).data)


def test_the_data_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = write_rows(tmp_path / "rows.jsonl"), write_rows(tmp_path / "test.jsonl", 4)
    read: list[str] = []
    read_columns = sources.read_columns

    def counted(path: str, *arguments: object) -> object:
        read.append(str(path))
        return read_columns(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(sources, "read_columns", counted)
    check_simulated(make_config(**own_data(train, **{"data.test-source": str(test)})), 2)
    assert read == [str(train), str(test)]


def test_own_data_with_a_preset_is_looked_at_without_torch(tmp_path: Path) -> None:
    flat = flat_config(**own_data(write_rows(tmp_path / "rows.jsonl")))
    code = (
        "import sys; from fedmoe_app.config.parse import parse_run_config; "
        "from fedmoe_app.launch.preflight import check_simulated; "
        f"check_simulated(parse_run_config({flat!r}), 2); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "False"


def test_the_sizes_known_without_torch_are_those_of_what_ships() -> None:
    models = [
        empty_model(LoadSpec(name, "classification", vocab_size=300, head="label-words"))
        for name in PRESETS
    ]
    layers = [layer for model in models for layer in find_moe_layers(model)]
    assert min(layer.num_experts for layer in layers) == PRESET_EXPERTS
    assert PRESET_CLASSES == LABEL_TOKENS
    assert len(LIBRARIES) == EMBEDDED_CLASSES
    assert len(LIBRARIES) * TRAIN_PER_CLASS == EMBEDDED_ROWS


@pytest.mark.parametrize("preset", PRESETS)
def test_what_passes_without_a_look_passes_one(preset: str) -> None:
    shape = check_setup(make_config(**{"model.name": preset}), tuple(LIBRARIES))
    for scheme in SCHEMES.keys() - ADAPTERS_ONLY.keys():  # for which make_scheme looks at the mode
        make_scheme(make_config(scheme=scheme)).check(Run(shape))
