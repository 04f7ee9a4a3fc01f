"""Words that stand where a command takes the app's folder or a connection, and mean another thing.

``fedmoe run my.toml`` would say that there is no app in ``my.toml``: right, and no help.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from fedmoe_app.config.config_file import Flat
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.lists import is_path
from fedmoe_app.config.meant import understand
from fedmoe_app.config.names import PRESET_NAMES, SCHEME_NAMES, SMOLLM2_MOE
from fedmoe_app.config.overrides import read_overrides
from fedmoe_app.config.pairs import to_type
from fedmoe_app.config.parse import almost_key, known_keys
from fedmoe_app.launch.connections import LaunchError, find_connection

_DATA_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz")


_SCHEME = {"run": "--scheme", "compare": "--schemes"}


def overrides_of(
    command: str,
    items: Sequence[str] | None,
    app_dir: Path,
    connection: str | None = None,
    more: Sequence[str] = (),
) -> Flat:
    """Read ``--run-config``, knowing the words that stand alone on the command line.

    Args:
        command: the command's name, ``run`` or ``compare``.
        items: of ``--run-config``.
        app_dir: what stands in the place of the app's folder.
        connection: what stands in that of a connection.
        more: words after these, which have no place at all.

    Raises:
        ConfigError: naming the item, or the word that belongs to an option, and what to type.
    """
    words = [str(app_dir), *([connection] if connection else []), *more]
    flat = read_overrides(items or [], [word for word in words if not is_path(word)])
    if connection and _is_connection(connection):
        words.remove(connection)
    for word in words:
        if option := _option_for(command, word):
            app = app_dir if app_dir.is_dir() else "."
            raise ConfigError(
                f"fedmoe {command} {word}: stands alone, where the folder of an app or a "
                f"connection is named; type fedmoe {command} {shlex.quote(str(app))} {option}"
            )
    if more:
        raise ConfigError(f"fedmoe {command} {shlex.join(more)}: unexpected; --help shows the form")
    return flat


def _is_connection(name: str) -> bool:
    try:
        find_connection(name)
    except LaunchError:
        return False
    return True


def _option_for(command: str, word: str) -> str | None:
    """Return the option that a word was meant for; None where it may well be a folder."""
    if Path(word).is_dir():
        return None
    if word.lower().endswith(".toml") and "=" not in word:
        return f"-c {shlex.quote(word)}"
    if word.lower().endswith(_DATA_ENDINGS) and is_path(word):
        return to_type({"data.source": word})
    if word in SCHEME_NAMES:
        return f"{_SCHEME[command]} {word}"
    if word in (*PRESET_NAMES, SMOLLM2_MOE):
        return to_type({"model.name": word})
    return _pairs(word)


def _pairs(word: str) -> str | None:
    key = word.partition("=")[0]
    if "=" not in word or not (key in known_keys() or almost_key(key)):
        return None
    meant = {each.key: each.value for each in understand(word)}
    if not meant or any(value is None for value in meant.values()):
        return f"-c {shlex.quote(word)}"
    return to_type({key: value for key, value in meant.items() if value is not None})
