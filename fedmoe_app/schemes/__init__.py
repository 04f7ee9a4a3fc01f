"""The registry of aggregation schemes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.names import (
    COMBINE,
    LABEL_SKEW,
    SCHEME_CLASSES,
    WITH_ARGS,
    is_own_scheme,
    unknown_scheme,
)
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.schemes.average import Averaged
from fedmoe_app.schemes.base import Scheme
from fedmoe_app.schemes.combine import Combination
from fedmoe_app.schemes.withhead import ClosedFormHead


class _Schemes(Mapping[str, type[Scheme]]):
    """Classes by name, each imported when it is asked for."""

    def __getitem__(self, name: str) -> type[Scheme]:
        module, _, class_name = SCHEME_CLASSES[name].partition(":")
        found: type[Scheme] = getattr(importlib.import_module(f"{__name__}.{module}"), class_name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(SCHEME_CLASSES)

    def __len__(self) -> int:
        return len(SCHEME_CLASSES)


SCHEMES: Mapping[str, type[Scheme]] = _Schemes()


def make_scheme(config: RunConfig) -> Scheme:
    """Build the scheme that the run config names, with head and average that it asks for.

    Raises:
        ConfigError: if the name is unknown, a user's class cannot be imported, or it refuses
            its arguments.
    """
    scheme = _with_head(_named_scheme(config), config)
    average = config.average
    if average.of == "none":
        return scheme
    return Averaged(scheme, average.of, average.beta, average.models)


def _with_head(scheme: Scheme, config: RunConfig) -> Scheme:
    head = config.head
    if head.closed_form == "none":
        return scheme
    return ClosedFormHead(
        scheme,
        when=head.closed_form,
        method=head.method,
        shrinkage=head.shrinkage,
        logit_rms=head.logit_rms,
        fixed=head.fixed,
        leave_one_out=head.leave_one_out,
        held_back=head.held_back,
    )


def _named_scheme(config: RunConfig) -> Scheme:
    name = config.scheme
    if name == COMBINE:
        return _combination(config)
    scheme_class = _import_scheme(name) if is_own_scheme(name) else SCHEMES.get(name)
    if scheme_class is None:
        raise ConfigError(unknown_scheme(name))
    if name in SCHEMES and name not in WITH_ARGS and config.scheme_args:
        raise ConfigError(
            f'scheme-args = {config.scheme_args}: only for your own scheme; scheme = "{name}" '
            f"takes its parameters from the [{name}] table"
        )
    return _built(name, scheme_class, config)


def _built(name: str, scheme_class: type[Scheme], config: RunConfig) -> Scheme:
    """Build a scheme; what it refuses is named by it."""
    try:
        return scheme_class.from_config(config)
    except ConfigError:  # names its key already
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(
            f'scheme = "{name}", scheme-args = {config.scheme_args}: {error}'
        ) from error


def _combination(config: RunConfig) -> Combination:
    """Build each part of ``combine`` from its own table, or from its name in ``scheme-args``."""
    arguments = config.scheme_kwargs
    parts = config.combine.model_dump()
    # A personal copy of the whole model is no part of one.
    tables = [name for name in SCHEMES if name not in WITH_ARGS and name != "pflmoe"]
    if unused := sorted(set(arguments) - (set(parts.values()) & set(LABEL_SKEW))):
        raise ConfigError(
            f'scheme-args = {config.scheme_args}: "{unused[0]}" is no part of combine.* that takes '
            'arguments; write them by scheme, such as {"fedntd": {"beta": 0.1}}'
        )
    for name, given in arguments.items():
        if not isinstance(given, dict):
            raise ConfigError(
                f'scheme-args = {config.scheme_args}: "{name}" takes a JSON object of its '
                'arguments, such as {"fedntd": {"beta": 0.1}}'
            )
    built = {}
    for part, name in parts.items():
        choices = [*tables, *LABEL_SKEW] if part == "loss" else tables
        if name not in choices:
            raise ConfigError(f'combine.{part} = "{name}": choose one of {", ".join(choices)}')
        own = {"scheme_args": json.dumps(arguments.get(name, {}))}
        built[part] = _built(name, SCHEMES[name], config.model_copy(update=own))
    return Combination(**built)


def _import_scheme(name: str) -> type[Scheme]:
    """Import ``package.module:Class`` and make sure that it is a scheme."""
    module_name, _, class_name = name.partition(":")
    try:
        scheme_class = getattr(importlib.import_module(module_name), class_name)
    except (Exception, SystemExit) as error:  # whatever the user's module does
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f'scheme = "{name}": cannot be imported ({reason}); it takes "package.module:Class" '
            "of a package that is installed on the server and on every node"
        ) from error
    if not (isinstance(scheme_class, type) and issubclass(scheme_class, Scheme)):
        raise ConfigError(f'scheme = "{name}": not a subclass of fedmoe_app.schemes.base.Scheme')
    return scheme_class
