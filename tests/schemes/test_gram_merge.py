"""Merging by diagonal Gram matrices: by hand, by identities, and the inputs that are measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedmoe_app import (
    Block,
    BlockUpdates,
    ConfigError,
    FedAvg,
    ModelState,
    PairRule,
    Reply,
    RoundInfo,
    make_scheme,
)
from fedmoe_app.aggregation.streaming import BlockSums
from fedmoe_app.client.inputs import InputSums, sums_of_inputs
from fedmoe_app.moe.training.trainable import Trainables
from fedmoe_app.schemes.grammerge import GRAM, GramMerge, GramShares, GramWeighted
from fedmoe_app.tasks.setup import load_setup
from tests.aggregation.test_store import updates
from tests.conftest import make_config
from tests.toy import assert_same, fold_toy, plan_of, toy_stats

W = Block("dense", "w")
Rows = Sequence[Sequence[float]]


def sent(client: int, change: Rows | None, gram: Sequence[float] = (), n: float = 1.0) -> Reply:
    """A reply with a linear map ``w`` ``[out, in]`` and the squares of its inputs."""
    dense = {} if change is None else {"w": torch.tensor(change)}
    statistics = {"GramDiagonal/w": torch.tensor(gram)} if gram else {}
    return Reply(client, n, 1.0, toy_stats([]), ModelState(dense=dense), statistics)


def merged(rule: GramWeighted, *replies: Reply) -> Any:
    sums = BlockSums()
    sums.add([rule.add(reply, W) for reply in replies])
    return rule.result(sums.named(), W)["w"].tolist()


def test_by_hand() -> None:
    # g = [4, 0] and [0, 8], n = 1 and 3: τ = 12/2 = 6, with ρ = 1: shares 1.5 and 4.5.
    # Column 0: ((4 + 1.5)·2 + 4.5·6)/(4 + 6); column 1: (1.5·4 + (8 + 4.5)·8)/(8 + 6).
    found = merged(
        GramWeighted(1.0), sent(0, [[2, 4.0]], [4, 0.0]), sent(1, [[6, 8.0]], [0, 8.0], 3)
    )
    assert found == [pytest.approx([3.8, 106 / 14])]


def test_disjoint_inputs_add_their_changes_up() -> None:
    found = merged(
        GramWeighted(1e-6), sent(0, [[2.0, 0.0]], [5, 0.0]), sent(1, [[0.0, 8]], [0, 5.0])
    )
    assert found == [pytest.approx([2.0, 8.0], rel=1e-5)]


def test_equal_grams_are_the_weighted_mean() -> None:
    generator = torch.Generator().manual_seed(5)
    changes, squares = torch.randn(3, 4, 6, generator=generator), torch.rand(6, generator=generator)
    n = [1.0, 5.0, 2.0]
    replies = [sent(i, changes[i].tolist(), (n[i] * squares).tolist(), n[i]) for i in range(len(n))]
    mean = sum(w / 8 * change for w, change in zip(n, changes, strict=True))
    for rho in (0.01, 1.0, 100.0):
        torch.testing.assert_close(torch.tensor(merged(GramWeighted(rho), *replies)), mean)


def test_what_the_clients_weigh_in_an_expert() -> None:
    # τ = 6, ρ = 1, w = ¼, ½ and ¼ of the one who did not train it: shares of 5.5/10 and
    # 1.5/14, 3/10 and 11/14 of the two inputs' totals 4 + 6 and 8 + 6.
    block = Block("expert", (0, 0))
    grams = [torch.tensor([4.0, 0.0]), torch.tensor([0.0, 8.0])]
    key = f"GramDiagonal/{block.name('up')}"
    replies = [
        Reply(i, n, 1.0, toy_stats([]), ModelState(), {key: grams[i]} if i < 2 else {})
        for i, n in enumerate([1.0, 2.0, 1.0])
    ]
    info = RoundInfo(1, torch.tensor([1.0, 2.0, 1.0]), torch.ones(3), ())
    updates = BlockUpdates(block, (0, 1), replies, {"up": torch.ones(1, 2)}, info, PairRule())
    found = GramShares().of_expert(updates, torch.ones(2))["expert_weights"]
    assert found.tolist() == pytest.approx([(0.55 + 1.5 / 14) / 2, (0.3 + 11 / 14) / 2])


def test_strong_shrinkage_is_fedavg() -> None:
    replies = [sent(0, [[2, 4.0]], [4, 0.0]), sent(1, [[6, 8.0]], [0, 8.0], 3), sent(2, None)]
    # The third client counts as unchanged: (2 + 18)/5, (4 + 24)/5.
    assert merged(GramWeighted(1e9), *replies) == [pytest.approx([4.0, 5.6])]


def test_a_map_that_no_token_reached_is_averaged() -> None:
    assert merged(GramWeighted(), sent(0, [[2.0]], [0.0]), sent(1, [[6.0]], [0.0])) == [[4.0]]


def test_tensors_without_inputs_are_fedavg_bit_for_bit() -> None:
    given = updates(seed=6)
    assert_same(fold_toy(GramMerge(), given), fold_toy(FedAvg(), given))


def test_the_order_of_clients_does_not_matter() -> None:
    replies = [sent(0, [[2, 4.0]], [4, 0.0]), sent(1, [[6, 8.0]], [1, 8.0], 3)]
    found = merged(GramWeighted(), *replies)
    assert merged(GramWeighted(), *reversed(replies)) == [pytest.approx(found[0])]


def test_a_shrinkage_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="grammerge: rho = 0: must be above 0"):
        make_scheme(make_config(**{"scheme": "grammerge", "scheme-args": '{"rho": 0}'}))


# -- what clients measure ----------------------------------------------------------------------


def test_a_token_counts_where_its_output_has_a_gradient() -> None:
    layer = nn.Linear(2, 3, bias=False)
    sums = InputSums([GRAM], {"w": layer.weight})
    layer.register_forward_hook(sums.note_module)
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [50.0, 60.0]]])  # [B, S, D]; the last is padding
    for _ in range(2):
        layer(x)[:, :2].sum().backward()
    with torch.no_grad():
        layer(x)
    assert sums.numbers()["GramDiagonal/w"].tolist() == [2 * 10.0, 2 * 20.0]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_forward_that_is_computed_twice_counts_once(reentrant: bool) -> None:
    layer = nn.Linear(2, 3, bias=False)
    sums = InputSums([GRAM], {"w": layer.weight})
    layer.register_forward_hook(sums.note_module)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    checkpoint(layer, x, use_reentrant=reentrant).sum().backward()  # type: ignore[no-untyped-call]
    assert sums.numbers()["GramDiagonal/w"].tolist() == [10.0, 20.0]


def test_what_is_frozen_is_not_measured() -> None:
    layer = nn.Linear(2, 3)
    sums = InputSums([GRAM], {"w": layer.weight})
    layer.register_forward_hook(sums.note_module)
    layer.weight.requires_grad_(False)
    layer(torch.ones(1, 2)).sum().backward()
    assert sums.numbers() == {}


@pytest.mark.parametrize("model", ["qwen3moe-tiny", "switch-tiny"])
@pytest.mark.parametrize("mode", ["all", "expert-lora"])
def test_padding_changes_nothing_and_experts_see_their_own_tokens(model: str, mode: str) -> None:
    """The gradient of a map is Σ g·xᵀ: a column without inputs has none."""
    config = make_config(**{"model.name": model, "model.train": mode})
    found: list[dict[str, Tensor]] = []
    for padding in (0, 3):
        torch.manual_seed(0)
        setup = load_setup(config, ["a", "b"])
        with (
            Trainables(setup.model, setup.layers) as trainables,
            sums_of_inputs(plan_of(GramMerge()), setup, trainables) as inputs,
        ):
            setup.model.eval()  # no dropout
            ids = [5, 6, 7]
            rows: list[Any] = [{"input_ids": ids, "labels": 0}]
            if padding:  # a longer text beside it, whose loss does not count
                rows.append({"input_ids": [9] * (len(ids) + padding), "labels": 1})
            batch = setup.task.collate(rows, setup.model.device)
            logits, labels = setup.task.predict(setup.model, batch)
            nn.functional.cross_entropy(logits[:1], labels[:1]).backward()
            parameters = trainables.named_parameters()
            reached = {k for k, p in parameters.items() if p.grad is not None and p.grad.any()}
        numbers = {k.removeprefix("GramDiagonal/"): t for k, t in inputs.numbers().items()}
        assert any(".experts." in key for key in numbers)
        assert not any(".gate." in key for key in numbers)
        for key, g in numbers.items():
            assert g.shape == parameters[key].shape[1:]
            if key in reached:
                assert g.any()
        # A first token's query has no gradient, or one of rounding: counted or not.
        found.append(
            {k: g for k, g in numbers.items() if g.any() and not re.search(r"\bq\b|q_proj", k)}
        )
    assert found[0].keys() == found[1].keys()
    for key, g in found[0].items():
        torch.testing.assert_close(g, found[1][key], rtol=1e-3, atol=1e-5, msg=key)


def test_nothing_is_measured_where_no_part_asks() -> None:
    setup = load_setup(make_config(), ["a", "b"])
    with (
        Trainables(setup.model, setup.layers) as trainables,
        sums_of_inputs(plan_of(FedAvg()), setup, trainables) as inputs,
    ):
        batch = setup.task.collate([{"input_ids": [5, 6], "labels": 0}], setup.model.device)
        setup.task.loss(setup.model, batch).backward()
    assert inputs.numbers() == {}
