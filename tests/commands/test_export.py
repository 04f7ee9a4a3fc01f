from pathlib import Path

import pytest

from fedmoe_app.commands.export import export, read_format
from fedmoe_app.config import ConfigError
from fedmoe_app.report.log import ResultsError


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
    with pytest.raises(ConfigError, match="choose one of hf, peft"):
        read_format("onnx")
    assert not (tmp_path / "mine").exists()


def test_a_failed_copy_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("fedmoe_app.commands.export.shutil.copytree", broken)
    with pytest.raises(OSError, match="no space"):
        export(run, "hf", tmp_path / "new" / "mine")
    assert list((tmp_path / "new").iterdir()) == []
