"""UnifiedReward: answers with and without scores, and greedy answers of tiny models."""

import hashlib
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import pictures
from test_soft_tifa import bytes_tokenizer
from test_vqascore import save_llava, save_qwen

from lidar_sampling import rewards
from lidar_sampling.rewards import unified_reward
from lidar_sampling.rewards._language import make_greedy, write_answers
from lidar_sampling.rewards.unified_reward import MAX_TOKENS, QUESTION, UnifiedReward, read_scores

PUBLISHED = (  # the example in point_score_ACS_image_generation.py of the authors
    "Alignment Score (1-5): 2.694700002670288\nCoherence Score (1-5): 2.371500015258789\n"
    "Style Score (1-5): 2.802500009536743\n"
)


def test_the_question_is_the_published_one():
    """The digest is of the text that the authors' script sends for the caption "a red cup"."""
    asked = QUESTION.replace("{text}", "a red cup")
    assert (
        hashlib.sha256(asked.encode()).hexdigest()
        == "2516295b54ea11a3ef520af77e167ef0ce7890ba00eba0f89cfeeef2e8bb4345"
    )


def test_the_authors_example_is_read():
    found = read_scores(PUBLISHED)
    assert found == {"alignment": 2.694700002670288, "coherence": 2.371500015258789, "style": 2.802500009536743}


def written(alignment, coherence, style):
    return f"Alignment Score (1-5): {alignment}\nCoherence Score (1-5): {coherence}\nStyle Score (1-5): {style}"


@given(
    values=st.tuples(*[st.floats(1, 5)] * 3),
    order=st.permutations(range(3)),
    noise=st.lists(st.sampled_from(["", "Here are the scores.", "Overall: 3", "Final Score: 9", "  "]), max_size=4),
)
def test_any_three_scores_are_read(values, order, noise):
    lines = written(*values).split("\n")
    text = "\n".join([*noise, *(f" {lines[k]} \n" for k in order), *noise])
    assert tuple(read_scores(text).values()) == values


@pytest.mark.parametrize("good", ["1", "5", "5.0", "1.000", "4.99999999999999999999"])
def test_good_scores(good):
    assert read_scores(written(3, good, 3))["coherence"] == float(good)


@pytest.mark.parametrize(
    "bad",
    [
        *("0", "0.99", "5.01", "6", "-3", "+3", "nan", "NaN", "inf", "X", "", "3/5", "3 or 4", "3,5", "3.", ".5"),
        *("1e0", "\N{FULLWIDTH DIGIT THREE}", "[3]", "**3**", "3 3", "1_0", "9" * 400),
    ],
)
def test_what_is_no_score_is_refused(bad):
    for answer in (written(bad, 3, 3), written(3, bad, 3), written(3, 3, bad)):
        with pytest.raises(ValueError, match=r"must give a number from 1 to 5 after .* Score \(1-5\):"):
            read_scores(answer)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", r'must have one line "Alignment Score \(1-5\): X", got 0 of them in \'\''),
        ("The image is nice.", r"got 0 of them in 'The image is nice\.'"),
        (written(3, 3, 3).rsplit("\n", 1)[0], r'one line "Style Score \(1-5\): X", got 0'),
        (written(3, 3, 3) + "\n" + written(4, 3, 3), r'one line "Alignment Score \(1-5\): X", got 2'),
        (written(3, 3, 3) + "\nStyle Score (1-5): 3", r'one line "Style Score \(1-5\): X", got 2'),
        (written(3, 3, 3).replace("\n", " "), r'a number from 1 to 5 after "Alignment'),
        (written(3, 3, 3).lower(), r"got 0 of them"),
        (written(3, 3, 3).replace("(1-5)", "(0-5)"), r"got 0 of them"),
    ],
)
def test_what_is_not_three_scores_is_refused(answer, message):
    with pytest.raises(ValueError, match=message):
        read_scores(answer)


@given(st.text(max_size=40))
def test_no_other_text_is_a_score(text):
    with pytest.raises(ValueError, match="the answer must"):
        read_scores(text)


def test_a_long_answer_is_shortened():
    with pytest.raises(ValueError, match="the answer must") as caught:
        read_scores("so " * 10_000)
    assert 300 < len(str(caught.value)) < 450
    assert str(caught.value).endswith("...'")


class Scripted:
    """A model with fixed answers, which must be given the published question."""

    device, dtype = torch.device("cpu"), torch.float32
    generation_config = SimpleNamespace(eos_token_id=[3, 0], pad_token_id=1, bos_token_id=None)

    def __init__(self, tokenizer, answers, *, ends=True):
        self.tokenizer, self.answers, self.ends, self.calls = tokenizer, answers, ends, []

    def generate(self, *, input_ids, attention_mask, max_new_tokens, **rest):
        rows = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            assert mask.tolist() == sorted(mask.tolist())  # padded on the left
            text = self.tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)
            (prompt,) = [p for p in self.answers if QUESTION.replace("{text}", p) in text]
            rows.append([*self.tokenizer.encode(self.answers[prompt]), *[3] * self.ends])
        assert max_new_tokens == MAX_TOKENS
        self.calls.append(len(rows))
        longest = max(len(row) for row in rows)
        answered = torch.tensor([row + [1] * (longest - len(row)) for row in rows])
        return torch.cat([input_ids, answered], 1)


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """Return a reward whose model gives these answers; its processor is a real one, with one token per byte."""
    save_llava(tmp_path)
    special = ["<unk>", "<pad>", "<|turn|>", "<|end|>", "<image>"]
    tokenizer = bytes_tokenizer(special)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "eos_token": "<|end|>"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<image>"]})
    tokenizer.save_pretrained(tmp_path)

    def make(answers, aspect=None, **options):
        double = Scripted(tokenizer, answers, **options)
        monkeypatch.setattr(unified_reward, "load_model", lambda *given, **settings: double)
        monkeypatch.setattr(unified_reward, "make_greedy", lambda *given: None)
        return UnifiedReward(tmp_path, aspect=aspect)

    return make


ANSWERS = {"a {cat}": written(1.5, 2.5, 5), "two dogs": PUBLISHED, "a clock on a very red cup": written(1, 1, 1)}


def test_values_are_means_or_single_scores(scripted):
    images, prompts = pictures(3, 32), list(ANSWERS)
    for aspect, expected in (
        (None, [3.0, sum([2.694700002670288, 2.371500015258789, 2.802500009536743]) / 3, 1.0]),
        ("alignment", [1.5, 2.694700002670288, 1.0]),
        ("coherence", [2.5, 2.371500015258789, 1.0]),
        ("style", [5.0, 2.802500009536743, 1.0]),
    ):
        reward = scripted(ANSWERS, aspect)
        for batch_size in (3, 2, 1):
            scores = rewards.score(reward, images=images, prompts=prompts, batch_size=batch_size)
            assert scores.tolist() == pytest.approx(expected, rel=1e-6)
        assert reward._model.calls == [3, 2, 1, 1, 1, 1]
        assert reward.name.startswith(f"unified-reward-{aspect}:" if aspect else "unified-reward:")


def test_an_answer_that_is_no_score_is_an_error_and_not_a_number(scripted):
    answers = {**ANSWERS, "two dogs": "Style Score (1-5): nan"}
    with pytest.raises(rewards.RewardError, match=r"raised ValueError: prompt 'two dogs': the answer must have"):
        rewards.score(scripted(answers), images=pictures(3, 32), prompts=list(answers))
    message = rf"prompt 'two dogs': the answer did not end within {MAX_TOKENS} tokens, got 'Alignment Score"
    with pytest.raises(ValueError, match=message):
        scripted(ANSWERS, ends=False)(images=pictures(1, 32), prompts=["two dogs"])
    with pytest.raises(ValueError, match="must have the same length, got 1 and 2"):
        scripted(ANSWERS)(images=pictures(1, 32), prompts=["two dogs"] * 2)
    with pytest.raises(ValueError, match="aspect must be one of alignment, coherence, style, or None"):
        UnifiedReward("nowhere", aspect="beauty")


@pytest.fixture(scope="module", params=[save_llava, save_qwen])
def vlm(request, tmp_path_factory):
    torch.manual_seed(5)
    return request.param(tmp_path_factory.mktemp("vlm"))


def test_answers_are_transformers_own_greedy_ones_whatever_sampling_the_weights_bring(vlm, tmp_path):
    """A padded batch with wild sampling settings is compared with single unpadded chats without them."""
    from transformers import AutoModelForImageTextToText

    wild = tmp_path / "wild"
    shutil.copytree(vlm, wild)
    settings = json.loads((wild / "generation_config.json").read_text())
    sampling = {"do_sample": True, "temperature": 9.0, "top_k": 3, "repetition_penalty": 1.9}
    (wild / "generation_config.json").write_text(json.dumps({**settings, **sampling, "eos_token_id": [3]}))
    assert AutoModelForImageTextToText.from_pretrained(wild).generation_config.temperature == 9
    reward = UnifiedReward(wild)
    processor, model = reward._processor, reward._model
    assert reward.networks == [model]
    assert model.generation_config.to_diff_dict().keys() <= {
        *("do_sample", "num_beams", "eos_token_id", "bos_token_id", "pad_token_id", "transformers_version")
    }
    images, questions = (
        pictures(3, 40, 56, seed=2),
        ["a cat", "two dogs of a red cup a photo of a clock", "a red cup"],
    )
    answers = write_answers(model, processor, images=images, questions=questions, max_tokens=12)

    plain = AutoModelForImageTextToText.from_pretrained(vlm, dtype=torch.float32).eval()
    for image, question, answer in zip(images, questions, answers, strict=True):
        content = [
            {"type": "image", "image": (image * 255).round().to(torch.uint8)},
            {"type": "text", "text": question},
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            new = plain.generate(**inputs, do_sample=False, max_new_tokens=12, eos_token_id=3, pad_token_id=1)[
                0, inputs["input_ids"].shape[1] :
            ]
        assert answer.text == processor.tokenizer.decode(new, skip_special_tokens=True)
        assert answer.ended == (3 in new.tolist())
    assert len({answer.text for answer in answers}) > 1
    again = [
        write_answers(model, processor, images=images[k : k + 1], questions=questions[k : k + 1], max_tokens=12)[0]
        for k in range(3)
    ]
    assert again == answers


def test_a_model_without_an_end_is_refused():
    own = SimpleNamespace(eos_token_id=None, pad_token_id=None, bos_token_id=None)
    tokenizer = SimpleNamespace(eos_token_id=None, pad_token_id=None, name_or_path="endless")
    with pytest.raises(ValueError, match="endless has no eos_token"):
        make_greedy(SimpleNamespace(generation_config=own), tokenizer)
