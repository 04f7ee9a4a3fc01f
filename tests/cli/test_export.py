import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedmoe_app import ConfigError, ResultsError, UnsupportedModelError, run_in_process
from fedmoe_app.cli.export import Format, export, read_format
from fedmoe_app.results.folder import list_checkpoints
from tests.conftest import flat_config
from tests.toy import write_topics


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder.parent


def test_a_model_is_copied_whole(run: Path, tmp_path: Path) -> None:
    target = export(run, "hf", tmp_path / "new" / "mine")
    assert {file.name for file in target.iterdir()} == {"config.json", "model.safetensors"}
    assert (target / "model.safetensors").read_bytes() == b"weights"
    assert [file.name for file in target.parent.iterdir()] == ["mine"]


def test_an_existing_folder_stays(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ResultsError, match="is there already"):
        export(run, "hf", tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_what_is_not_there_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="expert-lora"):
        export(run, "peft", tmp_path / "mine")
    with pytest.raises(ResultsError, match="no such folder"):
        export(tmp_path / "other", "hf", tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultsError, match="no checkpoint beside it"):
        export(tmp_path / "empty", "hf", tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"choose one of hf, peft, vllm, llama\.cpp"):
        read_format("onnx")
    assert not (tmp_path / "mine").exists()


def test_a_failed_copy_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("fedmoe_app.cli.export.shutil.copytree", broken)
    with pytest.raises(OSError, match="no space"):
        export(run, "hf", tmp_path / "new" / "mine")
    assert list((tmp_path / "new").iterdir()) == []


# -- of a run that was stopped -----------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with adapters, complete: what is exported of its checkpoint can be held against.

    A run that was stopped after its last round has the same files but ``model`` and ``adapter``.
    """
    folder = tmp_path_factory.mktemp("stopped")
    write_topics(folder / "topics.jsonl", 12)
    flat = flat_config(
        **{
            "num-server-rounds": 1,
            "output-dir": str(folder),
            "data.source": str(folder / "topics.jsonl"),
            "data.max-length": 12,
            "train.max-steps": 2,
            "train.learning-rate": 0.01,
            "model.train": "expert-lora",
            "diagnostics": False,
        }
    )
    return run_in_process(flat, 2)


def stopped(finished: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "stopped"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("model", "adapter"))
    return folder


@pytest.mark.parametrize(
    ("kind", "name", "weights"),
    [
        ("hf", "model", "model.safetensors"),
        ("peft", "adapter", "adapter_model.safetensors"),
    ],
)
def test_the_model_of_a_stopped_run_is_that_of_its_checkpoint(
    finished: Path, tmp_path: Path, kind: Format, name: str, weights: str
) -> None:
    target = export(stopped(finished, tmp_path), kind, tmp_path / "mine")
    expected = load_file(finished / name / weights)
    found = load_file(target / weights)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    files = {file.name for file in (finished / name).iterdir()}
    assert {file.name for file in target.iterdir()} == files
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_a_classification_head_is_not_for_llama_cpp(finished: Path, tmp_path: Path) -> None:
    for run in (finished, stopped(finished, tmp_path)):
        with pytest.raises(UnsupportedModelError, match="no classification heads"):
            export(run, "llama.cpp", tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_without_a_good_checkpoint_nothing_is_written(finished: Path, tmp_path: Path) -> None:
    folder = stopped(finished, tmp_path)
    for path in list_checkpoints(folder):
        (path / "state.safetensors").write_bytes(b"cut off")
    with pytest.raises(ResultsError, match=r"stopped: no model there, and .*checksum is wrong"):
        export(folder, "hf", tmp_path / "mine")
    assert {file.name for file in tmp_path.iterdir()} == {"stopped"}
