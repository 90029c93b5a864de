"""Few-step solvers for phase 1, by name: presets as data, and the code that puts one on a pipeline.

``dpm:N`` is DPM-Solver++ multistep in N steps (Lu et al. 2022, https://arxiv.org/abs/2211.01095), the paper's
lookahead for SD 1.5; ``dpm:N-karras`` the same on Karras's noise levels, its lookahead for SDXL. ``own:N`` is the
pipeline's own scheduler in N steps. These need no download. The other presets (:data:`PRESETS`) are distilled models:
LoRAs, denoisers and whole pipelines on the hub, which share the latent space of the model they were distilled from.
"""

from .._hub import Published as Published
from ._load import base_of as base_of
from ._load import load as load
from ._load import lookahead_pipeline as lookahead_pipeline
from ._load import names as names
from ._load import use_solver as use_solver
from ._solver import Solver as Solver
from .presets import PRESETS as PRESETS
