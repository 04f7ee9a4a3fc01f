"""The registry of aggregation schemes."""

from __future__ import annotations

import importlib

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.names import COMBINE, is_own_scheme, unknown_scheme
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.schemes.base import Scheme
from fedmoe_app.schemes.combine import Combination
from fedmoe_app.schemes.fcmoe import FCMoE
from fedmoe_app.schemes.fedalign import FedAlignMoE
from fedmoe_app.schemes.fedavg import FedAvg
from fedmoe_app.schemes.fedmoe import FedMoE
from fedmoe_app.schemes.fedprox import FedProx
from fedmoe_app.schemes.hfedmoe import HFedMoE
from fedmoe_app.schemes.pflmoe import PFLMoE

SCHEMES: dict[str, type[Scheme]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedmoe": FedMoE,
    "pflmoe": PFLMoE,
    "hfedmoe": HFedMoE,
    "fcmoe": FCMoE,
    "fedalign": FedAlignMoE,
}


def make_scheme(config: RunConfig) -> Scheme:
    """Build the scheme that the run config names.

    Raises:
        ConfigError: if the name is unknown, a user's class cannot be imported, or it refuses
            its arguments.
    """
    name = config.scheme
    if name == COMBINE:
        return _combination(config)
    scheme_class = _import_scheme(name) if is_own_scheme(name) else SCHEMES.get(name)
    if scheme_class is None:
        raise ConfigError(unknown_scheme(name))
    if name in SCHEMES and config.scheme_args:
        raise ConfigError(
            f'scheme-args = {config.scheme_args}: only for your own scheme; scheme = "{name}" '
            f"takes its parameters from the [{name}] table"
        )
    try:
        return scheme_class.from_config(config)
    except ConfigError:  # names its key already
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(
            f'scheme = "{name}", scheme-args = {config.scheme_args}: {error}'
        ) from error


def _combination(config: RunConfig) -> Combination:
    """Build each part of ``combine`` from its own table."""
    parts = config.combine.model_dump()
    # A personal copy of the whole model is no part of one.
    choices = [name for name in SCHEMES if name != "pflmoe"]
    for part, name in parts.items():
        if name not in choices:
            raise ConfigError(f'combine.{part} = "{name}": choose one of {", ".join(choices)}')
    return Combination(**{part: SCHEMES[name].from_config(config) for part, name in parts.items()})


def _import_scheme(name: str) -> type[Scheme]:
    """Import ``package.module:Class`` and make sure that it is a scheme."""
    module_name, _, class_name = name.partition(":")
    try:
        scheme_class = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # whatever the user's module does
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f'scheme = "{name}": cannot be imported ({reason}); it takes "package.module:Class" '
            "of a package that is installed on the server and on every node"
        ) from error
    if not (isinstance(scheme_class, type) and issubclass(scheme_class, Scheme)):
        raise ConfigError(f'scheme = "{name}": not a subclass of fedmoe_app.schemes.base.Scheme')
    return scheme_class
