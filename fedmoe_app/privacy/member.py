"""A client's part in a masked sum.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017,
with Flower's key agreement, encryption and secret sharing. Of every client u with the secrets b_u
and s_uv, which it shares with v:

    y_u = x_u + PRG(b_u) + Σ_{v<u} PRG(s_uv) − Σ_{v>u} PRG(s_uv)
    Σ_u y_u = Σ_u x_u + Σ_u PRG(b_u)

b_u, and the key that s_uv come from, are shared among all by Shamir's scheme. When the vectors are
in, the server is given shares of b_u of those whose vector came, to take their own masks off, and
shares of the keys of those that went, whose partners' masks would stay. Never both of one client:
that would take all masks off its vector alone. Flower's old client does not check it; this one
does, and answers once.

There are two sums a round. Each has secrets of its own: the key of a client that went between the
two would else take its masks off the first vector, whose own mask is known by then.

The server is honest but curious: it follows the protocol, and up to a third of the clients may tell
it all they know. One that hands out keys of its own in others' names is not stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec

from fedmoe_app.flower.secret_sharing import (
    bytes_to_public_key,
    combine_shares,
    create_shares,
    decrypt,
    encrypt,
    generate_key_pairs,
    generate_shared_key,
    public_key_to_bytes,
)
from fedmoe_app.privacy.ring import Ring, key_stream

SUMS = 2  # of a round
LEAST_MEMBERS = 3  # with fewer, a sum tells too much
_SCALAR = 48  # bytes of a private key of the curve P-384
_SEED = 32


class SumError(ValueError):
    """What was asked would break the protocol; the message says what."""


def threshold(num_members: int) -> int:
    """Return how many must answer: more than two thirds, so that no server plays two games."""
    return 2 * num_members // 3 + 1


def check_number(num_members: int) -> None:
    """Refuse a sum over too few.

    Raises:
        SumError: naming both numbers.
    """
    if num_members < LEAST_MEMBERS:
        raise SumError(
            f"a masked sum over {num_members} clients: it takes at least {LEAST_MEMBERS}"
        )


Keys = tuple[bytes, ...]  # public: of the channel, and of each sum
_LONGEST_KEY = 1000  # bytes


def check_keys(keys: object) -> Keys:
    """Return the public keys that a client sent.

    Raises:
        SumError: they are none, or not three of the curve P-384.
    """
    if not isinstance(keys, list) or len(keys) != 1 + SUMS:
        raise SumError(f"keys: not the {1 + SUMS} that a client sends")
    for key in keys:
        if not isinstance(key, bytes) or len(key) > _LONGEST_KEY:
            raise SumError("keys: one is none")
        try:
            curve = bytes_to_public_key(key).curve.name
        except Exception as error:  # whatever a parser makes of a stranger's bytes
            raise SumError(f"keys: one cannot be read ({type(error).__name__})") from None
        if curve != ec.SECP384R1.name:
            raise SumError("keys: one is of another curve")
    return tuple(keys)


def _purpose(context: str, number: int, about: bytes) -> bytes:
    """Return what a key stream is for: round, sum and what is in it."""
    return b" ".join((f"{context} {number}".encode(), *([about] if about else ())))


def private_key(scalar: bytes) -> ec.EllipticCurvePrivateKey:
    """Return the private key of a scalar."""
    return ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP384R1())


@dataclass
class Member:
    """What a client knows in a round of sums; everything here is secret.

    Attributes:
        node: its Flower id.
        context: run and round.
        scalars: private keys: of the channel, and of each sum.
        seeds: b_u of each sum.
        keys: public keys of all, by node.
        members: those whose masks are on the vectors.
        shares: of others' seeds and keys, by node, as hexadecimal.
        alive: of the first sum.
        answered: sums for which shares were given out.
    """

    node: int
    context: str
    scalars: list[bytes]
    seeds: list[bytes]
    keys: dict[int, Keys] = field(default_factory=dict)
    members: list[int] = field(default_factory=list)
    shares: dict[int, list[str]] = field(default_factory=dict)
    alive: list[int] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)

    # -- 1. keys -------------------------------------------------------------------------------

    @classmethod
    def begin(cls, node: int, context: str) -> Member:
        """Make new secrets."""
        pairs = [generate_key_pairs()[0] for _ in range(1 + SUMS)]
        scalars = [p.private_numbers().private_value.to_bytes(_SCALAR, "big") for p in pairs]
        return cls(node, context, scalars, [os.urandom(_SEED) for _ in range(SUMS)])

    def public(self) -> Keys:
        """Return the public keys."""
        keys = [private_key(scalar).public_key() for scalar in self.scalars]
        return tuple(public_key_to_bytes(key) for key in keys)

    # -- 2. shares -----------------------------------------------------------------------------

    def share(self, keys: Mapping[int, Keys]) -> dict[int, bytes]:
        """Return the shares of this client's secrets for each other one, encrypted.

        Args:
            keys: public, of all by node.

        Raises:
            SumError: too few, one key twice, this client's own changed, or shares were made before.
        """
        if self.keys:
            raise SumError("shares were made before: one set of keys a round")
        check_number(len(keys))
        if keys.get(self.node) != self.public():
            raise SumError("this client's own keys are not those that it sent")
        flat = [key for of_node in keys.values() for key in of_node]
        if len(set(flat)) != len(flat) or any(len(own) != 1 + SUMS for own in keys.values()):
            raise SumError("two clients have one key, or one has too few")
        self.keys = {node: keys[node] for node in sorted(keys)}
        secrets = [*self.seeds, *self.scalars[1:]]
        number, enough = len(keys), threshold(len(keys))
        parts = [create_shares(secret, enough, number) for secret in secrets]
        sent = {}
        for position, node in enumerate(self.keys):
            own = [part[position].hex() for part in parts]
            if node == self.node:
                self.shares[node] = own
            else:
                text = json.dumps({"from": self.node, "to": node, "shares": own})
                sent[node] = encrypt(self._channel(node), text.encode())
        return sent

    # -- 3. vectors ----------------------------------------------------------------------------

    def masked(
        self, vector: Ring, members: Collection[int], number: int, about: bytes = b""
    ) -> Ring:
        """Return the vector of one of the sums with all masks on it.

        Args:
            vector: this client's.
            members: all who made shares.
            number: 0 for the first sum, 1 for the second.
            about: what is summed; masks of clients that were asked for other things stay on.

        Raises:
            SumError: another set of members than before, or too few of them.
        """
        if number == 0:
            self._join(members)
        elif set(members) != set(self.alive) or self.answered != [0]:
            raise SumError("the second sum is over those of the first whose vectors came")
        context = _purpose(self.context, number, about)
        total = vector + key_stream(self.seeds[number], context, vector)
        own = private_key(self.scalars[1 + number])
        for node in members:
            if node != self.node:
                shared = generate_shared_key(own, bytes_to_public_key(self.keys[node][1 + number]))
                mask = key_stream(shared, context, vector)
                total = total + mask if self.node > node else total - mask
        return total

    def _join(self, members: Collection[int]) -> None:
        check_number(len(members))
        if self.members:
            raise SumError("a vector was sent before: one a round")
        known = set(members) <= self.keys.keys() and self.node in members
        if not known or len(members) < threshold(len(self.keys)):
            raise SumError("members are not those that shared keys, or too few of them")
        self.members = sorted(members)

    # -- 4. masks off --------------------------------------------------------------------------

    def take_shares(self, sent: Mapping[int, bytes]) -> None:
        """Take the others' shares; call it before the first :meth:`unmask`.

        Raises:
            SumError: one is missing, or is not what it should be.
        """
        for node in self.members:
            if node != self.node:
                self.shares[node] = self._opened(node, sent.get(node, b""))

    def _opened(self, node: int, sealed: bytes) -> list[str]:
        try:
            found = json.loads(decrypt(self._channel(node), sealed))
        except Exception as error:  # Fernet's InvalidToken, JSON's
            raise SumError(f"shares of node {node}: {type(error).__name__}") from None
        if (found["from"], found["to"]) != (node, self.node) or len(found["shares"]) != 2 * SUMS:
            raise SumError(f"shares of node {node}: they are not of it, or not for this client")
        return [str(share) for share in found["shares"]]

    def unmask(
        self, alive: Collection[int], gone: Collection[int], number: int
    ) -> dict[int, bytes]:
        """Return a share of each client: of b_u for those alive, of the key for those that went.

        Raises:
            SumError: a client is in both lists or in none, too few are alive, or shares were given
                out before.
        """
        before = self.members if number == 0 else self.alive
        if number in self.answered or (number == 1 and 0 not in self.answered):
            raise SumError(f"sum {number}: shares are given out once a sum, in their order")
        if set(alive) & set(gone):
            raise SumError("a client is both alive and gone: both of its secrets are never told")
        if set(alive) | set(gone) != set(before) or self.node not in alive:
            raise SumError("alive and gone are not those who sent, or should have sent, a vector")
        if len(alive) < threshold(len(self.keys)):
            raise SumError(
                f"{len(alive)} of {len(self.keys)} alive: at least {threshold(len(self.keys))}"
            )
        self.answered.append(number)
        if number == 0:
            self.alive = sorted(alive)
        first = {node: number for node in alive} | {node: SUMS + number for node in gone}
        return {node: bytes.fromhex(self.shares[node][place]) for node, place in first.items()}

    def _channel(self, node: int) -> bytes:
        own = private_key(self.scalars[0])
        return generate_shared_key(own, bytes_to_public_key(self.keys[node][0]))

    # -- between messages ----------------------------------------------------------------------

    def dump(self) -> bytes:
        """Return all of it, for :meth:`load`."""
        return json.dumps(
            {
                "node": self.node,
                "context": self.context,
                "scalars": [scalar.hex() for scalar in self.scalars],
                "seeds": [seed.hex() for seed in self.seeds],
                "keys": {node: [key.hex() for key in keys] for node, keys in self.keys.items()},
                "members": self.members,
                "shares": self.shares,
                "alive": self.alive,
                "answered": self.answered,
            }
        ).encode()

    @classmethod
    def load(cls, data: bytes) -> Member:
        """Go on from :meth:`dump`."""
        found = json.loads(data)
        return cls(
            found["node"],
            found["context"],
            [bytes.fromhex(scalar) for scalar in found["scalars"]],
            [bytes.fromhex(seed) for seed in found["seeds"]],
            {int(n): tuple(bytes.fromhex(k) for k in keys) for n, keys in found["keys"].items()},
            found["members"],
            {int(node): shares for node, shares in found["shares"].items()},
            found["alive"],
            found["answered"],
        )


def unmasked(
    total: Ring,
    keys: Mapping[int, Keys],
    answers: Collection[Mapping[int, bytes]],
    alive: Collection[int],
    gone: Collection[int],
    context: str,
    number: int,
    about: bytes = b"",
) -> Ring:
    """Take all masks off a sum of masked vectors: the server's part.

    Args:
        total: Σ y_u over those alive.
        keys: public, of all by node.
        answers: what :meth:`Member.unmask` returned, of as many as there are.
        alive: whose vectors are in the sum.
        gone: members whose vectors are not.
        context: run and round.
        number: of the sum.
        about: what was summed.

    Raises:
        SumError: too few answers.
    """
    needed = threshold(len(keys))
    if len(answers) < needed:
        raise SumError(f"{len(answers)} of {needed} answers that it takes to unmask a sum came")
    chosen = list(answers)[:needed]
    purpose = _purpose(context, number, about)
    try:
        return _without_masks(total, keys, chosen, alive, gone, purpose, number)
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise SumError(f"shares that came do not fit each other ({type(error).__name__})") from None


def _without_masks(
    total: Ring,
    keys: Mapping[int, Keys],
    chosen: list[Mapping[int, bytes]],
    alive: Collection[int],
    gone: Collection[int],
    purpose: bytes,
    number: int,
) -> Ring:
    total = total.copy()
    for node in alive:
        seed = combine_shares([answer[node] for answer in chosen])
        total -= key_stream(seed, purpose, total)
    for node in gone:
        own = private_key(combine_shares([answer[node] for answer in chosen]))
        for other in alive:
            shared = generate_shared_key(own, bytes_to_public_key(keys[other][1 + number]))
            mask = key_stream(shared, purpose, total)
            total = total + mask if node > other else total - mask
    return total
