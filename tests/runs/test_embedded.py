"""Settings embedded in a picture, and one picture drawn again alone."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from lidar_sampling import testing
from lidar_sampling._media import read_picture
from lidar_sampling.runs import Job, run
from lidar_sampling.runs._embedded import read_embedded

HOW = {"steps": 4, "n": 4, "lookahead": "own:2", "scale": 1.0, "reward_scale": 5.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    testing.tiny_stable_diffusion().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def job(model):
    return Job(
        prompts=[{"prompt": "a café, 東京", "note": 3}, "a dog"],
        model=model,
        reward="brightness",
        methods=["vanilla", "lidar"],
        settings=HOW,
        images=3,
        seeds=[7],
        call={"negative_prompt": "blurry"},
    )


@pytest.fixture(scope="module")
def drawn(job, tmp_path_factory):
    out = tmp_path_factory.mktemp("drawn") / "out"
    run(job, out)
    return out


def test_a_picture_holds_the_job_that_draws_it_again(drawn, tmp_path):
    file = drawn / "00000" / "samples" / "0002.png"
    said = read_embedded(file)
    again = Job.from_json(said["job"])
    assert (again.texts(), again.methods, again.only, again.seeds) == (["a café, 東京"], ("lidar",), (2,), (7,))
    assert again.line(0)["note"] == 3
    assert said["image"] == 2
    assert said["rewards"]["brightness"] == pytest.approx(
        json.loads((drawn / "result.json").read_text())["prompts"][0]["lidar"]["rewards"]["brightness"][2]
    )
    run(again, tmp_path / "again")
    one = tmp_path / "again" / "00000" / "samples"
    assert [path.name for path in one.iterdir()] == ["0002.png"]
    assert (read_picture(one / "0002.png") - read_picture(file)).abs().max() <= 1.01 / 255
    assert read_embedded(one / "0002.png")["job"] == said["job"]


def test_the_plain_pictures_say_vanilla(drawn):
    said = read_embedded(drawn / "00001" / "vanilla" / "0000.png")
    assert (said["job"]["methods"], said["job"]["prompts"][0]["prompt"]) == (["vanilla"], "a dog")


def test_the_line_of_web_interfaces(drawn):
    with Image.open(drawn / "00000" / "samples" / "0001.png") as picture:
        prompt, negative, settings = picture.info["parameters"].split("\n")
    assert (prompt, negative) == ("a café, 東京", "Negative prompt: blurry")
    named = dict(pair.split(": ") for pair in settings.split(", "))
    assert named["Steps"] == "4"
    assert named["Size"] == "16x16"
    assert named["LiDAR n"] == "4"
    assert int(named["Seed"]) == read_embedded(drawn / "00000" / "samples" / "0001.png")["noise_seed"]


def test_what_does_not_change_pictures_is_not_said(job, tmp_path):
    other = replace(job, prompts=["a dog"], methods=["vanilla"], store=str(tmp_path / "banks"), batch_size=1)
    run(other, tmp_path / "out")
    said = read_embedded(tmp_path / "out" / "00000" / "samples" / "0000.png")["job"]
    assert not said.keys() & {"store", "batch_size", "device", "pictures"}


def test_a_chosen_sample_names_no_seed_of_its_own(job, tmp_path):
    run(replace(job, prompts=["a dog"], methods=["best-of-4"], images=1), tmp_path / "out")
    said = read_embedded(tmp_path / "out" / "00000" / "samples" / "0000.png")
    assert said["noise_seed"] is None
    assert "only" not in said["job"]


def test_pictures_of_others_say_nothing_and_damage_is_named(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    assert read_embedded(tmp_path / "plain.png") is None
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("lidar", "{")
    Image.new("RGB", (4, 4)).save(tmp_path / "bad.png", pnginfo=info)
    with pytest.raises(ValueError, match=r"the settings in .*bad\.png are damaged"):
        read_embedded(tmp_path / "bad.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="is not a picture"):
        read_embedded(tmp_path / "text.png")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"only": [3]}, r"only must name different samples of 0 to 2, got \[3\]"),
        ({"only": [1, 1]}, "only must name different samples"),
        ({"only": [0], "methods": ["best-of-4"]}, "those of best-of-4 depend on one another"),
        ({"only": [0], "task": "look", "methods": ["lidar"]}, "only belongs to generate"),
        ({"only": "0"}, "only must be"),
    ],
)
def test_samples_that_cannot_be_drawn_alone_are_refused(job, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(job, **changes)


def test_only_some_of_several_prompts(job, drawn, tmp_path):
    run(replace(job, only=[0, 2]), tmp_path / "some")
    for name in ("00000", "00001"):
        for folder in ("samples", "vanilla"):
            files = sorted(path.name for path in (tmp_path / "some" / name / folder).iterdir())
            assert files == ["0000.png", "0002.png"]
            for file in files:
                one, same = (read_picture(out / name / folder / file) for out in (tmp_path / "some", drawn))
                assert torch.allclose(one, same, atol=1.01 / 255)
    with pytest.raises(ValueError, match="only"):
        run(job, tmp_path / "some", resume=True)


def test_one_bank_serves_samples_of_many_seeds(job, tmp_path):
    how = replace(job, prompts=["a dog"], methods=["lidar"], images=1, bank_seed=3, store=str(tmp_path / "banks"))
    for seed, calls in ((0, 4), (1, 0)):
        outcome = run(replace(how, seeds=[seed]), tmp_path / str(seed))
        assert outcome.result["prompts"][0]["lidar"]["cost"]["lookahead"]["reward_calls"] == calls
    assert read_embedded(tmp_path / "1" / "00000" / "samples" / "0000.png")["job"]["bank_seed"] == 3
    with pytest.raises(ValueError, match="bank_seed"):
        run(replace(how, seeds=[1], bank_seed=None), tmp_path / "1", resume=True)
    with pytest.raises(ValueError, match="bank_seed belongs to generate"):
        replace(how, task="look")
