"""The folder of ``lidar generate``: which prompts count as finished, and which are drawn again."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lidar_sampling.runs import Job, agree, read_json
from lidar_sampling.runs._folder import Folder

JOB = Job(prompts=["a cat"], images=2)

WRONG = ["[]", "null", "3", '"run"', "[" * 100_000, "{", "\x00"]


def result(prompt="a cat", images=2):
    cost = SimpleNamespace(network_evaluations=1, reward_calls=0, seconds=0.5)
    return SimpleNamespace(
        prompts=[prompt],
        images=torch.rand(1, images, 3, 4, 4),
        rewards={"r": torch.tensor([[0.5] * images])},
        cost={"sampling": cost},
        trace=SimpleNamespace(rows=list, reward_scales=[]),
        settings=SimpleNamespace(steps=4, guidance_scale=None, n=2, scale=1.0),
        banks=[],
        sampling_rate=None,
    )


def opened(path, *, resume=True, identity=1):
    return Folder(path, {}, identity={"seed": identity}, resume=resume, overwrite=False)


@pytest.fixture
def folder(tmp_path):
    folder = opened(tmp_path / "out")
    folder.put(0, "lidar", result(), result(), {"prompt": "a cat"}, JOB)
    return folder


def test_what_was_put_is_finished(folder):
    entry = folder.find_record(0, "a cat", ["vanilla", "lidar"])
    assert entry == json.loads((folder.path / "00000/result.json").read_text())
    assert folder.find_record(1, "a dog", ["lidar"]) is None


@pytest.mark.parametrize(("prompt", "methods"), [("a dog", ["vanilla", "lidar"]), ("a cat", ["lidar"])])
def test_what_another_run_put_is_not(folder, prompt, methods):
    assert folder.find_record(0, prompt, methods) is None


def test_a_run_does_not_write_into_that_which_took_its_folder(folder):
    Folder(folder.path, {}, identity={"seed": 2}, resume=False, overwrite=True)
    with pytest.raises(FileExistsError, match=r"another run has taken .*out during this one: start it again"):
        folder.put(1, "lidar", result("a dog"), None, {"prompt": "a dog"}, JOB)
    assert not (folder.path / "00001").exists()


@pytest.mark.parametrize(
    ("file", "what"), [("results-0.jsonl", "lines of a comparison"), ("ab/x.safetensors", "banks")]
)
def test_overwrite_deletes_no_other_results(folder, file, what):
    (folder.path / file).parent.mkdir(exist_ok=True)
    (folder.path / file).write_text("{}")
    with pytest.raises(ValueError, match=f"--overwrite deletes runs of pictures, and .*out holds {what}"):
        Folder(folder.path, {}, identity={"seed": 2}, resume=False, overwrite=True)
    with pytest.raises(FileExistsError) as refused:
        opened(folder.path, resume=False)
    assert "--overwrite" not in str(refused.value)
    assert (folder.path / "00000/result.json").exists()


def test_overwrite_spares_the_folder_one_is_in_and_follows_links(folder, monkeypatch):
    how = {"identity": {"seed": 2}, "overwrite": True}
    with pytest.raises(ValueError, match="--resume goes on with a run, and --overwrite deletes it"):
        Folder(folder.path, {}, resume=True, **how)
    monkeypatch.chdir(folder.path)
    with pytest.raises(ValueError, match=r"would delete .*, the folder that you are in"):
        Folder(Path("."), {}, resume=False, **how)
    assert (folder.path / "00000/result.json").exists()
    monkeypatch.undo()
    link = folder.path.with_name("link")
    link.symlink_to(folder.path, target_is_directory=True)
    Folder(link, {}, resume=False, **how)
    assert [file.name for file in folder.path.iterdir()] == ["run.json"]


def test_a_folder_under_another_number_is_not(folder):
    os.rename(folder.path / "00000", folder.path / "00001")
    assert folder.find_record(1, "a cat", ["vanilla", "lidar"]) is None


@pytest.mark.parametrize("name", ["samples/0001.png", "vanilla/0000.png"])
def test_without_a_picture_it_is_drawn_again_in_its_place(folder, name):
    picture = folder.path / "00000" / name
    for spoil in (picture.unlink, lambda: picture.write_bytes(b"")):
        spoil()
        assert folder.find_record(0, "a cat", ["vanilla", "lidar"]) is None
        folder.put(0, "lidar", result(), result(), {"prompt": "a cat"}, JOB)
        assert folder.find_record(0, "a cat", ["vanilla", "lidar"]) is not None
        assert sorted(os.listdir(folder.path)) == ["00000", "run.json"]


@pytest.mark.parametrize("there", ["folder", "file", "link"])
def test_whatever_has_the_place_of_a_prompt_is_replaced(folder, there, tmp_path):
    place, other = folder.path / "00001", tmp_path / "other"
    other.mkdir()
    (other / "kept").touch()
    if there == "folder":
        (place / "samples").mkdir(parents=True)
    elif there == "file":
        place.touch()
    elif sys.platform == "win32":
        pytest.skip("links need rights there")
    else:
        place.symlink_to(other)
    folder.put(1, "lidar", result("a dog"), None, {"prompt": "a dog"}, JOB)
    assert folder.find_record(1, "a dog", ["lidar"]) is not None
    assert sorted(os.listdir(folder.path)) == ["00000", "00001", "run.json"]
    assert (other / "kept").exists()


def test_what_killed_runs_left_is_removed_and_nothing_else(folder):
    for name in (".00001.0123abcd.part", ".00002.0123abcd.old.part", ".mine.part", "00003"):
        (folder.path / name / "samples").mkdir(parents=True)
    opened(folder.path)
    assert sorted(os.listdir(folder.path)) == [".mine.part", "00000", "00003", "run.json"]
    (folder.path / ".00001.0123abcd.part").mkdir()
    for refused in ({"resume": False}, {"identity": 2}):
        with pytest.raises((FileExistsError, ValueError)):
            opened(folder.path, **refused)
    assert (folder.path / ".00001.0123abcd.part").exists()


@pytest.mark.parametrize("content", [*WRONG, "{}"])
def test_numbers_that_are_damaged_are_named(folder, content):
    (folder.path / "00000/result.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"00000.result\.json is damaged \(.*\): remove it, and the prompt"
    ) as failed:
        folder.find_record(0, "a cat", ["vanilla", "lidar"])
    assert len(str(failed.value)) < 300


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": 3},
        {"folder": None},
        {"methods": []},
        {"methods": [["lidar"]]},
        {"methods": ["absent"]},
        {"lidar": []},
        {"lidar": {"images": "0.png", "rewards": {}, "cost": {}}},
        {"lidar": {"images": ["0.png"], "rewards": {"r": [1.0, 2.0]}, "cost": {}}},
        {"lidar": {"images": ["0.png"], "rewards": {"r": ["1"]}, "cost": {}}},
        {"lidar": {"images": ["0.png"], "rewards": {"r": [1.0]}, "cost": {"sampling": {"seconds": 1}}}},
    ],
)
def test_numbers_of_another_shape_are_named(folder, change):
    path = folder.path / "00000/result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=r"result\.json is damaged \(.*\): remove it, and the prompt is drawn again"):
        folder.find_record(0, "a cat", ["vanilla", "lidar"])


@pytest.mark.parametrize("content", WRONG)
def test_a_manifest_that_is_damaged_is_named(folder, content):
    (folder.path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json is damaged \(.*\): choose another --out, or --overwrite"):
        opened(folder.path)
    with pytest.raises(ValueError, match=r"run\.json is damaged \(.*\): remove it, or choose another --out"):
        read_json(folder.path / "run.json")


def test_a_field_that_a_file_needs_is_named(tmp_path):
    (tmp_path / "run.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "run.json", {"a": int}) == {"a": 1}
    with pytest.raises(ValueError, match=r"run\.json is damaged \(it has no 'b'\): remove it"):
        read_json(tmp_path / "run.json", {"b": int})
    with pytest.raises(ValueError, match=r"run\.json is damaged \(its 'a' is 1\): remove it"):
        read_json(tmp_path / "run.json", {"a": str})


def test_an_identity_of_another_shape_is_another(tmp_path):
    with pytest.raises(ValueError, match=r"out was made with identity=3, now it is .*: choose another"):
        agree(tmp_path / "out", 3, {"seed": 0}, "choose another --out")
