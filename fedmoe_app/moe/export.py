"""Write what LoRA training changed as an adapter folder that plain PEFT loads.

Names and shapes come from PEFT itself: it wraps a copy of the model without values (on torch's meta
device) as the written config says, and each wrapper is filled from the adapted model. Fused experts
go to ``target_parameters``, whose wrapper holds a layer's experts in one pair of matrices: A
``[E·r, in]`` expert after expert, B ``[out, r·E]`` with expert e in the columns e, e + E, ...
(peft 0.21, ``ParamWrapper.get_delta_factors``). Listed experts and attention go to
``target_modules``; trained gates and a classification head are copied whole (``modules_to_save``).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmoe_app.config.files import new_folder
from fedmoe_app.moe.layers import MoELayer, UnsupportedModelError, dense_parameters
from fedmoe_app.moe.state import moved_by_server
from fedmoe_app.moe.training.adapt import head_parameters
from fedmoe_app.moe.training.slots import slots_of

_ADAPTER = "default"  # PEFT's name for a model's first adapter
_PREFIX = "base_model.model."  # of the wrapped model inside a PeftModel
_README = """# LoRA adapter

Trained by fedmoe: LoRA on every expert (and on attention, if it was asked for), {saved}.
The weights of the base model are not in this folder.

- base model: {base}
- its class: transformers.{model_class}
- with the adapters merged into it: the folder `model`, if it lies beside this one

Load it with PEFT {peft} or a later one that reads it:

    base = {model_class}.from_pretrained({base_argument})
    model = PeftModel.from_pretrained(base, "adapter")
"""


def export_adapter(
    model: PreTrainedModel, layers: Sequence[MoELayer], folder: Path, base: str = ""
) -> None:
    """Write ``adapter_config.json``, ``adapter_model.safetensors`` and a README to ``folder``.

    Call it before the adapters are merged. ``PeftModel.from_pretrained(base, folder)`` then gives
    the outputs of ``model``. The folder appears complete or not at all; one that exists stays.

    Args:
        model: as :func:`fedmoe_app.moe.training.adapt.adapt` made it, with ``train =
        "expert-lora"``. layers: its MoE layers. folder: the new folder. base: name or path of the
        base model for those who load the adapter; "" if it has none.

    Raises:
        UnsupportedModelError: the experts have no adapters, or PEFT would hold them in another
            form than this module knows. Nothing is written.
        FileExistsError: there is such a folder.
    """
    config = _config(model, layers)
    tensors = _tensors(_skeleton(model, config), model, layers)
    _finish(config, base)
    if folder.exists():
        raise FileExistsError(f"{folder}: exists already; choose another folder")
    with new_folder(folder) as draft:
        config.save_pretrained(str(draft))
        save_file(tensors, draft / "adapter_model.safetensors", metadata={"format": "pt"})
        (draft / "README.md").write_text(_readme(model, config, base), encoding="utf-8")


def _config(model: PreTrainedModel, layers: Sequence[MoELayer]) -> LoraConfig:
    missing = [layer.name for layer in layers if not layer.adapters]
    if missing:
        raise UnsupportedModelError(
            f"{missing[0]}: its experts have no LoRA adapters, so there is no adapter folder to "
            'write; only model.train = "expert-lora" gives one'
        )
    if any(moved_by_server(name) for name in layers[0].adapters[0]):
        raise UnsupportedModelError(
            f"{layers[0].name}: its adapters have residuals, which no adapter folder can hold; use "
            "the merged model"
        )
    rank, alpha = _rank_and_alpha(model, layers)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=[name for name, _ in _lora_layers(model)],
        target_parameters=list(_target_parameters(model, layers)) or None,
        modules_to_save=_saved_modules(model, layers) or None,
        bias="none",
        task_type=_task_type(model),
    )


def _rank_and_alpha(model: PreTrainedModel, layers: Sequence[MoELayer]) -> tuple[int, int]:
    """Return r and α, which are the same for all adapters of a model."""
    for layer in layers:
        if layer.fused:
            rank = next(t for n, t in layer.adapters[0].items() if n.endswith("lora_A")).shape[0]
            return rank, round(slots_of(layer).scaling * rank)
    _, first = next(_lora_layers(model))
    return first.r[_ADAPTER], first.lora_alpha[_ADAPTER]


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Yield the linear maps that PEFT wrapped in the adapted model."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _target_parameters(
    model: PreTrainedModel, layers: Sequence[MoELayer]
) -> dict[str, tuple[MoELayer, str]]:
    """Return the adapted stacks by full name, each with its layer and its name there."""
    names = {id(module): name for name, module in model.named_modules()}
    return {
        f"{names[id(layer.experts_module)]}.{key.removesuffix('.lora_A')}": (
            layer,
            key.removesuffix(".lora_A"),
        )
        for layer in layers
        if layer.fused
        for key in layer.adapters[0]
        if key.endswith(".lora_A")
    }


def _saved_modules(model: PreTrainedModel, layers: Sequence[MoELayer]) -> list[str]:
    """Return the modules to copy whole: trained gates, and owners of other trained parameters."""
    gates = [layer.router_name for layer in layers if layer.gate_parameters()]
    dense = [name for name in dense_parameters(model, layers) if ".lora_" not in name]
    if _task_type(model) is TaskType.SEQ_CLS:
        # The base may be a language model, whose new head no checkpoint holds, even if frozen.
        dense += head_parameters(model)
    return list(dict.fromkeys([*gates, *(name.rpartition(".")[0] for name in dense)]))


def _task_type(model: PreTrainedModel) -> TaskType:
    if type(model).__name__.endswith("ForSequenceClassification"):
        return TaskType.SEQ_CLS
    encoder_decoder = getattr(model.config, "is_encoder_decoder", False)
    return TaskType.SEQ_2_SEQ_LM if encoder_decoder else TaskType.CAUSAL_LM


def _skeleton(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Return the model as PEFT would wrap it, without values; PEFT may amend the config."""
    plain_config = copy.deepcopy(model.config)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PEFT's about transformers' names
            plain = type(model)(plain_config)
            return get_peft_model(plain, config, adapter_name=_ADAPTER, low_cpu_mem_usage=True)
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise UnsupportedModelError(
            f"{type(model).__name__}: PEFT cannot hold its adapters ({error}); use the merged model"
        ) from error


def _tensors(
    skeleton: PeftModel, model: PreTrainedModel, layers: Sequence[MoELayer]
) -> dict[str, Tensor]:
    """Return the adapter's tensors by the names that PEFT gives them in a file."""
    stacks = _target_parameters(model, layers)
    values: dict[str, Tensor] = {}
    for name, module in skeleton.named_modules():
        path = name.removeprefix(_PREFIX)
        if isinstance(module, ParamWrapper):
            owner = path.replace(".base_layer", "")
            layer, stack = stacks[f"{owner}.{module.parameter_name}"]
            values |= _under(name, _stacked(layer, stack))
        elif isinstance(module, LoraLayer):
            values |= _under(name, _pair(model.get_submodule(path)))
        elif isinstance(module, ModulesToSaveWrapper):
            state = model.get_submodule(path).state_dict()
            values |= _under(f"{name}.modules_to_save.{_ADAPTER}", state)
    wanted = get_peft_model_state_dict(skeleton, save_embedding_layers=False)
    tensors = get_peft_model_state_dict(skeleton, values, save_embedding_layers=False)
    _check(tensors, wanted, type(model).__name__)
    # Of its own memory each: safetensors refuses views of one another.
    return {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _pair(module: nn.Module) -> dict[str, Tensor]:
    """Return A and B of a linear map that PEFT wrapped, by their names inside it."""
    return {n: t for n, t in module.state_dict().items() if n.startswith("lora_")}


def _stacked(layer: MoELayer, stack: str) -> dict[str, Tensor]:
    """Join A ``[r, in]`` and B ``[out, r]`` of all experts as PEFT's wrapper of a stack does."""
    a = torch.cat([adapter[f"{stack}.lora_A"] for adapter in layer.adapters])  # [E·r, in]
    b = torch.stack([adapter[f"{stack}.lora_B"] for adapter in layer.adapters], dim=-1)
    return {
        f"lora_A.{_ADAPTER}.weight": a,
        f"lora_B.{_ADAPTER}.weight": b.flatten(1),  # [out, r, E] -> [out, r·E]
    }


def _check(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], model_name: str) -> None:
    """Refuse to write what PEFT would not load in full."""
    ours = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    if ours == theirs:
        return
    name = sorted(ours.items() ^ theirs.items())[0][0]
    raise UnsupportedModelError(
        f"{model_name}: PEFT cannot hold these adapters: {name} is {ours.get(name, 'missing')} "
        f"here and {theirs.get(name, 'missing')} in PEFT; use the merged model"
    )


def _finish(config: LoraConfig, base: str) -> None:
    """Name the base and sort PEFT's sets, so that the same adapter is the same file."""
    config.base_model_name_or_path = base or None
    config.inference_mode = True
    for name in ("target_modules", "target_parameters", "modules_to_save"):
        value = getattr(config, name)
        if value is not None:
            setattr(config, name, sorted(value))


def _readme(model: PreTrainedModel, config: LoraConfig, base: str) -> str:
    from peft import __version__ as peft_version

    saved = len(config.modules_to_save or ())
    labels = f", num_labels={model.config.num_labels}" * (config.task_type is TaskType.SEQ_CLS)
    return _README.format(
        saved=f"{saved} modules (gates, head) in full" if saved else "nothing else",
        base=base or "a preset of fedmoe, of which there are no files; `config.toml` names it",
        model_class=type(model).__name__,
        base_argument=f'"{base or "BASE"}"{labels}',
        peft=peft_version,
    )
