"""Whether a scheme can be run in the way that a config asks for."""

from __future__ import annotations

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.checkpoint import check_not_quantised, checkpoint_folder, safetensors_files
from fedmoe_app.moe.loading import PRESETS
from fedmoe_app.schemes.base import Scheme


def check_holds_chosen(config: RunConfig, scheme: Scheme) -> None:
    """Refuse ``model.experts-in-memory = "chosen"`` where it cannot work.

    Raises:
        ConfigError: a preset; a scheme that does not choose once a round, or needs all experts; a
            checkpoint that is quantised already, or has no safetensors files.
    """
    if config.model.experts_in_memory == "all":
        return
    key, name = 'model.experts-in-memory = "chosen"', config.model.name
    if name in PRESETS:
        raise ConfigError(
            f'{key}: model.name = "{name}" is a preset, made in memory; save a model to a folder '
            "and name that"
        )
    if not scheme.chooses_per_round:
        raise ConfigError(
            f'{key}: scheme = "{config.scheme}" does not choose experts once a round; choose '
            'scheme = "fedmoe", or "hfedmoe" with hfedmoe.selection = "round", or set '
            'model.experts-in-memory = "all"'
        )
    if scheme.keeps_state or scheme.needs_router_probs or scheme.personal_copy:
        raise ConfigError(
            f'{key}: scheme = "{config.scheme}" keeps tensors on the nodes, or has a loss on the '
            'probabilities of all experts; set model.experts-in-memory = "all"'
        )
    check_not_quantised(name)
    safetensors_files(name, checkpoint_folder(name))


def check_buffered(scheme: Scheme, chosen: bool = False) -> None:
    """Refuse a scheme whose changes mean nothing to a newer global state.

    Args:
        scheme: of the run.
        chosen: whether nodes hold only experts that they choose for a round.

    Raises:
        ConfigError: with the reason and the way out.
    """
    if chosen:
        raise ConfigError(
            'rounds = "buffered": nodes choose the experts that they hold round by round; set '
            'model.experts-in-memory = "all", or rounds = "sync"'
        )
    if fault := scheme.stale_fault:
        raise ConfigError(f'rounds = "buffered": {fault}; or choose rounds = "sync"')
