"""From a run config to data, tokenizer, task and model: the same on the server and every node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.lists import check_classes
from fedmoe_app.config.names import WITH_RESIDUAL
from fedmoe_app.config.node import Node
from fedmoe_app.config.parse import check_labels_known
from fedmoe_app.config.schema import NODES, DataConfig, RunConfig
from fedmoe_app.data.language.templates import adopt_template
from fedmoe_app.data.partitions import partition, split_local
from fedmoe_app.data.sources import TextData, cap, load_node_file, load_text_data, load_validation
from fedmoe_app.data.tokenizer import load_tokenizer
from fedmoe_app.moe.carve.preset import located
from fedmoe_app.moe.checkpoint import check_checkpoint
from fedmoe_app.moe.fingerprint import (
    checkpoint_fingerprint,
    preset_fingerprint,
    saved_buffers,
    tensors_fingerprint,
)
from fedmoe_app.moe.layers import MoELayer, find_moe_layers
from fedmoe_app.moe.loading import (
    PRESETS,
    Head,
    LoadSpec,
    check_model,
    empty_model,
    load_model,
    resolve_head,
)
from fedmoe_app.moe.partial.restrict import ExpertsByLayer
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.spread import is_spread
from fedmoe_app.moe.training.adapt import (
    Adaptation,
    adapt,
    classification_head,
    frozen_by_family,
    head_parameters,
)
from fedmoe_app.tasks.base import Task, TaskSetting
from fedmoe_app.tasks.registry import make_task


@dataclass(frozen=True)
class Setup:
    """A model with its MoE layers, and the task that it is trained for."""

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    layers: Sequence[MoELayer]
    task: Task
    base_fingerprint: str = ""  # of the frozen base; empty where everything is trained

    @property
    def shape(self) -> ModelShape:
        """L layers of E experts, K used by a token, hidden size D; whether gates are trained."""
        first = self.layers[0]
        hidden_size = self.model.config.get_text_config().hidden_size
        gates = [p for layer in self.layers for p in layer.gate_parameters().values()]
        name = classification_head(self.model)
        is_trained = bool(name) and self.model.get_submodule(name).weight.requires_grad
        return ModelShape(
            *(len(self.layers), first.num_experts, first.top_k, hidden_size, bool(gates)),
            head=name if is_trained else "",
            gate_bias=any(gate.dim() == 1 for gate in gates),
        )


def device(choice: str = "auto") -> torch.device:
    """Return the first GPU that this process may see, else the CPU; "cpu" is always the CPU."""
    gpu = choice == "auto" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def head_of(config: RunConfig) -> Head:
    """Return the resolved way of classifying; other tasks need the language-modelling head.

    Raises:
        ModelNotFoundError: there is no model of the config's name.
    """
    wanted = config.model.head if config.data.kind.classifies else "label-words"
    return resolve_head(located(config.model.name), wanted)


def load_setup(
    config: RunConfig,
    label_names: Sequence[str],
    loaded: ExpertsByLayer | None = None,
    on: str = "auto",
    cards: Mapping[int, int] | None = None,
) -> Setup:
    """Build the tokenizer, the initial model and the task; the same everywhere for one config.

    Args:
        config: the run config.
        label_names: class names in index order; only for classification.
        loaded: the experts to load; None means all, empty none.
        on: see :func:`device`.
        cards: free bytes by GPU, to divide the model among them; a small one stays on the first.
    """
    name = located(config.model.name)
    head = head_of(config)  # first of all: it says best if there is no such model
    check_checkpoint(name)
    tokenizer = load_tokenizer(name, PRESETS)
    adopt_template(tokenizer, config.data)
    spec = _spec(config, tokenizer, head, label_names)
    model = load_model(spec, str(device(on)), loaded, cards)
    fingerprint = _base_fingerprint(config, model, head, spec)
    if not is_spread(model):
        model.to(device(on))  # type: ignore[arg-type]
    return replace(
        assemble(config, tokenizer, model, head, label_names), base_fingerprint=fingerprint
    )


def _spec(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, head: str, label_names: Sequence[str]
) -> LoadSpec:
    return LoadSpec.of(
        config.model.name,
        tokenizer,
        task=config.data.task,
        head=head,
        label_names=label_names,
        seed=config.seed,
        dtype=config.model.dtype,
        max_length=config.data.max_length,
        quantization=config.model.quantization,
    )


def assemble(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    head: str,
    label_names: Sequence[str],
) -> Setup:
    """Open of a model, on its device, what the run trains; put it together with its task."""
    encoder_decoder = model.config.is_encoder_decoder
    task = make_task(
        TaskSetting(config.data, tokenizer, encoder_decoder, head, label_names, config.template)
    )
    task.check_fits(model, config.model.name)
    layers = find_moe_layers(model)
    adapt(model, layers, adaptation(config, head), config.seed)
    if config.train.gradient_checkpointing:
        _checkpoint_activations(model)
    return Setup(tokenizer, model, layers, task)


def check_setup(config: RunConfig, label_names: Sequence[str]) -> ModelShape:
    """Raise what :func:`load_setup` would, without reading weights; return the model's shape."""
    name, data = located(config.model.name), config.data
    head = head_of(config)
    check_checkpoint(name)
    tokenizer = load_tokenizer(name, PRESETS)
    adopt_template(tokenizer, data)
    spec = _spec(config, tokenizer, head, label_names)
    check_model(spec)
    model = empty_model(spec)
    encoder_decoder = model.config.is_encoder_decoder
    task = make_task(
        TaskSetting(data, tokenizer, encoder_decoder, head, label_names, config.template)
    )
    task.check_fits(model, name)
    layers = find_moe_layers(model)
    adapt(model, layers, adaptation(config, head), config.seed)
    return Setup(tokenizer, model, layers, task).shape


def check_base(setup: Setup, fingerprint: str) -> None:
    """Refuse to train on another base model than the server's.

    Raises:
        ConfigError: naming both fingerprints.
    """
    if setup.base_fingerprint != fingerprint:
        raise ConfigError(
            f"model.name: this node's base model has fingerprint {setup.base_fingerprint}, the "
            f"server's {fingerprint}; put the same files (or revision) on both"
        )


def _base_fingerprint(config: RunConfig, model: PreTrainedModel, head: str, spec: LoadSpec) -> str:
    """Hash what nobody trains or sends; empty if there is nothing.

    A tensor that is trained may be hashed with the rest of its file: nodes with the same files
    agree, and others are better refused.

    Args:
        config, head: of the run.
        model: as it was loaded.
        spec: of the model; a preset is hashed without quantisation.
    """
    name = located(config.model.name)
    if config.model.train == "all":
        frozen = frozen_by_family(model)
        parameters = {name: p for name, p in model.named_parameters() if name in frozen}
        return tensors_fingerprint(parameters | saved_buffers(model))
    if name in PRESETS:
        quantised = spec.quantization != "none"
        plain = load_model(replace(spec, quantization="none")) if quantised else model
        return preset_fingerprint(plain)
    new_head = head == "sequence" and not adaptation(config, head).head
    return checkpoint_fingerprint(name, head_parameters(model) if new_head else None)


def adaptation(config: RunConfig, head: str) -> Adaptation:
    """Return what a run trains of its model; ``head`` is the resolved way of classifying."""
    model = config.model
    # Label words are scored by the output embeddings, which are no new head.
    train_head = model.train_head and head == "sequence"
    return Adaptation(
        model.train,
        model.gates,
        train_head,
        model.attention_lora,
        model.lora_rank,
        model.lora_alpha,
        residual=config.scheme in WITH_RESIDUAL,
    )


def _checkpoint_activations(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass, from the first layer on that trains anything.

    What lies below has no backward pass. transformers' own switch makes the embeddings' output
    require a gradient, so that frozen layers are run twice and differentiated for nothing.
    """
    # transformers 5.23 renamed it and warns at the old name, which is all that 5.20 to 5.22 have.
    new_name = getattr(model, "activation_checkpointing_enable", None)
    (new_name or model.gradient_checkpointing_enable)()
    model.disable_input_require_grads()
    layers = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    embeddings = model.get_input_embeddings().parameters()
    if any(parameter.requires_grad for parameter in embeddings if id(parameter) not in inside):
        return
    for layer in takewhile(_is_frozen, layers):
        layer.gradient_checkpointing = False


def _is_frozen(module: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in module.parameters())


def server_data(config: DataConfig) -> TextData:
    """Load what the server needs of the data: label names, fingerprint and test set.

    Raises:
        ConfigError: if the nodes bring their own data and the config does not name the labels.
        DataError: if the data cannot be read, or has only one class.
    """
    if config.source != NODES:
        data = load_text_data(config)
        if config.kind.classifies:
            check_classes(data.label_names, config.source)
        return data
    check_labels_known(config)
    labels = config.labels
    test = load_node_file(config.test_source, config, labels) if config.test_source else None
    return TextData(
        train=Dataset.from_list([]),
        test=test,
        label_names=labels,
        fingerprint="",
        validation=load_validation(config, labels),
    )


def root_data(config: RunConfig, data: TextData) -> Dataset | None:
    """Return the rows that the server itself trains on; None where it has none.

    Args:
        config: of the run; ``robust.root-source``, else what the server has of the training rows.
        data: of the server.

    Raises:
        DataError: the file cannot be read.
    """
    named = config.robust.root_source
    own = load_node_file(named, config.data, data.label_names) if named else data.train
    return cap(own, config.robust.root_examples) if len(own) else None


@dataclass(frozen=True)
class ClientData:
    """A client's own examples, and those that it keeps for its own accuracy (None: too few)."""

    train: Dataset
    test: Dataset | None


def client_data(
    config: RunConfig, node: Node, label_names: Sequence[str], fingerprint: str
) -> ClientData:
    """Load this node's own file or its partition, and split off its local test set.

    With privacy of examples there is none: which rows are held out depends on how many there are,
    so that one row more would change what others do. Nobody would hear of its scores, either. A row
    of the node's own file that cannot be used is left out there and is no error: the node's answer
    would tell that it has such a row.

    Raises:
        ConfigError: if the node's copy of the source differs from the server's.
    """
    if node.data_path is not None:
        lenient = config.privacy.example_dp
        own = load_node_file(Path(node.data_path), config.data, tuple(label_names), lenient)
    else:
        own = _partition(config, node, label_names, fingerprint)
    held_out = 0.0 if config.privacy.example_dp else config.data.local_test_fraction
    train, test = split_local(own, held_out, config.seed)
    return ClientData(train, test)


def _partition(
    config: RunConfig, node: Node, label_names: Sequence[str], fingerprint: str
) -> Dataset:
    if config.data.source == NODES:
        raise ConfigError(
            'data.source = "nodes": this node has no data-path; start its SuperNode with '
            "--node-config 'partition-id=0 data-path=\"/abs/file\"'"
        )
    data = config.data
    if data.label_names_file:  # it lies on the server, whose names came with the task
        data = data.with_labels(label_names)
    source = load_text_data(data, with_test=False)
    if source.fingerprint != fingerprint:
        raise ConfigError(
            f'data.source = "{config.data.source}": this node\'s copy has fingerprint '
            f"{source.fingerprint}, the server's {fingerprint}; use the same file (for the "
            "embedded corpus: the same library versions) or give the node its own data-path"
        )
    assert node.partition_id is not None and node.num_partitions is not None
    return partition(source.train, config.data, node.partition_id, node.num_partitions, config.seed)
