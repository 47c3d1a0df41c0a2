"""The report of 200 classes and 10,000 test rows: its size, and how long it takes to write and to use.

The run is imagined (``tests/reports.py``); the page is the real one, drawn by a headless Chromium.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lib import common, page

sys.path.insert(0, str(common.REPOSITORY / "tests"))
from reports import write_run

PHONE, DESKTOP = (390, 844), (1440, 900)

DRAWN = """() => new Promise((done) => {
  const tell = () => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() / 1000)));
  document.readyState === "complete" ? tell() : addEventListener("load", tell);
})"""
"""Seconds from the request for the page until all of it stands on the screen."""

ACT = """() => new Promise((done) => {
  const started = performance.now();
  ACTION
  document.body.getBoundingClientRect();
  requestAnimationFrame(() => requestAnimationFrame(() => done((performance.now() - started) / 1000)));
})"""
"""Seconds of ``ACTION`` until the screen shows what it did."""

ACTIONS = {
    "filter": """const box = document.querySelector("#class-find");
                 box.value = box.value ? "" : "loan"; box.dispatchEvent(new Event("input"));""",
    "sort": """const all = document.querySelectorAll("#class-table th button");
               window.turn = (window.turn || 0) + 1; all[window.turn % all.length].click();""",
}


def main() -> None:
    options = _arguments()
    chromium = shutil.which("chromium")
    if chromium is None:
        print("Skipped: there is no chromium here; apt-get install chromium.")
        return
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder) / "run", classes=options.classes, rows=options.rows)
        write_s = _write_times(run, options.repeats)
        path = run / "report.html"
        seconds = {
            name: _look(chromium, path, size, options.repeats)
            for name, size in (("phone", PHONE), ("desktop", DESKTOP))
        }
        result = {
            "settings": {"classes": options.classes, "rows": options.rows, "repeats": options.repeats},
            "bytes": path.stat().st_size,
            "write_s": common.spread(write_s),
            "screens": seconds,
        }
    common.save_result("report-page", result, options.out, machine=common.hardware())
    page.refresh(options.out)


def _arguments() -> Any:
    parser = common.parser("Size and speed of the report.")
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--rows", type=int, default=10_000, help="test rows")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def _write_times(run: Path, repeats: int) -> list[float]:
    from snugtune.report.page import write_report

    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        write_report(run)
        seconds.append(time.perf_counter() - started)
    return seconds


def _look(chromium: str, path: Path, size: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Spreads of seconds until the page is drawn, filtered and sorted, each time in a new browser window."""
    from playwright.sync_api import sync_playwright

    found: dict[str, list[float]] = {"drawn_s": [], **{f"{name}_s": [] for name in ACTIONS}}
    with sync_playwright() as driver:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=chromium, args=arguments)
        for _ in range(repeats):
            context = browser.new_context(viewport={"width": size[0], "height": size[1]})
            opened = context.new_page()
            opened.goto(path.as_uri(), wait_until="commit")
            found["drawn_s"].append(opened.evaluate(DRAWN))
            for name, action in ACTIONS.items():
                found[f"{name}_s"].append(opened.evaluate(ACT.replace("ACTION", action)))
            context.close()
        version = browser.version
        browser.close()
    print(f"{size[0]} x {size[1]}: {found}")
    return {"size": list(size), "chromium": version, **{k: common.spread(v) for k, v in found.items()}}


if __name__ == "__main__":
    main()
