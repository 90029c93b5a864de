"""One reader of NAME=VALUE: a value is set as it is written, or refused by name."""

import json
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lidar_sampling import testing
from lidar_sampling._values import accepts, annotations_of, check_settings, read_named, read_value
from lidar_sampling.cli._options import set_scheduler
from lidar_sampling.runs import Job

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(values)
def test_values_are_read_as_json_and_as_python_spell_them(value):
    assert read_value(json.dumps(value)) == value
    assert read_value(repr(value)) == value


@pytest.mark.parametrize("text", ["oil painting", "a, b", "it's", "2 cats", "true blue", "f(x)", "None of it", ""])
def test_what_is_neither_is_text(text):
    assert read_value(text) == text


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["height"], "--call must be NAME=VALUE, got 'height'"),
        (["=3"], "--call must be NAME=VALUE"),
        (["a b=3"], "--call must be NAME=VALUE"),
        (["a=1", "a=2"], "--call gives a twice"),
    ],
)
def test_other_forms_are_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        read_named(texts, "--call")


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (bool, [True, False], ["False", 0, None]),
        (int, [0, -3], [True, 0.5, "1", None]),
        (float, [0.5, 1], ["1", True, None]),
        (int | None, [1, None], ["", 0.5]),
        (Literal["max", "sum"], ["max"], ["MAX", None]),
        (tuple[float, ...], [[0.1], (1, 2)], [["a"], 3]),
        (tuple[float, float], [(1, 2)], [(1, 2, 3)]),
        (list[int], [[1], ()], [["a"], "1"]),
        (object, [1, "x"], []),
    ],
)
def test_types_are_checked(annotation, good, bad):
    assert all(accepts(annotation, value) for value in good)
    assert not any(accepts(annotation, value) for value in bad)


def test_names_and_types_are_those_of_what_is_set():
    def function(self, steps: int = 3, name: str = None, *rest, how: "Missing" = 1, **more): ...  # noqa: F821, RUF013

    known = annotations_of(function)
    assert set(known) == {"steps", "name", "how"}
    with pytest.raises(ValueError, match="it has no 'stepz'; did you mean 'steps'"):
        check_settings("it", {"stepz": 3}, known)


class TestScheduler:
    @pytest.fixture
    def pipe(self):
        return testing.tiny_stable_diffusion()

    @pytest.mark.parametrize("spelt", ["False", "false"])
    def test_a_flag_that_is_off_is_off(self, pipe, spelt):
        set_scheduler(pipe, f"EulerDiscreteScheduler:rescale_betas_zero_snr={spelt}")
        assert pipe.scheduler.config.rescale_betas_zero_snr is False

    def test_lists_keep_their_commas(self, pipe):
        text = "DDIMScheduler:trained_betas=[0.1, 0.2],num_train_timesteps=2,clip_sample=False"
        set_scheduler(pipe, text)
        assert pipe.scheduler.config.trained_betas == [0.1, 0.2]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("EulerDiscreteScheduler:use_karras_sigma=true", "did you mean 'use_karras_sigmas'"),
            (
                "EulerDiscreteScheduler:use_karras_sigmas=maybe",
                "Scheduler: use_karras_sigmas must be bool",
            ),
            ("EulerDiscreteScheduler:num_train_timesteps=3.5", "must be int"),
            ("Euler", "names no scheduler of diffusers"),
            ("UNet2DModel", "names no scheduler of diffusers"),
        ],
    )
    def test_what_it_has_not_is_refused_before_a_model_is_loaded(self, text, message):
        with pytest.raises(Exception, match=message):
            Job(prompts=("a cat",), model="/nowhere", reward="brightness", scheduler=text)
