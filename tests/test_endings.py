"""How commands end: closed pipes, full disks, and empty text where a value should be."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import psutil
import pytest
from tiny_job import FAILED, USAGE, nas, search, tree

from results.store import RunDirectory
from search_space.errors import RunError

PIPE_CLOSED = 141


@pytest.mark.parametrize("options", [["spaces"], ["spaces", "base", "--json"]])
def test_a_closed_pipe_is_left_quietly(job: Path, options: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "nas.cli.main", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == PIPE_CLOSED


def test_a_broken_pipe_elsewhere_is_no_quiet_end(job: Path) -> None:
    with mock.patch("search_space.load_space", side_effect=BrokenPipeError(errno.EPIPE, "broken")):
        ran = nas("spaces")
    assert ran.code == FAILED
    assert "a pipe to another process broke. Fix this, then give the same command" in ran.err


def test_a_full_standard_output_says_what_to_do(job: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "nas.cli.main", "spaces"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ran.returncode == FAILED
    assert ran.stderr == (
        "error: No space left on device, for standard output or a file. Free some space, then give "
        "the same command again.\n"
    )


def test_an_error_of_a_file_names_it_and_what_to_do(job: Path) -> None:
    refused = OSError(errno.ENOSPC, "No space left on device", "runs/one/x.json")
    with mock.patch("nas.workflows.pipeline.run_search", side_effect=refused):
        ran = search()
    assert ran.code == FAILED
    assert "error: runs/one/x.json: No space left on device. Free some space, " in ran.err
    assert "the same command again with --resume." in ran.err
    with mock.patch(
        "nas.workflows.pipeline.run_search", side_effect=PermissionError(13, "Denied", "runs")
    ):
        assert "error: runs: Denied. Allow it, or choose another folder, then" in search().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["search", "--data", ""], "--data '' is empty; give a value, or leave it out"),
        (["search", "--config="], "--config '' is empty"),
        (["train", "--data", "digits", "--teacher", ""], "--teacher '' is empty"),
        (["devices", "show", ""], "'' after 'show' is empty"),
        (["profile", "import", "x", "--bundle", "", "--name", "a"], "--bundle '' is empty"),
    ],
)
def test_empty_text_is_no_value(job: Path, arguments: list[str], expected: str) -> None:
    before = tree(job)
    ran = nas(*arguments)
    assert ran.code == USAGE
    assert expected in ran.err
    assert tree(job) == before


def test_a_folder_of_runs_whose_name_would_end_a_comment(job: Path) -> None:
    with pytest.raises(RunError, match="control character"):
        RunDirectory.create(Path("a\nfoo: 5") / "run", {}, {})
    assert not Path("a\nfoo: 5").exists()


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_memory_that_is_not_there_is_said(job: Path, library: str) -> None:
    import numpy as np
    import torch

    def too_much(*arguments: object, **options: object) -> None:
        _ = torch.empty(2**60) if library == "torch" else np.empty(2**58)

    with mock.patch("nas.workflows.pipeline.run_search", side_effect=too_much):
        ran = search()
    assert ran.code == FAILED
    assert "error: not enough memory: " in ran.err
    assert "Take smaller batches (--batch-size, --train-batch-size)" in ran.err
    bug = mock.patch("nas.workflows.pipeline.run_search", side_effect=RuntimeError("a bug"))
    with bug, pytest.raises(RuntimeError, match="a bug"):
        search()


def test_sigterm_ends_as_an_interruption_does(tmp_path: Path) -> None:
    """What Slurm, Kubernetes and docker stop send."""
    script = tmp_path / "command.py"
    script.write_text(
        "import sys, time, click\n"
        "from nas.cli.endings import run\n"
        "@click.command()\n"
        "@click.argument('word', nargs=-1)\n"
        "def command(word):\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        print('saved', flush=True)\n"
        "run(command)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script), "train"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    out, err = process.communicate()
    assert (process.returncode, out) == (128 + signal.SIGTERM, "saved\n")
    assert err.strip() == (
        "interrupted; everything finished so far is saved. Continue with: nas train --resume"
    )


@pytest.mark.slow
def test_sigterm_of_a_training_by_ray_workers_says_one_line(job: Path) -> None:
    options = ["--data", "digits", "--space", "digits", "--epochs", "60", "--workers", "2"]
    command = [sys.executable, "-m", "nas.cli.main", "train", *options, "--name", "two"]
    with Path("said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        while process.poll() is None and "epoch" not in Path("said").read_text():
            time.sleep(0.2)
        listening = [
            connection.laddr.ip
            for member in psutil.Process(process.pid).children(recursive=True)
            if member.name() in ("gcs_server", "raylet")
            for connection in member.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        process.terminate()
        code = process.wait()
    assert code == 128 + signal.SIGTERM
    assert listening
    assert all(ip.endswith("127.0.0.1") for ip in listening)
    *before, last = Path("said").read_text().strip().splitlines()
    assert last.startswith("interrupted; everything finished so far is saved. Continue with: nas")
    assert last.endswith("--workers 2 --name two --resume")
    assert not any("***" in line or "Traceback" in line or "pipe" in line for line in before)
