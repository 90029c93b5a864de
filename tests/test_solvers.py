"""Few-step solvers: the presets are well formed, and no lookahead model leaks into the target."""

import copy
import logging
import sys
from functools import partial

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

from lidar_sampling import BankError, LiDAR, accelerate, solvers, testing
from lidar_sampling._hub import Published
from lidar_sampling.solvers import PRESETS, Solver, load, use_solver


def run(pipe, **call):
    generator = torch.Generator().manual_seed(0)
    return pipe("a cat", num_inference_steps=3, generator=generator, output_type="pt", **call).images


def make(pipe, lookahead, **options):
    settings = {"n": 3, "steps": 3, "scale": 2.0, "reward_scale": 1e6, "guidance_scale": 3.0}
    return LiDAR(pipe, reward=testing.brightness, lookahead=lookahead, **{**settings, **options})


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """Save a LoRA of the tiny UNet, in the file format of the published ones."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = testing.tiny_stable_diffusion_xl()
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    folder = tmp_path_factory.mktemp("lora")
    layers = get_peft_model_state_dict(pipe.unet)
    type(pipe).save_lora_weights(folder, unet_lora_layers={k: 20 * v for k, v in layers.items()})
    return folder / "pytorch_lora_weights.safetensors"


class TestPresets:
    @pytest.mark.parametrize("preset", PRESETS, ids=lambda p: f"{p.name}-{p.bases[0]}")
    def test_are_well_formed(self, preset):
        assert preset.name.endswith(f":{preset.steps}")
        assert preset.bases
        assert preset.note
        assert isinstance(preset.weights, Published)
        assert preset.weights.licence
        assert preset.scheduler is None or hasattr(diffusers, preset.scheduler)
        assert (preset.pipeline is None) == (preset.weights.file is not None)
        if "NC" in preset.weights.licence or "non-commercial" in preset.weights.licence:
            assert not preset.weights.commercial
        if preset.scheduler is not None:
            known = diffusers.__dict__[preset.scheduler]().config
            assert set(preset.settings) <= set(known)

    def test_do_not_claim_a_family_twice(self):
        claims = [(preset.name, base) for preset in PRESETS for base in preset.bases]
        assert len(claims) == len(set(claims))

    def test_are_chosen_by_the_family_of_the_target(self):
        xl, sd = testing.tiny_stable_diffusion_xl(), testing.tiny_stable_diffusion()
        assert solvers.load("lcm-lora:4", xl).lora.repo == "latent-consistency/lcm-lora-sdxl"
        assert solvers.load("lcm-lora:4", sd).lora.repo == "latent-consistency/lcm-lora-sdv1-5"
        with pytest.raises(
            ValueError, match="dmd2:4 is made for Stable Diffusion XL, not for StableDiffusionPipeline"
        ):
            make(sd, "dmd2:4")

    def test_dpm_is_the_solver_of_the_ode_whatever_the_target_is_sampled_by(self):
        pipe = testing.tiny_stable_diffusion()
        (plain,) = make(pipe, "dpm:3").look("a cat")
        pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
            pipe.scheduler.config, algorithm_type="sde-dpmsolver++"
        )
        assert torch.equal(make(pipe, "dpm:3").look("a cat")[0].samples, plain.samples)

    @pytest.mark.parametrize("name", ["dpm:3-unguided", "own:3-unguided", "dpm:3-karras-unguided"])
    def test_without_guidance_cost_half(self, name):
        pipe = testing.tiny_stable_diffusion()
        guided, unguided = (
            make(pipe, kind).draw_banks(["a cat"], 0) for kind in (name.removesuffix("-unguided"), name)
        )
        assert unguided[1].network_evaluations * 2 == guided[1].network_evaluations
        assert not torch.allclose(unguided[0][0].samples, guided[0][0].samples)
        (by_hand,) = make(pipe, name.removesuffix("-unguided"), guidance_scale=1.0).look("a cat")
        assert torch.equal(unguided[0][0].samples, by_hand.samples)

    def test_of_no_such_name(self):
        with pytest.raises(ValueError, match="unknown solver 'dmd:4'; did you mean 'dmd2:4'"):
            solvers.load("dmd:4")

    def test_without_a_hub_say_what_to_download(self):
        with pytest.raises(FileNotFoundError, match=r"hf download tianweiy/DMD2 dmd2_sdxl_1step_unet_fp16\.bin"):
            make(testing.tiny_stable_diffusion_xl(), "dmd2:1").look("a cat")

    def test_say_when_they_are_not_for_commerce(self, caplog):
        with caplog.at_level(logging.WARNING), pytest.raises(FileNotFoundError):
            make(testing.tiny_stable_diffusion_xl(), "dmd2:1").look("a cat")
        assert "dmd2_sdxl_1step_unet_fp16.bin" in caplog.text
        assert "(CC BY-NC-SA 4.0; non-commercial)" in caplog.text


DPM_CASES = [
    ("DDIMScheduler", {}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    ("EDMEulerScheduler", {}),
    ("CosineDPMSolverMultistepScheduler", {}),
    ("CogVideoXDDIMScheduler", {"prediction_type": "v_prediction"}),
]


class TestDPM:
    @pytest.mark.parametrize(("name", "config"), DPM_CASES, ids=lambda c: c if isinstance(c, str) else "")
    def test_keeps_the_noise_schedule_and_what_the_model_predicts(self, name, config):
        own = getattr(diffusers, name)(**config)
        solver = solvers.load("dpm:4").scheduler(own)
        assert "DPM" in type(solver).__name__
        solver.set_timesteps(4)
        assert len(solver.timesteps) == 4
        assert solver.config.prediction_type == own.config.get("prediction_type", "flow_prediction")
        if "shift" in config:
            assert solver.config.flow_shift == 3.0
        if hasattr(own, "alphas_cumprod"):
            assert torch.equal(solver.alphas_cumprod, own.alphas_cumprod)

    def test_shifts_as_flow_pipelines_ask(self):
        own = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        solver = solvers.load("dpm:4").scheduler(own)
        solver.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.7)
        assert solver.config.flow_shift == pytest.approx(torch.tensor(0.7).exp().item())
        solver.set_timesteps(sigmas=[1.0, 0.9, 0.5, 0.25], timesteps=[1000, 900, 500, 250], mu=0.7)
        uneven, shift = torch.tensor([0.999, 0.9, 0.5, 0.25, 0.0]), torch.tensor(0.7).exp()
        expected = (shift * uneven / (1 + (shift - 1) * uneven)).clamp(max=0.999)
        torch.testing.assert_close(solver.sigmas[1:], expected[1:])
        assert solver.sigmas[0] == pytest.approx(0.999)
        torch.testing.assert_close(solver.timesteps, 1000 * solver.sigmas[:-1])

    def test_shifts_linearly_where_the_target_does(self):
        own = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear")
        solver = solvers.load("dpm:4").scheduler(own)
        solver.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.7)
        sigma = np.linspace(1 - 1 / 1000, 0, 5)[1:4]  # what the solver shifts
        assert solver.sigmas[1:4].tolist() == pytest.approx(0.7 * sigma / (1 + (0.7 - 1) * sigma))

    @pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
    def test_of_a_flow_stays_within_a_flow(self, spacing):
        own = diffusers.FlowMatchEulerDiscreteScheduler(**{f"use_{spacing}_sigmas": True})
        solver = solvers.load("dpm:4").scheduler(own)
        solver.set_timesteps(4)
        assert solver.sigmas.max() <= 1  # 157 where the setting is carried over
        assert solver.sigmas[-1] == 0

    def test_of_a_flow_noises_for_pictures_that_pipelines_start_from(self):
        solver = solvers.load("dpm:4").scheduler(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
        own = diffusers.FlowMatchEulerDiscreteScheduler()
        solver.set_timesteps(4)
        own.set_timesteps(sigmas=solver.sigmas[:-1].tolist())
        x, noise = torch.randn(2, 1, 3)
        for scheduler in (solver, own):
            scheduler.set_begin_index(1)
        noised = [s.scale_noise(x, s.timesteps[1:2], noise) for s in (solver, own)]
        torch.testing.assert_close(*noised)

    @pytest.mark.parametrize("kind", ["Img2Img", "Inpaint"])
    def test_draws_for_flow_pipelines_that_start_from_a_picture(self, kind):
        pipe = getattr(diffusers, f"Flux{kind}Pipeline")(**testing.tiny_flux().components)
        picture = PIL.Image.new("RGB", (16, 16), "red")
        mask = {"mask_image": PIL.Image.new("L", (16, 16), 255)} if kind == "Inpaint" else {}
        pipe.scheduler = solvers.load("dpm:4").scheduler(pipe.scheduler)
        size = {"height": 16, "width": 16}
        images = run(pipe, image=picture, strength=0.8, **mask, **size)
        assert images.isfinite().all()

    def test_karras_takes_the_place_of_other_spacings(self):
        own = diffusers.EulerDiscreteScheduler(use_beta_sigmas=True)
        assert solvers.load("dpm:4-karras").scheduler(own).config.use_karras_sigmas

    def test_is_refused_where_levels_are_not_those_of_a_flow_or_a_diffusion(self):
        inverted = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
        cosmos = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
        cosmos.register_to_config(sigma_max=80.0, sigma_min=0.002)
        continuous = diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction")
        for own, why in ((inverted, "levels count up"), (cosmos, "EDM levels"), (continuous, "'continuous'")):
            with pytest.raises(ValueError, match=f"there is no DPM-Solver for .*{why}.*; use own:N"):
                solvers.load("dpm:4").scheduler(own)

    def test_is_refused_where_there_is_none(self):
        pipe = testing.tiny_stable_diffusion()
        pipe.scheduler = diffusers.SCMScheduler()
        with pytest.raises(ValueError, match="no DPM-Solver for the noise schedule of SCMScheduler; use own:N"):
            make(pipe, "dpm:3").look("a cat")
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        with pytest.raises(ValueError, match="Karras's noise levels are not those of FlowMatchEuler"):
            make(pipe, "dpm:3-karras").look("a cat")


class TestNothingLeaks:
    """The target's weights, modules and pictures are unchanged, to the bit."""

    def check(self, pipe, solver):
        state = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
        modules = [name for name, _ in pipe.unet.named_modules()]
        unet, scheduler, plain = pipe.unet, pipe.scheduler, run(pipe)
        lidar = make(pipe, solver)
        (bank,) = lidar.look("a cat")
        (own,) = make(pipe, Solver("base", solver.steps, solver.scheduler, guidance_scale=1.0)).look("a cat")
        assert (bank.samples - own.samples).abs().max() > 1e-3  # the lookahead model is another
        assert pipe.unet is unet
        assert pipe.scheduler is scheduler
        assert [name for name, _ in pipe.unet.named_modules()] == modules
        assert all(torch.equal(value, state[name]) for name, value in pipe.unet.state_dict().items())
        assert torch.equal(run(pipe), plain)
        result = lidar("a cat", images=1, banks=bank)
        assert torch.equal(run(pipe), plain)
        assert result.trace.steps
        return lidar

    def test_of_a_lora(self, lora):
        pipe = testing.tiny_stable_diffusion_xl()
        lidar = self.check(pipe, Solver("mine:2", 2, "LCMScheduler", guidance_scale=1.0, lora=lora))
        shared = {p.data_ptr() for p in pipe.unet.parameters()}
        assert shared <= {p.data_ptr() for p in lidar.lookahead_pipeline(lidar._solver).unet.parameters()}
        assert lidar.lookahead_pipeline(lidar._solver).vae is pipe.vae

    def test_of_a_lora_beside_the_users_own(self, lora):
        pipe = testing.tiny_stable_diffusion_xl()
        pipe.load_lora_weights(str(lora.parent), weight_name=lora.name, adapter_name="style")
        pipe.set_adapters(["style"], [0.5])
        lidar = self.check(pipe, Solver("mine:2", 2, guidance_scale=1.0, lora=lora, lora_scale=0.25))
        assert pipe.get_active_adapters() == ["style"]
        assert lidar.lookahead_pipeline(lidar._solver).get_active_adapters() == ["style", "lidar-lookahead"]

    def test_of_a_lora_on_a_compiled_denoiser(self, lora):
        pipe = testing.tiny_stable_diffusion_xl()
        pipe.unet = torch.compile(pipe.unet, backend="eager")
        lidar = make(pipe, Solver("mine:2", 2, guidance_scale=1.0, lora=lora))
        assert lidar("a cat", images=1).trace.seen == 3

    def test_of_a_lora_on_an_accelerated_denoiser(self, lora):
        pipe = testing.tiny_stable_diffusion_xl()
        accelerate(pipe, compile="whole", backend="eager")
        self.check(pipe, Solver("mine:2", 2, "LCMScheduler", guidance_scale=1.0, lora=lora))

    def test_of_a_denoiser(self, tmp_path):
        other = testing.tiny_stable_diffusion().unet
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.1)
        torch.save(other.state_dict(), tmp_path / "unet.bin")
        solver = Solver(
            "mine:1", 1, "LCMScheduler", timesteps=(399,), guidance_scale=1.0, denoiser=tmp_path / "unet.bin"
        )
        lidar = self.check(testing.tiny_stable_diffusion(), solver)
        assert lidar.look("a cat")[0].provenance["solver"]["scheduler"][2] == [399]

    def test_of_a_pipeline(self):
        twin = testing.tiny_stable_diffusion()
        with torch.no_grad():
            for parameter in twin.unet.parameters():
                parameter.mul_(1.1)
        self.check(testing.tiny_stable_diffusion(), Solver("turbo:2", 2, guidance_scale=1.0, pipeline=twin))

    def test_of_a_pipeline_on_disk(self, tmp_path):
        twin = testing.tiny_stable_diffusion()
        with torch.no_grad():
            for parameter in twin.unet.parameters():
                parameter.mul_(1.1)
        twin.save_pretrained(tmp_path)
        self.check(testing.tiny_stable_diffusion(), Solver("turbo:2", 2, guidance_scale=1.0, pipeline=tmp_path))


class TestRefusals:
    def test_another_latent_space(self):
        other = testing.tiny_stable_diffusion()
        with torch.no_grad():
            for parameter in other.vae.parameters():
                parameter.mul_(1.5)
        lidar = make(testing.tiny_stable_diffusion(), Solver("odd:1", 1, pipeline=other))
        with pytest.raises(BankError, match="odd:1 does not share the latent space of the target: another VAE"):
            lidar.look("a cat")

    def test_another_size(self):
        other = testing.tiny_stable_diffusion()
        lidar = make(
            testing.tiny_stable_diffusion(), Solver("big:1", 1, pipeline=other, call={"height": 32, "width": 32})
        )
        with pytest.raises(BankError, match="same size"):
            lidar("a cat", images=1)

    def test_an_offloaded_target(self, lora):
        from accelerate import cpu_offload

        pipe = testing.tiny_stable_diffusion_xl()
        cpu_offload(pipe.unet, execution_device="cpu")
        with pytest.raises(ValueError, match="cannot share the weights of an offloaded model"):
            make(pipe, Solver("mine:2", 2, lora=lora)).look("a cat")

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"steps": 0}, "steps must be at least 1, got 0"),
            ({"steps": 2, "timesteps": (1,)}, "2 steps need as many timesteps"),
            (
                {"steps": 1, "lora": "a", "denoiser": "b"},
                "give one of lora, denoiser and pipeline, got lora and denoiser",
            ),
            ({"steps": 1, "lora_scale": 0.3}, "lora_scale=0.3 has no effect without a lora"),
            (
                {"steps": 1, "scheduler": lambda own: own, "settings": {"shift": 3.0}},
                "settings change a scheduler that is named, and this one is a function",
            ),
        ],
    )
    def test_what_does_not_fit_together(self, fields, message):
        with pytest.raises(ValueError, match=message):
            Solver("x", **fields)

    @pytest.mark.parametrize(
        ("make_pipe", "name"),
        [
            (testing.tiny_flux_2, "hyper-flux:8"),
            (testing.tiny_flux_2, "schnell:4"),
            (testing.tiny_z_image, "schnell:4"),
        ],
    )
    def test_models_of_another_family(self, make_pipe, name):
        with pytest.raises(ValueError, match=f"{name} is made for FLUX.1, not for"):
            load(name, make_pipe())

    def test_the_weights_of_another_denoiser(self, tmp_path):
        save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
        with pytest.raises(
            ValueError, match=r"other\.safetensors holds the weights of another network \(Missing key"
        ):
            make(testing.tiny_stable_diffusion(), Solver("x", 1, denoiser=tmp_path / "other.safetensors")).look(
                "a cat"
            )

    def test_weights_that_are_not_there(self):
        with pytest.raises(FileNotFoundError, match="no weights at nowhere"):
            make(testing.tiny_stable_diffusion_xl(), Solver("x", 1, lora="nowhere.safetensors")).look("a cat")

    def test_a_lora_without_peft(self, lora, monkeypatch):
        lidar = make(testing.tiny_stable_diffusion_xl(), Solver("x", 1, lora=lora))
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(ImportError, match=r"needs peft: pip install 'lidar-sampling\[lora\]'"):
            lidar.look("a cat")

    def test_a_scheduler_that_diffusers_has_not(self):
        with pytest.raises(ValueError, match="diffusers has no scheduler 'Fast'"):
            make(testing.tiny_stable_diffusion(), Solver("x", 1, "Fast")).look("a cat")


def test_banks_of_two_solvers_are_kept_apart(tmp_path):
    pipe = testing.tiny_stable_diffusion()
    first, second = (make(pipe, Solver("x:2", 2, settings=s), store=tmp_path) for s in ({}, {"beta_end": 0.03}))
    assert first.look("a cat")[0].key != second.look("a cat")[0].key


def test_a_shift_of_its_own_takes_the_place_of_the_targets():
    pipe = testing.tiny_stable_diffusion_3()
    pipe.scheduler.set_shift(5.0)
    for settings, shift in (({}, 5.0), ({"shift": 12.0}, 12.0)):
        with use_solver(Solver("x", 4, settings=settings), pipe):
            assert pipe.scheduler.shift == shift


def test_any_function_makes_a_scheduler():
    lidar = make(testing.tiny_stable_diffusion(), Solver("x:2", 2, partial(make_own, steps=2)))
    assert "make_own" in lidar.look("a cat")[0].provenance["solver"]["scheduler"][0]


def make_own(scheduler, steps):
    return type(scheduler).from_config(scheduler.config)


def test_a_solver_is_not_changed_by_use(lora):
    solver = Solver("mine:2", 2, guidance_scale=1.0, lora=lora)
    before = copy.copy(solver)
    make(testing.tiny_stable_diffusion_xl(), solver).look("a cat")
    assert solver == before
