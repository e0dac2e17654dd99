"""Time of inference by two parties who see neither image nor weights: rounds and bytes.

The model: semi-honest parties hold additive shares of numbers modulo 2⁶⁴; multiplication triples
and masks of weights were dealt before. What is counted is what each party then sends, in rounds in
which both send at once, and

    seconds = rounds · delay + bytes / bandwidth

Computing itself is left out, as is what could be sent together because neither needs the other.

- Sums, means, additions and moves cost nothing. A product opens both masked factors (Beaver, 1991):
  one round, 8 bytes a number; of a layer the input only, since the weights are opened once.
- A sign is the last carry of an addition of 64 bits, by a tree of 1 + 2·6 layers of ANDs in 7
  rounds that open two bits each, and one bit to make it a number: 8 rounds, 208 bytes.
- Exponentials are (1 + x/2⁸)^2⁸, reciprocals ten and inverse roots three steps of Newton's method
  that start from an exponential, and a maximum is a tree, as in CrypTen (Knott et al., 2021).
- GELU is three pieces with polynomials of degree 3 and 6 as in PUMA (Dong et al., 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from predictors.operators import Operator, operators
from search_space import ModuleSpec
from search_space.errors import UsageError

WORD = 8.0  # bytes of a share
BITS, LEVELS = 64, 6


@dataclass(frozen=True)
class Exchange:
    """What one party sends: rounds, one after the other, and bytes in all of them."""

    rounds: int = 0
    bytes: float = 0.0

    def __add__(self, other: Exchange) -> Exchange:
        return Exchange(self.rounds + other.rounds, self.bytes + other.bytes)

    def times(self, numbers: int) -> Exchange:
        """The same for many numbers at once: as many rounds, and the bytes of each."""
        return Exchange(self.rounds, self.bytes * numbers)

    def repeated(self, times: int) -> Exchange:
        """The same again and again, each on the result of the one before."""
        return Exchange(self.rounds * times, self.bytes * times)


@dataclass(frozen=True)
class Network:
    """A connection between two parties: seconds that a message is on its way, bytes a second."""

    delay: float
    bandwidth: float

    def seconds(self, exchange: Exchange) -> float:
        """How long an exchange takes."""
        return exchange.rounds * self.delay + exchange.bytes / self.bandwidth


NETWORKS = {"lan": Network(0.15e-3, 384e6), "wan": Network(20e-3, 44e6)}
"""Echoes in 0.3 and 40 ms; the usual ones of the field, as in Cheetah (Huang et al., 2022)."""

# of one number ---------------------------------------------------------------------------------
FREE = Exchange()
SQUARE = Exchange(1, WORD)
PRODUCT = Exchange(1, 2 * WORD)
SIGN = Exchange(1 + LEVELS + 1, ((1 + 2 * LEVELS) * 2 * BITS + 1) / 8)
RELU = SIGN + PRODUCT
CLAMP = Exchange(RELU.rounds, 2 * RELU.bytes)  # two signs at once
EXP = SQUARE.repeated(8)
RECIPROCAL = EXP + PRODUCT.repeated(2).repeated(10)
INVERSE_ROOT = EXP + (SQUARE + PRODUCT.repeated(2)).repeated(3)
SIGMOID = EXP + RECIPROCAL
# three signs, meanwhile x², x³, x⁴ and x⁶, then three products
GELU = Exchange(RELU.rounds, 3 * RELU.bytes + 3 * SQUARE.bytes + PRODUCT.bytes)

_LOCAL = {
    *("add", "sub", "neg", "sum", "mean", "avg_pool2d", "where", "zeros_like"),
    *("cat", "stack", "split", "select", "slice", "index", "index_select", "roll", "flip"),
    *("clone", "copy_", "contiguous", "expand", "constant_pad_nd", "im2col", "col2im"),
    *("reshape", "view", "flatten", "permute", "transpose", "unsqueeze"),
}


def largest(numbers: int) -> Exchange:
    """The maximum of so many numbers, by a tree."""
    return Exchange(RELU.rounds * math.ceil(math.log2(numbers)), RELU.bytes * (numbers - 1))


_ELEMENTWISE = {
    "relu": RELU,
    "hardtanh": CLAMP,
    "hardsigmoid": CLAMP,
    "hardswish": CLAMP + PRODUCT,
    "clamp": CLAMP,
    "clamp_min": RELU,
    "exp": EXP,
    "sigmoid": SIGMOID,
    "tanh": SIGMOID,
    "silu": SIGMOID + PRODUCT,
    "gelu": GELU,
    "pow": SQUARE,  # modules have no other power
    "max_pool2d_with_indices": largest(9),  # nor any but 3 × 3
    "rsqrt": INVERSE_ROOT,
    "sqrt": INVERSE_ROOT + PRODUCT,
    "reciprocal": RECIPROCAL,
}


def softmax(rows: int, keys: int) -> Exchange:
    """Weights of ``keys`` scores each: maximum, exponential, reciprocal of the sum, product."""
    result = largest(keys).times(rows) + EXP.times(rows * keys) + RECIPROCAL.times(rows)
    return result + opened(rows * keys, rows)


def opened(*numbers: int) -> Exchange:
    """One product whose masked factors have so many numbers."""
    return Exchange(1, WORD * sum(numbers))


def _norm(op: Operator, rows: int) -> Exchange:
    """Squares, inverse root of their mean, product, and product with the norm's weights."""
    count = math.prod(op.writes[0].shape)
    result = opened(count) + INVERSE_ROOT.times(rows) + opened(count, rows)
    return result + opened(count) if len(op.reads) > 1 else result


def _attention(op: Operator) -> Exchange:
    q, k, v = (operand.shape for operand in op.reads[:3])
    rows, keys = math.prod(q[:-1]), k[-2]
    products = opened(math.prod(q), math.prod(k)) + opened(rows * keys, math.prod(v))
    return products + softmax(rows, keys)


def _length(op: Operator) -> Exchange:
    numbers, lengths = (math.prod(operand.shape) for operand in (op.reads[0], op.writes[0]))
    return SQUARE.times(numbers) + (INVERSE_ROOT + PRODUCT).times(lengths)


def _product(op: Operator) -> Exchange:
    factors = [math.prod(operand.shape) for operand in op.reads]
    return opened(*factors) if len(factors) > 1 else FREE  # with a number all know


def _quotient(op: Operator) -> Exchange:
    if len(op.reads) < 2:
        return FREE
    return RECIPROCAL.times(math.prod(op.reads[1].shape)) + _product(op)


_RULES: dict[str, Callable[[Operator], Exchange]] = {
    **dict.fromkeys(
        ("linear", "conv1d", "conv2d"), lambda op: opened(math.prod(op.reads[0].shape))
    ),
    **dict.fromkeys(("bmm", "mm", "mul"), _product),
    "div": _quotient,
    "linalg_vector_norm": _length,
    "scaled_dot_product_attention": _attention,
    "softmax": lambda op: softmax(math.prod(op.reads[0].shape[:-1]), op.reads[0].shape[-1]),
    "layer_norm": lambda op: _norm(op, math.prod(op.reads[0].shape[:-1])),
    "group_norm": lambda op: _norm(op, op.reads[0].shape[0]),  # of one group
    "batch_norm": lambda op: opened(math.prod(op.reads[0].shape)),
}


def exchanged(op: Operator) -> Exchange:
    """What an operator makes each party send.

    Raises:
        UsageError: The model knows no such operator.
    """
    if op.name in _RULES:
        return _RULES[op.name](op)
    if op.name in _ELEMENTWISE:
        return _ELEMENTWISE[op.name].times(math.prod(op.writes[0].shape))
    if op.name in _LOCAL:
        return FREE
    known = sorted({*_RULES, *_ELEMENTWISE, *_LOCAL})
    raise UsageError(
        f"the model of secure computation knows no operator {op.name!r}; it knows "
        f"{', '.join(known)}. Leave out what needs it, or add its rounds and bytes to "
        "predictors/estimates/secure.py."
    )


def exchange_of(spec: ModuleSpec, in_size: int) -> Exchange:
    """What a component makes each party send for one image; raises as ``exchanged`` does."""
    return sum((exchanged(op) for op in operators(spec, in_size)), FREE)


def secure_seconds(spec: ModuleSpec, in_size: int, network: Network) -> float:
    """How long a component takes for one image; raises as ``exchanged`` does."""
    return network.seconds(exchange_of(spec, in_size))
