"""What is wrong with scheme, model or data, found before anything is started.

The ServerApp looks at the same and at more. Here the answer comes at once and not after a
SuperLink has been started. What ships with the package is not looked at: that would import torch,
which takes seconds.
"""

from __future__ import annotations

import os
from pathlib import Path

from fedmoe_app.config import EMBEDDED, NODES, ConfigError, RunConfig
from fedmoe_app.launching.environment import default_environment
from fedmoe_app.names import COMBINE, PRESET_NAMES, SCHEME_NAMES, is_own_scheme, unknown_scheme


def check_simulated(config: RunConfig, num_clients: int) -> None:
    """Check scheme, model and data of a run whose server and nodes are on this machine.

    Raises:
        ConfigError, DataError, ModelNotFoundError, UnsupportedModelError: naming key, value and
            choices.
    """
    check_scheme_name(config.scheme)
    _check_scheme(config)
    check_sources(config, num_clients)


def check_sources(config: RunConfig, num_clients: int) -> None:
    """Check what a run reads: its model's files, and its data with the clients' parts of it.

    Raises:
        ConfigError, DataError, ModelNotFoundError, UnsupportedModelError: as above.
    """
    # Read by datasets and transformers when they are imported; a user's own values stay.
    for name, value in default_environment().items():
        os.environ.setdefault(name, value)
    _check_model(config)
    _check_data(config, num_clients)


def check_scheme_name(name: str) -> None:
    """Refuse a name that is neither a built-in scheme's nor ``package.module:Class``.

    This much holds for a SuperLink elsewhere, too; a user's class need not be installed here.

    Raises:
        ConfigError: naming the choices.
    """
    if name not in SCHEME_NAMES and not is_own_scheme(name):
        raise ConfigError(unknown_scheme(name))


def _check_scheme(config: RunConfig) -> None:
    built_in = config.scheme in SCHEME_NAMES and config.scheme != COMBINE
    if built_in and not config.scheme_args:
        return  # the run config holds nothing else of it that could be wrong
    from fedmoe_app.schemes import make_scheme

    make_scheme(config)


def _check_model(config: RunConfig) -> None:
    if config.model.name in PRESET_NAMES:
        return
    from fedmoe_app.local.trainable_modes import check_trainable
    from fedmoe_app.moe.checkpoint import check_checkpoint

    check_trainable(config)
    check_checkpoint(config.model.name)


def _check_data(config: RunConfig, num_clients: int) -> None:
    data = config.data
    if data.source == NODES:
        raise ConfigError(
            f'data.source = "{NODES}": simulated nodes bring no data of their own; name a file or '
            "a data set, or run on the nodes of a SuperLink: fedmoe run APP CONNECTION"
        )
    if data.source == EMBEDDED and not data.test_source:
        return
    from fedmoe_app.data.partitions import partition_sizes
    from fedmoe_app.data.sources import load_text_data

    _check_files("data.source", data.source)
    _check_files("data.test-source", data.test_source)
    train = load_text_data(data).train
    partition_sizes(train, data, num_clients, config.seed)


def _check_files(key: str, names: str) -> None:
    """Say which key names a file that is not there; what is in a file, its reader says."""
    from fedmoe_app.data.files import looks_like_file

    for name in filter(None, map(str.strip, names.split(","))):
        if looks_like_file(name) and not Path(name).expanduser().is_file():
            raise ConfigError(
                f'{key} = "{name}": there is no such file (looked for '
                f"{Path(name).expanduser().absolute()}); name your own, by a path from this folder "
                "or an absolute one"
            )
