"""data.prompt-format: its default, its rules, and user text that looks like a format."""

from __future__ import annotations

import re
import tomllib

import pytest
from pydantic import ValidationError

from fedmoe_app.data.language.prompt_format import ALPACA, PromptFormat
from tests.conftest import REPOSITORY

from .conftest import MakeConfig

OWN_DATA = (REPOSITORY / "docs" / "own-data.md").read_text(encoding="utf-8")


def test_the_default_is_alpacas_layout(config: MakeConfig) -> None:
    assert config().prompt_format == ALPACA
    layout = PromptFormat(ALPACA)
    assert layout.prompt(" Add. ") == "### Instruction:\nAdd.\n\n### Response:\n"
    assert layout.prompt("Add.", "1 2") == (
        "### Instruction:\nAdd.\n\n### Context:\n1 2\n\n### Response:\n"
    )
    assert layout.prompt("Add.", system="Be brief.") == (
        "Be brief.\n\n### Instruction:\nAdd.\n\n### Response:\n"
    )


def test_the_docs_print_the_default() -> None:
    (block,) = re.findall(r"```toml\n(\[data\]\nprompt-format.*?)```", OWN_DATA, re.DOTALL)
    assert tomllib.loads(block)["data"]["prompt-format"] == ALPACA


@pytest.mark.parametrize(
    ("layout", "prompt"),
    [
        ("{instruction}{response}", "I"),
        ("Q: {instruction} {context}\nA: {response}", "Q: I \nA: "),  # a line is no paragraph
        ("{context}\n\nQ: {instruction}\nA:{response}", "Q: I\nA:"),
        ("{context} {system}\n\n{instruction}\n\n{response}", "I\n\n"),
        ("Hello\n\n\n{instruction}\n\n{response}\n \n", "Hello\n\n\nI\n\n"),
        ("{{json}} {instruction} {instruction} {response}", "{json} I I "),
    ],
)
def test_layouts(layout: str, prompt: str) -> None:
    assert PromptFormat(layout).prompt("I") == prompt


def test_user_text_is_no_format() -> None:
    hostile = "{response} {0.__class__} {{x}} %s \n\n{context}"
    assert PromptFormat("{instruction}\n\n{context}|{response}").prompt(hostile, hostile) == (
        f"{hostile}\n\n{hostile}|"
    )


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("{instruction} {answer} {response}", r"unknown placeholder \{answer\}; choose from "),
        ("{instruction} {} {response}", r"unknown placeholder \{\}"),
        ("{instruction:>9} {response}", r"unknown placeholder \{instruction\}"),
        ("{instruction.x} {response}", r"unknown placeholder \{instruction\.x\}"),
        ("{instruction!r} {response}", "unknown placeholder"),
        ("{instruction} {", "a brace that is none of a placeholder is doubled"),
        ("} {instruction} {response}", "a brace that is none of a placeholder is doubled"),
        ("{response}", r"it needs \{instruction\}"),
        ("{instruction}", r"\{response\} once, at its end"),
        ("{instruction} {response} {response}", r"\{response\} once, at its end"),
        ("{response} {instruction}", r"\{response\} once, at its end"),
        ("{instruction} {response} ###", r"\{response\} once, at its end"),
        ("", "it needs"),
    ],
)
def test_formats_that_are_refused(config: MakeConfig, layout: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(prompt_format=layout)
