"""Try a mode of training on a small model: a client's round and its export, in seconds.

A family of transformers may compute in a way that this app does not know: experts that cannot run
one by one, a router without logits, a linear map whose packed weight is read as if it were plain.
All of it shows on a small model of the same make (:mod:`fedmoe_app.moe.miniature`): it is written
to a folder, loaded, trained for a step and exported as in a run, and the export must compute in
plain transformers what the trained model computes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from fedmoe_app.client.train import LocalRun, train
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.data.encoding import Encoded
from fedmoe_app.data.tokenizer import BOS, EOS, PAD, label_token
from fedmoe_app.moe.layers import MoELayer, read_state, write_state
from fedmoe_app.moe.loading import LoadSpec, load_model
from fedmoe_app.moe.partial.restrict import ExpertsByLayer
from fedmoe_app.moe.partial.streamed import all_experts
from fedmoe_app.moe.quiet import quiet_transformers
from fedmoe_app.moe.routing import RoutingRecorder
from fedmoe_app.moe.training.trainable import Trainables
from fedmoe_app.tasks.base import Batch, Task
from fedmoe_app.tasks.classification import LabelWords
from fedmoe_app.tasks.setup import Setup, assemble

LABELS = ("yes", "no")
LENGTH = 24  # tokens of the longest text
_SPECIAL = (PAD, BOS, EOS, label_token(0), label_token(1))
_WORDS = tuple("abcdefghijk")
_CLOSE = 1e-3  # of the largest logit, in float32
_SPREAD = 0.05  # of random weights: experts and tokens differ


class NotBuiltError(Exception):
    """The small model does not work in plain transformers, so it says nothing."""


class TrialError(Exception):
    """A mode that does not work; the message says which step failed and how."""


def try_mode(
    config: RunConfig, head: str, kind: type[PreTrainedModel], small: PreTrainedConfig, folder: Path
) -> None:
    """Train and export a small model as a run config says.

    Args:
        config: the run config; its ``model.name`` is not looked at.
        head: the resolved way of classifying.
        kind: the model's class.
        small: the small model's config.
        folder: an empty folder to write to.

    Raises:
        NotBuiltError: plain transformers cannot run it.
        TrialError: plain transformers can, and this app cannot.
    """
    with quiet_transformers(), torch.random.fork_rng():
        torch.manual_seed(config.seed)
        _save_plain(kind, small, folder / "base")
        config = _on(config, folder / "base")
        with _step("a round of it"):
            setup = _load(config, head)
            trained = _train(config, setup)
        with _step("the export of what it trained"):
            _check_export(kind, setup, trained, folder / "export")
        if config.model.dtype != "float32":
            with _step(f"a round of it in {config.model.dtype}"):
                _train(config, _load(config, head, config.model.dtype))
        if config.model.experts_in_memory == "chosen":
            _try_chosen(config, head, [*setup.layers])


def _save_plain(kind: type[PreTrainedModel], small: PreTrainedConfig, folder: Path) -> None:
    """Write a model with random weights that plain transformers can run.

    Raises:
        NotBuiltError: it cannot.
    """
    try:
        model = kind(small).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, _SPREAD)
            finite = _forward(model).isfinite().all()
        model.save_pretrained(folder)
        kind.from_pretrained(folder)
    except Exception as error:  # whatever the family's own code does
        raise NotBuiltError(str(error)) from error
    if not finite:
        raise NotBuiltError("its logits are not finite")


def _forward(model: PreTrainedModel) -> Tensor:
    ids = torch.arange(2 * LENGTH).view(2, LENGTH) % len(_WORDS) + len(_SPECIAL)
    mask = torch.ones_like(ids)
    mask[1, LENGTH // 2 :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :2]
    logits: Tensor = model(**inputs)[0]
    return logits


def _on(config: RunConfig, folder: Path) -> RunConfig:
    """Return the run config for a small model: short texts, one step."""
    short = {"max_length": LENGTH, "max_new_tokens": 2, "template": "auto"}
    data = config.data.model_copy(update=short)
    steps = {"max_steps": 1, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    return config.model_copy(
        update={
            "data": data,
            "model": config.model.model_copy(update={"name": str(folder)}),
            "train": config.train.model_copy(update={**steps, "warmup_steps": 0.0}),
        }
    )


def _load(
    config: RunConfig, head: str, dtype: str = "float32", loaded: ExpertsByLayer | None = None
) -> Setup:
    """Load the small model as every node does, and open what is trained."""
    tokenizer = word_tokenizer()
    spec = LoadSpec.of(
        config.model.name,
        tokenizer,
        task=config.data.task,
        head=head,
        label_names=LABELS,
        seed=config.seed,
        dtype=dtype,
        max_length=LENGTH,
        quantization=config.model.quantization,
    )
    model = load_model(spec, loaded=loaded)
    return assemble(config, tokenizer, model, head, LABELS)


def _train(
    config: RunConfig, setup: Setup, experts: Sequence[Sequence[int]] | None = None
) -> Tensor:
    """Score, train for a step and take what changed, as a client does; return the logits after.

    Raises:
        ValueError: the step trained no expert.
    """
    write_state(setup.model, setup.layers, read_state(setup.model, setup.layers))
    rows = examples(setup.task)
    setup.task.score_rows(setup.model.eval(), rows)
    with Trainables(setup.model, setup.layers, experts) as trainables:
        with RoutingRecorder(setup.layers) as recorder:
            run = LocalRun(setup.model, trainables, recorder, setup.task, {}, setup.shape.top_k)
            train(run, rows, config.train, config.seed)
            recorder.stats(trainables.trained)
        if not trainables.trained.any():
            raise ValueError("no expert got a gradient")
        trainables.changes()
        trainables.merge()
    return _logits(setup.model, setup.task, setup.task.collate(rows, setup.model.device))


@torch.no_grad()
def _logits(model: PreTrainedModel, task: Task, batch: Batch) -> Tensor:
    return task.predict(model.eval(), batch)[0].float()


@torch.no_grad()
def _plain_logits(model: PreTrainedModel, task: Task, batch: Batch) -> Tensor:
    """Return the same by the model's own forward of the whole batch."""
    if not isinstance(task, LabelWords) or model.config.is_encoder_decoder:
        return _logits(model, task, batch)
    out = model.eval()(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    last = batch.attention_mask.sum(1) - 1
    return out.logits[torch.arange(len(last)), last][:, task.label_ids].float()


def _check_export(kind: type[PreTrainedModel], setup: Setup, trained: Tensor, folder: Path) -> None:
    """Save the trained model, adapters merged, and run it in plain transformers.

    Raises:
        ValueError: it computes something else there.
    """
    from fedmoe_app.moe.training.lora import merge_adapters  # PEFT takes long to import

    merge_adapters(setup.model, setup.layers)
    setup.model.save_pretrained(folder)
    exported: Any = kind.from_pretrained(folder, dtype=torch.float32)
    batch = setup.task.collate(examples(setup.task), torch.device("cpu"))
    plain = _plain_logits(exported, setup.task, batch)
    difference = float((plain - trained).abs().max() / plain.abs().max())
    if not difference <= _CLOSE:  # nor NaN
        raise ValueError(
            f"in plain transformers its logits differ from those here by {difference:.1%}"
        )


def _try_chosen(config: RunConfig, head: str, layers: Sequence[MoELayer]) -> None:
    """Measure the routing with no expert in memory, then train with as few as can be."""
    with _step('measuring its routing with model.experts-in-memory = "chosen"'):
        none = _load(config, head, loaded=())
        with all_experts(none.model, none.layers), RoutingRecorder(none.layers):
            rows = examples(none.task)
            _logits(none.model, none.task, none.task.collate(rows, none.model.device))
    with _step('a round of it with model.experts-in-memory = "chosen"'):
        fewest = [list(range(layer.top_k)) for layer in layers]
        _train(config, _load(config, head, loaded=fewest), fewest)


@contextmanager
def _step(what: str) -> Iterator[None]:
    """Turn any error into a TrialError that says what was tried; a full disk is no verdict."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever the family's code, PEFT or bitsandbytes do
        text = re.sub(r'model\.name = "[^"]*": ', "", " ".join(str(error).split()))
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise TrialError(f"{what} failed ({kind}{text[:300]})") from error


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of single letters, of so few tokens that every model has as many."""
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *_WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS
    )


def examples(task: Task) -> Encoded:
    """Encode three examples of any task, of different lengths."""
    texts = [" ".join(_WORDS[i % len(_WORDS)] for i in range(n)) for n in (LENGTH - 4, 9, 5)]
    rows = {
        "text": texts,
        "label": [0, 1, 0],
        "prompt": texts,
        "response": ["a b", "c", "d e f"],
        "options": [["a", "b"], ["c d", "e"], ["f", "g h"]],
        "answer": [0, 1, 1],
    }
    return task.encode(Dataset.from_dict({name: rows[name] for name in task.columns}))
