"""The sections of the run config: one frozen class per table of ``[tool.flwr.app.config]``.

Defaults and one-line descriptions stand in ``pyproject.toml``, which is their only place: a key
that is missing from the run config is an error, too.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Sequence
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from fedmoe_app.config.lists import as_list, label_names, read_label_names
from fedmoe_app.config.names import check_codec, parse_codecs
from fedmoe_app.config.node import Budget, parse_budgets
from fedmoe_app.config.tasks import METRICS, TASKS, TaskKind

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]

# The words among the values of data.source; all others name files or hub data sets.
EMBEDDED = "embedded"
NODES = "nodes"  # every node brings its own file

# What track can name; fedmoe_app/results/trackers.py has one of each.
TRACKERS = ("tensorboard", "wandb", "mlflow")


# The words among the values of data.chat-template; all others are a template or a file with one.
CHAT_TEMPLATES = ("auto", "always", "never")

# What data.prompt-format can name.
PLACEHOLDERS = ("system", "instruction", "context", "response")

Paragraph = tuple[tuple[str, str], ...]  # literal text, and the placeholder after it ("": none)


def parse_prompt_format(text: str) -> tuple[Paragraph, ...]:
    """Cut a prompt format at its empty lines, and each paragraph at its placeholders.

    Braces that stand for themselves are doubled, as in Python's ``str.format``.

    Raises:
        ValueError: an unknown placeholder, a single brace, none of ``{instruction}``, or a
            ``{response}`` that does not stand once, at the end.
    """
    try:
        parts = [list(Formatter().parse(part)) for part in text.rstrip().split("\n\n")]
    except ValueError as error:
        raise ValueError(f"{error}; a brace that is none of a placeholder is doubled") from None
    for _, name, spec, conversion in (piece for part in parts for piece in part):
        if name is not None and (name not in PLACEHOLDERS or spec or conversion):
            shown = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
            raise ValueError(f"unknown placeholder {{{name}}}; choose from {shown}")
    found = tuple(tuple((piece[0], piece[1] or "") for piece in part) for part in parts)
    names = [name for part in found for _, name in part if name]
    if "instruction" not in names or names.count("response") != 1 or found[-1][-1][1] != "response":
        raise ValueError("it needs {instruction}, and {response} once, at its end")
    return found


def split_names(text: str) -> tuple[str, ...]:
    """Return the names in a list separated by commas, each once, in the order given."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


class Section(BaseModel):
    """A table of the run config: frozen, kebab-case keys, finite numbers of the right type."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        alias_generator=lambda name: name.replace("_", "-"),
        protected_namespaces=(),
    )


class DataConfig(Section):
    """``data.*``: where the text comes from and how it is split over the clients."""

    source: Text
    source_kind: Literal["auto", "glob", "folder"]
    test_source: str
    encoding: Text
    delimiter: Annotated[str, Field(min_length=1)]
    task: Literal[tuple(TASKS)]  # type: ignore[valid-type]
    metric: Literal[("auto", *METRICS)]  # type: ignore[valid-type]
    text_field: Text
    label_field: Text
    label_names: str
    label_kind: Literal["name", "index"]
    row_format: Literal["auto", "messages", "prompt-completion", "instruction", "text"]
    messages_field: str
    prompt_field: str
    completion_field: str
    instruction_field: str
    label_names_file: str
    context_field: str
    response_field: str
    train_on: Literal["assistant", "last"]
    chat_template: str
    prompt_format: str
    system_messages: Literal["keep", "merge", "drop"]
    question_field: str
    options_field: str
    answer_field: str
    answer_kind: Literal["auto", "text", "index", "letter"]
    partition: Literal["iid", "dirichlet", "natural"]
    alpha: Annotated[float, Field(gt=0)]
    partition_by: str
    min_partition_size: Annotated[int, Field(ge=0)]
    local_test_fraction: Annotated[float, Field(ge=0, lt=1)]
    max_train_examples: Annotated[int, Field(ge=0)]
    max_test_examples: Annotated[int, Field(ge=0)]
    max_length: Annotated[int, Field(ge=4)]
    max_new_tokens: Annotated[int, Field(ge=1)]
    num_samples: Annotated[int, Field(ge=0)]

    @property
    def kind(self) -> TaskKind:
        """What is known of ``task``."""
        return TASKS[self.task]

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names given by the config, in index order; empty when the source tells them.

        With ``label-names-file`` the file is read: it lies on the server's machine.

        Raises:
            fedmoe_app.config.errors.DataError: a name twice, an empty one, or only one.
        """
        if self.label_names_file:
            return read_label_names(Path(self.label_names_file))
        return label_names(self.label_names)

    def with_labels(self, names: Sequence[str]) -> DataConfig:
        """Return this section with the class names written out, for a node without the file."""
        return self.model_copy(update={"label_names": as_list(names), "label_names_file": ""})

    @property
    def partition_column(self) -> str:
        """Column that the Dirichlet or natural partition goes by."""
        return self.partition_by or self.label_field

    @field_validator("encoding")
    @classmethod
    def _is_encoding(cls, value: str) -> str:
        if value != "auto":
            check_encoding(value)
        return value

    @field_validator("delimiter")
    @classmethod
    def _is_delimiter(cls, value: str) -> str:
        value = {"tab": "\t", "\\t": "\t"}.get(value, value)
        if value != "auto" and (len(value) > 1 or value in '"\r\n' or not value.isascii()):
            raise ValueError('must be "auto", "tab" or one ASCII character, such as ";" or "|"')
        return value

    @property
    def named_rows(self) -> str:
        """Kind of a causal-lm row as the config names it; "auto" where its columns tell."""
        if self.row_format != "auto":
            return self.row_format
        return next(iter(self._kinds_named()), "auto")

    @property
    def own_template(self) -> bool:
        """Whether ``chat-template`` is a template (its text, or a file) and none of the words."""
        return self.chat_template not in CHAT_TEMPLATES

    @property
    def template_for_all(self) -> bool:
        """Whether a chat template formats instructions, too, and not conversations alone."""
        return self.own_template or self.chat_template == "always"

    def _kinds_named(self) -> list[str]:
        names = {
            "messages": self.messages_field,
            "prompt-completion": self.prompt_field or self.completion_field,
            "instruction": self.instruction_field or self.context_field or self.response_field,
        }
        return [kind for kind, name in names.items() if name]

    @field_validator("prompt_format")
    @classmethod
    def _is_prompt_format(cls, value: str) -> str:
        parse_prompt_format(value)
        return value

    @field_validator("chat_template")
    @classmethod
    def _is_template(cls, value: str) -> str:
        if value in CHAT_TEMPLATES or "{" in value or value.endswith(".jinja"):
            return value
        raise ValueError(
            f"choose one of {', '.join(CHAT_TEMPLATES)}, or give a Jinja template or the absolute "
            "path of a .jinja file"
        )

    @model_validator(mode="after")
    def _one_kind_of_row(self) -> DataConfig:
        formats = self.kind.rows == "language" and self.row_format == "auto"
        if formats and len(self._kinds_named()) > 1:
            raise ValueError(
                f"the columns named are those of {' and '.join(self._kinds_named())}: name those "
                "of one kind of row, or say in row-format which one counts"
            )
        return self

    @model_validator(mode="after")
    def _partition_needs_a_column(self) -> DataConfig:
        if not self.kind.classifies and self.partition != "iid" and not self.partition_by:
            raise ValueError(
                f'partition = "{self.partition}" with task = "{self.task}" needs partition-by: '
                'name a column, or choose partition = "iid"'
            )
        return self

    @model_validator(mode="after")
    def _labels_are_named_once(self) -> DataConfig:
        if self.label_names.strip() and self.label_names_file:
            raise ValueError(
                f"label-names = {json.dumps(self.label_names, ensure_ascii=False)} with "
                f'label-names-file = "{self.label_names_file}": set only one of them'
            )
        return self

    @model_validator(mode="after")
    def _metric_fits_the_task(self) -> DataConfig:
        choices = ("auto", *self.kind.metrics)
        if self.metric not in choices:
            raise ValueError(
                f'metric = "{self.metric}" with task = "{self.task}": choose one of '
                f"{', '.join(choices)}"
            )
        return self


def check_encoding(name: str) -> None:
    """Refuse what is no encoding of text.

    Raises:
        ValueError: naming examples.
    """
    try:
        known = codecs.lookup(name)
    except LookupError:
        known = None
    if known is None or not known._is_text_encoding:
        raise ValueError(
            'no encoding of text; "auto", or a name that Python knows: utf-8, utf-16, cp1252, '
            "latin-1, cp1251, gb18030, shift_jis"
        )


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
    """``model.*``: what is trained."""

    name: Text
    head: Literal["auto", "sequence", "label-words"]
    dtype: Literal["float32", "bfloat16"]
    train: Literal["all", "experts", "expert-lora"]
    gates: bool
    train_head: bool
    attention_lora: bool
    lora_rank: Annotated[int, Field(ge=1)]
    lora_alpha: Annotated[int, Field(ge=1)]
    quantization: Literal["none", "nf4", "int8"]
    experts_in_memory: Literal["all", "chosen"]

    @model_validator(mode="after")
    def _quantization_fits(self) -> ModelConfig:
        check_quantization(self.quantization, self.train)
        return self


class TrainConfig(Section):
    """``train.*``: the local loop; names as in transformers' ``TrainingArguments``."""

    learning_rate: Annotated[float, Field(gt=0)]
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"]
    warmup_steps: Annotated[float, Field(ge=0)]
    num_train_epochs: Annotated[float, Field(gt=0)]
    max_steps: Annotated[int, Field(ge=0)]
    per_device_train_batch_size: Annotated[int, Field(ge=1)]
    per_device_eval_batch_size: Annotated[int, Field(ge=1)]
    gradient_accumulation_steps: Annotated[int, Field(ge=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Annotated[float, Field(ge=0)]
    gradient_checkpointing: bool
    threads: Annotated[int, Field(ge=1)]

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
    """``wire.*``: how values travel."""

    codec: str
    accept: str
    topk_share: Fraction
    error_feedback: bool
    downloads: Literal["changed", "full"]
    download_codec: Literal["fp32", "fp16", "bf16"]

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


class FedProxConfig(Section):
    """``fedprox.*``."""

    proximal_mu: Annotated[float, Field(ge=0)]


class FedMoEConfig(Section):
    """``fedmoe.*``."""

    experts_per_client: Annotated[int, Field(ge=1)]
    usage_examples: Annotated[int, Field(ge=1)]


class HFedMoEConfig(Section):
    """``hfedmoe.*``."""

    selection: Literal["batch", "round", "none"]
    budgets: str
    usage_examples: Annotated[int, Field(ge=1)]
    lam: Share
    beta: Annotated[float, Field(ge=0)]
    tau: Share
    normalise: bool
    usage_weights: bool
    importance_gates: bool

    @field_validator("budgets")
    @classmethod
    def _are_budgets(cls, value: str) -> str:
        parse_budgets(value)
        return value

    @property
    def default_budgets(self) -> tuple[Budget, ...]:
        """The budgets of the clients whose node names none."""
        return parse_budgets(self.budgets)


class FCMoEConfig(Section):
    """``fcmoe.*``."""

    importance: bool
    projection: bool
    retention: Literal["paper", "filtered", "none"]
    lam: Annotated[float, Field(ge=0)]


class FedAlignConfig(Section):
    """``fedalign.*``."""

    gates: Literal["private", "consistency", "average"]
    uniform_weights: bool
    lam: Annotated[float, Field(ge=0)]
    eta: float
    kl: Literal["pointwise", "bernoulli"]
    adaptive: bool
    experts: Literal["semantic", "index"]
    direction: bool
    beta: float
    adaptive_threshold: bool
    threshold: Annotated[float, Field(ge=-1, le=1)]
    temperature: Annotated[float, Field(gt=0)]


class PFLMoEConfig(Section):
    """``pflmoe.*``."""

    joint: bool
    gate_learning_rate: Annotated[float, Field(gt=0)]


class CombineConfig(Section):
    """``combine.*``: names of schemes."""

    selection: Text
    loss: Text
    gates: Text
    experts: Text


class RunConfig(Section):
    """A whole run. Build it with :func:`parse_run_config`."""

    scheme: Text
    scheme_args: str
    num_server_rounds: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    min_clients: Annotated[int, Field(ge=1)]
    fraction_train: Fraction
    clients_per_round: Annotated[int, Field(ge=0)]
    sampling: Literal["uniform", "examples"]
    max_rest_rounds: Annotated[int, Field(ge=0)]
    rounds: Literal["sync", "buffered"]
    buffer_size: Annotated[int, Field(ge=1)]
    spool_above: Annotated[int, Field(ge=0)]
    exact_pairs_up_to: Annotated[int, Field(ge=1)]
    projection_size: Annotated[int, Field(ge=64, multiple_of=4)]
    wait_for_clients: Annotated[float, Field(ge=0)]
    wait_for_other_runs: Annotated[float, Field(ge=0)]
    round_timeout: Annotated[float, Field(gt=0)]
    evaluate_every: Annotated[int, Field(ge=1)]
    max_failed_rounds: Annotated[int, Field(ge=1)]
    keep_client_state: bool
    diagnostics: bool
    server_device: Literal["auto", "cpu"]
    track: str
    output_dir: str
    run_name: str
    resume: str
    client_list: str
    keep_checkpoints: Annotated[int, Field(ge=1)]
    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    wire: WireConfig
    fedprox: FedProxConfig
    fedmoe: FedMoEConfig
    pflmoe: PFLMoEConfig
    hfedmoe: HFedMoEConfig
    fcmoe: FCMoEConfig
    fedalign: FedAlignConfig
    combine: CombineConfig

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

    @field_validator("output_dir")
    @classmethod
    def _is_absolute(cls, value: str) -> str:
        # The ServerApp does not run in the folder in which `flwr run` was typed.
        if value and not Path(value).is_absolute():
            raise ValueError("must be an absolute path, or empty for $FEDMOE_HOME/results")
        return value

    @field_validator("resume")
    @classmethod
    def _is_absolute_folder(cls, value: str) -> str:
        if value and not Path(value).is_absolute():
            raise ValueError("must be the absolute path of a result folder or checkpoint, or empty")
        return value

    @field_validator("client_list")
    @classmethod
    def _is_absolute_file(cls, value: str) -> str:
        if value and not Path(value).is_absolute():
            raise ValueError("must be the absolute path of a client list, or empty")
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
