"""Banks in memory and on disk: a written bank is read back unchanged, and nothing else is accepted as a bank."""

import json
import multiprocessing
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import save_file

from lidar_sampling import BankError, BankStore, LookaheadBank, Space

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NUMBERS = st.floats(-100, 100, width=32)


def make(n=4, *, prompt="a cat", rewards=("r",), seed=0, **provenance):
    g = torch.Generator().manual_seed(seed)
    return LookaheadBank(
        torch.randn(n, 2, 3, generator=g),
        {name: torch.randn(n, generator=g) for name in rewards},
        prompt,
        Space("P", (2, 3), (0.5, 1.5)),
        {"seed": seed, **provenance},
    )


@given(
    samples=hnp.arrays("float32", hnp.array_shapes(min_dims=2, max_dims=5, max_side=4), elements=NUMBERS),
    names=st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=3),
    prompt=st.text(min_size=1),
    provenance=st.dictionaries(st.text(), JSON, max_size=3),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_what_is_saved_comes_back(tmp_path_factory, samples, names, prompt, provenance, dtype):
    z = torch.from_numpy(samples).to(dtype)
    rewards = {name: torch.arange(float(len(z))) + k for k, name in enumerate(names)}
    bank = LookaheadBank(z, rewards, prompt, Space("P", tuple(z.shape[1:])), provenance)
    path = bank.save(tmp_path_factory.mktemp("bank") / "b.safetensors")
    again = LookaheadBank.load(path)
    assert torch.equal(again.samples, z)
    assert again.samples.dtype == dtype
    assert set(again.rewards) == set(names)
    assert all(torch.equal(again.rewards[name], rewards[name]) for name in names)
    assert (again.prompt, again.space, again.provenance) == (prompt, bank.space, provenance)
    assert again.key == bank.key


@pytest.mark.parametrize("where", ["start", "middle", "end"])
def test_a_truncated_file_is_named(tmp_path, where):
    path = make().save(tmp_path / "b.safetensors")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: {"start": 4, "middle": size // 2, "end": size - 1}[where]])
    with pytest.raises(BankError, match="truncated"):
        LookaheadBank.load(path)


def test_every_changed_byte_is_noticed(tmp_path):
    path = make().save(tmp_path / "b.safetensors")
    content = path.read_bytes()
    for at in range(8, len(content), 37):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(BankError):
            LookaheadBank.load(path)


def test_foreign_files_are_named(tmp_path):
    path = tmp_path / "b.safetensors"
    save_file({"samples": torch.zeros(1, 2)}, path)
    with pytest.raises(BankError, match="not a bank"):
        LookaheadBank.load(path)
    save_file({"samples": torch.zeros(1, 2)}, path, {"format": "lidar-sampling.bank", "version": "9"})
    with pytest.raises(BankError, match="format 9, this version reads 1"):
        LookaheadBank.load(path)
    path.write_bytes(b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(BankError, match="not a safetensors file"):
        LookaheadBank.load(path)
    with pytest.raises(FileNotFoundError, match="no bank at"):
        LookaheadBank.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no bank at"):
        LookaheadBank.load(tmp_path)


def test_a_full_disk_leaves_the_old_bank_and_no_rubbish(tmp_path, monkeypatch):
    path = make(seed=1).save(tmp_path / "b.safetensors")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        make(seed=2).save(path)
    assert os.listdir(tmp_path) == ["b.safetensors"]
    assert LookaheadBank.load(path).provenance == {"seed": 1}


def test_best_subset_and_merge():
    bank = make(5)
    top = bank.best(2)
    assert torch.equal(top.reward(), bank.reward().sort(descending=True).values[:2])
    assert top.provenance["of"] == bank.provenance
    picked = bank.subset([3, 0])
    assert torch.equal(picked.samples, bank.samples[[3, 0]])
    both = bank.merge(make(3, seed=1))
    assert len(both) == 8
    assert both.provenance["merged"][1] == {"seed": 1}
    assert len({bank.key, top.key, picked.key, both.key}) == 4


def test_combine_standardises():
    bank = make(6, rewards=("a", "b", "flat"))
    bank = bank.with_rewards({"b": 1000 * bank.reward("b") + 7, "flat": torch.ones(6)})
    mixed = bank.combine({"a": 1.0, "b": 1.0, "flat": 1.0}).reward()
    a, b = ((bank.reward(name) - bank.reward(name).mean()) / bank.reward(name).std(correction=0) for name in "ab")
    torch.testing.assert_close(mixed, a + b)
    raw = bank.combine({"a": 0.5, "b": 0.5}, standardize=False).reward()
    torch.testing.assert_close(raw, 0.5 * bank.reward("a") + 0.5 * bank.reward("b"))


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda b: b.best(0), "k must be 1 to 4"),
        (lambda b: b.best(5), "k must be 1 to 4"),
        (lambda b: b.subset([]), "one or more of 0 .. 3"),
        (lambda b: b.subset([4]), "one or more of 0 .. 3"),
        (lambda b: b.merge(make(prompt="a dog")), "two prompts"),
        (lambda b: b.merge(make(rewards=("other",))), "agree in shape and rewards"),
        (lambda b: b.reward("clip"), "no reward 'clip'; it has 'r'"),
        (lambda b: b.combine({}), "at least one"),
        (lambda b: make(rewards=("a", "b")).reward(), "name one of the bank's rewards: 'a', 'b'"),
        (lambda b: make(rewards=()).reward(), "none"),
    ],
)
def test_misuse_is_named(do, message):
    with pytest.raises(BankError, match=message):
        do(make())


def test_merging_other_spaces_is_refused():
    bank = make()
    other = LookaheadBank(bank.samples, bank.rewards, bank.prompt, Space("P", (2, 3), (9.0, 1.5)))
    with pytest.raises(BankError, match="two spaces"):
        bank.merge(other)


@pytest.mark.parametrize(
    ("samples", "rewards", "message"),
    [
        (torch.zeros(2, 3), {"r": torch.tensor([0.0, float("nan")])}, r"'r' is not finite for samples \[1\]"),
        (torch.zeros(2, 3), {"r": torch.tensor([0.0, float("inf")])}, "not finite"),
        (torch.zeros(2, 3), {"r": torch.zeros(3)}, r"must be \(2,\)"),
        (torch.full((2, 3), float("nan")), {}, "diverged"),
        (torch.zeros(0, 3), {}, "n at least 1"),
        (torch.zeros(3), {}, "n at least 1"),
        (torch.zeros(2, 3, dtype=torch.bool), {}, "floating point"),
        ([[0.0]], {}, "floating point"),
        (torch.zeros(2, 3), {"r": [0.0, 1.0]}, "'r' must be a tensor, got list"),
    ],
)
def test_parts_that_do_not_fit_are_named(samples, rewards, message):
    with pytest.raises(BankError, match=message):
        LookaheadBank(samples, rewards, "p")


@pytest.mark.parametrize("prompt", ["", None, 3])
def test_a_bank_has_a_prompt(prompt):
    with pytest.raises(BankError, match="prompt must be a string"):
        LookaheadBank(torch.zeros(1, 2), {}, prompt)


def test_spaces_compare_by_weights_not_by_precision():
    here = Space("StableDiffusionPipeline", (4, 8, 8), (0.18, 1.0, 0.5))
    half = Space("StableDiffusionImg2ImgPipeline", (4, 8, 8), (0.18, 1.001, 0.4995))
    other = Space("StableDiffusionPipeline", (4, 8, 8), (0.13, 1.0, 0.5))
    pixels = Space("DDPMPipeline", (4, 8, 8))
    assert here.difference(half) is None
    assert "another VAE" in here.difference(other)
    assert "DDPMPipeline" in here.difference(pixels)


class TestStore:
    def test_addresses_by_prompt_and_provenance(self, tmp_path):
        store = BankStore(tmp_path / "deep" / "er")
        bank = make()
        assert store.get(bank.prompt, bank.key) is None
        assert store.find("a cat") == []
        store.put(bank)
        assert torch.equal(store.get(bank.prompt, bank.key).samples, bank.samples)
        assert store.get(bank.prompt, make(seed=5).key) is None
        assert store.find("a cat") == [store.path(bank.prompt, bank.key)]

    def test_does_not_believe_a_file_name(self, tmp_path):
        store = BankStore(tmp_path)
        cat, dog = make(), make(prompt="a dog")
        place = store.path(cat.prompt, cat.key)
        place.parent.mkdir(exist_ok=True)
        os.rename(store.put(dog), place)
        with pytest.raises(BankError, match="holds the bank of 'a dog'"):
            store.get(cat.prompt, cat.key)

    def test_two_processes_may_write_the_same_key(self, tmp_path):
        context = multiprocessing.get_context("fork")
        writers = [context.Process(target=_write_often, args=(tmp_path,)) for _ in range(2)]
        for writer in writers:
            writer.start()
        bank, reads = make(), 0
        while any(writer.is_alive() for writer in writers):
            found = BankStore(tmp_path).get(bank.prompt, bank.key)
            reads += found is not None
            assert found is None or torch.equal(found.samples, bank.samples)
        assert [writer.exitcode for writer in writers] == [0, 0]
        assert reads
        assert len(os.listdir(tmp_path)) == 1

    def test_a_folder_that_cannot_be_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match="file"):
            BankStore(tmp_path / "file" / "banks").put(make())


def _write_often(directory):
    for _ in range(30):
        BankStore(directory).put(make())


def test_the_header_is_json(tmp_path):
    from safetensors import safe_open

    with safe_open(make().save(tmp_path / "b.safetensors"), "pt") as file:
        header = json.loads(file.metadata()["header"])
    assert header["prompt"] == "a cat"
    assert header["space"]["shape"] == [2, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "is a web page"),
    ],
)
def test_what_is_no_bank_says_what_it_is(tmp_path, content, message):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(BankError, match=rf"a\.safetensors {message}"):
        LookaheadBank.load(tmp_path / "a.safetensors")
