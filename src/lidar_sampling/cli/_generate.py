"""``lidar generate`` and ``lidar guide``: guided images of prompts, in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import _options as o
from ._screen import after_drawing, attempt, echo, print_json, shown, warn

if TYPE_CHECKING:
    from .._bank import LookaheadBank
    from .._result import Result
    from .._sampler import LiDAR, Progress
    from ..rewards import RewardError

Out = Annotated[Path, typer.Option(help="Folder to write; it must be empty or absent.")]
BesideVanilla = Annotated[
    bool, typer.Option("--beside-vanilla", help="Also draw what the model gives without guidance.")
]
MethodName = Annotated[
    str,
    typer.Option(
        "--method", help="How to draw, of 'lidar methods': lidar, best-of-12@10, steered-12@10, lidar:scale=3, ..."
    ),
]
Profile = Annotated[
    bool, typer.Option("--profile", help="Also say where the time went, and what the same work takes at its best.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Finish the run that is in --out.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete the run that is in --out first.")]
Store = Annotated[Path | None, typer.Option("--banks", help="Folder where banks are found and kept for other runs.")]
Banks = Annotated[list[Path], typer.Option("--banks", help="Folder of banks from 'lidar look', or bank files.")]

# Options that change what is shown or started from, not what is drawn.
_NOT_OF_THE_RUN = ("resume", "overwrite", "json", "quiet", "profile")
_MODEL = ("model", "variant", "preset", "reward", "device", "dtype", "batch_size", "call", "fast", "scheduler")
_SETTINGS = ("n", "lookahead", "steps", "guidance_scale", "scale", "reward_scale", "window")


def generate(
    prompts: o.Prompts = None,
    out: Out = Path("out"),
    prompts_file: o.PromptsFile = None,
    model: o.Model = "glyph",
    variant: o.Variant = None,
    preset: o.Preset = None,
    reward: o.RewardName = None,
    images: o.Images = 4,
    seed: o.Seed = 0,
    n: o.N = None,
    lookahead: o.Lookahead = None,
    steps: o.Steps = None,
    guidance_scale: o.GuidanceScale = None,
    scale: o.Scale = None,
    reward_scale: o.RewardScale = None,
    window: o.Window = None,
    method: MethodName = "lidar",
    beside_vanilla: BesideVanilla = False,
    banks: Store = None,
    call: o.Call = None,
    batch_size: o.BatchSize = 16,
    device: o.Device = None,
    dtype: o.Dtype = "float32",
    fast: o.Fast = None,
    scheduler: o.Scheduler = None,
    profile: Profile = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Draw guided images: look ahead, score, guide; or draw by another method.

    Guidance costs n few-step samples and n reward calls a prompt, then what plain sampling costs. What the others
    cost stands in docs/methods.md, and which to pick in docs/choosing.md.
    """
    options = dict(locals())
    from ..methods import load

    other = None if method == "lidar" else load(method)

    def draw(lidar: LiDAR, texts: list[str], progress: Progress | None) -> Result:
        if other is None:
            return lidar.guided(texts, images, seed, None, progress)
        return other.draw(lidar, texts, images=images, seed=seed)

    _run(options, o.read_metadata(prompts, prompts_file), store=banks, method=method, draw=draw, drawn_by=other)


def guide(
    banks: Banks,
    prompts: o.Prompts = None,
    out: Out = Path("out"),
    prompts_file: o.PromptsFile = None,
    model: o.Model = "glyph",
    variant: o.Variant = None,
    preset: o.Preset = None,
    reward: o.RewardName = None,
    images: o.Images = 4,
    seed: o.Seed = 0,
    steps: o.Steps = None,
    guidance_scale: o.GuidanceScale = None,
    scale: o.Scale = None,
    reward_scale: o.RewardScale = None,
    window: o.Window = None,
    beside_vanilla: BesideVanilla = False,
    call: o.Call = None,
    batch_size: o.BatchSize = 16,
    device: o.Device = None,
    dtype: o.Dtype = "float32",
    fast: o.Fast = None,
    scheduler: o.Scheduler = None,
    profile: Profile = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Draw guided images from banks that 'lidar look' made: phase 2 alone."""
    options = dict(locals())
    from .._contents import contents, digest

    lines = o.read_metadata(prompts, prompts_file)
    found = _find_banks(banks, [line["prompt"] for line in lines])

    def draw(lidar: LiDAR, some: list[str], progress: Progress | None) -> Result:
        return lidar.guided(some, images, seed, [found[prompt] for prompt in some], progress)

    guided_by = {prompt: [digest(bank.samples), contents(dict(bank.rewards))] for prompt, bank in found.items()}
    _run(options, lines, store=None, method="lidar", draw=draw, drawn_by=guided_by)


def _find_banks(places: list[Path], prompts: list[str]) -> dict[str, LookaheadBank]:
    """The one bank of each prompt, among bank files and folders of them."""
    from .._bank import BankError, BankStore, LookaheadBank

    named = [(place, LookaheadBank.load(place)) for place in places if not place.is_dir()]
    stores = [BankStore(place) for place in places if place.is_dir()]
    banks = {}
    for prompt in prompts:
        stored = [(file, LookaheadBank.load(file)) for store in stores for file in store.find(prompt)]
        matching = [(file, bank) for file, bank in (*named, *stored) if bank.prompt == prompt]
        if not matching:
            raise BankError(f"no bank of {prompt!r} in {', '.join(map(str, places))}: draw one with 'lidar look'")
        if len(matching) > 1:
            files = ", ".join(str(file) for file, _ in matching)
            raise BankError(f"{len(matching)} banks of {prompt!r}: name one file with --banks, of {files}")
        banks[prompt] = matching[0][1]
    return banks


def _run(
    options: dict[str, Any],
    lines: list[dict[str, Any]],
    *,
    store: Path | None,
    method: str,
    draw: Callable[[LiDAR, list[str], Progress | None], Result],
    drawn_by: Any = None,
) -> None:
    """Draw the prompts into the folder as the options of the command line say, and report."""
    from .._contents import contents
    from .._profile import profiled
    from ..rewards import RewardError
    from ..runs import identity
    from ._folder import Folder, write_json
    from ._grid import draw_grid
    from ._report import print_profile, print_table, report

    dtype = o.dtype_of(options["dtype"], o.device_of(options["device"]))
    options["dtype"] = str(dtype).removeprefix("torch.")  # what auto means is of this machine
    prompts = [line["prompt"] for line in lines]
    arguments = {name: _json_value(value) for name, value in options.items() if name not in _NOT_OF_THE_RUN}
    arguments["prompts"] = prompts
    out, images, seed = options["out"], options["images"], options["seed"]
    unreadable: dict[str, RewardError] = {}
    with o.progress_bar(quiet=options["quiet"]) as (label, progress):
        settings: dict[str, Any] = {name: options.get(name) for name in (*_MODEL, *_SETTINGS)}
        lidar = o.load_sampler(**settings, store=store)
        lidar.check_prompts(lines)
        lidar = lidar.with_prompts(prompts)
        beside = options["beside_vanilla"]
        how = {"method": method, "drawn_by": contents(drawn_by, "method")}
        same = identity(lidar, prompts=lines, **how, images=images, seed=seed, vanilla=beside)
        folder = Folder(out, arguments, identity=same, resume=options["resume"], overwrite=options["overwrite"])
        names = list(dict.fromkeys([*(["vanilla"] if beside else []), method]))
        finished = {index: folder.finished(index, prompt, names) for index, prompt in enumerate(prompts)}
        entries = {index: entry for index, entry in finished.items() if entry is not None}
        missing, before = [index for index in range(len(prompts)) if index not in entries], len(entries)

        def put(group: list[int]) -> None:
            texts, metadata = [prompts[index] for index in group], [lines[index] for index in group]
            results = lidar.judge(draw(lidar, texts, progress), metadata).split()
            plain: list[Any] = [None] * len(group)
            if beside:
                plain = lidar.judge(lidar.sample(texts, images, seed, progress), metadata).split()
            for index, result, vanilla in zip(group, results, plain, strict=True):
                entries[index] = folder.put(index, method, result, vanilla, lines[index])

        with profiled() if options["profile"] else nullcontext() as profile:
            for group in _groups(missing, prompts, lidar.batch_size // images):
                label(f"{len(entries) + 1}/{len(prompts)}")
                for index, error in _each(put, group):
                    unreadable[prompts[index]] = error
                    warn(f"{prompts[index]!r} is left out: {error}")
                if len(entries) == before:  # not one came through: the fault is not in the prompts
                    break
    if unreadable:  # the others are there, and the run can be resumed
        (prompt, error), left = next(iter(unreadable.items())), len(prompts) - len(entries)
        raise RewardError(f"{left} of {len(prompts)} prompts are not in {out}, first {prompt!r}: {error}")
    with after_drawing(out):
        whole = report(lidar, arguments, [entries[index] for index in range(len(prompts))])
        if profile is not None and profile.seconds:  # of a run that was finished already there is none
            whole["profile"] = profile.report()
        write_json(out / "result.json", whole)
    written = ["images", "result.json"]
    with attempt("grid.png"):
        if not entries[0][method]["images"][0].endswith(".wav"):  # there is no picture of a sound
            draw_grid(out, whole["prompts"]).save(out / "grid.png")
            written.insert(1, "grid.png")
    with shown():
        if options["json"]:
            print_json(whole)
        else:
            print_table(whole)
            if "profile" in whole:
                print_profile(whole["profile"])
            echo(f"{', '.join(written[:-1])} and {written[-1]} are in {out}")


def _each(put: Callable[[list[int]], None], group: list[int]) -> Iterator[tuple[int, RewardError]]:
    """Draw a group; where a reward fails on one of its prompts, draw the others alone and yield those that fail."""
    from ..rewards import RewardError

    try:
        put(group)
    except RewardError as error:
        if len(group) == 1:
            yield group[0], error
            return
        for index in group:
            yield from _each(put, [index])


def _groups(indices: list[int], prompts: list[str], size: int) -> Iterator[list[int]]:
    """Prompts that are drawn together, so that batches are full: at most ``size``, and never one twice.

    >>> list(_groups([0, 1, 2, 3], ["a cat", "a dog", "a dog", "a cup"], 2))
    [[0, 1], [2, 3]]
    """
    group: list[int] = []
    for index in indices:
        if group and (len(group) >= size or prompts[index] in [prompts[other] for other in group]):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _json_value(value: Any) -> Any:
    """Paths become strings and tuples lists, so that what is read back from a run compares equal."""
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value
