"""``lidar molecules``: molecules that a reward likes, from the embedded model."""

from __future__ import annotations

import json as _json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import _options as o

if TYPE_CHECKING:
    from ..discrete import TokenResult

RewardName = Annotated[
    str,
    typer.Option(
        "--reward",
        help="ring-count, qed, a SMARTS pattern whose matches count, or module:function of an RDKit molecule.",
    ),
]
Form = Annotated[str, typer.Option(help="Form of guidance: single-site, token-independent or joint.")]


def molecules(
    reward: RewardName = "ring-count",
    samples: Annotated[int, typer.Option(min=1, help="Molecules to draw.")] = 64,
    n: Annotated[int, typer.Option("--n", min=1, help="Lookahead samples.")] = 1024,
    lookahead_steps: Annotated[int, typer.Option(min=1, help="Steps of a lookahead sample.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a sample.")] = 32,
    reward_scale: Annotated[float, typer.Option(help="Lambda, in 1 / reward.")] = 1.5,
    scale: Annotated[float, typer.Option(help="Strength of guidance, s.")] = 1.0,
    form: Form = "single-site",
    invalid: Annotated[float, typer.Option(help="Reward of a string that is no molecule.")] = -1.0,
    out: Annotated[Path, typer.Option(help="Folder to write; it must be empty or absent.")] = Path("out"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the molecules that are in --out.")] = False,
    seed: o.Seed = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 256,
    device: o.Device = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Draw molecules, guided by any function of them: samples.smi, grid.svg, grid.png, bank, result.json.

    Costs n few-step samples and n rewards, then what plain sampling costs, which is drawn beside it to compare.
    """
    arguments = {name: str(v) if isinstance(v, Path) else v for name, v in locals().items()}
    try:
        from ..discrete import TokenLiDAR
        from ..discrete import molecules as m
        from ._drawing import grid
    except ImportError as error:
        raise RuntimeError(f"molecules need RDKit: pip install 'lidar-sampling[molecules]' ({error})") from None
    from .._bank import write_atomically
    from ._folder import write_json

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not overwrite:
            raise FileExistsError(
                f"{out} is not empty: choose another --out, or --overwrite to replace its molecules"
            )
        if not (out / "samples.smi").is_file():
            raise ValueError(f"{out} holds no molecules of lidar, so it is left alone: choose another --out")
    o.quieten()
    value = m.reward(reward, invalid=invalid)
    model: Any = m.load_model()
    lidar = TokenLiDAR(
        model.to(o.device_of(device)),
        reward=value,
        about=f"molecules for {reward}",
        n=n,
        lookahead_steps=lookahead_steps,
        steps=steps,
        reward_scale=reward_scale,
        scale=scale,
        form=form,
        batch_size=batch_size,
    )
    with o.progress_bar(quiet=quiet) as (_, update):

        def progress(phase: str) -> Any:
            return None if update is None else lambda done, total: update(phase, done, total)

        vanilla = lidar.vanilla(samples, seed=seed, progress=progress("vanilla"))
        guided = lidar(samples, seed=seed, progress=progress("lidar"))

    def told(result: TokenResult) -> dict[str, Any]:
        strings = m.decode(m.smiles_tokenizer(), result.tokens)
        summary = asdict(m.summarize(strings, value.value, m.known()))
        return {
            "summary": {name: None if v != v else v for name, v in summary.items()},
            "cost": {phase: vars(cost) for phase, cost in result.cost.items()},
            "samples": [
                {"smiles": text, "reward": r, "valid": m.parse(text) is not None}
                for text, r in zip(strings, result.rewards.tolist(), strict=True)
            ],
        }

    whole: dict[str, Any] = {"arguments": arguments, "vanilla": told(vanilla), "lidar": told(guided)}
    best = {s["smiles"]: s["reward"] for s in whole["lidar"]["samples"] if s["valid"]}
    ranked = sorted(best.items(), key=lambda item: -item[1])
    out.mkdir(parents=True, exist_ok=True)
    if ranked:
        svg, png = grid(ranked[:48], reward)
        write_atomically(out / "grid.svg", svg.encode())
        write_atomically(out / "grid.png", png)
    if guided.bank is not None:
        guided.bank.save(out / "bank.safetensors")
    write_json(out / "result.json", whole)
    write_atomically(out / "samples.smi", "".join(f"{text}\t{r:g}\n" for text, r in ranked).encode())
    if json:
        typer.echo(_json.dumps(whole))
        return
    typer.echo(f"{'':8s} {'valid':>6s} {'unique':>6s} {'novel':>6s} {reward + ', valid':>18s} {'novel':>8s}")
    for phase in ("vanilla", "lidar"):
        s = whole[phase]["summary"]
        means = ["-" if s[key] is None else f"{s[key]:.3f}" for key in ("reward", "reward_novel")]
        counts = f"{s['valid']:6d} {s['unique_molecules']:6d} {s['novel']:6d}"
        typer.echo(f"{phase:8s} {counts} {means[0]:>18s} {means[1]:>8s}")
    typer.echo(f"samples.smi, grid.svg, grid.png, bank.safetensors and result.json are in {out}")
