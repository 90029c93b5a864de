"""The paper's tables: consistent data, plans, verdicts with known answers, and the command end to end."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pictures import bert_tokenizer
from restated import image_reward_weights, openclip_weights
from test_cli import failure, lidar
from test_geneval_judge import tiny_mask2former

from lidar_sampling import LiDAR, glyph, rewards, testing
from lidar_sampling._cost import Cost
from lidar_sampling._geneval import CLASSES
from lidar_sampling.evaluation import figures, published, verdicts
from lidar_sampling.evaluation import reproduce as room
from lidar_sampling.evaluation.published import (
    CLIP,
    GENEVAL,
    HPS,
    IR,
    JUDGES,
    MODELS,
    SECONDS,
    TABLES,
    Claim,
    Row,
    Run,
    Study,
)
from lidar_sampling.evaluation.verdicts import FAILS, HOLDS, NOT_DRAWN, UNTOLD
from lidar_sampling.glyph import DATA
from lidar_sampling.methods import load, with_number
from lidar_sampling.rewards import hps
from lidar_sampling.rewards._mask2former import Instances
from lidar_sampling.rewards.clip import CLIPReward
from lidar_sampling.rewards.geneval import GenEvalJudge
from lidar_sampling.rewards.image_reward import ImageReward
from lidar_sampling.runs import Job

__all__ = ["lidar"]  # a fixture

STUDIES = [
    pytest.param(study, id=f"{name}-{model}") for name, t in TABLES.items() for model, study in t.studies.items()
]
NAMES = [(name, model) for name, table in TABLES.items() for model in table.studies]
PROMPTS = glyph.spread(glyph.prompts("geneval"), 2)  # two of each of the six tags


# The data


@pytest.mark.parametrize("study", STUDIES)
def test_every_claim_is_one_that_the_paper_s_own_figures_make(study):
    figures = {(run.name, row.key): row.figures for run in study.runs for row in run.rows}
    for claim in study.claims:
        pairs = list(verdicts._pairs(claim, study))
        assert pairs, claim
        for above, below in pairs:
            for judge in claim.judges:
                assert figures[above][judge] > figures[below][judge], (claim, above, judge)


@pytest.mark.parametrize("study", STUDIES)
def test_rows_have_names_of_their_own_and_methods_that_are_known(study):
    assert len({run.name for run in study.runs}) == len(study.runs)
    for run in study.runs:
        keys = [row.key for row in (*run.rows, *run.ours)]
        assert len(set(keys)) == len(keys)
        for row in (*run.rows, *run.ours):
            assert set(row.figures) <= {*JUDGES, SECONDS}
            assert bool(row.figures) == (row in run.rows)
            for manner in ("paper", "official"):
                load(with_number(row.drawn_by(manner), 8))


@pytest.mark.parametrize(("table", "model"), NAMES)
def test_every_run_is_a_job(table, model):
    what = room.read_target(table, f"{model}=some/model")
    for run in what.study.runs:
        job = room.job_of(what, run, PROMPTS)
        assert Job.from_json(job.to_json()) == job
        assert room.reward_names(job)[0] in (IR, CLIP)
        assert set(room.reward_names(job)) == set(room.judges_of(what.study))


def test_both_manners_of_a_switch_are_methods_that_differ():
    used = {name for _, t in TABLES.items() for s in t.studies.values() for r in s.runs for row in r.rows
            for name in re.findall(r"{(\w+)}", row.method)}  # fmt: skip
    assert used == set(published.SWITCHES)
    for study in (table.studies[model] for table, model in ((TABLES["table2"], "sd15"), (TABLES["table8"], "sd15"))):
        rows = [row for run in study.runs for row in run.rows if "{" in row.method]
        assert rows
        assert all(load(row.drawn_by("paper")) != load(row.drawn_by("official")) for row in rows)


def test_a_run_samples_as_the_paper_says(tiny_judges):
    job = room.job_of(room.read_target("table2", "sd15"), TABLES["table2"].studies["sd15"].runs[0], PROMPTS)
    sampler = LiDAR(testing.tiny_stable_diffusion(), reward=job.reward, settings=job.preset, **job.settings)
    guided = load(job.methods[-1]).sampler(sampler)
    s = guided.settings
    assert (s.steps, s.guidance_scale, s.eta, s.n, s.lookahead) == (100, 7.5, 1.0, 50, "dpm:5")
    assert (s.scale, s.reward_scale, s.window) == (12.5, 5000.0, (1.0, 0.2))
    assert type(guided.pipe.scheduler).__name__ == "DDIMScheduler"
    # 50 members in 5 steps and 4 pictures in 100, each with both branches of guidance
    assert load(job.methods[-1]).cost(sampler, images=4).network_evaluations == 2 * (50 * 5 + 4 * 100)


# The page


PAGE = (Path(__file__).parent.parent / "docs/reproduce.md").read_text()


@pytest.mark.parametrize(("table", "model"), NAMES)
def test_the_page_says_how_long_the_paper_s_rows_took(table, model):
    seconds = room.paper_seconds(TABLES[table].studies[model])
    hours = f"{published.PROMPTS * seconds / 3600:.1f}" if seconds else "not stated"
    assert re.search(rf"^\| {table} \| {model} \| .* \| {hours} \|$", PAGE, re.MULTILINE)


def test_the_page_names_every_switch_and_every_model():
    for name, switch in published.SWITCHES.items():
        for settings in (switch.paper, switch.official):
            assert f"`{name}:{settings}`" in PAGE
    for model in MODELS.values():
        assert model.weights is None or f"`{model.weights}` " in PAGE


# Which prompts


def test_the_order_of_prompts_is_that_of_no_file():
    assert room.in_order(PROMPTS) == room.in_order(PROMPTS[::-1])
    assert room.in_order(PROMPTS) != PROMPTS


def test_the_front_of_the_order_has_every_tag_in_its_share():
    lines = [
        {"prompt": f"{tag} {k}", "tag": tag} for tag, many in (("a", 40), ("b", 20), ("c", 10)) for k in range(many)
    ]
    order = [line["tag"] for line in room.in_order(lines)]
    for front in range(1, 71):
        for tag, many in (("a", 40), ("b", 20), ("c", 10)):
            assert abs(order[:front].count(tag) - front * many / 70) <= 1.5, (front, tag)


# Verdicts


def line(prompt, method, values, *, seconds=1.0, tag="t", guide=IR):
    given = {judge: list(found) for judge, found in values.items()}
    return {
        "prompt": str(prompt),
        "seed": 0,
        "tag": tag,
        "method": method,
        "images": len(next(iter(given.values()))),
        "guide": {"name": guide},
        "rewards": given,
        "diversity": None,
        "cost": {"network_evaluations": 1, "backward_passes": 0, "decodes": 1, "reward_calls": 0, "seconds": seconds},
    }


LOW, HIGH = Row("low", "low", "vanilla", {IR: 0.0}), Row("high", "high", "lidar", {IR: 0.5})
ONE = Study((Run("run", {}, (LOW, HIGH)),), (Claim("high is above low", "high", "low", (IR,)),))
METHODS = {"run": {"low": "vanilla", "high": "lidar"}}


def found_of(gains, study=ONE, methods=METHODS):
    """Return the findings if ``high`` is above ``low`` by these numbers, one per prompt."""
    rows = [
        line(k, name, {IR: [k + gain]}) for k, g in enumerate(gains) for name, gain in (("vanilla", 0), ("lidar", g))
    ]
    return verdicts.findings(study, methods, {"run": rows})


@pytest.mark.parametrize(
    ("gains", "answer"),
    [
        ([0.5, 0.7] * 10, HOLDS),
        ([-0.5, -0.7] * 10, FAILS),
        ([0.5, -0.5] * 10, UNTOLD),
        ([0.0] * 20, UNTOLD),  # no difference at all decides nothing
        ([0.5, 0.7] * 4, UNTOLD),  # eight prompts are too few, however sure they look
        ([0.5], UNTOLD),
    ],
)
def test_a_claim_holds_where_the_interval_lies_above_zero(gains, answer):
    (verdict,) = found_of(gains).verdicts
    assert verdict.answer == answer
    cell = verdict.cells[IR]
    assert cell.paper == 0.5
    assert cell.here.estimate == pytest.approx(sum(gains) / len(gains))


def test_differences_are_paired():
    """Prompts differ by 19 and the rows by a tenth, so an unpaired test could not decide."""
    found = found_of([0.1, 0.12] * 10)
    assert found.verdicts[0].answer == HOLDS
    low, high = (row.cells[IR].here for row in found.rows)
    assert low.high > high.low


def test_a_claim_by_several_judges_fails_by_one():
    study = Study((Run("run", {}, (LOW, HIGH)),), (Claim("", "high", "low", (IR, CLIP, HPS)),))

    def answer(clip, hps):
        rows = [
            line(k, name, {IR: [gain], CLIP: [gain * clip], HPS: [gain * hps]})
            for k in range(20)
            for name, gain in (("vanilla", 0.0), ("lidar", 1.0 + k / 100))
        ]
        return verdicts.findings(study, METHODS, {"run": rows}).verdicts[0].answer

    assert [answer(1, 1), answer(1, -1), answer(0, 1)] == [HOLDS, FAILS, UNTOLD]


def test_the_mean_the_best_image_and_the_units_of_the_paper():
    best = replace(HIGH, key="best", best=True)
    study = Study((Run("run", {}, (HIGH, best)),), ())
    values = {IR: [1.0, 3.0], CLIP: [20.0, 30.0]}
    rows = [line(k, "lidar", values, seconds=2.0) for k in range(12)]
    mean, of_best = verdicts.findings(study, {"run": {"high": "lidar", "best": "lidar"}}, {"run": rows}).rows
    assert [mean.cells[judge].here.estimate for judge in (IR, CLIP, SECONDS)] == [2.0, 0.25, 2.0]
    assert [of_best.cells[judge].here.estimate for judge in (IR, CLIP)] == pytest.approx([3.0, 0.3])


def test_geneval_is_the_mean_of_its_tags_and_a_reward_of_its_prompts():
    study = Study((Run("run", {}, (HIGH,)),), ())
    tags = ["a"] * 9 + ["b"] * 3
    rows = [
        line(k, "lidar", {IR: [float(tag == "b")], GENEVAL: [float(tag == "b")]}, tag=tag)
        for k, tag in enumerate(tags)
    ]
    (row,) = verdicts.findings(study, {"run": {"high": "lidar"}}, {"run": rows}).rows
    assert (row.cells[IR].here.estimate, row.cells[GENEVAL].here.estimate) == (0.25, 0.5)


def test_a_row_that_was_left_out_leaves_its_claim_open():
    found = found_of([0.5, 0.7] * 10, methods={"run": {"high": "lidar"}})
    assert found.verdicts[0].answer == NOT_DRAWN
    low, high = found.rows
    assert (low.method, high.method) == (None, "lidar")
    assert low.cells[IR].paper == 0.0


def test_prompts_that_a_row_lacks_do_not_count():
    rows = [line(k, "vanilla", {IR: [0.0]}) for k in range(20)] + [line(k, "lidar", {IR: [1.0]}) for k in range(12)]
    found = verdicts.findings(ONE, METHODS, {"run": rows})
    assert found.prompts == {"run": 12}
    assert verdicts.findings(ONE, METHODS, {"run": []}).verdicts[0].answer == NOT_DRAWN


def test_claims_across_runs_pair_prompts():
    runs = (Run("one", {}, (LOW,)), Run("two", {}, (HIGH,)))
    study = Study(runs, (Claim("", "two/high", "one/low", (IR,)),))
    lines = {
        "one": [line(k, "vanilla", {IR: [float(k)]}) for k in range(20)],
        "two": [line(k, "lidar", {IR: [k + 0.5 + k / 100]}, guide=CLIP) for k in range(20)],
    }
    (verdict,) = verdicts.findings(study, {"one": {"low": "vanilla"}, "two": {"high": "lidar"}}, lines).verdicts
    assert (verdict.answer, verdict.run) == (HOLDS, "two and one")


def test_a_star_marks_a_figure_of_the_paper_outside_of_ours():
    found = found_of([0.0, 0.01] * 10)
    text = verdicts.tables(found, study=ONE, of=553)
    assert text[0].head == ["method", "ImageReward, paper", "ImageReward, here", "s, paper", "s, here"]
    assert text[0].body[0][1] == "0.000"
    assert text[0].body[0][2].endswith(" *")  # prompts lie around 9.5, the paper's figure at 0
    assert "20 of 553 prompts, 4 images each" in text[0].caption


# The command, on tiny weights of the true classes


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory):
    """Save the four judges under their published names, and a tiny Mask2Former that sees dogs."""
    path = tmp_path_factory.mktemp("judges")
    torch.save(image_reward_weights(), path / "ImageReward.pt")
    torch.save({"state_dict": openclip_weights()}, path / "HPS_v2.1_compressed.pt")
    detector = tiny_mask2former()
    detector.class_predictor.bias.data[CLASSES.index("dog")] = 9.0
    detector.save_pretrained(path / "mask2former")
    found = {
        IR: ImageReward(path / "ImageReward.pt", tokenizer=bert_tokenizer(path / "bert")),
        CLIP: CLIPReward(DATA / "reward-clip"),
        HPS: hps.HPS(path / "HPS_v2.1_compressed.pt", tokenizer=DATA / "reward-clip"),
        GENEVAL: GenEvalJudge.from_pretrained(path / "mask2former", DATA / "reward-clip"),
    }
    for name, judge in found.items():
        judge.name = name
    return found


@pytest.fixture
def judges(tiny_weights, monkeypatch):
    """Replace the published weights; Mask2Former runs at 800 x 800 pixels, which takes most of the time."""
    monkeypatch.setattr(rewards, "load", lambda name, **_: tiny_weights[name])
    return tiny_weights


def dogs(image):
    """Return a detector that sees a dog in bright pictures."""
    count = int(image.mean() > 0.5)
    masks = torch.ones(count, *image.shape[1:], dtype=torch.bool)
    box = torch.tensor([[0.0, 0.0, image.shape[2], image.shape[1]]] * count).view(count, 4)
    return Instances(torch.full((count,), CLASSES.index("dog")), torch.full((count,), 0.95), box, masks)


@pytest.fixture
def tiny_judges(judges, monkeypatch):
    quick = GenEvalJudge(dogs, lambda crops, name: ["red"] * len(crops))
    monkeypatch.setattr(rewards, "load", lambda name, **_: quick if name == GENEVAL else judges[name])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    testing.tiny_stable_diffusion().save_pretrained(path / "sd15")
    testing.tiny_stable_diffusion_xl().save_pretrained(path / "sdxl")
    testing.tiny_flux().save_pretrained(path / "flux")
    return path


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    path = tmp_path_factory.mktemp("geneval") / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in PROMPTS))
    return path


def shortened(study):
    """Return a study with few steps and small banks, to keep tests short."""

    def row(one):
        method = re.sub(r"(?<=@)(250|200)$", "6", one.method)
        method = re.sub(r"(?<=@)25$", "3", method)
        method = method.replace("refine-N", "refine-N:steps=2")
        return replace(one, method=re.sub(r"(?<=\bn=)\d+|(?<=best-of-)\d+", "6", method))

    runs = [
        replace(
            run,
            rows=tuple(map(row, run.rows)),
            ours=tuple(map(row, run.ours)),
            settings={**run.settings, "steps": 4},
        )
        for run in study.runs
    ]
    return study._replace(runs=tuple(runs))


@pytest.fixture
def short(monkeypatch, tiny_judges):
    """Use tables with few steps, and comparisons without figures, which take longest."""
    monkeypatch.setattr(figures, "available", lambda: False)
    for name, table in TABLES.items():
        studies = {model: shortened(study) for model, study in table.studies.items()}
        monkeypatch.setitem(TABLES, name, table._replace(studies=studies))


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    """Return one prompt per tag."""
    path = tmp_path_factory.mktemp("geneval") / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in PROMPTS[::2]))
    return path


@pytest.fixture(scope="module")
def two(tmp_path_factory, six):
    path = tmp_path_factory.mktemp("geneval") / "two.jsonl"
    path.write_text("".join(six.read_text().splitlines(keepends=True)[:2]))
    return path


def command(models, metadata, table, out, *more, model="sd15"):
    base = ["reproduce", table, "--model", models / model, "--geneval", metadata, "--device", "cpu", "--out", out]
    return [*base, "--quiet", *more]


def lines_in(folder):
    return [
        json.loads(text) for path in sorted(folder.glob("results-*.jsonl")) for text in path.read_text().splitlines()
    ]


def test_table_2_end_to_end(lidar, short, models, two, tmp_path, monkeypatch):
    out = tmp_path / "reproduce/table2-sd15"  # as it is called by default
    code, stdout, stderr = lidar(*command(models, two, "table2", out))
    assert code == 0, stderr
    assert "of sd15 in 2 runs (ddpm-100, ddim-50); a step of one picture takes" in stderr
    assert "all 2 prompts: 152 pictures" in stderr
    assert "is not the file of the paper's 553 prompts" in stderr
    assert (out / "reproduce.md").read_text().strip() in stdout
    found = json.loads((out / "reproduce.json").read_text())
    assert found["model"] == "sd15"
    (plan,) = (json.loads(path.read_text())["plan"] for path in out.glob("plan-*.json"))
    total = Cost()
    for name, run in found["runs"].items():
        lines = lines_in(out / name)
        assert run["prompts"] == 2
        for row in run["rows"]:
            mine = [each for each in lines if each["method"] == row["method"]]
            values = [value for each in mine for value in each["rewards"][IR]]
            assert row["figures"][IR]["estimate"] == pytest.approx(sum(values) / len(values), rel=1e-6)
            assert len(mine) == 2
            assert row["figures"][CLIP]["estimate"] < 1  # the cosine, as in the paper
        first = [each for each in lines if each["prompt"] == plan["jobs"][name]["prompts"][0]["prompt"]]
        total = sum((Cost(**each["cost"]) for each in first), total)
    counts = ("network_evaluations", "backward_passes", "decodes", "reward_calls")
    assert {name: getattr(total, name) for name in counts} == {
        name: plan["per_prompt"]["cost"][name] for name in counts
    }
    assert {each["verdict"] for each in found["claims"]} == {UNTOLD}  # of two prompts
    assert "with fewer than 10 prompts no claim can be decided" in stderr
    assert {each["ours"] for each in found["claims"]} == {True, False}
    assert (out / "ddpm-100/report.html").exists()
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)  # which brings pictures into GenEval's layout
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/reproduce.md", "exec"), {})
    assert len(list((tmp_path / "geneval/00001/samples").glob("*.png"))) == 4
    asks = json.loads((tmp_path / "geneval/00001/metadata.jsonl").read_text())
    assert asks == plan["jobs"]["ddpm-100"]["prompts"][1]


FIXED = room.Pace(room.Rates(0.0, 0.0, 0.0), judging=0.25, step=0.125)
FEW = ["--without", "vanilla-more,ug,date,ours"]  # vanilla and LiDAR are left


def test_a_prompt_that_comes_twice_is_drawn_once_and_the_plan_is_complete(tmp_path):
    what = room.read_target("table2", "sd15")
    twice = [*PROMPTS[:2], PROMPTS[0]]
    job = replace(room.job_of(what, what.study.runs[0], twice), methods=["vanilla"])
    plan = room.Plan({"run": job}, {}, 3, room.Forecast(1, Cost(), 1.0), 0.1)
    (tmp_path / "run").mkdir()
    file = tmp_path / "run/results-0.jsonl"
    texts = [json.dumps(line(one["prompt"], "vanilla", {IR: [1.0]})) + "\n" for one in PROMPTS[:2]]
    file.write_text(texts[0])
    assert not room.complete(plan, tmp_path)
    file.write_text("".join(texts))
    assert room.complete(plan, tmp_path)


def report_of(out):
    return json.loads((out / "reproduce.json").read_text())


def test_the_same_command_goes_on_and_draws_nothing_twice(lidar, short, models, six, tmp_path):
    out = tmp_path / "out"
    assert lidar(*command(models, six, "table2", out, *FEW))[0] == 0
    file, whole = out / "ddim-50/results-0.jsonl", report_of(out)
    before = file.read_text()
    texts = before.splitlines(keepends=True)
    file.write_text("".join(texts[:5]) + texts[5][:40])  # killed in the middle of a line
    code, _, stderr = lidar(*command(models, six, "table2", out, *FEW, "--fast", "encode-once"))  # computes the same
    assert code == 0, stderr
    lines = lines_in_text(file)
    assert [name_of(each) for each in lines] == [name_of(json.loads(text)) for text in texts]
    assert [each["rewards"] for each in lines] == [json.loads(text)["rewards"] for text in texts]
    assert "measuring" not in stderr  # the plan was kept
    assert claims(report_of(out)) == claims(whole)


def lines_in_text(file):
    """Return the whole lines of a file with one that was cut off."""
    return [json.loads(text) for text in file.read_text().splitlines() if text.endswith("}")]


def name_of(line):
    return line["prompt"], line["method"]


def claims(report):
    return [(each["claim"], each["run"], each["verdict"]) for each in report["claims"]]


def test_a_budget_takes_the_first_prompts_of_the_order_and_a_larger_one_goes_on(
    lidar, short, models, six, tmp_path, monkeypatch
):
    monkeypatch.setattr(room.Pace, "measure", classmethod(lambda cls, *_: FIXED))
    out = tmp_path / "out"  # a prompt is 2 runs of 2 rows of 4 pictures, a quarter of a second each: 4 s
    code, _, stderr = lidar(*command(models, six, "table2", out, *FEW, "--budget", "11s"))
    assert code == 0, stderr
    assert "a step of one picture takes 0.125 s" in stderr
    assert "for the budget only the first 2 of 6 prompts in a fixed random order: 32 pictures" in stderr
    assert "about 8 s; all would take about 24 s" in stderr
    order = [each["prompt"] for each in room.in_order(PROMPTS[::2])]
    assert list(dict.fromkeys(each["prompt"] for each in lines_in(out / "ddpm-100"))) == order[:2]
    assert "2 of 6 prompts, 4 images each" in (out / "reproduce.md").read_text()
    before = (out / "ddpm-100/results-0.jsonl").read_text()
    assert lidar(*command(models, six, "table2", out, *FEW, "--budget", "16s"))[0] == 0
    after = (out / "ddpm-100/results-0.jsonl").read_text()
    assert after.startswith(before)
    assert list(dict.fromkeys(each["prompt"] for each in lines_in(out / "ddpm-100"))) == order[:4]
    err = failure(lidar(*command(models, six, "table2", out, *FEW, "--budget", "3s")))
    assert "a budget of 3 s is too small: one prompt takes about 4 s here" in err
    code, stdout, _ = lidar(*command(models, six, "table2", out, *FEW, "--budget", "11s", "--collect", "--json"))
    assert code == 0
    assert json.loads(stdout)["runs"]["ddpm-100"]["prompts"] == 2
    assert "nothing was planned" in failure(
        lidar(*command(models, six, "table2", out, *FEW, "--budget", "9s", "--collect"))
    )


def test_rows_of_ours_cost_what_lidar_costs(short, tiny_judges):
    what = room.read_target("table2", "sd15=tiny")
    pipe = testing.tiny_stable_diffusion()

    def sampler(job):
        return LiDAR(pipe, reward=job.reward, metrics=job.metrics, settings=job.preset, **job.settings)

    made, samplers = room.plan(what, PROMPTS, sampler, None)
    for name, job in made.jobs.items():
        costs = {key: load(method).cost(samplers[name], images=4).network_evaluations
                 for key, method in made.methods[name].items()}  # fmt: skip
        assert costs["lidar"] == 2 * (6 * 5 + 4 * 4)
        for key, step in (("best-of-n", 8), ("best-of-n-25", 6), ("steered", 6), ("refine", 10)):
            if key in costs:
                assert costs["lidar"] - step < costs[key] <= costs["lidar"], key
        assert job.budget is None
    assert "steered" in made.methods["ddpm-100"]
    assert room.Plan.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize(("table", "model"), [pair for pair in NAMES if pair[1] != "sd15-dpo"])
def test_a_dry_run_plans_with_the_paper_s_settings_and_needs_no_weights_of_lookaheads(
    lidar, tiny_judges, models, six, tmp_path, monkeypatch, table, model
):
    sizes = []
    monkeypatch.setattr(room.Pace, "measure", classmethod(lambda cls, *given: sizes.append(given[2]) or FIXED))
    code, stdout, stderr = lidar(*command(models, six, table, tmp_path / "out", "--dry-run", model=model))
    assert code == 0, stderr
    plan = json.loads(stdout)
    assert not (tmp_path / "out").exists()
    jobs = [Job.from_json(job) for job in plan["jobs"]]
    assert {job.model for job in jobs} == {str(models / model)}
    assert {job.preset for job in jobs} == {MODELS[model].preset}
    assert plan["per_prompt"]["pictures"] == sum(job.images * len(job.methods) for job in jobs)
    assert sizes == [max(job.images for job in jobs)]
    counts = plan["per_prompt"]["pictures"], plan["per_prompt"]["cost"]["network_evaluations"]
    assert f"| {table} | {model} | {counts[0]} | {counts[1]:,} | " in PAGE


def test_table_3_end_to_end_with_the_true_judge(lidar, short, judges, models, two, tmp_path, monkeypatch):
    monkeypatch.setattr(rewards, "load", lambda name, **_: judges[name])
    (run,), claims = TABLES["table3"].studies["flux"]
    rows = tuple(replace(row, method=row.method.replace("hyper-flux:8", "own:2")) for row in run.rows[:2])
    studies = {"flux": Study((replace(run, rows=rows),), claims[:1])}
    monkeypatch.setitem(TABLES, "table3", TABLES["table3"]._replace(studies=studies))
    job_of = room.job_of
    monkeypatch.setattr(room, "job_of", lambda *a, **k: replace(job_of(*a, **k), call={"height": 16, "width": 16}))
    code, _, stderr = lidar(*command(models, two, "table3", tmp_path / "out", model="flux"))
    assert code == 0, stderr
    found = report_of(tmp_path / "out")
    assert all(row["figures"][GENEVAL]["estimate"] is not None for row in found["runs"]["flux"]["rows"])


def test_table_6_draws_a_run_per_reward(lidar, short, models, two, tmp_path):
    out = tmp_path / "out"
    code, _, stderr = lidar(*command(models, two, "table6", out))
    assert code == 0, stderr
    guides = {name: lines_in(out / name)[0]["guide"] for name in report_of(out)["runs"]}
    assert (guides["image-reward"]["name"], guides["clip"]["name"]) == (IR, CLIP)
    assert guides["mix-10-90"]["weights"] == {IR: 0.1, CLIP: 0.9}
    assert {each["run"] for each in report_of(out)["claims"]} >= {"clip and image-reward"}


def test_table_8_draws_each_population_once_in_either_manner(lidar, short, models, two, tmp_path, monkeypatch):
    table = TABLES["table8"]
    study = table.studies["sd15"]
    monkeypatch.setitem(TABLES, "table8", table._replace(studies={"sd15": study._replace(runs=study.runs[1:2])}))
    for manner, how in (("paper", "form=paper,potential=max"), ("official", "form=cut,potential=difference")):
        out = tmp_path / manner
        more = ["--as", manner, "--dtype", "float32"]
        assert lidar(*command(models, two, "table8", out, *more))[0] == 0
        (job,) = (json.loads(path.read_text())["plan"]["jobs"]["n-2"] for path in out.glob("plan-*.json"))
        assert job["methods"] == [f"fk:{how}", f"fk+lidar:{how}", "vanilla", "lidar:n=6,lookahead=dpm:5"]
        rows = {row["key"]: row["figures"][IR]["estimate"] for row in report_of(out)["runs"]["n-2"]["rows"]}
        assert rows["smc"] <= rows["smc-bon"]
        assert rows["bon"] == pytest.approx(
            sum(max(each["rewards"][IR]) for each in lines_in(out / "n-2") if each["method"] == "vanilla") / 2
        )


def test_processes_share_a_table(lidar, short, models, two, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    code, stdout, stderr = lidar(*command(models, two, "table2", out, *FEW))
    assert code == 0, stderr  # it drew the share of the other, which never started
    assert "LiDAR is above plain sampling" in stdout
    assert {path.name for path in (out / "ddpm-100").glob("results-*")} == {"results-1.jsonl"}


def test_several_gpus_are_ray_s(lidar, short, models, two, tmp_path, monkeypatch):
    from lidar_sampling.runs import local, ray

    asked = []

    def run(job, out, *, address, workers, tell):
        asked.append((address, workers))
        return local.run(job, out, tell=tell)

    monkeypatch.setattr(ray, "run", run)
    assert lidar(*command(models, two, "table2", tmp_path / "a", *FEW, "--gpus", "3"))[0] == 0
    assert lidar(*command(models, two, "table2", tmp_path / "b", *FEW, "--ray", "auto"))[0] == 0
    assert asked == [(None, 3)] * 2 + [("auto", 1)] * 2


def test_the_list_of_tables(lidar):
    code, stdout, _ = lidar("reproduce")
    assert code == 0
    for name in TABLES:
        assert f"{name}\n" in stdout
    assert "table4\n  not drawn here: its molecules" in stdout
    code, stdout, _ = lidar("reproduce", "--json")
    assert json.loads(stdout)["table2"]["models"] == ["sd15", "sdxl"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table22"], "no table 'table22'; did you mean 'table2'?"),
        (["table4"], "table4 is not drawn here: its molecules are drawn by 'lidar molecules'"),
        (["table10", "--model", "sd15"], "table10 is of sdxl, not of sd15"),
        (
            ["table5", "--model", "sd15-dpo"],
            "no pipeline of sd15-dpo is known on the hub: give one, --model sd15-dpo=PATH",
        ),
        (["table2", "--model", "nowhere"], "cannot read what kind of model 'nowhere' is: give a name (sd15,"),
        (["table2", "--as", "mine"], "--as must be paper or official, got 'mine'"),
        (
            ["table2", "--without", "das"],
            "--without: no row 'das'; there are vanilla, vanilla-more, ug, date, lidar,",
        ),
        (["table7", "--without", "vanilla,safe-denoiser,spell,lidar"], "leaves nothing to draw"),
        (["table2", "--budget", "480"], "a time must be a number with its unit, as 30s, 90min, 2h or 1d, got '480'"),
        (["table2"], "give GenEval's prompts by --geneval FILE or GENEVAL_METADATA"),
    ],
)
def test_wrong_use_is_told_in_a_line_before_anything_is_loaded(lidar, monkeypatch, words, message):
    monkeypatch.delenv("GENEVAL_METADATA", raising=False)
    assert message in " ".join(failure(lidar("reproduce", *words)).split())


def test_prompts_that_are_not_geneval_s_are_refused(lidar, models, tmp_path, monkeypatch):
    path = tmp_path / "mine.txt"
    path.write_text("a cat\n")
    monkeypatch.setenv("GENEVAL_METADATA", str(path))
    err = failure(lidar("reproduce", "table2", "--model", models / "sd15"))
    assert "prompt 1 is not GenEval's metadata: it has no tag or include" in " ".join(err.split())


def test_a_path_tells_its_model_and_another_pipeline_is_refused(models, tmp_path):
    assert room.read_target("table2", str(models / "sdxl")).model == "sdxl"
    assert room.read_target("table5", str(models / "sd15")).model == "sd15"
    assert room.read_target("table5", f"sd15-dpo={models / 'sd15'}").model == "sd15-dpo"
    with pytest.raises(ValueError, match="table3 is of flux, not of sd15"):
        room.read_target("table3", str(models / "sd15"))
    testing.tiny_pixart_sigma().save_pretrained(tmp_path / "pixart")
    with pytest.raises(
        ValueError, match="is a PixArtSigmaPipeline, and the paper's models are sd15, sd15-dpo, sdxl, flux"
    ):
        room.read_target("table2", str(tmp_path / "pixart"))


def test_a_damaged_plan_is_named(lidar, short, models, two, tmp_path):
    out = tmp_path / "out"
    assert lidar(*command(models, two, "table2", out, *FEW))[0] == 0
    (plan,) = out.glob("plan-*.json")
    plan.write_text('{"plan": {}}')
    err = failure(lidar(*command(models, two, "table2", out, *FEW)))
    assert f"{plan} is damaged" in err
    assert "remove it, and it is planned again" in err


def test_a_row_that_the_model_cannot_draw_names_the_mend(tiny_judges, models):
    what = room.read_target("table7", "sd15=tiny")
    pipe = testing.tiny_stable_diffusion()

    def sampler(job):  # a bank that is smaller than the 15 that Safe-Denoiser repels
        return LiDAR(pipe, reward=job.reward, metrics=job.metrics, settings=job.preset, **job.settings, n=4)

    with pytest.raises(
        ValueError, match=r"safe-denoiser: worst must be at most n = 4.*; leave the row out with --without"
    ):
        room.plan(what, PROMPTS, sampler, None)
