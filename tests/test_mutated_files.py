"""Damaged files of every kind end in an error that names them: no traceback, no hang, no flood."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest
from file_kinds import KINDS
from mutants import watched

from search_space.errors import NasError

TOTAL = 10_000
EACH = 5  # of the default suite


def check(name: str, folder: Path, count: int) -> None:
    """``count`` damaged files; fails with the seed and the error of each that escapes."""
    kind, escaped = KINDS[name], []
    path = kind.make(folder)
    sound = path.read_bytes()
    kind.read(folder)
    for seed in range(count):
        path.write_bytes(kind.mutate(sound, random.Random(seed)))
        try:
            with watched(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kind.read(folder)
        except NasError:
            pass
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            escaped.append(f"{seed}: {type(error).__name__}: {str(error)[:200]}")
    assert not escaped, f"{len(escaped)} of {count} {name} files:\n" + "\n".join(escaped[:20])


@pytest.mark.parametrize("name", KINDS)
def test_a_few_damaged_files_of_each_kind(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, EACH)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_ten_thousand_damaged_files(name: str, tmp_path: Path) -> None:
    shares = sum(kind.share for kind in KINDS.values())
    check(name, tmp_path, round(TOTAL * KINDS[name].share / shares))
