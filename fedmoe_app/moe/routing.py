"""Record where a model's routers send its tokens: the routing histogram.

Forward hooks on the routers see the raw logits; sums are kept in float64 over any number of
batches. Padding never counts, and neither does the second forward of gradient checkpointing.

Notation: ``L`` MoE layers, ``E`` experts a layer, ``K`` experts a token uses, ``T`` tokens that
are not padding, ``D`` hidden size; ``p(x, e)`` is the softmax over all E raw logits of token x, in
float32, whatever scores the family itself routes by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedmoe_app.moe.layers import MoELayer

OnRoute = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class RoutingStats:
    """The routing histogram of a set of tokens; all zeros in a layer that saw none.

    Attributes:
        count: tokens whose chosen experts hold e, before any capacity limit, ``[L, E]`` int64.
        prob: mean of p(x, e), ``[L, E]`` float32, as are the next three.
        margin: mean of max(0, p(x, e) - max over other experts of p).
        peak: maximum of p(x, e).
        kl: mean of p(x, e) * log(p(x, e) / prob(e)), in nats.
        trained: optimiser steps in which e received a gradient, ``[L, E]`` int64.
        tokens: T, ``[L]`` int64.
        region: mean router input of the tokens whose argmax is e, ``[L, E, D]`` float32, or None.
    """

    count: Tensor
    prob: Tensor
    margin: Tensor
    peak: Tensor
    kl: Tensor
    trained: Tensor
    tokens: Tensor
    region: Tensor | None = None

    def share(self) -> Tensor:
        """Return each expert's share of its layer's choices, ``[L, E]`` float32, rows sum to 1."""
        total = self.count.sum(dim=1, keepdim=True).clamp_min(1)
        return (self.count / total).float()


class RoutingRecorder:
    """Context manager that records the routing of every forward made inside it.

    Call :meth:`mask` before each forward::

        with RoutingRecorder(layers) as recorder:
            recorder.mask(batch["attention_mask"])
            model(**batch)
        stats = recorder.stats()
    """

    def __init__(
        self,
        layers: Sequence[MoELayer],
        regions: bool = False,
        keep_probs: bool = False,
        on_route: OnRoute | None = None,
    ) -> None:
        """Prepare to record ``layers``.

        Args:
            layers: from :func:`fedmoe_app.moe.layers.find_moe_layers`.
            regions: also average the router inputs per expert.
            keep_probs: keep the last forward's logits with their graph, for :attr:`probs`.
            on_route: called between a layer's router and its experts, with the layer's index and
                the real tokens' p(x, e) ``[T, E]`` and chosen experts ``[T, K]``.
        """
        self._on_route = on_route
        self._layers = tuple(layers)
        self._regions = regions
        self._keep_probs = keep_probs
        self._handles: list[RemovableHandle] = []
        self._masks = (_Mask(None), _Mask(None))  # of decoder-only and encoder, of decoder layers
        self.reset()

    def __enter__(self) -> RoutingRecorder:
        """Start to record."""
        for layer in self._layers:
            self._handles.append(layer.router.register_forward_hook(self._hook(layer)))
        return self

    def __exit__(self, *error: object) -> None:
        """Stop to record; what was recorded stays."""
        while self._handles:
            self._handles.pop().remove()

    def mask(self, attention_mask: Tensor | None, decoder_mask: Tensor | None = None) -> None:
        """Tell which tokens of the next forwards are real: 1 real, 0 padding; None means all.

        Args:
            attention_mask: ``[B, S]``, as the model gets it.
            decoder_mask: ``[B, S_decoder]`` of an encoder-decoder model.
        """
        self._masks = (_Mask(attention_mask), _Mask(decoder_mask))

    def reset(self) -> None:
        """Forget everything that was recorded."""
        self._sums = [_Sums(layer.num_experts) for layer in self._layers]
        self._counted = torch.stack([sums.count for sums in self._sums])  # [L, E], at take_routed
        self._last: dict[int, tuple[Tensor, Tensor | None]] = {}

    @property
    def probs(self) -> list[Tensor]:
        """The last forward's p(x, e) per layer, ``[T, E]`` float32, with their graph.

        Raises:
            RuntimeError: nothing was kept, or the logits carry no gradient although the routers
                are being trained (reentrant checkpointing runs the forward without gradients).
        """
        if len(self._last) < len(self._layers):
            raise RuntimeError("no router probabilities: needs keep_probs=True and a forward")
        return [_probabilities(layer, *self._last[layer.index]) for layer in self._layers]

    def take_routed(self) -> Tensor:
        """Return which experts got a real token since the last call, ``[L, E]`` bool.

        It is where the model is: nothing waits for a GPU.
        """
        found = [sums.count for sums in self._sums]
        device = next((c.device for c in found if c.device.type != "cpu"), found[0].device)
        counts = torch.stack([count.to(device) for count in found])
        routed = counts > self._counted.to(counts.device)
        self._counted = counts
        return routed

    def stats(self, trained: Tensor | None = None) -> RoutingStats:
        """Return the histogram of all forwards since the start or the last :meth:`reset`.

        Args:
            trained: ``[L, E]`` int64 from ``Trainables.trained``; None means no training.
        """
        rows = [sums.finish() for sums in self._sums]
        columns = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        if trained is None:
            trained = torch.zeros_like(columns["count"])
        return RoutingStats(trained=trained.clone(), **columns)

    def _hook(self, layer: MoELayer) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # Inside backward this is the recomputation of a checkpointed forward.
            if torch._C._current_graph_task_id() != -1:
                return
            logits, chosen = read_router(layer, output)
            real = self._masks[layer.in_decoder].real(layer, logits.shape[0])
            if self._keep_probs:
                self._last[layer.index] = (logits, real)
            with torch.no_grad():
                hidden = args[0].reshape(-1, args[0].shape[-1]) if self._regions else None
                p = _select(logits, real).float().softmax(dim=-1)  # [T, E]
                chosen = _select(chosen, real)
                self._sums[layer.index].add(p, chosen, _select(hidden, real))
                if self._on_route is not None:
                    self._on_route(layer.index, p, chosen)

        return record


def read_router(layer: MoELayer, output: Any) -> tuple[Tensor, Tensor]:
    """Return the raw logits ``[N, E]`` and the chosen experts ``[N, K]`` of a router's output.

    The logits are where transformers' own recording says, else the first floating-point tensor of
    last size E. The choice is the router's integer tensor of last size K; a router that returns
    none (Switch gives a one-hot that lacks the tokens beyond capacity) chooses by the logits.
    """
    parts = [t for t in (output if isinstance(output, tuple) else (output,))]
    floats = [t for t in parts if _is_last(t, layer.num_experts) and t.is_floating_point()]
    index = layer.logits_index
    if index is not None and index < len(parts) and any(parts[index] is t for t in floats):
        floats = [parts[index]]
    if not floats:
        raise RuntimeError(f"{layer.router_name}: its output holds no [.., {layer.num_experts}]")
    logits = floats[0].reshape(-1, layer.num_experts)
    chosen = [t for t in parts if _is_last(t, layer.top_k) and not t.is_floating_point()]
    if chosen:
        return logits, chosen[0].reshape(-1, layer.top_k)
    return logits, logits.detach().topk(layer.top_k, dim=-1).indices


class _Mask:
    """The real tokens of a batch, as indices into its flattened tokens; all when unmasked."""

    def __init__(self, mask: Tensor | None) -> None:
        self._size = None if mask is None else mask.numel()
        self._real: Tensor | None = None
        if mask is not None and not bool(mask.all()):
            self._real = mask.reshape(-1).nonzero().squeeze(1)  # [T]

    def real(self, layer: MoELayer, tokens: int) -> Tensor | None:
        """Return the indices of the real tokens, or None for all of ``tokens``."""
        if self._size is not None and self._size != tokens:
            raise ValueError(
                f"the recorder's mask has {self._size} entries, but the router of MoE layer "
                f"{layer.index} ({layer.router_name}) saw {tokens} tokens; call mask() with the "
                "attention mask of each batch before its forward"
            )
        return self._real


class _Sums:
    """Running sums of one layer, ``[E]`` each, in float64 on the device of the logits."""

    def __init__(self, num_experts: int) -> None:
        self.tokens = 0
        self.count = torch.zeros(num_experts, dtype=torch.int64)
        self.prob = torch.zeros(num_experts, dtype=torch.float64)
        self.entropy = torch.zeros(num_experts, dtype=torch.float64)  # sum of -p log p
        self.margin = torch.zeros(num_experts, dtype=torch.float64)
        self.peak = torch.zeros(num_experts)
        self.wins = torch.zeros(num_experts, dtype=torch.int64)  # tokens whose argmax is e
        self.hidden: Tensor | None = None  # [E, D]

    def add(self, p: Tensor, chosen: Tensor, hidden: Tensor | None) -> None:
        """Add the real tokens of a batch: p(x, e) ``[T, E]``, ``[T, K]`` and ``[T, D]``."""
        if p.shape[0] == 0:
            return
        if self.prob.device != p.device:
            self._move(p.device)
        best, winner = p.topk(2, dim=-1)  # [T, 2]
        self.tokens += p.shape[0]
        _count_in(self.count, chosen.reshape(-1))
        self.prob += p.sum(dim=0, dtype=torch.float64)
        self.entropy += torch.special.entr(p).sum(dim=0, dtype=torch.float64)
        self.peak = torch.maximum(self.peak, p.amax(dim=0))
        # Only the best expert has a positive margin: its lead over the second.
        self.margin.index_add_(0, winner[:, 0], (best[:, 0] - best[:, 1]).double())
        if hidden is not None:
            self._add_hidden(winner[:, 0], hidden)

    def finish(self) -> dict[str, Tensor]:
        """Return the columns of :class:`RoutingStats` on the CPU."""
        tokens = max(self.tokens, 1)
        prob = self.prob / tokens
        columns = {
            "count": self.count.clone(),
            "prob": prob.float(),
            "margin": (self.margin / tokens).float(),
            "peak": self.peak.clone(),
            # mean p log(p / prob) = mean p log p - prob log prob, never below 0 but for rounding
            "kl": (torch.special.entr(prob) - self.entropy / tokens).clamp_min(0).float(),
            "tokens": torch.tensor(self.tokens),
        }
        if self.hidden is not None:
            columns["region"] = (self.hidden / self.wins.clamp_min(1).unsqueeze(1)).float()
        return {name: column.cpu() for name, column in columns.items()}

    def _add_hidden(self, winner: Tensor, hidden: Tensor) -> None:
        if self.hidden is None:
            shape = (self.prob.shape[0], hidden.shape[1])
            self.hidden = torch.zeros(shape, dtype=torch.float64, device=hidden.device)  # [E, D]
        _count_in(self.wins, winner)
        self.hidden.index_add_(0, winner, hidden.double())

    def _move(self, device: torch.device) -> None:
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))


def _count_in(counts: Tensor, numbers: Tensor) -> None:
    """Add to ``[E]`` how often each of 0..E-1 is in ``numbers`` ``[N]``.

    Not by ``bincount``, which on a GPU waits for the largest of them.
    """
    counts.scatter_add_(0, numbers.long(), torch.ones_like(numbers, dtype=counts.dtype))


def _is_last(part: Any, size: int) -> bool:
    return isinstance(part, Tensor) and part.dim() >= 2 and part.shape[-1] == size


def _select(values: Any, real: Tensor | None) -> Any:
    if values is None or real is None:
        return values
    return values.index_select(0, real.to(values.device))  # layers may lie on several devices


def _probabilities(layer: MoELayer, logits: Tensor, real: Tensor | None) -> Tensor:
    trains = layer.router.training and any(p.requires_grad for p in layer.router.parameters())
    if trains and torch.is_grad_enabled() and not logits.requires_grad:
        raise RuntimeError(
            "the router probabilities carry no gradient: the forward ran under no_grad or with "
            "reentrant checkpointing; checkpoint with use_reentrant=False"
        )
    return _select(logits, real).float().softmax(dim=-1)
