"""VQAScore on tiny vision-language models of two real classes."""

import json

import pytest
import torch
from pictures import WORDS, pictures, words_tokenizer
from PIL import Image

from lidar_sampling import rewards
from lidar_sampling.rewards._language import answer_tokens
from lidar_sampling.rewards.vqascore import COUNT, QUESTION, VQAScore

QUESTION_WORDS = ["Does", "this", "figure", "show", "Please", "answer", "yes", "or", "no", ".", "?", '"']
COUNTING_WORDS = ["How", "many", "are", "in", "the", "image", "Answer", "one", "word", "three", "Three", "3", "Are"]
ASKING = [*WORDS, *QUESTION_WORDS, "user", "assistant", "Yes", "No", "YES", *COUNTING_WORDS]
TEMPLATE = (
    "{% for m in messages %}<|turn|> {{ m.role }} {% for c in m.content %}"
    "{% if c.type == 'image' %}IMAGE{% else %} {{ c.text }}{% endif %}{% endfor %} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|turn|> assistant {% endif %}"
)
TEXT_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 1,
    "initializer_range": 0.3,
}


def save_vlm(path, model, special, image, preprocessor):
    """Save a folder in the hub's layout: model, tokenizer, preprocessing, chat template."""
    model.save_pretrained(path)
    words_tokenizer(
        special, words=ASKING, pad_token="<pad>", eos_token="<|end|>", additional_special_tokens=special[2:]
    ).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (path / "chat_template.jinja").write_text(TEMPLATE.replace("IMAGE", image))
    return path


def save_llava(path):
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    special = ["[UNK]", "<pad>", "<|turn|>", "<|end|>", "<image>"]
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **vision, "image_size": 32, "patch_size": 8},
        text_config={"model_type": "llama", **TEXT_TOWER, "vocab_size": len(special) + len(ASKING)},
        image_token_index=4,
    )
    side = {"height": 32, "width": 32}
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": side,
    }
    path = save_vlm(path, LlavaForConditionalGeneration(config), special, "<image>", preprocessor)
    extra = {"processor_class": "LlavaProcessor", "patch_size": 8, "vision_feature_select_strategy": "default"}
    (path / "processor_config.json").write_text(json.dumps({**extra, "num_additional_image_tokens": 1}))
    return path


def save_qwen(path):
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    marks = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    special = ["[UNK]", "<pad>", "<|turn|>", "<|end|>", *marks]
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={**TEXT_TOWER, "vocab_size": len(special) + len(ASKING), "rope_parameters": rope},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "depth": 2,
            "num_heads": 2,
            "patch_size": 8,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
            "initializer_range": 0.3,
        },
        image_token_id=4,
        video_token_id=5,
        vision_start_token_id=6,
        vision_end_token_id=7,
    )
    preprocessor = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "size": {"shortest_edge": 256, "longest_edge": 4096},
        "patch_size": 8,
        "merge_size": 2,
        "temporal_patch_size": 2,
    }
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    return save_vlm(path, Qwen3VLForConditionalGeneration(config), special, image, preprocessor)


@pytest.fixture(scope="module", params=[save_llava, save_qwen])
def vlm(request, tmp_path_factory):
    torch.manual_seed(5)
    return request.param(tmp_path_factory.mktemp("vlm"))


def test_vqascore_is_the_softmax_of_one_image_at_a_time_in_any_batch(vlm):
    """Prompts differ in length, so that batches are padded; answers of one image alone are computed from scratch."""
    from transformers import AutoModelForImageTextToText

    reward = VQAScore(vlm)
    images, prompts = pictures(3, 40, 56, seed=2), ["a cat", "two dogs of a red cup a photo of a clock", "a red cup"]
    model = AutoModelForImageTextToText.from_pretrained(vlm, dtype=torch.float32).eval()
    vocabulary = reward._processor.tokenizer.get_vocab()
    mark = (vlm / "chat_template.jinja").read_text().split("'image' %}")[1].split("{% else")[0]
    expected = []
    for image, prompt in zip(images, prompts, strict=True):
        picture = Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
        question = f'Does this figure show "{prompt}"? Please answer yes or no.'
        text = f"<|turn|> user {mark} {question} <|end|> <|turn|> assistant "
        inputs = reward._processor(text=[text], images=[picture], return_tensors="pt")
        with torch.no_grad():
            p = model(**inputs).logits[0, -1].softmax(0)
        yes = sum(p[vocabulary[word]] for word in ("yes", "Yes", "YES"))
        no = sum(p[vocabulary[word]] for word in ("no", "No"))
        expected.append(yes / (yes + no))
    expected = torch.stack(expected)
    assert expected.std() > 0.01
    for batch_size in (3, 2, 1):
        scores = rewards.score(reward, images=images, prompts=prompts, batch_size=batch_size)
        torch.testing.assert_close(scores, expected, rtol=0, atol=2e-6)
    assert reward.networks == [reward._model]
    assert expected.min() >= 0
    assert expected.max() <= 1


def test_another_answer_is_of_all_the_vocabulary(vlm):
    """A count is read both as a word and as digits, however the user writes it."""
    from transformers import AutoModelForImageTextToText

    image, prompts = pictures(1, 40, 56, seed=2), ["two dogs"]
    word, digits = (VQAScore(vlm, question=COUNT, answer=answer) for answer in ("three", "3"))
    model = AutoModelForImageTextToText.from_pretrained(vlm, dtype=torch.float32).eval()
    vocabulary = word._processor.tokenizer.get_vocab()
    mark = (vlm / "chat_template.jinja").read_text().split("'image' %}")[1].split("{% else")[0]
    text = f"<|turn|> user {mark} How many two dogs are in the image? Answer in one word. <|end|> <|turn|> assistant "
    picture = Image.fromarray((image[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    with torch.no_grad():
        p = model(**word._processor(text=[text], images=[picture], return_tensors="pt")).logits[0, -1].softmax(0)
    expected = sum(p[vocabulary[spelling]] for spelling in ("three", "Three", "3"))
    for reward in (word, digits):
        torch.testing.assert_close(reward(images=image, prompts=prompts)[0], expected, rtol=1e-5, atol=1e-7)


def test_vqascore_refusals(vlm):
    with pytest.raises(ValueError, match=r"must have \{text\}"):
        VQAScore(vlm, question="Is it good?")
    with pytest.raises(ValueError, match="no single token for 'purple'"):
        VQAScore(vlm, answer="purple")
    with pytest.raises(ValueError, match="must have the same length, got 1 and 2"):
        VQAScore(vlm)(images=torch.zeros(1, 3, 8, 8), prompts=["a cat"] * 2)
    mute = words_tokenizer(["[UNK]"])
    with pytest.raises(ValueError, match="no single token for 'yes'"):
        answer_tokens(mute, "yes")
    assert QUESTION.replace("{text}", "a cat") == 'Does this figure show "a cat"? Please answer yes or no.'
