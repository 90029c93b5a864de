"""The few-step models known by name, as data: weights, scheduler, timesteps, guidance, bases and licence.

Settings are those of the named model cards and repositories, and of the paper's code where it uses the model
(https://github.com/aailab-kaist/Diffusion-LiDAR-Sampling, lookahead_sampling.py). Licences are the model cards'. A
commit is pinned where other public code names it for the same files; Hyper-SD's could not be confirmed.
"""

from __future__ import annotations

from .._hub import Published
from ._solver import Solver

SD, SDXL, SD3, FLUX, SANA = "Stable Diffusion", "Stable Diffusion XL", "Stable Diffusion 3", "FLUX.1", "SANA"

_TRAILING = {"timestep_spacing": "trailing"}
_LCM = "LCMScheduler"


def _dmd2(file: str) -> Published:
    commit = "be22767697a1f3ca656b73c776e15fa335c86c6c"
    # Named for the UNets alone; the LoRA may be younger.
    return Published("tianweiy/DMD2", "CC BY-NC-SA 4.0", file, None if "lora" in file else commit, commercial=False)


def _lightning(file: str) -> Published:
    return Published("ByteDance/SDXL-Lightning", "OpenRAIL++", file, "c9a24f48e1c025556787b0c58dd67a091ece2e44")


def _hyper(file: str, *, flux: bool = False) -> Published:
    licence = "FLUX.1 [dev] non-commercial" if flux else "the base model's (LICENSE.md of the repository)"
    return Published("ByteDance/Hyper-SD", licence, file, commercial=not flux)


PRESETS: tuple[Solver, ...] = (
    *(
        Solver(
            f"lcm-lora:{n}",
            n,
            _LCM,
            guidance_scale=1.0,
            lora=Published(repo, "OpenRAIL++", "pytorch_lora_weights.safetensors", commit),
            bases=(base,),
            note="Luo et al. 2023, arXiv 2311.05556",
        )
        for base, repo, commit in (
            (SD, "latent-consistency/lcm-lora-sdv1-5", "cf2fced511dbe7e26c8d1d397e728fbab875db4b"),
            (SDXL, "latent-consistency/lcm-lora-sdxl", "a18548dd4956b174ec5b0d78d340c8dae0a129cd"),
        )
        for n in (2, 4, 8)
    ),
    Solver(
        "dmd2:1",
        1,
        _LCM,
        timesteps=(399,),
        guidance_scale=1.0,
        denoiser=_dmd2("dmd2_sdxl_1step_unet_fp16.bin"),
        bases=(SDXL,),
        note="Yin et al. 2024, arXiv 2405.14867; the paper's best lookahead for SDXL by HPS, GenEval and time",
    ),
    Solver(
        "dmd2:4",
        4,
        _LCM,
        timesteps=(999, 749, 499, 249),
        guidance_scale=1.0,
        lora=_dmd2("dmd2_sdxl_4step_lora_fp16.safetensors"),
        bases=(SDXL,),
        note="Yin et al. 2024, arXiv 2405.14867; LCM's own timesteps are wrong for it",
    ),
    Solver(
        "lightning:1",
        1,
        "EulerDiscreteScheduler",
        {**_TRAILING, "prediction_type": "sample"},
        guidance_scale=1.0,
        denoiser=_lightning("sdxl_lightning_1step_unet_x0.safetensors"),
        bases=(SDXL,),
        note="Lin et al. 2024, arXiv 2402.13929; experimental, says its card",
    ),
    *(
        Solver(
            f"lightning:{n}",
            n,
            "EulerDiscreteScheduler",
            _TRAILING,
            guidance_scale=1.0,
            denoiser=_lightning(f"sdxl_lightning_{n}step_unet.safetensors"),
            bases=(SDXL,),
            note="Lin et al. 2024, arXiv 2402.13929",
        )
        for n in (2, 4, 8)
    ),
    *(
        Solver(
            f"lightning-lora:{n}",
            n,
            "EulerDiscreteScheduler",
            _TRAILING,
            guidance_scale=1.0,
            lora=_lightning(f"sdxl_lightning_{n}step_lora.safetensors"),
            bases=(SDXL,),
            note="Lin et al. 2024, arXiv 2402.13929; a third of the memory of lightning, a little worse",
        )
        for n in (2, 4, 8)
    ),
    Solver(
        "hyper:1",
        1,
        _LCM,
        timesteps=(800,),
        guidance_scale=1.0,
        denoiser=_hyper("Hyper-SDXL-1step-Unet.safetensors"),
        bases=(SDXL,),
        note="Ren et al. 2024, arXiv 2404.13686",
    ),
    *(
        Solver(
            f"hyper:{n}",
            n,
            "DDIMScheduler",
            {**_TRAILING, "clip_sample": False},
            guidance_scale=1.0,
            lora=_hyper(f"Hyper-{tag}-{n}step{'s' if n > 1 else ''}-lora.safetensors"),
            bases=(base,),
            note="Ren et al. 2024, arXiv 2404.13686",
        )
        for base, tag in ((SD, "SD15"), (SDXL, "SDXL"))
        for n in (2, 4, 8)
    ),
    *(
        Solver(
            f"hyper-flux:{n}",
            n,
            guidance_scale=3.5,
            lora=_hyper(f"Hyper-FLUX.1-dev-{n}steps-lora.safetensors", flux=True),
            lora_scale=0.125,
            bases=(FLUX,),
            note="Ren et al. 2024, arXiv 2404.13686; the paper's lookahead for FLUX at 8 steps",
        )
        for n in (8, 16)
    ),
    *(
        Solver(
            f"schnell:{n}",
            n,
            guidance_scale=0.0,
            call={"max_sequence_length": 256},
            pipeline=Published(
                "black-forest-labs/FLUX.1-schnell", "Apache-2.0", revision="741f7c3ce8b383c54771c7003378a50191e9efe9"
            ),
            bases=(FLUX,),
            note="the same autoencoder as FLUX.1 [dev]",
        )
        for n in (1, 4)
    ),
    *(
        Solver(
            f"turbo:{n}",
            n,
            guidance_scale=0.0,
            pipeline=Published(repo, "SAI non-commercial community", revision=commit, commercial=False),
            bases=(base,),
            note=note,
        )
        for base, repo, commit, note in (
            (
                SD,
                "stabilityai/sd-turbo",
                "b261bac6fd2cf515557d5d0707481eafa0485ec2",
                "made from SD 2.1; 512 x 512",
            ),
            (
                SDXL,
                "stabilityai/sdxl-turbo",
                "71153311d3dbb46851df1931d3ca6e939de83304",
                "512 x 512: draw the target at that size",
            ),
        )
        for n in (1, 4)
    ),
    Solver(
        "turbo:4",
        4,
        guidance_scale=0.0,
        pipeline=Published(
            "stabilityai/stable-diffusion-3.5-large-turbo",
            "Stability AI community",
            revision="ec07796fc06b096cc56de9762974a28f4c632eda",
        ),
        bases=(SD3,),
        note="for SD 3.5 Large; its licence asks large companies for a contract",
    ),
    *(
        Solver(
            f"sana-sprint:{n}",
            n,
            guidance_scale=4.5,
            call={} if n == 2 else {"intermediate_timesteps": None},
            pipeline=Published(
                "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers",
                "Apache-2.0, its text encoder under Gemma's terms",
                revision="19683c58b7ea290e55cedd8950ae1d86ada7ef96",
            ),
            bases=(SANA,),
            note="Chen et al. 2025, arXiv 2503.09641",
        )
        for n in (1, 2, 4)
    ),
)
