"""How much memory a node needs for a round, by how many experts it holds: an estimate.

Counted, in bytes; w is the size of a weight's type, 4 for adapters:

    dense parts, gates, buffers      as loaded, quantised or not
    one held expert of every layer   as loaded
    every trained value              4·w: received value, gradient, two moments of AdamW
                                     16: message, received, change and reply in float32
                                     4 more for an adapter's own value
    activations                      of a training batch, or of the logits of an evaluation batch
    reading                          three copies of one expert, while transformers joins its maps
    the process                      :data:`PROCESS`

Dense parts that stay frozen are often only mapped from the file, so that the system may drop them:
the estimate is then above what is measured. ``benchmarks/expert_memory.py`` compares.

Out of memory on a client: said in one sentence, and nothing kept from the next message.

A failed allocation is an error like others in Python, but its traceback holds every frame of the
round and so every tensor of it: a process that serves several clients would have no room for the
next one. What a client was doing is noted on the error on its way up (:func:`doing`); at the top it
is told by :func:`explain` and let go by :func:`release`.

A process that the operating system kills gets no chance to say anything.
"""

from __future__ import annotations

import gc
import math
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.names import WITH_RESIDUAL
from fedmoe_app.config.schema import RunConfig, TrainConfig
from fedmoe_app.moe.layers import MoELayer, dense_parameters
from fedmoe_app.moe.partial.load import expert_files
from fedmoe_app.moe.quantised.packed import BLOCK, packed_stacks
from fedmoe_app.tasks.setup import Setup

GIB = 2**30
PROCESS = 3 * GIB // 10  # Python with torch, transformers and Flower, before any model
_STATE = 4  # received value, gradient, two moments, in the type of the weight
_BUFFERS = 16  # bytes a trained value: message, received, change, reply, each in float32
_HIDDEN_COPIES = 16  # of a token's hidden vector that a layer keeps for the backward pass
_LOGIT_COPIES = 3  # in float32: logits, their gradient, log-probabilities

Shapes = list[tuple[int, ...]]  # of one expert's tensors in one layer


@dataclass(frozen=True)
class Need:
    """Bytes that a round needs: ``fixed`` and ``per_expert``, one held expert of every layer."""

    fixed: int
    per_expert: int

    def total(self, budget: int) -> int:
        """Return the bytes with ``budget`` experts a layer."""
        return self.fixed + budget * self.per_expert


def estimate(setup: Setup, config: RunConfig) -> Need:
    """Estimate what a round of this model needs; it may hold any of its experts, or none."""
    special = {id(p) for layer in setup.layers for p in layer.expert_parameters()}
    special |= {id(b) for layer in setup.layers for b in layer.experts_module.buffers()}
    tensors: list[Tensor] = [*setup.model.parameters(), *setup.model.buffers()]
    dense = sum(t.nbytes for t in tensors if id(t) not in special)
    trained = [*dense_parameters(setup.model, setup.layers).values()]
    trained += [p for layer in setup.layers for p in layer.gate_parameters().values()]
    width = torch.finfo(setup.model.dtype).bits // 8
    one_layer = max(_expert_bytes(_shapes(setup, layer), width, "none") for layer in setup.layers)
    fixed = (
        PROCESS
        + dense
        + 3 * one_layer
        + _activations(setup, config.train, config.data.max_length, width)
    )
    fixed += sum(p.numel() * (_STATE * p.element_size() + _BUFFERS) for p in trained)
    shapes = [_shapes(setup, layer) for layer in setup.layers]
    return Need(fixed, sum(_of_expert(of_layer, config, width) for of_layer in shapes))


def largest_budget(need: Need, memory_budget: float, least: int, most: int) -> int:
    """Return the most experts a layer that fit.

    Args:
        need: from :func:`estimate`.
        memory_budget: GiB that the node may use.
        least: experts a layer without which the model cannot run.
        most: experts of a layer.

    Raises:
        ConfigError: not even ``least`` fit; says how much would be needed.
    """
    fitting = int((memory_budget * GIB - need.fixed) // max(need.per_expert, 1))
    if fitting < least:
        number = f"{least} experts a layer" if least < most else "all experts"
        raise ConfigError(
            f"node config memory-budget = {memory_budget:g}: about "
            f"{_gib(need.total(least))} GiB are needed with {number}, the fewest that this run's "
            "model can be trained with on a node; give it so much, or lower "
            "train.per-device-train-batch-size, data.max-length or model.lora-rank"
        )
    return min(fitting, most)


def _gib(size: int) -> str:
    """Return GiB with two digits, rounded up: so much is enough."""
    return f"{math.ceil(size / GIB * 100) / 100:.2f}"


def _of_expert(shapes: Shapes, config: RunConfig, width: int) -> int:
    """Return the bytes of holding and training one expert of a layer."""
    model = config.model
    held = _expert_bytes(shapes, width, model.quantization)
    if model.train != "expert-lora":
        return held + sum(map(math.prod, shapes)) * (_STATE * width + _BUFFERS)
    adapters = sum(model.lora_rank * sum(shape) for shape in shapes if len(shape) == 2)
    total = held + adapters * (4 + _STATE * 4 + _BUFFERS)
    if config.scheme not in WITH_RESIDUAL:
        return total
    return total + sum(4 * math.prod(shape) for shape in shapes if len(shape) == 2)


def _expert_bytes(shapes: Shapes, width: int, quantization: str) -> int:
    total = 0.0
    for shape in shapes:
        size = {"nf4": 0.5 + 4 / BLOCK, "int8": 1 + 4 / shape[-1]}.get(quantization, width)
        total += math.prod(shape) * (size if len(shape) == 2 else width)
    return math.ceil(total)


def _shapes(setup: Setup, layer: MoELayer) -> Shapes:
    if (files := expert_files(setup.model)) is not None:
        return files.shapes(layer.index)
    if layer.fused:
        packed = packed_stacks(layer.experts_module)
        return [
            (p.shape[1], packed[name].in_features) if name in packed else tuple(p.shape[1:])
            for name, p in layer.fused_parameters().items()
        ]
    return [tuple(p.shape) for p in layer.listed_parameters(0).values()]


def _activations(setup: Setup, train: TrainConfig, length: int, width: int) -> int:
    """Return the bytes of a training batch's activations, or of an evaluation batch's logits."""
    text = setup.model.config.get_text_config()
    layers = int(getattr(text, "num_hidden_layers", 0) or text.num_layers)
    # What an expert's maps give, for the K experts of a token; twice: before and after the gate.
    routed = sum(
        2 * layer.top_k * sum(max(shape) for shape in _shapes(setup, layer) if len(shape) == 2)
        for layer in setup.layers
    )
    token = (layers * _HIDDEN_COPIES * setup.shape.hidden_size + routed) * width
    if train.gradient_checkpointing:
        token = token // layers + layers * setup.shape.hidden_size * width
    logits = text.vocab_size * 4  # bytes a token
    training = train.per_device_train_batch_size * length * (token + _LOGIT_COPIES * logits)
    evaluation = train.per_device_eval_batch_size * length * 2 * logits
    return max(training, evaluation)


LOADING, SCORING, TRAINING = "loading the model", "scoring", "training"

_ROUND = "round "

# What PyTorch (CPU, CUDA, cuBLAS), bitsandbytes, safetensors and C++ say.
_SHORT_OF_MEMORY = re.compile(
    r"out of memory|can(?:'|no)t allocate memory|CUBLAS_STATUS_ALLOC_FAILED|bad_alloc"
    r"|unable to allocate",
    re.IGNORECASE,
)
_BYTES = re.compile(r"tried to allocate (\d+) bytes")
_SIZE = re.compile(r"(?:tried to|unable to) allocate (\d[\d.]* [KMGTPE]?i?B)", re.IGNORECASE)
_FEWER = "run fewer clients at once (fedmoe run --gpus or --cpus)"
_ADVICE = {
    LOADING: f'choose model.quantization = "nf4", or {_FEWER}',
    SCORING: f"lower train.per-device-eval-batch-size or data.max-length, or {_FEWER}",
    TRAINING: (
        "lower train.per-device-train-batch-size and raise train.gradient-accumulation-steps, set "
        f"train.gradient-checkpointing, lower data.max-length, or {_FEWER}"
    ),
}


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Note on any error inside what the client was doing.

    Args:
        what: LOADING, SCORING, TRAINING, or the round, by :func:`round_note`.
    """
    try:
        yield
    except Exception as error:
        error.add_note(what)
        raise


def round_note(server_round: int) -> str:
    """Return the note that tells the round."""
    return f"{_ROUND}{server_round}"


def explain(error: BaseException) -> str | None:
    """Return what to tell of an error that a lack of memory caused; None for any other."""
    if not is_out_of_memory(error):
        return None
    notes = getattr(error, "__notes__", ())
    what = next((note for note in notes if note in _ADVICE), None)
    server_round = next((f" in {note}" for note in notes if note.startswith(_ROUND)), "")
    while_doing = f" while {what}" if what else ""
    advice = _ADVICE[what or TRAINING]
    return f"out of memory{server_round}{while_doing}{_needed(error)}; {advice}"


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is that of a failed allocation, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and bool(_SHORT_OF_MEMORY.search(str(error)))


def release(error: BaseException) -> None:
    """Let go of everything that the frames of an error hold; keep the error itself."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    gc.collect()  # modules and their hooks hold one another
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _needed(error: BaseException) -> str:
    """Return ", 3.6 GiB more needed", or nothing if the error does not say how much."""
    text = str(error)
    if found := _BYTES.search(text):
        return f", {int(found[1]) / 2**30:.3g} GiB more needed"
    if found := _SIZE.search(text):
        return f", {found[1]} more needed"
    return ""
