"""The command, on a tiny pipeline from disk: its files, its output and its failures."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from lidar_sampling import LookaheadBank, testing
from lidar_sampling._media import read_picture
from lidar_sampling.cli import app, main
from lidar_sampling.cli._explain import sentences
from lidar_sampling.cli._panels import PANEL_OF
from lidar_sampling.runs import _machine

FAST = ["--n", "4", "--steps", "4", "--images", "2", "--scale", "1", "--reward-scale", "5"]
LOOK = ["--n", "4"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    testing.tiny_stable_diffusion().save_pretrained(path)
    return ["--model", str(path), "--reward", "brightness", "--device", "cpu"]


@pytest.fixture
def lidar(capsys):
    """Run the command; return (status, stdout, stderr)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(list(map(str, arguments)))
        return stop.value.code, *capsys.readouterr()

    return run


def failure(result, status=2):
    code, out, err = result
    assert code == status, err
    assert out == ""
    assert "Traceback" not in err
    return err


def test_generate_writes_what_it_says(lidar, tiny, tmp_path):
    out = tmp_path / "out"
    prompts = ["a photo of two dogs", "something else"]
    code, stdout, stderr = lidar("generate", *prompts, *tiny, *FAST, "--beside-vanilla", "--out", out)
    assert (code, stderr) == (0, "")
    assert "lidar" in stdout
    assert "vanilla" in stdout
    assert stdout.splitlines()[-1] == f"images, grid.png and result.json are in {out}"
    for index in range(2):
        for folder in ("samples", "vanilla"):
            files = sorted(os.listdir(out / f"{index:05d}" / folder))
            assert files == ["0000.png", "0001.png"]
    assert json.loads((out / "00000/metadata.jsonl").read_text())["tag"] == "counting"
    assert json.loads((out / "00001/metadata.jsonl").read_text()) == {"prompt": "something else"}
    with Image.open(out / "grid.png") as grid:
        assert grid.width > 300
    result = json.loads((out / "result.json").read_text())
    assert result["job"]["prompts"] == prompts
    assert result["mean"]["lidar"]["network_evaluations"] == 2 * (4 * 5 + 2 * 5)
    assert result["settings"]["n"] == 4
    assert len(result["prompts"][1]["trace"]) == 4
    with Image.open(out / "00000/samples/0001.png") as image:
        pixels = torch.from_numpy(np.array(image)).float() / 255
    assert result["prompts"][0]["lidar"]["rewards"]["brightness"][1] == pytest.approx(pixels.mean().item(), abs=3e-3)
    assert not [name for name in os.listdir(out) if name.endswith(".part")]


def test_generate_without_out_says_in_its_last_line_where_the_pictures_are(lidar, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, stdout, _ = lidar("generate", "a cat", *tiny, *FAST)
    assert code == 0
    assert stdout.splitlines()[-1] == "images, grid.png and result.json are in out"
    assert (tmp_path / "out/00000/samples/0000.png").is_file()


def test_other_methods_draw_too(lidar, tiny, tmp_path):
    out = tmp_path / "out"
    code, stdout, _ = lidar(
        "generate", "a cat", *tiny, *FAST, "--method", "best-of-3", "--beside-vanilla", "--out", out
    )
    assert code == 0
    assert "best-of-3" in stdout
    (entry,) = json.loads((out / "result.json").read_text())["prompts"]
    assert entry["methods"] == ["vanilla", "best-of-3"]
    assert min(entry["best-of-3"]["rewards"]["brightness"]) >= min(entry["vanilla"]["rewards"]["brightness"])
    cost = entry["best-of-3"]["cost"]["sampling"]
    assert cost["network_evaluations"] == 2 * 3 * 5  # PNDM takes 4 steps in 5 evaluations
    assert entry["bank"] == {}
    assert len(os.listdir(out / "00000/samples")) == 2


@pytest.mark.parametrize("method", ["steerd-4", "best-of-N"])
def test_a_method_that_is_none_is_refused_before_anything_is_made(lidar, tiny, tmp_path, method):
    err = failure(lidar("generate", "a cat", *tiny, *FAST, "--method", method, "--out", tmp_path / "out"))
    assert method in err
    assert not (tmp_path / "out").exists()


def test_json_alone_is_on_stdout(lidar, tiny, tmp_path):
    code, stdout, _ = lidar("generate", "a cat", *tiny, *FAST, "--json", "--out", tmp_path / "out")
    assert code == 0
    assert json.loads(stdout) == json.loads((tmp_path / "out/result.json").read_text())


def test_look_then_guide(lidar, tiny, tmp_path):
    banks, out = tmp_path / "banks", tmp_path / "out"
    code, stdout, _ = lidar("look", "a cat", "a dog", *tiny, *LOOK, "--out", banks, "--json")
    assert code == 0
    rows = json.loads(stdout)
    assert [row["prompt"] for row in rows] == ["a cat", "a dog"]
    assert LookaheadBank.load(rows[0]["file"]).prompt == "a cat"
    options = [*tiny, "--steps", "4", "--images", "2", "--scale", "1", "--reward-scale", "5"]
    code, *_ = lidar("guide", "a dog", *options, "--banks", banks, "--out", out)
    assert code == 0
    direct = tmp_path / "direct"
    lidar("generate", "a dog", *tiny, *FAST, "--out", direct)
    same = [read_picture(folder / "00000/samples/0001.png") for folder in (out, direct)]
    assert torch.equal(*same)  # the files differ in their provenance
    err = failure(lidar("guide", "a cow", *options, "--banks", banks, "--out", tmp_path / "o"))
    assert "no bank of 'a cow'" in err
    lidar("look", "a cat", *tiny, "--n", "5", "--out", banks)
    err = failure(lidar("guide", "a cat", *options, "--banks", banks, "--out", tmp_path / "o"))
    assert "2 banks of 'a cat': name one file" in err
    code, *_ = lidar("guide", "a cat", *options, "--banks", rows[0]["file"], "--out", tmp_path / "o")
    assert code == 0


class TestAnOutputFolder:
    def test_is_never_overwritten_unasked(self, lidar, tiny, tmp_path):
        out = tmp_path / "out"
        lidar("generate", "a cat", *tiny, *FAST, "--out", out)
        before = (out / "00000/result.json").read_bytes()
        err = failure(lidar("generate", "a dog", *tiny, *FAST, "--out", out))
        assert "choose another --out, or --resume to finish that run, or --overwrite" in err
        assert (out / "00000/result.json").read_bytes() == before
        assert lidar("generate", "a dog", *tiny, *FAST, "--out", out, "--overwrite")[0] == 0
        assert (out / "00000/result.json").read_bytes() != before

    def test_of_somebody_else_is_left_alone(self, lidar, tiny, tmp_path):
        (tmp_path / "thesis.tex").write_text("x")
        for option in ([], ["--resume"], ["--overwrite"]):
            failure(lidar("generate", "a cat", *tiny, *FAST, "--out", tmp_path, *option))
        assert os.listdir(tmp_path) == ["thesis.tex"]

    def test_of_a_run_that_failed_at_once_is_used_again(self, lidar, tiny, tmp_path):
        out = tmp_path / "out"
        failure(lidar("generate", "a cat", *tiny, *FAST, "--call", "hight=3", "--out", out))
        assert lidar("generate", "a cat", *tiny, *FAST, "--out", out)[0] == 0

    def test_resumes_only_the_same_run(self, lidar, tiny, tmp_path):
        out = tmp_path / "out"
        lidar("generate", "a cat", "a dog", *tiny, *FAST, "--out", out)
        kept = (out / "00000/result.json").stat().st_mtime_ns
        (out / "00001/result.json").unlink()
        os.rename(out / "00001", tmp_path / "gone")
        code, *_ = lidar("generate", "a cat", "a dog", *tiny, *FAST, "--out", out, "--resume")
        assert code == 0
        assert (out / "00000/result.json").stat().st_mtime_ns == kept
        assert (out / "00001/samples/0001.png").exists()
        other = [*FAST[:-1], "6"]
        err = failure(lidar("generate", "a cat", "a dog", *tiny, *other, "--out", out, "--resume"))
        assert "made with reward_scale=5.0, now it is 6.0" in err

    def test_that_cannot_be_written_is_named(self, lidar, tiny, tmp_path):
        (tmp_path / "file").write_text("")
        err = failure(lidar("generate", "a cat", *tiny, *FAST, "--out", tmp_path / "file" / "out"))
        assert "file" in err
        assert "Not a directory" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "at least one prompt"),
        (["generate", ""], "must not be empty"),
        (["generate", "a cat", "--images", "0"], "'--images': "),
        (["generate", "a cat", "--n", "0"], "n must be at least 1, got 0"),
        (["generate", "a cat", "--scale", "-1"], "scale must be finite and at least 0, got -1.0"),
        (["generate", "a cat", "--lookahead", "dmp:5"], "unknown solver 'dmp:5'"),
        (["generate", "a cat", "--reward", "glyf"], "did you mean 'glyph'"),
        (["generate", "a cat", "--dtype", "int8"], "--dtype must be"),
        (["generate", "a cat", "--prompts", "nowhere.txt"], "nowhere.txt: No such file"),
        (["generat", "a cat"], "No such command 'generat'"),
        (["generate", "a cat", "--stepz", "3"], "No such option"),
        (["guide", "a cat", "--banks", "nowhere"], "no bank at nowhere"),
    ],
)
def test_wrong_use_is_one_clear_line(lidar, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in " ".join(failure(lidar(*arguments)).split())
    assert os.listdir(tmp_path) == []


def test_a_model_that_is_not_there(lidar, tmp_path):
    code, _out, err = lidar(
        "generate", "a cat", "--model", tmp_path / "m", "--reward", "brightness", "--out", tmp_path / "out"
    )
    assert code in (1, 2)
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback(lidar):
    code, _, err = lidar("generate", "a cat", "--n", "0", "--debug")
    assert code == 2
    assert "Traceback" in err


def test_a_damaged_bank_is_named(lidar, tmp_path):
    path = tmp_path / "b.safetensors"
    path.write_bytes(b"not a bank")
    err = failure(lidar("guide", "a cat", "--banks", path, "--out", tmp_path / "out"))
    assert "truncated or not a safetensors file" in err


def test_prompts_from_files(lidar, tiny, tmp_path):
    (tmp_path / "p.txt").write_text("a cat\n\na dog\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a cow", "tag": "x"}\n')
    code, stdout, _ = lidar("look", "--prompts", tmp_path / "p.txt", *tiny, *LOOK, "--out", tmp_path, "--json")
    assert [row["prompt"] for row in json.loads(stdout)] == ["a cat", "a dog"]
    code, stdout, _ = lidar("look", "--prompts", tmp_path / "p.jsonl", *tiny, *LOOK, "--out", tmp_path, "--json")
    assert (code, [row["prompt"] for row in json.loads(stdout)]) == (0, ["a cow"])


class TestSpeed:
    def test_levers_and_scheduler_and_profile(self, lidar, tiny, tmp_path):
        arguments = ["generate", "a cat", "a dog", *tiny, *FAST, "--seed", "3"]
        code, plain, err = lidar(*arguments, "--out", tmp_path / "plain", "--json")
        assert code == 0, err
        code, out, err = lidar(
            *arguments, "--out", tmp_path / "fast", "--fast", "channels-last,encode-once,overlap", "--profile"
        )
        assert code == 0, err
        assert "ratio" in out
        assert "lookahead" in out
        whole = json.loads((tmp_path / "fast" / "result.json").read_text())
        before = json.loads(plain)["mean"]["lidar"]
        assert whole["mean"]["lidar"]["brightness"] == pytest.approx(before["brightness"], abs=1e-3)
        assert whole["profile"]["ratio"] > 0
        parts = {(part["phase"], part["part"]): part["rows"] for part in whole["profile"]["parts"]}
        assert parts["sampling", "decode"] == 4
        assert "profile" not in json.loads((tmp_path / "fast" / "run.json").read_text())
        again = [*arguments, "--out", tmp_path / "fast", "--fast", "channels-last,encode-once,overlap"]
        code, out, err = lidar(*again, "--profile", "--resume")  # nothing is left to measure
        assert code == 0, err
        assert "ratio" not in out

    @pytest.mark.parametrize("there", [True, False])
    def test_auto_is_a_precision_of_the_machine(self, lidar, tiny, tmp_path, monkeypatch, there):
        monkeypatch.setattr(_machine, "_computes_in_bfloat16", lambda device: there)
        code, _, err = lidar("generate", "a cat", *tiny, *FAST, "--out", tmp_path, "--dtype", "auto")
        assert code == 0, err
        dtype = json.loads((tmp_path / "run.json").read_text())["dtype"]
        assert dtype == ("bfloat16" if there else "float32")

    def test_another_scheduler(self, lidar, tiny, tmp_path):
        scheduler = "DPMSolverMultistepScheduler:algorithm_type=sde-dpmsolver++,solver_order=1"
        code, _, err = lidar("generate", "a cat", *tiny, *FAST, "--out", tmp_path, "--scheduler", scheduler)
        assert code == 0, err
        trace = json.loads((tmp_path / "00000" / "result.json").read_text())["trace"]
        assert 0 < len(trace) <= 4  # PNDM would take one step more

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("--fast", "warp", "--fast knows channels-last"),
            ("--fast", "rescore=many", "--fast knows channels-last"),
            ("--fast", "rescore=3", "wants a preview"),
            ("--fast", "cuda-graphs", "compile='whole'"),
            ("--fast", "compile-reward", "a reward with networks"),
            ("--scheduler", "UNet2DModel", "names no scheduler of diffusers: 'UNet2DModel'"),
            ("--scheduler", "DDIMScheduler:eta", "--scheduler must be NAME=VALUE, got 'eta'"),
        ],
    )
    def test_what_is_none_is_one_clear_line(self, lidar, tiny, tmp_path, option, value, message):
        result = lidar("generate", "a cat", *tiny, *FAST, "--out", tmp_path / "out", option, value)
        assert message in " ".join(result[2].replace("│", " ").split())
        assert result[0] in (1, 2)
        assert not (tmp_path / "out").exists()

    def test_prompts_drawn_together_are_those_drawn_alone(self, lidar, tiny, tmp_path):
        prompts = ["a cat", "a dog", "a cat", "a cup"]
        results = []
        for size in (2, 16, 0):
            out = tmp_path / str(size)
            code, _, err = lidar("generate", *prompts, *tiny, *FAST, "--out", out, "--batch-size", size)
            assert code == 0, err
            results.append(json.loads((out / "result.json").read_text())["prompts"])
        measured = results.pop()
        assert [entry["prompt"] for entry in measured] == prompts
        for alone, together in zip(*results, strict=True):
            assert alone["prompt"] == together["prompt"]
            assert together["lidar"]["rewards"]["brightness"] == pytest.approx(
                alone["lidar"]["rewards"]["brightness"], abs=1e-3
            )
            assert len(together["trace"][0]["ess"]) == 2
            for phase, cost in alone["lidar"]["cost"].items():
                assert together["lidar"]["cost"][phase]["network_evaluations"] == cost["network_evaluations"]
                assert together["lidar"]["cost"][phase]["reward_calls"] == cost["reward_calls"]


def test_lists(lidar):
    assert "glyph-heldout" in lidar("rewards")[1]
    assert json.loads(lidar("models", "--json")[1])["StableDiffusionXLPipeline"]["scale"] == 8.0
    assert lidar("--version")[1].strip() == "0.1.0"
    assert "--install-completion" in lidar("--help")[1]


def test_doctor(lidar):
    code, stdout, _ = lidar("doctor", "--json")
    assert code == 0
    assert all(row["ok"] for row in json.loads(stdout))


def test_ctrl_c_keeps_what_is_finished(tiny, tmp_path):
    out = tmp_path / "out"
    prompts = [f"prompt {i}" for i in range(500)]
    command = [
        sys.executable,
        "-m",
        "lidar_sampling",
        "generate",
        *prompts,
        *tiny,
        *FAST,
        "--out",
        str(out),
    ]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (out / "00001").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert "finished work is kept" in err
    folders = [name for name in os.listdir(out) if name.isdigit()]
    assert len(folders) >= 2
    assert all((out / name / "result.json").exists() for name in folders)
    assert not [name for name in os.listdir(out) if name.endswith(".part")]


def test_importing_is_cheap():
    code = (
        "import sys, time; t = time.process_time(); import lidar_sampling; t = time.process_time() - t;"
        "print(t, 'torch' in sys.modules, sorted(set(lidar_sampling.__all__) - set(dir(lidar_sampling))))"
    )
    seconds, torch_loaded, missing = subprocess.check_output([sys.executable, "-c", code], text=True).split(None, 2)
    assert float(seconds) < 1
    assert (torch_loaded, missing.strip()) == ("False", "[]")


def test_alone_it_shows_what_to_try(lidar):
    status, out, _ = lidar()
    assert status == 0
    for line in ("lidar generate ", "lidar app", "lidar compare "):
        assert line in out


def test_long_help_is_in_groups_and_every_option_has_one(lidar):
    for name, command in typer.main.get_command(app).commands.items():
        options = [p.opts[0] for p in command.get_params(typer.Context(command)) if p.param_type_name == "option"]
        status, out, _ = lidar(name, "--help")
        assert status == 0
        if len(options) > 12:
            assert {option for option in options if option not in PANEL_OF} == set(), name
            assert "\nSpeed:\n" in out
            assert "\nOptions:\n" not in out


def test_a_run_is_explained(lidar, tiny, tmp_path):
    lidar("generate", "a cat", "a dog", *tiny, *FAST, "--beside-vanilla", "--out", tmp_path / "out")
    status, out, _ = lidar("explain", tmp_path / "out")
    assert status == 0
    moved, followed, agreed = out.splitlines()
    assert re.fullmatch(r"It moved the prediction in \d of \d guided steps(: in the others .*)?\.", moved)
    assert "4 members" in followed
    assert re.search(r"brightness, which guided, (gained|lost) .* no other reward was computed", agreed)
    assert json.loads(lidar("explain", tmp_path / "out/result.json", "--json")[1])["prompts"] == 2


def test_a_run_of_a_method_with_settings_is_explained(lidar, tiny, tmp_path):
    lidar("generate", "a cat", *tiny, *FAST, "--method", "lidar:n=3", "--beside-vanilla", "--out", tmp_path / "out")
    status, out, _ = lidar("explain", tmp_path / "out")
    assert status == 0
    assert "3 members" in out
    assert "brightness, which guided, " in out


def test_what_was_not_guided_is_not_explained(lidar, tiny, tmp_path):
    lidar("generate", "a cat", *tiny, *FAST, "--method", "best-of-2", "--out", tmp_path / "out")
    assert "holds no run that guidance drew" in failure(lidar("explain", tmp_path / "out"))
    assert "No such file" in failure(lidar("explain", tmp_path / "nothing"))


def explained(*prompts, metrics=("heldout",)):
    """Return the last sentence on guided prompts, of (clip, heldout) of plain samples and then of guided ones."""
    trace = [{"ess_tilted": [2.0], "shift_norm": [1.0]}]
    names = ("clip", *metrics)
    entries = [
        {
            "trace": trace,
            "bank": {"clip": [1.0, 2.0]},
            "methods": ["vanilla", "lidar"],
            "vanilla": {"rewards": {name: list(plain) for name, (plain, _) in zip(names, values, strict=True)}},
            "lidar": {"rewards": {name: list(ours) for name, (_, ours) in zip(names, values, strict=True)}},
        }
        for values in prompts
    ]
    return sentences(entries)[-1]


class TestOtherRewards:
    """A reward may have no value for a picture; then its prompt does not count for that reward, and others do."""

    WHOLE = (([1.0], [2.0]), ([5.0, 7.0], [1.0, 3.0]))

    def test_are_averaged_over_the_prompts_that_have_values_of_both(self):
        for missing in (([1.0, None], [9.0, 9.0]), ([1.0, 1.0], [None, 9.0])):
            said = explained(*[self.WHOLE] * 20, (self.WHOLE[0], missing))
            assert (
                "clip, which guided, gained 1.00 and heldout, on 20 of 21 prompts, lost 4.00: they disagree" in said
            )

    def test_that_no_prompt_has_are_not_said_to_be_left_out(self):
        said = explained((self.WHOLE[0], ([None], [1.0])))
        assert "gained 1.00: no other reward has a value for every picture of a prompt, so look" in said
        assert "no other reward was computed" in explained((self.WHOLE[0],), metrics=())

    def test_are_none_where_the_guide_has_no_values_either(self):
        assert "No reward has a value for every picture" in explained((([None], [1.0]),), metrics=())
