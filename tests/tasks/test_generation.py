"""Greedy generation against an argmax loop without cache and padding."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from fedmoe_app import ConfigError
from fedmoe_app.data.tokenizer import embedded_tokenizer
from fedmoe_app.tasks.generation import check_generation_fits, generate
from tests.tasks.test_multiple_choice import PRESETS, model

TOKENIZER = embedded_tokenizer()
PROMPTS = [TOKENIZER(text).input_ids[:-1] for text in ("Return a", "A much longer text about the")]


@torch.no_grad()
def by_hand(net: PreTrainedModel, prompt: list[int], new_tokens: int, encoder_decoder: bool) -> str:
    ids = [net.config.decoder_start_token_id] if encoder_decoder else list(prompt)
    start = len(ids)
    for _ in range(new_tokens):
        if encoder_decoder:
            whole = torch.tensor([ids])
            out = net(input_ids=torch.tensor([prompt]), decoder_input_ids=whole)
        else:
            out = net(input_ids=torch.tensor([ids]))
        ids.append(int(out.logits[0, -1].argmax()))
        if ids[-1] == TOKENIZER.eos_token_id:
            break
    return TOKENIZER.decode(ids[start:], skip_special_tokens=True).strip()


@pytest.mark.parametrize(("preset", "encoder_decoder"), PRESETS)
def test_a_batch_is_answered_like_its_prompts_one_by_one(
    preset: str, encoder_decoder: bool
) -> None:
    net = model(preset)
    state = torch.get_rng_state()
    answers = generate(net, TOKENIZER, PROMPTS, max_new_tokens=6)
    assert answers == [by_hand(net, prompt, 6, encoder_decoder) for prompt in PROMPTS]
    assert torch.equal(torch.get_rng_state(), state)
    assert not net.config.use_cache


def test_a_checkpoints_own_settings_do_not_count() -> None:
    net = model("qwen3moe-tiny")
    plain = generate(net, TOKENIZER, PROMPTS, max_new_tokens=6)
    own = net.generation_config
    own.do_sample, own.temperature, own.repetition_penalty = True, 5.0, 3.0
    own.max_length, own.no_repeat_ngram_size = 3, 1
    assert generate(net, TOKENIZER, PROMPTS, max_new_tokens=6) == plain


def test_an_end_token_of_the_checkpoint_ends_the_answer() -> None:
    net = model("qwen3moe-tiny")
    first = int(net(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].argmax())
    net.generation_config.eos_token_id = [first]
    (answer,) = generate(net, TOKENIZER, PROMPTS[:1], max_new_tokens=6)
    assert answer == TOKENIZER.decode([first]).strip()


def test_generation_beyond_the_context_is_refused() -> None:
    net = model("qwen3moe-tiny")
    check_generation_fits(net, "some/model", 448, 64)
    with pytest.raises(ConfigError, match="max-length = 449 and data.max-new-tokens = 64: tog"):
        check_generation_fits(net, "some/model", 449, 64)
    check_generation_fits(model("switch-tiny"), "switch-tiny", 4096, 64)
