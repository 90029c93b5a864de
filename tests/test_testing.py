"""The doubles themselves: of the real classes, small, dependent on prompt and seed, and the same from a folder."""

import diffusers
import pytest
import torch

from lidar_sampling import record, testing
from lidar_sampling._call import for_batch

# Equal in their first letters, so a tokenizer that truncates or ignores capitals would confuse them.
PROMPTS = ["a large photograph of a small Cat", "a large photograph of a small Hat"]

# A scheduler step's arguments for one sample, and the pipeline's result.
SHAPES = {
    "sd": ((4, 8, 8), (3, 16, 16)),
    "sdxl": ((4, 8, 8), (3, 16, 16)),
    "sd3": ((4, 8, 8), (3, 16, 16)),
    "flux": ((16, 16), (3, 16, 16)),
    "flux-schnell": ((16, 16), (3, 16, 16)),
    "pixart-sigma": ((4, 8, 8), (3, 16, 16)),
    "sana": ((4, 16, 16), (3, 32, 32)),
    "sana-sprint": ((4, 16, 16), (3, 32, 32)),
    "wan": ((4, 2, 2, 2), (5, 3, 16, 16)),
    "ltx": ((192, 8), (9, 3, 32, 32)),
    "cogvideox": ((3, 4, 2, 2), (9, 3, 16, 16)),
    "cogvideox-ddim": ((3, 4, 2, 2), (9, 3, 16, 16)),
    "stable-audio": ((4, 16), (2, 128)),
    "qwen-image": ((16, 16), (3, 16, 16)),
    "qwen-image-edit": ((1, 16), (3, 64, 64)),
    "z-image": ((4, 8, 8), (3, 16, 16)),
    "flux-2": ((16, 16), (3, 16, 16)),
    "flux-kontext": ((16, 16), (3, 16, 16)),
    "wan-2.2": ((4, 2, 2, 2), (5, 3, 16, 16)),
    "wan-i2v": ((4, 2, 2, 2), (5, 3, 16, 16)),
    "chroma": ((16, 16), (3, 16, 16)),
    "hidream": ((4, 128, 128), (3, 128, 128)),
    "lumina-2": ((4, 8, 8), (3, 16, 16)),
    "cogview-4": ((4, 8, 8), (3, 16, 16)),
    "ltx-2": ((1280, 4), (9, 3, 32, 32)),
    "kolors": ((4, 8, 8), (3, 16, 16)),
    "cosmos-2.5": ((4, 2, 2, 2), (5, 3, 16, 16)),
    "kandinsky-5": ((2, 2, 2, 4), (3, 3, 8, 8)),
    "mochi": ((12, 2, 2, 2), (7, 3, 16, 16)),
    "audioldm-2": ((4, 4, 4), (32,)),
    "ace-step": ((10, 4), (2, 19)),
    "stable-audio-3": ((8, 4), (2, 16)),
}
AUDIO = {"stable-audio", "audioldm-2", "ace-step", "stable-audio-3"}
LARGE = {"z-image": 400_000, "mochi": 700_000}  # parameters; widths that their classes fix
EVERY = pytest.mark.parametrize("key", testing.PIPELINES)


@pytest.fixture(scope="module")
def built():
    pipes = {}
    return lambda key: pipes.setdefault(key, testing.PIPELINES[key].make())


def draw(pipe, key, prompts=PROMPTS, *, seed=0):
    """Draw two samples per prompt, each with its own generator; the two prompts share their noise."""
    call, per_prompt = testing.PIPELINES[key][1:3]
    generators = [torch.Generator().manual_seed(seed + i) for _ in prompts for i in range(2)]
    several = {per_prompt: 2} if per_prompt else {}
    prompts = list(prompts) if per_prompt else [prompt for prompt in prompts for _ in range(2)]
    call = {**for_batch(call, prompts, pipe), **several}
    return pipe(prompt=prompts, num_inference_steps=2, generator=generators, output_type="pt", **call)[0]


@EVERY
def test_draws_what_it_says(key, built):
    pipe = built(key)
    with record(pipe) as recording:
        output = draw(pipe, key)
    latents, shape = SHAPES[key]
    assert recording.samples.shape == (4, *latents)
    assert output.shape == (4, *shape)
    assert output.isfinite().all()
    assert (output.flatten(1).std(1) > 0.05).all()
    if key not in AUDIO:
        assert 0 <= output.min() < output.max() <= 1
        assert ((output == 0) | (output == 1)).float().mean() < 0.1  # not clipped flat


@EVERY
def test_prompt_and_seed_decide_the_sample(key, built):
    pipe = built(key)
    one = draw(pipe, key)
    assert torch.equal(draw(pipe, key), one)
    assert (one[:2] - one[2:]).abs().amax(tuple(range(1, one.ndim))).min() > 1e-4  # the prompt
    assert (one[0] - one[1]).abs().max() > 1e-2  # the generator in the list
    assert (draw(pipe, key, seed=9) - one).abs().max() > 1e-2
    # Batches do other sums than single samples; PixArt's latents are hundreds wide.
    torch.testing.assert_close(draw(pipe, key, PROMPTS[1:]), one[2:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("key", [key for key, tiny in testing.PIPELINES.items() if tiny.kept])
def test_the_same_from_a_folder(key, built, tmp_path):
    built(key).save_pretrained(tmp_path)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path, use_safetensors=True)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is type(built(key))
    assert type(loaded.scheduler) is type(built(key).scheduler)
    assert torch.equal(draw(loaded, key), draw(built(key), key))


@EVERY
def test_is_built_from_one_seed_without_touching_the_callers(key, built):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    twin = testing.PIPELINES[key].make()
    assert torch.equal(torch.get_rng_state(), before)
    assert twin.progress_bar([]).disable
    for name, module in modules(twin).items():
        assert not module.training
        for one, other in zip(module.parameters(), modules(built(key))[name].parameters(), strict=True):
            assert torch.equal(one, other)
    assert sum(p.numel() for module in modules(twin).values() for p in module.parameters()) < LARGE.get(key, 250_000)


def modules(pipe):
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


PICTURE = torch.linspace(0, 1, 3 * 16 * 16).view(1, 3, 16, 16)
MASKED = {"image": PICTURE, "mask_image": torch.ones(1, 1, 16, 16)}


@pytest.mark.parametrize("family", ["StableDiffusion", "StableDiffusionXL"])
@pytest.mark.parametrize(
    ("task", "call", "channels"),
    [
        ("Img2Img", {"image": PICTURE, "strength": 0.8}, 4),
        ("Inpaint", {**MASKED, "strength": 0.9}, 4),
        ("Inpaint", {**MASKED, "strength": 0.9}, 9),
        ("ControlNet", {"image": PICTURE}, 4),
    ],
)
def test_other_tasks_see_their_picture_and_load_from_a_folder(family, task, call, channels, tmp_path):
    make = testing.tiny_stable_diffusion_xl if "XL" in family else testing.tiny_stable_diffusion
    pipe = make(getattr(diffusers, f"{family}{task}Pipeline"), in_channels=channels)
    options = {"num_images_per_prompt": 2, "num_inference_steps": 4, "output_type": "pt"}

    def task_of(pipe, **changes):
        generators = [torch.Generator().manual_seed(i) for i in range(4)]
        return pipe(prompt=PROMPTS, generator=generators, **{**options, **call, **changes})[0]

    output = task_of(pipe)
    assert output.shape == (4, 3, 16, 16)
    assert output.isfinite().all()
    assert not torch.equal(task_of(pipe, image=1 - PICTURE), output)
    pipe.save_pretrained(tmp_path)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path, use_safetensors=True)
    assert type(loaded) is type(pipe)
    assert torch.equal(task_of(loaded), output)


def test_a_modular_pipeline_draws_the_same_from_a_folder(tmp_path):
    pipe = testing.tiny_modular_stable_diffusion_xl()
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    call = {"prompt": PROMPTS, "num_images_per_prompt": 2, "num_inference_steps": 2, "output_type": "pt"}
    images = pipe(generator=generators, output="images", **call)
    assert images.shape == (4, 3, 16, 16)
    pipe.save_pretrained(str(tmp_path), overwrite_modular_index=True)  # it takes no Path
    loaded = diffusers.ModularPipeline.from_pretrained(tmp_path)
    loaded.load_components()
    loaded.update_components(guider=pipe.guider)  # the folder has none, so the default comes back
    again = [torch.Generator().manual_seed(i) for i in range(4)]
    assert torch.equal(loaded(generator=again, output="images", **call), images)


TOKENIZERS = [testing._text.t5_tokenizer, testing._text.gemma_tokenizer]
TOKENIZERS += [testing._language.qwen_tokenizer, testing._language.roberta_tokenizer]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_letters_are_tokens(tokenizer):
    tokenizer = tokenizer()
    ids = [tuple(tokenizer(prompt).input_ids) for prompt in ("a cat", "a cut", "a Cat", "acat", "a cat!", "a cat 7")]
    assert len(set(ids)) == len(ids)
    assert all(tokenizer.unk_token_id not in row for row in ids)
