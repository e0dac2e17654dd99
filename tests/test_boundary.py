"""Files from outside: regular, of bounded size, parsed by a model; names that become paths."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import BaseModel

from search_space.boundary import parse_model, read_bytes, read_data, read_model
from search_space.errors import CorruptFileError, UsageError
from search_space.names import Digest, PlainName, check_name, check_run_name
from search_space.parsing import UnreadableTextError, parse_yaml


class Entry(BaseModel):
    digest: Digest
    name: PlainName
    value: float


def test_a_pipe_and_a_device_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for path, kind in ((tmp_path / "pipe.json", "a pipe"), (Path("/dev/zero"), "a device")):
        with pytest.raises(CorruptFileError, match=f"{path} is {kind}, not a regular file"):
            read_bytes(path)
    with pytest.raises(CorruptFileError, match="is a folder, not a regular file"):
        read_data(tmp_path)


def test_a_link_to_a_file_is_read_and_a_large_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text("a: 1")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "real.yaml")
    assert read_data(tmp_path / "link.yaml") == {"a": 1}
    with pytest.raises(CorruptFileError, match=r"has 4 bytes, more than the 3 that"):
        read_bytes(tmp_path / "real.yaml", limit=3)
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(CorruptFileError, match=r"1,099,511,627,776 bytes"):
        read_bytes(tmp_path / "sparse")


def test_a_model_says_the_file_the_entry_the_value_and_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "entry.json"
    path.write_text('{"digest": "0123456789ab", "name": "board", "value": 1.5}')
    assert read_model(path, Entry) == Entry(digest="0123456789ab", name="board", value=1.5)
    path.write_text('{"digest": "x/../victim", "name": "../up", "value": "much"}')
    with pytest.raises(CorruptFileError) as info:
        read_model(path, Entry, fix="Measure again.")
    message = str(info.value)
    assert message.startswith(f"{path}: digest='x/../victim': ")
    assert "name='../up': Value error, the name is no name of a folder" in message
    assert "value='much'" in message
    assert message.endswith("Measure again.")


@pytest.mark.parametrize("digest", ["x/../../victim", "0123456789AB", "0123456789a", "", None, 7])
def test_a_digest_is_twelve_hexadecimal_digits(digest: object) -> None:
    assert parse_model("0123456789ab", Digest, "f") == "0123456789ab"
    with pytest.raises(CorruptFileError, match=r"^journal: "):
        parse_model(digest, Digest, "journal")


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".", "..", ".hidden", "a\nb", "x" * 101])
def test_a_name_that_is_no_plain_name_of_a_file_is_refused(name: str) -> None:
    assert check_name("a{b} ü", "f") == "a{b} ü"
    with pytest.raises(CorruptFileError, match="manifest: the name"):
        check_name(name, "manifest")
    with pytest.raises(UsageError, match="--name"):
        check_run_name(name)


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}", {"x": 3, "y": 4}),
        ("a: &a {x: 1}\nb: &b {x: 2, z: 5}\nc: {<<: [*a, *b]}", {"x": 1, "z": 5}),
        ("a: &a {x: 1}\nb: &b {<<: *a}\nc: {x: 9, <<: *b}", {"x": 9}),
    ],
)
def test_a_key_beside_a_merge_wins_and_earlier_merges_win(text: str, data: object) -> None:
    assert parse_yaml(text)["c"] == data


def test_aliases_neither_hold_themselves_nor_explode() -> None:
    with pytest.raises(UnreadableTextError, match="an alias"):
        parse_yaml("a: &a [1, *a]")
    levels = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 8)]
    with pytest.raises(UnreadableTextError, match="more than 1,000,000 values"):
        parse_yaml("\n".join(["l0: &l0 [1]", *levels]))
