from pathlib import Path

import pytest

from fedmoe_app import ConfigError
from fedmoe_app.compare.plan import read_alphas, read_schemes, read_seeds


def test_lists_of_numbers() -> None:
    assert read_seeds("3, 1,20") == (3, 1, 20)
    assert read_alphas("0.1,1e2") == (0.1, 100.0)


def test_a_scheme_is_a_name_a_class_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "weak-prox.toml"
    file.write_text('scheme = "fedprox"\n[fedprox]\nproximal-mu = 0.001\n')
    rows = read_schemes(f"fedavg, my.schemes:Tokens ,{file}")
    assert [row.name for row in rows] == ["fedavg", "Tokens", "weak-prox"]
    assert [row.overrides for row in rows] == [
        {"scheme": "fedavg"},
        {"scheme": "my.schemes:Tokens"},
        {"scheme": "fedprox", "fedprox.proximal-mu": 0.001},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--seeds '': empty"),
        (" , ", "empty; give values"),
        ("1,,2", "nothing between two commas"),
        ("1,two", "--seeds two: not a whole number"),
        ("-1", "--seeds -1: not a whole number"),
        ("1.5", "--seeds 1.5: not a whole number"),
        ("1,2,1", "--seeds: 1 stands there more than once"),
        ("1,01", "more than once"),
    ],
)
def test_wrong_seeds(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_seeds(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("0.1,much", "--alphas much: not a number"),
        ("0", "--alphas 0: must be a finite number above 0"),
        ("-0.5", "above 0"),
        ("nan", "finite"),
        ("inf", "finite"),
        ("0.1,0.10", "more than once"),
    ],
)
def test_wrong_alphas(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_alphas(text)


def test_wrong_schemes(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("scheme = fedavg")
    for text, message in (
        ("", "--schemes '': empty"),
        ("fedavg,fedavg", "--schemes: fedavg stands there more than once"),
        ("a:Mine,b:Mine", "Mine stands there more than once"),
        ("centralised", "added by itself"),
        (str(tmp_path / "none.toml"), r"none\.toml: no such file"),
        (str(broken), r"broken\.toml: Invalid value"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_schemes(text)
