"""``fedmoe chat``: questions from the terminal, answers as they are made."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase, TextStreamer

from fedmoe_app.shown.terminal import say, say_part
from fedmoe_app.tasks.trained import Message, Trained

PROMPT = "> "
HELP = "an empty line or Ctrl-D ends; /new begins another conversation"


class Spoken(TextStreamer):
    """Prints an answer word by word; what acts on a terminal is made visible."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print what is new of the answer."""
        say_part(text)
        if stream_end:
            say()


def talk(trained: Trained, message: str | None, system: str | None, most: int | None) -> None:
    """Answer one message, or each line of the input until an empty one.

    Args:
        trained: the run's model.
        message: the only one; None reads the input.
        system: text of a system message.
        most: tokens of an answer; None: as the run's config says.

    Raises:
        ConfigError, DataError: of :meth:`Trained.reply`.
    """
    start: list[Message] = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    for asked in _asked(message):
        if asked == "/new":
            messages = list(start)
            continue
        messages.append({"role": "user", "content": asked})
        answer = trained.reply(messages, most, Spoken(trained.tokenizer))
        messages.append({"role": "assistant", "content": answer or "-"})


def _asked(message: str | None) -> Iterator[str]:
    if message is not None:
        yield message
        return
    typed = sys.stdin.isatty()
    if typed:
        say(HELP)
    while True:
        if typed:
            say_part(PROMPT)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line
