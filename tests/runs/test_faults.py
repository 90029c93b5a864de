"""Nothing is lost: after kills, full disks, removed or shared folders, finished work stays, with one line on stderr.

If a fault needs a process, the command runs in a fork of this one (:mod:`benchmarks.faults`).
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from test_cli import failure, lidar, tiny

from benchmarks import faults
from lidar_sampling import LiDAR, _files, testing
from lidar_sampling._files import write_once
from lidar_sampling._hooks import DivergedError, Step, Watch
from lidar_sampling.evaluation.budget import with_numbers
from lidar_sampling.runs import Job, _lines, load_sampler, run, task_of
from lidar_sampling.runs._folder import contents_of

__all__ = ["lidar", "tiny"]  # fixtures

resource = pytest.importorskip("resource", reason="forks, mounts and signals are those of Unix")

PROMPTS = ["a cat", "a cow", "a dog"]
COMMANDS = ["generate", "compare", "look"]
FEW = {"n": 3, "steps": 3, "lookahead": "dpm:2", "scale": 1.0, "reward_scale": 5.0}


@pytest.fixture(scope="module")
def commands(tiny):
    """Return the commands, without figures, which take longest and are left to the benchmark."""
    faults.load_once()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lidar_sampling.evaluation.figures.available", lambda: False)
        yield faults.commands(Path(tiny[1]), PROMPTS)


@pytest.fixture
def job(tiny):
    return Job(prompts=PROMPTS, model=tiny[1], reward="brightness", settings=FEW, images=2, device="cpu")


@pytest.fixture(scope="module")
def wholes(commands, tmp_path_factory):
    """Return the output of each command when undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    return {name: faults.run_undisturbed(commands[name], folder)[0] for name in COMMANDS}


def one_line(err, *parts):
    """Check that stderr has one line of ours, and that it says so."""
    lines = [line for line in err.splitlines() if line.startswith("lidar: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    for part in parts:
        assert part in lines[0]


def check_equal(now, whole):
    assert sorted(now) == sorted(whole)
    assert all(faults.same(now[name][1], whole[name][1]) for name in whole)


def forked(tmp_path, *lines, environments=None):
    """Run commands at the same time, each in a process; return (status, stderr) of each."""
    logs = [tmp_path / f"log-{k}" for k in range(len(lines))]
    told = environments or [{}] * len(lines)
    started = [faults.start(list(map(str, line)), *how) for line, *how in zip(lines, logs, told, strict=True)]
    return [(faults.end_of(process), log.read_text()) for process, log in zip(started, logs, strict=True)]


def wait_for(path):
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.01)


class TestAKill:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_loses_nothing(self, commands, tmp_path, name):
        tally = faults.kill(commands[name], 3, tmp_path, seed=7)
        assert tally.faults == 0, tally.said
        assert tally.kills >= 3
        assert tally.drawn > 0
        assert set(tally.ended) == {0, -signal.SIGKILL}, tally.said

    def test_that_lost_something_would_be_seen(self, commands, lidar, tmp_path):
        command, out = commands["generate"], tmp_path / "out"
        assert lidar(*command.arguments, "--out", out)[0] == 0
        before = command.read(out)
        tally = faults.Tally("generate")
        os.utime(out / "00000/result.json")
        faults._compare(tally, command, out, before, count=True)
        assert (tally.lost, tally.double, tally.half) == (0, 1, 0)
        picture = out / "00001/samples/0000.png"
        content = picture.read_bytes()
        picture.write_bytes(content[:-40])
        faults._compare(tally, command, out, before, count=True)
        assert tally.half == 1
        shutil.rmtree(out / "00001")
        faults._compare(tally, command, out, before, count=True)
        assert tally.lost == 1
        assert not faults.same([1.0], [1.1])
        assert not faults.same({"a": 1}, {})


@pytest.fixture
def small(tmp_path):
    """Yield a separate file system; resize(KIB) sets its size."""
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=4k", "tmpfs", place], capture_output=True, check=False
    )
    if not made or made.returncode:
        pytest.skip("mounting needs rights")

    def remount(options):
        subprocess.run([mount, "-o", f"remount,{options}", place], check=True, capture_output=True)

    yield place, remount
    subprocess.run(["umount", "-l", place], check=True)


class TestAFullDisk:
    @pytest.mark.parametrize(
        ("name", "sizes"), [("generate", (4, 12, 28, 44)), ("compare", (8, 24)), ("look", (16,))]
    )
    def test_keeps_what_is_finished_and_goes_on(self, commands, wholes, lidar, small, name, sizes):
        place, remount = small
        command, out, there = commands[name], place / "out", 0
        for size in sizes:
            remount(f"size={size}k")
            code, _, err = lidar(*command.arguments, *command.again, "--out", out)
            one_line(err, "No space left on device")
            assert code == 1
            kept = command.read(out) if out.exists() else {}
            assert there <= len(kept) < len(PROMPTS) * 2
            there = len(kept)
        assert there > 0
        remount("size=20m")
        assert lidar(*command.arguments, *command.again, "--out", out)[0] == 0
        check_equal(command.read(out), wholes[name])

    @pytest.mark.parametrize(
        ("name", "most"),
        [("generate", 0), ("generate", 300), ("generate", 1500), ("compare", 0), ("compare", 1500), ("look", 1500)],
    )
    def test_in_the_midst_of_a_file(self, commands, wholes, tmp_path, name, most):
        command, out = commands[name], tmp_path / "out"
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        log = tmp_path / "log"
        log.touch()
        read, write = os.pipe()
        if (process := os.fork()) == 0:  # the log is a pipe, which has no size
            os.dup2(write, 2)
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
            status = 70
            try:
                from lidar_sampling.cli import main

                main([*command.arguments, *command.again, "--out", str(out)])
            except SystemExit as end:
                status = end.code
            finally:
                os._exit(status)
        os.close(write)
        with open(read) as stream:
            err = stream.read()
        assert faults.end_of(process) in (1, 2), err
        one_line(err, "File too large")
        if out.exists():
            command.read(out)
        assert forked(tmp_path, [*command.arguments, *command.again, "--out", out])[0][0] == 0
        check_equal(command.read(out), wholes[name])

    def test_where_no_file_can_be_linked_leaves_no_half_manifest(self, tmp_path, monkeypatch):
        def link(*paths):
            raise PermissionError(1, "Operation not permitted")

        def full(path, mode):
            if mode != "xb":
                return open(path, mode)
            file = open(path, mode, buffering=0)  # noqa: SIM115
            file.write(b"{")
            file.close()  # so that the next write raises
            return file

        monkeypatch.setattr(os, "link", link)
        assert _files.write_once(tmp_path / "a", b"{}")
        assert not _files.write_once(tmp_path / "a", b"[]")
        monkeypatch.setattr(_files, "open", full, raising=False)
        with pytest.raises(ValueError, match="closed file"):
            _files.write_once(tmp_path / "b", b"{}")
        assert os.listdir(tmp_path) == ["a"]
        assert (tmp_path / "a").read_bytes() == b"{}"


class TestAPlaceThatIsNotWritable:
    @pytest.fixture(autouse=True)
    def _no_model(self, monkeypatch):
        def load(*args, **kwargs):
            raise AssertionError("the model was loaded")

        monkeypatch.setattr(LiDAR, "from_pretrained", load)

    @pytest.mark.parametrize("name", COMMANDS)
    def test_on_a_disk_that_is_read_only(self, commands, lidar, small, name):
        place, remount = small
        (place / "there").mkdir()
        remount("ro")
        for out in (place / "there", place / "new/deep"):
            err = failure(lidar(*commands[name].arguments, "--out", out))
            one_line(err, str(out), "cannot be written (Read-only file system): choose another --out")
        remount("rw")
        assert os.listdir(place) == ["there"]

    @pytest.mark.parametrize("place", ["file/banks", "ro/banks"])
    def test_as_a_store_of_banks(self, commands, lidar, tmp_path, small, place):
        (tmp_path / "file").touch()
        mounted, remount = small
        remount("ro")
        (tmp_path / "ro").symlink_to(mounted)
        line = [*commands["generate"].arguments, "--banks", tmp_path / place, "--out", tmp_path / "out"]
        one_line(failure(lidar(*line)), "cannot be written", "choose another --banks")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("name", COMMANDS)
    def test_under_a_file(self, commands, lidar, tmp_path, name):
        (tmp_path / "file").touch()
        err = failure(lidar(*commands[name].arguments, "--out", tmp_path / "file/out"))
        one_line(err, "cannot be written", "Not a directory")
        assert os.listdir(tmp_path) == ["file"]


class TestAFolderThatChangesUnderARun:
    def at_second(self, monkeypatch, change):
        """Make a change when the second prompt or line begins."""
        from lidar_sampling.runs.local import _Pace

        begin, count = _Pace.begin, [0]

        def changed(self, group):
            count[0] += 1
            if count[0] == 2:
                change()
            begin(self, group)

        monkeypatch.setattr(_Pace, "begin", changed)

    def line(self, commands, name, out):
        size = ["--batch-size", "2"] if name == "generate" else []
        return [*commands[name].arguments, *size, "--out", out]

    @pytest.mark.parametrize("name", COMMANDS)
    def test_being_removed(self, commands, wholes, lidar, tmp_path, monkeypatch, name):
        out = tmp_path / "out"
        with monkeypatch.context() as patch:
            self.at_second(patch, lambda: os.rename(out, tmp_path / "gone"))
            err = failure(lidar(*self.line(commands, name, out)))
        one_line(err, "was removed during the run: start it again")
        assert len(commands[name].read(tmp_path / "gone")) == 1
        if name != "look":
            assert not out.exists()
        assert lidar(*self.line(commands, name, out))[0] == 0
        check_equal(commands[name].read(out), wholes[name])

    @pytest.mark.parametrize("name", COMMANDS[:2])
    def test_losing_its_run_json(self, commands, lidar, tmp_path, monkeypatch, name):
        out = tmp_path / "out"
        self.at_second(monkeypatch, (out / "run.json").unlink)
        err = failure(lidar(*self.line(commands, name, out)))
        one_line(err, "out was removed during the run: start it again")
        assert len(commands[name].read(out)) == 1

    def test_whose_run_json_is_replaced(self, commands, lidar, tmp_path, monkeypatch):
        out = tmp_path / "out"
        with monkeypatch.context() as patch:
            self.at_second(patch, lambda: (out / "run.json").rename(tmp_path / "kept") and (out / "run.json").touch())
            err = failure(lidar(*self.line(commands, "generate", out)))
        one_line(err, "another run has taken", "start it again with another --out")
        assert (out / "00000/result.json").exists()
        assert not (out / "00002").exists()
        os.replace(tmp_path / "kept", out / "run.json")
        assert lidar(*self.line(commands, "generate", out), "--resume")[0] == 0


class TestTwoRunsInOneFolder:
    def test_of_one_job_draw_every_prompt_once(self, commands, wholes, tmp_path):
        line = [*commands["generate"].arguments, "--batch-size", "2", "--resume", "--out", tmp_path / "out"]
        for status, said in forked(tmp_path, line, line):
            assert status == 0, said
        check_equal(commands["generate"].read(tmp_path / "out"), wholes["generate"])
        assert not list((tmp_path / "out").rglob(".*"))

    def test_a_manifest_that_the_other_is_writing_is_not_seen(self, tmp_path, monkeypatch):
        """Whatever stands in the folder at any moment of the writing, another process finds it empty or a run."""
        seen = []
        replace_file, link = os.replace, os.link

        def look(call):
            def looking(*args):
                seen.append([path.name for path in contents_of(tmp_path)])
                return call(*args)

            return looking

        monkeypatch.setattr(os, "replace", look(replace_file))
        monkeypatch.setattr(os, "link", look(link))
        assert write_once(tmp_path / "run.json", b"{}")
        assert seen == [[], []]
        assert [path.name for path in contents_of(tmp_path)] == ["run.json"]

    def test_of_two_jobs_are_told_apart(self, commands, tmp_path):
        lines = [[*commands["generate"].arguments, "--seed", seed, "--out", tmp_path / "out"] for seed in (0, 1)]
        for begun in (False, True):  # at once, and while the first draws
            ended = forked(tmp_path, *lines) if not begun else [*forked(tmp_path, lines[1], lines[0])]
            statuses = sorted(status for status, _ in ended)
            refused = next(said for status, said in ended if status == 2)
            if begun:
                assert statuses == [2, 2]
                assert "is not empty" in refused
            else:
                assert statuses == [0, 2]
                assert "seed=" in refused or "is not empty" in refused
            one_line(refused)
        assert len(commands["generate"].read(tmp_path / "out")) == len(PROMPTS)

    def test_where_one_goes_on_while_the_other_still_draws(self, commands, wholes, tmp_path):
        line = [*commands["generate"].arguments, "--batch-size", "2", "--out", str(tmp_path / "out")]
        first = faults.start(line, tmp_path / "first")
        wait_for(tmp_path / "out/00000")
        ((status, said),) = forked(tmp_path, [*line, "--resume"])
        assert status == 0, said
        assert faults.end_of(first) == 0, (tmp_path / "first").read_text()
        check_equal(commands["generate"].read(tmp_path / "out"), wholes["generate"])

    def test_of_a_comparison_share_a_file(self, commands, wholes, tmp_path):
        line = [*commands["compare"].arguments, "--out", tmp_path / "out"]
        for status, said in forked(tmp_path, line, line):
            assert status == 0, said
        assert os.listdir(tmp_path / "out").count("results-0.jsonl") == 1
        check_equal(commands["compare"].read(tmp_path / "out"), wholes["compare"])
        assert not list((tmp_path / "out").rglob(".*"))

    def test_see_each_others_lines_in_the_same_file(self, job, tmp_path):
        """Of two processes without RANK, one does not draw again what the other has already drawn."""
        compared = replace(job, task="compare", methods=["vanilla"])
        sampler = load_sampler(job)
        one, other = (task_of(compared, tmp_path / "out") for _ in range(2))
        one.begin(sampler)
        other.begin(sampler)
        one.draw([one.units[0]], sampler)
        assert other.find_record(other.units[0])["prompt"] == "a cat"
        assert other.find_record(other.units[1]) is None
        two = other.draw([other.units[1]], sampler)
        assert one.draw([one.units[1]], sampler) == two
        assert len((tmp_path / "out/results-0.jsonl").read_text().splitlines()) == 2

    def test_append_whole_lines(self, tmp_path):
        file, text = tmp_path / "results-0.jsonl", "x" * 20_000
        children = []
        for number in range(4):
            if (process := os.fork()) == 0:
                for k in range(50):
                    _lines.append(file, {"prompt": text, "number": number, "k": k})
                os._exit(0)
            children.append(process)
        assert [faults.end_of(process) for process in children] == [0] * 4
        lines = list(map(json.loads, file.read_text().splitlines()))
        assert len({(line["number"], line["k"]) for line in lines}) == len(lines) == 200

    def test_append_behind_what_a_kill_cut_off(self, tmp_path):
        file = tmp_path / "results-0.jsonl"
        file.write_text('{"prompt": "a c')
        assert _lines.append(file, {"prompt": "a dog"}) == range(15, 15 + 21)
        assert _lines.read_objects(file) == [{"prompt": "a dog"}]


class TestABudget:
    def test_in_seconds_is_settled_once(self, tmp_path):
        barrier = threading.Barrier(4)
        answers = {}

        def rank(number):
            def find(name):
                barrier.wait()  # all have looked, and nobody has written
                return name.replace("N", str(number + 3))

            answers[number] = with_numbers(tmp_path / "r/budget.json", "30s", ["best-of-N", "vanilla"], find)

        threads = [threading.Thread(target=rank, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({tuple(found) for found in answers.values()}) == 1
        assert sorted(os.listdir(tmp_path / "r")) == ["budget.json"]

    def test_that_another_rank_settled_while_this_one_measured_is_its(self, tmp_path):
        file = tmp_path / "r/budget.json"

        def slow(name):
            assert with_numbers(file, "30s", ["best-of-N"], lambda name: "best-of-5") == ["best-of-5"]
            return "best-of-9"

        assert with_numbers(file, "30s", ["best-of-N"], slow) == ["best-of-5"]
        assert os.listdir(tmp_path / "r") == ["budget.json"]

    def test_goes_to_the_first_file_that_is_free(self, tmp_path):
        names = ["best-of-N", "vanilla@N", "halving-N"]
        for count in (1, 2, 3):
            with_numbers(tmp_path / "budget.json", "30s", names[:count], lambda name: name.replace("N", "4"))
        (tmp_path / "budget-1.json").unlink()
        found = with_numbers(tmp_path / "budget.json", "30s", names, lambda name: name.replace("N", "7"))
        assert found == ["best-of-4", "vanilla@7", "halving-4"]
        assert sorted(os.listdir(tmp_path)) == ["budget-1.json", "budget-2.json", "budget.json"]

    def test_is_one_for_two_ranks(self, commands, tmp_path):
        line = [*commands["compare"].arguments, "--methods", "best-of-N", "--budget", "0.3s", "--out", tmp_path / "r"]
        ranks = [{"RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
        for status, said in forked(tmp_path, line, line, environments=ranks):
            assert status == 0, said
        lines = _lines.read(*(tmp_path / "r").glob("results-*.jsonl"))
        assert sorted(line["prompt"] for line in lines) == PROMPTS
        assert len({line["method"] for line in lines}) == 1


FAULTS = {
    "raises": "raised RuntimeError: no luck at all",
    "nan": "returned nan for image",
    "inf": "returned inf for image",
    "has a wrong shape": "must return one number per image",
}


def spoilt(scores, prompts):
    """Spoil scores as FAULT says for prompts in FAULT_AT; the environment is not part of a run's identity."""
    fault, at = os.environ.get("FAULT"), os.environ.get("FAULT_AT", "a cow").split(",")
    rows = [k for k, prompt in enumerate(prompts) if prompt in at]
    if fault is None or not rows:
        return scores
    if fault == "raises":
        raise RuntimeError("no luck\nat all")
    if fault == "hangs":
        Path(os.environ["FAULT_FILE"]).touch()
        time.sleep(600)
    if fault == "has a wrong shape":
        return scores[:-1]
    scores[rows[-1]] = float(fault)
    return scores


class TestAReward:
    """The user's own reward: it fails on the last picture of a cow, or on all."""

    @pytest.fixture(autouse=True)
    def _of_ones_own(self, monkeypatch):
        def brightness(*, images, prompts):
            return spoilt(testing.brightness(images=images, prompts=prompts), prompts)

        monkeypatch.setattr("lidar_sampling.rewards.brightness.load_brightness", lambda *_, **__: brightness)

    @pytest.mark.parametrize(
        ("name", "fault"),
        [*(("generate", fault) for fault in FAULTS), ("compare", "raises"), ("compare", "nan"), ("look", "inf")],
    )
    def test_that_fails_on_one_picture_leaves_the_others(
        self, commands, wholes, lidar, tmp_path, monkeypatch, fault, name
    ):
        command, out = commands[name], tmp_path / "out"
        with monkeypatch.context() as patch:
            patch.setenv("FAULT", fault)
            code, stdout, err = lidar(*command.arguments, *command.again, "--out", out)
        assert (code in (1, 2), stdout) == (True, "")
        one_line(err, "are not in", "a cow", FAULTS[fault])
        assert len(kept := command.read(out)) == len(wholes[name]) * 2 // 3
        assert not any("cow" in prompt for prompt in kept)
        assert lidar(*command.arguments, *command.again, "--out", out)[0] == 0
        check_equal(command.read(out), wholes[name])

    @pytest.mark.parametrize("name", COMMANDS)
    def test_that_fails_on_all_stops_the_run(self, commands, lidar, tmp_path, monkeypatch, name):
        monkeypatch.setenv("FAULT", "raises")
        monkeypatch.setenv("FAULT_AT", ",".join(PROMPTS))
        code, stdout, err = lidar(*commands[name].arguments, "--out", tmp_path / "out")
        assert (code, stdout) == (1, "")
        one_line(err, "no luck at all")
        assert not (tmp_path / "out").exists() or commands[name].read(tmp_path / "out") == {}

    @pytest.mark.parametrize("name", COMMANDS)
    def test_that_fails_on_the_first_prompt_leaves_the_others(
        self, commands, wholes, lidar, tmp_path, monkeypatch, name
    ):
        monkeypatch.setenv("FAULT", "nan")
        monkeypatch.setenv("FAULT_AT", "a cat")
        size = ["--batch-size", "2"] if name == "generate" else []
        code, _, err = lidar(*commands[name].arguments, *size, "--out", tmp_path / "out")
        assert code in (1, 2)
        one_line(err, "a cat", "returned nan")
        assert len(commands[name].read(tmp_path / "out")) == len(wholes[name]) * 2 // 3

    @pytest.mark.parametrize(
        ("name", "more"), [("generate", ["--fast", "overlap"]), *((name, []) for name in COMMANDS)]
    )
    def test_that_hangs_is_stopped_by_ctrl_c(self, commands, wholes, lidar, tmp_path, name, more):
        command, out, hangs = commands[name], tmp_path / "out", tmp_path / "hangs"
        size = ["--batch-size", "2", *more] if name == "generate" else []
        fault = {"FAULT": "hangs", "FAULT_AT": "a dog", "FAULT_FILE": str(hangs)}
        process = faults.start([*command.arguments, *size, "--out", str(out)], tmp_path / "log", fault)
        wait_for(hangs)
        os.kill(process, signal.SIGINT)
        assert faults.end_of(process, 60) == 130
        one_line((tmp_path / "log").read_text(), "stopped; finished work is kept")
        assert len(command.read(out)) == len(wholes[name]) * 2 // 3
        assert lidar(*command.arguments, *size, *command.again, "--out", out)[0] == 0
        check_equal(command.read(out), wholes[name])


def sampler(**settings):
    pipe = testing.tiny_stable_diffusion()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    how = {"n": 4, "steps": 5, "lookahead": "dpm:2", "guidance_scale": 3.0, "batch_size": 32, **settings}
    return LiDAR(pipe, reward="brightness", **how)


class Fault:
    """A hook that spoils the network's output: some rows of its call number ``call``, for one prompt or all.

    Args:
        call: number of the first spoilt call, from 1.
        rows: rows of the batch, in which guidance puts the unconditional samples before the conditional ones.
        value: the value put there.
        shape: whether half a sample is spoilt, or one number.
    """

    def __init__(self, unet, call, rows=slice(None), value=math.nan, times=1):
        self.call, self.rows, self.value, self.times, self.count = call, rows, value, times, 0
        self.handle = unet.register_forward_hook(self)

    def __call__(self, module, args, output):
        self.count += 1
        if self.call <= self.count < self.call + self.times:
            found = output[0] if isinstance(output, tuple) else output.sample
            found[self.rows, 0, 1, 2] = self.value


class TestANetworkThatReturnsNaN:
    @pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
    def test_in_phase_1_or_2_is_told_with_its_step_and_prompt(self, guidance_scale):
        for call, where in ((1, "1 of 2"), (2, "2 of 2"), (3, "1 of 5"), (5, "3 of 5"), (7, "5 of 5")):
            lidar = sampler(guidance_scale=guidance_scale)
            Fault(lidar.pipe.unet, call, rows=6 if call < 3 else 3)
            with pytest.raises(DivergedError, match=f"^the network returned NaN at step {where} for 'a dog'$"):
                lidar(["a cat", "a dog"], images=2)

    def test_without_guidance(self):
        lidar = sampler()
        Fault(lidar.pipe.unet, 3, rows=7, value=-math.inf)
        with pytest.raises(DivergedError, match=r"^the network returned infinity at step 3 of 5 for 'a dog'$"):
            lidar.vanilla(["a cat", "a dog"], images=2)

    @pytest.mark.parametrize(
        "name",
        [
            "best-of-2",
            "steered-4",
            "fk",
            "das",
            "svdd-3",
            "beam-4x1",
            "search-2",
            "ug",
            "fmrg",
            "reno-2",
            "date",
            "halving-8",
            "rbf-2",
            "evo-3@9",
        ],
    )
    def test_is_told_by_every_method_also_where_a_reward_is_asked_first(self, name):
        from lidar_sampling.methods import load as load_method

        lidar = sampler(eta=1.0)
        Fault(lidar.pipe.unet, 2)
        with pytest.raises(DivergedError, match=r"^the network returned NaN at step \d of \d for 'a cat'$"):
            load_method(name).draw(lidar, ["a cat"], images=2 if name != "halving-8" else 1, seed=0)

    def test_is_not_told_of_what_nobody_uses(self):
        """SVDD starts from one of three equal rows; a mask or a clipping scheduler keeps numbers finite."""
        from lidar_sampling.methods import load as load_method

        lidar = sampler(eta=1.0)
        Fault(lidar.pipe.unet, 1, rows=1)
        assert load_method("svdd-3").draw(lidar, ["a cat"], images=1, seed=0).images.isfinite().all()
        masked = Watch(total=1)
        masked.before(Step(torch.zeros(1, 2), None, None, output=torch.tensor([[0.0, math.inf]])))
        masked.check(torch.zeros(1, 2), ["a cat"])

    def test_is_told_apart_from_guidance_that_overflows(self):
        watch = Watch(total=2)
        for sample, output in ((1.0, 1.0), (math.inf, math.nan)):
            watch.before(Step(torch.full((2, 1), sample), None, None, output=torch.full((2, 1), output)))
        with pytest.raises(DivergedError, match="made NaN or infinity of numbers at step 1 of 2 for 'b'"):
            watch.check(torch.tensor([[0.0], [math.nan]]), ["a", "b"])
        last = Watch(total=1, sums=[(torch.zeros(1), torch.zeros(1))])
        with pytest.raises(DivergedError, match="made NaN or infinity of numbers at step 1 of 1 for 'a'"):
            last.check(torch.tensor([[math.nan]]), ["a"])
        with pytest.raises(DivergedError, match="the sample that drawing starts from holds NaN or infinity for 'a'"):
            Watch(1, [(torch.tensor([math.nan]), torch.tensor([math.nan]))]).check(torch.tensor([[math.nan]]), ["a"])

    def test_is_not_seen_in_sums_of_half_precision(self):
        watch, large = Watch(total=1), torch.full((1, 4, 8, 8), 60_000.0, dtype=torch.float16)
        watch.before(Step(large, None, None, output=large))
        assert watch.explain(["a"]) == ""
        watch.check(large, ["a"])

    def test_waits_for_nothing_while_it_draws(self):
        """On the device ``meta`` nothing has a value, so waiting for one would raise an error."""
        watch, sample = Watch(total=3), torch.empty(2, 4, 8, 8, device="meta")
        watch.before(Step(sample, None, None, output=sample))
        assert [tuple(part.shape) for part in watch.sums[0]] == [(2,), (2,)]

    @pytest.fixture
    def spoilt(self, monkeypatch):
        """Make the network return NaN from its third call on, for the prompt with a cow."""
        from lidar_sampling import _load

        loaded, made = _load.load_pipeline, []

        def load_pipeline(*args, **kwargs):
            pipe = loaded(*args, **kwargs)
            encode = pipe.encode_prompt
            asked = []

            def seen(prompt, *args, **kwargs):
                asked[:] = prompt
                return encode(prompt, *args, **kwargs)

            def spoil(module, args, output):
                if "a cow" in asked:
                    rows = [len(asked) + k for k, text in enumerate(asked) if text == "a cow"]
                    (output[0] if isinstance(output, tuple) else output.sample)[rows] = math.nan

            pipe.encode_prompt = seen
            made.append(pipe.unet.register_forward_hook(spoil))
            return pipe

        monkeypatch.setattr(_load, "load_pipeline", load_pipeline)
        return made

    @pytest.mark.parametrize("name", COMMANDS)
    def test_costs_its_prompt_and_no_other(self, commands, wholes, lidar, tmp_path, spoilt, name):
        command, out = commands[name], tmp_path / "out"
        code, stdout, err = lidar(*command.arguments, "--guidance-scale", "7.5", "--out", out)
        assert (code, stdout) == (1, "")
        one_line(err, "the network returned NaN at step 1 of", "for 'a cow'")
        kept = command.read(out) if out.exists() else {}
        assert not any("cow" in prompt for prompt in kept)
        assert len(kept) == len(wholes[name]) * 2 // 3
        for hook in spoilt:
            hook.remove()


class TestTheClock:
    def test_that_is_set_back_moves_no_duration(self, job, tmp_path, monkeypatch):
        now = [2e9]

        def back():
            now[0] -= 3600
            return now[0]

        monkeypatch.setattr(time, "time", back)
        seen = []
        outcome = run(job, tmp_path / "out", tell=seen.append)
        assert outcome.complete
        assert 0 < outcome.cost.seconds < 100
        assert all(step.left is None or 0 <= step.left < 100 for step in seen)

    def test_is_read_by_nothing_that_measures(self):
        root = Path(testing.__file__).parents[1]
        read = ("time.time(", "datetime.now", "utcnow", "st_mtime", "getmtime", "process_time")
        # The time of eviction depends on the age of a file, and two files are told apart by theirs.
        spared = [root / "service" / "banks.py", root / "runs" / "_folder.py"]
        files = [file for file in root.rglob("*.py") if file not in spared]
        assert not [file for file in files for word in read if word in file.read_text(encoding="utf-8")]


class TestBadInput:
    @pytest.fixture(autouse=True)
    def _no_model(self, monkeypatch):
        def load(*args, **kwargs):
            raise AssertionError("the model was loaded")

        monkeypatch.setattr(LiDAR, "from_pretrained", load)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"images": "4"}, "images must be int, got '4'"),
            ({"seeds": [0.5]}, "seeds must be"),
            ({"prompts": []}, "at least one prompt"),
            ({"prompts": 3}, "prompts must be a list"),
            ({"prompts": [{"prompt": "a", "id": 1}, {"prompt": "b", "id": 1}]}, "two prompts have the id 1"),
            ({"prompts": ["x" * 10_000_000]}, "has 10000000 characters"),
            ({"methods": ["best-off-4"]}, "unknown method 'best-off-4'"),
            ({"reward": "brigthness"}, "brigthness"),
            ({"settings": {"stepz": 3}}, "unknown setting 'stepz'"),
            ({"settings": {"steps": "3"}}, "steps"),
            ({"model": "glyhp"}, "glyhp"),
            ({"scheduler": "No"}, "No"),
            ({"call": {"height": {"a": math.nan}}}, "JSON"),
        ],
    )
    def test_in_a_job_is_one_line_and_nothing_is_written(self, lidar, tmp_path, monkeypatch, change, message):
        if "model" in change:
            monkeypatch.undo()
        (tmp_path / "job.json").write_text(json.dumps({"prompts": ["a cat"], **change}))
        err = failure(lidar("run", tmp_path / "job.json", "--out", tmp_path / "out"))
        assert len(err) < 600
        one_line(err, message)
        assert os.listdir(tmp_path) == ["job.json"]

    @pytest.mark.parametrize("name", COMMANDS)
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "is empty"),
            ("x" * 10_000_000, "has 10000000 characters"),
            ('{"prompt": "a", "id": "k"}\n{"prompt": "b", "id": "k"}\n', "two prompts have the id 'k'"),
        ],
    )
    def test_in_a_file_of_prompts(self, lidar, tmp_path, name, content, message):
        file = tmp_path / ("prompts.jsonl" if content.startswith("{") else "prompts.txt")
        file.write_text(content)
        err = failure(lidar(name, "--prompts", file, "--out", tmp_path / "out"))
        assert len(err) < 600
        one_line(err, message)
        assert os.listdir(tmp_path) == [file.name]

    @pytest.mark.parametrize("name", COMMANDS)
    @pytest.mark.parametrize(
        ("rank", "number"), [("2", "2"), ("-1", "2"), ("0", "0"), ("one", "2"), ("0", "2.5"), ("0", None)]
    )
    def test_in_the_rank(self, commands, lidar, tmp_path, monkeypatch, name, rank, number):
        for variable, value in (("RANK", rank), ("WORLD_SIZE", number)):
            if value is not None:
                monkeypatch.setenv(variable, value)
        err = failure(lidar(*commands[name].arguments, "--out", tmp_path / "out"))
        one_line(err, "RANK")
        assert os.listdir(tmp_path) == []
