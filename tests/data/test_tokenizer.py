from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from transformers import Qwen3MoeConfig

from fedmoe_app.data import tokenizer as module
from fedmoe_app.data.corpus import Corpus, recipe_key
from fedmoe_app.data.tokenizer import (
    LABEL_TOKENS,
    VOCAB_SIZE,
    TokenizerError,
    embedded_tokenizer,
    label_token,
    load_tokenizer,
    tokenizer_key,
    train_tokenizer,
)

TEXTS = ["the cat sat on the mat", "the dog sat on the log"] * 5


def test_embedded_tokenizer(corpus: Corpus) -> None:
    tokenizer = load_tokenizer("some-tiny", ["some-tiny"])
    assert len(tokenizer) == VOCAB_SIZE
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.convert_tokens_to_ids(label_token(0)) == 3
    assert tokenizer.convert_tokens_to_ids(label_token(LABEL_TOKENS - 1)) == 2 + LABEL_TOKENS
    ids = tokenizer("Return a new array.")["input_ids"]
    assert (ids[0], ids[-1]) == (1, 2)
    # Known words are few tokens; a byte-level tokenizer without merges would need 19.
    assert len(ids) <= 9


def test_any_text_survives_the_round_trip(corpus: Corpus) -> None:
    tokenizer = embedded_tokenizer()
    text = "Grüße, 你好 \U0001f600 \t x_1 == 2"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_embedded_tokenizer_is_cached(corpus: Corpus, with_corpus: Path) -> None:
    before = embedded_tokenizer().get_vocab()
    folders = sorted((with_corpus / "cache").glob("tokenizer-*"))
    assert embedded_tokenizer().get_vocab() == before
    assert sorted((with_corpus / "cache").glob("tokenizer-*")) == folders


def test_the_key_tells_what_the_tokenizer_is_made_by(monkeypatch: pytest.MonkeyPatch) -> None:
    key = tokenizer_key()
    assert recipe_key() in key and tokenizers.__version__ in key
    assert tokenizer_key(1000) != key
    monkeypatch.setattr(module.tokenizers, "__version__", "0.0.1")
    assert tokenizer_key() != key


def test_training_is_deterministic() -> None:
    first, second = train_tokenizer(TEXTS, 530), train_tokenizer(TEXTS, 530)
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    # 3 special tokens, the label tokens, 256 bytes, and the merges that fit.
    assert len(first) == 530
    assert 3 + LABEL_TOKENS + 256 == 515


@pytest.mark.parametrize("index", [-1, LABEL_TOKENS])
def test_label_tokens_are_limited(index: int) -> None:
    with pytest.raises(TokenizerError, match=f"class {index}.*0 to 255"):
        label_token(index)


def test_a_local_folder_and_the_padding_fallback(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 530)
    tokenizer.pad_token = None
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = load_tokenizer(str(tmp_path / "saved"), ["some-tiny"])
    assert loaded.pad_token_id == loaded.eos_token_id == 2
    assert loaded.padding_side == "right"
    assert loaded("the cat")["input_ids"] == tokenizer("the cat")["input_ids"]


def test_a_tokenizer_that_cannot_pad_is_refused(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 530)
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "saved")
    with pytest.raises(TokenizerError, match="neither a padding nor an end-of-sequence token"):
        load_tokenizer(str(tmp_path / "saved"), ["some-tiny"])


def test_an_unknown_model_names_the_presets() -> None:
    with pytest.raises(TokenizerError, match=r'model.name = "no/such".*a-tiny, b-tiny.*folder'):
        load_tokenizer("no/such", ["a-tiny", "b-tiny"])


def test_a_folder_without_tokenizer_files_is_refused(tmp_path: Path) -> None:
    """transformers would make up a tokenizer that knows no word."""
    Qwen3MoeConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="no tokenizer files; save the tokenizer"):
        load_tokenizer(str(tmp_path), ["some-tiny"])
