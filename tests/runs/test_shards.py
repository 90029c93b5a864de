"""Shares of processes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lidar_sampling.runs import from_environment, order
from lidar_sampling.runs._shards import shard_variables


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "4", "WORLD_SIZE": "4"},
        {"RANK": "-1", "WORLD_SIZE": "4"},
        {"RANK": "0", "WORLD_SIZE": "0"},
        {"RANK": "1"},
        {"WORLD_SIZE": "4"},
        {"RANK": "", "WORLD_SIZE": ""},
        {"RANK": "one", "WORLD_SIZE": "2"},
        {"RANK": "1.0", "WORLD_SIZE": "2"},
    ],
)
def test_what_does_not_fit_is_refused_by_name(environment):
    with pytest.raises(ValueError, match=r"RANK.*WORLD_SIZE"):
        from_environment(environment)


def test_without_either_there_is_one_process():
    assert from_environment({"HOME": "/"}) == (0, 1)


@given(st.integers(1, 6).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))), st.integers(0, 20))
def test_every_process_sees_all_and_its_own_first(shape, count):
    number, rank = shape
    seen = order(range(count), rank, number)
    assert sorted(seen) == list(range(count))
    own = list(range(count))[rank::number]
    assert seen[: len(own)] == own


def array(task, count, first=0, **more):
    """Return the variables that Slurm sets in one job of an array."""
    named = {"ID": task, "COUNT": count, "MIN": first, **more}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in named.items()}


def srun(task, tasks):
    """Return the variables of one task of ``srun``, inside a batch script that asked for several."""
    names = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS")
    return dict(zip(names, map(str, (36, task, tasks, tasks)), strict=True))


ARRAY = "SLURM_ARRAY_TASK_ID, SLURM_ARRAY_TASK_COUNT, SLURM_ARRAY_TASK_MIN"
STEPS = f"{ARRAY}, SLURM_ARRAY_TASK_STEP"
TASKS = "SLURM_PROCID, SLURM_NTASKS"
SCRIPT = {"SLURM_JOB_ID": "36", "SLURM_PROCID": "0"}  # a batch script without --ntasks


@pytest.mark.parametrize(
    ("environment", "shard", "variables"),
    [
        ({"HOME": "/"}, (0, 1), ""),
        ({"RANK": "2", "WORLD_SIZE": "4"}, (2, 4), "RANK, WORLD_SIZE"),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, (2, 4), TASKS),
        (srun(0, 4), (0, 4), TASKS),
        (srun(3, 4), (3, 4), TASKS),
        (srun(0, 1), (0, 1), ""),
        (SCRIPT, (0, 1), ""),
        ({**SCRIPT, "SLURM_NTASKS": "1"}, (0, 1), ""),
        ({"SLURM_JOB_ID": "36", "SLURM_NTASKS": "1"}, (0, 1), ""),  # the shell of salloc
        (array(0, 4), (0, 4), ARRAY),
        ({**SCRIPT, **array(3, 4)}, (3, 4), ARRAY),
        (array(4, 4, 1, STEP=1, MAX=4), (3, 4), STEPS),  # --array=1-4
        (array(7, 4, 1, STEP=2, MAX=7), (3, 4), STEPS),  # --array=1-7:2
        (array(9, 4, 0, STEP=3, MAX=10), (3, 4), STEPS),  # --array=0-10:3
        (array(7, 1, 7, STEP=1, MAX=7), (0, 1), STEPS),  # one job of an array, submitted again
        ({**srun(1, 2), **array(2, 3, 1)}, (3, 6), f"{ARRAY}, {TASKS}"),
        ({**srun(0, 1), **array(2, 3, 1)}, (1, 3), ARRAY),
        ({**srun(1, 2), **array(2, 3, 1), "RANK": "0", "WORLD_SIZE": "1"}, (0, 1), "RANK, WORLD_SIZE"),
    ],
)
def test_ranks_come_from_torchrun_then_from_slurm(environment, shard, variables):
    assert from_environment(environment) == shard
    assert shard_variables(environment) == variables


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"SLURM_PROCID": "1"}, "SLURM_PROCID and SLURM_NTASKS go together, got only SLURM_PROCID='1': .*srun"),
        ({"SLURM_NTASKS": "4"}, "SLURM_PROCID and SLURM_NTASKS go together, got only SLURM_NTASKS='4': .*srun"),
        ({"SLURM_PROCID": "4", "SLURM_NTASKS": "4"}, "got SLURM_PROCID 4 of SLURM_NTASKS 4"),
        ({"SLURM_PROCID": "-1", "SLURM_NTASKS": "4"}, "SLURM_PROCID must be 0 to"),
        ({"SLURM_PROCID": "one", "SLURM_NTASKS": "4"}, "SLURM_PROCID and SLURM_NTASKS must be whole numbers"),
        ({**SCRIPT, "SLURM_NTASKS": "4"}, "SLURM_NTASKS is 4, but this is the batch script.*srun"),
        ({"SLURM_ARRAY_TASK_ID": "1"}, "got only SLURM_ARRAY_TASK_ID='1'"),
        ({"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "0"}, "got only .*SLURM_ARRAY_TASK_MIN='0'"),
        (array("two", 4), "SLURM_ARRAY_TASK_ID, SLURM_ARRAY_TASK_COUNT and SLURM_ARRAY_TASK_MIN must be whole"),
        (array(2, 4, STEP="x"), "SLURM_ARRAY_TASK_STEP must be a whole number, got SLURM_ARRAY_TASK_STEP='x'"),
        (array(2, 4, STEP=0), "must be at least 1, got 4 and 0"),
        (array(0, 0), "must be at least 1, got 0 and 1"),
        (array(7, 3, 1), "SLURM_ARRAY_TASK_ID 7 has no rank.*--array=0-2"),  # --array=1,3,7
        (array(1, 3, 1, STEP=1, MAX=7), "without holes"),  # the first job; Slurm's last index shows holes
        (array(2, 4, 1, STEP=2, MAX=7), "without holes"),
        (array(0, 3, 1), "without holes"),
        ({**srun(2, 2), **array(0, 3)}, "got SLURM_PROCID 2 of SLURM_NTASKS 2"),
    ],
)
def test_what_slurm_cannot_have_meant_is_refused_in_one_line(environment, words):
    for read in (from_environment, shard_variables):
        with pytest.raises(ValueError, match=words) as refusal:
            read(environment)
        assert "\n" not in str(refusal.value)


@given(
    items=st.lists(st.integers()),
    count=st.integers(1, 5),
    tasks=st.integers(1, 4),
    first=st.integers(0, 3),
    step=st.integers(1, 3),
)
def test_the_jobs_and_tasks_of_an_array_draw_every_item_once(items, count, tasks, first, step):
    last = first + step * (count - 1)
    shards = [
        from_environment({**srun(task, tasks), **array(job, count, first, STEP=step, MAX=last)})
        for job in range(first, last + 1, step)
        for task in range(tasks)
    ]
    assert sorted(shards) == [(rank, count * tasks) for rank in range(count * tasks)]
    places = [place for rank, number in shards for place in range(len(items))[rank::number]]
    assert sorted(places) == list(range(len(items)))
