"""A run's model put to use: classes of texts, a conversation, and the way to a hub."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from datasets import Dataset
from huggingface_hub.errors import LocalTokenNotFoundError

from fedmoe_app import ConfigError, load_run, run_in_process
from fedmoe_app.cli import main
from fedmoe_app.server.saved import open_trained
from tests.conftest import flat_config
from tests.homes import home_with_cache
from tests.toy import TOPICS, write_topics

Run = Callable[..., tuple[int, str, str]]


def train(folder: Path, **overrides: Any) -> Path:
    flat = flat_config(
        **{
            "num-server-rounds": 1,
            "output-dir": str(folder),
            "data.partition": "iid",
            "data.max-length": 32,
            "train.max-steps": 2,
            "diagnostics": False,
        }
        | overrides
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDMOE_HOME", str(home_with_cache(folder)))
        patch.setattr("fedmoe_app.report.plots.plot_run", lambda path: None)
        return run_in_process(flat, 2)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    source = {"data.source": str(write_topics(folder / "t.jsonl", 12)), "train.max-steps": 0}
    return train(folder, **source, **{"num-server-rounds": 3})


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talker")
    rows = [{"prompt": f"Say {i}.", "completion": f" {i}"} for i in range(12)]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return train(
        folder, **{"data.task": "causal-lm", "data.source": str(folder / "t.jsonl"),
                   "data.max-new-tokens": 4, "data.num-samples": 0}
    )  # fmt: skip


@pytest.fixture
def fedmoe(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str, typed: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedmoe", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as end:
            main.main()
        captured = capfd.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


def test_probabilities_are_those_of_the_model_in_the_run(classifier: Path) -> None:
    trained = open_trained(classifier)
    assert trained.label_names == tuple(sorted(TOPICS))
    texts = list(TOPICS.values())
    found = trained.probabilities(texts)
    assert found.shape == (4, 4)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(4))
    torch.testing.assert_close(found[2:], trained.probabilities(texts[2:]))  # padding changes none
    assert [trained.label_names[i] for i in found.argmax(dim=1)] == list(TOPICS)
    frame = load_run(classifier).predict(texts)
    assert list(frame.columns) == list(trained.label_names)
    assert frame.idxmax(axis=1).tolist() == list(TOPICS)


def test_a_text_without_a_token_keeps_its_line_and_has_no_class(
    classifier: Path, fedmoe: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = next(iter(TOPICS.values()))
    found = open_trained(classifier).probabilities(["", text, "  ", text])
    assert found.isnan().all(dim=1).tolist() == [True, False, True, False]
    torch.testing.assert_close(found[1:2], open_trained(classifier).probabilities([text]))
    torch.testing.assert_close(found[1], found[3])
    file = tmp_path / "new.csv"
    file.write_text(f'text\n{text}\n""\n')
    caplog.clear()
    code, out, _ = fedmoe("predict", str(classifier), "--file", str(file), "--json")
    assert code == 0
    first, second = map(json.loads, out.splitlines())
    assert first["label"] == next(iter(TOPICS))
    assert second == {"text": "", "label": None, "probabilities": None}
    (warning,) = caplog.messages
    assert warning.startswith("1 of 2 texts gave no token")


def test_a_text_stands_in_the_template_that_the_run_trained_with(tmp_path: Path) -> None:
    template = "{text} is about"
    run = train(
        tmp_path, **{"data.source": str(write_topics(tmp_path / "t.jsonl", 6)),
                     "data.template": template}
    )  # fmt: skip
    trained, (text, *_) = open_trained(run), TOPICS.values()
    (row,) = trained.task.encode(Dataset.from_dict({"text": [text], "label": [0]}))
    assert trained.tokenizer.decode(row["input_ids"], skip_special_tokens=True).endswith("is about")
    batch = trained.task.collate([row], trained.model.device)
    logits = trained.task.predict(trained.model, batch)[0]
    torch.testing.assert_close(trained.probabilities([text]), logits.detach().softmax(-1))


def test_texts_come_from_the_command_line_a_file_or_the_input(
    classifier: Path, fedmoe: Run, tmp_path: Path
) -> None:
    run, texts = str(classifier), list(TOPICS.values())
    (tmp_path / "lines.txt").write_text("\n".join(texts) + "\n\n")
    rows = [json.dumps({"text": text, "other": 1}) for text in texts]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    ways = [
        fedmoe("predict", run, *texts, "--json"),
        fedmoe("predict", run, "--json", typed="\n".join(texts)),
        fedmoe("predict", run, "-", "--json", typed="\n".join(texts)),
        fedmoe("predict", run, "--json", "--file", str(tmp_path / "lines.txt")),
        fedmoe("predict", run, "--json", "--file", str(tmp_path / "rows.jsonl")),
    ]
    assert len({out for _, out, _ in ways}) == 1
    found = [json.loads(line) for line in ways[0][1].splitlines()]
    assert [each["label"] for each in found] == list(TOPICS)
    assert [each["text"] for each in found] == texts
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    code, out, _ = fedmoe("predict", run, texts[0], "--top", "2")
    assert code == 0
    assert "sea" in out


def test_what_cannot_be_predicted_is_said(
    classifier: Path, talker: Path, fedmoe: Run, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text("body\nhello\n")
    for arguments, message in (
        ((str(talker), "hello"), "`fedmoe chat` is for it"),
        ((str(classifier), "hello", "--file", "x.txt"), "not both"),
        ((str(classifier), "--file", "missing.txt"), "there is no such file"),
        ((str(classifier), "--file", str(tmp_path / "rows.csv")), "text"),
        ((str(classifier),), "the input is empty"),
        (("no-such-run", "hello"), "no-such-run"),
    ):
        code, out, error = fedmoe("predict", *arguments)
        assert code in (1, 2)
        assert message in error
        assert out == ""


def test_a_conversation_is_streamed_and_remembered(talker: Path, fedmoe: Run) -> None:
    trained = open_trained(talker)
    first = trained.reply([{"role": "user", "content": "Say 3."}], 4)
    code, out, _ = fedmoe("chat", str(talker), "--message", "Say 3.", "--max-new-tokens", "4")
    assert code == 0
    assert out.strip() == first
    talk = [
        {"role": "user", "content": "Say 3."},
        {"role": "assistant", "content": first or "-"},
        {"role": "user", "content": "Say 4."},
    ]
    code, out, _ = fedmoe("chat", str(talker), typed="Say 3.\nSay 4.\n/new\nSay 3.\n\nnever\n")
    assert code == 0
    assert out.strip() == "\n".join([first, trained.reply(talk), first]).strip()
    with pytest.raises(ConfigError, match="`fedmoe chat` is for it"):
        trained.probabilities(["x"])


def test_chat_needs_a_language_model(classifier: Path, fedmoe: Run) -> None:
    code, _, error = fedmoe("chat", str(classifier), "--message", "hello")
    assert code == 2
    assert '`fedmoe chat` is for "causal-lm"' in error


class Hub:
    """A model hub that only notes what it is asked for."""

    asked: list[tuple[str, Any]] = []  # noqa: RUF012
    error: Exception | None = None

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> str:
        if self.error is not None:
            raise self.error
        self.asked.append(("create", (name, private, exist_ok)))
        return f"https://hub.test/{name}"

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.asked.append(("upload", (repo_id, sorted(p.name for p in folder_path.iterdir()))))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # put back afterwards: --online changes it
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "asked", [])
    monkeypatch.setattr(Hub, "error", None)
    return Hub


def test_a_dry_run_lists_what_a_push_would_send(
    classifier: Path, fedmoe: Run, hub: type[Hub]
) -> None:
    code, out, _ = fedmoe("push", str(classifier), "me/mine", "--dry-run")
    names = {line.split()[-1] for line in out.splitlines()[:-1]}
    assert code == 0
    assert names == {path.name for path in (classifier / "model").iterdir()}
    assert "README.md" in names  # the model card
    assert "to me/mine (private if it is new)" in out.splitlines()[-1]
    code, _, error = fedmoe("push", str(classifier), "me/mine")
    assert code == 2
    assert "a push needs --online" in error
    assert hub.asked == []
    code, out, _ = fedmoe("push", str(classifier), "me/mine", "--online")
    assert code == 0
    assert out.splitlines()[-1] == "https://hub.test/me/mine"
    assert hub.asked == [
        ("create", ("me/mine", True, True)),
        ("upload", ("me/mine", sorted(names))),
    ]


def test_a_push_that_cannot_be_is_said(
    classifier: Path, fedmoe: Run, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, message in (
        (("no name at all",), "no name of a repository, such as"),
        (("mine",), "whose repository? Name it such as my-name/mine"),
        (("me/mine", "--adapter"), "no adapter there"),
    ):
        code, _, error = fedmoe("push", str(classifier), *arguments, "--online")
        assert code in (1, 2)
        assert message in error
    monkeypatch.setattr(hub, "error", LocalTokenNotFoundError("no token"))
    code, _, error = fedmoe("push", str(classifier), "me/mine", "--online")
    assert code == 2
    assert "hf auth login" in error
    assert hub.asked == []
