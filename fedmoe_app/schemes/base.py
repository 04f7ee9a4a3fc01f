"""Scheme: what one paper asks of the client and of the server, as two halves of parts.

A scheme is a frozen dataclass of hyper-parameters. It builds its halves, :class:`Client` and
:class:`Server`; a scheme that builds nothing is FedAvg (McMahan et al. 2017, arXiv:1602.05629):
every trainable tensor is averaged with weights n_i / Σ n. It does no I/O and never touches Flower.
What a run needs because of a scheme follows from its parts alone: :class:`Plan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.tasks import TASKS, TaskKind
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import Tensors
from fedmoe_app.schemes.faults import call, named
from fedmoe_app.schemes.parts import (
    Client,
    FeatureTerm,
    Frozen,
    Histogram,
    InBatch,
    Keeps,
    Logits,
    MeanGradient,
    Measured,
    OfOutput,
    Once,
    OutputTerm,
    Rescaling,
    RootChange,
    RouterTerm,
    Server,
    Signal,
    Step,
    TaskLoss,
    TeacherTerm,
    Telling,
    parts_in,
    public_methods,
)

if TYPE_CHECKING:
    from fedmoe_app.config.schema import RunConfig

_OPEN = ("from_config", "check", "client", "server")
_GONE = {
    "advice": "return it from check(run)",
    "budget": "client().select, a Once or InBatch part",
    "choose_experts": "client().select, a Once part",
    "chooses_per_round": "client().select, a Once part",
    "selects_per_batch": "client().select, an InBatch part",
    "select_in_batch": "client().select, an InBatch part",
    "needs_router_probs": "client().terms, a RouterTerm",
    "needs_regions": "a field Histogram(regions=True) of the part that reads them",
    "extra_loss": "client().terms, a WeightTerm or RouterTerm",
    "keeps_state": "a Keeps part of the client",
    "needs_client_number": "own.number in a part of the client",
    "stale_fault": "check(run) with run.buffered",
    "personal_copy": "client().personal",
    "start": "client().start_gates or start_experts, a Start part",
    "keep": "a Keeps part of the client",
    "dense_weights": "server().dense, a Mean",
    "gate_weights": "server().gates, a Weighted",
    "gate_scale": "server().gates, a Rescaling rule",
    "expert_shares": "server().experts, a Mean",
    "absent_count": 'server().experts, Mean(over="members")',
    "expert_weights": "server().experts, a Weighted",
    "means_of_experts": "server().experts, a Mean",
    "combine_expert": "server().experts, a Together",
    "broadcast": "server().steps, a Telling part",
    "diagnose": "server().probes, a RoundProbe",
    "diagnose_expert": "server().probes, an ExpertProbe",
}


_NO_CLASSES = {
    "language": "a client lacks nearly all tokens of the vocabulary, and nearly all of its tokens "
    "are rare, so that what it says of absent or rare classes would hold for all of the model's "
    'output; only scheme = "logitadjust" carries over, with token frequencies as its prior',
    "options": "options are answers to one question, not classes that questions share, so "
    "that there is no label skew to correct",
}


@dataclass(frozen=True)
class Run:
    """What a scheme is checked against before a run.

    Attributes:
        model: its sizes.
        buffered: whether replies may start from older states (``rounds = "buffered"``).
        chosen: whether nodes load only the experts that they train.
        task: one of :data:`fedmoe_app.config.tasks.TASKS`.
    """

    model: ModelShape
    buffered: bool = False
    chosen: bool = False
    task: str = "classification"

    @property
    def kind(self) -> TaskKind:
        """What is known of the task."""
        return TASKS[self.task]

    def needs_classes(self, what: str) -> None:
        """Refuse a task whose labels are no classes that examples share.

        Raises:
            ConfigError: with the reason; ``what`` begins the message.
        """
        if not self.kind.classifies:
            raise ConfigError(f'{what}: data.task = "{self.task}": {_NO_CLASSES[self.kind.rows]}')


@dataclass(frozen=True)
class Scheme(Frozen):
    """The seam for every aggregation scheme; the defaults are FedAvg."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse methods that nothing calls, above all the hooks of fedmoe before its parts."""
        super().__init_subclass__(**kwargs)
        for name in public_methods(cls):
            if name in _GONE:
                raise TypeError(
                    f"{cls.__name__}.{name}: this hook is gone; write {_GONE[name]} "
                    "(docs/own-scheme.md)"
                )
            if name not in _OPEN:
                raise TypeError(
                    f"{cls.__name__}.{name}: nothing calls it; a scheme has {', '.join(_OPEN)}, "
                    "and helpers begin with an underscore"
                )

    @classmethod
    def from_config(cls, config: RunConfig) -> Scheme:
        """Build the scheme from the run config; a user's class gets ``scheme-args``."""
        return cls(**config.scheme_kwargs)

    def check(self, run: Run) -> Sequence[str]:
        """Refuse hyper-parameters that the run cannot serve; return what to warn of.

        Raises:
            fedmoe_app.config.errors.ConfigError: naming the value and the allowed range.
        """
        return ()

    def client(self, model: ModelShape) -> Client:
        """Return the client's half."""
        return Client()

    def server(self, model: ModelShape) -> Server:
        """Return the server's half."""
        return Server()


@dataclass(frozen=True)
class Plan:
    """Both halves of a scheme on a model, and what a run needs because of them."""

    scheme: Scheme
    client: Client
    server: Server

    @classmethod
    def of(cls, scheme: Scheme, model: ModelShape) -> Plan:
        """Build both halves.

        Raises:
            ConfigError: they do not fit each other; or what a user's class says is wrong.
        """
        try:
            plan = cls(scheme, scheme.client(model), scheme.server(model))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{type(scheme).__name__}: {error}") from error
        for name, half, kind in (
            ("client", plan.client, Client),
            ("server", plan.server, Server),
        ):
            if not isinstance(half, kind):
                raise ConfigError(
                    f"{type(scheme).__name__}.{name}() returned {half!r}: must be a {kind.__name__}"
                )
        if faults := plan._faults():
            raise ConfigError(f"{type(scheme).__name__}: {'; '.join(faults)}")
        return plan

    def check(self, run: Run) -> list[str]:
        """Refuse a run that the scheme cannot serve; return what to warn of, each once.

        Raises:
            ConfigError: with the reason and the way out.
        """
        warnings = list(dict.fromkeys(self.scheme.check(run)))
        if run.buffered and (fault := self._stale_fault(run)):
            raise ConfigError(f'rounds = "buffered": {fault}; or choose rounds = "sync"')
        return warnings

    # -- what follows from the parts -----------------------------------------------------------

    @property
    def needs_regions(self) -> bool:
        """Whether clients send the regions of their histograms."""
        return any(histogram.regions for histogram in self._all(Histogram))

    @property
    def needs_router_probs(self) -> bool:
        """Whether a term of the loss reads the probabilities of all experts."""
        return bool(self._all(RouterTerm))

    @property
    def needs_gradient(self) -> bool:
        """Whether a part reads the mean gradient of the steps."""
        return bool(self._all(MeanGradient))

    @property
    def needs_root(self) -> bool:
        """Whether the server trains on rows of its own in every round."""
        return bool(self._all(RootChange))

    @property
    def needs_outputs(self) -> bool:
        """Whether the loss reads logits, labels or features of a step."""
        return any(self._all(kind) for kind in (TaskLoss, OutputTerm, FeatureTerm, Logits))

    @property
    def needs_teacher(self) -> bool:
        """Whether a term of the loss reads the received model's logits."""
        return bool(self._all(TeacherTerm))

    @property
    def needs_features(self) -> bool:
        """Whether a part of the loss reads features."""
        return bool(self._all(FeatureTerm)) or self.recalls

    @property
    def recalls(self) -> bool:
        """Whether clients keep the features that they send into sums without training."""
        return self.client.logits is not None

    @property
    def keeps_state(self) -> bool:
        """Whether clients keep anything on their nodes."""
        return bool(self._all(Keeps)) or self.client.personal is not None

    @property
    def chooses_once(self) -> bool:
        """Whether a client chooses its experts once a round, so that it can hold these only."""
        return isinstance(self.client.select, Once)

    @property
    def selects_in_batch(self) -> bool:
        """Whether the choice is made anew in every training step."""
        return isinstance(self.client.select, InBatch)

    @cached_property
    def measured(self) -> list[Measured]:
        """The statistics of its own that clients send with every round."""
        return self._all(Measured, replace(self.server, before=(), refresh=(), after=()))

    @cached_property
    def measured_apart(self) -> list[OfOutput]:
        """The statistics that clients send in exchanges without training."""
        return self._all(OfOutput, *self._apart)

    @property
    def _apart(self) -> tuple[tuple[Step, ...], ...]:
        return self.server.before, self.server.refresh, self.server.after

    @cached_property
    def told_apart(self) -> set[str]:
        """Names of the signals that are told in such exchanges, and told on until the next one."""
        telling = [step for step in parts_in(*self._apart) if isinstance(step, Telling)]
        return _named(part for part in parts_in(*telling) if isinstance(part, Signal))

    @property
    def has_steps(self) -> bool:
        """Whether the round's change goes through steps of the server."""
        return any(isinstance(step, Step) for step in self.server.steps)

    def initial_state(self, values: Mapping[str, Tensor]) -> Tensors:
        """Return the state of the server's steps before the first round, ``steps.<i>.<name>``."""
        return {
            f"{step_prefix(i)}{name}": tensor
            for i, step in enumerate(self.server.steps)
            if isinstance(step, Step)
            for name, tensor in named(step, "init", "", call(step, "init", values)).items()
        }

    def _all(self, kind: type, *halves: Any) -> list[Any]:
        found = self._parts if not halves else parts_in(*halves)
        return [part for part in found if isinstance(part, kind)]

    @cached_property
    def _parts(self) -> list[Any]:
        return parts_in(self.client, self.server)

    def _stale_fault(self, run: Run) -> str:
        """Return why changes that started from an older state cannot be used, or "".

        A client that starts from what it kept sends changes that hold the way from the global state
        to its own: added to a newer state they would count it twice.
        """
        if run.chosen:
            return (
                "nodes choose the experts that they hold round by round; set "
                'model.experts-in-memory = "all"'
            )
        if self.server.assign is not None:
            return "the server assigns experts to all clients after each round"
        if self.client.start_gates or self.client.start_experts:
            return (
                "this scheme's clients start from what they kept and not from the global state, so "
                "that their changes only fit the state they were sent; switch that off (fedalign: "
                'gates = "consistency" or "average"; fcmoe: retention = "none")'
            )
        rules = (self.server.dense, self.server.gates, self.server.experts)
        return next((rule.remedy() for rule in rules if isinstance(rule, Rescaling)), "")

    def _faults(self) -> list[str]:
        """Return what contradicts itself in the two halves."""
        of_client = parts_in(self.client)
        heard = _named(s for s in of_client if isinstance(s, Signal))
        told = _named(
            signal
            for part in self._all(Telling)
            for signal in parts_in(part)
            if isinstance(signal, Signal)
        )
        faults = [f'signal "{s}": a client part hears it, no step tells it' for s in heard - told]
        faults += [f'signal "{s}": told, and no client part hears it' for s in told - heard]
        faults += [
            f"{type(part).__name__}: keeps state, but is no part of the client"
            for part in self._all(Keeps, self.server)
            if part not in of_client
        ]
        faults += [
            f"{type(part).__name__}: nobody trains for the step that holds it; hold an OfOutput"
            for part in self._all(Measured, *self._apart)
            if not isinstance(part, OfOutput)
        ]
        if self.server.assign is not None and not self.chooses_once:
            faults.append(
                f"{type(self.server.assign).__name__}: assigns experts, so Client.select must be a "
                "Once part, which chooses until then"
            )
        names = [type(statistic).__name__ for statistic in self.measured]
        faults += [f"two statistics {n} that differ" for n in set(names) if names.count(n) > 1]
        return sorted(faults)


def flat_signals(told: Mapping[Signal, Tensor | Tensors]) -> Tensors:
    """Name what is told as it travels: ``signal``, or ``signal/name`` where it is several."""
    flat: Tensors = {}
    for signal, value in told.items():
        if isinstance(value, Tensor):
            flat[signal.name] = value
        else:
            flat |= {f"{signal.name}/{name}": tensor for name, tensor in value.items()}
    return flat


def signals_of(flat: Mapping[str, Tensor]) -> dict[Signal, Any]:
    """Undo :func:`flat_signals`."""
    told: dict[Signal, Any] = {}
    for name, tensor in flat.items():
        signal, _, own = name.partition("/")
        if own:
            told.setdefault(Signal(signal), {})[own] = tensor
        else:
            told[Signal(signal)] = tensor
    return told


def step_prefix(position: int) -> str:
    """Return how the names of a step's state begin in the state of all."""
    return f"steps.{position}."


def reported_prefix(position: int) -> str:
    """Return how the names of the state of a step of the reported model begin."""
    return f"reported.{position}."


def _named(signals: Iterable[Signal]) -> set[str]:
    return {signal.name for signal in signals}
