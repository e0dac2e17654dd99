"""The store loses nothing: torn and altered journals, killed writers, resumed runs."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from results.files import read_json
from results.journal import Evaluation, Journal, read_journal
from results.store import RunDirectory, atomic_write, is_run
from search_space.errors import CorruptFileError, RunError


def evaluation(i: int, **changes: object) -> Evaluation:
    fields: dict[str, object] = {
        "digest": f"{i:012x}",
        "architecture": {"resolution": 32, "stages": [{"width": i}]},
        "metrics": {"accuracy": 0.1 * i, "latency_ms": 1 / (i + 1)},
        "index": i,
        "seconds": 0.25,
    }
    return Evaluation(**{**fields, **changes})  # type: ignore[arg-type]


def written(path: Path, n: int) -> bytes:
    with Journal(path) as journal:
        for i in range(n):
            journal.append(evaluation(i))
    return path.read_bytes()


def bits(value: float) -> bytes:
    return b"nan" if math.isnan(value) else struct.pack("d", value)


@settings(deadline=None)
@given(
    metrics=st.dictionaries(st.from_regex("[a-z_]{1,9}_x", fullmatch=True), st.floats()),
    text=st.text(),
    seconds=st.floats(allow_nan=False),
)
def test_a_line_reads_back_bit_for_bit(metrics: dict, text: str, seconds: float) -> None:
    record = Evaluation("0123456789ab", {"note": text}, metrics, 3, "failed", text, seconds)
    line = record.to_line()
    assert line.count(b"\n") == 1
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))
    back = Evaluation.from_line(line)
    assert {k: bits(v) for k, v in back.metrics.items()} == {k: bits(v) for k, v in metrics.items()}
    assert (back.architecture, back.error, back.index) == ({"note": text}, text, 3)
    assert bits(back.seconds) == bits(seconds)


def test_any_altered_byte_of_a_line_is_noticed() -> None:
    line = evaluation(1).to_line()
    for i in range(len(line)):
        with pytest.raises(ValueError, match=r"checksum|short"):
            Evaluation.from_line(line[:i] + bytes([line[i] ^ 1]) + line[i + 1 :])


def test_journal_keeps_order_and_each_architecture_once(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        for i in (2, 0, 1):
            journal.append(evaluation(i))
        with pytest.raises(RunError, match="already evaluated"):
            journal.append(evaluation(0))
    with Journal(path) as journal:
        assert [e.index for e in journal] == [2, 0, 1]
        assert len(journal) == 3
        assert not journal.warnings
        assert journal.get(evaluation(1).digest) == evaluation(1)
        assert journal.get("missing") is None
        assert evaluation(1).digest in journal


def test_truncation_at_every_byte_of_the_last_line_is_recovered(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole", 3)
    start = whole.rindex(b"\n", 0, -1) + 1
    path = tmp_path / "j"
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        assert len(read_journal(path)) == 2
        assert path.stat().st_size == end, "reading alone must not repair"
        with Journal(path) as journal:
            assert [e.index for e in journal] == [0, 1]
            assert len(journal.warnings) == (end > start)
            if end > start:
                assert "line 3" in journal.warnings[0]
            assert path.read_bytes() == whole[:start]
            journal.append(evaluation(2))
        assert path.read_bytes() == whole


@pytest.mark.parametrize("tail", [b"\0" * 40, b"garbage\n", b'{"digest": 1}\n', b"\xff\xfe\r x"])
def test_a_broken_last_line_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "j"
    whole = written(path, 2)
    path.write_bytes(whole + tail)
    with Journal(path) as journal:
        assert "line 3" in journal.warnings[0]
        assert len(journal) == 2
    assert path.read_bytes() == whole


def test_a_broken_line_in_the_middle_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "j"
    altered = written(path, 3).replace(b'"accuracy":0.1', b'"accuracy":0.9')
    path.write_bytes(altered)
    with pytest.raises(CorruptFileError, match=r"j, line 2: its checksum.*delete line 2"):
        Journal(path)
    assert path.read_bytes() == altered
    path.write_bytes(altered.split(b"\n", 1)[0] + b"\n")
    with Journal(path) as journal:  # the refusal freed the lock
        assert len(journal) == 1


@pytest.mark.parametrize("content", [b"garbage", b"garbage\n", b"PAR1\0\0", b"[1]\n[2]\n", b"{}\n"])
def test_what_is_no_journal_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(content)
    for read in (Journal, read_journal):
        with pytest.raises(CorruptFileError, match="j is no journal of evaluations: it begins"):
            read(path)
    assert path.read_bytes() == content


def test_a_torn_first_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "j"
    line = written(path, 1)
    for torn in (*(line[:end] for end in range(1, len(line))), b"\0" * 512):
        path.write_bytes(torn)
        with Journal(path) as journal:
            assert len(journal.warnings) == 1
        assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"digest": "x/../../../victim"}, "digest='x/../../../victim'"),
        ({"digest": "0123456789AB"}, "digest='0123456789AB'"),
        ({"status": "done"}, "status='done'"),
        ({"metrics": {"accuracy": "much"}}, "metrics.accuracy='much'"),
        ({"metrics": {"digest": 1.0}}, "reserved names"),
        ({"architecture": 5}, "architecture=5"),
    ],
)
def test_a_whole_line_that_is_no_evaluation_is_refused_and_left_alone(
    tmp_path: Path, changes: dict, problem: str
) -> None:
    path = tmp_path / "j"
    line = json.loads(evaluation(1).to_line())
    del line["checksum"]
    text = json.dumps({**line, **changes}, separators=(",", ":")).encode()[:-1]
    made = text + b',"checksum":"' + hashlib.sha256(text).hexdigest()[:12].encode() + b'"}\n'
    path.write_bytes(evaluation(0).to_line() + made)
    for read in (Journal, read_journal):
        with pytest.raises(CorruptFileError, match="line 2: it is not an evaluation") as info:
            read(path)
        assert problem in str(info.value)
    assert path.read_bytes() == evaluation(0).to_line() + made


def test_a_pipe_and_a_device_are_no_journal(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(CorruptFileError, match="not a regular file"):
            read_journal(path)


def test_unknown_numbers_are_null_in_what_is_stored(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run", {}, {}) as run:
        path = run.write_json("x.json", {"tau": float("nan"), "all": (1.0, float("-inf"))})
        assert json.loads(path.read_text()) == {"tau": None, "all": [1.0, None]}


def test_a_folder_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "j").mkdir()
    for read in (Journal, read_journal):
        with pytest.raises(CorruptFileError, match=r"j is a folder.*move it away"):
            read(tmp_path / "j")


def test_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(written(path, 3).replace(b"\n", b"\r\n"))
    assert len(read_journal(path)) == 3
    with Journal(path) as journal:
        assert not journal.warnings
        journal.append(evaluation(3))
    whole = path.read_bytes()
    path.write_bytes(whole + evaluation(4).to_line()[:30])
    with Journal(path) as journal:
        assert [e.index for e in journal] == [0, 1, 2, 3]
    assert path.read_bytes() == whole


def test_a_doubled_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(written(path, 1) * 2)
    with pytest.raises(CorruptFileError, match="line 2: architecture 000000000000 is already"):
        Journal(path)


WRITER = """
import sys
from pathlib import Path
from results.journal import Evaluation, Journal
with Journal(Path(sys.argv[1])) as journal:
    i = len(journal)
    while True:
        arch = {"text": "x" * (37 * i % 5000)}
        journal.append(Evaluation(f"{i:012x}", arch, {"accuracy": i / 7}, i))
        print(i, flush=True)
        i += 1
"""


def test_kill_9_of_a_writer_loses_and_doubles_nothing(tmp_path: Path) -> None:
    path = tmp_path / "j"
    reported = -1
    for delay in (0.01, 0.03, 0.002, 0.02):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().split("\n")
        process.wait()
        reported = max([reported, *(int(line) for line in lines[:-1] if line)])
        with Journal(path) as journal:
            assert [e.index for e in journal] == list(range(len(journal)))
            assert len(journal) > reported, "an evaluation was reported and then lost"
            assert all(e.metrics["accuracy"] == e.index / 7 for e in journal)
    assert reported > 4


def test_two_writers_cannot_share_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path), pytest.raises(RunError, match=f"process {os.getpid()}.*another --name"):
        Journal(path)
    Journal(path).close()


def test_a_forked_worker_does_not_keep_the_lock(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        time.sleep(0.05)
        journal.close()
        Journal(tmp_path / "j").close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_full_disk_leaves_a_sound_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    write = os.write
    with Journal(path) as journal:
        journal.append(evaluation(0))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda handle, line: write(handle, line[:20]))
            with pytest.raises(RunError, match="Free some space"):
                journal.append(evaluation(1))
        journal.append(evaluation(1))
    with Journal(path) as journal:
        assert len(journal) == 2
        assert not journal.warnings


def test_snapshot_has_one_column_a_metric(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.append(evaluation(0))
        journal.append(evaluation(1, metrics={"macs": 5}, status="failed", error="out of memory"))
        journal.snapshot(tmp_path / "s.parquet")
    table = pq.read_table(tmp_path / "s.parquet")
    assert table.schema.metadata[b"nas_snapshot_version"] == b"1"
    assert table.column_names[:3] == ["digest", "index", "status"]
    rows = table.to_pylist()
    assert rows[0]["latency_ms"] == 1.0
    assert rows[0]["macs"] is None
    assert rows[1]["macs"] == 5.0
    assert rows[1]["error"] == "out of memory"
    assert json.loads(rows[1]["architecture"]) == evaluation(1).architecture


def test_an_interrupted_replacement_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    atomic_write(path, "old")

    def refuse(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="no space"):
        atomic_write(path, b"new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


CONFIG = {"data": "digits", "seed": 0, "search": {"population": 32, "rates": (0.1, 0.5)}, "json": 1}


def test_run_directory_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "demo"
    with RunDirectory.create(path, CONFIG, {"seed": 0}, "# how it is repeated\n") as run:
        with run.journal() as journal:
            journal.append(evaluation(0))
        with run.phase("search"):
            pass
        with pytest.raises(KeyError), run.phase("export"):
            raise KeyError
        run.update_manifest(device="cpu")
        run.write_json("result.json", {"best": 1})
        with pytest.raises(RunError, match="being written"):
            RunDirectory.resume(path, CONFIG)
    text = (path / "config.yaml").read_text()
    assert text.startswith("# how it is repeated\n")
    assert yaml.safe_load(text)["search"] == {"population": 32, "rates": [0.1, 0.5]}
    (path / ".result.json.abc.tmp").write_text("half")
    with RunDirectory.resume(path, CONFIG) as run:
        assert len(run.journal()) == 1
        assert read_json(path / "result.json") == {"best": 1}
        assert run.manifest["device"] == "cpu"
        assert [(p["name"], p["status"]) for p in run.manifest["phases"]] == [
            ("search", "done"),
            ("export", "interrupted"),
        ]
    assert not list(path.glob("*.tmp"))
    assert not [p for p in path.parent.iterdir() if p.name != "demo"]


def test_a_run_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    RunDirectory.create(tmp_path / "empty", CONFIG, {}).close()
    with pytest.raises(RunError, match="--resume, or choose another --name"):
        RunDirectory.create(tmp_path / "empty", CONFIG, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="--name"):
        RunDirectory.create(tmp_path / "file", CONFIG, {})


def test_resume_refuses_another_configuration_and_shows_it(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "demo", CONFIG, {}).close()
    asked = {**CONFIG, "seed": 1, "search": {"population": 64, "rates": [0.1, 0.5]}, "json": 2}
    with pytest.raises(RunError) as error:
        RunDirectory.resume(tmp_path / "demo", {**asked, "space": "tiny"}, {"json"})
    lines = str(error.value).split("\n")[1:-1]
    assert [line.strip() for line in lines] == [
        "search.population: 32 -> 64",
        "seed: 0 -> 1",
        "space: (absent) -> tiny",
    ]
    RunDirectory.resume(tmp_path / "demo", asked, {"json", "seed", "search"}).close()


def test_resume_of_a_missing_run_names_the_nearest(tmp_path: Path) -> None:
    for name in ("digits-2ms", "cifar"):
        RunDirectory.create(tmp_path / name, CONFIG, {}).close()
    assert is_run(tmp_path / "cifar")
    with pytest.raises(RunError, match="Nearest runs there: digits-2ms"):
        RunDirectory.resume(tmp_path / "digits-3ms", CONFIG)
    with pytest.raises(RunError, match="no runs there"):
        RunDirectory.resume(tmp_path / "nowhere" / "x", CONFIG)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None
)
@given(cut=st.integers(0, 40))
def test_unreadable_files_are_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "run"
    if not path.exists():
        RunDirectory.create(path, CONFIG, {}).close()
    with RunDirectory.resume(path, CONFIG) as run:
        run.write_json("result.json", {"best": {"digest": "0123456789ab", "n": [1, 2]}})
        content = (path / "result.json").read_bytes().rstrip()
        (path / "result.json").write_bytes(content[: min(cut, len(content) - 1)])
        with pytest.raises(CorruptFileError, match=r"result\.json"):
            read_json(path / "result.json")
        with pytest.raises(CorruptFileError, match=r"other\.json does not exist"):
            read_json(path / "other.json")


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", CONFIG, {}).close()
    for text in ("{", "- 1", ""):
        (tmp_path / "run" / "config.yaml").write_text(text)
        with pytest.raises(CorruptFileError, match=r"config\.yaml"):
            RunDirectory.resume(tmp_path / "run", CONFIG)
