"""What is wrong with scheme, model or data, found before anything is started.

The ServerApp looks at the same and at more. Here the answer comes at once and not after a
SuperLink has been started. What ships with the package is not looked at: that would import torch,
which takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.lists import check_classes, file_names, looked_for
from fedmoe_app.config.names import (
    ADAPTERS_ONLY,
    COMBINE,
    EMBEDDED_CLASSES,
    EMBEDDED_ROWS,
    LABEL_SKEW,
    PRESET_CLASSES,
    PRESET_EXPERTS,
    PRESET_NAMES,
    SCHEME_NAMES,
    is_own_scheme,
    unknown_scheme,
)
from fedmoe_app.config.parse import flatten_run_config
from fedmoe_app.config.schema import EMBEDDED, NODES, DataConfig, RunConfig
from fedmoe_app.launch.environment import set_default_environment

if TYPE_CHECKING:
    from fedmoe_app.data.sources import TextData

_LOOKED_AT = 200  # conversations; a template's faults show in the first ones


def check_simulated(config: RunConfig, num_clients: int) -> None:
    """Check scheme, model and data of a run whose server and nodes are on this machine.

    Raises:
        ConfigError, DataError, ModelNotFoundError, UnsupportedModelError: naming key, value and
            choices.
    """
    check_scheme_name(config.scheme)
    check_scheme(config)
    check_method(config, check_sources(config, num_clients))
    if config.resume:
        from fedmoe_app.server.resume import check_same_config

        check_same_config(Path(config.resume), flatten_run_config(config))


def check_sources(config: RunConfig, num_clients: int) -> tuple[str, ...]:
    """Check what a simulated run reads: its model's files, and its data with the clients' parts.

    Returns:
        The class names in index order; none where they are those of the embedded corpus.

    Raises:
        ConfigError, DataError, ModelNotFoundError, UnsupportedModelError: as above.
    """
    # Read by datasets and transformers when they are imported; a user's own values stay.
    set_default_environment()
    if config.client_list:
        raise ConfigError(
            f'client-list = "{config.client_list}": simulated nodes have no keys; leave it out, or '
            "run on the nodes of a SuperLink: fedmoe run APP CONNECTION"
        )
    check_model(config)
    return _check_data(config, num_clients)


def check_method(config: RunConfig, label_names: Sequence[str]) -> None:
    """Check that model, task, classes and scheme fit together, without reading weights.

    Args:
        config: of the run.
        label_names: as :func:`check_sources` returns them.

    Raises:
        ConfigError, TokenizerError, UnsupportedModelError, ValueError: as above.
    """
    if _surely_fit(config, len(label_names)):
        return
    from fedmoe_app.schemes import make_scheme
    from fedmoe_app.schemes.checks import check_holds_chosen, check_run
    from fedmoe_app.tasks.setup import check_setup

    scheme = make_scheme(config)
    check_holds_chosen(config)
    shape = check_setup(config, label_names or _embedded_classes(config.data))
    check_run(config, scheme, shape)


def _embedded_classes(data: DataConfig) -> Sequence[str]:
    from fedmoe_app.data.corpus import LIBRARIES

    return tuple(LIBRARIES) if data.kind.classifies else ()


def _surely_fit(config: RunConfig, num_classes: int) -> bool:
    """Tell whether a built-in scheme and a preset fit whatever else the run config holds."""
    data, model = config.data, config.model
    plain_scheme = config.scheme in SCHEME_NAMES and config.scheme != COMBINE
    plain_model = model.name in PRESET_NAMES and model.head == "auto"
    return (
        (plain_scheme and not config.scheme_args)
        and (plain_model and model.experts_in_memory == "all")
        and (model.gates or model.train == "all")
        and config.fedmoe.experts_per_client <= PRESET_EXPERTS
        and config.rounds == "sync"
        and (data.kind.classifies or config.scheme not in (*LABEL_SKEW, "calmerge"))
        and config.head.closed_form == "none"
        and data.metric != "exact-match"
        and num_classes <= PRESET_CLASSES
    )


def check_scheme_name(name: str) -> None:
    """Refuse a name that is neither a built-in scheme's nor ``package.module:Class``.

    This much holds for a SuperLink elsewhere, too; a user's class need not be installed here.

    Raises:
        ConfigError: naming the choices.
    """
    if name not in SCHEME_NAMES and not is_own_scheme(name):
        raise ConfigError(unknown_scheme(name))


def check_scheme(config: RunConfig) -> None:
    """Check that a scheme can be made with its own keys and arguments.

    Raises:
        ConfigError, TypeError, ValueError: as it says itself.
    """
    built_in = config.scheme in SCHEME_NAMES and config.scheme != COMBINE
    if built_in and not config.scheme_args and config.scheme not in ADAPTERS_ONLY:
        return  # the run config holds nothing else of it that could be wrong
    from fedmoe_app.schemes import make_scheme

    make_scheme(config)


def check_model(config: RunConfig, *, weights: bool = True) -> None:
    """Check that a model is there and can be trained as the run config says; a preset passes.

    Args:
        config: of the run.
        weights: whether its files of weights must be whole, too.

    Raises:
        ConfigError, ModelNotFoundError, UnsupportedModelError: as above.
    """
    if config.model.name in PRESET_NAMES:
        return
    from fedmoe_app.client.trainable_modes import check_trainable
    from fedmoe_app.moe.checkpoint import check_checkpoint

    check_trainable(config)
    if weights:
        check_checkpoint(config.model.name)


def _check_data(config: RunConfig, num_clients: int) -> tuple[str, ...]:
    data = config.data
    if data.source == NODES:
        raise ConfigError(
            f'data.source = "{NODES}": simulated nodes bring no data of their own; name a file or '
            "a data set, or run on the nodes of a SuperLink: fedmoe run APP CONNECTION"
        )
    if _is_embedded_as_it_comes(data, num_clients):
        return ()
    from fedmoe_app.data.partitions import partition_sizes
    from fedmoe_app.data.sources import load_text_data

    check_files(data)
    found = load_text_data(data)
    if data.kind.classifies:
        check_classes(found.label_names, data.source)
    partition_sizes(found.train, data, num_clients, config.seed)
    _check_conversations(config, found)
    return found.label_names


def _check_conversations(config: RunConfig, found: TextData) -> None:
    """Put the first conversations through the chat template, which may refuse some."""
    parts = [part for part in (found.train, found.test) if part and "messages" in part.column_names]
    if not parts:
        return
    from fedmoe_app.data.language.encode import row_encoder
    from fedmoe_app.data.tokenizer import load_tokenizer
    from fedmoe_app.moe.carve.preset import located

    data = config.data
    tokenizer = load_tokenizer(located(config.model.name), PRESET_NAMES)
    for part in parts:
        encoder = row_encoder(part.column_names, tokenizer, data.max_length, False, data)
        encoder.rows(part[:_LOOKED_AT])


def _is_embedded_as_it_comes(data: DataConfig, num_clients: int) -> bool:
    """Tell whether the run reads the embedded corpus alone, in a way that surely can be split."""
    rows = min(data.max_train_examples or EMBEDDED_ROWS, EMBEDDED_ROWS)
    as_it_comes = (
        data.source == EMBEDDED
        and data.kind.classifies
        and (data.text_field, data.label_field) == ("text", "label")
        and not (data.test_source or data.validation_source)
        and not (data.label_names or data.label_names_file)
        and data.partition_by in ("", "label")
    )
    splits = {
        "iid": num_clients * max(1, data.min_partition_size) <= rows,
        "natural": num_clients <= EMBEDDED_CLASSES and data.min_partition_size <= 1,
        # Only where so few rows a client would be a miracle.
        "dirichlet": data.alpha >= 0.3 and data.min_partition_size <= 1 and num_clients <= 16,
    }
    return as_it_comes and splits[data.partition] and num_clients * 100 <= rows


def check_files(data: DataConfig) -> None:
    """Say which key names a file that is not there; what is in a file, its reader says.

    Raises:
        ConfigError: naming key and path, and how a value with commas was taken.
    """
    if data.source_kind != "auto":
        return  # patterns and folders, which their reader looks for
    if data.source not in (EMBEDDED, NODES):
        _check_value("data.source", data.source)
    _check_value("data.test-source", data.test_source)
    _check_value("data.validation-source", data.validation_source)


def _check_value(key: str, value: str) -> None:
    from fedmoe_app.data.files import looks_like_file

    for name in file_names(value, key=key):
        if looks_like_file(name) and not Path(name).expanduser().is_file():
            raise ConfigError(
                f'{key} = "{name}": there is no such file (looked for '
                f"{Path(name).expanduser().absolute()}); name your own, by a path from this folder "
                f"or an absolute one{looked_for(value)}"
            )
