"""Conversations through a chat template, with the tokens that are to be learnt.

The template is the tokenizer's own or that of ``data.chat-template``. Where it marks what the
assistant says (``{% generation %}``), the marks count. Without marks, an answer is what the text up
to its end has more than the text up to the assistant's turn with the generation prompt. Both must
be prefixes of the whole text, else the template shows the turn differently once the conversation
goes on (Qwen3 takes the reasoning out of earlier answers), and there is nothing in the whole text
that the model would say at that point: such a row is refused, with ``train-on = "last"`` as the way
out, since the last answer always stands as it is said.

The token that ends a turn is learnt, too, also where a template's marks leave it out: without it a
model does not learn to stop. White space after it is not.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from fedmoe_app.config.errors import DataError
from fedmoe_app.config.schema import DataConfig
from fedmoe_app.data.encoding import IGNORED_LABEL
from fedmoe_app.data.language.conversations import (
    ASSISTANT,
    SYSTEM,
    TOOL,
    USER,
    Conversation,
    Turn,
    with_system,
)
from fedmoe_app.data.language.offsets import Tokenised, by_offsets, tokenise
from fedmoe_app.data.language.templates import find_template, with_fixed_date

_logger = logging.getLogger("fedmoe")

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Tokens:
    """A conversation in tokens.

    Attributes:
        ids: token ids ``[S]``.
        labels: ``[S]``, ``IGNORED_LABEL`` where nothing is learnt.
        answer: position of the first token of the last answer.
    """

    ids: list[int]
    labels: list[int]
    answer: int


def stop_ids(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> tuple[int, ...]:
    """Return the tokens that end an answer of a conversation, beside the end of sequence."""
    template = find_template(tokenizer, config)
    return () if template is None else ChatTemplate(tokenizer, template, config).stop_ids


class ChatTemplate:
    """A chat template on a tokenizer."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: str, config: DataConfig
    ) -> None:
        """Take the template and look at what it makes of a greeting.

        Raises:
            DataError: it is no Jinja, or leaves out what is said.
        """
        self._tokenizer = tokenizer
        self._template = with_fixed_date(template)
        self._last_only = config.train_on == "last"
        self._system = config.system_messages
        self._marks = tokenizer.is_fast and _GENERATION.search(template) is not None
        self._in_parts = False
        self._warned = False
        self._probe()

    @property
    def described(self) -> str:
        """How conversations are formatted, for people."""
        return f"the chat template{', by its generation marks' if self._marks else ''}"

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens at which an answer ends, beside the end of sequence; empty if none is known."""
        found: set[int] = set()
        for exchanges in ((_GREETING,), (_GREETING, _GREETING)):
            try:
                (tokens,) = self.tokens([Conversation("", (), exchanges, trimmed=False)])
            except DataError:
                continue
            learnt = [label != IGNORED_LABEL for label in tokens.labels]
            found.update(*(self._ends(tokens.ids[start:end]) for start, end in _runs(learnt)))
        return tuple(sorted(found))

    def _ends(self, ids: Sequence[int]) -> list[int]:
        """Return the first special token after the text of an answer, if there is one."""
        texts = [i for i, t in enumerate(ids) if t not in self._special and not self._is_blank(t)]
        after = ids[texts[-1] + 1 :] if texts else ids
        return [token for token in after if token in self._special][:1]

    def tokens(self, conversations: Sequence[Conversation]) -> list[Tokens]:
        """Format and tokenise conversations, and mark the answers to learn.

        Raises:
            DataError: naming the row, the template's own words and the way out.
        """
        turns = [with_system(c.turns, self._system) for c in conversations]
        if self._marks:
            pairs = zip(conversations, turns, strict=True)
            return [_at(c.where, self._by_marks, said) for c, said in pairs]
        texts = [_at(c.where, self._text, t) for c, t in zip(conversations, turns, strict=True)]
        spans = [
            _at(c.where, self._spans, said, text)
            for c, said, text in zip(conversations, turns, texts, strict=True)
        ]
        found = zip(tokenise(self._tokenizer, texts), spans, strict=True)
        return [self._by_spans(tokenised, parts) for tokenised, parts in found]

    def prompts(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """Return the token ids of all before the last answer, with the generation prompt."""
        turns = [with_system(c.turns, self._system)[:-1] for c in conversations]
        texts = [
            _at(c.where, self._render, said, True)
            for c, said in zip(conversations, turns, strict=True)
        ]
        return [tokenised.ids for tokenised in tokenise(self._tokenizer, texts)]

    # -- rendering -----------------------------------------------------------------------------

    def _render(self, turns: Sequence[Turn], generation_prompt: bool = False) -> str:
        try:
            return str(self._apply(turns, tokenize=False, add_generation_prompt=generation_prompt))
        except Exception as error:  # a template is code: anything can come out of it
            raise DataError(self._refusal(turns, error, generation_prompt)) from None

    def _apply(self, turns: Sequence[Turn], **options: Any) -> Any:
        messages: Any = [{"role": turn.role, "content": self._content(turn)} for turn in turns]
        return self._tokenizer.apply_chat_template(
            messages,
            chat_template=self._template,
            **options,
        )

    def _content(self, turn: Turn) -> str | list[dict[str, str]]:
        return [{"type": "text", "text": turn.content}] if self._in_parts else turn.content

    def _refusal(self, turns: Sequence[Turn], error: Exception, generation_prompt: bool) -> str:
        """Say why a template failed, in its own words where they hold nothing of the row."""
        bare = [turn._replace(content="x") for turn in turns]
        words = ""
        try:
            self._apply(bare, tokenize=False, add_generation_prompt=generation_prompt)
        except Exception as without_content:
            words = f": {str(without_content).strip() or type(without_content).__name__}"
        roles = ", ".join(dict.fromkeys(turn.role for turn in turns))
        return (
            f"the chat template refuses this conversation of {roles} ({type(error).__name__}"
            f"{words}); {self._way_out(turns)}"
        )

    def _way_out(self, turns: Sequence[Turn]) -> str:
        other = 'choose data.chat-template = "never" or another template'
        if any(turn.role == SYSTEM for turn in turns):
            return f'set data.system-messages = "merge" or "drop", or {other}'
        return f"correct the row, or {other}"

    def _probe(self) -> None:
        """Find out in which form the template reads contents: a text, or a list of parts."""
        refuses = False
        for self._in_parts in (False, True):
            try:
                if self._says(_GREETING):
                    return
            except Exception as error:
                if _is_syntax(error):
                    raise DataError(f"data.chat-template: not a Jinja template ({error})") from None
                refuses = True
        self._in_parts = False
        if not refuses:  # one that refuses a greeting may want other roles; each row will say
            raise DataError(
                "the chat template leaves out what user and assistant say; choose "
                'data.chat-template = "never" or another template'
            )

    def _says(self, turns: Sequence[Turn]) -> bool:
        text = self._apply(turns, tokenize=False)
        return all(turn.content in text for turn in turns)

    def _text(self, turns: Sequence[Turn]) -> str:
        """Render a whole conversation; refuse a template that drops a message without a word."""
        text = self._render(turns)
        for turn in turns:
            if turn.role in (SYSTEM, TOOL) and not _is_shown(turn.content.strip(), text):
                raise DataError(
                    f'the chat template leaves out a message of role "{turn.role}"; '
                    f"{self._way_out(turns)}"
                )
        return text

    # -- what is learnt ------------------------------------------------------------------------

    def _learnt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the positions of the turns to learn, the last one of all among them."""
        if self._last_only:
            return [len(turns) - 1]
        return [i for i, turn in enumerate(turns) if turn.role == ASSISTANT and turn.learnt]

    def _spans(self, turns: Sequence[Turn], text: str) -> list[tuple[int, int]]:
        """Return first character and last + 1 of every answer to learn."""
        return [self._span(turns, position, text) for position in self._learnt(turns)]

    def _span(self, turns: Sequence[Turn], position: int, text: str) -> tuple[int, int]:
        start = self._start(turns, position, text)
        is_last = position == len(turns) - 1
        end = len(text) if is_last else self._end(turns, position, text)
        if start >= end:
            raise DataError(_rewritten(turns, position))
        return start, end

    def _start(self, turns: Sequence[Turn], position: int, text: str) -> int:
        prompt = self._render(turns[:position], generation_prompt=True)
        if text.startswith(prompt):
            return len(prompt)
        # The generation prompt may open what this answer does not have (reasoning, say).
        start = _num_common(prompt, text)
        before = self._without_eos(self._render(turns[:position]))
        if not text.startswith(before) or start < len(before):
            raise DataError(_rewritten(turns, position))
        self._warn_once()
        content = text.find(turns[position].content.strip(), len(before))
        return start if content < 0 else min(start, content)

    def _end(self, turns: Sequence[Turn], position: int, text: str) -> int:
        so_far = self._render(turns[: position + 1])
        for end in (so_far, self._without_eos(so_far)):
            if text.startswith(end):
                return len(end)
        raise DataError(_rewritten(turns, position))

    def _without_eos(self, text: str) -> str:
        """Take away the end of sequence with which some templates close any text."""
        return text.removesuffix(self._tokenizer.eos_token or "")

    def _warn_once(self) -> None:
        if not self._warned:
            _logger.warning(
                "the chat template's generation prompt is not how the answers in the data begin: "
                "they are learnt from where the two part"
            )
        self._warned = True

    def _by_spans(self, tokenised: Tokenised, spans: Sequence[tuple[int, int]]) -> Tokens:
        places = [(tokenised.index(start), tokenised.index(end)) for start, end in spans]
        labels = [IGNORED_LABEL] * len(tokenised.ids)
        for start, end in places:
            stop = self._with_end_of_turn(tokenised.ids, start, end)
            labels[start:stop] = tokenised.ids[start:stop]
        return self._closed(tokenised.ids, labels, places[-1][0])

    def _by_marks(self, turns: Sequence[Turn]) -> Tokens:
        text = self._text(turns)
        found = self._apply(
            turns,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True, "verbose": False},
        )
        tokenised = by_offsets(found["input_ids"], found["offset_mapping"])
        mask = found["assistant_masks"]
        learnt = self._learnt(turns)
        if learnt[0] != _first_answer(turns):
            before = tokenised.index(self._start(turns, learnt[0], text))
            mask = [0] * before + mask[before:]
        labels = [IGNORED_LABEL] * len(mask)
        for start, end in _runs(mask):
            stop = max(end, self._with_end_of_turn(tokenised.ids, start, end))
            labels[start:stop] = tokenised.ids[start:stop]
        if not any(mask):
            raise DataError("the chat template's generation marks hold no answer")
        return self._closed(tokenised.ids, labels, self._answer(turns, text, tokenised, mask))

    def _answer(
        self, turns: Sequence[Turn], text: str, tokenised: Tokenised, mask: Sequence[int]
    ) -> int:
        """Return where the last answer begins; by the last mark where the prefix does not tell."""
        try:
            return tokenised.index(self._start(turns, len(turns) - 1, text))
        except DataError:
            return _runs(mask)[-1][0]

    # -- the end of a turn ---------------------------------------------------------------------

    @cached_property
    def _special(self) -> set[int]:
        """Tokens that are no text: among them those that end a turn."""
        found = {*self._tokenizer.all_special_ids, *self._tokenizer.get_added_vocab().values()}
        return {token for token in found if not self._is_blank(token)}

    def _is_blank(self, token: int) -> bool:
        return not str(self._tokenizer.decode([token])).strip()

    def _with_end_of_turn(self, ids: Sequence[int], start: int, end: int) -> int:
        """Return where to stop learning: behind the special token that ends the turn."""
        last = end
        while last > start and self._is_blank(ids[last - 1]):
            last -= 1
        if last > start and ids[last - 1] in self._special:
            return last
        return end + 1 if end < len(ids) and ids[end] in self._special else end

    def _closed(self, ids: list[int], labels: list[int], answer: int) -> Tokens:
        """Add the end of sequence where the template lets the last answer end without a token."""
        last = self._last_learnt(ids, labels)
        eos = self._tokenizer.eos_token_id
        open_end = ids[last] not in self._special and all(map(self._is_blank, ids[last + 1 :]))
        if open_end and eos is not None:
            return Tokens([*ids, eos], [*labels, eos], answer)
        return Tokens(ids, labels, answer)

    def _last_learnt(self, ids: Sequence[int], labels: Sequence[int]) -> int:
        """Return the position of the last token to learn, white space left aside."""
        learnt = [index for index, label in enumerate(labels) if label != IGNORED_LABEL]
        return next((i for i in reversed(learnt) if not self._is_blank(ids[i])), learnt[-1])


_GREETING = (Turn(USER, "Hello there"), Turn(ASSISTANT, "General greeting"))


def _at(where: str, step: Any, *arguments: Any) -> Any:
    """Put file and row before what a step says is wrong with it."""
    try:
        return step(*arguments)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _is_syntax(error: Exception) -> bool:
    from jinja2 import TemplateSyntaxError

    return isinstance(error, TemplateSyntaxError)


def _is_shown(content: str, text: str) -> bool:
    """Tell whether a template printed a content, as it is or as JSON."""
    forms = (content, json.dumps(content)[1:-1], json.dumps(content, ensure_ascii=False)[1:-1])
    return any(form in text for form in forms)


def _num_common(first: str, second: str) -> int:
    """Return how many characters two texts begin with in common."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _first_answer(turns: Sequence[Turn]) -> int:
    return next(i for i, turn in enumerate(turns) if turn.role == ASSISTANT)


def _rewritten(turns: Sequence[Turn], position: int) -> str:
    number = sum(turn.role == ASSISTANT for turn in turns[: position + 1])
    total = sum(turn.role == ASSISTANT for turn in turns)
    if number == total:
        return (
            "the chat template's generation prompt does not lead to the last answer; choose "
            'data.chat-template = "never" or another template'
        )
    return (
        f"the chat template shows answer {number} of {total} otherwise once the conversation goes "
        "on (without its reasoning, say), so it cannot be learnt in place; set "
        'data.train-on = "last", or choose a data.chat-template that does not'
    )


def _runs(mask: Iterable[int]) -> list[tuple[int, int]]:
    """Return start and end of every run of ones."""
    runs: list[tuple[int, int]] = []
    for index, marked in enumerate(mask):
        if marked and runs and runs[-1][1] == index:
            runs[-1] = (runs[-1][0], index + 1)
        elif marked:
            runs.append((index, index + 1))
    return runs
