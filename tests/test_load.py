"""Folders of weights: the variant that is there, and damage by its file."""

import pytest
import torch

from lidar_sampling import LiDAR, testing
from lidar_sampling._load import load_pipeline, only_variant
from lidar_sampling._preview import load_preview


@pytest.mark.parametrize(
    ("files", "variant"),
    [
        (["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"], None),
        (["unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"], "fp16"),
        (["transformer/diffusion_pytorch_model.bf16-00001-of-00002.safetensors"], "bf16"),
        (["transformer/diffusion_pytorch_model-00001-of-00002.safetensors"], None),
        (["unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.safetensors"], None),
        (["unet/diffusion_pytorch_model.bin"], None),
        ([], None),
    ],
)
def test_the_only_variant_is_found(tmp_path, files, variant):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert only_variant(tmp_path) == variant


def test_of_several_variants_one_must_be_named(tmp_path):
    pipe = testing.tiny_stable_diffusion().to(torch.float16)
    for variant in ("fp16", "mine"):
        pipe.save_pretrained(tmp_path, variant=variant)
    with pytest.raises(ValueError, match="holds the variants fp16, mine: name one as variant"):
        LiDAR.from_pretrained(tmp_path, reward="brightness")
    assert LiDAR.from_pretrained(tmp_path, reward="brightness", variant="mine").pipe.unet is not None


def test_a_pointer_among_the_weights_is_named(tmp_path):
    testing.tiny_stable_diffusion().save_pretrained(tmp_path)
    file = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1794\n")
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors is a pointer of Git LFS"):
        load_pipeline(tmp_path, dtype=torch.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", r"model_index\.json has no _class_name, as that of a pipeline does: download it again"),
        (b"{}", r"model_index\.json has no _class_name"),
        (b'{"_class_name": ', r"model_index\.json is not JSON .*: download it again"),
        (b"", r"model_index\.json is empty: download it again"),
        (b"version https://git-lfs.github.com", r"model_index\.json is a pointer of Git LFS"),
        (None, r"is not a folder of a pipeline: it holds no model_index\.json"),
    ],
)
def test_a_pipeline_without_a_good_index(tmp_path, content, message):
    if content is not None:
        (tmp_path / "model_index.json").write_bytes(content)
    with pytest.raises((ValueError, OSError), match=message) as refused:
        load_pipeline(tmp_path, dtype=torch.float32)
    assert "\n" not in str(refused.value)


def test_what_is_no_folder_of_a_pipeline(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    with pytest.raises(
        ValueError, match=r"a\.safetensors is a file: give the folder of a pipeline, which holds model"
    ):
        load_pipeline(tmp_path / "a.safetensors", dtype=torch.float32)
    with pytest.raises(FileNotFoundError, match=r"no folder of a pipeline at .*nowhere"):
        load_pipeline(tmp_path / "nowhere", dtype=torch.float32)


def test_what_is_no_small_autoencoder(tmp_path):
    pipe = testing.tiny_stable_diffusion()
    pipe.save_pretrained(tmp_path / "pipe")
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("pipe", "pipe is a pipeline: give the folder of a small autoencoder"),
        ("pipe/vae", "vae is an AutoencoderKL: give an AutoencoderTiny"),
        ("a.safetensors", r"a\.safetensors is a file: give the folder of a small autoencoder, which holds config"),
        ("empty", r"is not a folder of a small autoencoder: it holds no config\.json"),
        ("nowhere", "no folder of a small autoencoder at .*nowhere"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            load_preview(tmp_path / name, pipe)
