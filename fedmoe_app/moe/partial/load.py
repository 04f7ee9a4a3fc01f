"""Load a model with only some of its experts: the others' tensors are never read.

transformers loads all else as always (dense parts, new heads, tied weights, quantised linears); the
experts are taken out of the model before it reads, and those that are asked for are read one by one
(:mod:`fedmoe_app.moe.partial.files`). What comes out equals the whole model whose routers are
restricted to these experts (:mod:`fedmoe_app.moe.partial.restrict`), which is never in memory.

Of the other experts the module keeps empty or valueless parameters, so that everything that looks
at names and numbers of experts works as before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from fedmoe_app.moe.checkpoint import BEFORE_LOADING, checkpoint_folder, safetensors_files
from fedmoe_app.moe.layers import MoELayer, find_moe_layers
from fedmoe_app.moe.partial.files import ExpertFiles
from fedmoe_app.moe.partial.restrict import ExpertsByLayer, check_experts, restrict_router
from fedmoe_app.moe.quantised.packed import pack_matrix
from fedmoe_app.moe.structure import listed_experts, set_adapters, set_loaded
from fedmoe_app.moe.training.slots import ExpertSlots, put_slots, use_slots

_FILES = "_fedmoe_expert_files"  # attribute of a model: where its other experts are


def load_with_experts(
    auto: Any,
    name: str,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    experts: ExpertsByLayer,
    quantization: str = "none",
    device: str = "cpu",
) -> PreTrainedModel:
    """Return the model with some of its experts, in eval mode; routers are masked to them.

    Args:
        auto: transformers' auto class of the task.
        name: a local folder or a hub name; safetensors files only.
        config: of the checkpoint.
        dtype: type of the weights.
        experts: to load, at least top-k of each layer; empty loads none at all: such a model runs
            only inside :func:`fedmoe_app.moe.partial.streamed.all_experts`.
        quantization: as in :func:`fedmoe_app.moe.loading.load_model`.
        device: where the tensors are read to.

    Raises:
        ConfigError: files, or tensors of experts, are missing.
        PlacementError: fewer than top-k of a layer.
        IndexError: an expert that a layer does not have.
        ValueError: not one collection a layer.
    """
    with torch.device("meta"):
        empty: PreTrainedModel = auto.from_config(config).to(dtype)
    layers = find_moe_layers(empty)
    to_load = _checked(layers, experts)
    files = ExpertFiles(name, safetensors_files(name, checkpoint_folder(name)), empty, layers)
    model = _load_rest(empty, config, dtype, files, to_load, quantization, device)
    model.__dict__[_FILES] = files
    layers = find_moe_layers(model)
    for layer, own in zip(layers, to_load, strict=True):
        _load_experts(layer, own, files, dtype, quantization, device)
        if experts:
            restrict_router(layer, own)
    if any(layer.fused for layer in layers):
        use_slots(model, layers)
    _take_generation_config(model, name)
    return model


def expert_files(model: PreTrainedModel) -> ExpertFiles | None:
    """Return where the experts are that were not loaded; None for a model loaded whole."""
    return model.__dict__.get(_FILES)


def _checked(layers: Sequence[MoELayer], experts: ExpertsByLayer) -> list[list[int]]:
    """Return the sorted experts to load by layer."""
    if not experts:
        return [[] for _ in layers]
    for layer, own in zip(layers, experts, strict=True):
        check_experts(layer, own)
    return [sorted(set(own)) for own in experts]


def _how_to_read(quantization: str, dtype: torch.dtype) -> Any:
    """Return the quantization config that has transformers call ``BEFORE_LOADING``."""
    if quantization == "none":
        return _AsIs()
    from fedmoe_app.moe.quantised.quantisers import quantization_config

    return quantization_config(quantization, dtype)


def _load_rest(
    empty: PreTrainedModel,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    files: ExpertFiles,
    to_load: Sequence[Sequence[int]],
    quantization: str,
    device: str,
) -> PreTrainedModel:
    """Let transformers load all but the fused experts and the listed ones that are not loaded."""
    state: dict[str, Any] = dict(files.dense)
    put_back: list[Callable[[], None]] = []

    def take_out(model: PreTrainedModel) -> None:
        names = {id(module): name for name, module in model.named_modules()}
        for layer in find_moe_layers(model):
            loaded = to_load[layer.index]
            if layer.fused:
                path = names[id(layer.experts_module)]
                for short, parameter in _empty_stacks(layer).items():
                    # Read like any other, so that transformers does not take it for missing.
                    state[f"{path}.{short}"] = torch.empty_like(parameter, device="cpu")
                continue
            for e in loaded:
                state.update(files.listed_slices(layer.index, e))
            put_back.append(_take_out_listed(layer, loaded))

    how = _how_to_read(quantization, dtype)
    setattr(how, BEFORE_LOADING, take_out)
    model: PreTrainedModel = type(empty).from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=dtype,
        quantization_config=how,
        device_map={"": device},
    )
    delattr(how, BEFORE_LOADING)  # it holds on to the files
    _forget_hook(model)
    for undo in put_back:
        undo()
    return model


def _forget_hook(model: PreTrainedModel) -> None:
    for module in model.modules():
        how = getattr(getattr(module, "config", None), "quantization_config", None)
        if how is not None:
            how.__dict__.pop(BEFORE_LOADING, None)


def _empty_stacks(layer: MoELayer) -> dict[str, nn.Parameter]:
    """Put parameters without values in the place of the stacks; return these."""
    stacks = {
        # Same number of dimensions and first size: the layer is still found by its shape.
        short: nn.Parameter(stack.new_empty((*stack.shape[:-1], 0)), requires_grad=False)
        for short, stack in layer.fused_parameters().items()
    }
    for short, parameter in stacks.items():
        setattr(layer.experts_module, short, parameter)
    return stacks


def _take_out_listed(layer: MoELayer, loaded: Sequence[int]) -> Callable[[], None]:
    """Take the experts that are not loaded out of a list of modules; return what undoes it.

    They come back with parameters of one value, seen in the full shape.
    """
    module: Any = layer.experts_module
    children = dict(module.named_children())
    experts = [id(child) for child in listed_experts(module)]
    out = {n: c for n, c in children.items() if id(c) in experts}
    out = {n: c for n, c in out.items() if experts.index(id(c)) not in loaded}
    for name, child in out.items():
        module._modules[name] = _stand_in(child)

    def put_back() -> None:
        device = next(layer.router.parameters()).device
        set_loaded(module, loaded)
        for name, child in out.items():
            _without_values(child, device)
            module._modules[name] = child

    return put_back


def _stand_in(expert: nn.Module) -> nn.Module:
    """Return a module without parameters whose tensors are empty, for families' initialisation."""
    root = nn.Module()
    for name, parameter in expert.named_parameters():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.__dict__[last] = parameter.new_empty(0, device="cpu")
    return root


def _without_values(module: nn.Module, device: torch.device) -> None:
    for child in module.modules():
        for name, p in list(child.named_parameters(recurse=False)):
            one = torch.zeros((), dtype=p.dtype, device=device if p.is_meta else p.device)
            setattr(child, name, nn.Parameter(one.expand(p.shape), requires_grad=False))
    module.eval()


def _load_experts(
    layer: MoELayer,
    experts: Sequence[int],
    files: ExpertFiles,
    dtype: torch.dtype,
    quantization: str,
    device: str,
) -> None:
    """Read experts of a fused layer; note those of any layer as what travels."""
    if not layer.fused:
        own = [layer.listed_parameters(e) if e in experts else {} for e in range(layer.num_experts)]
        set_adapters(layer.experts_module, own)
        return
    set_loaded(layer.experts_module, experts)
    transposed = bool(getattr(layer.experts_module, "is_transposed", False))
    weights: list[dict[str, Any]] = [{} for _ in range(layer.num_experts)]
    for short, shape in zip(files.names(layer.index, 0), files.shapes(layer.index), strict=True):
        packed = quantization != "none" and len(shape) == 2
        # One block for all of them, made before what reading them needs for a moment: the
        # allocator would keep the gaps between many. Copied, since the system may drop the pages
        # of a view of the file.
        rows = 0 if packed else len(experts)
        block = torch.empty((rows, *shape), dtype=dtype, device=device)
        for row, e in enumerate(experts):
            tensor = files.read(layer.index, e, short)
            if packed:
                matrix = tensor.to(device=device, dtype=dtype)
                weights[e][short] = pack_matrix(matrix.T if transposed else matrix, quantization)
            else:
                weights[e][short] = nn.Parameter(block[row].copy_(tensor))
    put_slots(layer, ExpertSlots(weights))
    # Quantised weights are no parameters: nothing of them travels.
    travels = quantization == "none"
    set_adapters(layer.experts_module, [own if travels else {} for own in weights])


def _take_generation_config(model: PreTrainedModel, name: str) -> None:
    """Take the checkpoint's ends of a sequence, as ``from_pretrained`` of a name does."""
    if not model.can_generate():
        return
    try:
        model.generation_config = GenerationConfig.from_pretrained(name)
    except OSError:
        return  # the one made from the model's config stays


@register_quantization_config("fedmoe_as_is")
class _AsIs(QuantizationConfigMixin):
    """No quantisation; transformers' seam to change a model between building and reading it."""

    quant_method: Any

    def __init__(self, **_: Any) -> None:
        self.quant_method = "fedmoe_as_is"


@register_quantizer("fedmoe_as_is")
class _AsIsQuantizer(HfQuantizer):
    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        getattr(self.quantization_config, BEFORE_LOADING)(model)
        return model

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        self.remove_quantization_config(model)
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                module.config.__dict__.pop("_is_quantized", None)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True
