"""Shares of prompts for several processes, by the environment variables of torchrun or Slurm.

    torchrun          RANK, WORLD_SIZE, which override all others; you can set them yourself
    tasks of srun     SLURM_PROCID of SLURM_NTASKS
    a job array       (SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN) / SLURM_ARRAY_TASK_STEP of SLURM_ARRAY_TASK_COUNT
    srun in an array  rank of the array * SLURM_NTASKS + SLURM_PROCID: every job of an array has the same options

Slurm's names: https://slurm.schedmd.com/sbatch.html, srun.html, job_array.html. Its batch script is not a task,
although it has SLURM_PROCID=0, and SLURM_NTASKS if ``--ntasks`` was given; only ``srun`` adds SLURM_STEP_NUM_TASKS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from .._values import accepts

_T = TypeVar("_T")
_TORCHRUN = ("RANK", "WORLD_SIZE")
_TASKS = ("SLURM_PROCID", "SLURM_NTASKS")
_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN")
_STEP, _LAST = "SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_MAX"
_ONE = "set RANK=0 and WORLD_SIZE=1 for one process"


def from_environment(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return (rank, number of processes) from torchrun's or Slurm's variables; (0, 1) if none of them is set.

    Raises:
        ValueError: one of a pair is missing, a value is not a whole number, a rank is not within 0 to the number - 1,
            a job array has holes, or a batch script asked for several tasks and runs outside ``srun``.

    >>> from_environment({"RANK": "2", "WORLD_SIZE": "4"})
    (2, 4)
    >>> from_environment({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"})
    (2, 4)
    >>> array = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}
    >>> from_environment({**array, "SLURM_ARRAY_TASK_STEP": "2"})
    (2, 4)
    """
    if any(name in environment for name in _TORCHRUN):
        rank, number = _numbers(environment, _TORCHRUN, "set both or neither")
        check_shard(rank, number)
        return rank, number
    (rank, number), (task, tasks) = _of_array(environment), _of_tasks(environment)
    return rank * tasks + task, number * tasks


def shard_variables(environment: Mapping[str, str]) -> str:
    """Return the names of the variables that :func:`from_environment` reads, for a message; "" if none is set.

    Raises:
        ValueError: as :func:`from_environment`.

    >>> shard_variables({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"})
    'SLURM_PROCID, SLURM_NTASKS'
    >>> shard_variables({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"})
    ''
    """
    from_environment(environment)
    if "RANK" in environment:
        return ", ".join(_TORCHRUN)
    names = [name for name in (*_ARRAY, _STEP) if name in environment] if _ARRAY[0] in environment else []
    return ", ".join([*names, *(_TASKS if _of_tasks(environment)[1] > 1 else ())])


def _of_tasks(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return (rank, number) among the tasks of ``srun``; (0, 1) for a single task and outside Slurm."""
    mend = f"begin the command with srun, or {_ONE}"
    found = {name: environment[name] for name in _TASKS if name in environment}
    if not found or found in ({"SLURM_PROCID": "0"}, {"SLURM_NTASKS": "1"}):  # sbatch, salloc without --ntasks
        return 0, 1
    task, tasks = _numbers(environment, _TASKS, mend)
    if tasks < 1 or not 0 <= task < tasks:
        raise ValueError(
            f"SLURM_PROCID must be 0 to SLURM_NTASKS - 1, got SLURM_PROCID {task} of SLURM_NTASKS {tasks}: {mend}"
        )
    # Every copy of the batch script's command would take share 0, and none the others.
    if tasks > 1 and task == 0 and "SLURM_JOB_ID" in environment and "SLURM_STEP_NUM_TASKS" not in environment:
        raise ValueError(
            f"SLURM_NTASKS is {tasks}, but this is the batch script, not one of its tasks "
            f"(SLURM_STEP_NUM_TASKS is not set): {mend}"
        )
    return task, tasks


def _of_array(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return (rank, number) among the jobs of a job array; (0, 1) outside one."""
    if not any(name in environment for name in _ARRAY):
        return 0, 1
    task, number, first = _numbers(environment, _ARRAY, f"run in a job array, or {_ONE}")
    step = _numbers(environment, (_STEP,))[0] if _STEP in environment else 1
    if number < 1 or step < 1:
        raise ValueError(
            f"SLURM_ARRAY_TASK_COUNT and SLURM_ARRAY_TASK_STEP must be at least 1, got {number} and {step}: {_ONE}"
        )
    rank, between = divmod(task - first, step)
    last = _numbers(environment, (_LAST,))[0] if _LAST in environment else first + step * (number - 1)
    if between or not 0 <= rank < number or (last - first) // step + 1 != number:
        raise ValueError(
            f"SLURM_ARRAY_TASK_ID {task} has no rank among SLURM_ARRAY_TASK_COUNT {number} from {first} to {last} in "
            f"steps of {step}: submit an array without holes, as --array=0-{number - 1}, or set RANK and WORLD_SIZE"
        )
    return rank, number


def _numbers(environment: Mapping[str, str], names: Sequence[str], mend: str = "") -> list[int]:
    """Return the whole numbers in these variables; either all are set or none is."""
    found = {name: environment[name] for name in names if name in environment}
    several = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    shown = ", ".join(f"{name}={value!r}" for name, value in found.items())
    if len(found) < len(names):
        raise ValueError(f"{several} go together, got only {shown}: {mend}")
    try:
        return [int(value) for value in found.values()]
    except ValueError:
        kind = "whole numbers" if len(names) > 1 else "a whole number"
        raise ValueError(f"{several} must be {kind}, got {shown}") from None


def check_shard(rank: int, number: int) -> None:
    """Refuse a rank outside 0 to ``number`` - 1.

    Raises:
        ValueError: the rank is outside.
    """
    if not (accepts(int, rank) and accepts(int, number)) or number < 1 or not 0 <= rank < number:
        raise ValueError(
            f"RANK must be 0 to WORLD_SIZE - 1, got RANK {rank} of WORLD_SIZE {number}: "
            f"a job array that counts from 1 needs RANK one less"
        )


def order(items: Sequence[_T], rank: int, number: int) -> list[_T]:
    """Return all items in the order of process ``rank`` of ``number``.

    Its own share comes first: items ``rank``, ``rank + number``, ... The shares of the others follow, each from its
    end. A free process thus does what others leave undone, and two processes rarely meet.

    >>> order("abcdef", 1, 3)
    ['b', 'e', 'f', 'd', 'c', 'a']
    """
    own = list(items[rank::number])
    rest = [item for k, item in enumerate(items) if k % number != rank]
    return [*own, *reversed(rest)]
