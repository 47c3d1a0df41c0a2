"""Draws the tutorial's pictures again: python docs/pictures.py RUN --queue QUEUE.

RUN is a run of the tutorial, QUEUE its second table. Needs the extra ``app``, Playwright and a Chromium.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
SIZE = {"width": 1100, "height": 760}
TEXT = "They charged my card twice for the same purchase and nobody answers the phone."


def main() -> None:
    """Draw them all."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--queue", type=Path, required=True, help="a table for the review page")
    options = arguments.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        draw_report(page, options.run)
        with tempfile.TemporaryDirectory() as folder:
            draw_app(page, options.run, options.queue, Path(folder) / "reviews.db")
        browser.close()


def draw_report(page: Page, run: Path) -> None:
    """The verdict, and what can be automated."""
    page.goto((run / "report.html").resolve().as_uri())
    save(page, "tutorial-report")
    page.get_by_role("heading", name="What can be automated").first.scroll_into_view_if_needed()
    page.evaluate("window.scrollBy(0, 460)")
    save(page, "tutorial-automated")


def draw_app(page: Page, run: Path, queue: Path, reviews: Path) -> None:
    """Trying a text, and reviewing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "snugtune", "app", run, "--port", port, "--queue", queue, "--reviews", reviews]
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("http"))  # the app answers now
        page.goto(f"http://127.0.0.1:{port}", timeout=120_000)
        page.locator("textarea").first.fill(TEXT)
        page.get_by_role("button", name="Classify").first.click()
        page.wait_for_timeout(20_000)
        save(page, "tutorial-try")
        page.goto(f"http://127.0.0.1:{port}/review")
        page.get_by_label("Name").fill("Ana")
        page.get_by_role("button", name="Begin").click()
        page.wait_for_timeout(5_000)
        save(page, "tutorial-review")
    finally:
        process.terminate()
        process.wait()


def save(page: Page, name: str) -> None:
    """A PNG of few colours: a quarter of the size."""
    path = IMAGES / f"{name}.png"
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    main()
