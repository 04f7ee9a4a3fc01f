"""What is refused before a SuperLink is started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedmoe_app.launching.preflight import check_scheme_name, check_simulated, check_sources
from fedmoe_app.moe.loading import PRESETS
from fedmoe_app.names import COMBINE, PRESET_NAMES, SCHEME_NAMES
from fedmoe_app.schemes import SCHEMES
from tests.conftest import flat_config, make_config


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
        "import sys; from fedmoe_app.config import parse_run_config; "
        "from fedmoe_app.launching.preflight import check_simulated; "
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
    with pytest.raises(ValueError, match="client-list = .*must be the absolute path"):
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
        ({"data.min-partition-size": 3}, "partition .* would get 2 examples"),
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
