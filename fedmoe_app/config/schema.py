"""The run config: one frozen class per table of ``[tool.flwr.app.config]``.

Every key is one field, with its type, range, default and description; ``fedmoe config --write``
generates the block of ``pyproject.toml`` and the reference page from them. In a test or notebook
``RunConfig()`` is the default run, ``RunConfig(data=DataConfig(alpha=0.1))`` another.

The file is long because it is the list of keys, with their descriptions, and of what they refuse
together; tables with rules of their own (data, privacy, schemes) have files already.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fedmoe_app.config.data import (
    EMBEDDED,
    NODES,
    DataConfig,
    Paragraph,
    parse_prompt_format,
    template_for,
)
from fedmoe_app.config.names import (
    CODEC_NAMES,
    PRESET_NAMES,
    SMOLLM2_MOE,
    check_codec,
    parse_codecs,
)
from fedmoe_app.config.privacy import PrivacyConfig
from fedmoe_app.config.schemes import (
    AverageConfig,
    CombineConfig,
    FCMoEConfig,
    FedAlignConfig,
    FedMoEConfig,
    FedProxConfig,
    HeadConfig,
    HFedMoEConfig,
    PFLMoEConfig,
)
from fedmoe_app.config.section import Fraction, Holds, Section, Text, key, traits_of

__all__ = [
    "EMBEDDED",
    "NODES",
    "TRACKERS",
    "DataConfig",
    "ModelConfig",
    "Paragraph",
    "PrivacyConfig",
    "RunConfig",
    "TrainConfig",
    "WireConfig",
    "check_quantization",
    "keys_that_hold",
    "parse_prompt_format",
    "resumable_keys",
    "split_names",
]

# What track can name; fedmoe_app/results/trackers.py has one of each.
TRACKERS = ("tensorboard", "wandb", "mlflow")


def split_names(text: str) -> tuple[str, ...]:
    """Return the names in a list separated by commas, each once, in the order given."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def check_quantization(quantization: str, train: str) -> None:
    """Refuse a quantised model that is not trained by adapters on its experts.

    Raises:
        ValueError: naming both keys and the way out.
    """
    if quantization != "none" and train != "expert-lora":
        raise ValueError(
            f'quantization = "{quantization}" with train = "{train}": quantised weights cannot be '
            'trained; choose train = "expert-lora", or quantization = "none"'
        )


class ModelConfig(Section):
    """What is trained."""

    name: Text = key(
        "qwen3moe-tiny",
        f"a preset ({', '.join(PRESET_NAMES)}), the pre-trained {SMOLLM2_MOE}, a local folder or a "
        "hub name",
        holds="path",
    )
    head: Literal["auto", "sequence", "label-words"] = key(
        "auto", "classification by: auto, sequence (a new linear head) or label-words"
    )
    dtype: Literal["float32", "bfloat16"] = key("float32", "float32 or bfloat16")
    train: Literal["all", "experts", "expert-lora"] = key(
        "all",
        "all parameters, experts (their full tensors) or expert-lora (LoRA on each); but for all, "
        "the rest is a frozen base that every node loads by itself",
    )
    gates: bool = key(True, "experts, expert-lora: train the routers, too")
    train_head: bool = key(True, "experts, expert-lora: train the new classification head, too")
    attention_lora: bool = key(False, "experts, expert-lora: LoRA on attention, too")
    lora_rank: Annotated[int, Field(ge=1)] = key(8, "r of all LoRA")
    lora_alpha: Annotated[int, Field(ge=1)] = key(16, "α: LoRA is scaled by α/r")
    quantization: Literal["none", "nf4", "int8"] = key(
        "none",
        'none, nf4 (4 bits) or int8: of the frozen base, with train = "expert-lora"',
    )
    experts_in_memory: Literal["all", "chosen"] = key(
        "all",
        "all, or chosen: a node loads and is sent only the experts that the scheme chose for it "
        '(fedmoe, or hfedmoe with selection = "round")',
    )

    @model_validator(mode="after")
    def _quantization_fits(self) -> ModelConfig:
        check_quantization(self.quantization, self.train)
        return self


class TrainConfig(Section):
    """The local loop; names and meaning as in transformers' TrainingArguments."""

    learning_rate: Annotated[float, Field(gt=0)] = key(2e-3, "step size of AdamW")
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = key(
        "constant", "constant, constant_with_warmup, linear or cosine, over all rounds"
    )
    warmup_steps: Annotated[float, Field(ge=0)] = key(
        0.0, "optimiser steps, or below 1 a share of those of all rounds"
    )
    num_train_epochs: Annotated[float, Field(gt=0)] = key(
        1.0, "passes through a client's examples a round"
    )
    max_steps: Annotated[int, Field(ge=0)] = key(
        0, "optimiser steps a round; 0 = as many as num-train-epochs gives"
    )
    per_device_train_batch_size: Annotated[int, Field(ge=1)] = key(16, "examples a batch")
    per_device_eval_batch_size: Annotated[int, Field(ge=1)] = key(
        128, "examples a batch of an evaluation"
    )
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = key(1, "batches an optimiser step")
    weight_decay: Annotated[float, Field(ge=0)] = key(0.01, "weight decay of AdamW")
    max_grad_norm: Annotated[float, Field(ge=0)] = key(
        1.0, "norm that gradients are clipped to; 0 = not at all"
    )
    gradient_checkpointing: bool = key(
        False, "compute activations again in the backward pass: less memory for more time"
    )
    threads: Annotated[int, Field(ge=1)] = key(1, "torch threads a client may use")
    prefix_cache: Literal["auto", "on", "off"] = key(
        "auto",
        "hidden states of the frozen layers below the first trained one are computed once and kept "
        "on the node's disk: auto: where that pays (docs/frozen-layers.md), on or off",
    )
    prefix_cache_mib: Annotated[int, Field(ge=1)] = key(
        1024, "MiB of them that a client keeps at most, and the server of its test set in memory"
    )

    @property
    def examples_per_step(self) -> int:
        """Examples of an optimiser step, of all its batches."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def num_steps(self, num_examples: int) -> int:
        """Return the optimiser steps of a round: epochs times batches, at most ``max-steps``."""
        batches = math.ceil(num_examples / self.examples_per_step)
        steps = max(1, round(self.num_train_epochs * batches))
        return min(steps, self.max_steps) if self.max_steps else steps

    def examples_seen(self, num_examples: int) -> int:
        """Return how many examples a round goes through at most, those seen again included.

        The last step of an epoch may have fewer than the others.
        """
        steps = self.num_steps(num_examples)
        batches = math.ceil(num_examples / self.examples_per_step)
        epochs = math.ceil(steps / batches)
        return min(steps * self.examples_per_step, epochs * num_examples)

    @model_validator(mode="after")
    def _constant_has_no_warmup(self) -> TrainConfig:
        if self.lr_scheduler_type == "constant" and self.warmup_steps > 0:
            raise ValueError(
                f'warmup-steps = {self.warmup_steps:g} with lr-scheduler-type = "constant" does '
                'nothing: choose "constant_with_warmup", "linear" or "cosine"'
            )
        return self


class WireConfig(Section):
    """How values travel between the server and its nodes (docs/codecs.md)."""

    codec: str = key(
        "fp32",
        f'form of updates: {", ".join(CODEC_NAMES)}; a node config may name another: codec="int8"',
    )
    accept: str = key("fp32", "comma-separated: codecs that are taken, too", holds="words")
    topk_share: Fraction = key(0.05, "share of the values that topk keeps")
    error_feedback: bool = key(True, "a node adds what encoding lost to its next update")
    downloads: Literal["changed", "full"] = key(
        "changed", "changed: a node is sent what differs from what it has; or full"
    )
    download_codec: Literal["fp32", "fp16", "bf16"] = key(
        "fp32", "form of what is sent down: fp32, fp16 or bf16"
    )

    @field_validator("codec")
    @classmethod
    def _is_codec(cls, value: str) -> str:
        return check_codec(value)

    @field_validator("accept")
    @classmethod
    def _are_codecs(cls, value: str) -> str:
        parse_codecs(value)
        return value

    @property
    def codecs(self) -> tuple[str, ...]:
        """All codecs that the server takes, the one that it wants first."""
        return tuple(dict.fromkeys((self.codec, *parse_codecs(self.accept))))


class RobustConfig(Section):
    """What one client can do to a round at most (docs/trust.md)."""

    guard: Literal["default", "tight", "off"] = key(
        "default",
        "default, tight or off: bounds of a client's share and of the norms of its update, by the "
        "median client; tight also looks at its direction",
        resumable=True,
    )
    root_source: str = key(
        "",
        'scheme = "fltrust": file(s) with rows that the server trusts and trains on; "" = of the '
        "training rows that the server has, if it has some",
        holds="files",
    )
    root_examples: Annotated[int, Field(ge=1)] = key(
        100, 'scheme = "fltrust": at most so many of them, each class by its share'
    )


class RunConfig(Section):
    """A whole run; :func:`fedmoe_app.config.parse.parse_run_config` reads one of flat keys."""

    scheme: Text = key(
        "fedavg",
        'a scheme (docs/schemes), or your own as "package.module:Class"',
    )
    scheme_args: str = key(
        "",
        "JSON object of a scheme's arguments, for schemes without a table of their own, yours "
        "among them, e.g. '{\"lam\": 0.5}'",
    )
    num_server_rounds: Annotated[int, Field(ge=1)] = key(
        6,
        "federated rounds; a resumed run may have more, unless a learning-rate schedule runs over "
        "them",
        resumable=True,
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = key(
        42, "one seed gives the same run bit for bit on one machine"
    )
    min_clients: Annotated[int, Field(ge=1)] = key(
        2, "nodes needed to start, and valid replies needed to count a round", resumable=True
    )
    fraction_train: Fraction = key(1.0, "share of the connected nodes asked to train in a round")
    clients_per_round: Annotated[int, Field(ge=0)] = key(
        0, "clients asked to train in a round; 0: the share of them that fraction-train says"
    )
    sampling: Literal["uniform", "examples"] = key(
        "uniform",
        "who is asked when not all are: uniform, or examples: by training examples",
    )
    max_rest_rounds: Annotated[int, Field(ge=0)] = key(
        8,
        "a client that fails again and again is left out for 1, 2, 4, ... rounds, at most so many; "
        "0: never",
    )
    rounds: Literal["sync", "buffered"] = key(
        "sync",
        "sync: a round waits for all that were asked; buffered: for buffer-size replies, and later "
        "ones count in the next round, discounted by their age",
    )
    buffer_size: Annotated[int, Field(ge=1)] = key(
        4, 'rounds = "buffered": replies that make a round'
    )
    spool_above: Annotated[int, Field(ge=0)] = key(
        16,
        "MiB of a round's replies that stay in memory; the rest waits in a file in the result "
        "folder, which goes with the process",
        resumable=True,
    )
    exact_pairs_up_to: Annotated[int, Field(ge=1)] = key(
        256,
        "clients up to which cosines between all changes of an expert are exact; beyond, they are "
        "those of random projections (docs/scale.md)",
    )
    projection_size: Annotated[int, Field(ge=64, multiple_of=4)] = key(
        4096, "values that a change is projected to beyond exact-pairs-up-to clients"
    )
    wait_for_clients: Annotated[float, Field(ge=0)] = key(
        120, "seconds to wait for min-clients nodes before giving up", resumable=True
    )
    wait_for_other_runs: Annotated[float, Field(ge=0)] = key(
        3600,
        "seconds to wait for nodes that work for another run; 0: take turns with it",
        resumable=True,
    )
    round_timeout: Annotated[float, Field(gt=0)] = key(
        3600, "seconds to wait for the replies of a round", resumable=True
    )
    evaluate_every: Annotated[int, Field(ge=1)] = key(
        1,
        "rounds between evaluations of the global model; the last is always one",
        resumable=True,
    )
    keep_best: Literal["", "accuracy", "loss"] = key(
        "",
        "keep the model of the round with the best accuracy or loss on the rows of "
        'data.validation-source, else on the clients\' own hold-outs; "" = that of the last round',
    )
    patience: Annotated[int, Field(ge=0)] = key(
        0,
        "keep-best: rounds without a better one after which the run ends; 0 = it never ends early",
        resumable=True,
    )
    max_failed_rounds: Annotated[int, Field(ge=1)] = key(
        2, "failed rounds in a row after which the run stops", resumable=True
    )
    keep_client_state: bool = key(
        False,
        "leave private gates, residuals and personal copies on the nodes' disks after the run; "
        "otherwise they are dropped when it is complete",
        resumable=True,
    )
    diagnostics: bool = key(
        True,
        "conflicts, weights, similarities of every expert in metrics.jsonl",
        resumable=True,
    )
    server_device: Literal["auto", "cpu"] = key(
        "auto",
        "where the server keeps and scores the model: auto (the first GPU, if there is one) or "
        "cpu, which leaves the whole GPU to simulated clients",
        resumable=True,
    )
    track: str = key(
        "",
        f"experiment trackers, separated by commas: {', '.join(TRACKERS)}; offline, in the result "
        "folder, unless WANDB_MODE or MLFLOW_TRACKING_URI say otherwise",
        resumable=True,
        holds="words",
    )
    output_dir: str = key(
        "",
        'absolute folder for results; "" = $FEDMOE_HOME/results (~/.fedmoe/results)',
        resumable=True,
        holds="results",
    )
    run_name: str = key(
        "", 'folder of this run in output-dir; "" = the scheme with date and time', resumable=True
    )
    resume: str = key(
        "",
        "absolute path of a result folder (or of one checkpoint in it): go on there",
        resumable=True,
        holds="results",
    )
    client_list: str = key(
        "",
        "absolute path of a file that says whose key may speak for which client (fedmoe register "
        '--client, docs/deploy.md); "" = who uses a number first',
        resumable=True,
        holds="path",
    )
    keep_checkpoints: Annotated[int, Field(ge=1)] = key(
        2, "checkpoints that stay in the result folder, the newest ones", resumable=True
    )
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    wire: WireConfig = WireConfig()
    robust: RobustConfig = RobustConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    fedprox: FedProxConfig = FedProxConfig()
    fedmoe: FedMoEConfig = FedMoEConfig()
    pflmoe: PFLMoEConfig = PFLMoEConfig()
    hfedmoe: HFedMoEConfig = HFedMoEConfig()
    fcmoe: FCMoEConfig = FCMoEConfig()
    fedalign: FedAlignConfig = FedAlignConfig()
    combine: CombineConfig = CombineConfig()
    head: HeadConfig = HeadConfig()
    average: AverageConfig = AverageConfig()

    @model_validator(mode="after")
    def _buffers_fill(self) -> RunConfig:
        if self.rounds == "buffered" and self.buffer_size < self.min_clients:
            raise ValueError(
                f"buffer-size = {self.buffer_size} with min-clients = {self.min_clients}: a buffer "
                "holds at least min-clients replies; raise the one or lower the other"
            )
        if 0 < self.clients_per_round < self.min_clients:
            raise ValueError(
                f"clients-per-round = {self.clients_per_round} with min-clients = "
                f"{self.min_clients}: choose at least min-clients, or 0 for fraction-train"
            )
        return self

    @model_validator(mode="after")
    def _privacy_holds(self) -> RunConfig:
        if fault := self._privacy_fault():
            raise ValueError(fault)
        return self

    def _privacy_fault(self) -> str:
        """Return what would undo the privacy that is asked for, with the way out; or ""."""
        privacy = self.privacy
        if privacy.example_dp:
            return self._example_fault()
        if not privacy.has_dp and not privacy.secure_sum:
            return ""
        what = "privacy.secure-sum = true" if privacy.secure_sum else f'privacy.dp = "{privacy.dp}"'
        if self.rounds != "sync":
            return f'{what} with rounds = "{self.rounds}": a sum needs one round\'s clients; "sync"'
        if self.model.experts_in_memory != "all":
            return (
                f'{what} with model.experts-in-memory = "{self.model.experts_in_memory}": which '
                'experts a node asks for tells what its data are; choose "all"'
            )
        if self.keep_best and not self.data.validation_source:
            return (
                f'{what} with keep-best = "{self.keep_best}": clients would send scores; set '
                "data.validation-source, rows of the server's"
            )
        if privacy.secure_sum:
            return self._sum_fault(what)
        if self.sampling != "uniform":
            return (
                f'{what} with sampling = "{self.sampling}": chances would depend on the clients\' '
                'data; choose "uniform"'
            )
        if self.fraction_train != 1 or self.clients_per_round:
            return (
                f"{what}: privacy.dp-sample-rate says who is asked; leave fraction-train = 1 and "
                "clients-per-round = 0"
            )
        if self.wire.error_feedback and self.wire.codecs != ("fp32",):
            return (
                f'{what} with wire.codec = "{self.wire.codec}", wire.accept = '
                f'"{self.wire.accept}": what encoding lost is sent in later rounds, so that a '
                "client's round holds its earlier ones; set wire.error-feedback = false"
            )
        return ""

    def _example_fault(self) -> str:
        what = "privacy.example-dp = true"
        if self.model.train != "expert-lora":
            return (
                f'{what} with model.train = "{self.model.train}": the noise grows with what is '
                'trained; choose "expert-lora"'
            )
        if self.model.experts_in_memory != "all":
            return (
                f'{what} with model.experts-in-memory = "{self.model.experts_in_memory}": which '
                'experts a node asks for tells what its data are; choose "all"'
            )
        if not self.train.max_steps:
            return (
                f"{what} with train.max-steps = 0: how many steps a client takes must not depend "
                "on how many examples it has; set train.max-steps"
            )
        if self.keep_best and not self.data.validation_source:
            return (
                f'{what} with keep-best = "{self.keep_best}": clients would send scores; set '
                "data.validation-source, rows of the server's"
            )
        if self.data.kind.rows == "options" and self.data.answer_kind == "auto":
            return (
                f'{what} with data.answer-kind = "auto": how answers are read is told from all '
                "rows together, so that one changes the others; name it"
            )
        if self.data.kind.rows == "language" and self.data.named_rows == "auto":
            return (
                f'{what} with data.row-format = "auto": what rows hold is told from the first ones '
                "of a file, so that one changes the others; name it"
            )
        if missing := self.data.unnamed_columns:
            return (
                f'{what} with data.{missing} = "": which columns hold what is told from those '
                "that rows have, so that one row changes the others; name it"
            )
        if self.data.source == NODES and not self.data.test_source:
            return (
                f'{what} with data.source = "{NODES}": nodes would score the global model on rows '
                "of theirs; set data.test-source, rows of the server's"
            )
        return ""

    def _sum_fault(self, what: str) -> str:
        if self.wire.codecs != ("fp32",):
            return (
                f'{what} with wire.codec = "{self.wire.codec}", wire.accept = '
                f'"{self.wire.accept}": masked values are integers that no codec may round; choose '
                '"fp32" for both'
            )
        if self.min_clients < 3:
            return (
                f"{what} with min-clients = {self.min_clients}: a sum of two tells each of them "
                "the other; choose 3 or more, better 5"
            )
        return ""

    @model_validator(mode="after")
    def _patience_waits_for_something(self) -> RunConfig:
        if self.patience and not self.keep_best:
            raise ValueError(
                f'patience = {self.patience} with keep-best = "": no round is the best; choose '
                'keep-best = "accuracy" or "loss", or patience = 0'
            )
        if self.patience and self.patience < self.evaluate_every:
            raise ValueError(
                f"patience = {self.patience} with evaluate-every = {self.evaluate_every}: the run "
                "would end before a round after the best is scored; raise the one or lower the "
                "other"
            )
        return self

    @property
    def template(self) -> str:
        """``data.template`` of this model, with ``auto`` resolved."""
        return template_for(self.data.template, self.model.name)

    @property
    def scheme_kwargs(self) -> dict[str, Any]:
        """``scheme-args`` as a dict."""
        return dict(json.loads(self.scheme_args)) if self.scheme_args else {}

    @field_validator("scheme_args")
    @classmethod
    def _is_json_object(cls, value: str) -> str:
        if value:
            try:
                parsed = json.loads(value)
            except json.JSONDecodeError as error:
                raise ValueError(f"not JSON ({error})") from None
            if not isinstance(parsed, dict):
                raise ValueError('must be a JSON object such as {"lam": 0.5}')
            if not _is_finite(parsed):
                raise ValueError("numbers must be finite")
        return value

    @field_validator("track")
    @classmethod
    def _are_trackers(cls, value: str) -> str:
        if unknown := [name for name in split_names(value) if name not in TRACKERS]:
            raise ValueError(
                f"unknown {', '.join(unknown)}; choose from {', '.join(TRACKERS)}, separated by "
                "commas"
            )
        return value

    @field_validator("output_dir", "resume", "client_list")
    @classmethod
    def _is_absolute(cls, value: str) -> str:
        # The ServerApp does not run in the folder in which `flwr run` was typed.
        if value and not Path(value).is_absolute():
            raise ValueError("must be an absolute path, or empty")
        return value

    @field_validator("run_name")
    @classmethod
    def _is_one_folder(cls, value: str) -> str:
        if value and (Path(value).name != value or value in (".", "..")):
            raise ValueError("must be a plain folder name without slashes")
        return value


def _is_finite(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def resumable_keys() -> frozenset[str]:
    """Return the keys that may change between the parts of a resumed run."""
    return frozenset(name for name, field in RunConfig.all_keys() if traits_of(field)["resumable"])


def keys_that_hold(*kinds: Holds) -> tuple[str, ...]:
    """Return the keys whose text is of one of these kinds, in their order in the config."""
    return tuple(name for name, field in RunConfig.all_keys() if traits_of(field)["holds"] in kinds)
