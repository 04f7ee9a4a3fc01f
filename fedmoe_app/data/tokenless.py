"""Leave out rows whose text gives no token, as rows with an empty text are left out.

Some tokenizers drop characters that they do not know, so that a text of nothing else is empty for
the model. A classifier would read the label off padding, an empty option would always be the most
likely one, and the loss of an empty response is the mean of nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from fedmoe_app.data.encoding import IGNORED_LABEL, Encoded, Row

_log = logging.getLogger(__name__)


def drop_tokenless(rows: Encoded, has_tokens: Callable[[Row], bool], what: str) -> Encoded:
    """Return the rows that have tokens, with one warning about the others.

    Args:
        rows: encoded examples.
        has_tokens: tells of a row whether the text that counts gave a token of its own.
        what: the name of that text, for the warning.
    """
    kept = np.fromiter(map(has_tokens, rows), dtype=bool, count=len(rows))
    if kept.all():
        return rows
    _log.warning(
        "dropped %d of %d examples, whose %s gives no token with this model's tokenizer (the first "
        "is example %d)",
        len(rows) - kept.sum(),
        len(rows),
        what,
        int(kept.argmin()) + 1,
    )
    return rows.keep(kept)


def text_has_tokens(row: Row, empty: Row) -> bool:
    """Tell whether a text to classify gave more than an empty one: its special tokens."""
    return len(row["input_ids"]) > len(empty["input_ids"])


def response_has_tokens(row: Row, eos_token_id: int | None, encoder_decoder: bool) -> bool:
    """Tell whether a response gave a token besides its end, and there is a position to train."""
    labels = row["labels"]
    assert isinstance(labels, list)
    own = [label for label in labels if label != IGNORED_LABEL]
    if own and own[-1] == eos_token_id:
        own.pop()
    # Position s of a decoder-only model predicts token s + 1: nothing predicts the first.
    trained = labels if encoder_decoder else labels[1:]
    return bool(own) and any(label != IGNORED_LABEL for label in trained)


def options_have_tokens(row: Row) -> bool:
    """Tell whether every option of a question gave a token."""
    return all(row["options"])
