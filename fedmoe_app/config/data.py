"""``data.*``: where the text comes from and how it is split over the clients."""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from pathlib import Path
from string import Formatter
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fedmoe_app.config.lists import as_list, label_names, read_label_names
from fedmoe_app.config.names import SMOLLM2_MOE
from fedmoe_app.config.section import Section, Text, key
from fedmoe_app.config.tasks import METRICS, TASKS, TaskKind

# The words among the values of data.source; all others name files or hub data sets.
EMBEDDED = "embedded"
NODES = "nodes"  # every node brings its own file

# The words among the values of data.chat-template; all others are a template or a file with one.
CHAT_TEMPLATES = ("auto", "always", "never")

# What data.template = "auto" means: where a text ends, a causal model then says what it is about.
# Measured by benchmarks/template.py; any other model gets the text alone.
TEMPLATES = {SMOLLM2_MOE: '{text}\nThis sentence means in one word:"'}

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


def parse_template(template: str) -> tuple[str, str]:
    """Return what stands before and after the text.

    Braces that stand for themselves are doubled, as in Python's ``str.format``.

    Raises:
        ValueError: an unknown placeholder, a single brace, or not one ``{text}``.
    """
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{error}; a brace that is none of a placeholder is doubled") from None
    names = [name for _, name, _, _ in pieces if name is not None]
    for name in names:
        if name != "text":
            raise ValueError(f"unknown placeholder {{{name}}}; the only one is {{text}}")
    if len(names) != 1 or any(spec or conversion for _, _, spec, conversion in pieces):
        raise ValueError("it needs {text}, once and without a format")
    place = [name for _, name, _, _ in pieces].index("text")
    before, after = pieces[: place + 1], pieces[place + 1 :]
    return "".join(piece[0] for piece in before), "".join(piece[0] for piece in after)


class DataConfig(Section):
    """Where the text comes from and how it is split over the clients."""

    source: Text = key(
        EMBEDDED,
        "embedded, a .jsonl/.json/.csv/.tsv/.parquet file (also .gz), several, comma-separated or "
        "as a list, a hub data set name, or nodes: every node brings its own file (data-path)",
        holds="files",
    )
    source_kind: Literal["auto", "glob", "folder"] = key(
        "auto",
        "what source, test-source and data-path name: auto: paths, taken literally; glob: patterns "
        "such as part-*.jsonl; folder: all data files in it",
    )
    test_source: str = key(
        "",
        "file(s) with the server's test set; \"\" = the source's own test split, if any",
        holds="files",
    )
    validation_source: str = key(
        "",
        "file(s) with rows of the server's, neither training nor test, on which keep-best chooses "
        "the round",
        holds="files",
    )
    encoding: Text = key(
        "auto",
        "encoding of text files: auto (UTF-8, or what a byte order mark says), cp1252, utf-16, ...",
    )
    delimiter: Annotated[str, Field(min_length=1)] = key(
        "auto",
        "what separates the columns of CSV: auto (comma, semicolon or tab, by the header), tab, or "
        "the character",
    )
    task: Literal[tuple(TASKS)] = key(  # type: ignore[valid-type]
        "classification", "what the model learns; it decides about columns, loss and score"
    )
    metric: Literal[("auto", *METRICS)] = key(  # type: ignore[valid-type]
        "auto",
        "what counts as right; auto: the first that the task has; "
        + "; ".join(f"{name}: {what}" for name, what in METRICS.items() if what),
    )
    text_field: Text = key("text", "classification: the column with the input text")
    template: str = key(
        "auto",
        'classification: what stands around the text, such as "{text}\\nTopic:"; auto: the text '
        f"alone, and for {SMOLLM2_MOE} a suffix (docs/pretrained.md)",
    )
    label_field: Text = key("label", "classification: the column with the class's name")
    label_names: str = key(
        "",
        'class names, comma-separated or as a list: \'["Health, safety", "Other"]\'; "" = '
        "those found in the source",
        holds="names",
    )
    label_names_file: str = key(
        "",
        "file with the class names on the server's machine, in place of label-names: one a line, "
        "or a JSON list",
        holds="path",
    )
    label_kind: Literal["name", "index"] = key(
        "name",
        "name: a label is the class of this name; index: its position in label-names, from 0 "
        "(data sets that declare that, as ClassLabel does, need nothing)",
    )
    row_format: Literal["auto", "messages", "prompt-completion", "instruction", "text"] = key(
        "auto",
        'causal-lm: the kind of a row, or auto: recognised by the columns. "" in the six column '
        "names below = the usual names (docs/own-data.md)",
    )
    messages_field: str = key("", "messages: a conversation, a list of messages with role, content")
    prompt_field: str = key(
        "",
        "prompt-completion: the prompt; both columns hold texts as they stand, or lists of "
        "messages, and the loss covers the completion",
    )
    completion_field: str = key("", "prompt-completion: the completion")
    instruction_field: str = key("", "instruction: the prompt, laid out by prompt-format")
    context_field: str = key("", "instruction: a passage added to the prompt, where there is one")
    response_field: str = key("", "instruction: the answer; the loss covers only this")
    train_on: Literal["assistant", "last"] = key(
        "assistant", "conversations: loss on all assistant turns, or on the last one"
    )
    chat_template: str = key(
        "auto",
        "auto: the tokenizer's own for conversations, if it has one; always: for instructions, "
        "too; never; or a template's text or .jinja file",
    )
    prompt_format: str = key(
        "{system}\n\n### Instruction:\n{instruction}\n\n### Context:\n{context}\n\n"
        "### Response:\n{response}",
        "How a prompt looks without a chat template; a paragraph without a value is left out.",
    )
    system_messages: Literal["keep", "merge", "drop"] = key(
        "keep", "conversations: keep, merge (into the user's turn after it) or drop"
    )
    question_field: str = key(
        "",
        'multiple-choice: the question; "" in these three column names = found among the known '
        "shapes (ARC, MMLU, PIQA)",
    )
    options_field: str = key(
        "",
        "multiple-choice: one column of lists, or several columns, comma-separated",
        holds="names",
    )
    answer_field: str = key("", "multiple-choice: the right option")
    answer_kind: Literal["auto", "text", "index", "letter"] = key(
        "auto",
        "what answer-field holds: text (an option's, exactly), index (from 0), letter (from A, or "
        "the options' own labels) or auto: the one that fits all rows",
    )
    partition: Literal["iid", "dirichlet", "natural"] = key(
        "dirichlet",
        "how rows are split over the clients: iid: at random; dirichlet: with unequal "
        "shares of each class; natural: by whole values of partition-by",
    )
    alpha: Annotated[float, Field(gt=0)] = key(
        0.5, "dirichlet: concentration; smaller = more unequal clients"
    )
    partition_by: str = key("", 'column that dirichlet or natural goes by; "" = label-field')
    min_partition_size: Annotated[int, Field(ge=0)] = key(1, "examples that every client must get")
    local_test_fraction: Annotated[float, Field(ge=0, lt=1)] = key(
        0.1, "share of a client's examples kept for its own accuracy"
    )
    max_train_examples: Annotated[int, Field(ge=0)] = key(
        0, "cap on the training examples before partitioning; 0 = all"
    )
    max_test_examples: Annotated[int, Field(ge=0)] = key(
        0, "cap on the server's test examples; 0 = all"
    )
    max_length: Annotated[int, Field(ge=4)] = key(48, "tokens a text is cut to")
    max_new_tokens: Annotated[int, Field(ge=1)] = key(
        64, "tokens that exact-match and samples generate at most"
    )
    num_samples: Annotated[int, Field(ge=0)] = key(
        5,
        "test prompts answered in samples.jsonl at every evaluation; 0 = none",
        resumable=True,
    )

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

    @property
    def unnamed_columns(self) -> str:
        """The first key of a column that would be guessed by what columns a file has; "" for none.

        Prompt and completion, and the text, have one name each where none is given.
        """
        needed = {
            "options": ("question-field", "options-field", "answer-field"),
            "messages": ("messages-field",),
            "instruction": ("instruction-field", "response-field"),
        }
        rows = self.named_rows if self.kind.rows == "language" else self.kind.rows
        keys = needed.get(rows, ())
        return next((key for key in keys if not getattr(self, key.replace("-", "_"))), "")

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

    @field_validator("template")
    @classmethod
    def _is_text_template(cls, value: str) -> str:
        if value != "auto":
            parse_template(value)
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
    def _template_is_of_texts(self) -> DataConfig:
        if self.template != "auto" and not self.kind.classifies:
            raise ValueError(
                f'template with task = "{self.task}": it is for classification; choose '
                "prompt-format or chat-template"
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


def template_for(template: str, model_name: str) -> str:
    """Return a ``data.template`` with ``auto`` resolved for a ``model.name``."""
    return TEMPLATES.get(model_name, "{text}") if template == "auto" else template


# Python calls them encodings of text, but they are ways to write names of hosts and literals.
_OF_NO_FILE = ("idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape")


def check_encoding(name: str) -> None:
    """Refuse what is no encoding of text.

    Raises:
        ValueError: naming examples.
    """
    try:
        known = codecs.lookup(name)
    except (LookupError, ValueError):  # ValueError: a null character
        known = None
    if known is None or not known._is_text_encoding or known.name in _OF_NO_FILE:
        raise ValueError(
            'no encoding of text; "auto", or a name that Python knows: utf-8, utf-16, cp1252, '
            "latin-1, cp1251, gb18030, shift_jis"
        )
