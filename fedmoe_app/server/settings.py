"""What a run's server is set to, beside its scheme: numbers, times, what clients are told, sums."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedmoe_app.aggregation.guard import Guard
from fedmoe_app.aggregation.store import Spool
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.privacy.example_level import ExampleLevel
from fedmoe_app.schemes.sums import PairRule
from fedmoe_app.wire.bounds import TaskBounds
from fedmoe_app.wire.codecs import Offer


@dataclass(frozen=True)
class Limits:
    """How many clients a round needs, how long to wait for them, how often to evaluate."""

    min_clients: int = 2
    fraction_train: float = 1.0
    wait_for_clients: float = 120.0
    max_failed_rounds: int = 2
    evaluate_every: int = 1
    clients_per_round: int = 0  # 0: fraction_train
    wait_for_other_runs: float = 3600.0  # seconds, for nodes that work for another run


@dataclass(frozen=True)
class ClientTask:
    """What clients are told of the task and what their replies are held to.

    Attributes:
        shape: of the model; the hidden size is checked where clients send regions.
        label_names, data_fingerprint, base_fingerprint: let all agree on the data and on the
            frozen base model.
        metric: what ``accuracy`` means.
        run_key: names this run in what clients keep between rounds, hexadecimal; "" for a new one.
        offer: how the clients may encode their replies.
        changed_only, download_codec: see :class:`fedmoe_app.server.sync.DeltaSync`.
        bounds: of what clients may say of themselves.
        example_level: the noise that each client adds by itself; None where it adds none.
    """

    shape: ModelShape = field(default_factory=lambda: ModelShape(0, 1, 1))
    label_names: tuple[str, ...] = ()
    data_fingerprint: str = ""
    base_fingerprint: str = ""
    metric: str = "accuracy"
    run_key: str = ""
    offer: Offer = field(default_factory=Offer)
    changed_only: bool = True
    download_codec: str = "fp32"
    bounds: TaskBounds = field(default_factory=TaskBounds)
    example_level: ExampleLevel | None = None


@dataclass
class Aggregation:
    """How replies are aggregated, beside the scheme.

    Attributes:
        store: where the changes of a round wait until all replies are in.
        pairs: how cosines between clients' changes are worked out.
        diagnose: work out the scheme's diagnostics of every round.
        guard: bounds what one client can do to a round; None leaves that to the scheme.
    """

    store: Spool = field(default_factory=Spool)
    pairs: PairRule = field(default_factory=PairRule)
    diagnose: bool = True
    guard: Guard | None = None
