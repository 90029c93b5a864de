"""The site of the documentation: it builds without a warning, no link in it is dead, and it needs no network."""

import inspect
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer

from lidar_sampling.cli import app

pytest.importorskip("sphinx")
pytest.importorskip("furo")
pytest.importorskip("myst_parser")

ROOT = Path(__file__).parent.parent


def build(source, out):
    """Build a site as ``make docs`` does; returns the finished process."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", ROOT / "docs"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*command, "-d", out / ".doctrees", "-b", "html", source, out],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr
    return out


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it that a link may name."""

    def __init__(self, path):
        super().__init__()
        self.path, self.links, self.loads, self.places = path, [], [], {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.places |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in {"script", "img", "iframe"} and found.get("src"):
            self.loads.append(found["src"])
        if tag == "link" and found.get("rel") in {"stylesheet", "preload", "icon", "shortcut icon"}:
            self.loads.append(found["href"])


@pytest.fixture(scope="module")
def pages(site):
    found = {path: Page(path) for path in site.rglob("*.html")}
    assert len(found) > 60
    return found


def test_no_link_is_dead(pages):
    dead = []
    for page in pages.values():
        for link in [*page.links, *page.loads]:
            target = urlsplit(link)
            if target.scheme or target.netloc:
                continue
            path = (page.path.parent / unquote(target.path)).resolve() if target.path else page.path
            if not path.is_file():
                dead.append(f"{page.path.name}: {link}")
            elif path in pages and unquote(target.fragment) not in pages[path].places:
                dead.append(f"{page.path.name}: {link} (no such place)")
    assert not dead, "\n".join(dead)


def test_no_page_loads_anything_from_elsewhere(site, pages):
    foreign = [(page.path.name, load) for page in pages.values() for load in page.loads if urlsplit(load).netloc]
    assert not foreign
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert len(styles) > 10_000
    assert not re.search(r"url\(\s*[\"']?(https?:)?//|@import", styles)


def test_search_needs_no_server(site, pages):
    """The index is a script, which a page from the disk may load, and it knows words of pages and of code."""
    assert any(load.endswith("searchindex.js") for load in pages[site / "search.html"].loads)
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text[text.index("(") + 1 : text.rindex(")")])
    names = index["docnames"]
    for word, page in (("tweedi", "docs/method"), ("schedul", "docs/howto"), ("surfboard", "docs/gallery")):
        found = index["terms"][word]
        assert names.index(page) in (found if isinstance(found, list) else [found]), word
    assert any("mean_shift" in str(each) for each in index["objects"].values())


def test_every_page_of_docs_is_on_the_site(site):
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT)).with_suffix(".html").is_file(), page


ROOMS = ["", ".methods", ".rewards", ".solvers", ".discrete", ".glyph", ".runs", ".evaluation"]


@pytest.mark.parametrize("room", ROOMS)
def test_the_reference_has_every_public_name(pages, room):
    """A public name is one that the package re-exports as ``X as X``."""
    module = import_module(f"lidar_sampling{room}")
    names = re.findall(r"import (\w+) as \1\b", Path(module.__file__).read_text(encoding="utf-8"))
    assert len(names) >= 4
    places = {place for path, page in pages.items() if path.parent.name == "api" for place in page.places}
    for name in names:
        thing = getattr(module, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):  # not the name of a type, nor a table
            home = ".rewards" if name == "RewardError" else room  # which has two
            assert f"lidar_sampling{home}.{name}" in places, name


def test_the_reference_has_every_name_that_a_page_imports(pages):
    places = {place for path, page in pages.items() if path.parent.name == "api" for place in page.places}
    found = 0
    for page in (ROOT / "docs").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for room, names in re.findall(r"^from (lidar_sampling[\w.]*) import ([\w, ]+)$", text, re.MULTILINE):
            for name in names.split(", "):
                found += 1
                assert places & {f"{room}.{name}", f"module-{room}.{name}"}, f"{page.name} imports {room}.{name}"
    assert found > 30


def test_the_page_of_the_command_line_has_every_command(site, pages):
    page = site / "docs/api/command.html"
    places = pages[page].places
    commands = typer.main.get_command(app).commands
    assert len(commands) > 15
    assert {f"lidar-{name}" for name in commands} <= places
    assert "--beside-vanilla" in page.read_text(encoding="utf-8")


def test_dead_links_stop_the_build_and_good_ones_do_not(tmp_path):
    docs = tmp_path / "source" / "docs"
    docs.mkdir(parents=True)
    dead = {"missing.md", "other.md#nowhere", "#here", "missing.png"}
    links = "\n\n".join(f"{'!' if link.endswith('png') else ''}[a]({link})" for link in sorted(dead))
    menu = "```{toctree}\n\nother\n```"
    (docs / "README.md").write_text(f"# Home\n\n[a](other.md) [b](other.md#here) [c](#home)\n\n{links}\n\n{menu}\n")
    (docs / "other.md").write_text("# Other\n\n## Here\n")
    done = build(tmp_path / "source", tmp_path / "out")
    assert done.returncode != 0
    assert done.stderr.count("WARNING") == len(dead), done.stderr
    for link in dead:
        assert link.split("#")[-1] in done.stderr
