"""Every key is checked on entry, and the message names key, value and choices."""

import pytest

from fedmoe_app import (
    ConfigError,
    DataConfig,
    RunConfig,
    TrainConfig,
    flatten_run_config,
    parse_run_config,
)
from fedmoe_app.config.schema import check_quantization
from tests.conftest import flat_config, make_config

INF, NAN = float("inf"), float("nan")


def test_the_defaults_are_valid_and_survive_a_round_trip() -> None:
    assert flatten_run_config(make_config()) == flat_config()


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        make_config().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.alpha": 0.0}, r"data\.alpha = 0\.0: .*greater than 0"),
        ({"data.partition": "dirichle"}, r'"dirichle".*\'iid\', \'dirichlet\' or \'natural\''),
        ({"fraction-train": 1.5}, r"fraction-train = 1\.5: .*less than or equal to 1"),
        ({"num-server-rounds": 0}, r"num-server-rounds = 0"),
        ({"num-server-rounds": "five"}, r'num-server-rounds = "five": .*integer'),
        ({"seed": True}, r"seed = true: .*integer"),
        ({"sed": 1}, r"sed: unknown key; choose one of scheme,.*seed"),
        ({"data.alfa": 1.0}, r"data\.alfa: unknown key; choose one of source,.*alpha"),
        ({"output-dir": "results"}, r'output-dir = "results": must be an absolute path'),
        ({"run-name": "a/b"}, r'run-name = "a/b": must be a plain folder name'),
        ({"scheme-args": "{lam"}, r"scheme-args = .*not JSON"),
        ({"data.task": "causal-lm"}, r"needs partition-by: name a column"),
        ({"data.task": "multiple-choice"}, r'task = "multiple-choice" needs partition-by'),
        ({"data.task": "cloze"}, r'task = "cloze": .*\'classification\', '),
        (
            {"data.metric": "exact-match"},
            r'metric = "exact-match" with task = "classification": choose one of auto, accuracy',
        ),
        ({"data.max-new-tokens": 0}, r"data\.max-new-tokens = 0"),
        ({"data.train-on": "all"}, r"data\.train-on = \"all\": .*'assistant' or 'last'"),
        ({"data.row-format": "chat"}, r"data\.row-format = \"chat\": .*'messages'"),
        ({"data.chat-template": "on"}, r'data\.chat-template = "on": choose one of auto, always'),
        ({"data.prompt-format": "{question}"}, r"data\.prompt-format.*unknown placeholder"),
        ({"scheme.foo": 1}, r"scheme\.foo: unknown key; scheme is a value, not a table"),
        ({"data.alpha.x": 3}, r"data\.alpha\.x: unknown key; data\.alpha is a value, not a table"),
        ({"data.x.y": 3}, r"data\.x: unknown key; choose one of source"),
        ({"data": 3}, r"data = 3: a table, not a value; set data\.source instead"),
        ({"train.learning-rate": INF}, r"train\.learning-rate = inf: .*finite number"),
        ({"data.alpha": INF}, r"data\.alpha = inf: .*finite number"),
        ({"wait-for-clients": NAN}, r"wait-for-clients = nan: .*finite number"),
        ({"scheme-args": '{"lam": [NaN]}'}, r"scheme-args = .*numbers must be finite"),
        ({"model.dtype": "fp8"}, r'model\.dtype = "fp8": .*\'float32\' or \'bfloat16\''),
    ],
)
def test_a_wrong_value_is_named(overrides: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_run_config(flat_config(**overrides))


def test_a_table_in_the_place_of_a_value_is_refused_in_any_order() -> None:
    with pytest.raises(ConfigError, match=r"scheme is a value, not a table"):
        parse_run_config({"scheme.foo": 1} | flat_config())


def test_a_missing_key_has_its_default() -> None:
    config = parse_run_config({"data.alpha": 0.1})
    assert config == RunConfig(data=DataConfig(alpha=0.1))
    assert flatten_run_config(config) == flat_config(**{"data.alpha": 0.1})


def test_a_config_is_made_without_a_file() -> None:
    assert parse_run_config({}) == RunConfig() == RunConfig(train=TrainConfig())
    with pytest.raises(ValueError, match="alpha\n.*greater than 0"):
        DataConfig(alpha=0.0)


@pytest.mark.parametrize("key", ["data.max_length", "min_clients"])
def test_the_names_of_python_are_no_keys(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: unknown key.*mean {key.replace('_', '-')}"):
        parse_run_config({key: 8})


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        parse_run_config(flat_config(**{"seed": -1, "data.alpha": -1.0}))
    assert "seed = -1" in str(error.value)
    assert "data.alpha = -1.0" in str(error.value)


def test_labels_are_split_at_commas() -> None:
    assert make_config(**{"data.label-names": "yes, no,,maybe "}).data.labels == (
        "yes",
        "no",
        "maybe",
    )


def test_integers_are_taken_for_numbers() -> None:
    assert make_config(**{"train.learning-rate": 1}).train.learning_rate == 1.0


@pytest.mark.parametrize("train", ["all", "experts"])
def test_quantised_weights_cannot_be_trained(train: str) -> None:
    check_quantization("none", train)
    check_quantization("nf4", "expert-lora")
    with pytest.raises(ValueError, match=f'"nf4" with train = "{train}": .* choose train'):
        check_quantization("nf4", train)
