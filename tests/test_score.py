"""``lidar score``, ``lidar serve-rewards`` and the lists of rewards and solvers."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from test_cli import failure, lidar

from lidar_sampling.rewards.service import RemoteReward

__all__ = ["lidar"]  # the fixture


@pytest.fixture
def folder(tmp_path):
    """Save three pictures, dark to bright, of two sizes."""
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.tiff")
    for name, value, size in (("a.png", 0, (8, 8)), ("b.jpg", 128, (12, 8)), ("c.webp", 255, (8, 8))):
        Image.new("RGB", size, (value,) * 3).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def scores(result):
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


def test_pictures_of_any_size(lidar, folder):
    found = scores(lidar("score", folder, "--prompt", "x", "--reward", "brightness", "--reward", "glyph", "--json"))
    assert [os.path.basename(row["file"]) for row in found["images"]] == ["a.png", "b.jpg", "c.webp"]
    assert [row["brightness"] for row in found["images"]] == pytest.approx([0, 128 / 255, 1], abs=0.01)
    assert found["mean"]["brightness"] == pytest.approx(0.5, abs=0.01)
    assert all(isinstance(row["glyph"], float) for row in found["images"])
    code, out, _ = lidar("score", folder, "--prompt", "x", "--reward", "brightness")
    assert code == 0
    assert "mean of 3" in out


def test_the_diversity_of_the_pictures_of_a_prompt(lidar, folder):
    asked = ["score", folder, "--reward", "brightness", "--reward", "glyph", "--diversity"]
    alike = ["--prompt", "x", "--prompt", "x", "--prompt", "y"]
    found = scores(lidar(*asked, *alike, "--json"))["diversity"]
    assert found.keys() == {"x", "y"}
    assert found["y"] == 0 < found["x"] < 2
    code, out, _ = lidar(*asked, *alike)
    assert code == 0
    assert f"diversity of the 2 pictures of 'x': {found['x']:.4f}" in out
    err = failure(lidar("score", folder, "--prompt", "x", "--reward", "brightness", "--diversity"))
    assert "--diversity needs a reward with features" in " ".join(err.split())


def test_a_prompt_for_each_picture(lidar, folder):
    three = ["--prompt", "a", "--prompt", "b", "--prompt", "c"]
    found = scores(lidar("score", folder, *three, "--reward", "brightness", "--json", "--batch-size", "1"))
    assert [row["prompt"] for row in found["images"]] == ["a", "b", "c"]
    err = failure(lidar("score", folder, *three[:4], "--reward", "brightness"))
    assert "one for each of the 3 pictures, got 2" in " ".join(err.split())


def numbered(folder, *names):
    """Save pictures that are brighter the larger the number in their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        value = int("".join(filter(str.isdigit, name)))
        Image.new("RGB", (4, 4), (value,) * 3).save(folder / name)
    return [folder / name for name in names]


def prompts_of(tmp_path, count):
    (tmp_path / "prompts.txt").write_text("".join(f"prompt {k}\n" for k in range(1, count + 1)))
    return ["--prompts", tmp_path / "prompts.txt", "--reward", "brightness", "--json"]


def test_prompts_belong_to_pictures_by_their_numbers(lidar, tmp_path):
    numbered(tmp_path / "d", *(f"{k}.png" for k in range(12, 0, -1)))
    found = scores(lidar("score", tmp_path / "d", *prompts_of(tmp_path, 12)))
    for k, row in enumerate(found["images"], 1):
        assert (os.path.basename(row["file"]), row["prompt"]) == (f"{k}.png", f"prompt {k}")
        assert row["brightness"] == pytest.approx(k / 255)


def test_pictures_without_one_order_get_no_prompts_by_order(lidar, tmp_path):
    same = numbered(tmp_path / "same", "1.png", "01.png")
    err = "".join(failure(lidar("score", tmp_path / "same", *prompts_of(tmp_path, 2))).split())
    assert "havethesamenumber" in err.replace("│", "")
    assert all(file.name in err for file in same)
    found = scores(lidar("score", *same, *prompts_of(tmp_path, 2)))  # named one by one, they keep the given order
    assert [row["prompt"] for row in found["images"]] == ["prompt 1", "prompt 2"]
    numbered(tmp_path / "deep" / "x", "1.png")
    numbered(tmp_path / "deep" / "y", "2.png")
    err = " ".join(failure(lidar("score", tmp_path / "deep", *prompts_of(tmp_path, 2))).split())
    assert "lie in 2 folders" in err
    assert scores(lidar("score", tmp_path / "deep", "--prompt", "one for all", "--reward", "brightness", "--json"))
    places = [tmp_path / "deep" / "y", tmp_path / "deep" / "x"]
    found = scores(lidar("score", *places, *prompts_of(tmp_path, 2)))
    assert [os.path.basename(row["file"]) for row in found["images"]] == ["2.png", "1.png"]


def test_names_as_a_shell_sorts_them_are_refused(lidar, tmp_path):
    files = numbered(tmp_path / "d", "1.png", "10.png", "2.png")
    err = " ".join(failure(lidar("score", *files, *prompts_of(tmp_path, 3))).split())
    assert "10.png comes before 2.png, as a shell sorts names" in err
    assert scores(lidar("score", *files[::-1], *prompts_of(tmp_path, 3)))
    assert scores(lidar("score", *files, "--prompt", "x", "--reward", "brightness", "--json"))


def test_the_table_shows_the_pairs_as_they_are_written(lidar, folder):
    texts = ["[red]cat[/red]", "[/b]", ":smile: 3"]
    three = [option for text in texts for option in ("--prompt", text)]
    code, out, err = lidar("score", folder, *three, "--reward", "brightness")
    assert code == 0, err
    assert all(text in out for text in texts)


def test_what_is_given_twice_is_refused(lidar, folder):
    twice = ["--reward", "brightness", "--reward", "brightness"]
    assert "--reward brightness is given twice" in failure(lidar("score", folder, "--prompt", "x", *twice))
    again = [folder / "a.png", folder / "a.png", "--prompt", "x", "--reward", "brightness"]
    assert "a.png is given twice" in " ".join(failure(lidar("score", *again)).split())


def test_a_video_is_scored_by_its_frames(lidar, tmp_path):
    first, *others = (Image.new("RGB", (4, 4), (value,) * 3) for value in (0, 255))
    first.save(tmp_path / "a.webp", save_all=True, append_images=others, lossless=True)
    found = scores(lidar("score", tmp_path, "--prompt", "x", "--reward", "brightness", "--json"))
    assert found["mean"]["brightness"] == pytest.approx(0.5)


def test_metadata_reaches_a_judge_that_reads_it(lidar, tmp_path, monkeypatch):
    from lidar_sampling import rewards

    def judge(*, images, prompts):
        return [float(prompt["include"][0]["count"]) for prompt in prompts]

    judge.reads_metadata = True
    monkeypatch.setattr(rewards, "load", lambda name, **_: judge)
    numbered(tmp_path / "d", "1.png", "2.png")
    lines = [{"prompt": "cats", "tag": "mine", "include": [{"class": "cat", "count": k}]} for k in (3, 5)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = scores(lidar("score", tmp_path / "d", "--prompts", tmp_path / "p.jsonl", "--reward", "judge", "--json"))
    assert [(row["judge"], row["prompt"]) for row in found["images"]] == [(3, "cats"), (5, "cats")]


def test_metadata_of_two_prompts_says_not_which(lidar, tmp_path):
    numbered(tmp_path / "0" / "samples", "1.png")
    (tmp_path / "0" / "metadata.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    err = " ".join(failure(lidar("score", tmp_path, "--reward", "brightness")).split())
    assert "metadata.jsonl has 2 prompts: it must have one" in err


def test_metadata_that_cannot_be_judged_is_named_before_any_picture_is(lidar, tmp_path):
    for k, include in enumerate(([{"class": "dog", "count": 1}], [{"class": "dog", "count": "2"}])):
        numbered(tmp_path / f"{k}" / "samples", "1.png")
        line = {"prompt": "dogs", "tag": "mine", "include": include}
        (tmp_path / f"{k}" / "metadata.jsonl").write_text(json.dumps(line))
    err = " ".join(failure(lidar("evaluate", tmp_path)).split())
    assert f"{tmp_path / '1' / 'metadata.jsonl'}: the count of 'dog' in GenEval metadata must be" in err


def test_transparency_lies_over_white_and_rotation_is_undone(lidar, tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    clear = scores(lidar("score", tmp_path / "clear.png", "--prompt", "x", "--reward", "brightness", "--json"))
    assert clear["mean"]["brightness"] == 1
    from lidar_sampling.cli._score import read_picture

    assert read_picture(tmp_path / "turned.png").shape == (3, 8, 4)


def test_the_prompts_of_a_run_are_known(lidar, tmp_path):
    for k, prompt in enumerate(["a cat", "a dog"]):
        samples = tmp_path / f"{k:05d}" / "samples"
        samples.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(samples / "0000.png")
        (samples.parent / "metadata.jsonl").write_text(json.dumps({"prompt": prompt}) + "\n")
        (samples.parent / "vanilla").mkdir()
        Image.new("RGB", (4, 4), "white").save(samples.parent / "vanilla" / "0000.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "grid.png")
    found = scores(lidar("score", tmp_path, "--reward", "brightness", "--json"))
    assert [row["prompt"] for row in found["images"]] == ["a cat", "a dog"]
    assert found["mean"]["brightness"] == 0
    for k, (content, message) in enumerate((("", "is empty"), ("{}", 'expected a JSON object with a "prompt"'))):
        (tmp_path / f"{k:05d}" / "metadata.jsonl").write_text(content)
        assert message in " ".join(failure(lidar("score", tmp_path / f"{k:05d}", "--reward", "brightness")).split())


def a_run(folder, *, lacks=()):
    """Save two prompts in GenEval's layout: black samples, with white pictures beside them."""
    for k in range(2):
        for name, color in (("samples", "black"), ("vanilla", "white")):
            (folder / f"{k:05d}" / name).mkdir(parents=True)
            Image.new("RGB", (128, 128), color).save(folder / f"{k:05d}" / name / "0000.png")
        if k not in lacks:
            line = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"}
            (folder / f"{k:05d}" / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    Image.new("RGB", (128, 128), "white").save(folder / "grid.png")
    return folder


def test_of_a_run_the_samples_are_taken_whatever_folder_is_named(lidar, tmp_path, monkeypatch):
    run = a_run(tmp_path / "runs" / "a")
    a_run(tmp_path / "runs" / "b")
    for place, count in ((run, 2), (run / "00000", 1), (run / "00000" / "samples", 1), (tmp_path / "runs", 4)):
        for where in (place, "."):
            monkeypatch.chdir(place)
            for prompt in ([], ["--prompt", "x"]):
                found = scores(lidar("score", where, *prompt, "--reward", "brightness", "--json"))
                assert [row["brightness"] for row in found["images"]] == [0] * count
            assert scores(lidar("evaluate", where, "--json"))["pictures"] == count
    found = scores(lidar("score", run / "00000" / "vanilla", "--reward", "brightness", "--json"))
    assert found["mean"]["brightness"] == 1  # what is asked for by its name


def test_a_prompt_without_its_metadata_is_named_and_not_left_out(lidar, tmp_path):
    run = a_run(tmp_path, lacks=[1])
    for command in (["score", run, "--reward", "brightness"], ["evaluate", run]):
        err = "".join(failure(lidar(*command)).replace("│", "").split())
        assert f"thereisno{run / '00001' / 'metadata.jsonl'}" in err
    found = scores(lidar("score", run, "--prompt", "x", "--reward", "brightness", "--json"))
    assert len(found["images"]) == 2


def test_names_that_begin_with_a_dot_are_no_pictures(lidar, tmp_path):
    numbered(tmp_path, "1.png")
    (tmp_path / "._1.png").write_bytes(b"of a Mac")
    numbered(tmp_path / ".ipynb_checkpoints", "255.png")
    found = scores(lidar("score", tmp_path, "--prompt", "x", "--reward", "brightness", "--json"))
    assert [os.path.basename(row["file"]) for row in found["images"]] == ["1.png"]


def test_a_picture_counts_once(lidar, tmp_path):
    (file,) = numbered(tmp_path / "d", "1.png")
    (tmp_path / "d" / "2.png").symlink_to(file)
    run = a_run(tmp_path / "run")
    (run / "00000" / "samples" / "0001.png").symlink_to(run / "00000" / "samples" / "0000.png")
    for command in (
        ["score", tmp_path / "d", "--prompt", "x", "--reward", "brightness"],
        ["score", tmp_path / "d" / ".." / "d" / "1.png", file, "--prompt", "x", "--reward", "brightness"],
        ["evaluate", run],
    ):
        assert "are the same picture, and would count twice" in " ".join(failure(lidar(*command)).split())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.png", "1.jpg"], "same number"),
        (["1.png", "2.png", "1.0.png"], "same number"),
        (["0.5.png", "0.25.png"], "by numbers with a point or a minus sign"),
        (["-2.png", "-1.png", "0.png"], "by numbers with a point or a minus sign"),
        (["x_-2.png", "x_-1.png"], "by numbers with a point or a minus sign"),
        (["1.png", "2.png"], None),
        (["sd1.5-1.png", "sd1.5-2.png", "sd1.5-10.png"], None),
        (["img-1.png", "img-2.png", "img-10.png"], None),
        (["0.25.png", "0.50.png"], None),
    ],
)
def test_numbers_that_may_be_read_in_two_ways_order_no_prompts(lidar, tmp_path, names, message):
    for name in names:
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "p.txt").write_text("".join(f"prompt {k}\n" for k in range(len(names))))
    result = lidar("score", tmp_path, "--prompts", tmp_path / "p.txt", "--reward", "brightness", "--json")
    if message:
        assert "".join(message.split()) in "".join(failure(result).replace("│", "").split())
    else:
        assert [os.path.basename(row["file"]) for row in scores(result)["images"]] == names
    assert scores(lidar("score", tmp_path, "--prompt", "x", "--reward", "brightness", "--json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png", "--prompt", "x", "--reward", "brightness"], "no picture or folder at nowhere.png"),
        (["notes.txt", "--prompt", "x", "--reward", "brightness"], "notes.txt is not a picture"),
        (["half.png", "--prompt", "x", "--reward", "brightness"], "half.png cannot be read: "),
        (["deep.tiff", "--prompt", "x", "--reward", "brightness"], "pixels of mode I;16: save it with 8 bits"),
        (["a.png", "--prompt", "x", "--reward", "brightness", "--batch-size", "0"], "'--batch-size': "),
        (["empty", "--prompt", "x", "--reward", "brightness"], "holds no pictures"),
        (["a.png", "--reward", "brightness"], "give --prompt"),
        (["a.png", "--prompt", "x"], "--reward"),
        (["a.png", "--prompt", "x", "--reward", "brightnes"], "did you mean 'brightness'"),
        (["a.png", "--prompt", "x", "--reward", "brightness", "--dtype", "int8"], "--dtype must be"),
        (["a.png", "--prompt", "x", "--reward", "ocr"], "must quote the text"),
    ],
)
def test_wrong_use_is_one_clear_line(lidar, folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    Image.effect_noise((64, 64), 50).save(folder / "half.png")
    os.truncate(folder / "half.png", 900)
    assert message in " ".join(failure(lidar("score", *arguments)).split())


def test_lists_say_where_weights_come_from(lidar):
    code, out, _ = lidar("rewards")
    assert code == 0
    assert "ImageReward.pt" in out
    assert "Apache-2.0" in out
    known = scores(lidar("rewards", "--json"))
    assert known["image-reward"]["weights"]["licence"] == "Apache-2.0"
    assert known["brightness"]["weights"] is None
    code, out, _ = lidar("solvers")
    assert code == 0
    line = next(line for line in out.splitlines() if "tianweiy/DMD2/dmd2_sdxl_1step_unet_fp16.bin" in line)
    assert line.endswith("(CC BY-NC-SA 4.0; non-commercial)")
    presets = scores(lidar("solvers", "--json"))
    assert {"dpm:N", "lcm-lora:4", "sana-sprint:2"} <= {row["name"] for row in presets}


@pytest.mark.parametrize("arguments", [["brightness"], ["brightness", "--port", "8000"]])
def test_the_old_name_of_the_server_says_where_it_went(lidar, monkeypatch, arguments):
    def never(*_, **__):
        raise AssertionError("a server was started")

    monkeypatch.setattr("lidar_sampling.cli._serve._run_until_stopped", never)
    code, out, err = lidar("serve", *arguments)
    assert (code, out) == (2, "")
    assert "serve-rewards" in err


def test_serving_until_ctrl_c(tmp_path):
    command = [sys.executable, "-m", "lidar_sampling", "serve-rewards", "brightness", "--port", "0"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        line = run.stderr.readline()
        assert line.startswith("serving brightness at http://127.0.0.1:")
        import torch

        url = line.split()[-1]
        assert RemoteReward(url, "brightness")(images=torch.ones(1, 3, 4, 4), prompts=["x"]).item() == 1
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=30) == 130
    finally:
        run.kill()
