"""The embedded model: it draws what it is asked, and guidance helps where it has room."""

import torch

from lidar_sampling.glyph import DATA


def test_it_is_the_model_that_was_measured(glyph_lidar):
    pipe = glyph_lidar.pipe
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert sum(p.numel() for p in pipe.unet.parameters()) == 13_308_292
    assert next(pipe.unet.parameters()).dtype == torch.float32
    assert next(pipe.text_encoder.parameters()).dtype == torch.float32
    assert pipe.scheduler.config.clip_sample is False
    assert [m.name for m in (glyph_lidar.reward, *glyph_lidar.metrics)] == ["glyph", "glyph-heldout", "geneval"]


def test_nothing_in_the_package_is_a_pickle():
    suffixes = {path.suffix for path in DATA.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".md", ".safetensors", ".txt"}


def test_guidance_helps_position_prompts(glyph_lidar):
    """Four prompts of the kind where vanilla is right half of the time; ``benchmarks/quality.py`` has the intervals.

    Vanilla's share is .5 with a standard error of about .15 here and guidance's above .9, so the margin of .1 is
    missed about once in fifty seeds; the seed is fixed.
    """
    prompts = [
        "a photo of a dog right of a teddy bear",
        "a photo of a cup below a cow",
        "a photo of a car left of a potted plant",
        "a photo of a cat below a backpack",
    ]
    guided = glyph_lidar(prompts, images=2, seed=1)
    vanilla = glyph_lidar.vanilla(prompts, images=2, seed=1)
    gain = {name: (guided.rewards[name] - vanilla.rewards[name]).mean().item() for name in guided.rewards}
    assert gain["geneval"] > 0.1
    assert gain["glyph"] > 0.5
    assert gain["glyph-heldout"] > 0.3
    assert guided.cost["lookahead"].network_evaluations == 4 * 50 * 5 * 2
    assert guided.cost["sampling"].network_evaluations == vanilla.cost["sampling"].network_evaluations == 8 * 50 * 2


def test_a_prompt_outside_the_templates_has_no_verdict(glyph_lidar):
    rewards = glyph_lidar.vanilla("an oil painting of a cat", images=1).rewards
    assert rewards["geneval"].isnan().all()
    assert rewards["glyph"].isfinite().all()
