"""Which token of a text a character belongs to, from one tokenisation of the whole text.

Tokenising the parts of a text by themselves would give other tokens at their borders than the
model sees. Fast tokenizers tell the characters of each token; for the others the tokens that the
beginning of the text and the whole have in common are counted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from fedmoe_app.data.encoding import token_ids


@dataclass(frozen=True)
class Tokenised:
    """A text in tokens.

    Attributes:
        ids: token ids, without special tokens but those that the text spells.
        index: number of tokens that end at or before a character of the text. So a token across
            the border counts to what comes after it.
    """

    ids: list[int]
    index: Callable[[int], int]


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Tokenised]:
    """Tokenise texts."""
    if not texts:
        return []
    if not tokenizer.is_fast:
        return [_by_common_tokens(tokenizer, text) for text in texts]
    # verbose=False: no warning about texts longer than the model's context; they are cut later.
    found = tokenizer(
        list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
    return [by_offsets(ids, offsets) for ids, offsets in pairs]


def by_offsets(ids: list[int], offsets: Sequence[tuple[int, int]]) -> Tokenised:
    """Return a text that is tokenised already; ``offsets`` are each token's first and last + 1."""
    ends = [end for _, end in offsets]
    return Tokenised(ids, lambda position: bisect_right(ends, position))


def _by_common_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> Tokenised:
    (whole,) = token_ids(tokenizer, [text])

    def index(position: int) -> int:
        if position >= len(text):
            return len(whole)
        (part,) = token_ids(tokenizer, [text[:position]])
        pairs = zip(part, whole, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(part), len(whole)))

    return Tokenised(whole, index)
