import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fedmoe_app import ConfigError, RunConfig, parse_run_config
from fedmoe_app.cli.partition import Split, describe_setting, plot_split, print_split, split_of
from fedmoe_app.data.partitions import partition
from fedmoe_app.data.sources import load_text_data
from tests.conftest import flat_config


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    rows = [{"text": f"text {i}", "label": ["ape", "bee", "cat"][i % 3]} for i in range(90)]
    rows += [{"text": "one more", "label": "bee"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return parse_run_config(flat_config(**{"data.source": str(file), "data.alpha": 0.3}))


def test_the_split_is_the_one_that_clients_get(config: RunConfig) -> None:
    split = split_of(config, 4)
    assert split.values == ("bee", "ape", "cat")
    assert split.counts.sum(axis=0).tolist() == [31, 30, 30]
    data = load_text_data(config.data, with_test=False)
    for client in range(4):
        own = partition(data.train, config.data, client, 4, config.seed)
        names = [data.label_names[label] for label in own["label"]]
        assert split.sizes[client] == len(own)
        assert split.counts[client].tolist() == [names.count(v) for v in split.values]


def test_the_distance_is_half_the_summed_difference_of_shares() -> None:
    split = Split(("a", "b"), np.array([[4, 0], [2, 6]]), (4, 8))
    # Overall: 1/2 and 1/2. Client 0: 1 and 0. Client 1: 1/4 and 3/4.
    assert split.divergence.tolist() == [0.5, 0.25]


def test_the_table_names_clients_values_and_the_rest() -> None:
    counts = np.arange(20).reshape(2, 10)
    split = Split(tuple(f"value-{i}" for i in range(10)), counts, (45, 145))
    console = Console(record=True, width=140)
    print_split(split, console)
    text = console.export_text()
    assert "value-7" in text
    assert "2 more" in text
    assert "190 examples, 2 clients of 45 to 145" in text


def test_a_picture_is_drawn(config: RunConfig, tmp_path: Path) -> None:
    path = plot_split(split_of(config, 3), describe_setting(config), tmp_path / "new" / "split.svg")
    assert "dirichlet by label, α = 0.3" in describe_setting(config)
    assert path.read_text().startswith("<svg")
    assert [file.name for file in path.parent.iterdir()] == ["split.svg"]


def shown(values: tuple[str, ...], width: int = 140) -> str:
    """The table of a split with these values."""
    counts = np.ones((2, len(values)), dtype=int)
    console = Console(file=io.StringIO(), width=width)  # rich's own, which reads markup
    print_split(Split(values, counts, (len(values),) * 2), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "values",
    [
        ("[/closed]", "[bold]open", "plain"),
        ("$0-$50", "$50_$", "100% & \\frac"),
        ("Berlin [Mitte]", "[/north]", "$5-$9 & up_"),
        (":smile:", "{x}^2_#", "None", "nan", "inf"),
        ("العربية", "שלום", "中文标签", "e\u0301te\u0301"),
    ],
)
def test_labels_are_shown_as_they_are(values: tuple[str, ...], tmp_path: Path) -> None:
    text = shown(values)
    assert all(value in text for value in values)
    split = Split(values, np.ones((2, len(values)), dtype=int), (3, 3))
    assert plot_split(split, "a [x] $y$_{", tmp_path / "a.png").stat().st_size > 1000


def test_labels_that_act_are_written_as_escapes_and_labels_alike_are_told_apart() -> None:
    assert r"red\x1b[31m" in shown(("red\x1b[31m",))
    assert r"a\nb" in shown(("a\nb",))
    assert '"\\xa0"' in shown(("\u00a0", "b"))
    assert "…xxxxxxxxxxA" in shown(("x" * 200 + "A", "x" * 200 + "B"))
    alike = shown(("é", "e\u0301"))
    assert "é " in alike
    assert r"e\u0301" in alike


def test_a_narrow_terminal_shows_fewer_values_not_parts_of_them() -> None:
    text = shown(("commonest", "less common", "rare"), width=60)
    assert "commonest" in text
    assert "2 more" in text
    assert max(map(len, text.splitlines())) <= 60


def test_nodes_with_their_own_data_have_nothing_to_split() -> None:
    flat = flat_config(**{"data.source": "nodes", "data.label-names": "a,b"})
    with pytest.raises(ConfigError, match='"nodes"'):
        split_of(parse_run_config(flat), 3)
