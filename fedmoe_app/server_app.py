"""ServerApp: read the config, build the model, pick the scheme, run, report."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federated fine-tuning; raises, so that Flower reports a failed run, if it failed."""
    from fedmoe_app.config.parse import parse_run_config
    from fedmoe_app.results.events import AppDone, log_to_stdout, logger, tell
    from fedmoe_app.server.transport import kept_alive, prepare_clients

    # `fedmoe run` gives every run a name and reads its events; by hand `flwr run` gives it none.
    log_to_stdout(followed=bool(context.run_config.get("run-name")))
    logger.info("reading the data and building the model")  # torch alone takes seconds to import
    prepare_clients(grid)
    from fedmoe_app.client.root import train_on_root
    from fedmoe_app.client.trainable_modes import check_trainable
    from fedmoe_app.server.run import run_server

    with kept_alive(grid):
        config = parse_run_config(context.run_config)
        check_trainable(config)
        run_server(grid, config, train_on_root)
    tell(AppDone())
