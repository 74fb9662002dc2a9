"""How soon a page of ``archbench report`` answers, by the browser's own clock: medians of five loads, in turns.

    python benchmarks/page_ready.py PAGE.html ...

``ready``: milliseconds from opening until legends and tables react (``data-ready`` of the page). ``quiet``: until the
end of the last task of more than 50 ms, with the figures that are in view drawn and nothing scrolled. ``elements``: of
the document when it answers. Chromium is looked for on the path, or is what $CHROMIUM names.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

LOADS = 5
LONG_TASKS = """window.tasks = [0];
new PerformanceObserver(list => list.getEntries().forEach(task => tasks.push(task.startTime + task.duration)))
    .observe({type: "longtask", buffered: true});"""
NEAR_UNDRAWN = """[...document.querySelectorAll('.panel:not([hidden]) .plot:not(:has(svg))')]
    .filter(plot => plot.getBoundingClientRect().top < innerHeight).length"""


def opened(browser: Browser, file: Path) -> tuple[float, float, float]:
    page = browser.new_context(viewport={"width": 1280, "height": 800}, offline=True).new_page()
    page.add_init_script(LONG_TASKS)
    page.goto(file.resolve().as_uri())
    page.wait_for_selector("html[data-ready]")
    elements = page.evaluate("document.querySelectorAll('*').length")
    while page.evaluate(NEAR_UNDRAWN):
        page.wait_for_timeout(50)
    page.wait_for_timeout(500)
    ready = float(page.get_attribute("html", "data-ready") or "nan")
    quiet = max(ready, float(page.evaluate("Math.max(...tasks)")))
    page.context.close()
    return ready, quiet, elements


if __name__ == "__main__":
    files = [Path(name) for name in sys.argv[1:]]
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        opened(browser, files[0])
        loads = [[opened(browser, file) for file in files] for _ in range(LOADS)]
        browser.close()
    for file, own in zip(files, zip(*loads, strict=True), strict=True):
        ready, quiet, elements = (statistics.median(values) for values in zip(*own, strict=True))
        sizes = f"{file.stat().st_size / 1e6:.2f} MB, {elements:.0f} elements"
        print(f"{file.name:24} ready {ready:5.0f} ms, quiet {quiet:5.0f} ms ({sizes})")
