"""What Flower's programs read from their environment, and what they say."""

from __future__ import annotations

import re

# No telemetry, no question for updates; no `uv sync`, which would download every dependency again,
# for every run; seconds between two looks for work, whose default of 1 s adds up over the rounds.
NO_INSTALLATION = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"
VARIABLES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    NO_INSTALLATION: "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
}
LOCAL_PORT = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"  # of the SuperLink that `flwr run` starts

COMPLETED, STOPPED = "finished:completed", "finished:stopped"  # statuses of a run
STARTED = re.compile(r"Successfully started run (\d+)")
FAILED_WITH = re.compile(r"^\w+ failed with exception: ")
# What a simulation says where its engine, Ray, does not start or crashes, and the line with why.
ENGINE_FAILED = "An error was encountered. Ending simulation."
ENGINE_ERROR = re.compile(r"An exception occured!! (.+)")
KNOWN_KEY = "Public key already in use"

# Beginnings of what Flower and Ray dump when a client raises: pages, several times over.
CLIENT_DUMP = ("An exception was raised when processing a message", "ray::", "Traceback (most")
# What Flower says when a ServerApp ends by an exception; the app has said the reason before.
SERVER_DUMP = ("ServerApp raised an exception", "An unhandled exception occurred in the ServerApp")
# Beginnings of messages of Flower and Ray that say nothing about the run.
NOISE = (
    "Flower App configuration warnings",
    "- Recommended property",
    "Using SuperLink:",
    "Successfully started run",
    "Successfully installed",
    "Starting logstream",
    "Starting Flower Simulation",
    "Start `flwr-serverapp` process",
    "Since flwr 1.32",
    "Federation `",
    "To change federation size",
    "flwr federation simulation-config",
    "Warning: `options.` fields",
    "Simulation raised an exception",
    "Exit Code:",
    "An unhandled exception occurred when running",
    "For more information, visit: <https://flower.ai",
    "Manually terminating ClientAppActor",
)
