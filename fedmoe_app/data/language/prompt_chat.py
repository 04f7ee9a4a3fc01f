"""Conversations without a chat template: every exchange in the layout of ``data.prompt-format``.

An exchange is tokenised as a row of instruction and response is, so that a conversation of one
exchange gives the same tokens: prompt, response, end of sequence. The next one follows at once;
where the tokenizer has no end of sequence, after an empty line. Messages of the same role within an
exchange are joined by an empty line.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from fedmoe_app.config.errors import DataError
from fedmoe_app.config.schema import DataConfig
from fedmoe_app.data.encoding import IGNORED_LABEL, special_tokens, token_ids
from fedmoe_app.data.language.chat_template import Tokens
from fedmoe_app.data.language.conversations import ASSISTANT, SYSTEM, TOOL, USER, Conversation, Turn
from fedmoe_app.data.language.prompt_format import PromptFormat

_BETWEEN = "\n\n"


class PromptChat:
    """A prompt format on a tokenizer; formats as :class:`ChatTemplate` does."""

    described = "data.prompt-format"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
        self._tokenizer = tokenizer
        self._layout = PromptFormat(config.prompt_format)
        self._last_only = config.train_on == "last"
        self._system = config.system_messages
        self._start, _ = special_tokens(tokenizer)
        eos = tokenizer.eos_token_id
        self._eos = [] if eos is None else [eos]
        self._between = token_ids(tokenizer, [_BETWEEN])[0] if eos is None else []

    def tokens(self, conversations: Sequence[Conversation]) -> list[Tokens]:
        """Lay conversations out and tokenise them; see :meth:`ChatTemplate.tokens`."""
        pairs = [[self._pair(c, i) for i in range(len(c.exchanges))] for c in conversations]
        texts = [text for exchanges in pairs for pair in exchanges for text in pair]
        ids = iter(token_ids(self._tokenizer, texts))
        return [
            self._joined(c, [(next(ids), next(ids)) for _ in exchanges])
            for c, exchanges in zip(conversations, pairs, strict=True)
        ]

    def prompts(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """Return the token ids of all before the last answer."""
        return [tokens.ids[: tokens.answer] for tokens in self.tokens(conversations)]

    def _joined(
        self, conversation: Conversation, exchanges: Sequence[tuple[list[int], list[int]]]
    ) -> Tokens:
        ids = list(self._start)
        labels = [IGNORED_LABEL] * len(ids)
        answer = 0
        for number, (prompt, response) in enumerate(exchanges):
            prompt = (self._between if number else []) + prompt
            answer = len(ids) + len(prompt)
            response = response + self._eos
            learnt = self._is_learnt(conversation, number)
            ids += prompt + response
            labels += [IGNORED_LABEL] * len(prompt)
            labels += response if learnt else [IGNORED_LABEL] * len(response)
        return Tokens(ids, labels, answer)

    def _is_learnt(self, conversation: Conversation, number: int) -> bool:
        if number == len(conversation.exchanges) - 1:
            return True
        return not self._last_only and conversation.exchanges[number][-1].learnt

    def _pair(self, conversation: Conversation, number: int) -> tuple[str, str]:
        """Return prompt and response of an exchange."""
        turns = [*(conversation.system if number == 0 else ()), *conversation.exchanges[number]]
        if any(turn.role == TOOL for turn in turns):
            raise DataError(
                f"{conversation.where}: a message of role tool needs a chat template, and "
                "data.prompt-format is none; write it into a message of the user, or choose a "
                "data.chat-template"
            )
        system = self._system_text(conversation, turns)
        asked = _joined_texts(turns, USER)
        if self._system == "merge":
            asked, system = "\n\n".join(filter(None, [system, asked])), ""
        return self._layout.prompt(asked, system=system), _joined_texts(turns, ASSISTANT)

    def _system_text(self, conversation: Conversation, turns: Sequence[Turn]) -> str:
        text = "" if self._system == "drop" else _joined_texts(turns, SYSTEM)
        if text and self._system == "keep" and not self._layout.has("system"):
            raise DataError(
                f"{conversation.where}: a system message, and data.prompt-format has no "
                '{system}; add it, or set data.system-messages = "merge" or "drop"'
            )
        return text


def _joined_texts(turns: Sequence[Turn], role: str) -> str:
    return "\n\n".join(
        turn.content.strip() for turn in turns if turn.role == role and turn.content.strip()
    )
