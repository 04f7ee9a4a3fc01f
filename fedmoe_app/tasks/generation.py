"""Greedy answers of a model to a batch of prompts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from fedmoe_app.config.errors import ConfigError


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    streamer: BaseStreamer | None = None,
) -> list[str]:
    """Return what the model says to each prompt: the most likely token at every step.

    Prompts are padded on the left, since a decoder-only model continues at the right end. A row
    ends at an end-of-sequence token, of the tokenizer or of the model. The key-value cache is used
    whatever the model's config says. A chat template may end answers with another token.

    Args:
        model: in eval mode.
        tokenizer: with a padding token.
        prompts: token ids, special tokens included; at least one.
        max_new_tokens: at most so many are generated.
        stop_ids: other tokens that end an answer.
        streamer: is given the tokens of a single prompt as they are made.
    """
    ids, mask = _pad_left(prompts, tokenizer.pad_token_id)  # [B, S]
    with _only(model, _greedy(model, tokenizer, max_new_tokens, stop_ids)) as settings:
        out = model.generate(  # type: ignore[operator]
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=settings,
            streamer=streamer,
        )
    encoder_decoder = model.config.is_encoder_decoder
    new = out if encoder_decoder else out[:, ids.shape[1] :]  # [B, T]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def check_generation_fits(
    model: PreTrainedModel, name: str, max_length: int, max_new_tokens: int
) -> None:
    """Refuse to generate beyond a decoder-only model's context.

    Raises:
        ConfigError: naming the two lengths and the context.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if model.config.is_encoder_decoder or not isinstance(context, int):
        return
    if max_length + max_new_tokens > context:
        raise ConfigError(
            f"data.max-length = {max_length} and data.max-new-tokens = {max_new_tokens}: together "
            f'more than the {context} tokens that model.name = "{name}" takes'
        )


def _pad_left(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    ids = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


@contextmanager
def _only(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[GenerationConfig]:
    """Keep a checkpoint's own settings (sampling, penalties) out: they would fill up the gaps."""
    before = model.generation_config
    model.generation_config = settings
    try:
        yield settings
    finally:
        model.generation_config = before


def _greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    stop_ids: Collection[int],
) -> GenerationConfig:
    """Return plain greedy search."""
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id, *stop_ids} - {None}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(ends) or None,
        bos_token_id=tokenizer.bos_token_id,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
    )
