"""The detector in the role of GenEval's judge for glyph's pictures.

A small CenterNet (Zhou et al. 2019, https://arxiv.org/abs/1904.07850) at stride 4: one heat map per class, and at
each peak the box, the offset of its centre and one of eleven colours (natural, or one of GenEval's ten).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .._geneval import CLASSES, COLORS, Detection

_COLOR_NAMES = ("natural", *COLORS)
_MAX_PEAKS = 48
_SAME_OBJECT = 8.0  # two centres nearer than this many pixels in both directions are one object


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.a = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.n1 = nn.BatchNorm2d(outputs)
        self.b = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.n2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.sk = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.n1(self.a(x)))
        return F.relu(self.n2(self.b(h)) + self.sk(x))


class Detector(nn.Module):
    """A detector of glyph's 80 classes in pictures of 128 x 128 pixels.

    Args:
        classes: class names, in the order of the heat maps.
        width: channels at strides 2 (and 4), 4, 8 and 16.
        fpn: channels of the merged features.
        threshold: score above which GenEval's rules count an object.
        counting_threshold: the same for the counting tag.
    """

    def __init__(
        self,
        classes: tuple[str, ...] = CLASSES,
        width: tuple[int, int, int, int] = (24, 48, 96, 160),
        fpn: int = 96,
        threshold: float = 0.3,
        counting_threshold: float = 0.3,
    ) -> None:
        super().__init__()
        self.classes, self.width, self.fpn = tuple(classes), tuple(width), fpn
        self.threshold, self.counting_threshold = threshold, counting_threshold
        a, b, c, d = width
        self.stem = nn.Sequential(nn.Conv2d(3, a, 3, 2, 1, bias=False), nn.BatchNorm2d(a), nn.ReLU(), _Residual(a, a))
        self.l2 = nn.Sequential(_Residual(a, b, 2), _Residual(b, b))
        self.l3 = nn.Sequential(_Residual(b, c, 2), _Residual(c, c))
        self.l4 = nn.Sequential(_Residual(c, d, 2), _Residual(d, d))
        self.u4, self.u3, self.u2 = (nn.Conv2d(channels, fpn, 1) for channels in (d, c, b))
        self.m = _Residual(fpn, fpn)
        self.hm = nn.Conv2d(fpn, len(classes), 1)
        self.hd = nn.Sequential(nn.Conv2d(fpn, fpn, 3, 1, 1), nn.ReLU(), nn.Conv2d(fpn, 4 + len(_COLOR_NAMES), 1))
        nn.init.constant_(self.hm.bias, -4.0)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map images (B, 3, 128, 128) in [0, 1] to class logits (B, 80, 32, 32), boxes (B, 4, 32, 32) and colours.

        A box is log width, log height and the offset of its centre in x and y, all in cells of four pixels;
        colour logits are (B, 11, 32, 32).
        """
        f2 = self.l2(self.stem((images - 0.5) * 4))
        f3 = self.l3(f2)
        f4 = self.l4(f3)
        f = self.m(self.u2(f2) + _double(self.u3(f3) + _double(self.u4(f4))))
        head = self.hd(f)
        return self.hm(f), head[:, :4], head[:, 4:]

    @torch.no_grad()
    def detect(self, images: Tensor, *, floor: float = 0.2) -> list[list[Detection]]:
        """Return the objects in each image, best first.

        Args:
            images: (B, 3, 128, 128) in [0, 1].
            floor: objects with lower scores are left out.

        Returns:
            One list per image; of coinciding boxes only the best class is kept.
        """
        class_logits, boxes, color_logits = self(images.to(self.hm.weight))
        scores = class_logits.float().sigmoid()
        peak = (F.max_pool2d(scores, 5, 1, 2) == scores) & (scores > floor)
        found: list[list[Detection]] = [[] for _ in images]
        color = color_logits.argmax(1)
        for b, k, i, j in peak.nonzero().tolist():
            log_w, log_h, dx, dy = boxes[b, :, i, j].tolist()
            cx, cy = (j + 0.5 + dx) * 4, (i + 0.5 + dy) * 4
            w, h = 4 * torch.tensor([log_w, log_h]).exp()
            box = (cx - float(w) / 2, cy - float(h) / 2, cx + float(w) / 2, cy + float(h) / 2)
            name = _COLOR_NAMES[int(color[b, i, j])]
            found[b].append(Detection(self.classes[k], float(scores[b, k, i, j]), box, name))
        return [_one_class_each(objects) for objects in found]

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` (half precision) to ``directory``."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "classes": list(self.classes),
            "width": list(self.width),
            "fpn": self.fpn,
            "threshold": self.threshold,
            "counting_threshold": self.counting_threshold,
            "colors": list(_COLOR_NAMES),
            "image_size": 128,
            "stride": 4,
        }
        (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        state = {k: v for k, v in self.state_dict().items() if not k.endswith("num_batches_tracked")}
        save_file({k: v.half().contiguous() for k, v in state.items()}, directory / "model.safetensors")

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Detector:
        """Load a detector that :meth:`save_pretrained` wrote, in float32 and evaluation mode."""
        directory = Path(directory)
        config = json.loads((directory / "config.json").read_text())
        model = cls(
            tuple(config["classes"]),
            tuple(config["width"]),
            config["fpn"],
            config["threshold"],
            config["counting_threshold"],
        )
        state = {k: v.float() for k, v in load_file(directory / "model.safetensors").items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        if unexpected or any(not k.endswith("num_batches_tracked") for k in missing):
            raise ValueError(f"{directory} does not hold this detector: {missing + unexpected}")
        return model.eval()


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _one_class_each(objects: list[Detection]) -> list[Detection]:
    kept: list[Detection] = []
    for candidate in sorted(objects, key=lambda d: -d.score)[:_MAX_PEAKS]:
        if all(_center_gap(candidate, other) > _SAME_OBJECT for other in kept):
            kept.append(candidate)
    return kept


def _center_gap(a: Detection, b: Detection) -> float:
    return max(abs(a.box[i] + a.box[i + 2] - b.box[i] - b.box[i + 2]) / 2 for i in (0, 1))
