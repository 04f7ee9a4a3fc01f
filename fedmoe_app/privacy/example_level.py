"""Example-level differential privacy at a client: DP-SGD, and what a round of it spends.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, arXiv:1607.00133, algorithm 1. In
each of T steps a round every example of the client is drawn by itself with chance q; the gradient
of each drawn one is cut to the norm C over all that is trained, and

    gradient = (Σ_drawn g·min(1, C/‖g‖) + N(0, (z·C)²)) / B      on every value, reached or not

with a constant B. Neighbours differ by one example, added or removed; T steps of R rounds are R·T
releases of the sampled Gaussian (:mod:`fedmoe_app.privacy.accountant`). q, T and B stand in the run
config and never depend on how many examples there are.

What else a client would tell of its examples is not noised, so it stays on the node: their number,
the routing histogram, losses, scores, seconds. Whatever a scheme makes of the noised changes and of
the global model costs nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.privacy.accountant import ORDERS, epsilon, noise_for, rdp
from fedmoe_app.schemes.base import Plan
from fedmoe_app.schemes.equal import Equal
from fedmoe_app.schemes.parts import ByExamples, Keeps, Mean, WeightTerm
from fedmoe_app.schemes.robust import CentredClip, NearMost, Trimmed

_RULES = (Mean, Equal, ByExamples, Trimmed, NearMost, CentredClip)


@dataclass(frozen=True)
class ExampleLevel:
    """The mechanism of one run, the same on all its clients.

    Attributes:
        clip: C.
        noise: z.
        rate: q.
        steps: T.
        rounds: R.
        delta: δ.
    """

    clip: float
    noise: float
    rate: float
    steps: int
    rounds: int
    delta: float

    @classmethod
    def of(cls, config: RunConfig) -> ExampleLevel | None:
        """Build it from the run config; None where the run has none.

        Raises:
            ConfigError: no noise is enough for the ε that is asked for, or that given spends more.
        """
        own, steps, rounds = config.privacy, config.train.max_steps, config.num_server_rounds
        if not own.example_dp:
            return None
        noise = own.example_noise
        if not noise:
            try:
                noise = noise_for(
                    own.example_epsilon, own.example_rate, rounds * steps, own.example_delta
                )
            except ValueError as error:
                raise ConfigError(
                    f"privacy.example-{error}; ask for more, or fewer steps"
                ) from None
        elif own.example_epsilon:
            whole = epsilon(own.example_rate, noise, rounds * steps, own.example_delta)
            if whole > own.example_epsilon:
                raise ConfigError(
                    f"privacy.example-noise = {noise:g} spends epsilon {whole:.3g} in {rounds} "
                    f"rounds of {steps} steps, more than privacy.example-epsilon = "
                    f"{own.example_epsilon:g}; leave out one of them"
                )
        return cls(own.example_clip, noise, own.example_rate, steps, rounds, own.example_delta)

    def spent(self, rounds: int = 1) -> list[float]:
        """Return the Rényi divergence that so many rounds spend, one number an order."""
        return [rounds * self.steps * rdp(self.rate, self.noise, order) for order in ORDERS]

    def at_most(self, rounds: int) -> dict[str, float | int]:
        """Return what so many rounds spend of a node's examples at most, by the run's settings.

        A node that was left out of some has spent less; one that was asked for a round again, such
        as after a crash of the server, has spent that one twice, as its own ledger says.

        Args:
            rounds: that clients were asked to train in.

        Returns:
            ``epsilon`` of one node, ``delta``, ``rounds``, ``noise_multiplier`` z, ``rate`` q and
            ``steps`` a round.
        """
        return {
            "epsilon": round(epsilon(self.rate, self.noise, rounds * self.steps, self.delta), 4),
            "delta": self.delta,
            "rounds": rounds,
            "noise_multiplier": round(self.noise, 6),
            "rate": self.rate,
            "steps": self.steps,
        }

    def said(self) -> str:
        """Return one line on what the whole run spends of a node's examples."""
        whole = epsilon(self.rate, self.noise, self.rounds * self.steps, self.delta)
        return (
            f"privacy of examples: noise multiplier {self.noise:.4g}, clip {self.clip:g}, "
            f"{self.rounds} rounds of {self.steps} steps at rate {self.rate:g} spend epsilon "
            f"{whole:.3g} at delta {self.delta:g} on each client that takes part in all of them"
        )


def example_fault(plan: Plan) -> str:
    """Return what of a scheme would tell of a client's examples beside the noise; or ""."""
    way_out = "choose fedavg, fedprox, a server optimiser or a robust rule"
    client, server = plan.client, plan.server
    if (select := client.select) is not None:
        return (
            f"{type(select).__name__} chooses experts by the client's examples, and which it "
            f"trains is sent; {way_out}"
        )
    for term in client.terms:
        if not isinstance(term, WeightTerm) or isinstance(term, Keeps):
            return f"{type(term).__name__} reads more than one example at a time; {way_out}"
    others = (client.loss, client.logits, client.split, client.personal)
    starts = (client.start_gates, client.start_experts)
    for part in (*others, *starts):
        if part is not None:
            return f"{type(part).__name__} is no plain training of the received model; {way_out}"
    if measured := (*plan.measured, *server.before, *server.refresh, *server.after):
        return f"{type(measured[0]).__name__} takes numbers that have no noise; {way_out}"
    for slot in ("dense", "gates", "experts"):
        rule = getattr(server, slot)
        if type(rule) not in _RULES:
            return (
                f"its {slot} are combined by {type(rule).__name__}, which may read the histogram, "
                f"and none is sent; {way_out}"
            )
    if server.assign is not None:
        return f"{type(server.assign).__name__} reads the histogram, and none is sent; {way_out}"
    return ""


def check_examples(config: RunConfig, plan: Plan) -> None:
    """Refuse a scheme that example-level privacy does not go with.

    Raises:
        ConfigError: naming its part.
    """
    if config.privacy.example_dp and (fault := example_fault(plan)):
        raise ConfigError(f'privacy.example-dp = true with scheme = "{config.scheme}": {fault}')


def added(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Return what two mechanisms on the same examples spend together, by order."""
    return [a + b for a, b in zip(one, other, strict=True)]
