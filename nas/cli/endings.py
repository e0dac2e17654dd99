"""Ends of commands: an exit code, and one message for everything that a user can fix."""

from __future__ import annotations

import errno
import os
import select
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from search_space.errors import (
    InfeasibleError,
    InvalidQuantityError,
    NasError,
    UnknownNameError,
    UsageError,
)

FAILED, USAGE, INFEASIBLE, INTERRUPTED, PIPE_CLOSED, TERMINATED = 1, 2, 3, 130, 141, 143

_PID = os.getpid()
_FIXES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free some space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Allow it, or choose another folder"),
}


def run(command: click.Command) -> None:
    """Run ``command`` with the arguments of this process, and exit with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        refuse_empty(sys.argv[1:])
        command.main(standalone_mode=False)
        sys.stdout.flush()  # here, where an error of the last lines can still be said
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        _say_interrupted()
        terminated = isinstance(error.__cause__ or error, TerminatedError)
        sys.exit(TERMINATED if terminated else INTERRUPTED)
    except InfeasibleError as error:
        _fail(str(error), INFEASIBLE)
    except (InvalidQuantityError, UnknownNameError, UsageError) as error:
        _fail(str(error), USAGE)
    except NasError as error:
        _fail(str(error))
    except SystemExit:  # click's, for a pipe that nobody reads any more
        if _reader_gone():
            sys.exit(PIPE_CLOSED)
        _fail(f"a pipe to another process broke. {_again('Fix this')}")
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        fix = "Take smaller batches (--batch-size, --train-batch-size) or a smaller --space"
        _fail(f"not enough memory: {_first_line(error)}. {_again(fix)}")
    except OSError as error:  # a full disk, a folder that may not be written
        gone = isinstance(error, BrokenPipeError) and _reader_gone()
        # What is left to write would fail again when the interpreter ends, with a code of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if gone:
            sys.exit(PIPE_CLOSED)
        _fail(_explain(error))


def _fail(message: str, code: int = FAILED) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


class TerminatedError(KeyboardInterrupt):
    """SIGTERM: what Slurm, Kubernetes and ``docker stop`` send before they kill."""


def _terminate(number: int, frame: Any) -> None:
    """Ends as Ctrl-C does; once, since what was begun is saved after it."""
    if os.getpid() == _PID:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise TerminatedError
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a child that was forked
    os.kill(os.getpid(), signal.SIGTERM)


def refuse_empty(arguments: Sequence[str]) -> None:
    """Refuses empty text, which would mean the current folder as a path.

    A variable of the shell that is not set leaves it.

    Raises:
        UsageError: Names the option.
    """
    for i, argument in enumerate(arguments):
        if argument.startswith("--") and argument.endswith("=") and argument.count("=") == 1:
            what = f"{argument[:-1]} ''"
        elif argument == "":
            before = arguments[i - 1] if i else "nas"
            what = f"{before} ''" if before.startswith("-") else f"'' after {before!r}"
        else:
            continue
        raise UsageError(
            f"{what} is empty; give a value, or leave it out. A variable may not be set."
        )


def this_command() -> str:
    """The command of this process, as it can be typed again."""
    return shlex.join(["nas", *sys.argv[1:]])


def _reader_gone() -> bool:
    """Whether standard output or standard error is a pipe whose other end is closed."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _is_out_of_memory(error: Exception) -> bool:
    """Whether it is Python's, NumPy's or torch's error for memory that is not there."""
    text = str(error)  # torch's on the CPU has no class of its own
    return isinstance(error, MemoryError) or any(
        part in text for part in ("can't allocate memory", "out of memory")
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


def _explain(error: OSError) -> str:
    problem = error.strerror or str(error)
    if error.filename is not None:
        problem = f"{error.filename}: {problem}"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        problem += ", for standard output or a file"
    return f"{problem}. {_again(_FIXES.get(error.errno or 0, 'Fix this'))}"


def _again(fix: str) -> str:
    resume = " with --resume" if _has_run() and "--resume" not in sys.argv else ""
    return f"{fix}, then give the same command again{resume}."


def _has_run() -> bool:
    return len(sys.argv) > 1 and sys.argv[1] in ("search", "train", "finetune")


def _say_interrupted() -> None:
    message = "interrupted; everything finished so far is saved."
    if _has_run():
        resume = "" if "--resume" in sys.argv else " --resume"
        message += f" Continue with: {this_command()}{resume}"
    click.echo(f"\n{message}", err=True)
