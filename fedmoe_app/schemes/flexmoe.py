"""FLEX-MoE: the server assigns experts to clients, by fitness and with balanced load.

Zhang et al., "FLEX-MoE: Federated Mixture-of-Experts with Load-balanced Expert Assignment", 2025,
arXiv:2512.23070. Clients cannot train all experts, and if each trains those that it likes best, a
few experts are trained by all and others by nobody. So the server keeps a fitness of each client
and expert from what the clients' training tells it, and solves, layer by layer,

    max Σ_i Σ_e x_i(e)·f_i(e)    with    Σ_e x_i(e) = C_i             the client's budget
                                         low ≤ Σ_i x_i(e) ≤ high      balanced load
    f_i ← β·f_i + (1−β)·prob_i
    low = ⌊(1−s)·Σ C_i / E⌋,  high = ⌈(1+s)·Σ C_i / E⌉

with x_i(e) whether client i trains expert e and prob_i(e) the mean router probability of its
tokens. An expert is averaged by n_i over those that trained it.

From the paper: a fitness of clients and experts by training feedback (use, loss and accuracy an
expert), assignment by the server at the start of a round through an optimisation that holds
budgets and keeps the load of experts even. Its formulas of the fitness and of the optimisation
were not at hand: those here are ours, and so is the first round, in which clients choose the
experts that they use most. The program is a transportation problem, whose solution HiGHS finds
exactly. Where a node holds chosen experts only, its router knows no others: prob then only divides
the fitness of the experts that it held anew among these, and the others keep theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import Tensors
from fedmoe_app.schemes.base import Run, Scheme
from fedmoe_app.schemes.fedmoe import MostUsed
from fedmoe_app.schemes.parts import Assign, Client, Mean, Server
from fedmoe_app.schemes.ranges import decay, in_range, whole
from fedmoe_app.schemes.views import Reply

BUILT_IN = {"flexmoe": "FlexMoE"}

_FITNESS, _BUDGET = "fitness.", "budget."


def balanced_assignment(fitness: Tensor, budgets: Sequence[int], slack: float) -> Tensor:
    """Return which client trains which expert of a layer, ``[N, E]`` bool: the best in bounds.

    Args:
        fitness: f_i(e), ``[N, E]``.
        budgets: C_i, 1 to E each.
        slack: s ≥ 0; 0 lets the loads of two experts differ by one client at most.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # clients need none of it
    from scipy.sparse import eye_array, kron

    clients, experts = fitness.shape
    mean = sum(budgets) / experts
    low = max(0, math.floor((1 - slack) * mean))
    high = min(clients, math.ceil((1 + slack) * mean))
    of_client = kron(eye_array(clients), np.ones((1, experts)))  # x as [N·E]
    of_expert = kron(np.ones((1, clients)), eye_array(experts))
    found = milp(
        -fitness.double().flatten().numpy(),
        integrality=np.ones(clients * experts),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(of_client, budgets, budgets),
            LinearConstraint(of_expert, low, high),
        ],
    )
    if found.x is None:  # there always is one: budgets are at most E, and high is at least the mean
        raise ValueError(f"no assignment of {budgets} among {experts} experts: {found.message}")
    return torch.from_numpy(found.x.round()).bool().view(clients, experts)


def renewed_fitness(fitness: Tensor, prob: Tensor, decay: float) -> Tensor:
    """Return f_i after a round.

    Args:
        fitness: before it, ``[L, E]``.
        prob: mean router probability, ``[L, E]``; 0 of an expert that the node did not hold.
        decay: β.
    """
    held = prob > 0
    mass = (fitness * held).sum(dim=1, keepdim=True)  # 1 where all are held
    share = prob / prob.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return torch.where(held, decay * fitness + (1 - decay) * mass * share, fitness)


@dataclass(frozen=True)
class BalancedFitness(Assign):
    """Assigns by fitness within bounds on the load of each expert.

    Attributes:
        decay: β.
        slack: s.
    """

    decay: float = 0.5
    slack: float = 0.0

    def assign(
        self, replies: Sequence[Reply], state: Mapping[str, Tensor]
    ) -> tuple[Mapping[int, Tensor], Tensors]:
        """Renew the fitness of who replied, and assign experts to all clients known so far."""
        state = dict(state)
        for reply in replies:
            name, prob = f"{_FITNESS}{reply.client}", reply.routing.prob.float()  # [L, E]
            fitness = state.get(name, torch.full_like(prob, 1 / prob.shape[1]))
            state[name] = renewed_fitness(fitness, prob, self.decay)
            state[f"{_BUDGET}{reply.client}"] = torch.tensor(reply.expert_budget)
        names = [name for name in state if name.startswith(_FITNESS)]
        clients = sorted(int(name.removeprefix(_FITNESS)) for name in names)
        budgets = [int(state[f"{_BUDGET}{client}"]) for client in clients]
        fitness = torch.stack([state[f"{_FITNESS}{client}"] for client in clients], dim=1)
        by_layer = [balanced_assignment(row, budgets, self.slack) for row in fitness]  # L of [N, E]
        return dict(zip(clients, torch.stack(by_layer, dim=1), strict=True)), state


@dataclass(frozen=True)
class FlexMoE(Scheme):
    """Assignment by fitness with balanced load.

    Attributes:
        experts: C, experts a layer that a client trains; a node's ``expert-budget`` may be smaller.
        usage_examples: local examples on which the first round's choice is made.
        decay: β of the fitness.
        slack: s, by which an expert's load may differ from the mean, as a share.
    """

    experts: int = 4
    usage_examples: int = 256
    decay: float = 0.5
    slack: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        whole("flexmoe", experts=self.experts, usage_examples=self.usage_examples)
        in_range("flexmoe", usage_examples=(self.usage_examples, 1, 10**9))
        in_range("flexmoe", slack=(self.slack, 0, 1e9))
        decay("flexmoe", decay=self.decay)

    def check(self, run: Run) -> Sequence[str]:
        """Refuse more experts than a layer has."""
        most = run.model.num_experts
        if not 1 <= self.experts <= most:
            raise ConfigError(
                f"flexmoe: experts = {self.experts}: the model has {most} experts a layer; choose "
                f"1 to {most}"
            )
        return ()

    def client(self, model: ModelShape) -> Client:
        """Train the most used experts until the server has assigned others."""
        return Client(select=MostUsed(self.experts, self.usage_examples))

    def server(self, model: ModelShape) -> Server:
        """Assign experts, and average each over those that trained it."""
        return Server(experts=Mean("members"), assign=BalancedFitness(self.decay, self.slack))
