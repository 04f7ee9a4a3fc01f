"""What a language model's rows hold, by their columns, and the uniform columns of each kind."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from datasets import Dataset, Features, List, Value, concatenate_datasets
from pydantic import ValidationError

from fedmoe_app import DataError
from fedmoe_app.config.schema import DataConfig
from fedmoe_app.data.columns import unify
from fedmoe_app.data.language.row_formats import recognise
from fedmoe_app.data.sources import load_text_data
from fedmoe_app.data.table import Table
from tests.data.chat_templates import messages

from .conftest import MakeConfig

CHAT = messages("Hi", "Yes?")
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]


def table(**columns: object) -> Table:
    return Table(Dataset.from_dict(columns), "some.jsonl")


@pytest.fixture
def lm(config: MakeConfig) -> MakeConfig:
    def make(**changes: Any) -> DataConfig:
        return config(**{"task": "causal-lm", "partition": "iid", **changes})

    return make


@pytest.mark.parametrize(
    ("columns", "kind", "found"),
    [
        ("messages", "messages", "messages"),
        ("conversations id", "messages", "conversations"),
        ("prompt prompt_id messages", "messages", "messages"),
        ("prompt completion", "prompt-completion", "prompt completion"),
        ("instruction response", "instruction", "instruction response"),
        ("category context instruction response", "instruction", "instruction response context"),
        ("instruction input output text", "instruction", "instruction output input"),
        ("instruction output", "instruction", "instruction output"),
        ("instruction response output", "instruction", "instruction response"),
        ("text label", "text", "text"),
    ],
)
def test_recognised_by_columns(lm: MakeConfig, columns: str, kind: str, found: str) -> None:
    rows = table(**{name: ["x"] for name in columns.split()})
    format_ = recognise(rows, lm())
    assert (format_.kind, " ".join(format_.columns)) == (kind, found)


@pytest.mark.parametrize(
    ("keys", "kind", "found"),
    [
        ({"row_format": "text"}, "text", "text"),
        ({"row_format": "text", "text_field": "body"}, "text", "body"),
        ({"row_format": "prompt-completion"}, "prompt-completion", "prompt completion"),
        ({"messages_field": "body"}, "messages", "body"),
        ({"prompt_field": "q"}, "prompt-completion", "q completion"),
        ({"instruction_field": "q", "response_field": "a"}, "instruction", "q a"),
        ({"instruction_field": "q"}, "instruction", "q response context"),
        ({"context_field": "body"}, "instruction", "instruction response body"),
        (
            {"row_format": "instruction", "response_field": "a"},
            "instruction",
            "instruction a context",
        ),
    ],
)
def test_named_columns_win(lm: MakeConfig, keys: dict[str, str], kind: str, found: str) -> None:
    names = "messages prompt completion instruction response context text body q a"
    format_ = recognise(table(**{name: ["x"] for name in names.split()}), lm(**keys))
    assert (format_.kind, " ".join(format_.columns)) == (kind, found)


def test_the_log_says_once_what_rows_were_taken_for(
    lm: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    logger = logging.getLogger("fedmoe")
    monkeypatch.setattr(logger, "info", lambda text, *args: lines.append(text % args))
    columns = {"messages": [CHAT], "prompt": ["a"], "completion": ["b"], "text": ["c"]}
    rows = Table(Dataset.from_dict(columns), "once.jsonl")
    for _ in range(3):
        unify(rows, lm(), (), True)
    assert lines == [
        'once.jsonl: messages in "messages" (it has columns of prompt-completion, too: '
        "data.row-format)"
    ]


def test_columns_that_are_not_known(lm: MakeConfig) -> None:
    with pytest.raises(DataError, match=r"some\.jsonl: among question, reply are none .*messages;"):
        recognise(table(question=["a"], reply=["b"]), lm())
    with pytest.raises(DataError, match=r'data\.messages-field = "chat": some\.jsonl has no such'):
        recognise(table(messages=[CHAT]), lm(messages_field="chat"))
    with pytest.raises(DataError, match="no columns of prompt-completion rows among text"):
        recognise(table(text=["a"]), lm(row_format="prompt-completion"))
    private = Table(Dataset.from_dict({"Sentinel": ["a"]}), "own.csv", private=True)
    with pytest.raises(DataError, match="among its 1 columns") as caught:
        recognise(private, lm())
    assert "Sentinel" not in str(caught.value)


def test_columns_of_two_kinds_are_refused(config: MakeConfig) -> None:
    both = {"messages_field": "a", "instruction_field": "b"}
    with pytest.raises(ValidationError, match="messages and instruction: .*row-format"):
        config(task="causal-lm", partition="iid", **both)
    config(task="causal-lm", partition="iid", row_format="messages", **both)
    config(**both)  # classification looks at none of them


@pytest.mark.parametrize("cells", [[CHAT], [SHAREGPT], [json.dumps(CHAT)], [json.dumps(SHAREGPT)]])
def test_conversations_in_uniform_columns(lm: MakeConfig, cells: list[Any]) -> None:
    rows = table(conversations=cells * 2, site=["n", "s"])
    unified = unify(rows, lm(partition="natural", partition_by="site"), (), True)
    assert unified[:] == {
        "messages": [CHAT, CHAT],
        "num_given": [0, 0],
        "where": ["some.jsonl, row 1", "some.jsonl, row 2"],
        "site": ["n", "s"],
    }
    text = Value("string")
    assert unified.features == Features(
        messages=List({"role": text, "content": text}),
        num_given=Value("int64"),
        where=text,
        site=text,
    )
    assert len(concatenate_datasets([unified, unified])) == 4


def test_rows_without_an_answer_are_dropped(
    lm: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [CHAT, CHAT[:1], None, CHAT]
    with caplog.at_level(logging.WARNING):
        unified = unify(table(messages=rows), lm(), (), True)
    assert unified["where"][:] == ["some.jsonl, row 1", "some.jsonl, row 4"]
    assert "some.jsonl: dropped 2 of 4 rows" in caplog.text and "row 2)" in caplog.text
    with pytest.raises(DataError, match="in no row does the assistant answer the user"):
        unify(table(messages=[CHAT[:1]]), lm(), (), True)


def test_errors_name_row_and_column(lm: MakeConfig) -> None:
    bad = [CHAT, [{"role": "narrator", "content": "x"}]]
    with pytest.raises(DataError, match=r'some\.jsonl, row 2: column "messages": message 1: role'):
        unify(table(messages=bad), lm(), (), True)


def test_texts_of_prompt_and_completion_stay_as_they_are(lm: MakeConfig) -> None:
    rows = table(prompt=["The sky is", " ", "x"], completion=[" blue.\n", "y", None])
    unified = unify(rows, lm(), (), True)
    assert unified[:] == {"prompt": ["The sky is"], "completion": [" blue.\n"]}


def test_messages_of_prompt_and_completion(lm: MakeConfig) -> None:
    given, new = messages("Hi", "Yes?", "More"), [{"role": "assistant", "content": "No."}]
    rows = table(prompt=[given], completion=[new])
    expected = {"messages": [given + new], "num_given": [3], "where": ["some.jsonl, row 1"]}
    assert unify(rows, lm(), (), True)[:] == expected
    as_text = table(prompt=[json.dumps(given)], completion=["No."])
    assert unify(as_text, lm(), (), True)[:] == expected
    plain = unify(table(prompt=["Hi"], completion=["No."]), lm(chat_template="always"), (), True)
    assert plain["messages"][0] == messages("Hi", "No.")
    mixed = table(prompt=[json.dumps(given), "Hi"], completion=["No.", "No."])
    with pytest.raises(DataError, match='row 2: column "prompt" holds plain text, unlike row 1'):
        unify(mixed, lm(), (), True)
    unanswered = table(prompt=[given[:2]], completion=[given[2:]])
    with pytest.raises(DataError, match="in no row"):
        unify(unanswered, lm(), (), True)


def test_instructions_by_the_prompt_format_or_the_template(lm: MakeConfig) -> None:
    rows = table(instruction=["Add.", "Hi"], input=["1 2", None], output=["3", "Yes"])
    assert unify(rows, lm(), (), True)[:] == {
        "prompt": [
            "### Instruction:\nAdd.\n\n### Context:\n1 2\n\n### Response:\n",
            "### Instruction:\nHi\n\n### Response:\n",
        ],
        "response": ["3", "Yes"],
    }
    own = lm(prompt_format="Q: {instruction}\n\n({context})\n\nA: {response}")
    assert unify(rows, own, (), True)["prompt"][:] == ["Q: Add.\n\n(1 2)\n\nA: ", "Q: Hi\n\nA: "]
    for template in ("always", "{% for message in messages %}{{ message }}{% endfor %}"):
        unified = unify(rows, lm(chat_template=template), (), True)
        assert unified["messages"][:] == [messages("Add.\n\n1 2", "3"), messages("Hi", "Yes")]
    with pytest.raises(DataError, match=r'no \{context\} for the column "input"'):
        unify(rows, lm(prompt_format="{instruction} {response}"), (), True)


def test_plain_text_has_no_answer_to_match(lm: MakeConfig) -> None:
    rows = table(text=[" One. ", "", "Two."])
    assert unify(rows, lm(), (), True)[:] == {"text": ["One.", "Two."]}
    with pytest.raises(DataError, match=r'"exact-match" with text in "text": plain text has no'):
        unify(rows, lm(metric="exact-match"), (), True)


def test_files_of_several_kinds_are_refused(lm: MakeConfig, tmp_path: Any) -> None:
    chat, text = tmp_path / "chat.jsonl", tmp_path / "text.jsonl"
    chat.write_text(json.dumps({"messages": CHAT}) + "\n")
    text.write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match=r"text\.jsonl: its rows are of another kind than those of"):
        load_text_data(lm(source=f"{chat},{text}"))
    data = load_text_data(lm(source=str(chat), test_source=str(text)))
    assert data.test is not None and data.test.column_names == ["text"]
    assert data.train["messages"][0] == CHAT


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_conversations_out_of_every_kind_of_file(
    lm: MakeConfig, tmp_path: Any, ending: str
) -> None:
    path = tmp_path / f"chat.{ending}"
    rows = [{"messages": CHAT}, {"messages": messages("One", "Two")}]
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == "json":
        path.write_text(json.dumps(rows))
    elif ending == "csv":
        Dataset.from_list([{"messages": json.dumps(row["messages"])} for row in rows]).to_csv(path)
    else:
        Dataset.from_list(rows).to_parquet(path)
    train = load_text_data(lm(source=str(path))).train
    assert train["messages"][:] == [row["messages"] for row in rows]
