"""Rows of every kind of language data: what is learnt, what is cut, and how batches add up."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from fedmoe_app import DataError
from fedmoe_app.data import encoded
from fedmoe_app.data.encoding import IGNORED_LABEL, encode_causal_lm
from fedmoe_app.data.language.encode import encode_rows, row_encoder
from tests.data import chat_templates as templates
from tests.data.chat_templates import batch, chat_tokenizer, learnt, messages

from .conftest import MakeConfig

BOS, EOS = 1, 2
LONG = messages(("system", "S"), "q1", "a1", "q2", "a2", "q3", "a3")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Without merges: one token a byte."""
    return chat_tokenizer(None)


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode(
    tokenizer: Any,
    columns: dict[str, list[Any]],
    max_length: int = 1000,
    encoder_decoder: bool = False,
    config: Any = None,
) -> Any:
    encoder = row_encoder(list(columns), tokenizer, max_length, encoder_decoder, config)
    return encode_rows(Dataset.from_dict(columns), encoder)


# -- plain text --------------------------------------------------------------------------------


def test_all_of_a_text_is_learnt_but_its_first_token(tokenizer: Any) -> None:
    text = {"text": ["abcd"]}
    whole = [BOS, *ids(tokenizer, "abcd"), EOS]
    encoded = encode(tokenizer, text)
    labels = [IGNORED_LABEL, *whole[1:]]
    assert encoded == [{"input_ids": whole, "labels": labels, "prompt_length": 3}]
    assert encoded.num_cut == 0


def test_a_long_text_loses_its_end_and_the_closing_token(tokenizer: Any) -> None:
    encoded = encode(tokenizer, {"text": ["abcdefgh", "ab"]}, max_length=5)
    assert encoded[0]["input_ids"] == [BOS, *ids(tokenizer, "abcd")]
    assert encoded[1]["input_ids"] == [BOS, *ids(tokenizer, "ab"), EOS]
    assert encoded.num_cut == 1


def test_a_tokenizer_that_adds_nothing(caplog: pytest.LogCaptureFixture) -> None:
    bare = chat_tokenizer(None)
    bare.backend_tokenizer.post_processor = None
    with caplog.at_level(logging.WARNING):
        encoded = encode(bare, {"text": ["ab", "a"]})
    first, second = ids(bare, "ab")
    assert [row["labels"] for row in encoded] == [[IGNORED_LABEL, second]]
    assert encoded[0]["input_ids"] == [first, second]
    assert "left out 1 texts of at most one token" in caplog.text
    assert encode(bare, {"text": ["a"]}) == []


def test_plain_text_needs_a_decoder_only_model(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="plain text has no prompt and answer"):
        encode(tokenizer, {"text": ["a"]}, encoder_decoder=True)


# -- prompt and completion ---------------------------------------------------------------------


def test_a_completion_is_learnt_with_its_space() -> None:
    merged = chat_tokenizer(None, "is blue is blue is blue", 540)
    encoded = encode(merged, {"prompt": ["It is"], "completion": [" blue"]})
    assert len(ids(merged, " blue")) == 1
    assert learnt(merged, encoded[0]) == [" blue</s>"]
    assert encoded[0]["input_ids"] == [BOS, *ids(merged, "It is blue"), EOS]
    closed = encode(merged, {"prompt": ["It is"], "completion": [" blue</s>"]})
    assert closed == encoded


def test_completions_are_cut_like_responses(tokenizer: Any) -> None:
    """The cases of test_encoding.py, word for word."""
    for prompt, completion in (("abcdefgh", "xyz"), ("abcdefgh", "qrstuvwxyz"), ("a", "stuvwxyz")):
        found = encode(tokenizer, {"prompt": [prompt], "completion": [completion]}, 9)
        pair = Dataset.from_dict({"prompt": [prompt], "response": [completion]})
        expected = encode_causal_lm(pair, tokenizer, 9)
        assert (found, found.num_cut) == (expected, expected.num_cut)


def test_an_encoder_decoder_model_reads_prompts_and_says_completions(tokenizer: Any) -> None:
    found = encode(tokenizer, {"prompt": ["abc"], "completion": ["de"]}, 5, encoder_decoder=True)
    labels = [*ids(tokenizer, "de"), EOS]
    assert found == [{"input_ids": [BOS, *ids(tokenizer, "abc"), EOS], "labels": labels}]


# -- conversations by the prompt format --------------------------------------------------------


def test_one_exchange_is_a_row_of_instruction_and_response(
    tokenizer: Any, config: MakeConfig
) -> None:
    lm = config(task="causal-lm", partition="iid")
    row, exchange = (
        encode(tokenizer, columns, 40, config=lm)
        for columns in (
            {
                "prompt": ["### Instruction:\nHi\n\n### Response:\n"],
                "response": ["a long answer"],
            },
            batch(messages(" Hi ", "a long answer\n")),
        )
    )
    assert exchange[0]["input_ids"] == row[0]["input_ids"]
    assert exchange[0]["labels"] == row[0]["labels"]
    assert exchange.num_cut == row.num_cut == 1


def test_exchanges_follow_each_other(tokenizer: Any, config: MakeConfig) -> None:
    short = {"prompt_format": "{system}\n\nQ {instruction} A {response}"}
    lm = config(task="causal-lm", partition="iid", **short)
    (row,) = encode(tokenizer, batch(LONG), config=lm)
    assert tokenizer.decode(row["input_ids"]) == ("<s>S\n\nQ q1 A a1</s>Q q2 A a2</s>Q q3 A a3</s>")
    assert learnt(tokenizer, row) == ["a1</s>", "a2</s>", "a3</s>"]
    assert tokenizer.decode(row["input_ids"][row["prompt_length"] :]) == "a3</s>"
    last = config(task="causal-lm", partition="iid", train_on="last", **short)
    assert learnt(tokenizer, encode(tokenizer, batch(LONG), config=last)[0]) == ["a3</s>"]
    given = encode(tokenizer, batch(LONG, given=4), config=lm)
    assert learnt(tokenizer, given[0]) == ["a2</s>", "a3</s>"]


def test_messages_of_one_role_are_joined(tokenizer: Any, config: MakeConfig) -> None:
    said = messages("q", ("user", "r"), ("assistant", "a"), ("assistant", "b"))
    lm = config(task="causal-lm", partition="iid", prompt_format="{instruction}|{response}")
    (row,) = encode(tokenizer, batch(said), config=lm)
    assert tokenizer.decode(row["input_ids"]) == "<s>q\n\nr|a\n\nb</s>"


def test_system_messages_without_a_place(tokenizer: Any, config: MakeConfig) -> None:
    lm = {"task": "causal-lm", "partition": "iid", "prompt_format": "{instruction}|{response}"}
    said = batch(messages("q", "a"), messages(("system", "S"), "q", "a"))
    with pytest.raises(DataError, match=r"row 2: a system message, .*system-messages = \"merge\""):
        encode(tokenizer, said, config=config(**lm))
    merged = encode(tokenizer, said, config=config(**lm, system_messages="merge"))
    assert tokenizer.decode(merged[1]["input_ids"]) == "<s>S\n\nq|a</s>"
    dropped = encode(tokenizer, said, config=config(**lm, system_messages="drop"))
    assert dropped[0] == dropped[1]


def test_tools_need_a_template(tokenizer: Any, config: MakeConfig) -> None:
    said = messages("q", "a", ("tool", "t"), ("assistant", "b"))
    with pytest.raises(DataError, match="row 1: a message of role tool needs a chat template"):
        encode(tokenizer, batch(said), config=config(task="causal-lm", partition="iid"))


# -- what does not fit -------------------------------------------------------------------------

EXCHANGE = 25  # tokens of one of LONG in ChatML, at a token a byte


@pytest.mark.parametrize(
    ("spared", "kept"),
    [
        (0, "S q1 a1 q2 a2 q3 a3"),
        (1, "S q2 a2 q3 a3"),
        (EXCHANGE, "S q2 a2 q3 a3"),
        (EXCHANGE + 1, "S q3 a3"),
        (2 * EXCHANGE, "S q3 a3"),
    ],
)
def test_long_conversations_lose_whole_exchanges(
    config: MakeConfig, spared: int, kept: str
) -> None:
    tokenizer = chat_tokenizer(templates.CHATML)
    lm = config(task="causal-lm", partition="iid")
    (whole,) = encode(tokenizer, batch(LONG), config=lm)
    room = len(whole["input_ids"]) - spared
    encoded = encode(tokenizer, batch(LONG), room, config=lm)
    assert encoded.num_cut == (spared > 0)
    roles = ["system", *["user", "assistant"] * 3]
    assert tokenizer.decode(encoded[0]["input_ids"]) == "".join(
        f"<|im_start|>{role}\n{content}<|im_end|>\n"
        for role, content in zip(roles, kept.split(), strict=False)
    )
    answers = [f"{word}<|im_end|>" for word in kept.split() if word.startswith("a")]
    assert learnt(tokenizer, encoded[0]) == answers


def test_the_last_exchange_is_cut_by_tokens(config: MakeConfig) -> None:
    tokenizer = chat_tokenizer(templates.GEMMA)
    lm = config(task="causal-lm", partition="iid")
    prompt = "<start_of_turn>user\nabcdefghij<end_of_turn>\n<start_of_turn>model\n"
    said = batch(messages("one", "two", "abcdefghij", "0123456789"))
    size = len(ids(tokenizer, prompt))
    # the beginning token and the answer with its end and line break take 1 + 12
    encoded = encode(tokenizer, said, 13 + size - 3, config=lm)
    assert encoded.num_cut == 1
    (row,) = encoded
    head = ids(tokenizer, prompt)[3:]
    answer = ids(tokenizer, "0123456789<end_of_turn>\n")
    assert row["input_ids"] == [BOS, *head, *answer]
    assert row["prompt_length"] == 1 + len(head)
    assert learnt(tokenizer, row) == ["0123456789<end_of_turn>"]
    # A quarter of the room of 12 is the prompt's; the answer loses its end.
    (row,) = encode(tokenizer, said, 13, config=lm)
    assert row["input_ids"] == [BOS, *head[-3:], *answer[:9]]
    assert learnt(tokenizer, row) == ["012345678"]


def test_messages_that_are_left_out_count_as_cut(config: MakeConfig) -> None:
    tokenizer = chat_tokenizer(templates.CHATML)
    lm = config(task="causal-lm", partition="iid")
    plain = encode(tokenizer, batch(messages("q", "a")), config=lm)
    more = encode(tokenizer, batch(messages("q", "a", "r")), config=lm)
    assert more == plain and (more.num_cut, plain.num_cut) == (1, 0)


def test_nothing_left_to_learn(config: MakeConfig) -> None:
    """What is marked begins behind the room that is left for the answer."""
    late = templates.MARKED.replace("assistant\n' }}{%- gen", "assistant\n0123456789' }}{%- gen", 1)
    lm = config(task="causal-lm", partition="iid")
    with pytest.raises(DataError, match="row 1: data.max-length = 8 leaves no token"):
        encode(chat_tokenizer(late), batch(messages("q", "a")), 8, config=lm)


# -- questions and answers ---------------------------------------------------------------------


def test_prompts_keep_the_exchanges_that_fit(config: MakeConfig) -> None:
    tokenizer = chat_tokenizer(templates.CHATML)
    lm = config(task="causal-lm", partition="iid")
    encoder = row_encoder(list(batch()), tokenizer, 1000, False, lm)
    ((whole, answer),) = encoder.questions(batch(LONG))
    assert answer == "a3" and tokenizer.decode(whole).endswith(
        "q3<|im_end|>\n<|im_start|>assistant\n"
    )
    short = row_encoder(list(batch()), tokenizer, len(whole) - 1, False, lm)
    text = tokenizer.decode(short.questions(batch(LONG))[0][0])
    assert text.startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq2<")
    tiny = row_encoder(list(batch()), tokenizer, 5, False, lm)
    assert tiny.questions(batch(LONG))[0][0] == whole[-5:]


def test_an_encoder_decoder_model_answers_the_last_question(
    tokenizer: Any, config: MakeConfig
) -> None:
    lm = config(task="causal-lm", partition="iid", prompt_format="Q {instruction} A {response}")
    said = messages("q1", "a1", "q2", "a2")
    (row,) = encode(tokenizer, batch(said), encoder_decoder=True, config=lm)
    assert tokenizer.decode(row["input_ids"]) == "<s>Q q1 A a1</s>Q q2 A </s>"
    assert row["labels"] == [*ids(tokenizer, "a2"), EOS]
    assert "prompt_length" not in row
    encoded = encode(tokenizer, batch(said), 12, encoder_decoder=True, config=lm)
    assert tokenizer.decode(encoded[0]["input_ids"]) == "<s>Q q2 A </s>" and encoded.num_cut == 1
    encoded = encode(tokenizer, batch(said), 6, encoder_decoder=True, config=lm)
    assert tokenizer.decode(encoded[0]["input_ids"]) == "<s>Q q2</s>"
    own = chat_tokenizer(templates.DATED)
    (row,) = encode(own, batch(said), encoder_decoder=True, config=lm)
    assert row["input_ids"].count(BOS) == row["input_ids"].count(EOS) == 1


def test_questions_of_all_kinds(tokenizer: Any, config: MakeConfig) -> None:
    lm = config(task="causal-lm", partition="iid", prompt_format="{instruction}|{response}")
    kinds: list[dict[str, list[Any]]] = [
        {"prompt": ["q|"], "response": ["a"]},
        {"prompt": ["q|"], "completion": ["a"]},
        batch(messages("q", "a")),
    ]
    for columns in kinds:
        encoder = row_encoder(list(columns), tokenizer, 100, False, lm)
        assert encoder.questions(columns) == [([BOS, *ids(tokenizer, "q|")], "a")]
    with pytest.raises(DataError, match="no answer to compare"):
        row_encoder(["text"], tokenizer, 100, False, lm).questions({"text": ["a"]})


def test_batches_add_up(
    tokenizer: Any, config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = batch(*(messages(f"q{i}", "a" * i, "bye") for i in range(1, 8)))
    dataset = Dataset.from_dict(columns)
    lm = config(task="causal-lm", partition="iid")
    encoder = row_encoder(dataset.column_names, tokenizer, 1000, False, lm)
    whole = encode_rows(dataset, encoder, with_questions=True)
    monkeypatch.setattr(encoded, "ROWS", 3)
    parts = encode_rows(dataset, encoder, with_questions=True)
    monkeypatch.setattr(encoded, "IN_LIST", 10)  # as a table
    stored = encode_rows(dataset, encoder, with_questions=True)
    assert stored == whole and stored.num_cut == 7 and stored[-1] == whole[-1]
    assert stored[2:5] == whole[2:5] and list(stored) == list(whole)
    assert parts == whole and parts.num_cut == whole.num_cut == 7
    assert [row["reference"] for row in parts] == ["a" * i for i in range(1, 8)]
    assert encode_rows(dataset.select([]), encoder) == []
