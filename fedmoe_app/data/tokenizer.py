"""Tokenizers: the embedded byte-level BPE for the presets, ``AutoTokenizer`` for all else.

The embedded one (byte-level BPE: Radford et al., 2019) is trained on the train and warm-up parts of
the embedded corpus. A text is encoded as ``<s> text </s>``. The vocabulary ends up with 3 special
tokens, ``LABEL_TOKENS`` label tokens (``<label_0>`` and so on, the answers when a preset
classifies by label words), 256 bytes, and merges.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fedmoe_app.config.errors import DataError
from fedmoe_app.config.files import build_once
from fedmoe_app.config.paths import cache_dir
from fedmoe_app.data.corpus import load_corpus, recipe_key

VOCAB_SIZE = 2048
LABEL_TOKENS = 256
PAD, BOS, EOS = "<pad>", "<s>", "</s>"

_RECIPE_VERSION = 1  # raise it whenever a change here changes the tokenizer


class TokenizerError(DataError):
    """A tokenizer that cannot be loaded; the message names the model and the choices."""


def label_token(index: int) -> str:
    """Return the embedded tokenizer's token for the class ``index``.

    Raises:
        TokenizerError: when there is no such token.
    """
    if not 0 <= index < LABEL_TOKENS:
        raise TokenizerError(
            f"class {index} has no label token: the presets' tokenizer has label tokens for "
            f'classes 0 to {LABEL_TOKENS - 1}; use head = "sequence" for more classes'
        )
    return f"<label_{index}>"


def load_tokenizer(model_name: str, presets: Collection[str]) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a preset, a local folder or a hub model.

    A tokenizer without a padding token pads with its end-of-sequence token; padding goes right.

    Args:
        model_name: ``model.name`` of the run config.
        presets: names of the presets, which all use the embedded tokenizer.

    Raises:
        TokenizerError: when ``model_name`` is not a preset and has no loadable tokenizer.
    """
    if model_name in presets:
        return embedded_tokenizer()
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise TokenizerError(
            f'model.name = "{model_name}": no tokenizer could be loaded ({reason}); '
            f"choose a preset ({', '.join(presets)}), a folder that save_pretrained wrote "
            "(model and tokenizer), or the name of a hub model"
        ) from error
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        # For a folder with a config alone transformers makes up an empty tokenizer.
        raise TokenizerError(
            f'model.name = "{model_name}": no tokenizer files; save the tokenizer into the same '
            "folder as the model"
        )
    return _with_padding(tokenizer, model_name)


def tokenizer_key(vocab_size: int = VOCAB_SIZE) -> str:
    """Return what changes whenever the embedded tokenizer would be another one."""
    return f"{recipe_key()}-{vocab_size}-{tokenizers.__version__}-{_RECIPE_VERSION}"


def embedded_tokenizer(vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerBase:
    """Return the embedded tokenizer, training it at the first call (about a second)."""

    def build(folder: Path) -> None:
        corpus = load_corpus()
        texts = [*corpus.train["text"], *corpus.warmup["text"]]
        train_tokenizer(texts, vocab_size).save_pretrained(folder)

    folder = build_once(cache_dir() / f"tokenizer-{tokenizer_key(vocab_size)}", build)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with the special and label tokens of this module.

    Args:
        texts: the training texts.
        vocab_size: upper bound of the vocabulary, special and label tokens included.
    """
    special = [PAD, BOS, EOS]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special + [label_token(index) for index in range(LABEL_TOKENS)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        special_tokens=[(token, bpe.token_to_id(token)) for token in (BOS, EOS)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, bos_token=BOS, eos_token=EOS, padding_side="right"
    )


def _with_padding(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise TokenizerError(
                f'model.name = "{name}": its tokenizer has neither a padding nor an '
                "end-of-sequence token; set pad_token in its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer
