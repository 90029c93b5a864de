"""The nodes: their inputs and outputs, and nothing that could be elsewhere."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.samplers
import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io, ui
from torch import Tensor

from lidar_sampling import BankError, LookaheadBank
from lidar_sampling._guidance import auto_strength
from lidar_sampling._values import cut

from .bank import draw_bank, load_bank
from .guide import Guide
from .judge import caption, check_reward, decode, flat, judge

_log = logging.getLogger(__name__)

Bank = io.Custom("LIDAR_BANK")

_CATEGORY = "sampling/LiDAR"
_MOST_SEED = 2**64 - 1
_PROMPT = "The prompt for rewards: the text of the positive prompt."
_REWARD = (
    "A reward by name (image-reward, hpsv2.1, pickscore, clip, aesthetic, ...), or a mixture such as "
    "clip:0.9+aesthetic:0.1."
)
_SAVED = "lidar"  # the folder of banks, in ComfyUI's output folder


class LiDARBank(io.ComfyNode):
    """Phase 1: few-step samples of the prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the inputs and outputs of the node."""
        return io.Schema(
            node_id="LiDARBank",
            display_name="LiDAR Bank",
            category=_CATEGORY,
            description=(
                "Draw n samples of the prompt in a few steps each. They serve every later seed: this node runs again "
                "only when one of its inputs changes. Cost: n x steps evaluations of the model."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to guide."),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Latent.Input("latent_image", tooltip="An empty latent, for the size of the pictures."),
                io.String.Input("prompt", multiline=True, default="", tooltip=_PROMPT),
                io.Int.Input("n", default=16, min=2, max=512, tooltip="Samples in the bank."),
                io.Int.Input("seed", default=0, min=0, max=_MOST_SEED, control_after_generate=False),
                io.Int.Input("steps", default=6, min=1, max=1000, tooltip="Steps per sample; a few."),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, round=0.01),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="dpmpp_2m"),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="karras"),
                io.Int.Input(
                    "batch", default=8, min=1, max=512, tooltip="Samples at a time, halved when memory runs out."
                ),
                io.Model.Input(
                    "lookahead_model",
                    optional=True,
                    tooltip="A distilled model of the same latent space, which draws the bank.",
                ),
            ],
            outputs=[Bank.Output(display_name="bank"), io.Latent.Output(display_name="samples")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent_image: dict[str, Any],
        lookahead_model: Any = None,
        **how: Any,
    ) -> io.NodeOutput:
        """Draw the bank."""
        drawn_with = model if lookahead_model is None else lookahead_model
        spaces = [type(each.get_model_object("latent_format")).__name__ for each in (model, drawn_with)]
        if spaces[0] != spaces[1]:
            raise BankError(
                f"lookahead_model draws in the space {spaces[1]} and the model in {spaces[0]}: choose another"
            )
        bank = draw_bank(drawn_with, positive, negative, latent_image, **how)
        return io.NodeOutput(bank, {"samples": bank.samples})


class LiDARScore(io.ComfyNode):
    """Between the phases: a reward for every sample."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the inputs and outputs of the node."""
        return io.Schema(
            node_id="LiDARScore",
            display_name="LiDAR Score",
            category=_CATEGORY,
            description=(
                "Score a bank by a reward, or by numbers from other nodes, and show its pictures, best first. "
                "Cost: one decode and one reward call per sample."
            ),
            is_input_list=True,
            inputs=[
                Bank.Input("bank"),
                io.Vae.Input("vae"),
                io.String.Input("reward", default="image-reward", tooltip=_REWARD),
                io.Float.Input(
                    "rewards",
                    optional=True,
                    force_input=True,
                    tooltip="Numbers instead of the reward, one per sample, in the order of the samples.",
                ),
            ],
            outputs=[
                Bank.Output(display_name="bank"),
                io.Image.Output(display_name="best first"),
                io.Float.Output(display_name="rewards", is_output_list=True),
            ],
        )

    @classmethod
    def validate_inputs(cls, reward: list[str] | None = None) -> bool | str:
        """Refuse an unknown reward, before anything is drawn."""
        return _why_no_reward(reward[0] if reward else None)

    @classmethod
    def execute(cls, bank: list, vae: list, reward: list[str], rewards: list | None = None) -> io.NodeOutput:
        """Decode and score the bank."""
        scored, pictures = bank[0], decode(vae[0], bank[0].samples)
        if rewards is None:
            name, values = reward[0], judge(reward[0], pictures, scored.prompt)
        else:
            name, values = "given", _numbers(rewards)
            if len(values) != len(scored):
                raise BankError(f"the bank has {len(scored)} samples, got {len(values)} rewards: give one per sample")
        scored = replace(scored, rewards={name: values})
        order = values.argsort(descending=True, stable=True)
        best, ordered = pictures[order], values[order].tolist()
        shown = caption(best, [f"{value:.4g}" for value in ordered])
        return io.NodeOutput(scored, flat(best), ordered, ui=ui.PreviewImage(shown, cls=cls))


class LiDARGuide(io.ComfyNode):
    """Phase 2: guidance of a model, for every sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the inputs and outputs of the node."""
        return io.Schema(
            node_id="LiDARGuide",
            display_name="LiDAR Guide",
            category=_CATEGORY,
            description=(
                "Guide a model toward the samples of a bank that scored well, with any sampler and at no cost. "
                "If you chain two such nodes, both guide."
            ),
            inputs=[
                io.Model.Input("model"),
                Bank.Input("bank", tooltip="A bank with rewards, from LiDAR Score or LiDAR Load Bank."),
                io.Float.Input(
                    "scale", default=1.0, min=0.0, max=100.0, step=0.1, tooltip="Scale of the shift; 0 is off."
                ),
                io.String.Input(
                    "strength",
                    default="auto",
                    tooltip="How much a reward counts: auto, which suits any reward, or a number in units of 1 "
                    "/ reward.",
                ),
                io.Float.Input(
                    "ess",
                    default=0.25,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="For strength auto: the share of the bank that guidance follows at its first step.",
                ),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01),
                io.Float.Input("end_percent", default=0.8, min=0.0, max=1.0, step=0.01),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def validate_inputs(
        cls, strength: str = "auto", start_percent: float = 0.0, end_percent: float = 1.0
    ) -> bool | str:
        """Refuse a strength that is not a number, and a window that is empty."""
        try:
            _strength(strength)
        except ValueError as error:
            return str(error)
        if not 0 <= start_percent < end_percent <= 1:
            got = f"{start_percent:g} and {end_percent:g}"
            return f"start_percent must be below end_percent, both from 0 to 1, got {got}"
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        bank: LookaheadBank,
        scale: float,
        strength: str,
        ess: float,
        start_percent: float,
        end_percent: float,
    ) -> io.NodeOutput:
        """Patch the model."""
        rewards = _rewards_of(bank)
        found = _strength(strength)
        if found is None:
            found = auto_strength(rewards, ess)
        guide = Guide(bank, rewards, scale=scale, strength=found, start=start_percent, end=end_percent)
        said = f"strength {found:.4g}"
        if bool((rewards == rewards[0]).all()):
            said = f"all {len(bank)} samples have the reward {float(rewards[0]):g}, so guidance does nothing"
        _log.info("LiDAR: %s", said)
        return io.NodeOutput(guide.patch(model), ui=ui.PreviewText(said))


class LiDARSaveBank(io.ComfyNode):
    """A bank on disk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the inputs and outputs of the node."""
        return io.Schema(
            node_id="LiDARSaveBank",
            display_name="LiDAR Save Bank",
            category=_CATEGORY,
            description=f"Write a bank to the folder {_SAVED} in the output folder, as safetensors.",
            is_output_node=True,
            inputs=[Bank.Input("bank"), io.String.Input("name", default="bank")],
            outputs=[],
        )

    @classmethod
    def execute(cls, bank: LookaheadBank, name: str) -> io.NodeOutput:
        """Write the bank."""
        folder, stem, counter, *_ = folder_paths.get_save_image_path(name, str(_save()))
        path = bank.save(Path(folder) / f"{stem}_{counter:05}_.safetensors")
        return io.NodeOutput(ui=ui.PreviewText(path.relative_to(_save()).as_posix()))


class LiDARLoadBank(io.ComfyNode):
    """A bank from disk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the inputs and outputs of the node."""
        return io.Schema(
            node_id="LiDARLoadBank",
            display_name="LiDAR Load Bank",
            category=_CATEGORY,
            description=(
                f"Read a bank from the folder {_SAVED} in the output folder: one that ComfyUI saved, or that "
                f"'lidar look' drew with Stable Diffusion, SDXL or Stable Diffusion 3."
            ),
            inputs=[
                io.Combo.Input(
                    "name",
                    options=sorted(p.relative_to(_save()).as_posix() for p in _save().rglob("*.safetensors")),
                )
            ],
            outputs=[Bank.Output(display_name="bank")],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str) -> Any:
        """Return a value that changes with the file."""
        found = (_save() / name).stat()
        return found.st_mtime_ns, found.st_size

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        """Read the bank."""
        return io.NodeOutput(load_bank(_save() / name))


class LiDARBestOfBank(io.ComfyNode):
    """The best samples of a bank."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the inputs and outputs of the node."""
        return io.Schema(
            node_id="LiDARBestOfBank",
            display_name="LiDAR Best of Bank",
            category=_CATEGORY,
            description="Take the best samples of a bank as a latent, to decode them or to refine from.",
            inputs=[Bank.Input("bank"), io.Int.Input("count", default=1, min=1, max=512)],
            outputs=[io.Latent.Output(), io.Float.Output(display_name="rewards", is_output_list=True)],
        )

    @classmethod
    def execute(cls, bank: LookaheadBank, count: int) -> io.NodeOutput:
        """Return the best."""
        _rewards_of(bank)
        if count > len(bank):
            raise BankError(f"count must be at most {len(bank)}, the samples of the bank; got {count}")
        best = bank.best(count)
        return io.NodeOutput({"samples": best.samples}, best.reward().tolist())


class LiDARBestOfN(io.ComfyNode):
    """The best pictures of a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the inputs and outputs of the node."""
        return io.Schema(
            node_id="LiDARBestOfN",
            display_name="LiDAR Best of N",
            category=_CATEGORY,
            description="Take the best pictures of a batch. Cost: one reward call per picture.",
            inputs=[
                io.Image.Input("images"),
                io.String.Input("prompt", multiline=True, default="", tooltip=_PROMPT),
                io.String.Input("reward", default="image-reward", tooltip=_REWARD),
                io.Int.Input("count", default=1, min=1, max=512),
            ],
            outputs=[io.Image.Output(), io.Float.Output(display_name="rewards", is_output_list=True)],
        )

    @classmethod
    def validate_inputs(cls, reward: str | None = None) -> bool | str:
        """Refuse an unknown reward."""
        return _why_no_reward(reward)

    @classmethod
    def execute(cls, images: Tensor, prompt: str, reward: str, count: int) -> io.NodeOutput:
        """Return the best."""
        if count > len(images):
            raise ValueError(f"count must be at most {len(images)}, the pictures of the batch; got {count}")
        values = judge(reward, images, prompt)
        order = values.argsort(descending=True, stable=True)[:count]
        return io.NodeOutput(images[order], values[order].tolist())


class LiDARExtension(ComfyExtension):
    """The extension, which gives ComfyUI the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the nodes."""
        return [LiDARBank, LiDARScore, LiDARGuide, LiDARSaveBank, LiDARLoadBank, LiDARBestOfBank, LiDARBestOfN]


async def comfy_entrypoint() -> LiDARExtension:
    """Return the extension; ComfyUI calls this."""
    return LiDARExtension()


def _save() -> Path:
    folder = Path(folder_paths.get_output_directory()) / _SAVED
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _rewards_of(bank: LookaheadBank) -> Tensor:
    if not bank.rewards:
        raise BankError("the bank has no rewards: put LiDAR Score between it and this node")
    return bank.reward()


def _strength(text: str) -> float | None:
    """Return the number, or None for auto."""
    if text.strip() == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"strength must be auto or a number of at least 0, got {cut(text)}")
    return value


def _numbers(given: list[Any]) -> Tensor:
    """Return the numbers of FLOAT inputs; each may be one number, a list or a tensor."""
    return torch.cat([torch.as_tensor(each, dtype=torch.float32).flatten() for each in given])


def _why_no_reward(name: str | None) -> bool | str:
    """Return a text on why the reward is unknown, or True; another node may supply the name later."""
    if name is None:
        return True
    try:
        check_reward(name)
    except ValueError as error:
        return str(error)
    return True
