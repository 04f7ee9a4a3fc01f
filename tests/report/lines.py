"""Synthetic metrics lines with the diagnostics of the schemes, shaped as a run writes them."""

from __future__ import annotations

from typing import Any

import numpy as np

Line = dict[str, Any]


def start() -> Line:
    return {"round": 0, "status": "ok", "clients": [], "routing": {"count": []}}


def failed(number: int) -> Line:
    return start() | {"round": number, "status": "failed"}


def plain(number: int, clients: int = 2) -> Line:
    """A round of a scheme without diagnostics."""
    each = [{"client": index, "num_steps": 4} for index in range(clients)]
    return {"round": number, "status": "ok", "clients": each, "diagnostics": {}}


def nulls(values: np.ndarray) -> Any:
    """Nested lists with null for nan. An expert ``[L, E]`` without any number is one null."""
    return [[_expert(expert) for expert in layer] for layer in values]


def _expert(values: np.ndarray) -> Any:
    return None if np.isnan(values).all() else _lists(values)


def _lists(values: np.ndarray) -> Any:
    if values.ndim == 0:
        return None if np.isnan(values) else float(values)
    return [_lists(part) for part in values]


def run(rounds: int, clients: int, layers: int, experts: int, **options: Any) -> list[Line]:
    """A run with every diagnostic; ``options`` go to :func:`full`."""
    numbers = range(1, rounds + 1)
    return [start(), *(full(number, clients, layers, experts, **options) for number in numbers)]


def full(
    number: int,
    clients: int,
    layers: int,
    experts: int,
    *,
    untrained: float = 0.0,
    matrices: bool = True,
) -> Line:
    """A round in which clients route unevenly, and get closer to each other over the rounds.

    ``untrained`` is the share of (client, expert) pairs without training.
    """
    random = np.random.default_rng([7, number])
    taste = np.random.default_rng(7).gamma(0.6, 1.0, (layers, clients, experts)) + 0.02
    taste = taste * random.uniform(0.8, 1.2, taste.shape)
    prob = taste / taste.sum(axis=2, keepdims=True)  # [L, N, E]
    trained = random.random((layers, clients, experts)) >= untrained
    budget = [None if index % 4 == 3 else 1 + index % experts for index in range(clients)]
    each = [_client(index, number, budget[index], random) for index in range(clients)]
    return {
        "round": number,
        "status": "ok",
        "clients": each,
        "routing": _routing(prob, trained, each),
        "diagnostics": _fcmoe(prob, trained, random, number)
        | _weights(prob, trained)
        | _gates(prob)
        | _pairs(prob, trained, random, number, matrices),
    }


def _client(index: int, number: int, budget: int | None, random: np.random.Generator) -> Line:
    ratio = None if budget is None else min(1.0, 0.5 + 0.03 * number + 0.2 * random.random())
    return {
        "client": index,
        "num_steps": 12 + index % 5,
        "expert_budget": budget,
        "selection_ratio": ratio,
    }


def _routing(prob: np.ndarray, trained: np.ndarray, clients: list[Line]) -> Line:
    steps = np.array([client["num_steps"] for client in clients])[None, :, None]
    share = np.clip(prob * prob.shape[2] / 1.5, 0, 1) * trained
    return {
        "count": np.round(1000 * prob).astype(int).transpose(1, 0, 2).tolist(),
        "trained": np.round(steps * share).astype(int).transpose(1, 0, 2).tolist(),
    }


def _fcmoe(prob: np.ndarray, trained: np.ndarray, random: np.random.Generator, number: int) -> Line:
    shape = (prob.shape[0], prob.shape[2])
    conflict = np.round(random.beta(2, 5 + number, shape) * prob.shape[1]) / prob.shape[1]
    conflict = np.where(trained.any(axis=1), conflict, np.nan)
    return {"conflict": nulls(conflict), "kappa": nulls(conflict * random.uniform(0, 0.3, shape))}


def _weights(prob: np.ndarray, trained: np.ndarray) -> Line:
    weights = np.where(trained, prob, 0)
    weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
    return {"expert_weights": nulls(np.where(trained, weights, np.nan).transpose(0, 2, 1))}


def _gates(prob: np.ndarray) -> Line:
    score = prob**1.5
    omega = score / score.sum(axis=1, keepdims=True)  # [L, N, E]
    reference = (omega * prob).sum(axis=1)
    reference /= reference.sum(axis=1, keepdims=True)
    return {
        "omega": nulls(omega),
        "omega_entropy": nulls(-(omega * np.log(omega)).sum(axis=1)),
        "gate_weights": nulls(_alpha(prob)),
        "reference": nulls(reference),
        "reference_distance": nulls(np.abs(prob - reference[:, None]).sum(axis=2) / 2),
    }


def _alpha(prob: np.ndarray) -> np.ndarray:
    """HFedMoE's α ``[L, N]``: more for a client with a narrow taste."""
    preference = (prob**2).sum(axis=2)
    return preference / preference.sum(axis=1, keepdims=True)


def _pairs(
    prob: np.ndarray, trained: np.ndarray, random: np.random.Generator, number: int, matrices: bool
) -> Line:
    both = trained.transpose(0, 2, 1)  # [L, E, N]
    both = both[..., :, None] & both[..., None, :]  # [L, E, N, N]
    similarity = _cosines(random, both, prob.shape[1] // 2 + 1, 0.3 + 0.05 * number)
    agreement = _cosines(random, both, 12, 0.15)
    different = both & ~np.eye(prob.shape[1], dtype=bool)
    result = {"threshold": nulls(_mean(similarity, both) - 0.2)}
    for name, values in (("similarity", similarity), ("agreement", agreement)):
        result[f"{name}_mean"] = nulls(_mean(values, different))
        if matrices:
            result[name] = nulls(values)
    return result


def _cosines(random: np.random.Generator, both: np.ndarray, size: int, shared: float) -> np.ndarray:
    vectors = random.normal(size=(*both.shape[:3], size)) + shared * random.normal(
        size=(*both.shape[:2], 1, size)
    )
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(both, vectors @ vectors.swapaxes(-1, -2), np.nan)


def _mean(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    count = mask.sum(axis=(2, 3))
    total = np.where(mask, values, 0).sum(axis=(2, 3))
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
