"""Chat templates in the manner of those that models are published with, and their tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from fedmoe_app.data.tokenizer import train_tokenizer

SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
]

# Qwen2.5, SmolLM2: a system message of its own where there is none.
CHATML = (
    "{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)

# Qwen3: the last answer has a block of reasoning, earlier ones lose theirs.
THINKING = (
    "{%- for message in messages %}"
    "{%- set text = message.content.split('</think>')[-1].lstrip('\n') %}"
    "{%- set thought = message.content.split('</think>')[0].split('<think>')[-1].strip('\n')"
    " if '</think>' in message.content else '' %}"
    "{%- if message.role == 'assistant' and loop.last %}"
    "{{- '<|im_start|>assistant\n<think>\n' + thought + '\n</think>\n\n' + text + '<|im_end|>\n' }}"
    "{%- else %}"
    "{{- '<|im_start|>' + message.role + '\n' + text + '<|im_end|>\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)

# Llama 3.2: a beginning token and today's date; contents are trimmed.
DATED = (
    "{{- bos_token }}"
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}'
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string }}"
    "{%- if messages[0].role == 'system' %}{{- '\n\n' + messages[0].content | trim }}"
    "{%- set messages = messages[1:] %}{%- endif %}{{- '<|eot_id|>' }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
    "{{- message.content | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)

# Mistral 7B: no system messages, strict turns, no generation prompt, the end of sequence.
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)

# Gemma: the assistant is called model, system messages are refused.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

# SmolLM3 and TRL's training templates: the answers are marked.
MARKED = (
    "{%- for message in messages %}{%- if message.role == 'assistant' %}"
    "{{- '<|im_start|>assistant\n' }}"
    "{%- generation %}{{- message.content + '<|im_end|>\n' }}{%- endgeneration %}"
    "{%- else %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
MARKED_WITHOUT_END = MARKED.replace(
    "message.content + '<|im_end|>\n' }}{%- endgeneration %}",
    "message.content }}{%- endgeneration %}{{- '<|im_end|>\n' }}",
    1,
)

# Phi-3: any text is closed by the end of sequence, unless an answer is to follow.
CLOSED = (
    "{% for message in messages %}"
    "{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

# GLM-4: no token of its own ends a turn; the next turn's first token does.
OPEN = (
    "{% for message in messages %}"
    "{{ '<|' + message.role + '|>\n' + message.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

# DeepSeek-R1: the generation prompt opens a reasoning that the answers of the data do not have.
_PROMPT = "'<|im_start|>assistant\n' }}{%- endif %}"
REASONING = CHATML.replace(_PROMPT, _PROMPT.replace("assistant\n", "assistant\n<think>\n"))

# SmolVLM: contents are lists of parts.
PARTS = CHATML.replace(
    "message.content + '<|im_end|>\n' }}",
    "' }}{%- for part in message.content %}{%- if part.type == 'text' %}{{- part.text }}"
    "{%- endif %}{%- endfor %}{{- '<|im_end|>\n' }}",
).replace("message.role + '\n' + ' }}", "message.role + '\n' }}")


def chat_tokenizer(template: str | None, text: str = "abc", size: int = 515) -> Any:
    """One token a byte (without merges), and one for each special token."""
    tokenizer = train_tokenizer([text], size)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = template
    return tokenizer


def learnt(tokenizer: PreTrainedTokenizerBase, row: Any) -> list[str]:
    """The texts that a row has its loss on."""
    runs: list[list[int]] = []
    before = False
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        assert label in (-100, token)
        if label != -100 and not before:
            runs.append([])
        if label != -100:
            runs[-1].append(token)
        before = label != -100
    return [tokenizer.decode(run) for run in runs]


def messages(*turns: tuple[str, str] | str) -> list[dict[str, str]]:
    """Turns of user and assistant, one after the other; a pair gives its own role."""
    roles = ("user", "assistant")
    plain = [turn for turn in turns if isinstance(turn, str)]
    named = iter(zip((roles[i % 2] for i in range(len(plain))), plain, strict=True))
    pairs = [next(named) if isinstance(turn, str) else turn for turn in turns]
    return [{"role": role, "content": content} for role, content in pairs]


def batch(*conversations: Sequence[dict[str, str]], given: int = 0) -> dict[str, list[Any]]:
    """Uniform columns of conversations; they are rows 1, 2, ... of their file."""
    return {
        "messages": list(conversations),
        "num_given": [given] * len(conversations),
        "where": [f"row {number}" for number in range(1, len(conversations) + 1)],
    }
