"""Chat templates: what is learnt of a conversation, and what is refused."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

import pytest
from transformers import ByT5Tokenizer

from fedmoe_app import DataError
from fedmoe_app.data.language.chat_template import ChatTemplate, stop_ids
from fedmoe_app.data.language.conversations import Conversation
from fedmoe_app.data.language.encode import ConversationEncoder, read_batch
from fedmoe_app.data.language.templates import adopt_template, find_template
from tests.data import chat_templates as templates
from tests.data.chat_templates import batch, chat_tokenizer, learnt, messages

from .conftest import MakeConfig

TWO = messages("Hi", "Yes?", "More", "No.")
SYSTEM = messages(("system", "Be brief."), "Hi", "Yes.")


def encoder(
    config: MakeConfig, template: str | None, max_length: int = 10_000, **changes: Any
) -> ConversationEncoder:
    tokenizer = chat_tokenizer(template)
    data = config(task="causal-lm", partition="iid", **changes)
    return ConversationEncoder(tokenizer, max_length, False, data)


def encoded(encoder: ConversationEncoder, *conversations: Any, given: int = 0) -> Any:
    rows, _ = encoder.rows(batch(*conversations, given=given))
    return rows[0] if len(rows) == 1 else rows


ANSWERS = {
    "CHATML": ["Yes?<|im_end|>", "No.<|im_end|>"],
    "DATED": ["Yes?<|eot_id|>", "No.<|eot_id|>"],
    "MISTRAL": [" Yes?</s>", " No.</s>"],
    "GEMMA": ["Yes?<end_of_turn>", "No.<end_of_turn>"],
    "MARKED": ["Yes?<|im_end|>\n", "No.<|im_end|>\n"],
    "MARKED_WITHOUT_END": ["Yes?<|im_end|>", "No.<|im_end|>"],
    "CLOSED": ["Yes?<|end|>", "No.<|end|>\n</s>"],
    "OPEN": ["Yes?<|user|>", "No.</s>"],
    "PARTS": ["Yes?<|im_end|>", "No.<|im_end|>"],
}


@pytest.mark.parametrize("name", ANSWERS)
def test_all_answers_are_learnt_with_their_ends(config: MakeConfig, name: str) -> None:
    made = encoder(config, getattr(templates, name))
    assert learnt(made.tokenizer, encoded(made, TWO)) == ANSWERS[name]


@pytest.mark.parametrize("name", ANSWERS)
def test_the_last_answer_alone(config: MakeConfig, name: str) -> None:
    made = encoder(config, getattr(templates, name), train_on="last")
    row = encoded(made, TWO)
    assert learnt(made.tokenizer, row) == ANSWERS[name][1:]
    every = encoded(encoder(config, getattr(templates, name)), TWO)
    assert row["input_ids"] == every["input_ids"]


@pytest.mark.parametrize("name", ANSWERS)
def test_the_tokens_are_those_of_transformers(config: MakeConfig, name: str) -> None:
    """... but for the date, and the end of sequence where the template has no end."""
    made = encoder(config, getattr(templates, name))
    plain = messages("Hi", "Yes?", "More", "No.")
    if name == "PARTS":
        for message in plain:
            message["content"] = [{"type": "text", "text": message["content"]}]  # type: ignore[assignment]
    own = made.tokenizer.apply_chat_template(plain, date_string="26 Jul 2024")["input_ids"]
    assert encoded(made, TWO)["input_ids"] == own + [made.tokenizer.eos_token_id] * (name == "OPEN")


@pytest.mark.parametrize("name", ANSWERS)
def test_a_prompt_is_all_before_the_last_answer(config: MakeConfig, name: str) -> None:
    made = encoder(config, getattr(templates, name))
    ((prompt, answer),) = made.questions(batch(TWO))
    row = encoded(made, TWO)
    assert row["input_ids"][: row["prompt_length"]] == prompt
    assert answer == "No."
    tail = made.tokenizer.decode(row["input_ids"][row["prompt_length"] :])
    assert tail.strip().startswith("No.")


@pytest.mark.parametrize(
    ("name", "stop"),
    [
        ("CHATML", "<|im_end|>"),
        ("MARKED", "<|im_end|>"),
        ("CLOSED", "<|end|>"),
        ("MISTRAL", "</s>"),
        ("OPEN", "</s> <|user|>"),
        ("THINKING", "<|im_end|>"),
    ],
)
def test_the_tokens_that_end_an_answer(config: MakeConfig, name: str, stop: str) -> None:
    tokenizer = chat_tokenizer(getattr(templates, name))
    found = stop_ids(tokenizer, config(task="causal-lm", partition="iid"))
    assert tokenizer.convert_ids_to_tokens(list(found)) == stop.split()


def test_the_beginning_token_comes_once(config: MakeConfig) -> None:
    made = encoder(config, templates.DATED)
    ids = encoded(made, TWO)["input_ids"]
    assert ids.count(made.tokenizer.bos_token_id) == 1 and ids[0] == made.tokenizer.bos_token_id


def test_a_date_is_the_same_on_every_day(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2031, 1, 2)

    made = encoder(config, templates.DATED)
    today = encoded(made, TWO)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    assert "02 Jan 2031" in made.tokenizer.apply_chat_template(TWO, tokenize=False)
    later = encoded(encoder(config, templates.DATED), TWO)
    assert today == later
    assert "Today Date: 26 Jul 2024<" in made.tokenizer.decode(today["input_ids"])


def test_a_template_keeps_its_beginning_when_its_date_is_fixed(config: MakeConfig) -> None:
    template = "\n  start {{ strftime_now('%A %-d %B %y, %H:%M %%') }}" + templates.CHATML
    made = encoder(config, template)
    text = made.tokenizer.decode(encoded(made, TWO)["input_ids"])
    assert text.startswith("\n  start Friday 26 July 24, 00:00 %")


def test_a_template_that_takes_reasoning_out_of_earlier_answers(config: MakeConfig) -> None:
    said = messages("Hi", "<think>greet</think>Yes?", "More", "<think>hm</think>No.")
    with pytest.raises(DataError, match=r"row 1: .* answer 1 of 2 otherwise .*train-on = \"last\""):
        encoded(encoder(config, templates.THINKING), said)
    made = encoder(config, templates.THINKING, train_on="last")
    row = encoded(made, said)
    assert learnt(made.tokenizer, row) == ["<think>\nhm\n</think>\n\nNo.<|im_end|>"]
    assert "greet" not in made.tokenizer.decode(row["input_ids"])
    one = encoded(encoder(config, templates.THINKING), messages("Hi", "Yes"))
    assert learnt(made.tokenizer, one) == ["<think>\n\n</think>\n\nYes<|im_end|>"]


def test_an_answer_that_does_not_begin_as_the_generation_prompt_says(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = encoder(config, templates.REASONING)
    lines: list[str] = []
    monkeypatch.setattr(logging.getLogger("fedmoe"), "warning", lines.append)
    row = encoded(made, messages("Hi", "<this", "More", "No."))
    assert learnt(made.tokenizer, row) == ["<this<|im_end|>", "No.<|im_end|>"]
    assert len(lines) == 1 and "generation prompt" in lines[0]


def test_an_answer_whose_first_token_reaches_into_the_prompt(config: MakeConfig) -> None:
    """The token across the border is learnt: the model has to say its second half."""
    template = templates.CHATML.replace("\n", "")
    tokenizer = chat_tokenizer(template, "antab antab antab antab", 530)
    assert len(tokenizer("antab", add_special_tokens=False)["input_ids"]) == 1
    made = ConversationEncoder(tokenizer, 100, False, config(task="causal-lm", partition="iid"))
    row = encoded(made, messages("Hi", "ab."))
    assert learnt(tokenizer, row) == ["antab.<|im_end|>"]
    assert learnt(tokenizer, encoded(made, messages("Hi", "b."))) == ["b.<|im_end|>"]


def test_given_messages_are_not_learnt(config: MakeConfig) -> None:
    for name in ("CHATML", "MARKED"):
        made = encoder(config, getattr(templates, name))
        (end,) = learnt(made.tokenizer, encoded(made, TWO, given=3))
        assert end.strip() == "No.<|im_end|>"


def test_a_template_that_refuses_system_messages(config: MakeConfig) -> None:
    with pytest.raises(DataError, match="System role not supported") as caught:
        encoded(encoder(config, templates.GEMMA), messages("x", "y"), SYSTEM)
    assert str(caught.value).startswith("row 2: ")
    assert 'data.system-messages = "merge" or "drop"' in str(caught.value)
    made = encoder(config, templates.GEMMA, system_messages="merge")
    assert "user\nBe brief.\n\nHi<" in made.tokenizer.decode(encoded(made, SYSTEM)["input_ids"])
    made = encoder(config, templates.GEMMA, system_messages="drop")
    assert "brief" not in made.tokenizer.decode(encoded(made, SYSTEM)["input_ids"])
    assert learnt(made.tokenizer, encoded(made, SYSTEM)) == ["Yes.<end_of_turn>"]


def test_a_refusal_quotes_the_template_and_not_the_row(config: MakeConfig) -> None:
    secret = messages("Sentinel", ("user", "Sentinel again"), ("assistant", "No."))
    with pytest.raises(DataError, match="row 1: .*roles must alternate") as caught:
        encoded(encoder(config, templates.MISTRAL), secret)
    assert "Sentinel" not in str(caught.value) and caught.value.__cause__ is None
    tell = templates.CHATML + "{{ raise_exception('bad ' + messages[0].content) }}"
    with pytest.raises(DataError, match="row 1: .*bad x") as caught:
        encoded(encoder(config, tell), secret)
    assert "Sentinel" not in str(caught.value)
    only_this = (
        "{% if 'Sentinel' in messages[0].content %}"
        "{{ raise_exception(messages[0].content) }}{% endif %}" + templates.CHATML
    )
    with pytest.raises(DataError, match=r"row 1: .*\(TemplateError\)") as caught:
        encoded(encoder(config, only_this), secret)
    assert "Sentinel" not in str(caught.value)


def test_two_questions_in_a_row_go_to_the_template(config: MakeConfig) -> None:
    made = encoder(config, templates.CHATML)
    row = encoded(made, messages("One", ("user", "Two"), ("assistant", "Yes.")))
    assert "user\nOne<|im_end|>\n<|im_start|>user\nTwo<" in made.tokenizer.decode(row["input_ids"])
    assert learnt(made.tokenizer, row) == ["Yes.<|im_end|>"]


def test_tools_are_shown_or_refused(config: MakeConfig) -> None:
    calls = messages("Time?", "call()", ("tool", '{"t": "12é"}'), ("assistant", "Noon."))
    made = encoder(config, templates.CHATML)
    row = encoded(made, calls)
    assert learnt(made.tokenizer, row) == ["call()<|im_end|>", "Noon.<|im_end|>"]
    as_json = templates.CHATML.replace(
        "message.content +",
        "(message.content if message.role != 'tool' else message.content|tojson) +",
    )
    assert encoded(encoder(config, as_json), calls)
    dropped = templates.CHATML.replace(
        "{%- for message in messages %}", "{%- for message in messages if message.role != 'tool' %}"
    )
    with pytest.raises(DataError, match='row 1: .*leaves out a message of role "tool"'):
        encoded(encoder(config, dropped), calls)


def test_a_template_that_shows_nothing(config: MakeConfig) -> None:
    with pytest.raises(DataError, match="leaves out what user and assistant say"):
        encoder(config, "{% for message in messages %}{{ message.role }}{% endfor %}")


def test_a_template_that_is_none(config: MakeConfig) -> None:
    with pytest.raises(DataError, match="not a Jinja template"):
        encoder(config, "{% for %}")


def test_marks_without_an_answer(config: MakeConfig) -> None:
    empty = templates.CHATML + "{% generation %}{% endgeneration %}"
    with pytest.raises(DataError, match="row 1: .*generation marks hold no answer"):
        encoded(encoder(config, empty), TWO)


def test_a_tokenizer_without_offsets(config: MakeConfig) -> None:
    """It has the same answers; a merge over the border cannot be seen."""
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    for template in (templates.CLOSED, templates.MARKED):
        tokenizer.chat_template = template
        data = config(task="causal-lm", partition="iid")
        row = encoded(ConversationEncoder(tokenizer, 500, False, data), TWO)
        first, second = learnt(tokenizer, row)
        assert first.startswith("Yes?") and second.startswith("No.")


def test_which_template_counts(config: MakeConfig, tmp_path: Any) -> None:
    lm = {"task": "causal-lm", "partition": "iid"}
    own, none = chat_tokenizer(templates.GEMMA), chat_tokenizer(None)
    assert find_template(own, config(**lm)) == templates.GEMMA
    assert find_template(none, config(**lm)) is None
    assert find_template(own, config(**lm, chat_template="never")) is None
    assert find_template(own, config(**lm, chat_template="always")) == templates.GEMMA
    with pytest.raises(DataError, match='"always": the tokenizer of this model has no chat'):
        find_template(none, config(**lm, chat_template="always"))
    assert find_template(own, config(**lm, chat_template=templates.CHATML)) == templates.CHATML
    path = tmp_path / "own.jinja"
    path.write_text(templates.CHATML, encoding="utf-8-sig")
    assert find_template(own, config(**lm, chat_template=str(path))) == templates.CHATML
    with pytest.raises(DataError, match=r"gone\.jinja.*No such file.*absolute path"):
        find_template(own, config(**lm, chat_template=str(tmp_path / "gone.jinja")))
    adopt_template(own, config(**lm))
    assert own.chat_template == templates.GEMMA
    adopt_template(own, config(**lm, chat_template=templates.CHATML))
    assert own.chat_template == templates.CHATML
    own.chat_template = {"default": templates.OPEN, "tool_use": templates.CHATML}
    assert find_template(own, config(**lm)) == templates.OPEN
    own.chat_template = {"rag": templates.OPEN, "tool_use": templates.CHATML}
    with pytest.raises(DataError, match="give one as a .jinja file"):
        find_template(own, config(**lm))


def test_a_batch_gives_what_its_rows_give(config: MakeConfig) -> None:
    for name in ("CHATML", "MARKED"):
        template = getattr(templates, name)
        tokenizer = chat_tokenizer(template)
        chat = ChatTemplate(tokenizer, template, config(task="causal-lm", partition="iid"))
        both: list[Conversation] = read_batch(batch(TWO, SYSTEM))
        assert chat.tokens(both) == [*chat.tokens(both[:1]), *chat.tokens(both[1:])]
