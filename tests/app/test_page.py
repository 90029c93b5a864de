"""The page as a person uses it, in Chromium, on a tiny pipeline; skipped without a browser."""

import json
import os
import re
import time

import pytest

from benchmarks.page import ARGUMENTS, chromium, serve
from lidar_sampling import testing

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
BROWSER = chromium()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

REWARDS = """
def failing(*, images, prompts):
    raise RuntimeError("the reward broke")

def dark(*, images, prompts):
    return 1 - images.mean((1, 2, 3))
"""
SECONDS = 60_000  # timeout in milliseconds: the machine may be busy


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    place = tmp_path_factory.mktemp("page")
    testing.tiny_stable_diffusion().save_pretrained(place / "tiny")
    (place / "mine.py").write_text(REWARDS)
    options = ["--model", str(place / "tiny"), "--reward", "brightness", "--folder", str(place / "desk")]
    with serve(*options, cwd=place, env={**os.environ, "OMP_NUM_THREADS": "1"}) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(SECONDS)
    page.outside, page.errors = [], []
    page.on(
        "request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else page.outside.append(r.url)
    )
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#draw")
    page.locator("#cost p").first.wait_for()
    yield page
    assert page.outside == []
    assert page.errors == []
    page.close()


def write(page, prompt):
    page.get_by_label("Prompt", exact=True).fill(prompt)


def set_number(page, label, value):
    box = page.get_by_role("spinbutton", name=f"number input for {label}")
    box.fill(str(value))
    box.press("Tab")


def draw(page, prompt, **numbers):
    write(page, prompt)
    open_settings(page)
    for label, value in {"Images": 2, "Lookahead samples, n": 4, "Steps": 4, **numbers}.items():
        set_number(page, label, value)
    page.click("#draw")


def open_settings(page):
    steps = page.get_by_role("spinbutton", name="number input for Steps")
    if not steps.is_visible():
        page.get_by_role("button", name="Reward, method, steps").click()
        steps.wait_for()


def done(page):
    page.wait_for_function("document.querySelector('#state').innerText.includes('Done')")


def draw_again(page):
    page.click("#draw")
    page.wait_for_function("document.querySelectorAll('#guided img').length == 0")
    page.wait_for_function("document.querySelectorAll('#plain img').length == 2")
    done(page)
    assert "which was there already" in page.locator("#bank").inner_text()


def count(page, place):
    return page.locator(f"#{place} img").count()


def test_type_run_see_and_reuse_the_bank(page):
    draw(page, "a photo of a cat")
    page.wait_for_function("document.querySelectorAll('#bank img').length == 4")
    page.wait_for_function("document.querySelectorAll('#guided img').length == 2")
    page.wait_for_function("document.querySelectorAll('#plain img').length == 2")
    done(page)
    said = page.locator("#guided figcaption").first.inner_text()
    assert re.search(r"#0\s+brightness [\d.]+\s+seed \d+", said)
    assert "members" in page.locator("#trace").inner_text()
    rewards = [float(text.split()[-1]) for text in page.locator("#bank figcaption").all_inner_texts()]
    assert rewards == sorted(rewards, reverse=True)
    page.get_by_text("The bank is there already").wait_for()
    before = page.locator("#plain img").first.get_attribute("src")
    set_number(page, "Scale of the shift", 9)
    draw_again(page)
    assert page.locator("#plain img").first.get_attribute("src") == before  # plain samples are drawn once
    page.get_by_label("Seed", exact=True).fill("5")
    draw_again(page)  # another seed needs no other bank
    assert page.locator("#plain img").first.get_attribute("src") != before
    assert page.locator("#history label").count() >= 2


def test_a_picture_opens_large_by_the_keyboard(page):
    draw(page, "a photo of a dog")
    done(page)
    box = page.locator("#guided input").first
    box.focus()
    page.keyboard.press("Space")
    assert page.locator("#guided img").first.bounding_box()["width"] > 500
    page.keyboard.press("Space")
    assert page.locator("#guided img").first.bounding_box()["width"] < 500


def test_cancel_stops_within_a_step(page):
    draw(page, "a photo of a cup", **{"Lookahead samples, n": 64, "Steps": 100})
    page.wait_for_function("document.querySelector('#state').innerText.includes('ahead')")
    page.click("#cancel")
    page.get_by_text("Cancelled.").wait_for()
    assert count(page, "guided") == 0
    draw(page, "a photo of a cup")
    done(page)


def test_a_prompt_in_japanese_and_what_to_copy(page):
    draw(page, "二匹の猫の写真")
    done(page)
    page.get_by_role("button", name="Copy and download").click()
    command = page.locator("#as-command .cm-content").inner_text()
    assert '"二匹の猫の写真"' in command.replace("\n", "")
    assert "--n 4" in command.replace("\n", " ")
    shown = re.sub(r"^\d+$", "", page.locator("#as-job .cm-content").inner_text(), flags=re.MULTILINE)
    assert json.loads(shown)["prompts"] == ["二匹の猫の写真"]
    with page.expect_download() as download:
        page.locator("#download a").first.click()
    assert download.value.suggested_filename.endswith(".zip")


def test_a_reward_that_fails_is_said_and_the_next_one_works(page):
    open_settings(page)
    box = page.get_by_role("combobox", name=re.compile("Reward")).or_(page.get_by_label(re.compile("^Reward:"))).first
    for name, said in (
        ("mine:failing", "the reward broke"),
        ("no-such-reward", "unknown reward"),
        ("mine:dark", "Done"),
    ):
        box.fill(name)
        box.press("Enter")
        page.wait_for_timeout(300)
        draw(page, f"a photo for {name}")
        page.wait_for_function(f"document.querySelector('#state').innerText.includes({said!r})")


def test_reload_keeps_the_history_and_recalls_an_order(page):
    draw(page, "a photo of a hat")
    done(page)
    page.reload()
    entry = page.locator("#history label").filter(has_text="a photo of a hat").first
    entry.click()
    page.wait_for_function("document.querySelectorAll('#guided img').length == 2")
    assert page.get_by_label("Prompt", exact=True).input_value() == "a photo of a hat"


def test_a_dropped_picture_restores_its_settings(page, tmp_path):
    draw(page, "a photo of a bird", **{"Scale of the shift": 3})
    done(page)
    source = page.locator("#guided img").nth(1).get_attribute("src")
    content = page.request.get(page.url.rstrip("/") + "/" + source).body()
    (tmp_path / "dropped.png").write_bytes(content)
    write(page, "something else")
    set_number(page, "Scale of the shift", 11)
    page.get_by_role("button", name="Restore settings").click()
    page.set_input_files("input[type=file]", tmp_path / "dropped.png")
    page.get_by_text("Settings restored.").wait_for()
    assert page.get_by_label("Prompt", exact=True).input_value() == "a photo of a bird"
    assert page.get_by_role("spinbutton", name="number input for Scale of the shift").input_value() == "3"


def test_two_tabs_at_once(page, browser, address):
    other = browser.new_page()
    other.set_default_timeout(SECONDS)
    other.goto(address)
    other.wait_for_selector("#draw")
    other.locator("#cost p").first.wait_for()
    draw(page, "a photo of one tab", **{"Steps": 20})
    draw(other, "a photo of another tab", **{"Steps": 6})
    for tab in (page, other):
        done(tab)
        assert count(tab, "guided") == 2
    assert page.locator("#guided img").first.get_attribute("src") != other.locator("#guided img").first.get_attribute(
        "src"
    )
    other.close()


@pytest.mark.parametrize("width", [390, 820, 1440])
def test_nothing_is_wider_than_the_screen(browser, address, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(address)
    page.wait_for_selector("#draw")
    time.sleep(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
