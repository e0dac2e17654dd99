"""Architectures and spaces by name and from files; every error names the file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from architecture_strategies import architectures
from hypothesis import HealthCheck, given, settings

from search_space import (
    Architecture,
    dump_architecture,
    known,
    known_names,
    load_architecture,
    load_space,
    space_names,
)
from search_space.errors import (
    CorruptFileError,
    InvalidArchitectureError,
    InvalidSpaceError,
    NasError,
    UnknownNameError,
)

SWIN = known("swin_t")


def write(path: Path, text: str) -> str:
    path.write_text(text, "utf-8")
    return str(path)


# Architectures ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", known_names())
def test_architecture_by_name(name: str) -> None:
    assert load_architecture(name) == known(name)


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
@pytest.mark.parametrize("name", ["swin_t", "convnext_t", "poolformer_m36"])  # small numbers too
def test_architecture_from_file(tmp_path: Path, name: str, suffix: str) -> None:
    content = known(name).to_dict()
    text = json.dumps(content, indent="\t") if suffix == ".json" else yaml.safe_dump(content)
    assert load_architecture(write(tmp_path / f"mine{suffix}", text)) == known(name)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda content: {"architecture": content},
        lambda content: {"model_args": {"architecture": content}, "num_classes": 10},
        lambda content: {"architecture": content, "metrics": {"macs": 1}},
    ],
)
def test_architecture_inside_a_larger_file(tmp_path: Path, wrap: object) -> None:
    text = json.dumps(wrap(SWIN.to_dict()))  # type: ignore[operator]
    assert load_architecture(write(tmp_path / "config.json", text)) == SWIN


@given(architectures())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_dump_round_trips(tmp_path: Path, architecture: Architecture) -> None:
    path = write(tmp_path / "dumped.yaml", dump_architecture(architecture))
    assert load_architecture(path) == architecture


def test_dump_is_readable() -> None:
    lines = dump_architecture(SWIN).splitlines()
    assert lines[0] == "digest: 8b95100c8202"
    block = "{mixer: window_attention, head_dim: 32, window: 7, mlp_ratio: 4.0}"
    assert sum(block in line for line in lines) == sum(SWIN.depths)  # one line a block
    assert len(lines) < 45


@pytest.mark.parametrize("digest", ["123456789012", "12345e678901", "1e1234567890", "000000000000"])
def test_a_digest_that_looks_like_a_number_stays_text(tmp_path: Path, digest: str) -> None:
    content = {"digest": digest, **SWIN.to_dict()}
    path = write(tmp_path / "mine.yaml", yaml.safe_dump(content))
    with pytest.raises(CorruptFileError, match=f"says digest '{digest}'"):
        load_architecture(path)


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    content = known("poolformer_m36").to_dict()
    content["macro"].pop("layer_scale")
    text = yaml.safe_dump(content).replace("macro:\n", "macro:\n  layer_scale: 1e-6\n")
    assert "1e-6" in text
    assert load_architecture(write(tmp_path / "mine.yaml", text)) == known("poolformer_m36")


def test_altered_file(tmp_path: Path) -> None:
    text = dump_architecture(SWIN).replace("resolution: 224", "resolution: 256")
    path = write(tmp_path / "mine.yaml", text)
    with pytest.raises(CorruptFileError, match="altered") as info:
        load_architecture(path)
    for word in (path, SWIN.digest, replace(SWIN, resolution=256).digest):
        assert word in str(info.value)


def test_unknown_design() -> None:
    with pytest.raises(UnknownNameError, match="unknown design 'swin'") as info:
        load_architecture("swin")
    assert all(name in str(info.value) for name in known_names())


def test_wrong_architecture_in_a_file(tmp_path: Path) -> None:
    content = SWIN.to_dict()
    content["stages"][1]["width"] = 100
    path = write(tmp_path / "mine.json", json.dumps(content))
    with pytest.raises(InvalidArchitectureError, match="multiple of 32") as info:
        load_architecture(path)
    assert str(info.value).startswith(f"{path}: stages[1]: width=100")


# Spaces -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["base", "cifar", "digits", "tiny"])
def test_space_by_name(name: str) -> None:
    assert name in space_names()
    assert load_space(name).name == name


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_space_from_file(tmp_path: Path, suffix: str) -> None:
    space = load_space("base")
    content = space.to_dict()
    text = json.dumps(content) if suffix == ".json" else yaml.safe_dump(content)
    assert load_space(write(tmp_path / f"mine{suffix}", text)) == space


def test_space_is_named_as_its_file(tmp_path: Path) -> None:
    content = {key: value for key, value in load_space("digits").to_dict().items() if key != "name"}
    space = load_space(write(tmp_path / "mine.yaml", yaml.safe_dump(content)))
    assert space.name == "mine"
    assert space.digest == load_space("digits").digest


def test_unknown_space() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'digits'") as info:
        load_space("digit")
    assert all(name in str(info.value) for name in space_names())


def test_wrong_space_in_a_file(tmp_path: Path) -> None:
    content = load_space("digits").to_dict()
    content["stages"][2]["depth"] = [3, 2]
    path = write(tmp_path / "mine.yaml", yaml.safe_dump(content))
    with pytest.raises(InvalidSpaceError, match="ascending") as info:
        load_space(path)
    assert str(info.value).startswith(f"{path}: stages[2]: depth [3, 2]")


# Files that are not what they should be -----------------------------------------------------


@pytest.mark.parametrize("load", [load_architecture, load_space])
@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("missing.yaml", None, "does not exist; give the path"),
        ("broken.yaml", b"stages: [1, 2", "not valid YAML"),
        ("tagged.yaml", b"!!python/object/apply:os.getcwd []", "not valid YAML"),
        ("broken.json", b'{"stages": [1, 2', "not valid JSON"),
        ("picture.yaml", b"\xff\xd8\xff\xe0", "cannot be read as text"),
        ("list.yaml", b"- 1\n- 2\n", "must hold a mapping, not list"),
        ("empty.yaml", b"", "must hold a mapping, not NoneType"),
        ("number.json", b"3", "must hold a mapping, not int"),
    ],
)
def test_unreadable_file(
    tmp_path: Path, load: object, name: str, content: bytes | None, problem: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=problem) as info:
        load(str(path))  # type: ignore[operator]
    assert str(path) in str(info.value)


@pytest.mark.parametrize("load", [load_architecture, load_space])
def test_folder_with_a_file_s_name(tmp_path: Path, load: object) -> None:
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    with pytest.raises(NasError, match="is a folder, not a regular file") as info:
        load(str(folder))  # type: ignore[operator]
    assert str(folder) in str(info.value)


def test_a_space_is_no_architecture(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", yaml.safe_dump(load_space("digits").to_dict()))
    with pytest.raises(UnknownNameError, match="key in architecture 'name'") as info:
        load_architecture(path)
    assert path in str(info.value)


@pytest.mark.parametrize("load", [load_architecture, load_space])
@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("twice.yaml", "name: a\nstages: []\nname: b", "key 'name' twice, in lines 1 and 3; keep"),
        ("line.yaml", "{name: a, name: b}", "key 'name' twice, in lines 1 and 1"),
        ("inner.yaml", "macro:\n  act: a\n  'act': b", "key 'act' twice, in lines 2 and 3"),
        ("twice.json", '{"macro": {"act": 1, "act": 2}}', "key 'act' twice; keep one"),
        ("deep.yaml", "a: " + "[" * 3000, "nested too deeply"),
        ("deep.json", "[" * 200_000, "nested too deeply"),
        ("long.yaml", "resolution: 1" + "0" * 5000, "cannot be read: Exceeds the limit"),
        ("long.json", '{"resolution": 1' + "0" * 5000 + "}", "cannot be read: Exceeds the limit"),
        ("tag.yaml", "name: !!bool 7", "cannot be read"),
        ("date.yaml", "name: 2024-13-45", "cannot be read: month must be"),
    ],
)
def test_what_yaml_and_json_would_let_pass_or_crash_on(
    tmp_path: Path, load: object, name: str, content: str, problem: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(CorruptFileError, match=problem) as info:
        load(path)  # type: ignore[operator]
    assert str(info.value).startswith(path)
