"""fedmoe preview: what it says is learnt and cut, and user text that must not act."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from fedmoe_app import ConfigError, RunConfig, parse_run_config
from fedmoe_app.cli.preview import Preview, preview_of, print_preview
from tests.bases import save_base
from tests.conftest import flat_config
from tests.data import chat_templates as templates
from tests.data.chat_templates import messages

LM = {"data.task": "causal-lm", "data.partition": "iid", "data.max-length": 200}


def config(path: Path, rows: list[dict[str, Any]], **overrides: Any) -> RunConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return parse_run_config(flat_config(**LM | {"data.source": str(path)} | overrides))


def shown(preview: Preview, **options: Any) -> str:
    out = io.StringIO()
    print_preview(preview, Console(file=out, width=40, **options))
    return out.getvalue()


def test_instructions(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {i}.", "response": "Yes, yes, yes."} for i in range(5)]
    run = config(tmp_path / "a.jsonl", rows)
    preview = preview_of(run, 3)
    assert preview.formats == [f'{run.data.source}: instruction in "instruction", "response"']
    assert len(preview.examples) == 3
    text = shown(preview)
    assert "by data.prompt-format; at most 200 tokens" in text
    assert "<s>### Instruction:\nSay 2.\n\n### Response:\n⟦Yes, yes, yes.</s>⟧\n" in text
    first = preview.examples[0]
    assert f"example 1: {first.num_tokens} tokens, {first.num_learnt} learnt\n" in text
    assert (first.cut_front, first.cut_end) == (0, 0)
    short = run.model_copy(update={"data": run.data.model_copy(update={"max_length": 8})})
    (cut,) = preview_of(short, 1).examples
    room = 8 - 1  # the beginning token stays
    assert cut.num_tokens == 8
    assert cut.num_learnt == min(first.num_learnt, room - room // 4)
    assert cut.cut_end == first.num_learnt - cut.num_learnt
    assert cut.cut_front == first.num_tokens - 8 - cut.cut_end
    assert f"{cut.cut_front} cut from the beginning" in shown(preview_of(short, 1))


def test_conversations_by_a_template(tmp_path: Path) -> None:
    said = messages(("system", "S"), "one", "two", "three", "four", "bye")
    run = config(
        tmp_path / "a.jsonl",
        [{"messages": said}],
        **{"data.chat-template": templates.CHATML, "data.train-on": "last"},
    )
    preview = preview_of(run, 3)
    text = shown(preview)
    assert 'messages in "messages"' in text
    assert "by the chat template, learning the last answer (data.train-on)" in text
    assert "assistant\ntwo<|im_end|>\n" in text and "assistant\n⟦four" in text
    assert "(messages left out: 1, which are empty" in text
    (whole,) = preview.examples
    short = run.data.model_copy(update={"max_length": whole.num_tokens - 1})
    (cut,) = preview_of(run.model_copy(update={"data": short}), 1).examples
    assert cut.cut_front == whole.num_tokens - cut.num_tokens > 1 and cut.cut_end == 0


def test_plain_text_loses_its_end(tmp_path: Path) -> None:
    run = config(tmp_path / "a.jsonl", [{"text": "one two three " * 20}], **{"data.max-length": 9})
    (example,) = preview_of(run, 1).examples
    assert (example.num_tokens, example.num_learnt, example.cut_front) == (9, 8, 0)
    assert f"9 tokens, 8 learnt, {example.cut_end} cut from the end" in shown(preview_of(run, 1))


def test_classification(tmp_path: Path) -> None:
    rows = [{"text": "a b c d e f g h", "label": "[red]"}, {"text": "b", "label": "x"}]
    run = config(
        tmp_path / "a.jsonl", rows, **{"data.task": "classification", "data.max-length": 6}
    )
    text = shown(preview_of(run, 3))
    assert "6 tokens, 4 cut from the end\n" in text and "(learnt: class 0, [red])" in text
    assert "example 2" in text and "example 3" not in text


@pytest.mark.parametrize("preset", ["qwen3moe-tiny", "switch-tiny"])
def test_multiple_choice(tmp_path: Path, preset: str) -> None:
    rows = [{"question": "Wet?", "choices": ["sun", "sea"], "answerKey": "B"}]
    run = config(
        tmp_path / "a.jsonl", rows, **{"data.task": "multiple-choice", "model.name": preset}
    )
    text = shown(preview_of(run, 3))
    assert "Question: Wet?\nAnswer:" in text and "sea</s>⟧" in text
    assert "(other options: sun)" in text
    assert ("decoder:\n⟦sea" in text) == (preset == "switch-tiny")


def test_an_encoder_decoder_model(tmp_path: Path) -> None:
    rows = [{"messages": messages("one", "two", "three", "four")}]
    run = config(tmp_path / "a.jsonl", rows, **{"model.name": "switch-tiny"})
    text = shown(preview_of(run, 1))
    assert text.index("encoder:\n") < text.index("two</s>") < text.index("decoder:\n⟦four</s>⟧")


HOSTILE = "[bold]x[/bold] :smile: \x1b[31m \u202eevil \x07 ⟦y⟧ \x85"


@pytest.mark.parametrize("terminal", [False, True])
def test_user_text_is_literal(tmp_path: Path, terminal: bool) -> None:
    run = config(tmp_path / "a.jsonl", [{"prompt": "q", "completion": HOSTILE}])
    text = shown(preview_of(run, 1), force_terminal=terminal, color_system="standard")
    literal = "[bold]x[/bold] :smile: \\x1b[31m \\u202eevil \\x07 \\u27e6y\\u27e7 \\x85"
    assert literal in text
    for character in "\u202e\x07\x85":
        assert character not in text
    assert ("\x1b[1;32m" in text) is terminal
    assert ("⟦[bold]" in text) is not terminal


def test_no_color_wants_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    run = config(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a"}])
    text = shown(preview_of(run, 1), force_terminal=True)
    assert "q⟦a</s>⟧" in text and "\x1b[" not in text


def test_a_node_s_own_file(tmp_path: Path) -> None:
    nodes = {"data.source": "nodes"}
    run = config(tmp_path / "a.jsonl", [{"text": "Hello there"}], **nodes)
    with pytest.raises(ConfigError, match="--data-path FILE"):
        preview_of(run, 1)
    text = shown(preview_of(run, 1, tmp_path / "a.jsonl"))
    assert 'a.jsonl: text in "text"' in text and "<s>⟦Hello there</s>⟧" in text
    rows = [{"text": "Hello there", "label": "b"}]
    labels = {"data.task": "classification", "data.label-names": "a,b"}
    run = config(tmp_path / "b.jsonl", rows, **nodes | labels)
    assert "(learnt: class 1, b)" in shown(preview_of(run, 1, tmp_path / "b.jsonl"))
    run = config(tmp_path / "b.jsonl", rows, **nodes | {"data.task": "classification"})
    with pytest.raises(ConfigError, match="a node is told the classes"):
        preview_of(run, 1, tmp_path / "b.jsonl")


def test_no_weights_are_needed(tmp_path: Path) -> None:
    base = tmp_path / "base"
    save_base(base, "Qwen3Moe")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = templates.MISTRAL
    tokenizer.save_pretrained(base)
    for file in base.glob("*.safetensors"):
        file.unlink()
    rows = [{"messages": messages("good day", "yes")}]
    run = config(tmp_path / "a.jsonl", rows, **{"model.name": str(base)})
    text = shown(preview_of(run, 1))
    assert "by the chat template" in text and "⟦yes" in text


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedmoe_app.cli import main
    from tests.conftest import REPOSITORY

    monkeypatch.chdir(tmp_path)
    config(tmp_path / "chat.jsonl", [{"messages": messages("Hi", f"No {i}.")} for i in range(4)])
    (tmp_path / "own.jinja").write_text(templates.CHATML)
    given = 'data.task="causal-lm" data.partition="iid" data.source="chat.jsonl" '
    given += 'data.chat-template="own.jinja" data.max-length=200'
    words = ["fedmoe", "preview", "--app", str(REPOSITORY), "--examples", "2", "-c", given]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as end:
        main.main()
    out = capsys.readouterr().out
    assert not end.value.code
    assert "assistant\n⟦No 1.<|im_end|>" in out and "No 2." not in out
