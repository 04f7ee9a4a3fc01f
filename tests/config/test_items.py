"""What ``-c`` takes, and that the advice on what it does not take works when it is typed."""

from __future__ import annotations

import shlex
import subprocess
from typing import Any

import pytest
import typer
from flwr.common.config import parse_config_args
from hypothesis import given
from hypothesis import strategies as st

from fedmoe_app import ConfigError
from fedmoe_app.cli import main
from fedmoe_app.config.meant import boolean, number
from fedmoe_app.config.overrides import read_overrides
from fedmoe_app.config.pairs import to_type
from fedmoe_app.config.parse import known_keys, nearest_keys

LISTED = '["Health, safety", "Other"]'
WINDOWS, ESCAPES = r"C:\Users\anna\train.jsonl", r"D:\temp\new.jsonl"

WRONG: list[tuple[str, dict[str, Any]]] = [
    # backslashes
    (rf'data.source="{WINDOWS}"', {"data.source": WINDOWS}),
    (rf'data.source="{ESCAPES}"', {"data.source": ESCAPES}),  # \t and \n are escapes of TOML
    (rf'data.test-source="{ESCAPES}" seed=2', {"data.test-source": ESCAPES, "seed": 2}),
    (rf'data.source=["{ESCAPES}", "b"]', {"data.source": r'["D:\\temp\\new.jsonl", "b"]'}),
    (rf"data.source={WINDOWS}", {"data.source": WINDOWS}),
    ('data.source="C:\\data\\"', {"data.source": "C:\\data\\"}),
    ('data.source="C:\\data\\" seed=2', {"data.source": "C:\\data\\", "seed": 2}),
    (r'data.source="\\server\share\a.csv"', {"data.source": r"\\server\share\a.csv"}),
    (r"data.source='C:\it's\a.csv'", {"data.source": r"C:\it's\a.csv"}),
    (rf'model.name="{ESCAPES}"', {"model.name": ESCAPES}),
    (r'resume="D:\runs\fedavg-1"', {"resume": r"D:\runs\fedavg-1"}),
    (rf'data.label-names-file="{ESCAPES}"', {"data.label-names-file": ESCAPES}),
    # what stands between pairs
    ('data.alpha=0.1, scheme="fedmoe"', {"data.alpha": 0.1, "scheme": "fedmoe"}),
    ('data.alpha=0.1 , scheme="fedmoe"', {"data.alpha": 0.1, "scheme": "fedmoe"}),
    ('data.alpha=0.1,scheme="fedmoe"', {"data.alpha": 0.1, "scheme": "fedmoe"}),
    ('scheme="fedmoe", data.alpha=0.1', {"data.alpha": 0.1, "scheme": "fedmoe"}),
    ("seed=1; data.alpha=0.1;", {"seed": 1, "data.alpha": 0.1}),
    ("seed=1,", {"seed": 1}),
    ("seed = 1", {"seed": 1}),
    ("seed= 1 data.alpha =0.5", {"seed": 1, "data.alpha": 0.5}),
    ("seed: 1", {"seed": 1}),
    ("seed 1", {"seed": 1}),
    ("seed==1", {"seed": 1}),
    ("--seed=1", {"seed": 1}),
    ('"data.alpha"=0.5', {"data.alpha": 0.5}),
    # booleans and numbers
    ("diagnostics=True", {"diagnostics": True}),
    ("diagnostics=FALSE", {"diagnostics": False}),
    ("diagnostics=yes keep-client-state=off", {"diagnostics": True, "keep-client-state": False}),
    ("diagnostics=0", {"diagnostics": False}),
    ('diagnostics="true"', {"diagnostics": True}),
    ("data.alpha=1/2", {"data.alpha": 0.5}),
    ("fraction-train=3 / 4", {"fraction-train": 0.75}),
    ("data.alpha=0,1", {"data.alpha": 0.1}),
    ("data.alpha=.5", {"data.alpha": 0.5}),
    ("data.alpha=5.", {"data.alpha": 5.0}),
    ('data.alpha="0.5"', {"data.alpha": 0.5}),
    ("data.alpha=“0.5”", {"data.alpha": 0.5}),
    ("data.local-test-fraction=10%", {"data.local-test-fraction": 0.1}),
    ("data.local-test-fraction=12,5 %", {"data.local-test-fraction": 0.125}),
    ("data.max-train-examples=1,000", {"data.max-train-examples": 1000}),
    ("data.max-train-examples=1,000,000", {"data.max-train-examples": 10**6}),
    ("data.max-train-examples=1 000", {"data.max-train-examples": 1000}),
    ("data.max-train-examples=1'000", {"data.max-train-examples": 1000}),
    ("data.max-train-examples=1e3", {"data.max-train-examples": 1000}),
    ("seed=007", {"seed": 7}),
    ("seed=7.0", {"seed": 7}),
    ("train.learning-rate=2e−3", {"train.learning-rate": 0.002}),
    ("round-timeout=1.000,5", {"round-timeout": 1000.5}),
    # strings
    ("scheme=fedmoe", {"scheme": "fedmoe"}),
    ("scheme=fedmoe seed=2", {"scheme": "fedmoe", "seed": 2}),
    ("scheme='fedmoe", {"scheme": "fedmoe"}),
    ('scheme="fedmoe seed=2', {"scheme": "fedmoe", "seed": 2}),
    ('scheme=fedmoe"', {"scheme": "fedmoe"}),
    ("scheme=“fedmoe” seed=2", {"scheme": "fedmoe", "seed": 2}),
    ("scheme=„fedmoe“", {"scheme": "fedmoe"}),
    ("scheme=‘fedmoe’", {"scheme": "fedmoe"}),
    ("scheme=«fedmoe»", {"scheme": "fedmoe"}),
    ('scheme="fedmoe”', {"scheme": "fedmoe"}),
    ("data.text-field=my column", {"data.text-field": "my column"}),
    ("data.text-field=“Men’s health”", {"data.text-field": "Men’s health"}),
    ('data.text-field="say "hi" now"', {"data.text-field": 'say "hi" now'}),
    ("data.text-field='it's'", {"data.text-field": "it's"}),
    ("data.text-field=a$b", {"data.text-field": "a$b"}),
    ("data.text-field=1", {"data.text-field": "1"}),
    ("run-name=2024-01-05", {"run-name": "2024-01-05"}),
    ("run-name=5#1", {"run-name": "5#1"}),
    ("data.source=a=b.csv", {"data.source": "a=b.csv"}),
    ("data.source=x.toml", {"data.source": "x.toml"}),
    ("data.source=a.csv, b.csv", {"data.source": "a.csv, b.csv"}),
    ('scheme-args={"lam": 0.5, "tau": 3}', {"scheme-args": '{"lam": 0.5, "tau": 3}'}),
    ("data.test-source=None", {"data.test-source": ""}),
    ("track=null", {"track": ""}),
    ("track=", {"track": ""}),
    ("model.quantization=None", {"model.quantization": "none"}),
    ("data.partition=Dirichlet", {"data.partition": "dirichlet"}),
    # lists
    ("data.label-names=[Health, Other]", {"data.label-names": '["Health", "Other"]'}),
    ("data.label-names=[1, 2]", {"data.label-names": '["1", "2"]'}),
    ("data.label-names=[“Health, safety”, “Other”]", {"data.label-names": LISTED}),
    ('data.label-names=["Health, safety", "Other"', {"data.label-names": LISTED}),
    ('data.label-names=("Health, safety", "Other")', {"data.label-names": LISTED}),
    ('data.label-names="Health, safety", "Other"', {"data.label-names": LISTED}),
    ('track=["wandb", "mlflow"]', {"track": "wandb, mlflow"}),
    ('scheme=["fedmoe"]', {"scheme": "fedmoe"}),
    ('data.source="a.csv" "b, v2.csv"', {"data.source": '["a.csv", "b, v2.csv"]'}),
    ("seed=[1]", {"seed": 1}),
    ("data.source=[1].csv", {"data.source": "[1].csv"}),
    ("data.source=[ward]/train.jsonl, [b].csv", {"data.source": "[ward]/train.jsonl, [b].csv"}),
    ("data.source=(old) a.csv", {"data.source": "(old) a.csv"}),
    ("data.text-field=[x]", {"data.text-field": "[x]"}),
    # keys
    ("data.label_names=\"a, b\"", {"data.label-names": "a, b"}),
    ("Data.Alpha=0.5", {"data.alpha": 0.5}),
    ("DATA.ALPHA=0.5, seed=1", {"data.alpha": 0.5, "seed": 1}),
    ("data.alfa=0.5", {"data.alpha": 0.5}),
    ("alpha=0.5", {"data.alpha": 0.5}),
    ("model.learning-rate=0.1", {"train.learning-rate": 0.1}),
    ("learningRate=0.1", {"train.learning-rate": 0.1}),
    ("shceme=fedmoe", {"scheme": "fedmoe"}),
]  # fmt: skip


def advice(item: str) -> str | None:
    """What the message proposes to type, if anything; None also where the item is right."""
    try:
        read_overrides([item])
    except ConfigError as error:
        _, mark, typed = str(error).rpartition("; type ")
        return typed if mark else None
    return None


def read_as_typed(typed: str) -> dict[str, Any]:
    """Read what is typed after ``fedmoe run``, by the command line's own parser."""
    run = typer.main.get_command(main.app).commands["run"]  # type: ignore[attr-defined]
    options = run.make_context("run", shlex.split(typed)).params
    return read_overrides(options["run_config"])


@pytest.mark.parametrize(("item", "wanted"), WRONG)
def test_the_advice_works_when_it_is_typed(item: str, wanted: dict[str, Any]) -> None:
    typed = advice(item)
    assert typed is not None
    read = read_as_typed(typed)
    assert read == wanted
    assert {key: type(value) for key, value in read.items()} == {
        key: type(value) for key, value in wanted.items()
    }


def test_a_real_shell_reads_the_advice_as_shlex_does() -> None:
    forms = [typed for item, _ in WRONG if (typed := advice(item))]
    script = "\n".join(f"printf '%s\\0' {typed}" for typed in forms)
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[:-1] == [word for typed in forms for word in shlex.split(typed)]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (f'data.source="{WINDOWS}"', "a backslash in \"...\" begins an escape.*'...'.*/"),
        (f'data.source="{ESCAPES}"', "a backslash in \"...\" begins an escape"),
        ('data.alpha=0.1, scheme="fedmoe"', "separated by spaces, without commas"),
        ("diagnostics=True", "true or false, in small letters"),
        ("data.alpha=1/2", "a fraction is written as a decimal number"),
        ("data.alpha=0,1", "decimals stand after a point"),
        ("scheme=“fedmoe”", "quotation marks are the straight"),
        ('scheme="fedmoe', "a quotation mark before and after it"),
        ("data.label_names=\"a,b\"", "unknown key.*the nearest key is data.label-names"),
        ("round-timeout=3,600", "write 3600 or 3.600"),  # which of them cannot be known
        ("seed=[1, 2]", "give a number.*lists are for data.source, data.test-source, data.validation-source"),
        ("data.partition=foo", "'foo' is none of iid, dirichlet, natural"),
        ("data.alpha=-1/2", "a fraction"),  # but -0.5 is out of range, and not proposed
        ("seed=five", "a whole number is written in digits"),
        ("data.alpha=", "cannot read 'data.alpha='"),
        ("batch=3 =", "cannot read '='"),
        ('data.source="a.csv" seed 3', "the next key=value follow after a string"),
        ("foo=bar", "not a number, a boolean .* give a .toml file or key=value pairs"),
    ],
)  # fmt: skip
def test_the_rule_that_is_broken_is_named(item: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_overrides([item])


@pytest.mark.parametrize(
    "item",
    [
        "round-timeout=3,600",
        "data.alpha=-1/2",
        "seed=five",
        "foo=bar",
        'data.source="a.csv" seed 3',
        'scheme="fedmoe"seed=3',
        'scheme="fedmoe" "fedavg"',
        "data.max-train-examples=none",
        "data.alpha=0.1 & seed=2",
    ],
)
def test_nothing_is_proposed_that_is_not_sure(item: str) -> None:
    assert advice(item) is None


def test_a_value_that_was_forgotten_is_found_beside_its_key() -> None:
    for beside in (["0.1"], ["=", "0.1"]):
        with pytest.raises(ConfigError, match=r"cannot read 'data.alpha'.*type -c data.alpha=0.1"):
            read_overrides(["data.alpha"], beside)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ('data.label-names=["Health, safety","Other"]', {"data.label-names": LISTED}),
        ("data.label-names=['Health, safety', 'Other']", {"data.label-names": LISTED}),
        (f"data.label-names='{LISTED}' seed=1", {"data.label-names": LISTED, "seed": 1}),
        ('data.source=["a.csv", "b, v2.csv"]', {"data.source": '["a.csv", "b, v2.csv"]'}),
        ('data.source="/data/my data, v2/train.jsonl"',
         {"data.source": "/data/my data, v2/train.jsonl"}),
        (r'scheme-args="{\"lam\": 0.5}"', {"scheme-args": '{"lam": 0.5}'}),
        (rf"data.source='{ESCAPES}'", {"data.source": ESCAPES}),
        (r'data.source="D:\\temp\\new.jsonl"', {"data.source": ESCAPES}),
        ('data.text-field="a\\tb"', {"data.text-field": "a\tb"}),
        ("data.source='a\tb.csv'", {"data.source": "a\tb.csv"}),  # a tab that was typed
        ("", {}),
    ],
)  # fmt: skip
def test_what_is_right_is_taken_as_it_is(item: str, expected: dict[str, Any]) -> None:
    assert read_overrides([item]) == expected


# -- properties --------------------------------------------------------------------------------

words = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(words)
def test_any_text_can_be_typed(text: str) -> None:
    typed = to_type({"data.text-field": text, "seed": 3})
    assert typed is not None
    assert read_as_typed(typed) == {"data.text-field": text, "seed": 3}


@given(st.lists(words.filter(str.strip), min_size=1))
def test_any_list_can_be_typed(names: list[str]) -> None:
    typed = to_type({"data.label-names": names})
    assert typed is not None
    assert read_as_typed(typed) == read_overrides([shlex.split(typed)[1]])


@given(
    st.sampled_from(["{}", '"{}"', "'{}'", "“{}”", '"{}', "[{}]", " {} ", "{},"]),
    st.text(alphabet="abtn01 \\\"'“”,;=:#[]{}/.$!`\n\t-"),
    st.sampled_from(["data.source", "data.text-field", "data.label-names", "seed", "data.alpha"]),
)
def test_whatever_is_proposed_is_taken(form: str, text: str, key: str) -> None:
    typed = advice(f"{key}={form.format(text)}")
    if typed is not None:
        assert key in read_as_typed(typed)


@given(st.text(alphabet="abtnu01\\: .", min_size=1))
def test_a_path_in_double_quotes_is_proposed_as_it_was_typed(path: str) -> None:
    typed = advice(f'data.source="{path}"')
    if typed is not None:
        assert read_as_typed(typed) == {"data.source": path}


@given(st.text(alphabet="abtn01\\/.-_é", min_size=1))
def test_text_without_quotes_is_proposed_in_quotes(text: str) -> None:
    typed = advice(f"data.text-field={text}")
    if typed is not None:
        assert read_as_typed(typed) == {"data.text-field": text}


@given(st.from_regex(r"zq=(true|[1-9]|0\.5|\"[ !#-[\]-~]*\"|'[ -&(-~]*')", fullmatch=True))
def test_flowers_pairs_mean_the_same_here(item: str) -> None:
    assert read_overrides([item]) == parse_config_args([item])


# -- parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("data.alfa", ("data.alpha",)),
        ("usage-examples", ("fedmoe.usage-examples", "hfedmoe.usage-examples")),
        ("num-rounds", ("num-server-rounds",)),
        ("epochs", ("train.num-train-epochs",)),
        ("data.x.y", ()),
    ],
)
def test_a_misspelt_key_has_near_ones(name: str, expected: tuple[str, ...]) -> None:
    assert nearest_keys(name) == expected


@given(st.sampled_from(sorted(known_keys())))
def test_every_key_is_its_own_nearest(key: str) -> None:
    assert nearest_keys(key) == nearest_keys(key.upper().replace("-", "_")) == (key,)


@pytest.mark.parametrize(
    ("text", "as_float", "as_int"),
    [
        ("½", 0.5, None), ("1/3", 1 / 3, None), ("4/2", 2.0, 2), ("1/0", None, None),
        ("1.000", None, None), ("1,000", None, 1000), ("0,125", 0.125, None),
        ("1.234.567", 1234567.0, 1234567), ("1,234.5", 1234.5, None), ("−3", -3.0, -3),
        ("1e999999999", None, None), ("five", None, None), ("", None, None), ("1/2/3", None, None),
    ],
)  # fmt: skip
def test_numbers_as_people_write_them(text: str, as_float: object, as_int: object) -> None:
    assert number(text, float).value == as_float
    assert number(text, int).value == as_int


def test_booleans_as_people_write_them() -> None:
    assert [boolean(word).value for word in ("Yes", "off", " 1 ", "maybe")] == [
        True,
        False,
        True,
        None,
    ]
