"""Does it pay to compute a run's frozen prefix once? The same answer on every machine.

It follows from the run config, the model and a client's examples alone: what is computed once has
other last bits than what is computed batch by batch, so a full disk or a resumed run must not
change the answer. docs/frozen-layers.md has the measurements behind it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.schema import RunConfig, TrainConfig
from fedmoe_app.data.encoding import Row
from fedmoe_app.moe.partial.streamed import all_experts
from fedmoe_app.moe.prefix.find import NoPrefixError, Prefix, find_prefix
from fedmoe_app.moe.prefix.replay import check
from fedmoe_app.tasks.setup import Setup

MIB = 2**20
LEAST_SAVED = 0.25  # share of a training step; a cached step is never below a quarter faster
LEAST_PASSES = 0.5  # of a round through a client's examples; filling takes about two forwards

logger = logging.getLogger("fedmoe")


def frozen_prefix(config: RunConfig, setup: Setup) -> Prefix | None:
    """Return the model's frozen prefix if the config lets it be computed once, else None.

    Raises:
        ConfigError: ``train.prefix-cache = "on"`` with a model that has none; says why.
    """
    choice = config.train.prefix_cache
    if choice == "off":
        return None
    try:
        prefix = find_prefix(setup.model, setup.layers)
        if choice == "auto" and prefix.saved < LEAST_SAVED:
            return None
        return prefix
    except NoPrefixError as error:
        _go_without(config, error)
        return None


def tried(config: RunConfig, setup: Setup, prefix: Prefix) -> Prefix | None:
    """Return the prefix if the model can be run from its hidden states on, else None.

    Raises:
        ConfigError: as :func:`frozen_prefix`.
    """
    try:
        with all_experts(setup.model, setup.layers):
            check(prefix, setup.model.config.get_text_config().vocab_size)
        return prefix
    except NoPrefixError as error:
        _go_without(config, error)
        return None


def _go_without(config: RunConfig, error: NoPrefixError) -> None:
    if config.train.prefix_cache == "on":
        raise ConfigError(
            f'train.prefix-cache = "on" with model.name = "{config.model.name}" and model.train = '
            f'"{config.model.train}": there is no frozen prefix to compute once ({error}); choose '
            '"auto" or "off"'
        ) from None
    logger.debug("no frozen prefix is computed once: %s", error)


def pays(train: TrainConfig, setup: Setup, rows: Iterable[Row], num_trained: int) -> bool:
    """Tell whether a client, or the server, does better with it; "on" always does.

    Args:
        train: the run's.
        setup: the model.
        rows: all that it will see.
        num_trained: how many of them it trains on; 0 for the server, which scores them all.
    """
    if train.prefix_cache == "on":
        return True
    if num_trained and train.examples_seen(num_trained) < LEAST_PASSES * num_trained:
        return False
    return sum(map(_tokens, rows)) * bytes_a_token(setup) <= train.prefix_cache_mib * MIB


def bytes_a_token(setup: Setup) -> int:
    """Return the bytes of a token's hidden state."""
    return setup.shape.hidden_size * torch.finfo(setup.model.dtype).bits // 8


def _tokens(row: Row) -> int:
    """Return the tokens of an example, about: those with every option, too."""
    ids, options = row["input_ids"], row.get("options", [])
    return len(ids) + sum(len(ids) + len(option) for option in options)


def described(config: RunConfig, setup: Setup, prefix: Prefix) -> str:
    """Say what is computed once and what it takes on a node's disk, in one line."""
    size, frozen = bytes_a_token(setup), prefix.length
    return (
        f"layers 1 to {frozen} of {len(prefix.layers)} are frozen: computed once a text, "
        f"{size / 1000:.1f} kB a token on the clients' disks, at most "
        f"{config.train.prefix_cache_mib} MiB a client (train.prefix-cache)"
    )
