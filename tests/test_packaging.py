"""Two distributions that fit each other: what is in them, and what the library does without the weights."""

import json
import re
import runpy
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import lidar_sampling
from lidar_sampling import LiDAR, glyph, rewards, testing
from lidar_sampling._embedded import find_weights
from lidar_sampling.cli import main
from lidar_sampling.discrete import molecules

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "packages/glyph"
CORE, GLYPH = (tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in (ROOT, WEIGHTS))
ABSENT = 'the embedded models are not installed: pip install "lidar-sampling[glyph]"'


def test_both_have_one_version_and_the_extra_asks_for_it():
    import lidar_sampling_glyph

    version = lidar_sampling.__version__
    assert (CORE["version"], GLYPH["version"], lidar_sampling_glyph.__version__) == (version, version, version)
    assert CORE["optional-dependencies"]["glyph"] == [f"lidar-sampling-glyph=={version}"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_both_carry_the_same_licences():
    assert CORE["license-files"] == GLYPH["license-files"] == ["LICENSE", "THIRD_PARTY.md"]
    for name in CORE["license-files"]:
        assert (ROOT / name).read_bytes() == (WEIGHTS / name).read_bytes(), f"copy {name} to packages/glyph"


def test_whatever_is_shipped_as_data_has_a_line_on_its_licence():
    page = (ROOT / "THIRD_PARTY.md").read_text()
    folder = find_weights("glyph").parent
    shipped = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix in (".safetensors", ".npy")]
    assert len(shipped) == 9
    for path in [*shipped, Path("glyph/classes.json")]:
        assert f"`{path.as_posix()}`" in page or f"`{'/'.join(path.parts[:2])}`" in page, path
    for path in (ROOT / "src/lidar_sampling/glyph/data").iterdir():
        assert path.name in page, path


def test_the_tiny_pipelines_have_a_copy_of_the_tokenizer():
    ours, theirs = Path(testing.__file__).parent / "tokenizer", find_weights("glyph") / "sd-glyph/tokenizer"
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
    assert all(path.read_bytes() == (theirs / path.name).read_bytes() for path in ours.iterdir())


def test_one_file_alone_looks_for_the_weights():
    files = [path for path in (ROOT / "src").rglob("*.py") if "lidar_sampling_glyph" in path.read_text()]
    assert sorted(path.name for path in files) == ["_doctor.py", "_embedded.py"]


@pytest.fixture
def absent(monkeypatch):
    """The weights are not installed."""
    monkeypatch.setitem(sys.modules, "lidar_sampling_glyph", None)


@pytest.mark.parametrize(
    "use",
    [
        lambda: LiDAR.from_pretrained("glyph"),
        lambda: rewards.load("glyph"),
        lambda: rewards.load("glyph-heldout"),
        glyph.Judge,
        glyph.load_pipeline,
        glyph.load_tiny_decoder,
        lambda: glyph.DATA,
        molecules.load_model,
        molecules.load_known.__wrapped__,
    ],
)
def test_without_the_weights_whatever_needs_them_says_what_to_install(absent, use):
    with pytest.raises(ImportError) as error:
        use()
    assert str(error.value) == ABSENT


def test_without_the_weights_all_else_works(absent):
    assert len(glyph.prompts()) == 553
    assert len(glyph.generate_hard_prompts()) == 200
    lidar = LiDAR(testing.tiny_stable_diffusion(), reward="brightness", n=2, steps=2)
    assert lidar("a cat", images=1).images.shape == (1, 1, 3, 16, 16)


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "a cat"],
        ["look", "a cat"],
        ["compare", "--prompts", "glyph:6"],
        ["molecules"],
    ],
    ids=lambda command: command[0],
)
def test_without_the_weights_a_command_neither_draws_nor_writes(absent, command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main([*command, "--out", "out"])
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"lidar: {ABSENT}\n")
    assert not list(tmp_path.iterdir())


def test_doctor_says_that_the_weights_are_not_installed(absent, capsys):
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--json"])
    assert end.value.code == 0
    (row,) = (row for row in json.loads(capsys.readouterr().out) if row["check"] == "embedded model")
    assert row["ok"]
    assert row["detail"].startswith("not installed")
    assert 'pip install "lidar-sampling[glyph]"' in row["detail"]


def test_weights_of_another_version_are_refused(monkeypatch, capsys):
    import lidar_sampling_glyph

    monkeypatch.setattr(lidar_sampling_glyph, "__version__", "9.9")
    message = "lidar-sampling-glyph is 9.9, and lidar-sampling .* needs its own: pip install"
    with pytest.raises(ImportError, match=message):
        glyph.load_pipeline()
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    assert end.value.code == 1
    assert re.search(rf"FAIL embedded model: ImportError: {message}", capsys.readouterr().out)


# The wheels themselves. Building them needs hatchling, which the extra test brings.


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the library, as an open archive."""
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    (path,) = builder.build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_is_small_and_holds_no_weights(wheel):
    assert sum(entry.compress_size for entry in wheel.infolist()) < 1_000_000
    names = wheel.namelist()
    assert "lidar_sampling/py.typed" in names
    assert "lidar_sampling/glyph/data/prompts.jsonl" in names
    assert "lidar_sampling/evaluation/report.css" in names
    assert "lidar_sampling/testing/tokenizer/vocab.json" in names
    assert not [name for name in names if name.endswith((".safetensors", ".npy", ".pyc"))]
    assert {name.split("/", 1)[1] for name in names if "/licenses/" in name} == {
        "licenses/LICENSE",
        "licenses/THIRD_PARTY.md",
    }


def test_the_page_on_an_index_has_no_link_that_leads_nowhere(wheel):
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    text = wheel.read(metadata).decode()
    assert "# lidar-sampling" in text
    assert all(target.startswith("https://") for target in re.findall(r"\]\(([^)]+)\)", text))


def test_the_address_of_the_repository_makes_all_links_absolute():
    pytest.importorskip("hatchling")
    absolute = runpy.run_path(str(ROOT / "hatch_build.py"))["with_absolute_links"]
    readme = (ROOT / "README.md").read_text()
    there = absolute(readme, "https://example.org/o/r", "v1")
    targets = re.findall(r"\]\(([^)]+)\)", there)
    assert len(targets) == len(re.findall(r"\]\(([^)]+)\)", readme))
    for target in targets:
        assert target.startswith("https://"), target
        if found := re.fullmatch(r"https://example\.org/o/r/(blob|raw)/v1/([^#]+).*", target):
            assert (ROOT / found[2]).exists(), target
    assert "](https://example.org/o/r/raw/v1/docs/pictures/demo.png)" in there
    gone = absolute("![a cat](a.png) and [the page](b.md) of [a paper](https://c.org)", "", "v1")
    assert gone == " and the page of [a paper](https://c.org)"


def test_the_other_wheel_holds_data_alone():
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(WEIGHTS))
    names = [file.distribution_path for file in builder.recurse_included_files() if "__pycache__" not in file.path]
    assert [name for name in names if name.endswith(".py")] == ["lidar_sampling_glyph/__init__.py"]
    assert sum(name.endswith(".safetensors") for name in names) == 8
