"""Weights of a bank come out of a folder as they went in, and no others do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from space_kinds import kind_of_space

from search_space.errors import CorruptFileError, RunError
from supernet import build
from supernet.inherit.bank import WeightBank
from supernet.inherit.stored_bank import IDENTITY, load_entries, parent_identity, save_entries

SPACE = kind_of_space("entries")  # with batch norms


def bank_of(seed: int, *, fresh: bool = True) -> WeightBank:
    torch.manual_seed(seed)
    bank = WeightBank(SPACE, build(SPACE.largest, 10))
    for entry in bank.missing() if fresh else ():
        bank.put(entry, bank.fresh(entry))
    return bank.eval()


def same(a: WeightBank, b: WeightBank) -> bool:
    there, here = a.state_dict(), b.state_dict()
    return there.keys() == here.keys() and all(torch.equal(there[k], here[k]) for k in there)


def test_a_bank_comes_out_as_it_went_in(tmp_path: Path) -> None:
    bank, other = bank_of(0), bank_of(1, fresh=False)
    identity = {"parent": parent_identity(bank), "lr": (1e-3, None)}
    save_entries(tmp_path / "a" / "weights", bank, identity=identity)
    found = load_entries(tmp_path / "a" / "weights", other, identity=identity)
    assert set(found) == set(bank.entries)
    assert same(bank, other)
    assert not any(module.training for module in other.modules())
    assert all(parameter.requires_grad for parameter in other.parameters())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(bank(images, SPACE.smallest), other(images, SPACE.smallest))


def test_what_is_there_is_read_and_the_rest_is_missing(tmp_path: Path) -> None:
    bank, other = bank_of(0), bank_of(0, fresh=False)
    missing = other.missing()
    assert load_entries(tmp_path / "none", other, identity={}) == []
    assert not (tmp_path / "none").exists()  # reading leaves nothing
    save_entries(tmp_path, bank, missing[:2], identity={})
    (tmp_path / ".half-written.safetensors.tmp").write_bytes(b"x")
    assert load_entries(tmp_path, other, identity={}) == missing[:2]
    assert other.missing() == missing[2:]
    save_entries(tmp_path, bank, missing[2:], identity={})
    assert load_entries(tmp_path, other, missing[2:], identity={}) == missing[2:]
    assert same(bank, other)


def test_a_folder_of_another_parent_or_other_settings_is_refused(tmp_path: Path) -> None:
    bank = bank_of(0)
    identity = {"parent": parent_identity(bank), "settings": {"lr": 1e-3}}
    save_entries(tmp_path, bank, identity=identity)
    other = bank_of(1)
    theirs = {"parent": parent_identity(other), "settings": {"lr": 2e-3}}
    for act in (save_entries, load_entries):
        with pytest.raises(RunError, match=r"parent\.weights is .*settings\.lr is 0\.001 there"):
            act(tmp_path, other, identity=theirs)
    (tmp_path / IDENTITY).write_text("{")
    with pytest.raises(CorruptFileError, match="Delete the folder"):
        load_entries(tmp_path, bank, identity=identity)


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"notes\.txt"):
        save_entries(tmp_path, bank_of(0), identity={})
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(RunError, match="cannot be used"):
        save_entries(tmp_path / "notes.txt", bank_of(0), identity={})


@pytest.mark.parametrize("how", ["cut", "altered", "of another module"])
def test_a_damaged_file_is_left_out_with_a_warning(tmp_path: Path, how: str) -> None:
    bank, other = bank_of(0), bank_of(0, fresh=False)
    missing = other.missing()
    save_entries(tmp_path, bank, missing, identity={})
    first, second, *_ = sorted(tmp_path.glob("*.safetensors"))
    data = bytearray(first.read_bytes())
    if how == "cut":
        first.write_bytes(data[:-1])
    elif how == "altered":
        data[-5] ^= 1
        first.write_bytes(data)
    else:
        first.write_bytes(second.read_bytes())
    with pytest.warns(UserWarning, match="damaged"):
        found = load_entries(tmp_path, other, identity={})
    assert len(found) == len(missing) - 1
    assert len(other.missing()) == 1


def test_the_identity_of_a_parent_is_of_its_weights() -> None:
    identities = [parent_identity(bank_of(seed, fresh=False)) for seed in (0, 0, 1)]
    assert identities[0] == identities[1] != identities[2]
    bank = bank_of(0)
    assert parent_identity(bank) == identities[0]  # whatever else it holds
    with torch.no_grad():
        next(iter(bank.parent_module("stem").buffers())).add_(1)  # a running average
    assert parent_identity(bank) != identities[0]
