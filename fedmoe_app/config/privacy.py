"""What leaves the nodes, and who may see it: the table ``[privacy]`` of the run config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedmoe_app.config.section import Fraction, Section, key

NONE = "none"


class PrivacyConfig(Section):
    """Differential privacy of clients or of examples, and secure sums (docs/privacy.md)."""

    dp: Literal["none", "fixed", "counted"] = key(
        NONE,
        "noise on the sum of the clients' clipped changes; an expert's sum is divided by the "
        "expected clients (fixed) or by a noisy count of those that trained it (counted)",
    )
    dp_epsilon: Annotated[float, Field(ge=0)] = key(
        0.0,
        "most ε that the run may spend; with dp-noise = 0 the noise is worked out from it and "
        "num-server-rounds; 0: no limit",
        resumable=True,
    )
    dp_noise: Annotated[float, Field(ge=0)] = key(
        0.0, "z: noise's standard deviation as a multiple of dp-clip; 0: as dp-epsilon asks"
    )
    dp_delta: Annotated[float, Field(gt=0, lt=1)] = key(
        1e-5, "δ of (ε, δ); well below 1 / dp-clients"
    )
    dp_clip: Annotated[float, Field(gt=0)] = key(
        1.0, "largest norm of all that a client sends in a round, as one vector"
    )
    dp_sample_rate: Fraction = key(
        1.0, "q: chance of each client to be asked in a round, each by itself"
    )
    dp_clients: Annotated[int, Field(ge=0)] = key(
        0, "N: registered clients; sums are divided by q·N, whoever answers"
    )
    secure_sum: bool = key(
        False,
        "clients mask what they send, so that the server learns sums over clients only; fedavg, "
        "fedprox, fedmoe, and the head in closed form",
    )
    min_trainers: Annotated[int, Field(ge=2)] = key(
        3, "secure-sum: an expert that fewer clients trained stays as it was"
    )
    weight_unit: Annotated[int, Field(ge=1)] = key(
        10, "secure-sum: examples a unit of a client's weight, which is 1 to 40 of them"
    )
    sum_range: Annotated[float, Field(gt=0)] = key(
        1.0, "secure-sum: largest change of a value that is summed; larger ones are cut to it"
    )

    example_dp: bool = key(
        False,
        "noise on clipped gradients of single examples at each client (DP-SGD); needs model.train "
        '= "expert-lora" and train.max-steps',
    )
    example_epsilon: Annotated[float, Field(ge=0)] = key(
        0.0,
        "ε that the whole run spends of a client's examples; with example-noise = 0 the noise is "
        "worked out from it",
    )
    example_noise: Annotated[float, Field(ge=0)] = key(
        0.0,
        "z: noise's standard deviation as a multiple of example-clip; 0: as example-epsilon asks",
    )
    example_delta: Annotated[float, Field(gt=0, lt=1)] = key(
        1e-5, "δ of (ε, δ); well below 1 / the examples of a client"
    )
    example_clip: Annotated[float, Field(gt=0)] = key(
        1.0, "largest norm of one example's gradient, over all that is trained"
    )
    example_rate: Fraction = key(
        0.05, "q: chance of each example to be in an optimiser step, each by itself"
    )

    @property
    def withholds(self) -> bool:
        """Whether clients send nothing but changes: no counts, histograms, losses or times."""
        return self.has_dp or self.example_dp

    @property
    def has_dp(self) -> bool:
        """Whether the model is released with noise."""
        return self.dp != NONE

    @model_validator(mode="after")
    def _examples_are_complete(self) -> PrivacyConfig:
        if not self.example_dp:
            return self
        if self.has_dp or self.secure_sum:
            other = f'dp = "{self.dp}"' if self.has_dp else "secure-sum = true"
            raise ValueError(f"example-dp = true with {other}: they are not combined; choose one")
        if not self.example_epsilon and not self.example_noise:
            raise ValueError("example-epsilon = 0 with example-noise = 0: give one of them")
        return self

    @model_validator(mode="after")
    def _is_complete(self) -> PrivacyConfig:
        if not self.has_dp:
            return self
        if self.secure_sum:
            raise ValueError(
                f'dp = "{self.dp}" with secure-sum = true: the noise is added by the server, which '
                "then has to see the sum alone and the clients' clipped changes; choose one"
            )
        if not self.dp_clients:
            raise ValueError(
                "dp-clients = 0: say how many clients are registered; what the sums are divided by "
                "must not depend on who answers"
            )
        if not self.dp_epsilon and not self.dp_noise:
            raise ValueError("dp-epsilon = 0 with dp-noise = 0: give one of them")
        if self.dp_delta * self.dp_clients >= 1:
            raise ValueError(
                f"dp-delta = {self.dp_delta:g} with dp-clients = {self.dp_clients}: that allows to "
                f"publish a client's changes as they are; choose less than "
                f"{1 / self.dp_clients:.1g}"
            )
        return self
