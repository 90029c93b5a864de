"""The arithmetic of benchmarks/fleet.py, against closed forms."""

import json
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest

from benchmarks.fleet import CALM, HOUR, Fleet, entry, hours_table, main, measure_memory, simulate, storage_table

IDEAL = replace(Fleet(prompts=1200, gpus=40, answer=0), **CALM)
ROUGH = Fleet(prompts=20_000, gpus=80, faults=0.5, preemptions=0.5, killers=5, weights=7e9, storage=2e9)


@pytest.mark.parametrize("queue", [True, False])
@pytest.mark.parametrize("window", [1, 2, 5])
def test_equal_prompts_take_prompts_times_seconds_over_gpus(queue, window):
    out = simulate(replace(IDEAL, queue=queue, window=window))
    assert out.wall == pytest.approx(1200 * 30 / 40)
    assert out.held == pytest.approx(1200 * 30) == out.drawn
    assert (out.lost, out.restarting, out.idle, out.faults) == (0, 0, 0, 0)


@pytest.mark.parametrize("queue", [True, False])
def test_a_rest_of_the_division_is_one_more_round(queue):
    out = simulate(replace(IDEAL, prompts=1201, queue=queue, window=1))
    assert out.wall == pytest.approx(31 * 30)
    assert out.tail == pytest.approx(30)
    assert out.idle == pytest.approx(39 * 30)


@pytest.mark.parametrize(("copies", "number"), [("host", 5), ("gpu", 40)])
def test_weights_are_loaded_one_after_the_other(copies, number):
    out = simulate(replace(IDEAL, weights=7e9, storage=1e9, start=60, copies=copies, queue=False))
    assert out.loaded == pytest.approx(7 * number + 60)
    assert out.wall == pytest.approx(out.loaded + 30 * 30)


def test_a_driver_that_is_too_slow_is_the_limit():
    out = simulate(replace(IDEAL, answer=1.5, window=2))  # 40 workers, an answer each 0.75 s
    assert out.wall == pytest.approx(1240 * 1.5)  # answers of prompts, and of workers that are ready
    assert out.driver == pytest.approx(out.wall)
    fast = simulate(replace(IDEAL, answer=1.2e-3))
    assert fast.driver == pytest.approx(1240 * 1.2e-3)
    assert fast.wall == pytest.approx(900, rel=1e-3)


@pytest.mark.parametrize("queue", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_every_prompt_is_drawn_once_or_given_up(queue, seed):
    out = simulate(replace(ROUGH, queue=queue), seed)
    assert out.faults > 20
    assert out.preempted > 5
    assert len(out.given_up) == 5
    assert out.killed >= 5  # a fault may have taken a try of theirs
    assert [prompt for prompt, count in enumerate(out.done) if count != 1] == sorted(out.given_up)


def test_a_prompt_that_kills_is_given_up_after_its_tries():
    out = simulate(replace(IDEAL, killers=4, tries=3, start=50))
    assert (out.killed, len(out.given_up)) == (12, 4)
    assert out.lost == pytest.approx(12 * 30)
    assert 11 * 50 <= out.restarting <= 12 * 50  # the run may end with the last one


@pytest.mark.parametrize("queue", [True, False])
def test_faults_and_lost_hosts_come_at_their_rates(queue):
    fleet = replace(ROUGH, faults=0.8, preemptions=0.4, killers=0, replacement=0, weights=0, start=0, queue=queue)
    outs = [simulate(fleet, seed) for seed in range(5)]
    expected = fleet.faults * sum(out.exposed for out in outs) / HOUR
    assert abs(sum(out.faults for out in outs) - expected) <= 4 * sqrt(expected)  # Poisson
    if queue:  # hosts that may be lost: all, all the time
        expected = fleet.preemptions * sum(out.wall for out in outs) / HOUR * fleet.gpus / fleet.per_host
        assert abs(sum(out.preempted for out in outs) - expected) <= 4 * sqrt(expected)


def test_a_fault_loses_half_a_prompt_and_a_restart():
    fleet = replace(IDEAL, prompts=40_000, faults=1.0, start=45)
    out = simulate(fleet)
    share = out.lost / out.faults / fleet.seconds  # uniform in a prompt: 1/2, standard deviation sqrt(1/12)
    assert abs(share - 0.5) <= 4 * sqrt(1 / 12 / out.faults)
    assert 45 * (out.faults - 40) <= out.restarting <= 45 * out.faults  # a fault of one that starts, or the end


@pytest.mark.parametrize("queue", [True, False])
def test_every_second_of_every_gpu_has_one_name(queue):
    out = simulate(replace(ROUGH, queue=queue, answer=0))
    loading = 8 * sum(7 / 2 * (host + 1) + 60 for host in range(10))  # until workers are ready for the first time
    assert out.held == pytest.approx(out.drawn + out.lost + out.restarting + loading + (out.idle if queue else 0))


def test_shards_that_help_meet_at_the_same_prompts():
    fleet = replace(ROUGH, queue=False, killers=0, tries=100)
    alone, helped = simulate(fleet), simulate(replace(fleet, help=True))
    assert min(helped.done) == 1
    assert helped.wall < alone.wall
    assert helped.twice > alone.twice == 0
    loading = 8 * sum(7 / 2 * (host + 1) + 60 for host in range(10))
    spent = helped.drawn + helped.lost + helped.twice + helped.restarting + loading
    assert helped.held == pytest.approx(spent)


def test_static_shards_have_the_longer_tail():
    fleet = Fleet(prompts=20_000, gpus=50, preemptions=0)
    queue, shards = simulate(fleet), simulate(replace(fleet, queue=False))
    assert queue.tail <= 2 * 1.5 * 30 < shards.tail
    assert queue.wall < shards.wall


def test_the_same_seed_is_the_same_run():
    assert simulate(ROUGH, 3) == simulate(ROUGH, 3)
    assert simulate(ROUGH, 3).wall != simulate(ROUGH, 4).wall


def test_storage_and_memory_are_counted():
    table = storage_table(Fleet(), 30_000.0)
    for words in ("| 13.1 MB | 13.1 TB | 436.91 |", "| 6.6 MB |", "| 6.0 MB | 6.0 TB | 200.00 |", "7,000,000"):
        assert words in table
    assert "1,000 of prompts, 3,907 of banks" in table
    assert 1000 <= measure_memory(lambda: bytearray(1000)) < 1200
    assert json.loads(json.dumps(line := entry(np.random.default_rng(0)))) == line


def test_the_table_has_a_row_per_setting(capsys):
    rows = hours_table(Fleet(prompts=400, gpus=16, killers=2), 0).splitlines()
    assert len({row.count("|") for row in rows}) == 1
    with pytest.raises(SystemExit):
        main(["--gpus", "0"])
    assert "at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": 0}, "prompts"),
        ({"seconds": float("nan")}, "above 0"),
        ({"faults": -1.0}, "not be negative"),
        ({"copies": "disk"}, "host or gpu"),
        ({"help": True}, "help is for shards"),
        ({"killers": 2000}, "at most prompts"),
    ],
)
def test_wrong_numbers_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        simulate(replace(IDEAL, **changes))
