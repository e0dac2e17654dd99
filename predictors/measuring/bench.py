"""Timing many modules against each other so that the machine's drift hits all of them alike.

Every round visits every subject once, in a new random order, and times the first run of the
visit: weights are then as cold as in a whole network. The statistic is the 25th percentile, which
ignores disturbances without chasing the best case. Weights are views into one shared pool of noise:
speed does not depend on their values, and a table needs no more memory than its largest networks.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from predictors.measuring.disturbances import ClockMeter, LoadMeter
from predictors.measuring.runtimes import Run, find_runtime
from predictors.measuring.this_machine import torch_device
from predictors.operators import DTYPES
from predictors.tables.conditions import Conditions
from search_space import Architecture, ModuleSpec
from search_space.components import input_shape
from supernet import build
from supernet.network.layers import fold_batch_norms
from supernet.network.modules import build_module
from supernet.network.quantised import FakeQuantiser, fake_quantisers, reset_ranges

_POOL_ELEMENTS = 2**26  # 256 MiB of float32, larger than most last-level caches
_ALIGNMENT = 64  # elements
_WARM_UP = 2
SPLIT_HALF_LIMIT = 0.05

Progress = Callable[[int, int, float], None]
"""Called with what is done, the most there will be, and the seconds that the rest takes at most."""


def statistic(samples: Sequence[float]) -> float:
    """Computes the 25th percentile."""
    return float(np.percentile(samples, 25))


def split_half_disagreement(samples: Sequence[float]) -> float:
    """Computes the relative difference between the statistics of both halves of the runs."""
    if len(samples) < 2:
        return math.inf
    middle = len(samples) // 2
    first, second = statistic(samples[:middle]), statistic(samples[middle:])
    return abs(first - second) / min(first, second)


class WeightPool:
    """Noise that modules built on the meta device take their weights from, one after another."""

    def __init__(self, conditions: Conditions) -> None:
        self.device = torch_device(conditions)
        self.dtype = DTYPES[conditions.precision]
        self._values = torch.empty(0)
        self._next = 0

    def fill(self, module: nn.Module) -> nn.Module:
        """Gives a module from the meta device weights of the pool, and sets it to eval mode.

        Batch norms are folded, as in whatever runs after training; those that cannot be have
        variance 1. Ranges of modules in int8 are any that let activations be cut off.
        """
        fold_batch_norms(module)
        for child in module.modules():
            for name, parameter in list(child.named_parameters(recurse=False)):
                values = self.take(parameter.shape)
                setattr(child, name, nn.Parameter(values, requires_grad=False))
            for name, buffer in list(child.named_buffers(recurse=False)):
                dtype = self.dtype if buffer.is_floating_point() else buffer.dtype
                ones = torch.ones(buffer.shape, device=self.device, dtype=dtype)
                setattr(child, name, ones)
        reset_ranges(module)
        return module

    def take(self, shape: Sequence[int]) -> torch.Tensor:
        """Takes the next contiguous tensor of ``shape``; the pool starts over at its end."""
        count = math.prod(shape)
        if count > len(self._values) or not len(self._values):
            size = max(_POOL_ELEMENTS, count)
            generator = torch.Generator().manual_seed(0)
            noise = torch.empty(size).normal_(0, 0.02, generator=generator)
            self._values, self._next = noise.to(self.device, self.dtype), 0
        if self._next + count > len(self._values):
            self._next = 0
        start = self._next
        self._next += math.ceil(count / _ALIGNMENT) * _ALIGNMENT
        return self._values[start : start + count].view(tuple(shape))


@dataclass
class Subject:
    """A module and its input, and how many runs of a visit go before the timed one."""

    module: nn.Module
    images: torch.Tensor
    settle: int = 0


def entry_subject(
    spec: ModuleSpec, in_size: int, conditions: Conditions, pool: WeightPool
) -> Subject:
    """Makes a subject of one component with a contiguous input, as in a network."""
    with torch.device("meta"):
        module = build_module(spec)
    shape = input_shape(spec, in_size, conditions.batch_size)
    return Subject(pool.fill(module), pool.take(shape))


def network_subject(
    architecture: Architecture, num_classes: int, conditions: Conditions, pool: WeightPool
) -> Subject:
    """Makes a subject of a whole network, with as many runs before as the runtime says."""
    with torch.device("meta"):
        network = build(architecture, num_classes)
    side = architecture.resolution
    images = pool.take((conditions.batch_size, 3, side, side))
    _join_ranges(pool.fill(network), images)
    return Subject(network, images, find_runtime(conditions.runtime).settle)


@torch.inference_mode()
def _join_ranges(network: nn.Module, images: torch.Tensor) -> None:
    """Gives what is never negative one range, as an output and as the next component's input.

    Runtimes join equal roundings, which those are whose ranges were found on images; a convolution
    behind two different ones onnxruntime runs in float.
    """
    quantisers = fake_quantisers(network).values()
    for part in quantisers:
        part.nonnegative = True
        part.watch = partial(_see, part)
    if quantisers:
        network(images)
    for part in quantisers:
        part.watch = None
        part.reset_parameters()


def _see(part: FakeQuantiser, x: torch.Tensor) -> None:
    part.nonnegative &= bool(x.min() >= 0)


class Bench:
    """Subjects that are timed in turn: ``samples`` are milliseconds of each run, by subject.

    ``seconds`` is the measuring time, ``warnings`` say what may have spoilt the measurement.
    """

    def __init__(self, subjects: Sequence[Subject], conditions: Conditions, seed: int = 0) -> None:
        self.subjects, self.conditions = list(subjects), conditions
        self.samples: list[list[float]] = [[] for _ in self.subjects]
        self.seconds = 0.0
        self.warnings: list[str] = []
        self._rng = np.random.default_rng(seed)
        self._device = torch_device(conditions)
        self._time = self._time_cuda if self._device.type == "cuda" else self._time_cpu
        self._runs: list[Run] = []

    @property
    def rounds(self) -> int:
        """Number of rounds that are complete."""
        return min((len(samples) for samples in self.samples), default=0)

    def warm_up(self, progress: Progress | None = None) -> None:
        """Prepares every subject and runs it twice without a record, inside ``steady``.

        Kernels are chosen and memory is mapped then.

        Raises:
            UsageError: The runtime cannot run a subject.
        """
        runtime, begin = find_runtime(self.conditions.runtime), time.monotonic()
        total = len(self.subjects)
        for done, subject in enumerate(self.subjects[len(self._runs) :], len(self._runs) + 1):
            run = runtime.prepare(subject.module, subject.images, self.conditions)
            for _ in range(_WARM_UP):
                run()
            self._runs.append(run)
            if progress is not None:
                progress(done, total, (total - done) * (time.monotonic() - begin) / done)

    def round(self) -> None:
        """Visits every prepared subject once, in random order, inside ``steady``."""
        for i in self._rng.permutation(len(self.subjects)).tolist():
            run = self._runs[i]
            for _ in range(self.subjects[i].settle):
                run()
            self.samples[i].append(self._time(run))

    @staticmethod
    def _time_cpu(run: Run) -> float:
        start = time.perf_counter_ns()
        run()
        return (time.perf_counter_ns() - start) / 1e6

    def _time_cuda(self, run: Run) -> float:
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(self._device)
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


@contextlib.contextmanager
def steady(conditions: Conditions) -> Iterator[None]:
    """Turns garbage collection and autograd off and sets the threads, until the block ends."""
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    gc.collect()
    gc.disable()
    torch.set_num_threads(conditions.threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()


@dataclass(frozen=True)
class Limits:
    """Limits of a measurement.

    It stops not before ``min_rounds`` and ``min_seconds``, then as soon as the figures are
    stable, at the latest after ``max_rounds`` and twice ``min_seconds``. Rounds of small networks
    take milliseconds while a machine drifts over tens of seconds, so counting rounds alone would
    end too early.
    """

    min_rounds: int = 10
    max_rounds: int = 40
    min_seconds: float = 12.0


def run_rounds(
    bench: Bench,
    limits: Limits,
    stable: Callable[[Bench], bool],
    after_round: Progress | None = None,
    preparing: Progress | None = None,
) -> str:
    """Prepares the subjects and runs rounds until ``limits`` say stop.

    What an earlier process measured, samples and seconds, counts where ``bench`` has it.

    Returns:
        Why it stopped: ``converged``, since ``stable`` said so, or ``rounds``.
    """
    with steady(bench.conditions):
        bench.warm_up(preparing)
        load, clock = LoadMeter(), ClockMeter(bench.conditions)
        begin, checked = time.monotonic(), -math.inf
        seconds_before, rounds_before = bench.seconds, bench.rounds
        stopped = ""
        while not stopped:
            bench.round()
            clock.sample()
            now, rounds = time.monotonic(), bench.rounds
            bench.seconds = seconds_before + now - begin
            per_round = (now - begin) / (rounds - rounds_before)
            total = max(limits.max_rounds, rounds, math.ceil(2 * limits.min_seconds / per_round))
            if after_round is not None:
                after_round(rounds, total, (total - rounds) * per_round)
            if rounds >= limits.max_rounds and bench.seconds >= 2 * limits.min_seconds:
                stopped = "rounds"
            elif (
                rounds >= limits.min_rounds
                and bench.seconds >= limits.min_seconds
                and (now - checked > 0.5 or per_round > 0.5)
            ):
                stopped = "converged" if stable(bench) else ""
                checked = time.monotonic()
        bench.warnings += [*load.warnings(), *clock.warnings()]
    return stopped
