"""What a curious server, or whoever gets the model, learns of a client; and what noise costs.

    python -m benchmarks.privacy leaks [--clients 10] [--seeds 3]
    python -m benchmarks.privacy again [--clients 10] [--seeds 3]
    python -m benchmarks.privacy sums [--clients 10]
    python -m benchmarks.privacy budget [--clients 1000] [--rate 0.1] [--clip 3]
    python -m benchmarks.privacy examples [--clients 4] [--rows 1900]

``leaks``: clients with 30 rows of the embedded corpus each (Dirichlet 0.5) train qwen3moe-tiny for
one round. Two attacks on what is seen, each with the best that it can hope for:

    vocabulary   rows of the embedding by how far they moved, but for weight decay, the k first
                 taken for the client's tokens; k is the number of its distinct tokens, so that
                 precision is recall
    label mix    the head's change of each class along the mean feature of public text (the test
                 set's), and its correlation over the classes with the client's shares of them

``again``: what a second sum tells of a client that is in the first only: the cosine between the
difference of the two and that client's change, and both attacks on the difference. As
``leaks``; the mean is over the clients.

``sums``: bytes and seconds of a round of FedMoE with qwen3moe-tiny, plain and masked.

``budget``: accuracy of the global model after ten rounds of FedAvg in one process: as it is, with
the clip alone, and with noise for several ε. The model is qwen3moe-tiny in one layer of width 16
with four experts, random at first: 36,864 values, all trained. Test rows: 800. Each setting's
accuracy is kept in ``$FEDMOE_HOME/benchmarks/privacy-budget``, so that a benchmark that was stopped
goes on with the next; delete the folder after a change that matters.

``examples``: the same for privacy of single examples, DP-SGD on LoRA of experts, routers and head.
The base is that model, trained in full on 2,000 rows that are nobody's. Steps and draws are the
same in all settings; plain training has batches of as many examples as are drawn in the mean.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cells import print_markdown, run_config
from fedmoe_app import FedAvg, ModelState, Plan, parse_run_config, read_metrics, run_in_process
from fedmoe_app.aggregation.aggregate import aggregate
from fedmoe_app.aggregation.streaming import round_info
from fedmoe_app.client.round import prepare_round
from fedmoe_app.client.timing import Stopwatch
from fedmoe_app.config.files import write_atomic
from fedmoe_app.config.node import Node
from fedmoe_app.config.paths import home
from fedmoe_app.moe.layers import read_state
from fedmoe_app.privacy.accountant import noise_for
from fedmoe_app.privacy.client_level import ClientLevel, private_plan
from fedmoe_app.privacy.clipping import bounded, whole_norm
from fedmoe_app.privacy.member import Member
from fedmoe_app.privacy.ring import from_ring, to_ring, value_bits, weight_of
from fedmoe_app.results.table import human_bytes
from fedmoe_app.tasks.seeding import client_seed, one_client
from fedmoe_app.tasks.setup import load_setup, server_data
from fedmoe_app.wire.records import TrainTask
from fedmoe_app.wire.update import ClientUpdate

EMBEDDING, HEAD = "model.embed_tokens.weight", "score.weight"
ROWS = 30  # of a client in the mean
DELTA, ROUNDS = 1e-5, 10
EXAMPLE_ROUNDS, EXAMPLE_STEPS = 3, 20
PUBLIC_ROWS = 2000  # that the base of adapters is trained on
ADAPTERS = {
    "num-server-rounds": EXAMPLE_ROUNDS,
    "evaluate-every": EXAMPLE_ROUNDS,
    "model.train": "expert-lora",
    "model.head": "sequence",
    "train.max-steps": EXAMPLE_STEPS,
    "train.num-train-epochs": 100.0,
    "train.learning-rate": 1e-2,
}
SMALL = dict(
    hidden_size=16,
    moe_intermediate_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    num_experts=4,
    layer_types=None,
)


# -- leaks -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Secret:
    """What an attack is to find out of a client: its tokens, and its share of each class."""

    tokens: frozenset[int]
    shares: np.ndarray


@dataclass(frozen=True)
class Round:
    """One round: the model that all started from, what they sent, and what is public."""

    state: ModelState
    updates: Sequence[ClientUpdate]
    secrets: Sequence[Secret]
    feature: Tensor
    plan: Plan


def leaks(clients: int, seeds: int) -> None:
    rounds = [one_round(clients, seed) for seed in range(seeds)]
    norms = [whole_norm(u.changes) for each in rounds for u in each.updates]
    clip = statistics.median(norms)
    print(f"{clients} clients a round, {seeds} seeds; median norm of an update {clip:.3g}\n")
    chance = statistics.fmean(
        len(secret.tokens) / len(each.state.dense[EMBEDDING])
        for each in rounds
        for secret in each.secrets
    )
    rows = [
        ["nothing", "server: one update", *_scores(rounds, lambda r, i: r.updates[i].changes)],
        ["nothing", "others: the model's change", *_scores(rounds, lambda r, i: mean_of(r))],
        [
            "dp",
            "server: one clipped update",
            *_scores(rounds, lambda r, i: bounded(r.updates[i], clip).changes),
        ],
    ]
    for target in (64.0, 8.0, 2.0):
        level = ClientLevel(clip, noise_for(target, 1.0, ROUNDS, DELTA), 1.0, clients, DELTA)
        rows.append(
            [
                f"dp, ε = {target:g} in {ROUNDS} rounds",
                "others: the model's change",
                *_scores(rounds, lambda r, i, level=level: noised(r, level)),
            ]
        )
    rows += [
        ["secure sums", "server: one masked update", *_scores(rounds, masked)],
        ["secure sums", "server: the sum", *_scores(rounds, lambda r, i: mean_of(r))],
        ["", "chance", f"{chance:.2f}", "0.00"],
    ]
    print_markdown(("mechanism", "what is seen", "vocabulary", "label mix"), rows)


def again(clients: int, seeds: int) -> None:
    rows: dict[str, list[tuple[float, Round, list[ModelState]]]] = {}
    for seed in range(seeds):
        first = one_round(clients, seed)
        nearly, later = copy.deepcopy(first.state), copy.deepcopy(first.state)
        nearly.dense[HEAD][0, 0] += 1e-6
        for name, change in mean_of(first).named():
            dict(later.named())[name].add_(change)
        seconds = {
            "the same start": one_round(clients, seed, first.state),
            "one value by 1e-6": one_round(clients, seed, nearly),
            "other batches": one_round(clients, seed, first.state, server_round=2),
            "the next round": one_round(clients, seed, later, server_round=2),
        }
        for name, second in seconds.items():
            rest = [_less(first, second, i) for i in range(clients)]
            own = [dict(update.changes.named()) for update in first.updates]
            near = statistics.fmean(map(_cosine, (dict(d.named()) for d in rest), own))
            rows.setdefault(name, []).append((near, first, rest))
    table = []
    for name, found in rows.items():
        left = {id(first): rest for _, first, rest in found}
        scores = _scores([f for _, f, _ in found], lambda r, i, left=left: left[id(r)][i])
        table.append([name, f"{statistics.fmean(near for near, *_ in found):.2f}", *scores])
    print_markdown(("second sum from", "cosine", "vocabulary", "label mix"), table)


def _less(first: Round, second: Round, client: int) -> ModelState:
    """Return the first sum less the second one, which the client is not in."""
    found = ModelState()
    sent = [[dict(u.changes.named()) for u in each.updates] for each in (first, second)]
    for name, value in first.state.named():
        zero = torch.zeros_like(value)
        one = sum((own.get(name, zero) for own in sent[0]), zero)
        others = (own.get(name, zero) for i, own in enumerate(sent[1]) if i != client)
        found.insert(name, one - sum(others, zero))
    return found


def _cosine(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    dots = sum(float((one[k].double() * other[k].double()).sum()) for k in other)
    lengths = [
        sum(float(t.double().square().sum()) for t in each.values()) ** 0.5 for each in (one, other)
    ]
    return dots / (lengths[0] * lengths[1])


def one_round(
    clients: int, seed: int, state: ModelState | None = None, server_round: int = 1
) -> Round:
    config = parse_run_config(
        run_config(
            {
                "seed": seed,
                "data.max-train-examples": ROWS * clients,
                "data.max-test-examples": 200,
                "data.local-test-fraction": 0.0,
                "data.min-partition-size": 10,
            }
        )
    )
    data = server_data(config.data)
    setup = load_setup(config, data.label_names)
    state = read_state(setup.model, setup.layers) if state is None else state
    feature = _mean_feature(setup.model, setup.task, setup.task.encode(data.test))
    updates, secrets = [], []
    for client in range(clients):
        node = Node(client, client, clients, None)
        task = TrainTask(server_round, state, data.label_names, data.fingerprint)
        with one_client(client_seed(seed, server_round, client), 1):
            ready = prepare_round(config, node, task, Stopwatch())
            updates.append(ready.run())
        secrets.append(_secret(ready.rows.train, len(data.label_names)))
    plan = Plan.of(FedAvg(), setup.shape)
    return Round(state, updates, secrets, feature, plan)


def _secret(rows: Sequence[Mapping[str, Any]], classes: int) -> Secret:
    tokens = frozenset(token for row in rows for token in row["input_ids"])
    counts = np.bincount([int(row["labels"]) for row in rows], minlength=classes)
    return Secret(tokens, counts / counts.sum())


def _mean_feature(model: Any, task: Any, rows: Any) -> Tensor:
    """Return the mean of what the head sees of public text, ``[D]``."""
    seen: list[Tensor] = []
    hook = model.score.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].detach().reshape(-1, args[0].shape[-1]))
    )
    with torch.no_grad():
        for start in range(0, len(rows), 50):
            batch = task.collate([rows[i] for i in range(start, min(start + 50, len(rows)))], "cpu")
            task.score(model, batch)
    hook.remove()
    return torch.cat(seen).mean(dim=0)


def mean_of(each: Round) -> ModelState:
    """Return what FedAvg moves the model by."""
    return _moved(each, each.plan, each.updates)


def noised(each: Round, level: ClientLevel) -> ModelState:
    """Return what the model moves by under differential privacy."""
    cut = [bounded(update, level.clip) for update in each.updates]
    return _moved(each, private_plan(each.plan, level), cut)


def masked(each: Round, client: int) -> ModelState:
    """Return what a masked update looks like to a server that takes it for an update."""
    members = {node: Member.begin(node, "benchmark") for node in range(len(each.updates))}
    keys = {node: member.public() for node, member in members.items()}
    for member in members.values():
        member.share(keys)
    update, bits = each.updates[client], value_bits(len(members))
    names = [EMBEDDING, HEAD]
    joined = torch.cat([update.changes.dense[name].reshape(-1) for name in names]).numpy()
    vector = to_ring(joined, 1.0, weight_of(update.num_examples, 10), bits, (client,))
    seen = from_ring(members[client].masked(vector, list(members), 0), 1.0, bits)
    found, start = ModelState(), 0
    for name in names:
        value = each.state.dense[name]
        part = torch.from_numpy(seen[start : start + value.numel()]).float()
        found.dense[name] = part.view_as(value)
        start += value.numel()
    return found


def _moved(each: Round, plan: Plan, updates: Sequence[ClientUpdate]) -> ModelState:
    result = aggregate(each.state, updates, plan, round_info(1, updates))
    before, change = dict(each.state.named()), ModelState()
    for name, tensor in result.tensors:
        change.insert(name, tensor - before[name])
    return change


def _scores(rounds: Sequence[Round], seen: Any) -> tuple[str, str]:
    """Return the attacks' means over clients and seeds."""
    vocabulary, labels = [], []
    for each in rounds:
        for client, secret in enumerate(each.secrets):
            change = seen(each, client).dense
            vocabulary.append(_precision(change[EMBEDDING], each.state.dense[EMBEDDING], secret))
            along = (change[HEAD].double() @ each.feature.double()).numpy()
            labels.append(float(np.corrcoef(along, secret.shares)[0, 1]))
    return f"{statistics.fmean(vocabulary):.2f}", f"{statistics.fmean(labels):.2f}"


def _precision(change: Tensor, values: Tensor, secret: Secret) -> float:
    """Return the share of right ones among the k rows that moved most, but for weight decay."""
    length = values.square().sum(dim=1, keepdim=True).clamp_min(1e-12)
    across = change - (change * values).sum(dim=1, keepdim=True) / length * values
    guess = across.norm(dim=1).topk(len(secret.tokens)).indices.tolist()
    return len(secret.tokens & set(guess)) / len(guess)


# -- sums --------------------------------------------------------------------------------------


def sums(clients: int) -> None:
    keys = {
        "scheme": "fedmoe",
        "num-server-rounds": 1,
        "data.max-train-examples": 100 * clients,
        "data.max-test-examples": 200,
        "min-clients": 3,
        "diagnostics": False,
    }
    rows = []
    for name, more in (("plain, fp32", {}), ("masked", {"privacy.secure-sum": True})):
        with tempfile.TemporaryDirectory() as folder:
            flat = run_config(keys | more | {"output-dir": folder})
            line = read_metrics(run_in_process(flat, clients))[1]
        seconds = f"{line['seconds']['round']:.1f}"
        rows.append([name, human_bytes(line["bytes_up"]), human_bytes(line["bytes_down"]), seconds])
        for step, (up, down) in line.get("secure_sum", {}).get("bytes", {}).items():
            rows.append([f"- {step}", human_bytes(up), human_bytes(down), ""])
    figures = line["secure_sum"]
    print(f"\n{figures['open_experts']} experts open, {figures['closed_experts']} closed\n")
    print_markdown(("round", "bytes up", "bytes down", "seconds"), rows)


# -- budget ------------------------------------------------------------------------------------


def budget(clients: int, rate: float, rows: int, targets: Sequence[float], clip: float) -> None:
    table = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        size = _save_small_model(model)
        names, nodes = _write_rows(Path(folder), clients, rows)
        own = {"output-dir": folder, "model.name": str(model), "data.label-names": names}
        own["data.test-source"] = str(Path(folder) / "test.jsonl")
        for name, keys in _settings(clients, rate, targets, clip):
            score, _ = _kept(_run() | keys, (clients, rows), own, nodes)
            row = [name, *_noise(keys, clients, rate, size), f"{score:.3f}"]
            print(row, flush=True)
            table.append(row)
    print(f"\n{clients} clients of {rows} rows, each drawn with chance {rate:g}, clip {clip:g}\n")
    print_markdown(("", "noise z", "noise / clip", "accuracy"), table)


def examples(clients: int, rows: int, rate: float, clip: float, targets: Sequence[float]) -> None:
    table = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        _save_small_model(model)
        names, nodes = _write_rows(Path(folder), clients, rows)
        own = {"output-dir": folder, "data.label-names": names}
        own["data.test-source"] = str(Path(folder) / "test.jsonl")
        own["model.name"] = str(_public_base(own | {"model.name": str(model)}))
        for name, keys in _example_settings(rate, clip, targets):
            batch = {"train.per-device-train-batch-size": round(rate * rows)}
            score, loss = _kept(_run() | ADAPTERS | batch | keys, (clients, rows), own, nodes)
            target = keys.get("privacy.example-epsilon")
            steps = EXAMPLE_ROUNDS * EXAMPLE_STEPS
            noise = f"{noise_for(target, rate, steps, DELTA):.2f}" if target else "-"
            table.append([name, noise, f"{loss:.3f}", f"{score:.3f}"])
            print(table[-1], flush=True)
    print(
        f"\n{clients} clients of {rows} rows, {EXAMPLE_ROUNDS} rounds of {EXAMPLE_STEPS} steps, "
        f"each example drawn with chance {rate:g}, clip {clip:g}\n"
    )
    print_markdown(("", "noise z", "loss", "accuracy"), table)


def _public_base(own: Mapping[str, Any]) -> Path:
    """Train the small model on rows that are nobody's; return where it lies."""
    public = [{"partition-id": 0, "data-path": str(Path(own["output-dir"]) / "public.jsonl")}]
    keys = {"num-server-rounds": 2, "evaluate-every": 2, "run-name": "base"}
    results = run_in_process(_run() | keys | dict(own), 1, public)
    last = read_metrics(results)[-1]
    print(f"base: loss {last['loss']:.3f}, accuracy {last['accuracy']:.3f}", flush=True)
    return results / "model"


def _example_settings(
    rate: float, clip: float, targets: Sequence[float]
) -> list[tuple[str, dict[str, Any]]]:
    own = {
        "privacy.example-dp": True,
        "privacy.example-rate": rate,
        "privacy.example-clip": clip,
        "privacy.example-delta": DELTA,
    }
    noisy = [(f"ε = {target:g}", own | {"privacy.example-epsilon": target}) for target in targets]
    return [("nothing", {}), ("clip alone", own | {"privacy.example-noise": 1e-6}), *noisy]


def _kept(
    keys: Mapping[str, Any],
    size: tuple[int, int],
    own: Mapping[str, Any],
    nodes: Sequence[Mapping[str, Any]],
) -> tuple[float, float]:
    """Return accuracy and loss of one setting, from its file if it was measured before.

    Args:
        keys: the run config that makes it what it is.
        size: clients, and rows of each.
        own: keys of this process alone: folders and the like.
        nodes: node configs.
    """
    text = json.dumps([keys, size, SMALL], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = home() / "benchmarks" / "privacy-budget" / f"{digest}.json"
    if not path.exists():
        lines = read_metrics(run_in_process({**keys, **own}, size[0], nodes))
        path.parent.mkdir(parents=True, exist_ok=True)
        figures = {name: lines[-1][name] for name in ("accuracy", "loss")}
        write_atomic(path, json.dumps(figures | {"keys": keys}))
    found = json.loads(path.read_bytes())
    return float(found["accuracy"]), float(found["loss"])


def _save_small_model(folder: Path) -> int:
    """Write the model that is trained; return its number of values."""
    config = parse_run_config(run_config({"data.max-train-examples": 100}))
    setup = load_setup(config, server_data(config.data).label_names)
    shape = copy.deepcopy(setup.model.config)
    shape.update(SMALL)
    torch.manual_seed(0)
    model = type(setup.model)(shape)
    model.save_pretrained(folder)
    setup.tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _write_rows(folder: Path, clients: int, rows: int) -> tuple[str, list[dict[str, Any]]]:
    """Give each client a file with rows of the embedded corpus, drawn without regard to classes.

    Returns:
        the names of the classes, and the nodes' configs.
    """
    data = server_data(parse_run_config(run_config({})).data)
    order = np.random.default_rng(0).permutation(len(data.train))
    parts = {f"client-{i}": order[i * rows : (i + 1) * rows] for i in range(clients)}
    for name, source, chosen in (
        *((name, data.train, own) for name, own in parts.items()),
        ("public", data.train, order[-PUBLIC_ROWS:]),
        ("test", data.test, range(800)),
    ):
        lines = [source[int(i)] for i in chosen]
        lines = [row | {"label": data.label_names[row["label"]]} for row in lines]
        text = "\n".join(json.dumps(line) for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    return ", ".join(data.label_names), [
        {"partition-id": i, "data-path": str(folder / f"client-{i}.jsonl")} for i in range(clients)
    ]


def _settings(
    clients: int, rate: float, targets: Sequence[float], clip: float
) -> list[tuple[str, dict[str, Any]]]:
    own = {
        "privacy.dp": "fixed",
        "privacy.dp-clients": clients,
        "privacy.dp-sample-rate": rate,
        "privacy.dp-clip": clip,
        "privacy.dp-delta": DELTA,
        "fraction-train": 1.0,
    }
    plain = ("nothing", {"fraction-train": rate})
    only_clip = ("clip alone", own | {"privacy.dp-noise": 1e-6})
    noisy = [(f"ε = {target:g}", own | {"privacy.dp-epsilon": target}) for target in targets]
    return [plain, only_clip, *noisy]


def _run() -> dict[str, Any]:
    return run_config(
        {
            "num-server-rounds": ROUNDS,
            "evaluate-every": ROUNDS,
            "min-clients": 1,
            "diagnostics": False,
            "train.learning-rate": 3e-2,
            "train.num-train-epochs": 4.0,
            "data.source": "nodes",
            "data.local-test-fraction": 0.0,
            "data.max-length": 32,
        }
    )


def _noise(keys: Mapping[str, Any], clients: int, rate: float, size: int) -> tuple[str, str]:
    """Return z, and how long the noise of a round is against the longest mean change."""
    target = keys.get("privacy.dp-epsilon")
    if not target:
        return "-", "-"
    noise = noise_for(target, rate, ROUNDS, DELTA)
    return f"{noise:.2f}", f"{noise * math.sqrt(size) / (rate * clients):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    of_leaks = commands.add_parser("leaks")
    of_leaks.add_argument("--clients", type=int, default=10)
    of_leaks.add_argument("--seeds", type=int, default=3)
    of_again = commands.add_parser("again")
    of_again.add_argument("--clients", type=int, default=10)
    of_again.add_argument("--seeds", type=int, default=3)
    of_sums = commands.add_parser("sums")
    of_sums.add_argument("--clients", type=int, default=10)
    of_budget = commands.add_parser("budget")
    of_budget.add_argument("--clients", type=int, default=100)
    of_budget.add_argument("--rate", type=float, default=1.0)
    of_budget.add_argument("--rows", type=int, default=9)
    of_budget.add_argument("--clip", type=float, default=3.0)
    of_budget.add_argument("--epsilons", type=float, nargs="+", default=[16.0, 8.0, 2.0])
    of_examples = commands.add_parser("examples")
    of_examples.add_argument("--clients", type=int, default=4)
    of_examples.add_argument("--rows", type=int, default=1900)
    of_examples.add_argument("--rate", type=float, default=0.01)
    of_examples.add_argument("--clip", type=float, default=0.3)
    of_examples.add_argument("--epsilons", type=float, nargs="+", default=[8.0, 2.0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "leaks":
        leaks(options.clients, options.seeds)
    elif options.command == "again":
        again(options.clients, options.seeds)
    elif options.command == "sums":
        sums(options.clients)
    elif options.command == "examples":
        examples(options.clients, options.rows, options.rate, options.clip, options.epsilons)
    else:
        budget(options.clients, options.rate, options.rows, options.epsilons, options.clip)


if __name__ == "__main__":
    main()
