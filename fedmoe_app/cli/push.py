"""``fedmoe push``: a run's model to a model hub."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.results.folder import ResultsError
from fedmoe_app.server.saved import model_folder


class Sent(NamedTuple):
    """A file that is sent, by its name in the folder, and its bytes."""

    name: str
    size: int


def folder_to_send(run: Path, adapter: bool) -> Path:
    """Return the folder of a run's model, or of its adapter.

    Raises:
        ResultsError: there is none.
    """
    if not adapter:
        return model_folder(run)
    folder = run / "adapter"
    if not (folder / "adapter_config.json").is_file():
        raise ResultsError(
            f'{folder}: no adapter there; a run has one with model.train = "expert-lora" where '
            "PEFT can represent it; without --adapter the whole model is sent"
        )
    return folder


def files_of(folder: Path) -> list[Sent]:
    """Return all files below a folder, sorted by name."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [Sent(path.relative_to(folder).as_posix(), path.stat().st_size) for path in found]


def check_repository(name: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        ConfigError: with an example.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(
            f"{name!r}: no name of a repository, such as my-name/my-model ({error})"
        ) from None
    if "/" not in name:
        raise ConfigError(f"{name!r}: whose repository? Name it such as my-name/{name}")


def push(folder: Path, name: str, public: bool) -> str:
    """Send a folder to the hub's repository ``name``, which is made if there is none.

    Args:
        folder: what :func:`folder_to_send` returned.
        name: owner and name.
        public: whether a new repository is for everybody.

    Returns:
        the address of the repository.

    Raises:
        ConfigError: the hub refused, or nobody is logged in.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        address = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, commit_message="A model fine-tuned by fedmoe"
        )
    except LocalTokenNotFoundError:
        raise ConfigError(
            "nobody is logged in at the model hub; `hf auth login` does it, or set HF_TOKEN"
        ) from None
    except HfHubHTTPError as error:
        reason = str(error).strip().splitlines()
        raise ConfigError(
            f"{name}: the model hub refused: {reason[0] if reason else error}"
        ) from None
    return str(address)
