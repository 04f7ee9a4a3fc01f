"""``fedmoe carve``: a folder that plain transformers loads and a run trains, or a clear refusal."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from fedmoe_app import read_metrics, run_in_process
from fedmoe_app.cli.main import app
from fedmoe_app.config.errors import ConfigError, DataError
from fedmoe_app.moe.carve.base import Base, find_base
from fedmoe_app.moe.carve.folder import NOTE, Calibration, Made, carve_folder
from fedmoe_app.moe.carve.plan import Plan
from fedmoe_app.moe.carve.texts import batches_of, perplexity, read_texts, tokens_of
from fedmoe_app.moe.checkpoint import licence_of
from tests.bases import WORDS, word_tokenizer
from tests.conftest import flat_config
from tests.moe.carve.dense import save_dense

pytestmark = pytest.mark.usefixtures("no_pictures")

SPLIT = Plan(layers=2, experts=4, top_k=2, shared=16)


def write_texts(path: Path, count: int = 60) -> Path:
    """Different texts of 8 words each, so 10 tokens with both ends."""
    rows, random = [], Random(0)
    for i in range(count):
        words = random.choices(WORDS, k=8)
        rows.append(json.dumps({"text": " ".join(words), "more": f"night {i % 40}"}))
    path.write_text("\n".join(rows))
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts.jsonl")


def carved(tmp_path: Path, texts: Path, plan: Plan = SPLIT, **options: Any) -> Made:
    if not (tmp_path / "dense").exists():
        save_dense(tmp_path / "dense", "llama-tied")
    base = find_base(str(tmp_path / "dense"))
    calibration = Calibration(str(texts), max_length=16)
    return carve_folder(base, plan, calibration, tmp_path / "moe", **options)


def test_plain_transformers_loads_the_folder(tmp_path: Path, texts: Path) -> None:
    made = carved(tmp_path, texts)
    model, info = AutoModelForCausalLM.from_pretrained(made.folder, output_loading_info=True)
    assert not any(info.values())
    assert model.config.model_type == "qwen2_moe"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    held = batches_of(word_tokenizer(), read_texts(str(texts), "text", 0)[1], 16)
    assert perplexity(model.eval(), held) == pytest.approx(made.after)
    assert AutoTokenizer.from_pretrained(made.folder).pad_token_id == 0


def test_the_note_says_how_it_was_made(tmp_path: Path, texts: Path) -> None:
    save_dense(tmp_path / "dense", "llama-tied")
    (tmp_path / "dense" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    made = carved(tmp_path, texts)
    note = json.loads((made.folder / NOTE).read_text())
    assert note["base"]["name"] == "dense"
    assert note["base"]["licence"] == "apache-2.0"
    assert note["base"]["fingerprint"] == find_base(str(tmp_path / "dense")).fingerprint()
    assert note["fingerprint"] == Base(str(made.folder)).fingerprint() == made.fingerprint
    assert note["plan"]["method"] == "split"
    assert note["plan"]["shared"] == 16
    assert note["calibration"] == {
        "texts": "texts.jsonl",
        "text_field": "text",
        "tokens": 540,  # of 54 texts; the other six are held out
        "max_length": 16,
    }
    assert note["perplexity"] == {"before": made.before, "after": made.after}
    assert [layer["index"] for layer in note["layers"]] == [1, 2]
    assert licence_of(str(made.folder)) == "apache-2.0"  # for the models that runs make of it


def test_the_same_seed_gives_the_same_folder(tmp_path: Path, texts: Path) -> None:
    first = carved(tmp_path, texts).fingerprint
    (tmp_path / "moe").rename(tmp_path / "first")
    assert carved(tmp_path, texts).fingerprint == first


def test_a_copy_has_the_perplexity_of_the_dense_model(tmp_path: Path, texts: Path) -> None:
    made = carved(tmp_path, texts, Plan(method="copy", layers=0, experts=2))
    assert made.after == pytest.approx(made.before, rel=1e-5)
    assert made.reports == ()


def test_weights_are_saved_in_the_type_of_the_base_or_another(tmp_path: Path, texts: Path) -> None:
    save_dense(tmp_path / "dense", "llama").to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    for dtype, kind in (("auto", torch.bfloat16), ("float32", torch.float32)):
        folder = carved(tmp_path, texts, dtype=dtype).folder
        assert AutoModelForCausalLM.from_pretrained(folder).dtype == kind
        folder.rename(tmp_path / dtype)


def test_texts_are_held_out_and_cut(tmp_path: Path, texts: Path) -> None:
    fit, held = read_texts(str(texts), "text, more", seed=0)
    assert len(fit) == 54
    assert not set(fit) & set(held)
    assert all("\nnight" in text for text in fit)
    batches = batches_of(word_tokenizer(), fit, length=8, tokens=100)
    assert tokens_of(batches) == 104  # 13 texts of 8 tokens: the first 100 and the rest of a text


def test_perplexity_of_equal_logits_is_the_size_of_the_vocabulary(tmp_path: Path) -> None:
    model = save_dense(tmp_path, "llama")
    torch.nn.init.zeros_(model.lm_head.weight)
    batches = batches_of(word_tokenizer(), ["good day", "bad"], 16)
    assert perplexity(model, batches) == pytest.approx(model.config.vocab_size)


@pytest.mark.parametrize(
    ("plan", "count", "said"),
    [
        (SPLIT, 12, "110 calibration tokens are few for a refit: 20000 or more"),
        (SPLIT, 9, "80 calibration tokens are too few to refit 48 neurons"),
        (Plan(layers=1, experts=4, shared=0), 60, "without a shared expert a split model is far"),
    ],
)
def test_what_will_not_do_well_is_said_first(
    plan: Plan, count: int, said: str, tmp_path: Path
) -> None:
    lines: list[str] = []
    carved(tmp_path, write_texts(tmp_path / "texts.jsonl", count), plan, say=lines.append)
    assert any(line.startswith("warning: ") and said in line for line in lines), lines
    assert lines[0].startswith("warning: ")


def test_what_cannot_be_used_is_refused_and_nothing_is_left(tmp_path: Path, texts: Path) -> None:
    save_dense(tmp_path / "dense", "llama")
    refused: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ConfigError, "--dtype half: unknown; choose one of auto, float32", {"dtype": "half"}),
        (ConfigError, "--layers 9", {"plan": Plan(layers=9)}),
    ]
    for kind, message, options in refused:
        with pytest.raises(kind, match=message):
            carved(tmp_path, texts, **options)
    with pytest.raises(DataError, match="body"):
        read_texts(str(texts), "body", 0)
    (tmp_path / "moe").mkdir()
    with pytest.raises(ConfigError, match="is there already; choose another folder"):
        carved(tmp_path, texts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "moe", "texts.jsonl"]


def test_a_base_is_found_or_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: no such folder or file, and not a hub name"):
        find_base("nowhere")
    with pytest.raises(ConfigError, match="neither config.json nor a GGUF file"):
        find_base(str(tmp_path))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=r"choose one with --gguf-file: a.gguf, b.gguf"):
        find_base(str(tmp_path))
    with pytest.raises(ConfigError, match=r"c.gguf: not in .*; GGUF files there: a.gguf, b.gguf"):
        find_base(str(tmp_path), "c.gguf")
    assert find_base(str(tmp_path), "b.gguf") == Base(str(tmp_path), "b.gguf")
    assert find_base(str(tmp_path / "a.gguf")).title == "a.gguf"
    assert find_base("owner/model") == Base("owner/model")
    with pytest.raises(ConfigError, match=r"owner/model: holds no model .*; --online allows"):
        find_base("owner/model").config()
    with pytest.raises(ConfigError, match="is a file; name a model's folder"):
        find_base(__file__)


def test_a_quantised_base_is_refused(tmp_path: Path) -> None:
    save_dense(tmp_path, "llama")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"quantised \(gptq\); choose one in 16 or 32 bits"):
        find_base(str(tmp_path)).config()


def test_the_command_carves_and_inspect_knows_what_it_made(tmp_path: Path, texts: Path) -> None:
    save_dense(tmp_path / "dense", "qwen2")
    output = tmp_path / "moe"
    arguments = ["--output", output, "--layers", "all", "--experts", "4", "--texts", texts]
    done = CliRunner().invoke(app, ["carve", str(tmp_path / "dense"), *map(str, arguments)])
    assert done.exit_code == 0, done.output
    assert "perplexity of dense on held-out text: " in done.output
    assert "layer 2: relative error " in done.output
    assert "perplexity of the MoE model: " in done.output
    seen = CliRunner().invoke(app, ["inspect", str(output)])
    assert seen.exit_code == 0, seen.output
    assert "model.layers.2.mlp" in seen.output


def test_the_command_refuses_layers_that_are_no_number(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["carve", "x", "--output", str(tmp_path), "--layers", "some"])
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception) == "--layers some: give it a number of layers, or all"


@pytest.mark.parametrize("train", ["experts", "expert-lora"])
def test_a_run_trains_what_was_carved(train: str, tmp_path: Path) -> None:
    """One federated round in process, with the experts of the split."""
    texts = write_texts(tmp_path / "texts.jsonl")
    folder = carved(tmp_path, texts).folder
    rows = [
        {"text": f"{kind} day number {i % 40}", "label": kind}
        for i in range(20)
        for kind in ("good", "bad")
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    flat = flat_config(
        **{
            "num-server-rounds": 1,
            "output-dir": str(tmp_path / "results"),
            "model.name": str(folder),
            "model.train": train,
            "data.source": str(data),
            "data.test-source": str(data),
            "data.partition": "iid",
            "data.max-length": 8,
        }
    )
    metrics = read_metrics(run_in_process(flat, 2))
    assert [line["round"] for line in metrics] == [0, 1]
    assert metrics[1]["loss"] != metrics[0]["loss"]
