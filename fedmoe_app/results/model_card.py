"""The model card of a run's model: ``README.md`` beside its weights, as model hubs show it.

It says what the server knows: how the model was trained, on what, by how many clients, what it came
to and how it is loaded. Of data it names the source, never a row, and of paths the last part only.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from scipy.stats import binomtest

from fedmoe_app.config.data import template_for
from fedmoe_app.config.files import write_atomic
from fedmoe_app.config.names import PRESET_NAMES
from fedmoe_app.config.parse import flatten_table
from fedmoe_app.config.tasks import TASKS
from fedmoe_app.moe.carve.preset import located
from fedmoe_app.moe.checkpoint import CARD_FILE, licence_of
from fedmoe_app.moe.served import misread_by
from fedmoe_app.results.best import kept_line, kept_note
from fedmoe_app.results.folder import CONFIG_FILE, read_metrics
from fedmoe_app.shown.tables import markdown, markdown_cell

CONFIDENCE = 0.95
_PROGRAMS = {"vllm": "vLLM", "llama.cpp": "llama.cpp"}
_CLASSES = {
    "sequence": "AutoModelForSequenceClassification",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "causal": "AutoModelForCausalLM",
}


def write_model_card(run: Path, folder: Path, items: int = 0) -> Path:
    """Write the card of a run's model into the model's folder; one that is there goes.

    Args:
        run: the result folder, for its config and its metrics.
        folder: of the model, as ``save_pretrained`` wrote it.
        items: test examples that the accuracy is over; 0 if that is not known.

    Raises:
        ResultsError, OSError: the run's files cannot be read.
    """
    flat = flatten_table(tomllib.loads((run / CONFIG_FILE).read_text(encoding="utf-8")))
    config = _config_of(folder)
    card = model_card(
        dict(flat), read_metrics(run), _architecture(config), items, misread_by(config)
    )
    return write_atomic(folder / CARD_FILE, card)


def architecture_of(folder: Path) -> str:
    """Return the model class that a folder's config names; "" where it names none."""
    return _architecture(_config_of(folder))


def _config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def _architecture(config: Mapping[str, Any]) -> str:
    return str(next(iter(config.get("architectures") or ()), ""))


def model_card(
    flat: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    architecture: str,
    items: int = 0,
    misread: Sequence[str] = (),
) -> str:
    """Return the card.

    Args:
        flat: the run config.
        lines: of ``metrics.jsonl``.
        architecture: the saved model's class.
        items: test examples that the accuracy is over; 0 if that is not known.
        misread: see :func:`fedmoe_app.moe.served.misread_by`.
    """
    base = located(str(flat["model.name"]))
    classifies = TASKS[str(flat["data.task"])].classifies
    data = ModelCardData(
        license=licence_of(base),
        base_model=base if base not in PRESET_NAMES and not Path(base).is_absolute() else None,
        library_name="transformers",
        pipeline_tag=f"text-{'classification' if classifies else 'generation'}",
        tags=["mixture-of-experts", "federated-learning", "fedmoe", str(flat["scheme"])],
    )
    body = "\n".join(
        [
            f"# {markdown(_last_part(base))}, fine-tuned by federated learning",
            "",
            "Made by fedmoe: the clients' texts stayed with them; the server saw their updates.",
            "",
            *_table("What was done", _what_was_done(flat, lines)),
            *_table("What it came to", _figures(lines, items)),
            "## How to load it",
            "",
            "```python",
            f"from transformers import AutoTokenizer, {_auto_class(architecture)}",
            "",
            f'model = {_auto_class(architecture)}.from_pretrained("this/folder")',
            'tokenizer = AutoTokenizer.from_pretrained("this/folder")',
            "```",
            "",
            *_other_programs(misread),
            "## Limits",
            "",
            f"The figures hold for data like those they were measured on. {_privacy(lines)}",
            "",
        ]
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _other_programs(misread: Sequence[str]) -> list[str]:
    if not misread:
        return []
    names = " and ".join(_PROGRAMS[name] for name in misread)
    formats = " or ".join(f"`--format {name}`" for name in misread)
    return [
        f"**Not for {names} as it is**: they would compute another model, or none. "
        f"`fedmoe export RUN` with {formats} writes a folder with the same logits there, or says "
        "why there is none.",
        "",
    ]


def _privacy(lines: Sequence[Mapping[str, Any]]) -> str:
    promised = _last(lines, "example_privacy")
    if promised is not None:
        return (
            f"Each client added noise by itself: by the run's settings the model is at most "
            f"({promised['epsilon']:.3g}, {promised['delta']:g})-differentially private with "
            "respect to one example of a client that took part in all "
            f"{promised['rounds']} rounds. What other runs spent of the same examples, and rounds "
            "that were repeated, stand in each node's own ledger."
        )
    spent = _last(lines, "privacy")
    if spent is None:
        return (
            "Updates that clients sent can tell something about their texts, and so can the model: "
            "it has no differential privacy."
        )
    return (
        f"The model is ({spent['epsilon']:.3g}, {spent['delta']:g})-differentially private with "
        "respect to all of one client's data."
    )


def _last(lines: Sequence[Mapping[str, Any]], key: str) -> Any:
    return next((line[key] for line in reversed(lines) if line.get(key)), None)


def accuracy_interval(accuracy: float, items: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of an accuracy over ``items`` scored items."""
    found = binomtest(round(accuracy * items), items).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def _what_was_done(flat: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    trained = [line for line in lines if line["round"] != 0]
    clients = {client["client"] for line in lines for client in line["clients"]}
    examples = {c["client"]: c["num_examples"] for line in lines for c in line["clients"]}
    is_private = flat.get("privacy.dp", "none") != "none"
    withheld = is_private or any(count is None for count in examples.values())
    kind = str(flat["data.partition"])
    return {
        "base model": _last_part(str(flat["model.name"])),
        "trained": str(flat["model.train"]),
        "scheme": str(flat["scheme"]),
        "rounds": str(len(trained)),
        **({"kept model": note} if (note := kept_note(lines)) else {}),
        "clients": "not told" if is_private else str(len(clients)),
        "training examples": "not told" if withheld else str(sum(examples.values())),
        "data": "each client's own" if flat["data.source"] == "nodes" else _sources(flat),
        "split over clients": f"{kind} {flat['data.alpha']:g}" if kind == "dirichlet" else kind,
        "task": str(flat["data.task"]),
        **_template(flat),
        "tokens a text": f"at most {flat['data.max-length']}",
        "learning rate": f"{flat['train.learning-rate']:g}",
        "seed": str(flat["seed"]),
    }


def _template(flat: Mapping[str, Any]) -> dict[str, str]:
    """Return what stood around every text, as a JSON string; nothing where nothing did."""
    found = template_for(str(flat.get("data.template", "auto")), str(flat["model.name"]))
    if not TASKS[str(flat["data.task"])].classifies or found == "{text}":
        return {}
    return {"text template": json.dumps(found, ensure_ascii=False)}


def _figures(lines: Sequence[Mapping[str, Any]], items: int) -> dict[str, str]:
    known = [line for line in lines if line.get("accuracy") is not None]
    if not known:
        return {"accuracy": "not measured"}
    kept = kept_line(lines)
    first, last = known[0], kept if kept.get("accuracy") is not None else known[-1]
    found = {f"{last['metric']} after round {last['round']}": f"{last['accuracy']:.3f}"}
    if items:
        low, high = accuracy_interval(last["accuracy"], items)
        found["95 % interval"] = f"{low:.3f} to {high:.3f}, over {items} items"
    found["loss"] = f"{last['loss']:.3f} nats"
    if first["round"] == 0 and first is not last:
        found["before training"] = f"{first['accuracy']:.3f}, loss {first['loss']:.3f} nats"
    return found


def _table(title: str, rows: Mapping[str, str]) -> list[str]:
    cells = [f"| {markdown_cell(name)} | {markdown_cell(value)} |" for name, value in rows.items()]
    return [f"## {title}", "", "| | |", "| --- | --- |", *cells, ""]


def _sources(flat: Mapping[str, Any]) -> str:
    return ", ".join(_last_part(part.strip()) for part in str(flat["data.source"]).split(","))


def _last_part(name: str) -> str:
    return Path(name).name if Path(name).is_absolute() else name


def _auto_class(architecture: str) -> str:
    if "SequenceClassification" in architecture:
        return _CLASSES["sequence"]
    return _CLASSES["seq2seq" if "ConditionalGeneration" in architecture else "causal"]
