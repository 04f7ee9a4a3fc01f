"""The real client, late by the node config's ``delay`` in seconds."""

import time

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedmoe_app import client_app

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    time.sleep(float(context.node_config["delay"]))
    return client_app.train(message, context)
