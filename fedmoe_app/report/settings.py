"""The run config beside its defaults: what was set differently comes first."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedmoe_app.config.pairs import write_value
from fedmoe_app.config.parse import default_run_config, flatten_table
from fedmoe_app.results.folder import CONFIG_FILE, ResultsError

# They say where results lie, not what was run.
PLACES = ("output-dir", "run-name", "resume")


class Setting(NamedTuple):
    """One key of the run config; ``default`` is None where it is not known."""

    key: str
    value: str
    default: str | None

    @property
    def changed(self) -> bool:
        """Whether the value is another than the default."""
        return self.default is not None and self.value != self.default


def read_settings(folder: Path) -> dict[str, Any]:
    """Read a run's flat config.

    Raises:
        ResultsError: when ``config.toml`` is missing or no TOML.
    """
    file = folder / CONFIG_FILE
    try:
        return dict(flatten_table(tomllib.loads(file.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        raise ResultsError(f"{file}: no such file; name the folder of a run") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{file}: not TOML ({error})") from None


def defaults() -> dict[str, Any]:
    """Return the default run config."""
    return dict(default_run_config())


def compare(flat: Mapping[str, Any], default: Mapping[str, Any]) -> list[Setting]:
    """Return the settings in the order of the config, those that differ first."""
    settings = [_setting(key, value, default) for key, value in flat.items()]
    return sorted(settings, key=lambda each: not each.changed or each.key in PLACES)


def _setting(key: str, value: Any, default: Mapping[str, Any]) -> Setting:
    if key not in default:
        return Setting(key, write_value(value), None)
    known = default[key]
    # 120 and 120.0 are one value: defaults are read from another file than a run's config.
    shown = (
        known if value == known and isinstance(value, bool) == isinstance(known, bool) else value
    )
    return Setting(key, write_value(shown), write_value(known))


def is_notable(setting: Setting) -> bool:
    """Tell whether a setting differs from its default and says what was run."""
    return setting.changed and setting.key not in PLACES
