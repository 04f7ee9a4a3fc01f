"""What stands around a text to classify: nothing of it is ever cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from fedmoe_app import ConfigError
from fedmoe_app.cli.preview import preview_of
from fedmoe_app.config.data import TEMPLATES, parse_template
from fedmoe_app.config.names import SMOLLM2_MOE
from fedmoe_app.data.tokenizer import label_token
from fedmoe_app.results.model_card import model_card
from fedmoe_app.tasks.classification import (
    LabelWords,
    SequenceClassification,
    around_text,
    encode_classification,
)
from tests.bases import save_base, word_tokenizer
from tests.conftest import flat_config, make_config

TOKENIZER = word_tokenizer()
TEMPLATE = "number {text} day yes"


def ids(words: str) -> list[int]:
    return TOKENIZER(words, add_special_tokens=False)["input_ids"]


def rows(texts: list[str]) -> Dataset:
    return Dataset.from_dict({"text": texts, "label": [0] * len(texts)})


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("{text}", ("", "")),
        ("{text}\nTopic:", ("", "\nTopic:")),
        ('Text: {text} = "', ("Text: ", ' = "')),
        ("{{a}} {text} }}", ("{a} ", " }")),
    ],
)
def test_a_template_is_cut_at_its_text(template: str, parts: tuple[str, str]) -> None:
    assert parse_template(template) == parts


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("no field", "it needs {text}, once"),
        ("", "it needs {text}, once"),
        ("{text} {text}", "it needs {text}, once"),
        ("{text!r}", "without a format"),
        ("{text} {label}", "unknown placeholder {label}; the only one is {text}"),
        ("{text} {}", "unknown placeholder {}"),
        ("{text} }", "a brace that is none of a placeholder is doubled"),
    ],
)
def test_a_template_that_is_none_is_refused(template: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(**{"data.template": template})
    assert "data.template = " in str(caught.value)
    assert why in str(caught.value)


def test_other_tasks_have_none() -> None:
    keys: dict[str, Any] = {"data.task": "causal-lm", "data.partition": "iid"}
    make_config(**keys)
    with pytest.raises(ConfigError, match="it is for classification; choose prompt-format"):
        make_config(**keys, **{"data.template": "{text}:"})


def test_auto_is_the_text_alone_but_for_the_pre_trained_preset() -> None:
    assert make_config().template == "{text}"
    assert make_config(**{"model.name": SMOLLM2_MOE}).template == TEMPLATES[SMOLLM2_MOE]
    own = make_config(**{"model.name": SMOLLM2_MOE, "data.template": "{text}"})
    assert own.template == "{text}"


def test_special_tokens_stand_outside_and_a_long_text_is_cut_not_what_is_around_it() -> None:
    task = SequenceClassification(TOKENIZER, 8, TEMPLATE)
    short, long = task.encode(rows(["good", "1 2 3 4 5 6 7"]))
    assert short["input_ids"] == [1, *ids("number good day yes"), 2]
    assert long["input_ids"] == [1, *ids("number 1 2 3 day yes"), 2]
    assert task.encode(rows(["good", "1 2 3 4 5 6 7"])).num_cut == 1


def test_without_a_template_rows_are_what_they_were() -> None:
    texts = rows(["good day", "1 2 3 4 5 6 7 8 9"])
    plain = encode_classification(texts, TOKENIZER, 6)
    assert SequenceClassification(TOKENIZER, 6).encode(texts) == plain
    assert around_text(TOKENIZER, "{text}") == ([1], [2])


def test_a_text_without_tokens_is_dropped_whatever_stands_around_it() -> None:
    found = SequenceClassification(TOKENIZER, 12, TEMPLATE).encode(rows(["", "good"]))
    assert len(found) == 1


def test_a_template_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes 5 tokens.* data.max-length = 5 leaves none"):
        SequenceClassification(TOKENIZER, 5, TEMPLATE)
    SequenceClassification(TOKENIZER, 6, TEMPLATE)


def test_label_words_are_asked_after_the_template() -> None:
    task = LabelWords(TOKENIZER, 12, ["yes", "no"], TEMPLATE)
    (row,) = task.encode(rows(["good"]))
    assert row["input_ids"][1:-1] == ids("number good day yes")
    assert label_token(0) not in TOKENIZER.get_vocab()


def test_preview_and_card_say_it(tmp_path: Path) -> None:
    save_base(tmp_path / "model", "Qwen3Moe")
    lines = [json.dumps({"text": f"good {i}", "label": "ab"[i % 2]}) for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    keys: dict[str, Any] = {
        "model.name": str(tmp_path / "model"),
        "data.source": str(tmp_path / "rows.jsonl"),
        "data.template": TEMPLATE,
    }
    preview = preview_of(make_config(**keys), 1)
    assert 'every text stands in "number {text} day yes"' in preview.encoding
    assert "number good 0 day yes" in preview.examples[0].parts[0][0][0]
    card = model_card(flat_config(**keys), [], "Qwen3MoeForSequenceClassification")
    assert '| text template | "number {text} day yes" |' in card
    assert "text template" not in model_card(flat_config(), [], "Qwen3MoeForCausalLM")
