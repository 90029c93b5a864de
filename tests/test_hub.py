"""Damaged files of weights: errors name the file, the true reason and the mend, and never advise pickled code."""

import argparse
import shutil

import pytest
import torch
from safetensors.torch import save_file

from lidar_sampling._hub import load_state_dict
from lidar_sampling.glyph import DATA
from lidar_sampling.rewards.clip import CLIPReward

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1794\n"


def saved(path, value, **options):
    torch.save(value, path, **options)
    return path.read_bytes()


def in_safetensors(path):
    save_file({"a": torch.zeros(999)}, path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pt", POINTER.encode(), "is a pointer of Git LFS, not the file itself: run 'git lfs pull'"),
        ("a.SafeTensors", POINTER.encode(), "is a pointer of Git LFS"),
        ("a.pt", b"", "is empty: download it again"),
        ("a.safetensors", b"", "is empty: download it again"),
        ("a.pth", b"<!DOCTYPE html><html>", "is a web page, not the file itself"),
        ("a.pt", b"hello world" * 30, "is damaged, or no file of weights"),
    ],
)
def test_what_is_no_file_of_weights(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} {message}"):
        load_state_dict(path)


def test_half_a_file_of_weights(tmp_path):
    new, old = tmp_path / "new.pt", tmp_path / "old.pt"
    weights, path = {"a": torch.zeros(999)}, tmp_path / "a.safetensors"
    whole = {
        new: saved(new, weights),
        old: saved(old, weights, _use_new_zipfile_serialization=False),
        path: in_safetensors(path),
    }
    for file, content in whole.items():
        assert load_state_dict(file)["a"].shape == (999,)
        for length in (4, 100, 1500):
            file.write_bytes(content[:length])
            with pytest.raises(ValueError, match=rf"{file.name} is damaged, .*: download it again"):
                load_state_dict(file)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (torch.nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear"),
        ({"state_dict": {"a": torch.zeros(1)}, "args": argparse.Namespace(x=1)}, r"argparse\.Namespace"),
    ],
)
def test_a_pickle_of_objects_is_refused_without_advice_to_run_it(tmp_path, value, what):
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"a\.pt pickles an object, {what}") as refused:
        load_state_dict(tmp_path / "a.pt")
    assert "weights_only" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(DATA / "reward-clip", tmp_path / "clip")
    return tmp_path / "clip"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", POINTER.encode(), r"clip/model\.safetensors is a pointer of Git LFS"),
        ("model.safetensors", b"", r"clip/model\.safetensors is empty"),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}", r"clip/model\.safetensors is damaged, or no file of weights"),
        ("config.json", POINTER.encode(), r"clip/config\.json is a pointer of Git LFS"),
        ("tokenizer.json", POINTER.encode(), r"clip/tokenizer\.json is a pointer of Git LFS"),
    ],
)
def test_a_damaged_file_of_a_folder_is_named(folder, name, content, message):
    assert (folder / name).is_file()
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        CLIPReward(folder)


def test_a_folder_of_pickled_objects(folder):
    (folder / "model.safetensors").unlink()
    torch.save(torch.nn.Linear(2, 2), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin, which pickles an object, torch\.nn") as refused:
        CLIPReward(folder)
    assert "weights_only" not in str(refused.value)


def test_a_pointer_that_nobody_needs_is_no_matter(folder):
    (folder / "pytorch_model.bin").write_text(POINTER)
    assert CLIPReward(folder).networks
