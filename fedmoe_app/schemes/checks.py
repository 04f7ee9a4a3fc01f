"""Whether a scheme can be run in the way that a config asks for."""

from __future__ import annotations

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.carve.preset import located
from fedmoe_app.moe.checkpoint import check_not_quantised, checkpoint_folder, safetensors_files
from fedmoe_app.moe.loading import PRESETS
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.schemes.base import Plan, Run, Scheme


def check_run(config: RunConfig, scheme: Scheme, model: ModelShape) -> Plan:
    """Build both halves of a scheme and refuse a run that they cannot serve.

    Raises:
        ConfigError: with the reason and the way out.
    """
    chosen = config.model.experts_in_memory == "chosen"
    plan = Plan.of(scheme, model)
    plan.check(Run(model, config.rounds == "buffered", chosen, config.data.task))
    if chosen:
        _check_holds_chosen(config, plan)
    return plan


def check_holds_chosen(config: RunConfig) -> None:
    """Refuse ``model.experts-in-memory = "chosen"`` where the model cannot be read in parts.

    Raises:
        ConfigError: a preset, a checkpoint that is quantised already, or has no safetensors files.
    """
    if config.model.experts_in_memory == "all":
        return
    name = located(config.model.name)
    if name in PRESETS:
        raise ConfigError(
            f'{_KEY}: model.name = "{name}" is a preset, made in memory; save a model to a folder '
            "and name that"
        )
    check_not_quantised(name)
    safetensors_files(name, checkpoint_folder(name))


_KEY = 'model.experts-in-memory = "chosen"'


def _check_holds_chosen(config: RunConfig, plan: Plan) -> None:
    """Refuse a scheme that does not choose once a round, or needs all experts."""
    if not plan.chooses_once:
        raise ConfigError(
            f'{_KEY}: scheme = "{config.scheme}" does not choose experts once a round; choose '
            'scheme = "fedmoe", or "hfedmoe" with hfedmoe.selection = "round", or set '
            'model.experts-in-memory = "all"'
        )
    if plan.keeps_state or plan.needs_router_probs:
        raise ConfigError(
            f'{_KEY}: scheme = "{config.scheme}" keeps tensors on the nodes, or has a loss on the '
            'probabilities of all experts; set model.experts-in-memory = "all"'
        )
