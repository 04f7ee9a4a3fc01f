import json
import os
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    nodes = _wait(grid, int(config["min-clients"]))
    folder = Path(str(config["output-dir"])) / str(config["run-name"])
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{len(nodes)} nodes, HF_HUB_OFFLINE={os.environ.get('HF_HUB_OFFLINE')}", flush=True)
    with (folder / "metrics.jsonl").open("w") as file:
        for server_round in range(int(config["num-server-rounds"]) + 1):
            partitions = _ask(grid, nodes) if server_round else []
            file.write(json.dumps(_line(server_round, partitions)) + "\n")
            print(f"round {server_round}: partitions {partitions}", flush=True)
    if config["seed"] == 13:
        raise RuntimeError("seed 13 brings bad luck")


def _wait(grid: Grid, count: int) -> list[int]:
    while len(nodes := sorted(grid.get_node_ids())) < count:
        time.sleep(0.2)
    return nodes


def _ask(grid: Grid, nodes: list[int]) -> list[int]:
    content = RecordDict({"config": ConfigRecord({"ask": 1})})
    messages = [Message(content, dst_node_id=node, message_type="train") for node in nodes]
    replies = grid.send_and_receive(messages, timeout=240)
    return sorted(int(reply.content["metrics"]["partition-id"]) for reply in replies)


def _line(server_round: int, partitions: list[int]) -> dict[str, object]:
    return {
        "round": server_round,
        "status": "ok",
        "loss": 1.0,
        "accuracy": 0.5,
        "metric": "accuracy",
        "num_clients": len(partitions),
        "bytes_up": 10 * len(partitions),
        "bytes_down": 20 * len(partitions),
        "clients": [{"client": partition} for partition in partitions],
        "failures": [],
        "seconds": {"round": 0.0},
    }
