"""The sizes of a model that schemes and the wire format need."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """What a scheme may ask of a model: L layers of E experts, K used by a token, hidden size D.

    ``gates_trained`` is False where the gates belong to the frozen base (``model.gates = false``).
    ``head`` is the path of the linear map to the classes' logits, "" if none is trained.
    ``gate_bias`` says whether gates have a bias that is trained, a number an expert.
    """

    num_layers: int
    num_experts: int
    top_k: int
    hidden_size: int = 0
    gates_trained: bool = True
    head: str = ""
    gate_bias: bool = False
