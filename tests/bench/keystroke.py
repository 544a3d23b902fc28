"""``python -m tests.bench.keystroke``: from a keystroke in the picker's filter to the rows on the page."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median, quantiles

from playwright.sync_api import sync_playwright

from dockml_magic.engine import connect
from tests.browser.conftest import FLAGS
from tests.browser.pages import NotebookPage
from tests.browser.picker import Picker
from tests.browser.servers import Server
from tests.integration.conftest import variables_of_its_own

TYPED = ("tf1.10-gpu", "torch cu118", "python", "t", "nonsense")
PAUSE_MS = 250

MEASURE = """() => {
    window.times = [];
    let began = null;
    const picker = document.querySelector('.dockml-picker');
    picker.querySelector('input[type=text]').addEventListener('input', () => began = performance.now());
    new MutationObserver(() => {
        if (began === null) return;
        const since = began;
        began = null;
        requestAnimationFrame(() => window.times.push(performance.now() - since));
    }).observe(picker.querySelector('.dockml-list > select'), {childList: true});
}"""


def measure(folder: Path) -> list[float]:
    """Return milliseconds, one figure for each keystroke that changed the rows."""
    (folder / "notebooks").mkdir()
    cache = folder / "cache"
    (cache / "bundles").mkdir(parents=True)
    with (
        variables_of_its_own(folder / "own", connect(), cache) as variables,
        Server("jupyterlab", folder / "notebooks", folder, variables) as server,
        sync_playwright() as playwright,
    ):
        server.write_notebook("a.ipynb", "")
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or "", args=FLAGS
        )
        page = browser.new_page()
        notebook = NotebookPage(page).open(f"{server.address}lab/tree/a.ipynb?reset")
        picker = Picker.open(notebook)
        page.evaluate(MEASURE)
        for text in TYPED:
            picker.find.press_sequentially(text, delay=PAUSE_MS)
            for _ in text:
                picker.find.press("Backspace")
                page.wait_for_timeout(PAUSE_MS)
        times = [float(time) for time in page.evaluate("window.times")]
        browser.close()
        server.end_kernels()
    return times


def main() -> int:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="dockml-bench-") as folder:
        times = measure(Path(folder))
    print(
        f"a keystroke in the picker's filter: median {median(times):.0f} ms, "
        f"95 % within {quantiles(times, n=20)[-1]:.0f} ms, worst {max(times):.0f} ms ({len(times)} keystrokes)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
