"""Measure how fast the page answers, and take screenshots: ``lidar app`` on glyph in Chromium.

    python -m benchmarks.page --out docs/pictures

It needs gradio, playwright and Chromium. It draws one prompt, then changes the scale and draws again, and prints the
seconds from each click to the first picture, to the guided ones and to the end. Then it writes screenshots at 390,
820 and 1440 pixels, the narrow one in the dark theme.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTHS = {390: "dark", 820: "light", 1440: "light"}
PATIENCE = 600_000  # milliseconds


def main() -> None:
    """Draw twice, print the seconds, and write the screenshots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="a photo of a cup below a cow")
    parser.add_argument("--out", type=Path, required=True, help="folder of the screenshots")
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with serve() as address, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.locator("#cost p").first.wait_for()
        page.get_by_label("Prompt", exact=True).fill(arguments.prompt)
        for number, scale in enumerate((6, 9), 1):
            box = page.get_by_role("spinbutton", name="number input for Scale of the shift")
            box.fill(str(scale))
            box.press("Tab")
            first, guided, end = (f"{seconds:.1f} s" for seconds in draw(page))
            print(f"click {number}: first picture {first}, guided pictures {guided}, all {end}", flush=True)
        for width, scheme in WIDTHS.items():
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            page.reload()
            page.locator("#history label").first.click()
            page.wait_for_function("document.querySelectorAll('#plain img').length == 4")
            page.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
            page.wait_for_timeout(3000)
            page.screenshot(path=arguments.out / f"app-{width}.png", full_page=True)
        browser.close()


def draw(page: Any) -> tuple[float, float, float]:
    """Click, and return the seconds to the first picture of the order, to its guided pictures, and to the end."""
    start = time.monotonic()
    page.click("#draw")
    page.wait_for_function("document.querySelectorAll('#guided img').length == 0")
    page.wait_for_function("document.querySelectorAll('#live img').length > 0")
    first = time.monotonic() - start
    page.wait_for_function("document.querySelectorAll('#guided img').length == 4")
    guided = time.monotonic() - start
    page.wait_for_function("document.querySelector('#state').innerText.includes('Done')")
    return first, guided, time.monotonic() - start


def chromium() -> str | None:
    """Return the path of this machine's Chromium; None if it has none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def serve(*options: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> Iterator[str]:
    """Run ``lidar app`` on a free port, by default with glyph, and yield its address; end it after the block.

    Raises:
        RuntimeError: the page did not start.
    """
    command = [sys.executable, "-m", "lidar_sampling", "app", "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=cwd, env=env) as server:
        assert server.stderr is not None
        address = next((found[0] for line in server.stderr if (found := re.search(r"http://\S+", line))), None)
        if address is None:
            server.kill()
            raise RuntimeError("the page did not start")
        try:
            yield address
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                raise


if __name__ == "__main__":
    main()
