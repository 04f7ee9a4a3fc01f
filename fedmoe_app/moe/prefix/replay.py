"""Run a model from its frozen prefix on: hidden states that are known in the place of its layers.

The decoder's own forward runs as ever, with its masks and positions; only the layers of the prefix
hand on what they are given, and the last of them gives the hidden states that are known. So whoever
calls the model, a task, a scheme or a copy of the model, need not know of it.

**One form for every batch.** A sequence is computed by itself, without padding.
Kernels round differently for another padded length, so a batch that is computed as a whole has
other last bits. This way they depend on nothing but the sequence: not on the batch, the order of
the examples, the round, or on whether they were kept or computed again.

Padding gets zeros, which nothing reads: it lies right of the text, where causal attention does not
look. Calls of another form (generation with a cache, padding on the left) run through all layers.

Shapes: B sequences in a batch, S tokens with padding, T without, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedmoe_app.moe.prefix.find import NoPrefixError, Prefix
from fedmoe_app.moe.prefix.states import HiddenStates

_OTHER_INPUTS = ("inputs_embeds", "position_ids", "past_key_values", "cache")
_TRIALS = ((5, 9, 6, 11, 7), (8, 4, 10))  # token ids, taken modulo the size of the vocabulary
_CLOSE = 0.01  # of the largest value: some kernels of a GPU add in another order each time


class _ReachedError(Exception):
    """Ends a forward after the prefix; holds its hidden states."""

    def __init__(self, hidden: Any) -> None:
        super().__init__("the end of the frozen prefix")
        self.hidden = hidden


class _Replay:
    """What the layers of one model's prefix do now: compute, stop after it, or hand on.

    A deep copy of the model gets a copy of this, on its own layers.
    """

    def __init__(self, decoder: nn.Module, states: HiddenStates) -> None:
        self._decoder = decoder
        self._states = states
        self._stops = False  # after the prefix
        self._known: Tensor | None = None  # [B, S, D], of the forward that is going on

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hook before the decoder's forward: have its hidden states ready."""
        self._known = None
        if self._stops:
            return
        sequences = _sequences(args, kwargs)
        if sequences is None:
            return
        input_ids = args[0] if args else kwargs["input_ids"]
        found = [self._of(ids, input_ids) for ids in sequences]
        self._known = nn.utils.rnn.pad_sequence(found, batch_first=True).to(input_ids.device)
        short = input_ids.shape[1] - self._known.shape[1]  # a batch may be padded further
        if short:
            self._known = nn.functional.pad(self._known, (0, 0, 0, short))

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Hook after it, whether it ended or failed."""
        self._known = None

    def run_layer(
        self, forward: Callable[..., Any], is_last: bool, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Run a layer of the prefix, or what stands for it."""
        if self._known is not None:
            hidden = args[0] if args else kwargs["hidden_states"]
            return self._known if is_last else hidden
        output = forward(*args, **kwargs)
        if is_last and self._stops:
            raise _ReachedError(output)
        return output

    @torch.no_grad()
    def _of(self, ids: list[int], like: Tensor) -> Tensor:
        """Return the hidden states of one sequence, ``[T, D]`` on the CPU."""
        found = self._states.get(ids)
        if found is not None:
            return found
        input_ids = torch.tensor([ids], dtype=like.dtype, device=like.device)
        self._stops = True
        try:
            self._decoder(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
        except _ReachedError as reached:
            hidden = reached.hidden
        finally:
            self._stops = False
        if not isinstance(hidden, Tensor) or hidden.shape[:2] != input_ids.shape:
            raise NoPrefixError("its layers return more than hidden states")
        found = hidden[0].cpu().clone()
        self._states.put(ids, found)
        return found


class _Layer:
    """The forward of a layer of the prefix, while it is replayed."""

    def __init__(self, forward: Callable[..., Any], is_last: bool, replay: _Replay) -> None:
        self._forward = forward
        self._is_last = is_last
        self._replay = replay

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._replay.run_layer(self._forward, self._is_last, args, kwargs)


@contextmanager
def replayed(prefix: Prefix, states: HiddenStates) -> Iterator[None]:
    """Run the model from ``states`` on inside; what is not there is computed and put there.

    The values of the model's frozen parameters must not change while ``states`` is used.
    """
    replay = _Replay(prefix.decoder, states)
    with ExitStack() as stack:
        for number, layer in enumerate(prefix.layers[: prefix.length], start=1):
            is_last = number == prefix.length
            stack.callback(_put_back, layer, layer.__dict__.get("forward"))
            layer.forward = _Layer(layer.forward, is_last, replay)  # hides the class's own
        before = prefix.decoder.register_forward_pre_hook(replay.before, with_kwargs=True)
        after = prefix.decoder.register_forward_hook(replay.after, always_call=True)
        stack.callback(before.remove)
        stack.callback(after.remove)
        yield


def _put_back(layer: nn.Module, forward: Callable[..., Any] | None) -> None:
    """Give a layer back the forward that it had beside its class's, if it had one."""
    del layer.forward
    if forward is not None:  # of a model on several devices
        layer.forward = forward


@torch.no_grad()
def check(prefix: Prefix, vocab_size: int) -> None:
    """Try whether the layers above the prefix see of it nothing but its hidden states.

    A short sequence is run as a whole, then another, so that whatever a family keeps aside is of
    that one, and then the first one again from its hidden states: the result must be the same,
    but for rounding.

    Raises:
        NoPrefixError: it is another.
    """
    first, second = ([i % vocab_size for i in ids] for ids in _TRIALS)
    was_training = prefix.decoder.training
    prefix.decoder.eval()
    try:
        whole = _last_hidden(prefix, first)
        states = HiddenStates(limit=2**62)
        with replayed(prefix, states):
            _last_hidden(prefix, first)
            _last_hidden(prefix, second)
            again = _last_hidden(prefix, first)
    except NoPrefixError:
        raise
    except Exception as error:  # whatever a family's forward expects of its layers
        text = " ".join(str(error).split())[:200]
        raise NoPrefixError(f"it cannot be run from its hidden states on ({text})") from error
    finally:
        prefix.decoder.train(was_training)
    if not float((whole - again).abs().max()) <= _CLOSE * float(whole.abs().max()):  # nor NaN
        raise NoPrefixError("its trained layers see more of the frozen ones than hidden states")


def _last_hidden(prefix: Prefix, ids: Sequence[int]) -> Tensor:
    device = next(prefix.decoder.parameters()).device
    input_ids = torch.tensor([ids], device=device)
    mask = torch.ones_like(input_ids)
    output: Any = prefix.decoder(input_ids=input_ids, attention_mask=mask)
    return torch.as_tensor(output.last_hidden_state)


def _sequences(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[list[int]] | None:
    """Return the token ids of each sequence without padding; None for a call of another form."""
    input_ids = args[0] if args else kwargs.get("input_ids")
    mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
    if len(args) > 2 or any(kwargs.get(name) is not None for name in _OTHER_INPUTS):
        return None
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or input_ids.shape[1] == 0:
        return None
    ids = input_ids.cpu()
    if mask is None:
        return [row.tolist() for row in ids]
    if not isinstance(mask, Tensor) or mask.shape != input_ids.shape:
        return None
    real = mask.cpu().bool()  # [B, S]
    lengths = real.sum(1)  # [B]
    right = torch.arange(ids.shape[1]) < lengths[:, None]  # [B, S], padded on the right
    if not torch.equal(real, right) or not bool(lengths.all()):
        return None
    return [row[:length].tolist() for row, length in zip(ids, lengths.tolist(), strict=True)]
