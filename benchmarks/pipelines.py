"""Draw with the dummy components of diffusers' own pipeline tests, and list the pipelines that LiDAR supports.

    python -m benchmarks.pipelines --diffusers ../diffusers [--only Lumina2] [--out docs/models-long-tail.md]

``--diffusers`` is a checkout of https://github.com/huggingface/diffusers, of which only the tests are imported; the
library itself is the installed one. None of its code is kept here. Each pipeline runs in its own process. Parts that
the tests load from the model hub (tokenizers, a T5) are replaced by those of ``lidar_sampling.testing``; a pipeline
that needs more from the hub is not run.

    works       two prompts x two samples through both phases; guided samples differ from vanilla ones, scale 0 is
                bit-identical, and a sample is the same in batches of one and of four, to 1e-3 of the largest latent
    wrong       one of these fails; the row says which
    refused     lidar-sampling refuses with a reason
    failed      another error occurred
    not run     its components need the hub, an extra package or more than the time limit
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import inspect
import json
import os
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

PROMPTS = ["a cat", "a dog on the grass"]
TAKEN = ("prompt", "generator", "output_type", "return_dict", "latents", "num_inference_steps")
_SIZES = ("num_frames", "num_frames_per_chunk")
ROW = "\x1erow "  # marks the line of a result among other output


def main() -> None:
    """Run the selected pipelines, print the table, and write it if a file is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--diffusers", type=Path, required=True, metavar="PATH", help="a checkout of diffusers")
    parser.add_argument("--only", default="", metavar="NAME", help="only pipelines or files whose name contains this")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file for the table, as Markdown")
    parser.add_argument("--limit", type=float, default=120, metavar="SECONDS", help="seconds per file (default 120)")
    parser.add_argument("--file", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file:
        for row in rows_of(options.diffusers, options.file, options.only):
            print(ROW + json.dumps(row), flush=True)
        return
    rows: list[list[str]] = []
    for file in sorted((options.diffusers / "tests" / "pipelines").rglob("test_*.py")):
        text = file.read_text(encoding="utf-8")
        if "get_dummy_components" in text and (options.only in text or options.only in file.name):
            found = in_a_process(options, file)
            rows += [row for row in found if row[0] not in {known[0] for known in rows}]
            for row in found:
                print(f"{row[0]:48} {row[1]:8} {row[2]}", flush=True)
    counts = Counter(row[1] for row in rows)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()))
    if options.out:
        options.out.write_text(table(rows, counts), encoding="utf-8")


def in_a_process(options: argparse.Namespace, file: Path) -> list[list[str]]:
    """Return the rows of a test file of diffusers, run in a process so that imports and crashes stay separate."""
    arguments = ["--diffusers", str(options.diffusers), "--only", options.only, "--file", str(file)]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.pipelines", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit)
        output, why = done.stdout, done.stderr.strip().rpartition("\n")[2]
        ended = done.returncode != 0
    except subprocess.TimeoutExpired as late:
        output, why, ended = (late.stdout or b"").decode(), f"more than {options.limit:g} s", True
    rows = [json.loads(line.removeprefix(ROW)) for line in output.split("\n") if line.startswith(ROW)]
    return [*rows, [file.stem.removeprefix("test_"), "not run", why[:160]]] if ended else rows


def rows_of(checkout: Path, file: str, only: str) -> Iterator[list[str]]:
    """Yield (pipeline, verdict, reason) for each pipeline in a test file of diffusers."""
    sys.path.insert(0, str(checkout.resolve()))
    name = ".".join(Path(file).resolve().relative_to(checkout.resolve()).with_suffix("").parts)
    with without_hub():
        module = import_tests(name)
        seen = set()
        for case in vars(module).values():
            if not (inspect.isclass(case) and case.__module__ == name and hasattr(case, "get_dummy_inputs")):
                continue
            cls = getattr(case, "pipeline_class", None)
            if not inspect.isclass(cls) or cls in seen or (only not in cls.__name__ and only not in Path(file).name):
                continue
            seen.add(cls)
            yield [cls.__name__, *verdict(cls, case)]


def import_tests(name: str) -> Any:
    """Import a test module; missing packages that only its tests use, such as ``parameterized``, are mocked."""
    while True:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as missing:
            if missing.name is None or missing.name in sys.modules or missing.name.startswith(("tests", "diffusers")):
                raise
            sys.modules[missing.name] = Mock()


_OF_DUMMIES = {  # texts of errors caused by the dummies and not by us
    "name 'transforms' is not defined": "it needs torchvision",
    "Image features and image tokens do not match": "its processor is on the hub",
    "should be the same as the number of images passed": "its processor is on the hub",
}


def verdict(cls: Any, case: Any) -> tuple[str, str]:
    """Make a pipeline from the components of a test case, and return the verdict on it."""
    found, why = try_pipeline(cls, case)
    missing = next((reason for text, reason in _OF_DUMMIES.items() if text in why), None)
    return ("not run", missing) if missing else (found, why)


def try_pipeline(cls: Any, case: Any) -> tuple[str, str]:
    """Return the verdict on a pipeline from the components of a test case."""
    import torch

    test = case()
    try:
        torch.manual_seed(0)
        pipe = cls(**test.get_dummy_components())
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        if pipe.scheduler.config.get("clip_sample"):  # most dummies clip, but few models do
            pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, clip_sample=False)
        inputs = test.get_dummy_inputs(*(["cpu"] if inspect.signature(test.get_dummy_inputs).parameters else []))
    except Exception as error:
        return "not run", spell_error(error)
    if "prompt" not in inputs:
        return "not run", "its test gives no prompt"
    call = {k: v for k, v in inputs.items() if k not in TAKEN and not k.startswith("callback")}
    try:
        return check(pipe, {k: v for k, v in call.items() if not k.startswith("num_") or k in _SIZES})
    except (ValueError, TypeError) as error:
        ours = "lidar_sampling" in traceback.extract_tb(error.__traceback__)[-1].filename
        return ("refused" if ours else "failed"), spell_error(error)
    except Exception as error:
        return "failed", spell_error(error)


def check(pipe: Any, call: dict[str, Any]) -> tuple[str, str]:
    """Draw with both phases in several ways, which must agree or differ."""
    import torch

    from lidar_sampling import LiDAR

    def mean(*, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return images.flatten(1).float().mean(1)

    options = {"n": 3, "steps": 4, "lookahead": "own:2", "scale": 1.0, "reward_scale": 1e3, "window": (1.0, 0.0)}

    def sampler(**changes: Any) -> Any:
        return LiDAR(pipe, reward=mean, pipe_kwargs=call, **{**options, **changes})

    lidar = sampler(batch_size=4)
    guided, vanilla = lidar(PROMPTS, images=2, seed=1), lidar.vanilla(PROMPTS, images=2, seed=1)
    still = sampler(batch_size=4, scale=0.0)(PROMPTS, images=2, seed=1, banks=guided.banks)
    alone = sampler(batch_size=1)(PROMPTS, images=2, seed=1, banks=guided.banks)
    apart = (alone.latents - guided.latents).abs().max().item() / guided.latents.abs().max().item()
    shifted = any(max(row["shift_norm"]) > 1e-4 for row in guided.trace.rows())  # not where all weights collapse
    mask = call.get("mask_image")
    if hasattr(mask, "convert"):
        mask = torch.tensor(list(mask.convert("L").getdata())) > 127
    painted = not isinstance(mask, torch.Tensor) or bool(mask.any())  # a black mask keeps the picture
    faults = [
        fault
        for fault, found in {
            "guidance changes nothing": shifted and painted and torch.equal(guided.latents, vanilla.latents),
            "scale 0 changes something": not torch.equal(still.latents, vanilla.latents),
            "samples are not finite": not guided.latents.isfinite().all(),
            f"a sample depends on its batch, by {apart:.1g}": not apart < 1e-3,
        }.items()
        if found
    ]
    return ("wrong", "; ".join(faults)) if faults else ("works", "")


def spell_error(error: BaseException) -> str:
    """Return the text of an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


@contextlib.contextmanager
def without_hub() -> Iterator[None]:
    """Replace classes of transformers that diffusers' tests load from the hub by our tiny ones."""
    import transformers

    from lidar_sampling.testing import _language, _text

    def clip() -> Any:  # with fewer tokens than their text encoders have
        tokens = [
            "<|startoftext|>",
            "<|endoftext|>",
            *(token + end for token in _text.LETTERS for end in ("", "</w>")),
        ]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)

    def gemma() -> Any:  # with the eight tokens of Sana's text encoders
        names = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "a", "t")
        return transformers.GemmaTokenizer(vocab={name: k for k, name in enumerate(names)}, merges=[])

    qwen = _language.qwen_tokenizer()
    made = {"clip": clip(), "t5": _text.t5_tokenizer(), "gemma": gemma(), "roberta": _language.roberta_tokenizer()}
    made |= dict.fromkeys(("qwen", "llama", "hunyaunvideo", "glm", "mistral", "aura"), qwen)
    made |= {"hunyuandit": made["roberta"], "mclip": made["roberta"]}

    def tokenizer(source: str, *_: Any, **__: Any) -> Any:
        for word, own in made.items():
            if word in str(source).lower():
                return copy.deepcopy(own)
        raise OSError(f"{source} is on the hub")

    def processor(source: str, *_: Any, **__: Any) -> Any:
        if "qwen2" in str(source).lower():
            return _language.qwen_processor(patch=14)
        raise OSError(f"{source} is on the hub")

    def config(source: str, *_: Any, **__: Any) -> Any:
        if "t5" in str(source).lower():
            return transformers.T5Config(vocab_size=128, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
        raise OSError(f"{source} is on the hub")

    def encoder(source: str, *_: Any, **__: Any) -> Any:
        return transformers.T5EncoderModel(config(source)).eval()

    names = ["AutoTokenizer", "CLIPTokenizer", "T5Tokenizer", "Qwen2Tokenizer", "GemmaTokenizer", "T5TokenizerFast"]
    names += ["RobertaTokenizer", "LlamaTokenizer", "LlamaTokenizerFast", "BertTokenizer", "XLMRobertaTokenizerFast"]
    stand_ins: dict[str, Any] = dict.fromkeys(names, tokenizer)
    stand_ins |= dict.fromkeys(("AutoProcessor", "Qwen2VLProcessor", "Qwen2_5_VLProcessor"), processor)
    stand_ins |= {"AutoConfig": config, "T5EncoderModel": encoder}
    kept = {}
    for name, make in stand_ins.items():
        cls = getattr(transformers, name)
        kept[cls] = vars(cls).get("from_pretrained")
        cls.from_pretrained = make
    try:
        yield
    finally:
        for cls, method in kept.items():
            if method is None:
                del cls.from_pretrained
            else:
                cls.from_pretrained = method


def table(rows: Sequence[Sequence[str]], counts: Counter[str]) -> str:
    """Return the page with all rows."""
    import diffusers

    lines = [
        "# The long tail of pipelines",
        "",
        "Written by `python -m benchmarks.pipelines --diffusers PATH --out docs/models-long-tail.md`, with the dummy",
        f"components of diffusers' own tests and diffusers {diffusers.__version__}: "
        + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
        + ".",
        "",
        "| pipeline | verdict | why |",
        "|---|---|---|",
        *(f"| `{name}` | {verdict} | {why.replace('|', '/')} |" for name, verdict, why in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
