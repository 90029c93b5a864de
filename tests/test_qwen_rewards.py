"""HPSv3, VideoReward and EditReward on tiny models of the real classes, against one sample at a time from scratch."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pictures import CLIP_MEAN, CLIP_STD, WORDS, by_pillow, pictures, tiny, words_tokenizer
from safetensors.torch import save_file

from lidar_sampling import rewards
from lidar_sampling._media import save_sample
from lidar_sampling.rewards import edit_reward, hpsv3, video_reward
from lidar_sampling.rewards.edit_reward import EditReward
from lidar_sampling.rewards.hpsv3 import HPSv3
from lidar_sampling.rewards.video_reward import VideoReward, choose_frames

SPECIAL = ["[UNK]", "<pad>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>"]
SPECIAL += ["<|vision_start|>", "<|vision_end|>"]
ASKING = [*WORDS, "user", "assistant", "image", "video", "rating", "quality", "Text", "Quality", "Motion"]
CHAT = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}"
    "{% else %}<|vision_start|><|{{ c.type }}_pad|><|vision_end|>{% endif %}{% endfor %}<|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
PROMPTS = ["a cat", "two dogs of a red cup a photo of a clock", "a red cup"]
VQ_MQ_TA = [(3.6757, 2.2476), (1.1646, 1.3811), (2.8105, 2.5121)]


def save_base(path, kind="qwen2_vl"):
    """Save the folder of the tuned model without weights; its configuration is flat, as in the published one."""
    config = {
        "model_type": kind,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 152,  # more than the tokenizer has, as in the published ones
        "initializer_range": 0.3,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 2, 2]},
        "image_token_id": 4,
        "video_token_id": 5,
        "vision_start_token_id": 6,
        "vision_end_token_id": 7,
        "vision_config": {"depth": 2, "num_heads": 2, "patch_size": 14, "hidden_size": 32, "initializer_range": 0.3},
    }
    sight = {"out_hidden_size": 32, "intermediate_size": 48, "fullatt_block_indexes": [1]}
    config["vision_config"] |= {"embed_dim": 32} if kind == "qwen2_vl" else sight
    (path / "config.json").write_text(json.dumps(config))
    words_tokenizer(
        SPECIAL, words=ASKING, pad_token="<pad>", eos_token="<|im_end|>", additional_special_tokens=SPECIAL[2:]
    ).save_pretrained(path)
    preprocessor = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"}
    (path / "preprocessor_config.json").write_text(json.dumps({**preprocessor, "min_pixels": 3136}))
    (path / "chat_template.jinja").write_text(CHAT)


class Restated:
    """The published classes restated for one sample: embeddings, to which the language model itself gives positions.

    Its chat, pixels and patches are written out here; only the networks are of transformers.
    """

    def __init__(self, path, tokens, kind="qwen2_vl"):
        from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration

        save_base(path, kind)
        config = AutoConfig.from_pretrained(path)
        config.text_config.vocab_size = len(SPECIAL) + len(ASKING) + len(tokens)
        classes = {"qwen2_vl": Qwen2VLForConditionalGeneration, "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration}
        torch.manual_seed(5)
        self.model = classes[kind](config).eval().requires_grad_(False)
        self.tokenizer = words_tokenizer(SPECIAL, words=ASKING, additional_special_tokens=SPECIAL[2:])
        self.tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL[2:], *tokens]})
        self.tokens = [len(SPECIAL) + len(ASKING) + k for k in range(len(tokens))]

    def weights(self, layout):
        """Return the state dictionary with the names of transformers before 4.52, or since then."""
        names = {
            "old": lambda name: name.replace("model.visual.", "visual.").replace("model.language_model.", "model."),
            "new": lambda name: name,
        }
        return {names[layout](name): value.clone() for name, value in self.model.state_dict().items()}

    def __call__(self, text, visuals, kind, in_space=False):
        """Return states at the special tokens, after ``visuals`` (T, 3, H, W); ``in_space`` as in Qwen2-VL."""
        marks, patches, grids = "", [], []
        for frames in visuals:
            flat, grid = patched(frames, kind)
            marks += f"<|vision_start|>{f'<|{kind}_pad|>' * (math.prod(grid) // 4)}<|vision_end|>"
            patches.append(flat)
            grids.append(grid)
        chat = f"<|im_start|> user {marks}{text}<|im_end|> <|im_start|> assistant "
        ids = torch.tensor([self.tokenizer.encode(chat, add_special_tokens=False)])
        embedded = self.model.get_input_embeddings()(ids)
        seen = self.model.model.visual(torch.cat(patches), grid_thw=torch.tensor(grids)).pooler_output
        pads = ids == {"image": 4, "video": 5}[kind]
        assert pads.sum() == len(seen)
        embedded[pads] = seen
        positions = None
        if in_space:
            grid = {f"{kind}_grid_thw": torch.tensor(grids)}
            positions, _ = self.model.model.get_rope_index(ids, pads.int() * {"image": 1, "video": 2}[kind], **grid)
        states = self.model.model.language_model(inputs_embeds=embedded, position_ids=positions).last_hidden_state[0]
        assert all((ids[0] == token).sum() == 1 for token in self.tokens)
        return states[[int((ids[0] == token).nonzero()) for token in self.tokens]]


def patched(frames, kind):
    """Return Qwen2-VL's pixels and patches (https://arxiv.org/abs/2409.12191) as numpy in transformers 4.45.2.

    Pillow resizes pictures; frames are resized as torchvision does with tensors of bytes, in vision_process.py.
    """
    most, least = 256 * 28 * 28, (128 if kind == "video" else 256) * 28 * 28
    height, width = frames.shape[-2:]
    rows, columns = round(height / 28) * 28, round(width / 28) * 28
    if rows * columns > most:
        factor = math.sqrt(height * width / most)
        rows, columns = (math.floor(side / factor / 28) * 28 for side in (height, width))
    elif rows * columns < least:
        factor = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(side * factor / 28) * 28 for side in (height, width))
    if kind == "video":
        resized = F.interpolate(frames * 255, (rows, columns), mode="bicubic", antialias=True, align_corners=False)
        video = resized.clamp(0, 255).round() / 255
    else:
        video = by_pillow(frames, rows, columns)
    video = ((video - CLIP_MEAN) / CLIP_STD).numpy()
    if len(video) % 2:
        video = np.concatenate([video, video[-1:]])
    time, up, across = len(video) // 2, rows // 14, columns // 14
    parts = video.reshape(time, 2, 3, up // 2, 2, 14, across // 2, 2, 14).transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return torch.from_numpy(parts.reshape(time * up * across, -1).copy()), [time, up, across]


def ranking_head(name, seed):
    random = tiny(seed)
    shapes = {f"{name}.0": (24, 32), f"{name}.3": (8, 24), f"{name}.5": (2, 8)}
    weights = {f"{layer}.weight": random(*shape) for layer, shape in shapes.items()}
    return weights | {f"{layer}.bias": random(shape[0]) for layer, shape in shapes.items()}


def ranked(weights, name, state):
    for layer in (0, 3, 5):
        state = F.linear(state, weights[f"{name}.{layer}.weight"], weights[f"{name}.{layer}.bias"])
        state = state.relu() if layer < 5 else state
    return state[0]


@pytest.fixture(scope="module")
def hps(tmp_path_factory):
    path = tmp_path_factory.mktemp("hpsv3")
    restated = Restated(path, ["<|Reward|>"])
    weights = {**restated.weights("old"), **ranking_head("rm_head", 3)}
    save_file(weights, path / "HPSv3.safetensors")
    return path, weights, restated


def test_templates_are_the_published_ones_to_the_byte():
    """Of hpsv3 1.0.0, of KwaiVGI/VideoAlign at 219ab9d and of TIGER-AI-Lab/EditReward at edb027e."""
    templates = (hpsv3.TEMPLATE, video_reward.TEMPLATE, edit_reward.FOLLOWING, edit_reward.QUALITY)
    assert [hashlib.sha256(template.encode()).hexdigest() for template in templates] == [
        "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c",
        "fdb6309bac618dd0c8b1b589d3a0970a974f7856eecbb355a190b2dce54af700",
        "b8c53a0a3b67db1cf63ad891679be423fbe01a06fa63cefe4851f747f8d82da2",
        "4583db70a7aba6038d80220b94bafc33755ece3389f3c1d3c24dd3ed847d9289",
    ]


def check_in_batches(reward, images, prompts, expected):
    assert expected.std() > 0.01
    for batch_size in (3, 2, 1):
        scores = rewards.score(reward, images=images, prompts=prompts, batch_size=batch_size)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)


def test_hpsv3_is_the_published_one_of_each_image_in_any_batch(hps):
    """Prompts differ in length, so that batches are padded. Positions in height and width give other scores."""
    path, weights, restated = hps
    images = pictures(3, 90, 150, seed=2)

    def expected(**options):
        states = [
            restated(hpsv3.TEMPLATE.replace("{text_prompt}", prompt), [image[None]], "image", **options)[0]
            for image, prompt in zip(images, PROMPTS, strict=True)
        ]
        return torch.stack([ranked(weights, "rm_head", state) for state in states])

    for model in (path, path / "HPSv3.safetensors"):
        check_in_batches(HPSv3(model, processor=path), images, PROMPTS, expected())
    assert (expected(in_space=True) - expected()).abs().min() > 1e-3


def test_hpsv3_reads_both_layouts_and_the_prompt(hps, tmp_path):
    path, _, restated = hps
    save_file({**restated.weights("new"), **ranking_head("rm_head", 3)}, tmp_path / "new.safetensors")
    image = pictures(1, 60, seed=4).expand(2, -1, -1, -1)
    old, new = (HPSv3(file, processor=path) for file in (path, tmp_path / "new.safetensors"))
    scores = old(images=image, prompts=PROMPTS[:2])
    assert torch.equal(new(images=image, prompts=PROMPTS[:2]), scores)
    assert abs(scores[0] - scores[1]) > 1e-3
    assert new.name == f"hpsv3:{tmp_path / 'new.safetensors'}"
    half = HPSv3(path, processor=path, dtype=torch.bfloat16)
    assert half.networks[0].dtype == torch.bfloat16
    halved = half(images=image, prompts=PROMPTS[:2])
    assert halved.dtype == torch.float32
    torch.testing.assert_close(halved, scores, rtol=0, atol=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": None}, "1 weights differ, first language_model.norm.weight"),
        ({"model.layers.2.mlp.up_proj.weight": (48, 32)}, "first language_model.layers.2.mlp.up_proj.weight"),
        ({"model.embed_tokens.weight": (20, 32)}, "first language_model.embed_tokens.weight"),
        ({"rm_head.3.bias": None}, "has another head: 1 weights differ, first rm_head.3.bias"),
        ({"rm_head.3.weight": None}, "has another head: 3 weights differ, first rm_head.3.bias"),
        ({"rm_head.7.weight": (2, 2)}, "has another head: 1 weights differ, first rm_head.7.weight"),
        ({"rm_head.5.weight": (3, 8)}, "has another head: 1 weights differ, first rm_head.5.weight"),
    ],
)
def test_hpsv3_refuses_other_weights(hps, tmp_path, change, message):
    path, weights, _ = hps
    file = tmp_path / "other.safetensors"
    changed = weights | {name: torch.zeros(shape) for name, shape in change.items() if shape}
    save_file({name: value for name, value in changed.items() if change.get(name, 1)}, file)
    with pytest.raises(ValueError, match=rf"other\.safetensors .*{message}$") as raised:
        HPSv3(file, processor=path)
    assert "\n" not in str(raised.value)


def test_hpsv3_refusals(hps, tmp_path):
    path, *_ = hps
    reward = HPSv3(path, processor=path)
    image = pictures(1, 60)
    with pytest.raises(ValueError, match="images and prompts must have the same length, got 1 and 2"):
        reward(images=image, prompts=PROMPTS[:2])
    for prompt in ("a <|Reward|> cat", "a cat<|image_pad|>"):
        with pytest.raises(ValueError, match="a prompt must not hold the special token <"):
            reward(images=image, prompts=[prompt])
        with pytest.raises(ValueError, match=r"reward 'hpsv3:.*' cannot read the prompt"):
            rewards.check_prompts(reward, [prompt])
    with pytest.raises(FileNotFoundError, match=r"holds no HPSv3\.safetensors: give the checkpoint file itself"):
        HPSv3(tmp_path, processor=path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "HPSv3.safetensors").touch()
    with pytest.raises(ValueError, match=r"holds 2 files HPSv3\.safetensors: give one of them"):
        HPSv3(tmp_path, processor=path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ValueError, match="is of type clip: give the Qwen2-VL model that was tuned"):
        HPSv3(path, processor=tmp_path)


@pytest.fixture(scope="module")
def videoalign(tmp_path_factory):
    """Return LoRA of rank 4 on all linear layers of the language model, named as in peft, and its base weights."""
    path = tmp_path_factory.mktemp("videoreward")
    restated = Restated(path, ["<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"])
    random, weights = tiny(8), {}
    merged = restated.model.state_dict()
    for name, value in restated.weights("old").items():
        stem, _, part = f"base_model.model.{name}".rpartition(".")
        if "_proj" not in name:
            weights[f"{stem}.{part}"] = value
            continue
        weights[f"{stem}.base_layer.{part}"] = value
        if part == "weight":
            down, up = random(4, value.shape[1]), random(value.shape[0], 4)
            weights[f"{stem}.lora_A.default.weight"], weights[f"{stem}.lora_B.default.weight"] = down, up
            merged[name.replace("model.", "model.language_model.", 1)].add_(up @ down, alpha=2.0)
    weights["base_model.model.rm_head.weight"] = random(1, 32)
    (path / "checkpoint-11352").mkdir()
    torch.save(weights, path / "checkpoint-11352" / "model.pth")
    return path, weights, restated


def test_video_reward_is_the_published_one_of_each_video_in_any_batch(videoalign):
    """It reads four of 33 frames at 16 per second, two of three, and a single frame twice."""
    path, weights, restated = videoalign
    head = weights["base_model.model.rm_head.weight"]
    for count, read in ((33, [0, 11, 21, 32]), (3, [0, 2]), (1, [0])):
        videos = pictures(3 * count, 60, 90, seed=count).unflatten(0, (3, count))
        expected = []
        for video, prompt in zip(videos, PROMPTS, strict=True):
            text = video_reward.TEMPLATE.replace("{text_prompt}", prompt)
            values = (restated(text, [video[read]], "video") @ head[0]).tolist()
            expected.append([(value - mean) / std for value, (mean, std) in zip(values, VQ_MQ_TA, strict=True)])
        expected = torch.tensor(expected)
        check_in_batches(VideoReward(path, processor=path, lora_alpha=8), videos, PROMPTS, expected.sum(1))
    for k, name in enumerate(("VQ", "MQ", "TA")):
        reward = VideoReward(path, dimension=name, processor=path, lora_alpha=8)
        assert reward.name == f"video-reward:{path}-{name}"
        scores = reward(images=videos, prompts=PROMPTS)
        torch.testing.assert_close(scores, expected[:, k], rtol=0, atol=1e-4)
    half = VideoReward(path, processor=path, lora_alpha=8, dtype=torch.bfloat16)
    assert half(images=videos, prompts=PROMPTS).dtype == torch.float32


def test_frames_that_video_reward_reads():
    """They are those of ``smart_nframes``: two per second, an even number, 4 to 768, never more than there are."""
    assert choose_frames(81, 16).tolist() == torch.linspace(0, 80, 10).round().tolist()
    assert [len(choose_frames(count, 24)) for count in (1, 2, 3, 5, 49, 121, 10000)] == [1, 2, 2, 4, 4, 10, 768]


def test_video_reward_refusals(videoalign, tmp_path):
    path, weights, _ = videoalign
    reward = VideoReward(path, processor=path)
    with pytest.raises(ValueError, match=r"sees videos \(B, F, 3, H, W\), got \(1, 3, 60, 60\)"):
        reward(images=pictures(1, 60), prompts=["a cat"])
    with pytest.raises(ValueError, match="must have the same length, got 1 and 2"):
        reward(images=pictures(2, 60)[None], prompts=["a cat"] * 2)
    with pytest.raises(ValueError, match="dimension must be 'overall', 'VQ', 'MQ', 'TA', got 'vq'"):
        VideoReward(path, dimension="vq", processor=path)
    with pytest.raises(ValueError, match="fps must be positive, got 0"):
        VideoReward(path, fps=0, processor=path)
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    for change, message in (
        ({f"{layer}.lora_A.default.weight": None}, r"lacks .*q_proj\.lora_A\.default\.weight"),
        ({f"{layer}.lora_{side}.default.weight": None for side in "AB"}, r"lacks .*q_proj\.lora_A\.default\.weight"),
        (
            {f"{layer}.base_layer.weight": None},
            r"q_proj\.lora_A\.default\.weight, but not the weight that it adds to",
        ),
        ({f"{layer}.base_layer.bias": None}, r"first language_model\.layers\.0\.self_attn\.q_proj\.bias"),
        ({"base_model.model.rm_head.weight": (3, 32)}, r"another head than rm_head\.weight, \(1, 32\)"),
        ({"base_model.model.rm_head.weight": None}, r"another head than rm_head\.weight, \(1, 32\)"),
    ):
        changed = weights | {name: torch.zeros(shape) for name, shape in change.items() if shape}
        torch.save({name: value for name, value in changed.items() if change.get(name, 1)}, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=rf"other\.pth .*{message}$"):
            VideoReward(tmp_path / "other.pth", processor=path)


@pytest.fixture(scope="module")
def edit(tmp_path_factory):
    path = tmp_path_factory.mktemp("editreward")
    restated = Restated(path, ["<|Reward|>"], "qwen2_5_vl")
    heads = {**ranking_head("rm_heads.head_0", 3), **ranking_head("rm_heads.head_1", 4)}
    weights = {**restated.weights("new"), **heads}
    save_file(weights, path / "model.safetensors")
    return path, weights, restated


def test_edit_reward_is_the_published_one_of_each_pair_in_any_batch(edit, tmp_path):
    """The pictures before the edit have other sizes: one comes from the metadata, one from the reward."""
    path, weights, restated = edit
    images, befores = pictures(3, 60, 90, seed=2), [pictures(1, side, 100, seed=side)[0] for side in (40, 70)]
    stored = save_sample(befores[1], tmp_path / "before")
    reward = EditReward(path, source=befores[0], processor=path)
    prompts = [PROMPTS[0], {"prompt": PROMPTS[1], "source": str(stored)}, {"prompt": PROMPTS[2]}]
    expected = []
    for image, prompt, before in zip(images, PROMPTS, (befores[0], befores[1], befores[0]), strict=True):
        scores = []
        for k, template in enumerate((edit_reward.FOLLOWING, edit_reward.QUALITY)):
            text = template.replace("{text_prompt}", prompt)
            state = restated(text, [before[None], image[None]], "image")[0]
            scores.append(ranked(weights, f"rm_heads.head_{k}", state))
        expected.append(sum(scores) / 2)
    check_in_batches(reward, images, prompts, torch.stack(expected))
    half = EditReward(path, source=befores[0], processor=path, dtype=torch.bfloat16)
    assert half(images=images, prompts=prompts).dtype == torch.float32


def test_edit_reward_refusals(edit, tmp_path):
    path, weights, _ = edit
    for source in (torch.rand(1, 3, 60, 60), torch.rand(3, 60, 60) * 2 - 1, torch.rand(3, 60, 60) * torch.nan):
        with pytest.raises(ValueError, match=r"source must be a picture \(3, H, W\)|must lie in \[0, 1\]|hold NaN"):
            EditReward(path, source=source, processor=path)
    reward = EditReward(path, processor=path)
    with pytest.raises(ValueError, match=r'needs the picture before the edit as source= or "source", got .*a cat'):
        reward(images=pictures(1, 60), prompts=[{"prompt": "a cat"}])
    with pytest.raises(ValueError, match="needs the picture before the edit"):
        rewards.check_prompts(reward, ["a cat"])
    with pytest.raises(ValueError, match=r"cannot read the prompt|failed to check the prompt"):
        rewards.check_prompts(reward, [{"prompt": "a cat", "source": str(tmp_path / "none.png")}])
    with pytest.raises(ValueError, match="must have the same length, got 1 and 0"):
        reward(images=pictures(1, 60), prompts=[])
    fewer = {name: value for name, value in weights.items() if name != "rm_heads.head_1.0.bias"}
    save_file(fewer, tmp_path / "other.safetensors")
    with pytest.raises(
        ValueError, match=r"other\.safetensors has another head: 1 weights differ, first rm_heads\.head_1\.0"
    ):
        EditReward(tmp_path / "other.safetensors", processor=path)
