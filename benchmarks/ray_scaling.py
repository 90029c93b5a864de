"""Measure the throughput of a Job over Ray workers, and what is lost when processes are killed.

    python -m benchmarks.ray_scaling --workers 1,2,4,8
    python -m benchmarks.ray_scaling --workers 1 --kills 20 --restarts 3

Each call of the denoiser sleeps before it computes, in every process, so that one machine can represent many: a
sleeping worker takes no core, just like a worker whose GPU is busy. Everything else is real: a diffusers pipeline on
random weights, both phases, the reward, PNG files, Ray's processes.

    throughput   sum over workers of (k - 1) / (t_k - t_1), where t_k is the time at which a worker kept its k-th
    prompt;
                 this excludes the time to start, and the last prompts, which not every worker has
    efficiency   throughput / (workers x throughput of one worker)
    kills        a worker chosen at random is killed with -9, at a random moment after every 2 to 14 prompts; calls
                 sleep for a fifteenth
    restarts     the driver is killed with -9 at a random moment, and the same program is started again
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lidar_sampling.runs import Job, Progress

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # Ray sets this too, but only after the instrument has imported torch
os.environ.setdefault("RAY_worker_niceness", "0")  # otherwise other programs delay the workers


def job_of(model: Path, prompts: int) -> Job:
    """Return a Job of 6 calls of the denoiser per prompt: 2 for its bank, 4 for its pictures."""
    return Job(
        prompts=[f"picture {k}" for k in range(prompts)],
        model=str(model),
        reward="brightness",
        settings={"n": 2, "steps": 4, "lookahead": "dpm:2", "scale": 1.0, "reward_scale": 5.0},
        scheduler="DDIMScheduler:clip_sample=False",
        images=2,
        batch_size=2,  # one prompt at a time
        device="cpu",
    )


def instrument(sleep: float, log: str) -> Callable[[], None]:
    """Return a function that makes a process's denoiser sleep, and logs each kept prompt to a file."""

    def set_up() -> None:
        import json
        import os
        import time

        from diffusers import UNet2DConditionModel

        from lidar_sampling.runs._folder import Folder

        forward, put = UNet2DConditionModel.forward, Folder.put

        def slow(*args: Any, **kwargs: Any) -> Any:
            time.sleep(sleep)
            return forward(*args, **kwargs)

        def note(folder: Any, index: int, *args: Any) -> Any:
            entry = put(folder, index, *args)
            with open(log, "a") as file:
                file.write(json.dumps([os.getpid(), index, time.time()]) + "\n")
            return entry

        UNet2DConditionModel.forward, Folder.put = slow, note  # type: ignore[method-assign]

    return set_up


def start_ray(workers: int, sleep: float, log: Path) -> Any:
    """Start Ray with room for ``workers`` workers, whatever this machine has; return it."""
    import ray

    os.environ["RAY_prestart_worker_first_driver"] = "0"  # noqa: SIM112  idle ones would import torch
    ray.init(
        address="local",
        num_cpus=workers,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"worker_process_setup_hook": instrument(sleep, str(log))},
    )
    return ray


def read_notes(log: Path) -> list[tuple[int, int, float]]:
    """Return (process, prompt, time) of all prompts that were kept."""
    return [tuple(json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []


def measure_throughput(kept: Sequence[tuple[int, int, float]]) -> float:
    """Return prompts per second, as the module defines it.

    >>> round(measure_throughput([(1, 0, 10.0), (1, 2, 14.0), (1, 4, 18.0), (2, 1, 11.0), (2, 3, 15.0)]), 3)
    0.5
    """
    times: dict[int, list[float]] = defaultdict(list)
    for process, _, moment in kept:
        times[process].append(moment)
    return sum((len(own) - 1) / (max(own) - min(own)) for own in times.values() if len(own) > 1)


def processes(root: int, beginning: bytes = b"ray::Worker") -> list[int]:
    """Return the processes below ``root`` whose command begins with ``beginning``."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if not path.joinpath("cmdline").read_bytes().startswith(beginning):
                continue
            above = int(path.name)
            while above not in (0, 1, root):
                above = int(Path("/proc", str(above), "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        found += [int(path.name)] if above == root else []
    return found


def scale(model: Path, counts: Sequence[int], each: int, sleep: float, place: Path) -> None:
    """Print a line of the table for each number of workers."""
    from lidar_sampling.runs.ray import run

    print("| workers | prompts | started, s | prompts/s | efficiency |\n|---|---|---|---|---|")
    one = 0.0
    for count in counts:
        out, log = place / f"scale-{count}", place / f"scale-{count}.log"
        began = time.time()
        ray = start_ray(count, sleep, log)
        try:
            run(job_of(model, each * count), out, workers=count)
        finally:
            ray.shutdown()
        kept = read_notes(log)
        rate = measure_throughput(kept)
        one = one or rate / count
        first = min(moment for _, _, moment in kept) - began
        print(f"| {count} | {len(kept)} | {first:.0f} | {rate:.3f} | {rate / one / count:.2f} |", flush=True)


def survive(model: Path, kills: int, prompts: int, sleep: float, workers: int, place: Path, seed: int) -> None:
    """Kill workers at random moments; print the outcome of the prompts."""
    from lidar_sampling.runs.ray import run

    out, log, chance = place / "kills", place / "kills.log", random.Random(seed)
    ray = start_ray(workers, sleep, log)
    over, killed, stages = threading.Event(), 0, Counter[str]()

    def kill() -> None:
        nonlocal killed
        while killed < kills and not over.is_set():
            wanted = len(read_notes(log)) + chance.randint(2, 14)
            while len(read_notes(log)) < wanted and not over.wait(0.1):
                pass
            over.wait(chance.uniform(0, 2))
            if found := processes(os.getpid()):
                victim = chance.choice(found)
                stages[Path(f"/proc/{victim}/cmdline").read_bytes().rstrip(b"\0").decode()] += 1
                os.kill(victim, signal.SIGKILL)
                killed += 1

    killer, began, problem = threading.Thread(target=kill), time.time(), "none"
    killer.start()
    try:
        run(job_of(model, prompts), out, workers=workers)
    except RuntimeError as error:
        problem = str(error)
    finally:
        over.set()
        killer.join()
        ray.shutdown()
    times = Counter(index for _, index, _ in read_notes(log))
    there = len(list(out.glob("*/result.json")))
    print(
        f"killed {killed} of {workers} workers within {time.time() - began:.0f} s ({dict(stages)}): "
        f"of {prompts} prompts {there} are there, {prompts - there} lost, kept once "
        f"{sum(k == 1 for k in times.values())}, kept twice {sum(k > 1 for k in times.values())}, "
        f"half-written folders {len(list(out.glob('.*.part')))}; error: {problem}",
        flush=True,
    )


def restart(model: Path, restarts: int, prompts: int, place: Path, seed: int) -> None:
    """Kill the driver at random moments and restart it; print the outcome of the prompts."""
    out, chance = place / "restarts", random.Random(seed)
    command = [sys.executable, "-m", "benchmarks.ray_scaling", "--drive", str(out), "--model", str(model)]
    command += ["--prompts", str(prompts), "--at-once", "2", "--workers", ""]
    before: dict[Path, int] = {}
    for attempt in range(restarts + 1):
        driver = subprocess.Popen(command)
        wanted = len(before) + chance.randint(1, prompts // (restarts + 2))
        while driver.poll() is None:
            time.sleep(0.05)
            if attempt < restarts and len(list(out.glob("*/result.json"))) >= wanted:
                left = processes(driver.pid, b"")
                driver.kill()
                driver.wait()
                ended = time.time()
                while any(Path(f"/proc/{process}/exe").exists() for process in left) and time.time() - ended < 60:
                    time.sleep(0.2)
                lasting = sum(Path(f"/proc/{process}/exe").exists() for process in left)
                print(f"the driver was killed; {lasting} processes of it are there {time.time() - ended:.1f} s later")
        there = {path: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
        again = sum(there.get(path) != moment for path, moment in before.items())
        print(f"{len(there)} of {prompts} are there, {again} of {len(before)} were drawn again", flush=True)
        before = there
    print(f"result.json: {(out / 'result.json').is_file()}; half-written: {len(list(out.glob('.*.part')))}")


def drive(model: Path, out: Path, prompts: int, workers: int, address: str | None) -> None:
    """Draw a Job and report progress: this is the driver to kill."""
    from lidar_sampling.runs.ray import run

    last = -1

    def tell(now: Progress) -> None:
        nonlocal last
        if now.done != last:
            last = now.done
            left = "" if now.left is None else f", {now.left:.0f} s left"
            print(f"{time.time():.1f} {now.done}/{now.total} {now.phase}{left}", flush=True)

    began = time.time()
    outcome = run(job_of(model, prompts), out, workers=workers, address=address, tell=tell)
    print(f"complete: {outcome.complete} in {time.time() - began:.0f} s", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2,4,8", help="numbers of workers, comma separated")
    parser.add_argument("--each", type=int, default=6, help="prompts per worker")
    parser.add_argument("--sleep", type=float, default=1.5, help="seconds per call of the denoiser")
    parser.add_argument("--kills", type=int, default=0, help="workers to kill")
    parser.add_argument("--restarts", type=int, default=0, help="times to kill the driver")
    parser.add_argument("--prompts", type=int, default=200, help="prompts in the runs with kills")
    parser.add_argument("--at-once", type=int, default=3, help="workers in the runs with kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kills")
    parser.add_argument("--drive", type=Path, help="only draw into this folder")
    parser.add_argument("--model", type=Path, help="a saved tiny pipeline, instead of a new one")
    parser.add_argument("--address", help="address of a running cluster to use")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        place, model = Path(folder), options.model
        if model is None:
            from lidar_sampling import testing

            model = place / "model"
            testing.tiny_stable_diffusion().save_pretrained(model)
        if options.drive is not None:
            drive(model, options.drive, options.prompts, options.at_once, options.address)
            return
        counts = [int(count) for count in options.workers.split(",") if count]
        scale(model, counts, options.each, options.sleep, place)
        if options.kills:
            sleep = options.sleep / 15
            survive(model, options.kills, options.prompts, sleep, options.at_once, place, options.seed)
        if options.restarts:
            restart(model, options.restarts, options.prompts, place, options.seed)


if __name__ == "__main__":
    main()
