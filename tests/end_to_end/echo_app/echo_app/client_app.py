from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    partition = int(context.node_config["partition-id"])
    return Message(
        RecordDict({"metrics": MetricRecord({"partition-id": partition})}), reply_to=message
    )
