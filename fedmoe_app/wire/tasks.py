"""What the server sends down, as Flower records.

:class:`TrainTask`
    arrays     global values, all or those that changed (:mod:`fedmoe_app.server.sync`)
    broadcast  the scheme's tensors
    task       round, labels, data, codecs
    assigned   the experts that this client trains; not there where it chooses, or trains all
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedmoe_app.config.names import PROTOCOL
from fedmoe_app.moe.state import ModelState
from fedmoe_app.wire.arrays import read_array, to_array
from fedmoe_app.wire.codecs import Offer
from fedmoe_app.wire.question import Question

ASSIGNED, _EXPERTS = "assigned", "experts"


class ProtocolError(ValueError):
    """A task that this client cannot carry out; the message says why."""


@dataclass(frozen=True)
class TrainTask:
    """What the server asks of a client in a round."""

    server_round: int
    state: ModelState
    label_names: tuple[str, ...] = ()
    data_fingerprint: str = ""
    broadcast: dict[str, Tensor] = field(default_factory=dict)
    base_fingerprint: str = ""  # of the frozen base model
    run_key: str = "0" * 32  # names the run in what a client keeps; the same after a resume
    offer: Offer = field(default_factory=Offer)  # how the reply may be encoded
    state_version: int = 0  # folds before the state
    assigned: Tensor | None = None  # experts that the server has it train, [L, E] bool

    @property
    def question(self) -> Question:
        """What the reply has to say that it answers."""
        return Question(self.server_round, self.run_key, self.state_version)


def encode_state(state: ModelState) -> ArrayRecord:
    """Encode values by their readable keys."""
    return encode_tensors(dict(state.named()))


def decode_state(arrays: ArrayRecord) -> ModelState:
    """Decode values that this program, or the server that the node trusts, has encoded."""
    state = ModelState()
    for key, tensor in decode_tensors(arrays).items():
        state.insert(key, tensor)
    return state


def encode_tensors(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Encode tensors under names of any kind, such as a scheme's broadcast."""
    return ArrayRecord({name: to_array(tensor) for name, tensor in tensors.items()})


def decode_tensors(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Decode what :func:`encode_tensors` has encoded; values of 16 bits come as float32."""
    return {name: read_array(array) for name, array in arrays.items()}


def encode_task(
    arrays: ArrayRecord,
    server_round: int,
    label_names: Sequence[str] = (),
    data_fingerprint: str = "",
    broadcast: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
    run_key: str = TrainTask.run_key,
    base_fingerprint: str = "",
    offer: Offer | None = None,
    state_version: int = 0,
) -> RecordDict:
    """Encode what the server sends down; ``arrays`` is an encoded global state.

    Args:
        arrays: from :func:`encode_state`; encoded once for all clients.
        server_round: from 1.
        label_names, data_fingerprint: see :class:`TrainTask`.
        broadcast: the scheme's tensors.
        config: further settings for the clients, from Flower's ``train_config``.
        run_key, base_fingerprint, offer, state_version: see :class:`TrainTask`.
    """
    offer = offer or Offer()
    task: dict[str, Any] = {
        "protocol": PROTOCOL,
        **Question(server_round, run_key, state_version).task(),
        "label-names": list(label_names),
        "data-fingerprint": data_fingerprint,
        "base-fingerprint": base_fingerprint,
        "codecs": list(offer.codecs),
        "topk-share": offer.topk_share,
        "error-feedback": offer.error_feedback,
    }
    return RecordDict(
        {
            "arrays": arrays,
            "broadcast": encode_tensors(broadcast or {}),
            "task": ConfigRecord({**(config or {}), **task}),
        }
    )


def encode_assigned(experts: Tensor) -> ArrayRecord:
    """Encode the experts that a client is to train, ``[L, E]`` bool, for the record ASSIGNED."""
    return ArrayRecord({_EXPERTS: to_array(experts.to(torch.uint8))})


def check_protocol(content: RecordDict) -> ConfigRecord:
    """Return the task's settings.

    Raises:
        ProtocolError: if the server speaks another version of the protocol.
    """
    config = content.config_records.get("task", ConfigRecord())
    if config.get("protocol") != PROTOCOL:
        raise ProtocolError(
            f"the server speaks protocol {config.get('protocol')!r}, this node {PROTOCOL}; "
            "install the same version of fedmoe on both"
        )
    return config


def decode_task(content: RecordDict) -> TrainTask:
    """Decode what the server sent.

    Raises:
        ProtocolError: if the server speaks another version of the protocol.
    """
    config: Any = check_protocol(content)
    question = Question.of(content)
    return TrainTask(
        server_round=question.server_round,
        state=decode_state(content.array_records["arrays"]),
        label_names=tuple(config["label-names"]),
        data_fingerprint=str(config["data-fingerprint"]),
        broadcast=decode_tensors(content.array_records["broadcast"]),
        run_key=question.run_key,
        state_version=question.state_version,
        base_fingerprint=str(config["base-fingerprint"]),
        offer=Offer(
            tuple(config["codecs"]), float(config["topk-share"]), bool(config["error-feedback"])
        ),
        assigned=_assigned(content),
    )


def _assigned(content: RecordDict) -> Tensor | None:
    record = content.array_records.get(ASSIGNED)
    return None if record is None else read_array(record[_EXPERTS]).bool()
