"""Messages in all the forms in which data sets have them, and the exchanges that they make."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fedmoe_app import DataError
from fedmoe_app.data.language.conversations import (
    Turn,
    as_conversation,
    looks_like_messages,
    read_messages,
    with_system,
)

PLAIN = [("user", "Hi"), ("assistant", "Yes?")]


def pairs(turns: Any) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in turns]


def turns(text: str) -> list[Turn]:
    """``"su:One a:Yes"``: a message a word, its role by the first letter."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    parts = [part.partition(":") for part in text.split()]
    return [Turn(roles[role], content) for role, _, content in parts]


@pytest.mark.parametrize(
    "cell",
    [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}],
        [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}],
        [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Yes?"}],
        [{"role": " User", "content": "Hi"}, {"role": "model", "content": "Yes?"}],
        # as a table with a column a key makes them
        [
            {"role": "user", "content": "Hi", "from": None, "name": None},
            {"from": "gpt", "value": "Yes?", "role": None, "tool_calls": []},
        ],
        {"role": ["user", "assistant"], "content": ["Hi", "Yes?"]},
        [
            {"role": "user", "content": [{"type": "text", "text": "H"}, {"text": "i"}]},
            {"role": "assistant", "content": ["Yes", "?"], "weight": 1},
        ],
        [
            {"role": "user", "content": {"type": "input_text", "text": "Hi"}},
            {"role": "assistant", "content": [{"type": "output_text", "text": "Yes?"}], "id": 7},
        ],
    ],
)
def test_forms_of_messages(cell: Any) -> None:
    assert pairs(read_messages(cell)) == PLAIN
    assert pairs(read_messages(json.dumps(cell))) == PLAIN
    assert looks_like_messages(cell)


def test_other_roles() -> None:
    names = ["developer", "function", "observation", "function_call", "chatgpt"]
    read = read_messages([{"from": name, "value": "x"} for name in names])
    assert [turn.role for turn in read] == ["system", "tool", "tool", "assistant", "assistant"]


def test_no_messages() -> None:
    assert read_messages(None) == read_messages("") == read_messages([]) == []
    assert pairs(read_messages([{"role": "user", "content": None}])) == [("user", "")]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("Hi there", r"does not hold JSON \(Expecting value\)"),
        ("[" * 100_000, r"does not hold JSON"),
        ("7", "does not hold a list of messages"),
        ({"role": "user", "content": "Hi"}, "does not hold a list of messages"),
        (["Hi"], 'message 1 has neither "role" and "content" nor "from" and "value"'),
        ([{"text": "Hi"}], "message 1 has neither"),
        ([{"role": "narrator", "content": ""}], "message 1: role 'narrator' is none of system, "),
        ([{"role": 7, "content": ""}], "role 7 is none of"),
        ([{"role": "user", "content": 7}], "its content is neither a text nor a list of parts"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "message 1 has a part of type 'image_url'; only parts of type 'text'",
        ),
        ([{"role": "user", "content": [{"image": "x"}]}], "message 1 has a part"),
        ([{"role": "user", "content": [7]}], "message 1 has a part"),
        (
            [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
            'message 1 has "tool_calls", which only the text of a message can hold',
        ),
        (
            [{"role": "assistant", "content": "x", "reasoning_content": "y"}],
            'message 1 has "reasoning_content"',
        ),
        ([{"role": "assistant", "content": "x", "weight": 0}], 'message 1 has "weight" 0'),
        ([{"role": "assistant", "content": "x", "train": False}], 'message 1 has "train" 0'),
        ('[{"role": "user", "content": "\\ud83d"}]', "message 1 holds half a surrogate pair"),
    ],
)
def test_messages_that_cannot_be_read(cell: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_messages(cell)


@pytest.mark.parametrize(
    "cell",
    [
        '"Sentinel',
        [{"role": "Sentinel", "content": "Sentinel"}],
        [{"Sentinel": "Sentinel"}],
        [{"role": "user", "content": [{"type": "Sentinel", "text": "Sentinel"}]}],
        [{"role": "user", "content": {"Sentinel": "Sentinel"}}],
    ],
)
def test_errors_of_a_nodes_row_quote_nothing(cell: Any) -> None:
    with pytest.raises(DataError) as caught:
        read_messages(cell, private=True)
    assert "Sentinel" not in str(caught.value) and caught.value.__cause__ is None


@pytest.mark.parametrize("cell", ["Hi", "", None, "[INST] Hi", '["a"]', "[]", '[{"a": 1}]', 7])
def test_what_is_no_list_of_messages(cell: Any) -> None:
    assert not looks_like_messages(cell)


@pytest.mark.parametrize(
    ("said", "system", "exchanges", "trimmed"),
    [
        ("u:A a:B", "", ["u:A a:B"], False),
        ("s:S u:A a:B u:C a:D", "s:S", ["u:A a:B", "u:C a:D"], False),
        ("u:A u:B a:C", "", ["u:A u:B a:C"], False),
        ("u:A a:B a:C u:D a:E", "", ["u:A a:B a:C", "u:D a:E"], False),
        ("u:A a:B t:C a:D u:E t:F a:G", "", ["u:A a:B t:C a:D", "u:E t:F a:G"], False),
        ("u:A a:B u:C", "", ["u:A a:B"], True),  # nobody answers the last question
        ("u:A a:B t:C u:D s:S", "", ["u:A a:B"], True),
        ("s:S a:A u:B a:C", "s:S", ["u:B a:C"], True),  # answers nothing
        ("s: u:A a:B", "s:", ["u:A a:B"], False),  # says that there is no system message
        ("u:A a: u:B a:C", "", ["u:A u:B a:C"], True),
        ("u: a:A u:B a:C", "", ["u:B a:C"], True),
        ("u:A a:B u:C a:", "", ["u:A a:B"], True),
        ("u:A a:B s:S u:C a:D", "", ["u:A a:B s:S", "u:C a:D"], False),
    ],
)
def test_whole_exchanges(said: str, system: str, exchanges: list[str], trimmed: bool) -> None:
    found = as_conversation("x, row 3", turns(said))
    assert found is not None and found.where == "x, row 3"
    assert list(found.system) == turns(system)
    assert [list(exchange) for exchange in found.exchanges] == [turns(e) for e in exchanges]
    assert found.trimmed is trimmed
    assert found.without_first(len(exchanges) - 1).turns == [*turns(system), *turns(exchanges[-1])]


@pytest.mark.parametrize(
    "said", ["", "u:A", "s:S a:A", "a:A", "a:A u:B", "u: a:A", "u:A a:", "s:S"]
)
def test_rows_without_an_exchange(said: str) -> None:
    assert as_conversation(1, turns(said)) is None


def test_an_answer_that_is_given_is_not_enough() -> None:
    given = [turn._replace(learnt=False) for turn in turns("u:A a:B")]
    assert as_conversation(1, [*given, *turns("u:C a:")]) is None


def test_system_messages_are_merged_or_dropped() -> None:
    said = turns("s:S s:T u:A a:B s:U t:C a:D u:E a:F s:V")
    assert with_system(said, "keep") == said
    assert with_system(said, "drop") == turns("u:A a:B t:C a:D u:E a:F")
    expected = [Turn("user", "S\n\nT\n\nA"), *turns("a:B t:C a:D"), Turn("user", "U\n\nE")]
    assert with_system(said, "merge") == [*expected, *turns("a:F")]
    assert with_system(turns("s: u:A a:B"), "merge") == turns("u:A a:B")
