"""One suite over every pipeline: tiny random weights, real classes, the scheduler of the published weights."""

import copy
import json
from contextlib import contextmanager

import diffusers
import pytest
import torch
from oracle import output_for, output_of
from test_guidance import naive

from benchmarks.pipelines import check
from lidar_sampling import LiDAR, LookaheadBank, guide, record, testing
from lidar_sampling._call import for_batch
from lidar_sampling._draw import Item, draw
from lidar_sampling._hooks import Hook, attach
from lidar_sampling._media import to_pil
from lidar_sampling.cli import main

PROMPTS = ["a cat", "a dog"]
EVERY = pytest.mark.parametrize("key", testing.PIPELINES)


@pytest.fixture(scope="module")
def built():
    """Return pipelines by key, each built once; tests leave them unchanged."""
    pipes = {}
    return lambda key: pipes.setdefault(key, testing.PIPELINES[key].make())


def run(pipe, key, *, images=2, **changes):
    """Draw two prompts, ``images`` samples each, always from the same noise."""
    call, per_prompt = testing.PIPELINES[key][1:3]
    several = {per_prompt: images} if per_prompt else {}
    prompts = [p for p in PROMPTS for _ in range(1 if per_prompt else images)]
    output = pipe(
        prompt=prompts,
        generator=[torch.Generator().manual_seed(i) for i in range(2 * images)],
        **{"num_inference_steps": 2, "output_type": "pt", **several, **for_batch(call, prompts, pipe), **changes},
    )
    return output[0]


def banks_like(latents, n=3):
    """Return one bank per prompt in the space of ``latents`` (B, *)."""
    generator = torch.Generator().manual_seed(7)
    return [
        LookaheadBank(torch.randn(n, *latents.shape[1:], generator=generator), {"r": torch.arange(float(n))}, prompt)
        for prompt in PROMPTS
    ]


def recorded(pipe, key, **changes):
    with record(pipe) as recording:
        run(pipe, key, **changes)
    return recording.samples


@EVERY
def test_attaching_without_effect_is_bit_identical(key, built):
    pipe = built(key)
    plain = run(pipe, key)
    with record(pipe) as recording:
        assert torch.equal(run(pipe, key), plain)
    banks = banks_like(recording.samples)
    for scale, reward_scale in ((0.0, 3.0), (3.0, 0.0)):
        with guide(pipe, banks, scale=scale, reward_scale=reward_scale, window=(1.0, 0.0)):
            assert torch.equal(run(pipe, key), plain)
    with guide(pipe, banks, scale=1.0, reward_scale=3.0, window=(1.0, 0.0)):
        assert not torch.equal(run(pipe, key), plain)
    assert torch.equal(run(pipe, key), plain)


class Spy(Hook):
    """A hook that keeps the scheduler's arguments of the first step."""

    first = None

    def before(self, step):
        if self.first is None:
            self.first = {"sample": step.x_t.clone(), "model_output": output_of(step)}
        return step


@contextmanager
def spied(pipe):
    spy = Spy()
    with attach(pipe.scheduler, spy):
        yield spy


@EVERY
def test_the_clean_prediction_moves_by_scale_times_delta(key, built):
    """At the first step the plain and the guided run have the same sample; Delta is restated in float64."""
    pipe = built(key)
    with spied(pipe) as plain:
        latents = recorded(pipe, key)
    banks = banks_like(latents)
    with guide(pipe, banks, scale=0.7, reward_scale=2.0, window=(1.0, 0.0)) as trace, spied(pipe) as guided:
        run(pipe, key)
    x = plain.first["sample"]
    assert torch.equal(guided.first["sample"], x)
    level = trace.steps[0].level
    parts = []
    for part, bank in zip(x.chunk(2), banks, strict=True):
        _, tilted, plain_weights, _ = naive(part, bank.samples, bank.reward(), level.alpha, level.sigma, 2.0)
        parts.append((tilted - plain_weights) @ bank.samples.double().flatten(1))
    delta = torch.cat(parts).view(x.shape)
    moved, still = (output_for(pipe.scheduler, 0, x0, level.alpha, level.sigma) for x0 in (0.7 * delta, 0 * delta))
    achieved = (guided.first["model_output"] - plain.first["model_output"]).double()
    torch.testing.assert_close(achieved, moved - still, rtol=2e-3, atol=2e-3 * (moved - still).abs().max().item())
    assert delta.abs().max() > 1e-3


@EVERY
def test_banks_are_recorded_in_the_space_of_the_sampler(key, built):
    if key == "ltx-2":
        pytest.skip("what it returns as latents is no longer in the sampler's units")
    pipe = built(key)
    latents = recorded(pipe, key)
    direct = run(pipe, key, output_type="latent")
    assert torch.equal(latents.reshape(direct.shape), direct)


def sampler(pipe, key, **changes):
    call = testing.PIPELINES[key].call
    options = {"n": 4, "steps": 3, "lookahead": "own:2", "scale": 1.0, "reward_scale": 1e6, "window": (1.0, 0.0)}
    return LiDAR(pipe, reward=mean, pipe_kwargs=call, **{**options, **changes})


def mean(*, images, prompts):
    return images.flatten(1).mean(1)


@EVERY
def test_both_phases_for_several_prompts_and_images(key, built):
    lidar = sampler(built(key), key)
    result = lidar(PROMPTS, images=2, seed=1)
    assert result.images.shape[:2] == (2, 2)
    assert result.images.isfinite().all()
    assert result.rewards["mean"].shape == (2, 2)
    assert [bank.prompt for bank in result.banks] == PROMPTS
    assert result.banks[0].samples.shape[1:] == result.latents.shape[2:]
    vanilla = lidar.vanilla(PROMPTS, images=2, seed=1)
    assert not torch.equal(result.images, vanilla.images)
    # Guided latents lie nearer to the best member of their bank than vanilla ones from the same noise. (Random
    # noise predictions at PixArt's alpha = .006 make latents hundreds wide, where weights collapse at once.)
    for row, bank in enumerate(result.banks if key != "pixart-sigma" else []):
        best = bank.best(1).samples.flatten(1)
        near, far = ((r.latents[row].flatten(1) - best).norm(dim=1).mean() for r in (result, vanilla))
        assert near < far
    alone = lidar("a dog", images=2, seed=1)
    torch.testing.assert_close(alone.latents[0], result.latents[1], rtol=1e-3, atol=1e-2)


@EVERY
def test_few_steps_of_dpm_solver(key, built):
    if key in ("sana-sprint", "mochi"):
        pytest.skip("TrigFlow and levels that count up have no DPM-Solver")
    pipe = built(key)
    scheduler = pipe.scheduler
    (bank,) = sampler(pipe, key, lookahead="dpm:3").look("a cat")
    assert bank.samples.isfinite().all()
    assert pipe.scheduler is scheduler


@EVERY
def test_copies_and_files_are_plain_inside_the_block(key, built, tmp_path):
    pipe = built(key)
    banks = banks_like(recorded(pipe, key))
    with guide(pipe, banks, scale=1.0, reward_scale=1.0, window=(1.0, 0.0)):
        twin = copy.deepcopy(pipe.scheduler)
        pipe.scheduler.save_pretrained(tmp_path)
        run(pipe, key)
        assert type(twin) is type(pipe.scheduler).__bases__[0]
    assert (
        json.loads((tmp_path / "scheduler_config.json").read_text())["_class_name"] == type(pipe.scheduler).__name__
    )
    loaded = type(pipe.scheduler).from_pretrained(tmp_path)
    plain = {k: v for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
    assert {k: v for k, v in loaded.config.items() if not k.startswith("_")} == plain


@EVERY
def test_the_command_draws(key, built, tmp_path, capfd):
    if "image" in testing.PIPELINES[key].call:
        pytest.skip("the command takes no pictures")
    if not testing.PIPELINES[key].kept:
        pytest.skip("a folder does not keep its stand-ins")
    built(key).save_pretrained(tmp_path / "model")
    arguments = ["generate", *PROMPTS, "--model", str(tmp_path / "model"), "--reward", "brightness"]
    arguments += ["--n", "3", "--lookahead", "own:2", "--steps", "3", "--images", "2", "--json"]
    arguments += [
        part
        for name, value in testing.PIPELINES[key].call.items()
        for part in ("--call", f"{name}={json.dumps(value)}")
    ]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--out", str(tmp_path / "out"), "--beside-vanilla"])
    assert stop.value.code == 0
    result = json.loads(capfd.readouterr().out)
    files = [
        file for entry in result["prompts"] for method in ("lidar", "vanilla") for file in entry[method]["images"]
    ]
    assert len(files) == 8
    assert all((tmp_path / "out" / file).stat().st_size > 50 for file in files)
    assert {file.rpartition(".")[2] for file in files} <= {"png", "webp", "wav"}


PICTURE = torch.linspace(0, 1, 3 * 16 * 16).view(1, 3, 16, 16)
MASK = torch.zeros(1, 1, 16, 16)
MASK[..., 8:] = 1
INPAINT = {"image": PICTURE, "mask_image": torch.ones(1, 1, 16, 16), "strength": 0.9}


def as_kind(picture, kind):
    """Return a picture (1, C, H, W) in a form that users have."""
    if kind == "tensor":
        return picture
    array = picture[0].movedim(0, -1).numpy()
    return (
        array if kind == "numpy" else to_pil(picture[0]) if array.shape[-1] == 3 else to_pil(picture.tile(3, 1, 1)[0])
    )


class TestOtherTasks:
    """Image-to-image, inpainting and ControlNet: the picture goes in by ``pipe_kwargs``."""

    @pytest.mark.parametrize("family", ["StableDiffusion", "StableDiffusionXL"])
    @pytest.mark.parametrize(
        ("task", "call", "channels"),
        [
            ("Img2Img", {"image": PICTURE, "strength": 0.8}, 4),
            ("Inpaint", INPAINT, 4),
            ("Inpaint", INPAINT, 9),
            ("ControlNet", {"image": PICTURE}, 4),
            ("ControlNetImg2Img", {"image": PICTURE, "control_image": PICTURE, "strength": 0.8}, 4),
        ],
    )
    def test_draw_guided(self, family, task, call, channels):
        make = testing.tiny_stable_diffusion_xl if "XL" in family else testing.tiny_stable_diffusion
        pipe = make(getattr(diffusers, f"{family}{task}Pipeline"), in_channels=channels)
        options = {"n": 4, "steps": 5, "lookahead": "own:4", "scale": 1.0, "reward_scale": 1e6, "window": (1.0, 0.0)}
        lidar = LiDAR(pipe, reward=mean, pipe_kwargs=call, **options)
        result, vanilla = lidar(PROMPTS, images=2), lidar.vanilla(PROMPTS, images=2)
        assert result.images.shape == (2, 2, 3, 16, 16)
        assert result.banks[0].samples.shape == (4, 4, 8, 8)
        assert not torch.equal(result.images, vanilla.images)
        free = LiDAR(pipe, reward=mean, pipe_kwargs=call, **{**options, "scale": 0.0})(PROMPTS, images=2)
        assert torch.equal(free.images, vanilla.images)
        other = LiDAR(pipe, reward=mean, pipe_kwargs={**call, "image": 1 - PICTURE}, **options)
        assert not torch.equal(other.vanilla(PROMPTS, images=2).images, vanilla.images)

    @pytest.mark.parametrize(
        ("make", "cls"),
        [
            (testing.tiny_flux, "FluxImg2ImgPipeline"),
            (testing.tiny_flux, "FluxInpaintPipeline"),
            (testing.tiny_qwen_image, "QwenImageImg2ImgPipeline"),
            (testing.tiny_qwen_image, "QwenImageInpaintPipeline"),
            (testing.tiny_z_image, "ZImageImg2ImgPipeline"),
            (testing.tiny_z_image, "ZImageInpaintPipeline"),
        ],
    )
    @pytest.mark.parametrize("lookahead", ["own:4", "dpm:4"])
    def test_draw_guided_by_flow_models(self, make, cls, lookahead):
        call = {"height": 16, "width": 16, **(INPAINT if "Inpaint" in cls else {"image": PICTURE, "strength": 0.8})}
        call |= {"max_sequence_length": 64} if "ZImage" in cls else {}
        options = {
            "n": 4,
            "steps": 5,
            "lookahead": lookahead,
            "scale": 1.0,
            "reward_scale": 1e6,
            "window": (1.0, 0.0),
        }
        lidar = LiDAR(make(getattr(diffusers, cls)), reward=mean, pipe_kwargs=call, **options)
        result, vanilla = lidar(PROMPTS, images=2), lidar.vanilla(PROMPTS, images=2)
        assert result.images.shape == (2, 2, 3, 16, 16)
        assert not torch.equal(result.images, vanilla.images)
        lidar.batch_size = 1
        torch.testing.assert_close(lidar(PROMPTS, images=2).latents, result.latents, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("kind", ["tensor", "PIL", "numpy"])
    @pytest.mark.parametrize("family", ["StableDiffusion", "StableDiffusionXL"])
    @pytest.mark.parametrize(
        ("task", "call", "channels"),
        [
            ("Img2Img", {"image": PICTURE, "strength": 0.8}, 4),
            ("Inpaint", {**INPAINT, "mask_image": MASK}, 4),
            ("Inpaint", {**INPAINT, "mask_image": MASK}, 9),
            ("ControlNet", {"image": PICTURE}, 4),
            ("ControlNetInpaint", {**INPAINT, "mask_image": MASK, "control_image": PICTURE}, 4),
        ],
    )
    def test_a_sample_does_not_depend_on_its_place_in_the_batch(self, family, task, call, channels, kind):
        """The picture's latents are drawn; with one picture for all, by the first sample's generator."""
        make = testing.tiny_stable_diffusion_xl if "XL" in family else testing.tiny_stable_diffusion
        pipe = make(getattr(diffusers, f"{family}{task}Pipeline"), in_channels=channels)
        call = {
            name: as_kind(value, kind) if isinstance(value, torch.Tensor) else value for name, value in call.items()
        }
        options = {"n": 1, "steps": 3, "scale": 1.0, "reward_scale": 1.0}
        alone, together = (
            LiDAR(pipe, reward=mean, pipe_kwargs=call, batch_size=size, **options).vanilla(PROMPTS, images=2)
            for size in (1, 4)
        )
        torch.testing.assert_close(together.latents, alone.latents, rtol=1e-4, atol=1e-4)
        assert alone.latents[0, 0].sub(alone.latents[0, 1]).abs().max() > 0.1

    @pytest.mark.parametrize(
        ("make", "cls"),
        [
            (testing.tiny_stable_diffusion, "StableDiffusionInpaintPipeline"),
            (testing.tiny_stable_diffusion_xl, "StableDiffusionXLInpaintPipeline"),
            (testing.tiny_flux, "FluxInpaintPipeline"),
            (testing.tiny_qwen_image, "QwenImageInpaintPipeline"),
            (testing.tiny_z_image, "ZImageInpaintPipeline"),
        ],
    )
    def test_what_is_pasted_after_the_last_step_is_in_the_bank(self, make, cls):
        """Latents before it differ between members although all have the same picture."""
        pipe = make(getattr(diffusers, cls))
        call = {"height": 16, "width": 16, **INPAINT, "mask_image": MASK, "num_inference_steps": 3}
        items = [Item("a cat", 0), Item("a cat", 1)]
        (drawn,) = draw(pipe, items, call=call, batch_size=2, decoded=False)
        torch.testing.assert_close(drawn.latents, drawn.images, rtol=0, atol=0)

    def test_a_first_frame_that_is_the_picture_weighs_no_members(self):
        """Wan 2.2 5B has noise there, and puts the picture in its place at the end."""
        pipe = testing.tiny_wan(diffusers.WanImageToVideoPipeline, first_frame=True)
        call = {"height": 16, "width": 16, "num_frames": 5, "image": PICTURE[0]}
        options = {"n": 3, "steps": 3, "lookahead": "own:2", "scale": 1.0, "reward_scale": 1e3}
        (bank,) = LiDAR(pipe, reward=mean, pipe_kwargs=call, **options).look(PROMPTS[:1])
        assert bank.samples[:, :, 0].std(0).max() == 0
        assert bank.samples[:, :, 1:].std(0).max() > 0.1

    def test_know_the_defaults_of_their_family(self):
        pipe = testing.tiny_stable_diffusion_xl(diffusers.StableDiffusionXLControlNetPipeline)
        assert LiDAR(pipe, reward=mean).settings.scale == 8.0


class TestModular:
    @pytest.mark.parametrize("guider", ["ClassifierFreeGuidance", "AdaptiveProjectedGuidance"])
    def test_pipelines_and_guiders(self, guider):
        pipe = testing.tiny_modular_stable_diffusion_xl(getattr(diffusers, guider)(guidance_scale=5.0))
        options = {"n": 4, "steps": 4, "lookahead": "dpm:3", "scale": 1.0, "reward_scale": 1e6, "window": (1.0, 0.0)}
        lidar = LiDAR(pipe, reward=mean, pipe_kwargs={"height": 16, "width": 16}, **options)
        result, vanilla = lidar(PROMPTS, images=2), lidar.vanilla(PROMPTS, images=2)
        assert result.images.shape == (2, 2, 3, 16, 16)
        assert len(result.trace.steps) == 4
        assert not torch.equal(result.images, vanilla.images)
        with pytest.raises(TypeError, match="takes no argument 'hight'"):
            LiDAR(pipe, reward=mean, pipe_kwargs={"hight": 16}, **options)("a cat")

    def test_equals_the_classic_pipeline(self):
        """The same components with the same guidance draw the same guided pictures."""
        options = {"n": 4, "steps": 4, "lookahead": "dpm:3", "scale": 1.0, "reward_scale": 1e6, "window": (1.0, 0.0)}
        size = {"height": 16, "width": 16}
        classic = LiDAR(
            testing.tiny_stable_diffusion_xl(), reward=mean, pipe_kwargs=size, guidance_scale=5.0, eta=None, **options
        )
        modular = LiDAR(testing.tiny_modular_stable_diffusion_xl(), reward=mean, pipe_kwargs=size, **options)
        one, other = (lidar(PROMPTS, images=2) for lidar in (classic, modular))
        torch.testing.assert_close(other.latents, one.latents, rtol=1e-3, atol=1e-2)


def test_ltx_condition_pipelines_are_refused_by_name():
    pipe = testing.tiny_ltx(diffusers.LTXConditionPipeline)
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()  # its models are published without dynamic shifting
    call = testing.PIPELINES["ltx"].call
    latents = []
    with record(pipe) as recording:
        pipe(prompt="a cat", num_inference_steps=2, output_type="pt", **call)
    latents = recording.samples
    bank = LookaheadBank(
        torch.zeros_like(latents) + torch.arange(2.0).view(2, 1, 1), {"r": torch.arange(2.0)}, "a cat"
    )
    with (
        pytest.raises(ValueError, match=r"LTXConditionPipeline|per_token_timesteps"),
        guide(pipe, bank, scale=1.0, reward_scale=1.0),
    ):
        pipe(prompt="a cat", num_inference_steps=2, output_type="pt", **call)


class TestMemorySavers:
    """Memory savers of diffusers do not change guidance."""

    @EVERY
    def test_offloading_hooks(self, key, built):
        from accelerate import cpu_offload

        expected = sampler(built(key), key)("a cat", images=1)
        pipe = testing.PIPELINES[key].make()
        for name, module in pipe.components.items():
            if isinstance(module, torch.nn.Module) and name in ("unet", "transformer"):
                cpu_offload(module, execution_device="cpu")
        result = sampler(pipe, key)("a cat", images=1)
        torch.testing.assert_close(result.latents, expected.latents, rtol=1e-4, atol=1e-4)

    @EVERY
    def test_slicing_and_tiling_of_the_decoder(self, key, built):
        pipe = testing.PIPELINES[key].make()
        for saver in ("enable_slicing", "enable_tiling"):
            if hasattr(pipe.vae, saver):
                getattr(pipe.vae, saver)()
        result, expected = (sampler(p, key)("a cat", images=2) for p in (pipe, built(key)))
        torch.testing.assert_close(result.images, expected.images, rtol=0, atol=2e-3)

    @EVERY
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision(self, key, dtype):
        if key == "kandinsky-5":
            pytest.skip("its embedding of the time stays in float32, by an autocast of CUDA alone")
        pipe = testing.PIPELINES[key].make()
        pipe.to(dtype)
        result = sampler(pipe, key)("a cat", images=2)
        assert result.images.dtype == torch.float32
        assert result.latents.isfinite().all()
        assert all(row["shift_norm"][0] >= 0 for row in result.trace.rows())

    @EVERY
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_autocast(self, key, built, dtype):
        if (key, dtype) == ("pixart-sigma", torch.float16):
            pytest.skip("latents of random noise predictions are a hundred times too wide and overflow")
        with torch.autocast("cpu", dtype):
            result = sampler(built(key), key)("a cat", images=2)
        assert result.latents.isfinite().all()

    @EVERY
    def test_a_compiled_denoiser(self, key, built):
        pipe = testing.PIPELINES[key].make()
        name = "unet" if hasattr(pipe, "unet") else "transformer"
        setattr(pipe, name, torch.compile(getattr(pipe, name), backend="eager"))
        result, expected = (sampler(p, key)("a cat", images=1) for p in (pipe, built(key)))
        torch.testing.assert_close(result.latents, expected.latents, rtol=1e-3, atol=1e-3)


def test_the_program_of_the_long_tail_tells_works_from_wrong(monkeypatch):
    """The program is ``benchmarks/pipelines.py``, which checks the dummy components of diffusers' own tests."""
    pipe = testing.tiny_stable_diffusion(diffusers.StableDiffusionInpaintPipeline)
    call = {**INPAINT, "mask_image": MASK}
    assert check(pipe, call) == ("works", "")
    monkeypatch.setattr("lidar_sampling._call._pairs", lambda pipe, name: False)  # then its picture has one latent
    verdict, reason = check(pipe, call)
    assert verdict == "wrong"
    assert reason.startswith("a sample depends on its batch, by")
