"""Client-level differential privacy: what a round adds up, and the noise on it.

McMahan, Ramage, Talwar and Zhang, "Learning Differentially Private Recurrent Language Models",
ICLR 2018, arXiv:1710.06963, algorithm 1 with the constant denominator, for sparse experts. Each of
N registered clients is drawn by itself with chance q; v_i is all that it sends as one vector, 0
where it trained nothing, with ‖v_i‖ ≤ C:

    change = (Σ_i v_i + N(0, (z·C)²)) / (q·N)              on every value, trained by anyone or not

An expert whose clients are few moves little then: its sum is divided by q·N, too (``fixed``).
``counted`` lets each client send with its changes, in the same vector and under the same noise,
which experts it trained, so that the sum can be divided by a noisy count of them:

    v_i = [Δ_i, C/√K · flags_i]      ‖Δ_i‖ ≤ C, at most K flags, so ‖v_i‖ ≤ √2·C, noise √2·z·C
    expert e: noisy Σ Δ_e / (q·N·s_e)       s_e = noisy Σ flags_e · √K / (C·q·N), at least ``floor``

What is taken from the clients' own numbers beside these sums is nothing: no examples, no histogram.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.state import Tensors, expert_of
from fedmoe_app.privacy.accountant import noise_for
from fedmoe_app.privacy.randomness import OfSystem, Randomness
from fedmoe_app.schemes.average import LastModels, MovingAverage
from fedmoe_app.schemes.base import Plan
from fedmoe_app.schemes.equal import Equal
from fedmoe_app.schemes.fedmoe import MostUsed
from fedmoe_app.schemes.parts import ByExamples, Mean, Scaled, Server, Step, Summed
from fedmoe_app.schemes.views import Block, Now, Reply

LEAST_SHARE = 0.1  # of the clients: an expert that fewer trained is divided by this share of them
_DEVIATIONS = 3  # of the noisy count, below which it says nothing


@dataclass(frozen=True)
class ClientLevel:
    """The mechanism of one run.

    Attributes:
        clip: C.
        noise: z.
        rate: q.
        clients: N.
        delta: δ.
        counted: whether experts are divided by noisy counts.
        most_flags: K, experts of all layers that a client trains at most.
        limit: ε that may be spent; 0 for no limit.
    """

    clip: float
    noise: float
    rate: float
    clients: int
    delta: float
    counted: bool = False
    most_flags: int = 1
    limit: float = 0.0

    @classmethod
    def of(cls, config: RunConfig, plan: Plan, num_layers: int, num_experts: int) -> ClientLevel:
        """Build it from the run config.

        Raises:
            ConfigError: the scheme is none of sums of single clients, or no noise is enough.
        """
        own = config.privacy
        counted = own.dp == "counted"
        if fault := dp_fault(plan, counted):
            raise ConfigError(f'privacy.dp = "{own.dp}" with scheme = "{config.scheme}": {fault}')
        noise = own.dp_noise
        if not noise:
            try:
                noise = noise_for(
                    own.dp_epsilon, own.dp_sample_rate, config.num_server_rounds, own.dp_delta
                )
            except ValueError as error:
                raise ConfigError(f"privacy.dp-{error}; ask for more, or fewer rounds") from None
        select = plan.client.select
        of_layer = select.experts if isinstance(select, MostUsed) else num_experts
        return cls(
            own.dp_clip,
            noise,
            own.dp_sample_rate,
            own.dp_clients,
            own.dp_delta,
            counted,
            num_layers * min(of_layer, num_experts),
            own.dp_epsilon,
        )

    @property
    def expected(self) -> float:
        """q·N: clients of a round in the mean, and what sums are divided by."""
        return self.rate * self.clients

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on a sum in units of C."""
        return self.noise * (math.sqrt(2) if self.counted else 1.0)

    def ratio(self, num_values: int) -> float:
        """Return how long the noise of a mean change is, as a multiple of the longest change."""
        return self.deviation * math.sqrt(num_values) / self.expected

    def clients_for(self, num_values: int) -> int:
        """Return how many clients a ratio of 1 takes, with the same q and z."""
        return math.ceil(self.deviation * math.sqrt(num_values) / self.rate)


def dp_fault(plan: Plan, counted: bool = False) -> str:
    """Return why no noise on sums can make a scheme private, with the way out; or ""."""
    server = plan.server
    way_out = 'choose fedavg, fedprox, fedmoe or pflmoe, or privacy.dp = "none"'
    for slot in ("dense", "gates", "experts"):
        rule = getattr(server, slot)
        if type(rule) not in (Mean, Equal, ByExamples):
            return (
                f"its {slot} are combined by {type(rule).__name__}, which is no plain sum of what "
                f"single clients send; {way_out}"
            )
    if fault := choice_fault(plan):
        return f"{fault}; {way_out}"
    if apart := (*server.before, *server.refresh, *server.after):
        return (
            f"{type(apart[0]).__name__} takes sums of the clients' features, on which there is no "
            'noise; choose head.closed-form = "none"'
        )
    if server.assign is not None:
        return (
            f"{type(server.assign).__name__} reads numbers of single clients, on which there is no "
            f"noise; {way_out}"
        )
    if server.steps or plan.measured:
        part = type((*server.steps, *plan.measured)[0]).__name__
        return f"{part} reads numbers of single clients, on which there is no noise; {way_out}"
    if counted and not (isinstance(server.experts, Mean) and server.experts.over == "members"):
        return (
            "its experts are averaged over all clients, so that counts of trainers have no use; "
            'choose privacy.dp = "fixed", or scheme = "fedmoe"'
        )
    return ""


def choice_fault(plan: Plan) -> str:
    """Return which part of a scheme decides by what single clients sent, beside its sums; or "".

    Means of the global models read those alone, which are released anyway.
    """
    server = plan.server
    if chooses := [part for part in (server.admit, server.assign) if part is not None]:
        return f"{type(chooses[0]).__name__} decides by what single clients sent"
    for step in server.reported:
        if not isinstance(step, MovingAverage | LastModels):
            return f"{type(step).__name__} may read what single clients sent"
    return ""


def private_plan(plan: Plan, level: ClientLevel, randomness: Randomness | None = None) -> Plan:
    """Return the plan with sums that have constant denominators, and noise on them."""
    sums = Expected(level.expected)
    noised = Noised(level, randomness or OfSystem())
    own = Server(
        dense=sums, gates=sums, experts=sums, steps=(noised,), reported=plan.server.reported
    )
    return replace(plan, server=own)


@dataclass(frozen=True)
class Expected(Summed):
    """Σ_i Δ_i / n for a constant n, whoever sent anything."""

    number: float = 1.0

    def add(self, reply: Reply, block: Block) -> Mapping[str, Scaled | float]:
        """Add Δ_i/n."""
        change = reply.change(block) or {}
        return {name: Scaled(1 / self.number, tensor) for name, tensor in change.items()}

    def result(self, sums: Mapping[str, Any], block: Block) -> Tensors:
        """Return the sums."""
        return dict(sums)


@dataclass(frozen=True)
class Noised(Step):
    """Noise on every value of the model, also on what nobody trained: an exact 0 would tell.

    Attributes:
        level: the mechanism.
        randomness: where the noise comes from.
    """

    level: ClientLevel
    randomness: Randomness

    def step(self, now: Now, state: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
        """Return the noised change, rounded from float64."""
        shares = self._shares(now) if self.level.counted else None
        scale = self.level.deviation * self.level.clip / self.level.expected
        noised: Tensors = {}
        for name, tensor in now.change.items():
            noise = torch.from_numpy(self.randomness.normal(tensor.numel())).view(tensor.shape)
            value = tensor.double().cpu() + scale * noise
            key = expert_of(name)
            if shares is not None and key is not None:
                value /= float(shares[key])
            noised[name] = value.to(tensor)
        return noised, {}

    def _shares(self, now: Now) -> np.ndarray:
        """Return the noisy share of the expected clients that trained each expert, ``[L, E]``."""
        level = self.level
        experts = [key for name in now.values if (key := expert_of(name)) is not None]
        shape = tuple(1 + max(axis) for axis in zip(*experts, strict=True))
        flags = np.zeros(shape)
        for routing in now.info.routing:
            own = (routing.trained > 0).double().numpy()  # [L, E]
            # A client with more flags than it may have is cut like any other vector.
            flags += own / math.sqrt(max(level.most_flags, own.sum()))
        noise = self.randomness.normal(flags.size).reshape(shape)
        unit = math.sqrt(level.most_flags) / level.expected
        floor = max(LEAST_SHARE, _DEVIATIONS * level.deviation * unit)
        shares: np.ndarray = np.clip((flags + level.deviation * noise) * unit, min(1, floor), 1)
        return shares
