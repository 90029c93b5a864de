"""The tables of the LiDAR paper as data: what was drawn, with which settings, and the figures.

Kim et al. 2026 (https://arxiv.org/abs/2602.03211v2): tables 2, 3, 5, 6, 7, 8 and 10; settings from its appendix B.
The figures were read in a text extraction of its PDF, which loses curves, so figures of curves are missing. A study
is the part of a table on one model. Its runs differ in settings; each run is one Job. Judges go by the names of
:mod:`lidar_sampling.rewards`, and figures are in the paper's units: :data:`UNITS`.

Where a paper (this one or a rival's) and its released code differ, a method holds a word in braces: :data:`SWITCHES`
says what it becomes in either manner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

IR, CLIP, HPS, GENEVAL, SECONDS = "image-reward", "clip", "hpsv2.1", "geneval", "seconds"
JUDGES = (IR, CLIP, HPS, GENEVAL)


class Unit(NamedTuple):
    """The title of a judge in a table, and the factor that brings its values to the paper's unit."""

    title: str
    scale: float


UNITS = {
    IR: Unit("ImageReward", 1.0),
    CLIP: Unit("CLIP", 0.01),  # the paper's is the cosine; ours is the logit, 100 times as large
    HPS: Unit("HPS v2.1", 1.0),
    GENEVAL: Unit("GenEval", 1.0),
    SECONDS: Unit("s", 1.0),
}

Manner = Literal["paper", "official"]


class Switch(NamedTuple):
    """A difference between the paper's text and released code, and how to draw each."""

    what: str
    paper: str
    official: str


SWITCHES = {
    "date": Switch(
        "DATE moves the embedding at every other step in the paper, at every step in DATE's code",
        "every=2",
        "every=1",
    ),
    "fk": Switch(
        "FK steering by the maximum, its last step as in FK's paper; the official code weighs by differences, "
        "cuts weights at 1e10, and its last step resamples only where weights are uneven",
        "form=paper,potential=max",
        "form=cut,potential=difference",
    ),
}


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        key: its name in claims and ``--without``, unique within a run.
        label: its name in the table.
        method: a method of :mod:`lidar_sampling.methods`, perhaps with a switch in braces, or with N for the number
            that makes it cost as much as LiDAR.
        figures: judge, or seconds for the images of a prompt -> the paper's figure. Empty for a row that we added.
        best: whether the figure is of the best image by the guiding reward instead of the mean over all.
    """

    key: str
    label: str
    method: str
    figures: Mapping[str, float] = field(default_factory=dict)
    best: bool = False

    def drawn_by(self, manner: Manner) -> str:
        """Return the method with its switches set.

        >>> Row("date", "DATE", "date:rho=2,{date}").drawn_by("official")
        'date:rho=2,every=1'
        """
        return self.method.format(**{name: getattr(switch, manner) for name, switch in SWITCHES.items()})


@dataclass(frozen=True)
class Run:
    """The rows that share one set of settings, and so one Job.

    Attributes:
        name: name of its folder.
        settings: settings of the Job on top of the model's preset.
        rows: rows of the paper.
        ours: rows that we added; ``N`` in a name is set so that the row costs as much as the row ``lidar``.
        reward: the guiding reward; names with weights are a mixture.
        images: samples per prompt.
        note: our reading of a setting that the paper leaves open.
    """

    name: str
    settings: Mapping[str, Any]
    rows: tuple[Row, ...]
    ours: tuple[Row, ...] = ()
    reward: str | Mapping[str, float] = IR
    images: int = 4
    note: str = ""


class Claim(NamedTuple):
    """The claim that one row is above another by some judges. By seconds, it is that one row takes longer.

    Attributes:
        text: the claim in words.
        above: key of a row, or ``RUN/KEY`` for one run; without a run, the claim is about every run with both rows.
        below: the same, of the lower row.
        judges: the judges that the claim is about.
    """

    text: str
    above: str
    below: str
    judges: tuple[str, ...] = JUDGES


class Study(NamedTuple):
    """The part of a table on one model."""

    runs: tuple[Run, ...]
    claims: tuple[Claim, ...]


class Table(NamedTuple):
    """A table of the paper: its title, and its studies by the name of the model."""

    title: str
    studies: Mapping[str, Study]


class Model(NamedTuple):
    """A model of the paper.

    Attributes:
        weights: hub id; None if no whole pipeline is known on the hub, so that a path must be given.
        pipeline: pipeline class of diffusers.
        preset: name of a preset; None uses the defaults of the class.
        dtype: precision on an accelerator.
        licence: licence of the weights.
    """

    weights: str | None
    pipeline: str
    preset: str | None
    dtype: str
    licence: str


MODELS = {
    "sd15": Model(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "StableDiffusionPipeline",
        "paper-sd15",
        "float16",
        "CreativeML OpenRAIL-M",
    ),
    "sd15-dpo": Model(
        None, "StableDiffusionPipeline", "paper-sd15", "float16", "that of mhdang/dpo-sd1.5-text2image-v1"
    ),
    "sdxl": Model(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "StableDiffusionXLPipeline",
        "paper-sdxl",
        "float16",
        "CreativeML OpenRAIL++-M",
    ),
    "flux": Model("black-forest-labs/FLUX.1-dev", "FluxPipeline", None, "bfloat16", "FLUX.1 [dev] non-commercial"),
}


def _row(key: str, label: str, method: str, *figures: float | None, seconds: float | None = None) -> Row:
    """Return a row; its figures are ImageReward, CLIP, HPS and GenEval in this order, possibly cut short."""
    found = {judge: value for judge, value in zip(JUDGES, figures, strict=False) if value is not None}
    return Row(key, label, method, {**found, **({} if seconds is None else {SECONDS: seconds})})


_DDPM = {"steps": 100, "eta": 1.0}
_DDIM = {"steps": 50, "eta": 0.0}


def _ours(bank: str, *, noise: bool) -> tuple[Row, ...]:
    """Return the rows that we add to the paper's: the best of the bank, and selection at the cost of LiDAR."""
    steered = Row("steered", "steered best-of-N, 25 steps", "steered-N@25")
    return (
        Row("best-of-bank", "best 4 of LiDAR's own bank", f"best-of-50@{bank}"),
        Row("best-of-n", "best 4 of N", "best-of-N"),
        Row("best-of-n-25", "best 4 of N, 25 steps", "best-of-N@25"),
        *([steered] if noise else []),  # resampling makes copies, which need noise to become different
        Row("refine", "refinement of the best 4 of N", "refine-N"),
    )


def _against_all(*, grads_lower: tuple[str, ...] = (CLIP, HPS, GENEVAL)) -> tuple[Claim, ...]:
    """Return the claims of tables 2 and 10 about LiDAR and its rivals."""
    return (
        Claim("LiDAR is above plain sampling", "lidar", "vanilla"),
        Claim("LiDAR is above plain sampling in more steps", "lidar", "vanilla-more"),
        Claim("LiDAR is above universal guidance", "lidar", "ug"),
        Claim("LiDAR is above DATE", "lidar", "date"),
        Claim("universal guidance takes longer than LiDAR", "ug", "lidar", (SECONDS,)),
        Claim("DATE takes longer than LiDAR", "date", "lidar", (SECONDS,)),
        Claim("universal guidance is above plain sampling by what guides it", "ug", "vanilla", (IR,)),
        Claim("plain sampling is above universal guidance by what does not guide it", "vanilla", "ug", grads_lower),
    )


_SD15 = "dpm:5"
_TABLE_2_SD15 = Study(
    (
        Run(
            "ddpm-100",
            _DDPM,
            (
                _row("vanilla", "vanilla", "vanilla", -0.001, 0.271, 0.263, 0.426, seconds=7.07),
                _row("vanilla-more", "vanilla, 250 steps", "vanilla@250", 0.003, 0.272, 0.264, 0.430, seconds=17.42),
                _row("ug", "UG", "ug:reward_scale=15", 0.326, 0.262, 0.236, 0.355, seconds=58.36),
                _row("date", "DATE", "date:rho=0.1,{date}", 0.364, 0.274, 0.267, 0.438, seconds=32.89),
                _row(
                    "lidar",
                    "LiDAR, DPM-5, n = 50",
                    "lidar:n=50,lookahead=dpm:5",
                    0.384,
                    0.278,
                    0.276,
                    0.478,
                    seconds=13.41,
                ),
            ),
            _ours(_SD15, noise=True),
        ),
        Run(
            "ddim-50",
            _DDIM,
            (
                _row("vanilla", "vanilla", "vanilla", -0.125, 0.269, 0.270, 0.423, seconds=3.58),
                _row("vanilla-more", "vanilla, 200 steps", "vanilla@200", -0.112, 0.269, 0.270, 0.415, seconds=14.09),
                _row("ug", "UG", "ug:reward_scale=15", 0.201, 0.259, 0.236, 0.344, seconds=29.59),
                _row("date", "DATE", "date:rho=0.1,{date}", 0.097, 0.271, 0.261, 0.419, seconds=17.12),
                _row(
                    "lidar",
                    "LiDAR, DPM-5, n = 50",
                    "lidar:n=50,lookahead=dpm:5",
                    0.378,
                    0.278,
                    0.277,
                    0.475,
                    seconds=9.92,
                ),
            ),
            _ours(_SD15, noise=False),
        ),
    ),
    _against_all(),
)

_KARRAS = "dpm:8-karras"
_LOOKAHEADS = {"dpm": ("DPM-8", _KARRAS), "lcm": ("LCM-4", "lcm-lora:4"), "dmd": ("DMD-1", "dmd2:1")}


def _sdxl(key: str, kind: str, n: int, *figures: float, seconds: float) -> Row:
    title, solver = _LOOKAHEADS[kind]
    return _row(key, f"LiDAR, {title}, n = {n}", f"lidar:n={n},lookahead={solver}", *figures, seconds=seconds)


_TABLE_2_SDXL = Study(
    (
        Run(
            "ddpm-100",
            _DDPM,
            (
                _row("vanilla", "vanilla", "vanilla", 0.722, 0.282, 0.292, 0.545, seconds=42.00),
                _row("vanilla-more", "vanilla, 250 steps", "vanilla@250", 0.746, 0.283, 0.295, 0.559, seconds=104.10),
                _row("ug", "UG", "ug:reward_scale=3", 0.749, 0.279, 0.287, 0.541, seconds=334.43),
                _row("date", "DATE", "date:rho=2,{date}", 0.960, 0.283, 0.294, 0.570, seconds=272.32),
                _sdxl("lidar", "dpm", 50, 0.994, 0.285, 0.300, 0.585, seconds=97.99),
                _sdxl("lidar-lcm", "lcm", 100, 1.007, 0.286, 0.300, 0.585, seconds=93.18),
                _sdxl("lidar-dmd", "dmd", 100, 1.006, 0.285, 0.302, 0.598, seconds=78.67),
            ),
            _ours(_KARRAS, noise=True),
        ),
    ),
    (
        *_against_all(),
        Claim("LiDAR with LCM-4 is above it with DPM-8 by what guides", "lidar-lcm", "lidar", (IR, CLIP)),
        Claim("LiDAR with DMD-1 is above it with DPM-8 by what does not", "lidar-dmd", "lidar", (HPS, GENEVAL)),
        Claim("LiDAR with DPM-8 takes longer than with DMD-1", "lidar", "lidar-dmd", (SECONDS,)),
    ),
)

_TABLE_10 = Study(
    (
        Run(
            "ddim-50",
            _DDIM,
            (
                _row("vanilla", "vanilla", "vanilla", 0.538, 0.279, 0.278, 0.510, seconds=21.45),
                _row("vanilla-more", "vanilla, 200 steps", "vanilla@200", 0.586, 0.279, 0.283, 0.517, seconds=83.14),
                _row("ug", "UG", "ug:reward_scale=3", 0.643, 0.277, 0.277, 0.512, seconds=169.33),
                _row("date", "DATE", "date:rho=2,{date}", 0.722, 0.280, 0.281, 0.539, seconds=138.47),
                _sdxl("dpm-3", "dpm", 3, 0.749, 0.282, 0.287, 0.530, seconds=24.78),
                _sdxl("dpm-9", "dpm", 9, 0.824, 0.282, 0.291, 0.551, seconds=31.49),
                _sdxl("lidar", "dpm", 50, 0.950, 0.284, 0.293, 0.585, seconds=77.44),
                _sdxl("lcm-3", "lcm", 3, 0.729, 0.281, 0.288, 0.544, seconds=23.03),
                _sdxl("lcm-16", "lcm", 16, 0.820, 0.283, 0.291, 0.574, seconds=29.60),
                _sdxl("lcm-100", "lcm", 100, 0.935, 0.285, 0.294, 0.590, seconds=72.63),
                _sdxl("dmd-3", "dmd", 3, 0.706, 0.281, 0.287, 0.539, seconds=22.57),
                _sdxl("dmd-16", "dmd", 16, 0.850, 0.283, 0.294, 0.576, seconds=27.27),
                _sdxl("dmd-100", "dmd", 100, 0.954, 0.284, 0.297, 0.588, seconds=58.12),
            ),
            _ours(_KARRAS, noise=False),
        ),
    ),
    (
        *_against_all(grads_lower=(CLIP, HPS)),
        Claim("LiDAR gains with n from 3 to 9, by DPM-8", "dpm-9", "dpm-3", (IR, HPS, GENEVAL)),
        Claim("LiDAR gains with n from 9 to 50, by DPM-8", "lidar", "dpm-9"),
        Claim("LiDAR gains with n from 3 to 16, by DMD-1", "dmd-16", "dmd-3"),
        Claim("LiDAR gains with n from 16 to 100, by DMD-1", "dmd-100", "dmd-16"),
        Claim("three lookahead samples by DPM-8 are above DATE by what guides", "dpm-3", "date", (IR, CLIP, HPS)),
    ),
)


def _flux(n: int, ir: float, clip: float, geneval: float) -> Row:
    method = f"lidar:n={n},lookahead=hyper-flux:8"
    return _row(f"lidar-{n}", f"LiDAR, Hyper-FLUX-8, n = {n}", method, ir, clip, None, geneval)


_TABLE_3 = Study(
    (
        Run(
            "flux",
            {},
            (
                _row("vanilla", "vanilla", "vanilla", 1.019, 0.282, None, 0.645),
                _flux(3, 1.038, 0.282, 0.663),
                _flux(50, 1.114, 0.283, 0.668),
                _flux(100, 1.198, 0.284, 0.667),
            ),
            note="the paper states no steps of the target: 50, the pipeline's; its window (1, .95) is read in the "
            "shifted noise level",
        ),
    ),
    (
        Claim("LiDAR with n = 3 is above plain sampling", "lidar-3", "vanilla", (IR, GENEVAL)),
        Claim("LiDAR with n = 50 is above plain sampling", "lidar-50", "vanilla", (IR, CLIP, GENEVAL)),
        Claim("LiDAR gains with n from 3 to 50", "lidar-50", "lidar-3", (IR, CLIP, GENEVAL)),
        Claim("LiDAR gains with n from 50 to 100, by what guides", "lidar-100", "lidar-50", (IR, CLIP)),
    ),
)


def _sd15(steps: int, n: int, ir: float, clip: float, geneval: float, seconds: float) -> Row:
    key, label = f"dpm-{steps}-{n}", f"LiDAR, DPM-{steps}, n = {n}"
    return _row(key, label, f"lidar:n={n},lookahead=dpm:{steps}", ir, clip, None, geneval, seconds=seconds)


_BY_N = (IR, CLIP, GENEVAL)
_TABLE_5 = Study(
    (
        Run(
            "ddpm-100",
            _DDPM,
            (
                _row("vanilla", "vanilla", "vanilla", -0.001, 0.271, None, 0.426, seconds=7.07),
                _sd15(3, 3, 0.109, 0.274, 0.439, 7.44),
                _sd15(5, 3, 0.172, 0.275, 0.449, 7.54),
                _sd15(5, 9, 0.211, 0.276, 0.453, 8.27),
                _sd15(5, 50, 0.384, 0.278, 0.478, 13.41),
            ),
        ),
    ),
    (
        Claim("LiDAR with n = 3 is above plain sampling", "dpm-5-3", "vanilla", _BY_N),
        Claim("LiDAR gains with steps of the lookahead from 3 to 5", "dpm-5-3", "dpm-3-3", _BY_N),
        Claim("LiDAR gains with n from 3 to 9", "dpm-5-9", "dpm-5-3", _BY_N),
        Claim("LiDAR gains with n from 9 to 50", "dpm-5-50", "dpm-5-9", _BY_N),
    ),
)
_TABLE_5_DPO = Study(
    (
        Run(
            "ddpm-100",
            _DDPM,
            (
                _row("vanilla", "DPO alone", "vanilla", 0.106, 0.274, None, 0.446, seconds=7.07),
                _sd15(5, 3, 0.268, 0.277, 0.452, 7.54),
                _sd15(5, 9, 0.296, 0.277, 0.468, 8.27),
                _sd15(5, 50, 0.445, 0.280, 0.489, 13.41),
            ),
            note="target and lookahead are both taken to be the DPO model",
        ),
    ),
    (
        Claim("LiDAR with n = 3 is above the DPO model alone", "dpm-5-3", "vanilla", _BY_N),
        Claim("LiDAR gains with n from 3 to 9", "dpm-5-9", "dpm-5-3", (IR, GENEVAL)),
        Claim("LiDAR gains with n from 9 to 50", "dpm-5-50", "dpm-5-9", _BY_N),
    ),
)

_MIXED = "the paper does not say how the two are brought to one scale: each to deviation 1 over the bank"


def _mix(ir: int, clip: int, *figures: float) -> Run:
    row = _row("lidar", f"LiDAR, {ir} % ImageReward, {clip} % CLIP", "lidar:n=50,lookahead=dpm:5", *figures)
    return Run(f"mix-{ir}-{clip}", _DDPM, (row,), reward={IR: ir / 100, CLIP: clip / 100}, note=_MIXED)


_TABLE_6 = Study(
    (
        Run(
            "image-reward",
            _DDPM,
            (
                _row("vanilla", "vanilla", "vanilla", -0.001, 0.2711, 0.263, 0.426),
                _row(
                    "lidar",
                    "LiDAR, 100 % ImageReward",
                    "lidar:n=50,lookahead=dpm:5",
                    0.384,
                    0.2781,
                    0.276,
                    0.478,
                ),
            ),
        ),
        Run(
            "clip",
            {**_DDPM, "reward_scale": 50.0},
            (_row("lidar", "LiDAR, 100 % CLIP", "lidar:n=50,lookahead=dpm:5", 0.213, 0.2799, 0.264, 0.454),),
            reward=CLIP,
            note="lambda 5,000 of a cosine is 50 of our logit",
        ),
        _mix(10, 90, 0.278, 0.2801, 0.265, 0.459),
        _mix(40, 60, 0.374, 0.2799, 0.268, 0.476),
        _mix(90, 10, 0.392, 0.2781, 0.268, 0.473),
    ),
    (
        Claim("CLIP as guide is above plain sampling", "clip/lidar", "image-reward/vanilla"),
        Claim("a tenth of ImageReward is above CLIP alone by ImageReward", "mix-10-90/lidar", "clip/lidar", (IR,)),
        Claim(
            "six tenths of CLIP are above ImageReward alone by CLIP", "mix-40-60/lidar", "image-reward/lidar", (CLIP,)
        ),
        Claim(
            "four tenths of ImageReward are above CLIP alone by GenEval", "mix-40-60/lidar", "clip/lidar", (GENEVAL,)
        ),
    ),
)

_TABLE_7 = Study(
    (
        Run(
            "ddpm-100",
            _DDPM,
            (
                _row("vanilla", "vanilla", "vanilla", -0.001),
                _row("safe-denoiser", "Safe-Denoiser", "safe-denoiser", -0.001, 0.271, 0.262),
                _row("spell", "SPELL", "spell", 0.014, 0.272, 0.263),
                _row("lidar", "LiDAR, DPM-5, n = 50", "lidar:n=50,lookahead=dpm:5", 0.384, 0.278, 0.276),
            ),
        ),
    ),
    (
        Claim("LiDAR is above Safe-Denoiser", "lidar", "safe-denoiser", (IR, CLIP, HPS)),
        Claim("LiDAR is above SPELL", "lidar", "spell", (IR, CLIP, HPS)),
    ),
)

_TARGETS = {
    1: (-0.001, 0.384, -0.001, 0.384, -0.001, 0.384),
    2: (0.267, 0.715, 0.414, 0.749, 0.336, 0.770),
    4: (0.568, 1.007, 0.739, 0.969, 0.692, 1.073),
    8: (0.864, 1.122, 0.948, 1.136, 1.015, 1.218),
    16: (1.033, 1.234, 1.133, 1.277, 1.201, 1.354),
    32: (1.129, 1.307, 1.256, 1.351, 1.331, 1.452),
    64: (1.221, 1.338, 1.346, 1.418, 1.438, 1.510),
}
_OF_TARGETS = (
    ("smc", "SMC", "fk:{fk}", False),
    ("smc-lidar", "SMC + LiDAR", "fk+lidar:{fk}", False),
    ("bon", "BoN", "vanilla", True),
    ("bon-lidar", "BoN + LiDAR", "lidar:n=50,lookahead=dpm:5", True),
    ("smc-bon", "SMC + BoN", "fk:{fk}", True),
    ("smc-bon-lidar", "SMC + BoN + LiDAR", "fk+lidar:{fk}", True),
)
_TABLE_8 = Study(
    tuple(
        Run(
            f"n-{n}",
            _DDPM,
            tuple(
                Row(key, label, method, {IR: figure}, best=best)
                for (key, label, method, best), figure in zip(_OF_TARGETS, figures, strict=True)
            ),
            images=n,
            note="SMC without BoN is taken to be the mean over its particles",
        )
        for n, figures in _TARGETS.items()
    ),
    (
        Claim("LiDAR raises SMC", "smc-lidar", "smc", (IR,)),
        Claim("LiDAR raises best-of-N", "bon-lidar", "bon", (IR,)),
        Claim("LiDAR raises SMC with best-of-N", "smc-bon-lidar", "smc-bon", (IR,)),
    ),
)

TABLES = {
    "table2": Table("LiDAR beside its rivals, DDPM-100 and DDIM-50", {"sd15": _TABLE_2_SD15, "sdxl": _TABLE_2_SDXL}),
    "table3": Table("FLUX.1 [dev] by the number of lookahead samples", {"flux": _TABLE_3}),
    "table5": Table("lookahead samples and their steps", {"sd15": _TABLE_5, "sd15-dpo": _TABLE_5_DPO}),
    "table6": Table("mixtures of two rewards", {"sd15": _TABLE_6}),
    "table7": Table("repulsion from the bank's worst", {"sd15": _TABLE_7}),
    "table8": Table("by the number of samples drawn", {"sd15": _TABLE_8}),
    "table10": Table("LiDAR beside its rivals on SDXL, DDIM-50", {"sdxl": _TABLE_10}),
}
ELSEWHERE = {
    "table4": "its molecules are drawn by 'lidar molecules'",
    "table9": "'lidar generate --profile' splits the time of a run so",
}
"""Tables of the paper that no Job draws, and what draws them."""

PROMPTS = 553
PROMPTS_MD5 = "9a0ed515640279a48ed3380d90aec0ed"
"""Number of prompts in ``prompts/evaluation_metadata.jsonl`` of https://github.com/djghosh13/geneval."""
