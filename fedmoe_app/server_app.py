"""ServerApp: read the config, build the model, pick the scheme, run, report."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federated fine-tuning; raises, so that Flower reports a failed run, if it failed."""
    from fedmoe_app.config import parse_run_config
    from fedmoe_app.report.progress import log_to_stdout, logger

    log_to_stdout()
    logger.info("reading the data and building the model")  # torch alone takes seconds to import
    from fedmoe_app.exchange import kept_alive
    from fedmoe_app.server import run_server

    with kept_alive(grid):
        run_server(grid, parse_run_config(context.run_config))
