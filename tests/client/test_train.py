"""The local loop: batches, seeds, frozen experts, thread and random state given back."""

from itertools import chain

import pytest
import torch

from fedmoe_app.client.train import micro_batches, num_steps, train_batches
from fedmoe_app.tasks.seeding import client_seed, one_client
from tests.conftest import make_config

ROWS = [{"input_ids": [i], "labels": 0} for i in range(10)]


def config(**overrides: float | int):  # noqa: ANN201
    return make_config(**{f"train.{k.replace('_', '-')}": v for k, v in overrides.items()}).train


def ids(batches) -> list[list[int]]:  # noqa: ANN001
    return [[row["input_ids"][0] for row in batch] for batch in batches]


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps"),
    [(1.0, 0, 3), (2.0, 0, 6), (0.5, 0, 2), (0.01, 0, 1), (9, 4, 4)],
)
def test_steps_of_a_round(epochs: float, max_steps: int, steps: int) -> None:
    chosen = config(num_train_epochs=epochs, max_steps=max_steps, per_device_train_batch_size=4)
    assert num_steps(10, chosen) == steps
    assert len(ids(train_batches(ROWS, chosen, seed=1))) == steps


def test_an_epoch_holds_every_example_once_in_a_new_order() -> None:
    chosen = config(num_train_epochs=2.0, per_device_train_batch_size=4)
    batches = ids(train_batches(ROWS, chosen, seed=1))
    first, second = list(chain(*batches[:3])), list(chain(*batches[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]


def test_accumulation_takes_several_batches_a_step() -> None:
    chosen = config(per_device_train_batch_size=2, gradient_accumulation_steps=3)
    steps = list(train_batches(ROWS, chosen, seed=1))
    assert num_steps(10, chosen) == len(steps) == 2
    assert [[len(part) for part in micro_batches(step, chosen)] for step in steps] == [
        [2, 2, 2],
        [2, 2],
    ]


def test_batches_depend_on_the_seed_only() -> None:
    chosen = config(per_device_train_batch_size=4)
    assert ids(train_batches(ROWS, chosen, 1)) == ids(train_batches(ROWS, chosen, 1))
    assert ids(train_batches(ROWS, chosen, 1)) != ids(train_batches(ROWS, chosen, 2))


def test_one_example_makes_one_batch() -> None:
    assert ids(train_batches(ROWS[:1], config(), seed=1)) == [[0]]


def test_client_seeds_differ_by_run_round_and_client() -> None:
    seeds = {client_seed(s, r, c) for s in range(3) for r in range(3) for c in range(3)}
    assert len(seeds) == 27
    assert client_seed(1, 2, 3) == client_seed(1, 2, 3)


def test_random_state_and_threads_are_given_back() -> None:
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with one_client(seed=1, threads=2):
        assert torch.get_num_threads() == 2
        inside = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    with one_client(seed=1, threads=2):
        assert torch.equal(torch.rand(3), inside)
