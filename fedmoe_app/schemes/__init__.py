"""The registry of aggregation schemes: the only place where their names stand."""

from __future__ import annotations

import importlib

from fedmoe_app.config import ConfigError, RunConfig
from fedmoe_app.schemes.base import Scheme
from fedmoe_app.schemes.fedavg import FedAvg
from fedmoe_app.schemes.fedmoe import FedMoE
from fedmoe_app.schemes.fedprox import FedProx

SCHEMES: dict[str, type[Scheme]] = {"fedavg": FedAvg, "fedprox": FedProx, "fedmoe": FedMoE}


def make_scheme(config: RunConfig) -> Scheme:
    """Build the scheme that the run config names.

    Raises:
        ConfigError: if the name is unknown, a user's class cannot be imported, or it refuses
            its arguments.
    """
    name = config.scheme
    scheme_class = _import_scheme(name) if ":" in name else SCHEMES.get(name)
    if scheme_class is None:
        raise ConfigError(
            f'scheme = "{name}": unknown; choose one of {", ".join(sorted(SCHEMES))}, '
            'or your own as "package.module:Class"'
        )
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
