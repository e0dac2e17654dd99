"""Two parties with additive shares of fixed-point numbers, who count what they send.

The protocols that ``predictors.estimates.secure`` counts in closed form, carried out: rounds and
bytes are of messages that were really made, and values show that the protocols are right.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

Words: TypeAlias = np.ndarray
Shares: TypeAlias = tuple[Words, Words]
FRACTION = 16  # bits


class Parties:
    """Both parties and the dealer."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.rounds, self.bytes = 0, 0.0

    def share(self, values: Words) -> Shares:
        mask = self.rng.integers(0, 2**64, values.shape, np.uint64)
        return mask, values - mask

    def secret(self, numbers: np.ndarray) -> Shares:
        return self.share(np.round(numbers * 2**FRACTION).astype(np.int64).view(np.uint64))

    @staticmethod
    def shown(x: Shares) -> np.ndarray:
        return (x[0] + x[1]).view(np.int64) / 2**FRACTION

    def _send(self, *numbers: int, size: float = 8) -> None:
        self.rounds += 1
        self.bytes += size * sum(numbers)

    @staticmethod
    def cut(x: Shares, bits: int = FRACTION) -> Shares:
        """Divides by a power of two; each party does it alone."""
        first = (x[0].view(np.int64) >> bits).view(np.uint64)
        return first, (-((-x[1]).view(np.int64) >> bits)).view(np.uint64)

    def times(self, x: Shares, y: Shares, cut: bool = True) -> Shares:
        a, b = (self.rng.integers(0, 2**64, z[0].shape, np.uint64) for z in (x, y))
        (a0, a1), (b0, b1), (c0, c1) = self.share(a), self.share(b), self.share(a * b)
        self._send(x[0].size, y[0].size)
        e, f = x[0] - a0 + x[1] - a1, y[0] - b0 + y[1] - b1
        result = c0 + e * b0 + f * a0 + e * f, c1 + e * b1 + f * a1
        return self.cut(result) if cut else result

    def square(self, x: Shares) -> Shares:
        a = self.rng.integers(0, 2**64, x[0].shape, np.uint64)
        (a0, a1), (c0, c1) = self.share(a), self.share(a * a)
        self._send(x[0].size)
        e = x[0] - a0 + x[1] - a1
        two = np.uint64(2)
        return self.cut((c0 + two * e * a0 + e * e, c1 + two * e * a1))

    def ands(self, *pairs: tuple[Shares, Shares]) -> list[Shares]:
        """ANDs of words that are the XOR of their shares, all in one round."""
        results, sent = [], []
        for x, y in pairs:
            a, b, a0, b0, c0 = self.rng.integers(0, 2**64, (5, *x[0].shape), np.uint64)
            a1, b1, c1 = a ^ a0, b ^ b0, (a & b) ^ c0
            e, f = x[0] ^ a0 ^ x[1] ^ a1, y[0] ^ b0 ^ y[1] ^ b1
            sent += [x[0].size, y[0].size]
            results.append(
                (c0 ^ (e & b0) ^ (f & a0) ^ (e & f), c1 ^ (e & b1) ^ (f & a1)),
            )
        self._send(*sent)
        return results

    def negative(self, x: Shares) -> Shares:
        """1 where x is negative, else 0, without a fraction."""
        none = np.zeros_like(x[0])
        passes = x
        (makes,) = self.ands(((x[0], none), (none, x[1])))
        for step in map(np.uint64, (1, 2, 4, 8, 16, 32)):
            before = (makes[0] << step, makes[1] << step), (passes[0] << step, passes[1] << step)
            brought, passes = self.ands((passes, before[0]), (passes, before[1]))
            makes = makes[0] ^ brought[0], makes[1] ^ brought[1]
        bits = [(s ^ (m << np.uint64(1))) >> np.uint64(63) for s, m in zip(x, makes, strict=True)]
        coin = self.rng.integers(0, 2, x[0].shape, np.uint64)
        hidden = self.rng.integers(0, 2, x[0].shape, np.uint64)
        self._send(x[0].size, size=1 / 8)
        seen = bits[0] ^ hidden ^ bits[1] ^ coin ^ hidden
        first, second = self.share(coin)
        one = np.uint64(1)
        return seen + (one - seen * np.uint64(2)) * first, (one - seen * np.uint64(2)) * second

    def relu(self, x: Shares) -> Shares:
        below = self.negative(x)
        return self.times(x, (np.uint64(1) - below[0], -below[1]), cut=False)

    def largest(self, x: Shares) -> Shares:
        """Maximum along the last axis, by a tree."""
        while (count := x[0].shape[-1]) > 1:
            half = count // 2
            a, b, rest = (
                tuple(part[..., where] for part in x)
                for where in (slice(half), slice(half, 2 * half), slice(2 * half, None))
            )
            more = self.relu((a[0] - b[0], a[1] - b[1]))
            x = tuple(np.concatenate([more[i] + b[i], rest[i]], -1) for i in range(2))
        return x

    def _plus(self, x: Shares, number: float) -> Shares:
        return x[0] + np.uint64(round(number * 2**FRACTION)), x[1]

    def exp(self, x: Shares) -> Shares:
        x = self._plus(self.cut(x, 8), 1)
        for _ in range(8):
            x = self.square(x)
        return x

    def reciprocal(self, x: Shares) -> Shares:
        start = self.exp(self._plus((-x[0], -x[1]), 0.5))
        y = self._plus((start[0] * np.uint64(3), start[1] * np.uint64(3)), 0.003)
        for _ in range(10):
            product = self.times(x, y)
            y = self.times(y, self._plus((-product[0], -product[1]), 2))
        return y

    def softmax(self, x: Shares) -> Shares:
        most = self.largest(x)
        weights = self.exp((x[0] - most[0], x[1] - most[1]))
        return self._normal(weights)

    def relu_softmax(self, x: Shares) -> Shares:
        return self._normal(self.relu(x))

    def _normal(self, weights: Shares) -> Shares:
        total = weights[0].sum(-1, keepdims=True), weights[1].sum(-1, keepdims=True)
        return self.times(weights, self.reciprocal(total))
