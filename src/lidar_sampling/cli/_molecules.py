"""``lidar molecules``: draw molecules that a reward likes, with the embedded model."""

from __future__ import annotations

from dataclasses import asdict
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import _options as o
from ._progress import progress_bar
from ._screen import after_drawing, attempt, echo, guard_printing, print_json

if TYPE_CHECKING:
    from .._bank import LookaheadBank
    from ..discrete import TokenLiDAR, TokenResult

RewardName = Annotated[
    str,
    typer.Option(
        "--reward",
        help="ring-count, qed, a SMARTS pattern whose matches count, or module:function of an RDKit molecule.",
    ),
]
BankFile = Annotated[
    Path | None,
    typer.Option(
        "--bank",
        help="The bank.safetensors of an earlier run with the same --reward and --invalid. It guides as it is, "
        "and no bank is drawn. Leave out --n and --lookahead-steps, or give those of the bank.",
    ),
]
Form = Annotated[str, typer.Option(help="Form of guidance: single-site, token-independent or joint.")]


def molecules(
    reward: RewardName = "ring-count",
    samples: Annotated[int, typer.Option(min=1, help="Molecules to draw.")] = 64,
    bank: BankFile = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Lookahead samples. [default: 1024]")] = None,
    lookahead_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps per lookahead sample. [default: 8]")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps per sample.")] = 32,
    reward_scale: Annotated[float, typer.Option(help="Lambda, in 1 / reward, at least 0.")] = 1.5,
    scale: Annotated[float, typer.Option(help="Strength of guidance, s, at least 0.")] = 1.0,
    floor: Annotated[float, typer.Option(help="Least share of noise at which the bank guides, in [0, 1).")] = 0.02,
    form: Form = "single-site",
    candidates: Annotated[int, typer.Option(min=1, help="Candidates per sequence and step, for --form joint.")] = 8,
    invalid: Annotated[float, typer.Option(help="Reward of a string that is not a molecule.")] = -1.0,
    out: Annotated[Path, typer.Option(help="Folder to write; it must be empty or absent.")] = Path("out"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run that is in --out first.")] = False,
    seed: o.Seed = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 256,
    device: Annotated[
        str | None, typer.Option(help="Device to compute on. [default: cuda if there, else cpu]", show_default=False)
    ] = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Draw molecules guided by any function of them.

    In --out it writes samples.smi, grid.svg, grid.png, the bank and result.json.

    Guidance costs n few-step samples and n rewards, unless --bank has them, plus plain sampling. Plain samples are
    drawn too, for comparison.
    """
    arguments: dict[str, Any] = {
        "reward": reward,
        "samples": samples,
        "bank": None if bank is None else str(bank),
        "n": n,
        "lookahead_steps": lookahead_steps,
        "steps": steps,
        "reward_scale": reward_scale,
        "scale": scale,
        "floor": floor,
        "form": form,
        "candidates": candidates,
        "invalid": invalid,
        "out": str(out),
        "seed": seed,
        "batch_size": batch_size,
        "device": device,
    }
    try:
        import torch

        from ..discrete import TokenLiDAR
        from ..discrete import molecules as m
        from ._drawing import draw_molecules
    except ImportError as error:
        raise RuntimeError(f"molecules need RDKit: pip install 'lidar-sampling[molecules]' ({error})") from None
    from .._files import write_atomically, write_json
    from .._quiet import quieten
    from ..runs._folder import Folder

    quieten()
    value = m.reward(reward, invalid=invalid)
    model: Any = m.load_model()
    lidar = TokenLiDAR(
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")),  # sums over banks are float64
        reward=value,
        about=f"molecules for {reward}",
        n=n or 1024,
        lookahead_steps=lookahead_steps or 8,
        steps=steps,
        reward_scale=reward_scale,
        scale=scale,
        floor=floor,
        form=form,
        candidates=candidates,
        batch_size=batch_size,
    )
    members = None if bank is None else _read_bank(bank, lidar, n, lookahead_steps)
    if members is None:
        arguments |= {"n": lidar.settings.n, "lookahead_steps": lidar.settings.lookahead_steps}
    else:
        arguments |= {"n": len(members), "lookahead_steps": members.provenance.get("steps")}
    Folder(out, arguments, resume=None, overwrite=overwrite)
    with progress_bar(quiet=quiet) as update:
        vanilla = lidar.vanilla(samples, seed=seed, progress=update)
        guided = lidar(samples, seed=seed, bank=members, progress=update)

    def summarize(result: TokenResult) -> dict[str, Any]:
        strings = m.decode(value.tokenizer, result.tokens)
        rewards = result.rewards.tolist()
        summary = asdict(m.summarize(strings, rewards, m.load_known()))
        return {
            "summary": {name: None if v != v else v for name, v in summary.items()},
            "cost": {phase: vars(cost) for phase, cost in result.cost.items()},
            "samples": [
                {"smiles": text, "reward": r, "valid": m.parse(text) is not None}
                for text, r in zip(strings, rewards, strict=True)
            ],
        }

    with after_drawing(out):
        whole: dict[str, Any] = {"arguments": arguments, "vanilla": summarize(vanilla), "lidar": summarize(guided)}
        best = {s["smiles"]: s["reward"] for s in whole["lidar"]["samples"] if s["valid"]}
        ranked = sorted(best.items(), key=lambda item: -item[1])
        write_atomically(out / "samples.smi", "".join(f"{text}\t{r:g}\n" for text, r in ranked).encode())
        assert guided.bank is not None
        guided.bank.save(out / "bank.safetensors")
        write_json(out / "result.json", whole)
    written = ["samples.smi", "bank.safetensors", "result.json"]
    if ranked:
        with attempt("the grid of molecules"):
            svg, png = draw_molecules(ranked[:48], reward)
            write_atomically(out / "grid.svg", svg.encode())
            write_atomically(out / "grid.png", png)
            written[1:1] = ["grid.svg", "grid.png"]
    with guard_printing():
        if json:
            print_json(whole)
            return
        echo(f"{'':8s} {'valid':>6s} {'unique':>6s} {'novel':>6s} {reward + ', valid':>18s} {'novel':>8s}")
        for phase in ("vanilla", "lidar"):
            s = whole[phase]["summary"]
            means = ["-" if s[key] is None else f"{s[key]:.3f}" for key in ("reward", "reward_novel")]
            counts = f"{s['valid']:6d} {s['unique_molecules']:6d} {s['novel']:6d}"
            echo(f"{phase:8s} {counts} {means[0]:>18s} {means[1]:>8s}")
        echo(f"{', '.join(written[:-1])} and {written[-1]} are in {out}")


def _read_bank(path: Path, lidar: TokenLiDAR, n: int | None, lookahead_steps: int | None) -> LookaheadBank:
    """Return the bank in ``path``, if it fits ``lidar``, ``n`` and ``lookahead_steps``; None fits any value.

    Raises:
        ValueError: it holds other sequences or another reward, or was drawn with other settings.
        OSError: it cannot be read.
    """
    from .._bank import BankError, LookaheadBank
    from ..discrete import molecules as m

    reward: Any = lidar.reward
    bank = LookaheadBank.load(path)
    lidar.members(bank)  # refuses other sequences
    if reward.name not in bank.rewards:
        raise BankError(f"{path} was scored by {', '.join(bank.rewards)}, not by {reward.name}: give that --reward")
    has = {"--n": len(bank), "--lookahead-steps": bank.provenance.get("steps")}
    for option, asked in (("--n", n), ("--lookahead-steps", lookahead_steps)):
        if asked is not None and asked != has[option]:
            raise BankError(f"{path} was drawn with {option} {has[option]}, not {asked}: leave {option} out")
    scored = zip(m.decode(reward.tokenizer, bank.samples), bank.reward().tolist(), strict=True)
    none = next((value for text, value in scored if m.parse(text) is None), reward.invalid)
    if not isclose(none, reward.invalid, rel_tol=1e-6):
        raise BankError(f"{path} was scored with --invalid {none:g}, not {reward.invalid:g}: give that one")
    return bank
