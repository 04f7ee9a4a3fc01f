"""The entry point of ``fedmoe``: load the commands, run one, explain what went wrong."""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from pkgutil import iter_modules

from fedmoe_app.cli import commands
from fedmoe_app.cli.app import Invocation, app
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.launch.connections import LaunchError
from fedmoe_app.launch.environment import set_default_environment
from fedmoe_app.launch.processes import signals_raise
from fedmoe_app.launch.runner import RunFailedError
from fedmoe_app.results.folder import ResultsError
from fedmoe_app.shown.terminal import say_lines, say_whatever_the_encoding
from fedmoe_app.shown.text import visible

for _module in iter_modules(commands.__path__, f"{commands.__name__}."):
    import_module(_module.name)


def main() -> None:
    """Run the command line; an expected error is one paragraph and exit code 1 or 2."""
    say_whatever_the_encoding()
    set_default_environment()  # what this process imports and starts reads it
    invocation = Invocation()
    try:
        with signals_raise(signal.SIGTERM, signal.SIGHUP):
            app(obj=invocation)
    except Exception as error:
        if invocation.debug:
            raise
        sys.stdout.flush()
        say_lines(f"error: {_explained(error)}", sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


def _explained(error: Exception) -> str:
    """Return one line; of a run that failed, or of data and models, it may be more."""
    match error:
        case ConfigError() | ResultsError() | LaunchError():
            return visible(error)
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return visible(f"{where}{error.strerror or error}")
        case ModuleNotFoundError():
            return (
                f"this command needs the package {(error.name or '?').partition('.')[0]!r}, which "
                "is not installed here; run it where the whole app is: in an environment of `make "
                "install`, or in a container of the image fedmoe/app (--debug shows where it is "
                "needed)"
            )
        case RunFailedError() | ValueError():  # wrong data or models explain themselves
            return str(error)
        case _:
            return f"{error} ({type(error).__name__}; --debug shows where)"


if __name__ == "__main__":
    main()
