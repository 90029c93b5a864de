"""Properties of the recipe: all stages run, the loss is the posterior's, and stored weights load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")

from lidar_sampling.discrete.model import Denoiser, DenoiserConfig
from training.molecules.__main__ import main
from training.molecules.train import cross_entropy


@pytest.mark.filterwarnings("error::UserWarning")  # torch's warning on kernels without bfloat16
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="training needs torch 2.9, for its Muon")
def test_the_road_runs_and_what_it_writes_loads(tmp_path: Path) -> None:
    """Run the whole command, tiny."""
    main(["--smoke", "--threads", "1", "--out", str(tmp_path)])
    model = Denoiser.from_pretrained(tmp_path)
    assert model(torch.zeros(1, 32, dtype=torch.long), torch.ones(1)).logits.shape == (1, 32, 35)
    curve = json.loads((tmp_path / "curve.json").read_text())
    assert curve[-1]["step"] == 3
    assert len(np.load(tmp_path / "qm9-digests.npy")) == 4


def test_a_torch_that_is_too_old_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package itself runs with torch 2.7, which has no Muon."""
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    monkeypatch.setattr(torch, "__version__", "2.7.1")
    with pytest.raises(SystemExit, match=r"^training needs torch 2\.9 or newer, .*, and this is 2\.7\.1$"):
        main(["--smoke", "--threads", "1", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_network_that_knows_nothing_pays_the_entropy_of_what_noise_leaves() -> None:
    """With all logits 0, the posterior is that of a uniform law under the kernel, computed by hand."""
    model = Denoiser(DenoiserConfig(vocab_size=4, length=8, hidden_size=8, layers=1, heads=1))
    x0 = torch.randint(4, (4096, 8))
    got = cross_entropy(model, x0, torch.Generator().manual_seed(0)).item()
    alpha = 1 - 0.999 * (torch.arange(10_000) + 0.5) / 10_000
    stays, other = alpha + (1 - alpha) / 4, (1 - alpha) / 4
    want = -(stays * stays.log() + 3 * other * other.log()).mean().item()
    assert got == pytest.approx(want, abs=0.02)
