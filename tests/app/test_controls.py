"""Controls, Jobs and pictures, the page's texts and its plot; all without a browser."""

import re
import shlex
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lidar_sampling import Cost, LiDAR, testing
from lidar_sampling.app import words
from lidar_sampling.app.controls import Controls, as_command, as_python, plain, restore
from lidar_sampling.app.page import usual_controls
from lidar_sampling.app.plot import trace_svg
from lidar_sampling.methods import Rates
from lidar_sampling.rewards import Mixture
from lidar_sampling.runs import Job

BASE = Job(prompts=["-"], reward="glyph")
USUAL = Controls(
    prompt="a cat",
    reward="glyph",
    method="lidar",
    images=4,
    seed=0,
    bank_seed=0,
    only="",
    n=8,
    scale=6.0,
    auto=False,
    strength=20.0,
    steps=10,
    beside=True,
)


def controls():
    """Generate any values that a person may set and that can be drawn."""
    return st.builds(
        Controls,
        prompt=st.text(min_size=1, max_size=30).filter(lambda text: text.strip() and text.isprintable()),
        reward=st.sampled_from(["glyph", "brightness", "glyph:0.9+brightness:0.1"]),
        method=st.sampled_from(["lidar", "vanilla"]),
        images=st.integers(3, 16),
        seed=st.integers(0, 2**31),
        bank_seed=st.integers(0, 9),
        only=st.sampled_from(["", "2", "0,1"]),
        n=st.integers(1, 64),
        scale=st.floats(0, 20),
        auto=st.booleans(),
        strength=st.floats(0, 100),
        steps=st.integers(1, 100),
        beside=st.booleans(),
    )


@given(controls())
def test_a_job_restores_the_controls_that_made_it(asked):
    other = replace(USUAL, n=3, scale=1.0, auto=True, steps=4, method="vanilla", only="1", images=2)
    found, lost = restore(asked.job(BASE).to_json(brief=True), BASE, other)
    assert replace(other, **found).job(BASE) == asked.job(BASE)
    assert lost == []


def test_what_a_picture_leaves_out_goes_back_to_the_usual_values():
    found, lost = restore({"prompts": ["a dog"]}, BASE, USUAL)
    assert replace(USUAL, **found) == replace(USUAL, prompt="a dog")
    assert "beside" not in found
    assert lost == []
    moved = replace(USUAL, method="vanilla", n=50, scale=1.0, auto=True, strength=3.0, steps=7, only="1", seed=5)
    assert replace(moved, **found) == replace(USUAL, prompt="a dog")


def test_what_no_control_sets_is_named():
    settings = {"guidance_scale": 2.0, "noise": "cps:0.5", "window": [0.9, 0.3], "lookahead": "dpm:3", "n": 8}
    job = Job(
        prompts=[{"prompt": "a dog", "source": "dog.png"}],
        reward="glyph",
        settings=settings,
        call={"height": 64},
        scheduler="DDIMScheduler",
        metrics=["brightness"],
    )
    found, lost = restore(job.to_json(brief=True), BASE, USUAL)
    assert found["n"] == 8
    assert lost == [
        "metrics",
        "call",
        "scheduler",
        "guidance_scale",
        "noise",
        "window",
        "lookahead",
        "the metadata of the prompt",
    ]
    assert words.say_restored(lost[:2]) == "Settings restored, but not metrics, call: the page draws with its own."
    shared = replace(BASE, settings={"guidance_scale": 2.0, "window": (0.9, 0.3)}, metrics=["brightness"])
    assert restore(job.to_json(), shared, USUAL)[1] == [
        "call",
        "scheduler",
        "noise",
        "lookahead",
        "the metadata of the prompt",
    ]
    assert restore({"prompts": ["a dog"]}, shared, USUAL)[1] == ["metrics", "guidance_scale", "window"]


def test_what_the_picture_of_another_model_or_reward_leaves_out_is_named():
    other = replace(BASE, model="some/model", reward="clip")
    found, lost = restore({"prompts": ["a dog"], "methods": ["vanilla"]}, other, replace(USUAL, reward="clip"))
    assert (found["reward"], found["method"], lost) == ("glyph", "vanilla", ["model"])
    found, lost = restore({"prompts": ["a dog"], "reward": "brightness"}, BASE, USUAL)
    assert (found["strength"], lost) == (USUAL.strength, ["reward_scale"])
    said = {"prompts": ["a dog"], "reward": "brightness", "settings": {"reward_scale": "auto"}}
    found, lost = restore(said, BASE, USUAL)
    assert (found["auto"], found["strength"], lost) == (True, USUAL.strength, [])
    assert restore({"prompts": [{"prompt": "a photo of a dog"}]}, BASE, USUAL)[1] == []
    embedded = Job(prompts=["a photo of a dog"]).line(0)
    assert restore({"prompts": [embedded]}, BASE, USUAL)[1] == []


@given(controls())
def test_python_that_is_copied_is_the_job(asked):
    made = {}
    exec(as_python(asked.job(BASE)).split("run(job")[0], made)
    assert made["job"] == asked.job(BASE)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(asked=controls())
@example(asked=replace(USUAL, prompt='--help $HOME\'s "hat"'))
def test_a_command_that_is_copied_is_the_job(asked, parsed):
    job = asked.job(BASE)
    assert parsed(shlex.split(as_command(job))[1:]) == job


@pytest.fixture(scope="module")
def parsed():
    """Return the Job that a command line would carry out."""
    from lidar_sampling.cli import _generate, app

    jobs = []

    def command(arguments):
        import typer

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_generate, "carry_out", lambda job, *_, **__: jobs.append(job))
            typer.main.get_command(app).main(arguments, standalone_mode=False)
        return replace(jobs[-1], prompts=[jobs[-1].text(0)])

    return command


def test_plain_samples_do_not_depend_on_the_bank():
    other = replace(USUAL, n=32, scale=1.0, auto=True)
    assert plain(USUAL.job(BASE)) == plain(other.job(BASE))
    assert plain(USUAL.job(BASE)) != plain(replace(USUAL, steps=11).job(BASE))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "  "}, "write a prompt first"),
        ({"only": "x"}, "must be numbers from 0, comma separated, got 'x'"),
        ({"only": "9"}, "only must name different samples of 0 to 3"),
        ({"method": "best-off-4"}, "unknown method"),
        ({"reward": "glpyh"}, "did you mean 'glyph'"),
    ],
)
def test_what_cannot_be_drawn_is_said(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(USUAL, **changes).job(BASE)


def test_a_control_that_was_cleared_is_named():
    with pytest.raises(ValueError, match="bank seed is empty: give it a value"):
        replace(USUAL, bank_seed=None).job(BASE)


def test_a_picture_without_a_prompt_is_refused():
    with pytest.raises(ValueError, match="names no prompt"):
        restore({"settings": {}}, BASE, USUAL)


def test_what_it_costs_with_and_without_a_bank():
    whole, left = Cost(network_evaluations=900, reward_calls=50), Cost(network_evaluations=400)
    rates = Rates(network=0.02, decode=0.0, reward=0.0)
    assert words.cost_line(whole, rates, None) == "**900 network evaluations, 50 reward calls, about 18 s here.**"
    assert "400 network evaluations are left, about 8 s." in words.cost_line(whole, rates, left)


def test_the_plot_is_drawn_to_scale():
    rows = [
        {"ess_tilted": [4.0, 2.0], "shift_norm": [1.0, 3.0]},
        {"ess_tilted": [1.0, 1.0], "shift_norm": [0.0, 0.0]},
    ]
    svg = ET.fromstring(trace_svg(rows))
    first, second = (
        [tuple(map(float, point.split(","))) for point in line.get("points").split()] for line in svg.iter("polyline")
    )
    labels = [text.text for text in svg.iter("text")]
    assert {"members in effect", "size of the shift", "5", "2.5", "guided step, 1 to 2"} <= set(labels)
    assert first[0][1] < first[1][1]  # three members are above one
    assert second[0][1] < second[1][1]
    assert trace_svg([]) == ""


def test_text_of_others_is_never_markup():
    assert "<script>" not in words.refusal("<script>alert(1)</script>")
    assert re.search("&lt;script&gt;", words.refusal("<script>alert(1)</script>"))


def test_the_page_starts_with_the_mixture_that_it_was_given():
    job = Job(["a cat"], reward={"brightness": 0.5, "jpeg-compressibility": 0.5})
    lidar = LiDAR(testing.tiny_stable_diffusion(), reward=Mixture(job.reward))
    assert usual_controls(lidar, job).reward == "brightness:0.5+jpeg-compressibility:0.5"
