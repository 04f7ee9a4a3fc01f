"""Conversations: the messages of a cell, and which of them can be learnt from.

A cell is a list of messages or the JSON text of one. A message has ``role`` and ``content``
(OpenAI, TRL) or ``from`` and ``value`` (ShareGPT). The content is a text or a list of parts, of
which the text parts are joined.

What is learnt from is a number of whole *exchanges*: one or more messages of the user and all that
follows up to the last answer of the assistant before the user speaks again. Messages before the
first exchange (but for leading system messages) and after the last answer are left out, as are
empty ones of user and assistant. An empty system message stays: some templates put a text of their
own where there is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fedmoe_app.config.errors import DataError

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"

# Names by which data sets call the four roles.
_ROLES = {
    "system": SYSTEM,
    "developer": SYSTEM,
    "user": USER,
    "human": USER,
    "assistant": ASSISTANT,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bot": ASSISTANT,
    "model": ASSISTANT,
    "function_call": ASSISTANT,
    "tool": TOOL,
    "function": TOOL,
    "observation": TOOL,
}
_TEXT_PARTS = ("text", "input_text", "output_text")
# Kinds of parts that messages may quote; any other word could be out of a private row.
_OTHER_PARTS = ("image", "image_url", "input_image", "audio", "input_audio", "video", "file")
# Keys that change what is said or learnt, so that leaving them out would be wrong.
_MEANING = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
_WEIGHTS = ("weight", "train")


class Turn(NamedTuple):
    """A message.

    ``role`` is system, user, assistant or tool; ``learnt`` is whether an answer may be trained on.
    """

    role: str
    content: str
    learnt: bool = True


@dataclass(frozen=True)
class Conversation:
    """Leading system messages and whole exchanges.

    Attributes:
        where: its file and row, for messages.
        system: the leading system messages.
        exchanges: each begins with the user and ends with the assistant.
        trimmed: whether messages of the row were left out.
    """

    where: str
    system: tuple[Turn, ...]
    exchanges: tuple[tuple[Turn, ...], ...]
    trimmed: bool

    @property
    def turns(self) -> list[Turn]:
        """All messages in order."""
        return [*self.system, *(turn for exchange in self.exchanges for turn in exchange)]

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.exchanges[-1][-1].content

    def without_first(self, count: int) -> Conversation:
        """Return the conversation without its first exchanges; system messages stay."""
        return replace(self, exchanges=self.exchanges[count:])


def read_messages(cell: Any, private: bool = False) -> list[Turn]:
    """Return the messages of a cell: Python objects, or JSON text.

    Args:
        cell: a list of messages, its JSON text, or a mapping of equally long lists, which is how
            some data sets store it. None is no messages.
        private: whether errors may quote nothing of the cell.

    Raises:
        DataError: what is wrong with which message, to be put behind file, row and column.
    """
    messages = _as_list(cell)
    return [_read_message(message, number, private) for number, message in enumerate(messages, 1)]


def looks_like_messages(cell: Any) -> bool:
    """Tell whether a cell holds messages and not plain text."""
    if not isinstance(cell, str):
        return isinstance(cell, list | Mapping)
    if not cell.lstrip().startswith(("[", "{")):
        return False
    try:
        return are_messages(json.loads(cell))
    except (ValueError, RecursionError):
        return False


def are_messages(value: list[Any] | Mapping[str, Any]) -> bool:
    """Tell whether a list or object is one of messages; no messages are none."""
    if isinstance(value, Mapping):
        return _has_role(value) and all(isinstance(column, list) for column in value.values())
    return bool(value) and all(isinstance(m, Mapping) and _has_role(m) for m in value)


def as_conversation(where: str, turns: Sequence[Turn]) -> Conversation | None:
    """Return the whole exchanges of a row; None if it has none, or none that is to be learnt."""
    said = [turn for turn in turns if turn.content.strip() or turn.role in (SYSTEM, TOOL)]
    num_system = _first(said, lambda turn: turn.role != SYSTEM)
    start = _first(said, lambda turn: turn.role == USER)
    end = len(said) - _first(said[::-1], lambda turn: turn.role == ASSISTANT)
    if start >= end or not said[end - 1].learnt:
        return None
    exchanges = _exchanges(said[start:end])
    trimmed = num_system + end - start < len(turns)
    return Conversation(where, tuple(said[:num_system]), exchanges, trimmed)


def with_system(turns: Iterable[Turn], handling: str) -> list[Turn]:
    """Keep system messages, merge each into the user's message after it, or drop them."""
    if handling == "keep":
        return list(turns)
    kept: list[Turn] = []
    waiting: list[str] = []
    for turn in turns:
        if turn.role == SYSTEM:
            waiting += [turn.content] if handling == "merge" and turn.content.strip() else []
        elif turn.role == USER and waiting:
            kept.append(Turn(USER, "\n\n".join([*waiting, turn.content])))
            waiting = []
        else:
            kept.append(turn)
    return kept


def _first(turns: Sequence[Turn], holds: Any) -> int:
    """Return the position of the first turn for which something holds; their number if none."""
    return next((index for index, turn in enumerate(turns) if holds(turn)), len(turns))


def _exchanges(turns: Iterable[Turn]) -> tuple[tuple[Turn, ...], ...]:
    """Cut before every message of the user that comes after an answer."""
    exchanges: list[list[Turn]] = [[]]
    for turn in turns:
        if turn.role == USER and any(earlier.role == ASSISTANT for earlier in exchanges[-1]):
            exchanges.append([])
        exchanges[-1].append(turn)
    return tuple(tuple(exchange) for exchange in exchanges)


def _as_list(cell: Any) -> list[Any]:
    if isinstance(cell, str):
        try:
            # Numbers as they are written, as files give them.
            cell = json.loads(cell, parse_int=str, parse_float=str) if cell.strip() else None
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply")
            raise DataError(f"does not hold JSON ({reason})") from None
    if isinstance(cell, Mapping) and cell and all(isinstance(v, list) for v in cell.values()):
        by_message = zip(*cell.values(), strict=False)
        cell = [dict(zip(cell, values, strict=True)) for values in by_message]
    if cell is None:
        return []
    if not isinstance(cell, list):
        raise DataError("does not hold a list of messages")
    return cell


def _has_role(message: Mapping[str, Any]) -> bool:
    return message.get("role") is not None or message.get("from") is not None


def _read_message(message: Any, number: int, private: bool) -> Turn:
    if not isinstance(message, Mapping) or not _has_role(message):
        raise DataError(f'message {number} has neither "role" and "content" nor "from" and "value"')
    by_role = message.get("role") is not None
    role = _role(message["role" if by_role else "from"], number, private)
    _refuse_what_is_lost(message, number)
    key = "content" if by_role else "value"
    if key not in message:
        raise DataError(f'message {number} has no "{key}"')
    content = _text_of(message[key], number, private)
    if any("\ud800" <= character <= "\udfff" for character in content):
        raise DataError(f"message {number} holds half a surrogate pair, which is no character")
    return Turn(role, content)


def _role(value: Any, number: int, private: bool) -> str:
    role = _ROLES.get(value.strip().lower()) if isinstance(value, str) else None
    if role is None:
        shown = "its role" if private else f"role {value!r}"
        raise DataError(f"message {number}: {shown} is none of {', '.join(_ROLES)}")
    return role


def _refuse_what_is_lost(message: Mapping[str, Any], number: int) -> None:
    for key in _MEANING:
        if message.get(key):
            raise DataError(
                f'message {number} has "{key}", which only the text of a message can hold here; '
                "write it into the content"
            )
    for key in _WEIGHTS:
        if message.get(key) is not None and _is_zero(message[key]):
            raise DataError(
                f'message {number} has "{key}" 0, so it is not to be learnt; leave the key out and '
                'set data.train-on = "last", or give prompt and completion'
            )


def _is_zero(value: Any) -> bool:
    # Numbers of a file come as text.
    if isinstance(value, str):
        return value.strip().lower() in ("0", "0.0", "false", "")
    return not value


def _text_of(content: Any, number: int, private: bool) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = [content] if isinstance(content, Mapping) else content
    if not isinstance(parts, list):
        raise DataError(f"message {number}: its content is neither a text nor a list of parts")
    return "".join(_text_of_part(part, number, private) for part in parts)


def _text_of_part(part: Any, number: int, private: bool) -> str:
    if isinstance(part, str):
        return part
    part = part if isinstance(part, Mapping) else {}
    kind = part.get("type") or ("text" if part.get("text") is not None else None)
    if kind in _TEXT_PARTS and isinstance(part.get("text"), str | None):
        return part.get("text") or ""
    shown = f" of type {kind!r}" if kind in _OTHER_PARTS or not private else ""
    raise DataError(f"message {number} has a part{shown}; only parts of type 'text' can be used")
