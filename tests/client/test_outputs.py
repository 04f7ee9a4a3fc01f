"""What the parts of a loss see of a model's outputs: the right features, counts and teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from fedmoe_app import (
    Client,
    FeatureTerm,
    LocalStep,
    ModelShape,
    OutputTerm,
    Scheme,
    TaskLoss,
    TeacherTerm,
)
from fedmoe_app.client.outputs import FeatureTap, all_labels, received_logits, sums_of_outputs
from fedmoe_app.data.encoding import Row
from fedmoe_app.moe.training.adapt import classification_head
from fedmoe_app.schemes.closedhead import FeatureSums
from fedmoe_app.tasks.setup import Setup, load_setup
from tests.conftest import make_config
from tests.invariant.runs import GoldenRun, make_material, run_golden

LABELS = ("a", "b", "c")
ROWS: list[Row] = [
    {"input_ids": [5, 6, 7, 8], "labels": 0},
    {"input_ids": [9, 5], "labels": 2},
    {"input_ids": [6, 6, 9], "labels": 2},
]


def setup_of(name: str, head: str) -> Setup:
    return load_setup(make_config(**{"model.name": name, "model.head": head}), LABELS)


@pytest.mark.parametrize(
    ("name", "head"),
    [("qwen3moe-tiny", "sequence"), ("olmoe-tiny", "label-words"), ("switch-tiny", "label-words")],
)
def test_the_head_makes_the_logits_of_the_features(name: str, head: str) -> None:
    setup = setup_of(name, head)
    model: Any = setup.model.eval()
    batch = setup.task.collate(ROWS, model.device)
    with FeatureTap(model) as tap, torch.no_grad():
        logits, _ = setup.task.predict(model, batch)
        features = tap.of(batch)
        assert features.shape == (3, model.config.get_text_config().hidden_size)
        if head == "sequence":
            found = model.get_submodule(classification_head(model))(features)
        else:
            found = model.get_output_embeddings()(features)[:, setup.task.label_ids]
    torch.testing.assert_close(found, logits)
    assert (setup.shape.head != "") == (head == "sequence")


def test_sums_do_not_depend_on_the_batches() -> None:
    setup = setup_of("qwen3moe-tiny", "sequence")
    statistics = [FeatureSums(setup.shape.head)]
    one = sums_of_outputs(setup.model, setup.task, ROWS, 1, statistics)
    all_at_once = sums_of_outputs(setup.model, setup.task, ROWS, 3, statistics)
    assert one["FeatureSums/counts"].tolist() == [1.0, 0.0, 2.0]
    for name, total in one.items():
        torch.testing.assert_close(total, all_at_once[name], rtol=1e-4, atol=1e-5)


def test_the_teacher_is_the_model_as_it_is_in_eval_mode() -> None:
    setup = setup_of("qwen3moe-tiny", "sequence")
    teacher = received_logits(setup.model, setup.task, ROWS, 2)
    with torch.no_grad():
        batch = setup.task.collate(ROWS, setup.model.device)
        logits, _ = setup.task.predict(setup.model.eval(), batch)
    torch.testing.assert_close(teacher, logits)


def test_labels_are_those_that_are_learnt() -> None:
    assert all_labels(ROWS, encoder_decoder=False).tolist() == [0, 2, 2]
    tokens: list[Row] = [{"input_ids": [4, 5, 6], "labels": [4, -100, 6]}]
    assert all_labels(tokens, encoder_decoder=False).tolist() == [6]  # nothing predicts the first
    assert all_labels(tokens, encoder_decoder=True).tolist() == [4, 6]


# -- in whole runs -----------------------------------------------------------------------------


class Plain(TaskLoss):
    """The task's own loss."""

    def loss(self, step: LocalStep) -> Tensor:
        return F.cross_entropy(step.logits, step.labels)


class Looks(TeacherTerm, FeatureTerm):
    """Reads all there is, checks that it fits together, and adds nothing."""

    def loss(self, step: LocalStep) -> Tensor | None:
        items, classes = step.logits.shape
        assert step.labels.shape == (items,)
        assert step.teacher.shape == (items, classes)
        assert len(step.features) == items
        assert step.label_counts.shape == (classes,)
        assert step.label_counts[step.labels].min() >= 1
        return None


class Trusts(OutputTerm):
    """Counts label 0 as 1 at most: every client's loss moves."""

    def loss(self, step: LocalStep) -> Tensor | None:
        return 0.1 * step.logits.square().mean()


@dataclass(frozen=True)
class Watching(Scheme):
    """FedAvg, said in the parts of a loss."""

    moves: bool = False

    def client(self, model: ModelShape) -> Client:
        return Client(loss=Plain(), terms=(Looks(), *((Trusts(),) if self.moves else ())))


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


def final(material: Path, folder: Path, **config: Any) -> dict[str, Tensor]:
    folder.mkdir()
    results = run_golden(GoldenRun(config), material, folder)
    newest: Sequence[Path] = sorted((results / "checkpoints").iterdir())
    return load_file(newest[-1] / "state.safetensors")


def test_a_loss_that_is_the_tasks_own_is_fedavg_bit_for_bit(material: Path, tmp_path: Path) -> None:
    more = {"train.per-device-train-batch-size": 2, "train.gradient-accumulation-steps": 2}
    fedavg = final(material, tmp_path / "fedavg", scheme="fedavg", **more)
    name = f"{__name__}:Watching"
    watching = final(material, tmp_path / "watching", scheme=name, **more)
    assert watching.keys() == fedavg.keys()
    assert all(torch.equal(watching[key], fedavg[key]) for key in fedavg)
    moved = final(
        material, tmp_path / "moved", **{"scheme": name, "scheme-args": '{"moves": true}'}, **more
    )
    assert any(not torch.equal(moved[key], fedavg[key]) for key in fedavg)
