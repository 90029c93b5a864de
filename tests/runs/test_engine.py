"""One engine behind every run: sharing the work does not change results, and every run can be repeated."""

import json
import os
import re
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from test_cli import failure, lidar, tiny

from lidar_sampling import Cost, methods
from lidar_sampling.runs import Job, load_sampler, run, share, task_of, work
from lidar_sampling.runs._folder import Folder, place_of
from lidar_sampling.runs.local import _Pace

__all__ = ["lidar", "tiny"]  # fixtures

PROMPTS = ["a cat", "a dog", "two cups", "a cow", "a photo of a dog"]
FEW = {"n": 3, "steps": 3, "lookahead": "dpm:2", "scale": 1.0, "reward_scale": 5.0, "eta": 1.0}


@pytest.fixture(scope="module")
def job(tiny):
    return Job(
        prompts=PROMPTS,
        model=tiny[1],
        reward="brightness",
        settings=FEW,
        images=2,
        device="cpu",
        scheduler="DDIMScheduler:clip_sample=False",
    )


@pytest.fixture(scope="module")
def loaded(job):
    return load_sampler(job)


def in_batches(loaded, size):
    twin = copy(loaded)
    twin.batch_size = size
    return twin


def pictures(out):
    return {str(file.relative_to(out)): np.array(Image.open(file)) for file in sorted(out.rglob("samples/*.png"))}


def timeless(value):
    """Remove values that depend on the clock or the machine's memory."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "peak_memory")}
    return [timeless(each) for each in value] if isinstance(value, list) else value


class TestShares:
    @pytest.mark.parametrize(("number", "batch_size", "backwards"), [(2, 16, False), (5, 1, True)])
    def test_of_pictures_draw_what_one_process_draws(self, job, loaded, tmp_path, number, batch_size, backwards):
        whole = run(job, tmp_path / "one", lidar=loaded)
        for rank in sorted(range(number), reverse=backwards):
            outcome = run(job, tmp_path / "many", shard=(rank, number), lidar=in_batches(loaded, batch_size))
        assert outcome.complete
        one, many = pictures(tmp_path / "one"), pictures(tmp_path / "many")
        assert list(one) == list(many)
        assert len(one) == 2 * len(PROMPTS)
        assert all(np.abs(one[name].astype(int) - many[name]).max() <= 1 for name in one)
        for before, after in zip(whole.result["prompts"], outcome.result["prompts"], strict=True):
            assert before["prompt"] == after["prompt"]
            assert after["lidar"]["rewards"]["brightness"] == pytest.approx(
                before["lidar"]["rewards"]["brightness"], abs=1e-5
            )

    @pytest.mark.parametrize("number", [2, 5])
    def test_of_lines_are_those_of_one_process_to_the_byte(self, job, loaded, tmp_path, number):
        compared = replace(job, task="compare", methods=["vanilla", "best-of-3"], seeds=[0, 1])
        for name, shards in (("one", 1), ("many", number)):
            for rank in reversed(range(shards)):
                task = task_of(compared, tmp_path / name, rank=rank)
                task.begin(loaded, shared=True)
                list(work(task, share(task, (rank, shards), help_others=False)))
        found = []
        for name in ("one", "many"):
            files = (tmp_path / name).glob("results-*.jsonl")
            lines = [timeless(json.loads(line)) for file in files for line in file.open()]
            found.append(sorted(json.dumps(line) for line in lines))
        assert len(found[0]) == 5 * 2 * 2
        assert found[0] == found[1]

    def test_that_run_twice_change_nothing(self, job, loaded, tmp_path):
        for rank in (0, 1, 0, 1):
            run(job, tmp_path, shard=(rank, 2), lidar=loaded)
            there = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("0*/**/*") if file.is_file()}
            if rank == 1:
                assert len(there) == len(PROMPTS) * 4
                before = there
        assert there == before

    def test_of_another_run_are_refused(self, job, loaded, tmp_path):
        run(replace(job, prompts=PROMPTS[:1]), tmp_path, shard=(0, 2), lidar=loaded)
        with pytest.raises(ValueError, match="choose another --out"):
            run(replace(job, prompts=PROMPTS[:1], images=1), tmp_path, shard=(1, 2), lidar=loaded)
        with pytest.raises(ValueError, match="--overwrite would delete what other processes draw"):
            run(replace(job, prompts=PROMPTS[:1]), tmp_path, shard=(1, 2), lidar=loaded, overwrite=True)

    @pytest.mark.parametrize("task", ["compare", "look"])
    def test_that_go_on_with_what_is_there_delete_nothing(self, job, loaded, tmp_path, task):
        kept = tmp_path / "results-0.jsonl"
        kept.write_text("")
        with pytest.raises(ValueError, match=f"--overwrite deletes runs of pictures, .* remove {tmp_path}"):
            run(replace(job, task=task), tmp_path, lidar=loaded, overwrite=True)
        assert kept.exists()

    def test_are_told_by_slurm(self, lidar, tiny, tmp_path, monkeypatch):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
        monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
        monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
        few = ["--n", "2", "--steps", "2", "--lookahead", "dpm:2", "--images", "1"]
        code, out, err = lidar("generate", "a cat", "a dog", *tiny, *few, "--out", tmp_path / "out")
        assert (code, out) == (0, "")
        assert "share 1 of 2, as SLURM_ARRAY_TASK_ID" in err
        assert "share 1 of 2 is done; others are still drawing" in err
        assert not (tmp_path / "out/result.json").exists()
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
        *_, err = lidar("generate", "a cat", "a dog", *tiny, *few, "--out", tmp_path / "out")
        assert "share 2 of 2 is done; all of it is in" in err
        assert len(json.loads((tmp_path / "out/result.json").read_text())["prompts"]) == 2


class TestAnyRun:
    def test_can_be_made_again_with_one_command(self, lidar, tiny, tmp_path):
        few = ["--n", "2", "--steps", "2", "--lookahead", "dpm:2", "--images", "1", "--window", "1", "0.3"]
        line = ["generate", "a cat", "a dog", *tiny, *few, "--beside-vanilla", "--call", "height=16"]
        assert lidar(*line, "--out", tmp_path / "a", "--quiet")[0] == 0
        code, out, err = lidar(
            "run", tmp_path / "a/result.json", "--out", tmp_path / "b", "--json", "--batch-size", "1"
        )
        assert code == 0, err
        first, again = (json.loads((tmp_path / name / "result.json").read_text()) for name in "ab")
        assert again == json.loads(out)
        assert again["job"] == {**first["job"], "batch_size": 1}
        assert again["mean"]["lidar"]["brightness"] == pytest.approx(first["mean"]["lidar"]["brightness"], abs=1e-5)

    def test_says_its_job_without_drawing(self, lidar, tiny, tmp_path):
        line = ["generate", "a cat", *tiny, "--n", "4", "--steps", "4", "--out", tmp_path / "out", "--dry-run"]
        code, out, err = lidar(*line)
        assert code == 0
        job = Job.from_json(out)
        assert (job.texts(), job.settings, job.model) == (["a cat"], {"n": 4, "steps": 4}, tiny[1])
        assert "lidar: 80 network evaluations, 4 reward calls per prompt" in err.replace("  ", " ")
        assert not (tmp_path / "out").exists()

    def test_names_what_concerns_banks_alone_where_none_is_drawn(self, job, loaded, tmp_path, said):
        one = replace(job, prompts=PROMPTS[:1], settings={"n": 3, "steps": 4}, bank_seed=2)
        run(replace(one, methods=["vanilla"]), tmp_path / "plain", lidar=loaded)
        run(one, tmp_path / "guided", lidar=loaded)
        (told,) = [line for line in said() if "draws no bank" in line]
        assert told == "vanilla draws no bank and does not read n, bank_seed"

    def test_collects_what_others_drew(self, lidar, job, loaded, tmp_path):
        for rank in (0, 2, 1):
            assert not run(job, tmp_path / "out", shard=(rank, 4), lidar=loaded).complete
        run(job, tmp_path / "out", shard=(3, 5), lidar=loaded)  # another number of processes
        (tmp_path / "job.json").write_text(json.dumps(job.to_json()))
        code, out, err = lidar("run", tmp_path / "job.json", "--out", tmp_path / "out", "--collect", "--json")
        assert code == 0, err
        assert len(json.loads(out)["prompts"]) == 5
        assert (tmp_path / "out/grid.png").exists()
        before = (tmp_path / "out/result.json").read_bytes()
        for change, words in (
            ({"seeds": [7]}, r"seeds=\[0\], .* has \[7\]"),
            ({"settings": {"n": 50}}, "n=.* has 50"),
        ):
            other = {**job.to_json(), **change}
            (tmp_path / "other.json").write_text(json.dumps(other))
            err = failure(lidar("run", tmp_path / "other.json", "--out", tmp_path / "out", "--collect"))
            assert re.search(f"out was drawn with {words}: give the Job that drew it", err)
        assert (tmp_path / "out/result.json").read_bytes() == before
        os.rename(tmp_path / "out/00003", tmp_path / "gone")
        err = failure(lidar("run", tmp_path / "job.json", "--out", tmp_path / "out", "--collect"))
        assert "does not hold 'a cow' of this run" in err

    def test_of_a_comparison_too(self, lidar, tiny, tmp_path):
        (tmp_path / "p.txt").write_text("a cat\na dog\n")
        line = ["compare", "--prompts", tmp_path / "p.txt", "--methods", "vanilla,best-of-N", "--budget", "60", *tiny]
        few = ["--steps", "2", "--images", "1"]
        code, out, _ = lidar(*line, *few, "--out", tmp_path / "r", "--dry-run")
        assert code == 0
        (tmp_path / "job.json").write_text(out)
        assert lidar("run", tmp_path / "job.json", "--out", tmp_path / "r")[0] == 0
        code, out, _ = lidar(*line, *few, "--out", tmp_path / "r", "--table", "--json")
        assert code == 0
        assert [row["method"] for row in json.loads(out)] == ["vanilla", "best-of-10"]
        assert lidar("run", tmp_path / "job.json", "--out", tmp_path / "r", "--collect")[0] == 0

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('{"prompts": ["a cat"], "imagse": 2}', "no field 'imagse'"),
            ('{"prompts": []}', "at least one prompt"),
            ("{", "is damaged"),
        ],
    )
    def test_that_is_wrong_is_one_line(self, lidar, tmp_path, content, message):
        (tmp_path / "job.json").write_text(content)
        assert message in failure(lidar("run", tmp_path / "job.json", "--out", tmp_path / "out"))
        assert not (tmp_path / "out").exists()
        assert "No such file" in failure(lidar("run", tmp_path / "nowhere.json"))


class TestProgress:
    def test_tells_where_the_run_is(self, job, loaded, tmp_path):
        seen = []
        outcome = run(job, tmp_path, lidar=in_batches(loaded, 4), tell=seen.append)
        assert (seen[0].done, seen[0].total, seen[0].left) == (0, 5, None)
        assert (seen[-1].done, seen[-1].cost, seen[-1].left) == (5, outcome.cost, 0.0)
        assert {now.phase for now in seen} == {"", "lookahead", "sampling"}
        assert all(0 <= now.part <= 1 for now in seen)
        assert outcome.cost.network_evaluations == outcome.result["mean"]["lidar"]["network_evaluations"] * 5

    @pytest.mark.parametrize("name", ["vanilla", "best-of-3", "fk", "svdd-2", "search-2", "halving-8", "refine-4"])
    def test_is_told_by_every_method(self, loaded, name):
        seen = []
        twin = loaded.with_progress(lambda *now: seen.append(now))
        methods.load(name).draw(twin, ["a cat"], images=2, seed=0)
        assert len(seen) >= 3
        methods.load(name).draw(loaded, ["a cat"], images=2, seed=0)
        assert seen[-1][1] == seen[-1][2]

    def test_can_stop_any_method_within_a_step(self, loaded):
        def stop(*_):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            methods.load("fk").draw(loaded.with_progress(stop), ["a cat"], images=2, seed=0)

    def pace(self, monkeypatch, units, samples):
        """Return a pace with a clock of its own, that clock, and what it tells."""
        clock, seen = [0.0], []
        monkeypatch.setattr("lidar_sampling.runs.local.time.monotonic", lambda: clock[0])

        class Task:
            lidar = None
            evaluations = staticmethod(lambda unit, lidar: unit)
            describe = staticmethod(str)
            cost = staticmethod(lambda record: Cost(network_evaluations=record))

        return _Pace(Task(), units, samples, seen.append), clock, seen

    def test_estimates_what_is_left_by_evaluations(self, monkeypatch):
        pace, clock, seen = self.pace(monkeypatch, [10, 30, 60], 4)
        pace.begin([10])
        clock[0] = 5.0
        pace.end([(10, 10)])
        assert (seen[-1].done, seen[-1].left) == (2, 45.0)  # 90 evaluations at half a second
        pace.begin([30])
        clock[0] = 11.0
        assert pace.seconds_left() == 39.0
        pace.end([(30, 30)])
        assert seen[-1].left == pytest.approx(60 * 11 / 40)
        assert seen[-1].cost.network_evaluations == 40

    def test_estimates_the_phase_of_the_first_prompt_by_its_pace(self, monkeypatch):
        pace, clock, seen = self.pace(monkeypatch, [10], 1)
        pace.begin([10])
        told = []
        for seconds, phase, done in (
            (5.0, "lookahead", 0.25),  # the phase starts here; loading does not count
            (7.0, "lookahead", 0.5),
            (11.0, "lookahead", 1.0),
            (12.0, "sampling", 0.0),
            (15.0, "sampling", 0.75),
        ):
            clock[0] = seconds
            pace.step(phase, 4 * done, 4)
            told.append(seen[-1].phase_left)
        assert told == [None, 4.0, 0.0, None, 1.0]
        assert all(now.left is None for now in seen)


class TestLargeRuns:
    def test_lie_in_folders_of_a_thousand(self, tmp_path, monkeypatch):
        assert place_of(9_999, 10_000) == "09999"
        assert place_of(999_999, 1_000_000) == "0999/0999999"
        assert len({place_of(k, 10_001) for k in range(10_001)}) == 10_001

    def test_keep_their_entries_in_lines(self, job, loaded, tmp_path, monkeypatch):
        monkeypatch.setattr("lidar_sampling.runs._folder.MOST_FLAT", 3)
        monkeypatch.setattr("lidar_sampling.runs._pictures.MOST_ENTRIES", 2)
        result = run(job, tmp_path, lidar=loaded).result
        assert sorted(os.listdir(tmp_path)) == ["0000", "entries.jsonl", "grid.png", "result.json", "run.json"]
        assert (len(result["prompts"]), result["count"], result["entries"]) == (2, 5, "entries.jsonl")
        lines = [json.loads(line) for line in (tmp_path / "entries.jsonl").open()]
        assert [line["prompt"] for line in lines] == PROMPTS
        assert all((tmp_path / file).exists() for line in lines for file in line["lidar"]["images"])
        values = [value for line in lines for value in line["lidar"]["rewards"]["brightness"]]
        assert result["mean"]["lidar"]["brightness"] == pytest.approx(sum(values) / 10)
        assert run(job, tmp_path, lidar=loaded, resume=True).cost == Cost()


class TestAFolder:
    def test_with_a_manifest_alone_is_compared_too(self, tmp_path):
        how = {"resume": False, "overwrite": False}
        Folder(tmp_path / "o", {}, identity={"seed": 1}, **how)
        Folder(tmp_path / "o", {}, identity={"seed": 1}, **how)
        with pytest.raises(ValueError, match="made with seed=1, now it is 2"):
            Folder(tmp_path / "o", {}, identity={"seed": 2}, **how)

    def test_of_a_run_that_kept_nothing_is_taken_away(self, job, tmp_path):
        def stop(_):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(job, tmp_path / "out", tell=stop)
        assert not (tmp_path / "out").exists()

    def test_that_is_removed_under_a_run_is_named(self, job, loaded, tmp_path):
        def remove(now):
            if now.done == 1 and (tmp_path / "out").exists():
                os.rename(tmp_path / "out", tmp_path / "gone")

        with pytest.raises(FileNotFoundError, match="out was removed during the run"):
            run(job, tmp_path / "out", lidar=in_batches(loaded, 2), tell=remove)
        assert not (tmp_path / "out").exists()
        assert (tmp_path / "gone/00000/result.json").exists()
