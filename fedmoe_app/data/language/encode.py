"""Encode a language model's rows, by their uniform columns (:mod:`fedmoe_app.data.language.rows`).

An encoder takes one batch, a dict of columns, so that a large data set can be encoded batch by
batch: no row looks at another.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from fedmoe_app.config.errors import DataError
from fedmoe_app.config.schema import DataConfig
from fedmoe_app.data.encoding import (
    IGNORED_LABEL,
    Encoded,
    Row,
    causal_lm_encoder,
    encode_prompts,
    fit,
    last,
    special_tokens,
    token_ids,
)
from fedmoe_app.data.language.chat_template import ChatTemplate, Tokens
from fedmoe_app.data.language.conversations import Conversation, Turn, as_conversation
from fedmoe_app.data.language.offsets import tokenise
from fedmoe_app.data.language.prompt_chat import PromptChat
from fedmoe_app.data.language.templates import find_template

Batch = Mapping[str, Any]  # columns of equal length

_log = logging.getLogger(__name__)


class RowEncoder(Protocol):
    """Encodes the rows of one kind."""

    described: str  # how a row becomes tokens, for people

    def rows(self, batch: Batch) -> tuple[list[Row], int]:
        """Return the encoded rows and how many of them were cut."""

    def questions(self, batch: Batch) -> list[tuple[list[int], str]]:
        """Return what to answer, in tokens, and the right answer, of each row."""


def row_encoder(
    columns: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    encoder_decoder: bool,
    config: DataConfig | None,
) -> RowEncoder:
    """Return the encoder for rows of these columns.

    Args:
        columns: of the uniform data set.
        tokenizer: the model's.
        max_length: tokens of a row, and of an encoder-decoder model's input and labels each.
        encoder_decoder: whether the model is one.
        config: the run's data section; only conversations need it.

    Raises:
        DataError: plain text for an encoder-decoder model, or a chat template that cannot be used.
    """
    if "messages" in columns:
        assert config is not None
        return ConversationEncoder(tokenizer, max_length, encoder_decoder, config)
    if "text" in columns:
        return TextEncoder(tokenizer, max_length, encoder_decoder)
    kind = CompletionEncoder if "completion" in columns else PairEncoder
    return kind(tokenizer, max_length, encoder_decoder)


def encode_rows(dataset: Dataset, encoder: RowEncoder, with_questions: bool = False) -> Encoded:
    """Encode a data set, piece by piece.

    Args:
        dataset: in the uniform columns.
        encoder: of its kind of rows.
        with_questions: put ``prompt`` and ``reference`` into the rows, too.

    Raises:
        DataError: a row that cannot be encoded.
    """

    def encode(batch: Batch) -> tuple[list[Row], int]:
        rows, num_cut = encoder.rows(batch)
        if with_questions:
            for row, question in zip(rows, encoder.questions(batch), strict=True):
                row["prompt"], row["reference"] = question
        return rows, num_cut

    return Encoded.of(dataset, encode)


class _Encoder:
    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, encoder_decoder: bool
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.encoder_decoder = encoder_decoder
        self.start, self.end = special_tokens(tokenizer)
        eos = tokenizer.eos_token_id
        self.eos = [] if eos is None else [eos]


class PairEncoder(_Encoder):
    """Columns ``prompt`` and ``response``: see :func:`encode_causal_lm`."""

    described = "data.prompt-format"

    def rows(self, batch: Batch) -> tuple[list[Row], int]:
        """As :class:`RowEncoder` says."""
        encode = causal_lm_encoder(self.tokenizer, self.max_length, self.encoder_decoder)
        return encode(batch)

    def questions(self, batch: Batch) -> list[tuple[list[int], str]]:
        """As :class:`RowEncoder` says."""
        prompts = encode_prompts(batch, self.tokenizer, self.max_length, self.encoder_decoder)
        return list(zip(prompts, batch["response"], strict=True))


class CompletionEncoder(_Encoder):
    """Columns ``prompt`` and ``completion``, one text as they stand; the loss is on the completion.

    The text is tokenised as a whole: the first token of a completion is often one with a space. It
    ends with the end of sequence, and is cut by the rule of :func:`encode_causal_lm`.
    """

    described = "prompt and completion as they stand"

    def rows(self, batch: Batch) -> tuple[list[Row], int]:
        """As :class:`RowEncoder` says."""
        if self.encoder_decoder:
            pairs = {"prompt": batch["prompt"], "response": batch["completion"]}
            return causal_lm_encoder(self.tokenizer, self.max_length, encoder_decoder=True)(pairs)
        texts = [a + b for a, b in zip(batch["prompt"], batch["completion"], strict=True)]
        rows, num_cut = [], 0
        for prompt, tokens in zip(batch["prompt"], tokenise(self.tokenizer, texts), strict=True):
            border = tokens.index(len(prompt))
            response = tokens.ids[border:]
            response += self.eos if response[-1:] != self.eos else []
            room = self.max_length - len(self.start)
            head, tail = fit(tokens.ids[:border], response, room)
            ids = [*self.start, *head, *tail]
            rows.append(Row(input_ids=ids, labels=_labels(tail, len(ids))))
            num_cut += len(head) < border or len(tail) < len(response)
        return rows, num_cut

    def questions(self, batch: Batch) -> list[tuple[list[int], str]]:
        """As :class:`RowEncoder` says."""
        prompts = encode_prompts(batch, self.tokenizer, self.max_length, self.encoder_decoder)
        return list(zip(prompts, (text.strip() for text in batch["completion"]), strict=True))


class TextEncoder(_Encoder):
    """Column ``text``: the loss is on all tokens but the first, which nothing predicts.

    The tokenizer's own special tokens are added. A text that is too long loses its end, and with it
    the closing token: the model must not learn to stop there. For samples the first half of a text
    is its prompt. A text of one token has nothing to learn and is left out, with a warning.
    """

    described = "plain text"

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, encoder_decoder: bool
    ) -> None:
        super().__init__(tokenizer, max_length, encoder_decoder)
        if encoder_decoder:
            raise DataError(
                "plain text has no prompt and answer, which an encoder-decoder model needs; give "
                "instructions or conversations, or choose a decoder-only model.name"
            )

    def rows(self, batch: Batch) -> tuple[list[Row], int]:
        """As :class:`RowEncoder` says."""
        whole = [[*self.start, *ids, *self.end] for ids in token_ids(self.tokenizer, batch["text"])]
        kept = [ids for ids in whole if len(ids) > 1]
        if len(kept) < len(whole):
            _log.warning("left out %d texts of at most one token", len(whole) - len(kept))
        return [self._row(ids) for ids in kept], sum(len(ids) > self.max_length for ids in kept)

    def questions(self, batch: Batch) -> list[tuple[list[int], str]]:
        """Refuse: a text has no answer."""
        raise DataError('data.metric = "exact-match": plain text has no answer to compare')

    def _row(self, ids: list[int]) -> Row:
        ids = ids[: self.max_length]
        return Row(input_ids=ids, labels=_labels(ids[1:], len(ids)), prompt_length=len(ids) // 2)


class ConversationEncoder(_Encoder):
    """Columns ``messages``, ``num_given`` and ``where``.

    A conversation that is too long loses its first exchanges, system messages stay. Where the last
    exchange by itself does not fit, its tokens are cut by the rule of :func:`encode_causal_lm`:
    what comes before the last answer loses its left down to a quarter of the room, then the answer
    its end. An encoder-decoder model reads what comes before the last answer, and says that.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        encoder_decoder: bool,
        config: DataConfig,
    ) -> None:
        super().__init__(tokenizer, max_length, encoder_decoder)
        template = find_template(tokenizer, config)
        self._format = (
            PromptChat(tokenizer, config)
            if template is None
            else ChatTemplate(tokenizer, template, config)
        )
        self.described = self._format.described

    def rows(self, batch: Batch) -> tuple[list[Row], int]:
        """As :class:`RowEncoder` says."""
        if self.encoder_decoder:
            return self._read_and_said(batch)
        conversations = read_batch(batch)
        rows, num_cut = [], 0
        for conversation, whole in zip(
            conversations, self._format.tokens(conversations), strict=True
        ):
            tokens = whole if self._fits(whole.ids) else self._shortened(conversation)
            rows.append(
                Row(input_ids=tokens.ids, labels=tokens.labels, prompt_length=tokens.answer)
            )
            num_cut += conversation.trimmed or tokens is not whole
        return rows, num_cut

    def questions(self, batch: Batch) -> list[tuple[list[int], str]]:
        """Return all before the last answer with the generation prompt, and that answer."""
        conversations = read_batch(batch)
        return [
            (self._prompt(conversation), conversation.answer.strip())
            for conversation in conversations
        ]

    def _shortened(self, conversation: Conversation) -> Tokens:
        """Drop the fewest first exchanges, then tokens."""
        most = len(conversation.exchanges) - 1
        dropped = _fewest(most, lambda n: self._fits(self._tokens(conversation, n).ids))
        tokens = self._tokens(conversation, dropped)
        return tokens if self._fits(tokens.ids) else self._cut(tokens, conversation.where)

    def _fits(self, ids: Sequence[int]) -> bool:
        return len(ids) <= self.max_length

    def _tokens(self, conversation: Conversation, dropped: int) -> Tokens:
        return self._format.tokens([conversation.without_first(dropped)])[0]

    def _cut(self, tokens: Tokens, where: str) -> Tokens:
        """Cut the tokens of one exchange; a beginning token stays."""
        first = 1 if tokens.ids[0] == self.tokenizer.bos_token_id and tokens.answer else 0
        pairs = list(zip(tokens.ids, tokens.labels, strict=True))
        room = self.max_length - first
        head, tail = fit(pairs[first : tokens.answer], pairs[tokens.answer :], room)
        kept = [*pairs[:first], *head, *tail]
        if all(label == IGNORED_LABEL for _, label in kept[1:]):
            raise DataError(
                f"{where}: data.max-length = {self.max_length} leaves no token of the answer "
                "to learn; raise it"
            )
        ids, labels = (list(column) for column in zip(*kept, strict=True))
        return Tokens(ids, labels, first + len(head))

    def _prompt(self, conversation: Conversation) -> list[int]:
        """Return the prompt of the last answer, with as many exchanges as fit."""
        most = len(conversation.exchanges) - 1
        dropped = _fewest(most, lambda n: self._fits(self._whole_prompt(conversation, n)))
        ids = self._whole_prompt(conversation, dropped)
        if self._fits(ids):
            return ids
        if self.encoder_decoder:
            return ids[: self.max_length - len(self.end)] + self.end
        first = ids[:1] if ids[0] == self.tokenizer.bos_token_id else []
        return first + last(ids, self.max_length - len(first))

    def _whole_prompt(self, conversation: Conversation, dropped: int) -> list[int]:
        (ids,) = self._format.prompts([conversation.without_first(dropped)])
        if not self.encoder_decoder:
            return ids
        start = [] if ids[: len(self.start)] == self.start else self.start
        end = [] if self.end and ids[-len(self.end) :] == self.end else self.end
        return start + ids + end

    def _read_and_said(self, batch: Batch) -> tuple[list[Row], int]:
        rows, num_cut = [], 0
        for conversation in read_batch(batch):
            prompt = self._prompt(conversation)
            (answer,) = token_ids(self.tokenizer, [conversation.answer.strip()])
            labels = [*answer, *self.eos]
            rows.append(Row(input_ids=prompt, labels=labels[: self.max_length]))
            whole = len(self._whole_prompt(conversation, 0)) == len(prompt)
            num_cut += conversation.trimmed or not whole or len(labels) > self.max_length
        return rows, num_cut


def read_batch(batch: Batch) -> list[Conversation]:
    """Return the conversations of a batch of uniform columns."""
    columns = zip(batch["messages"], batch["num_given"], batch["where"], strict=True)
    found = [as_conversation(where, _turns(messages, given)) for messages, given, where in columns]
    assert all(found)  # the others are no rows of the uniform data set
    return [conversation for conversation in found if conversation]


def _turns(messages: Sequence[Mapping[str, str]], num_given: int) -> list[Turn]:
    return [
        Turn(message["role"], message["content"], index >= num_given)
        for index, message in enumerate(messages)
    ]


def _fewest(most: int, fits: Callable[[int], bool]) -> int:
    """Return the smallest number for which something fits, at most ``most``; more fit better."""
    return bisect_left(range(most), True, key=fits)


def _labels(tail: list[int], length: int) -> list[int]:
    """Return the labels of a row that learns its tail; nothing predicts a first token."""
    head = max(1, length - len(tail))
    return [IGNORED_LABEL] * head + tail[head - (length - len(tail)) :]
