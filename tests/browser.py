"""The browser that opens the pages: Chromium or Chrome of this machine, driven by Playwright.

`python tests/browser.py` says which one is found."""
import os
import shutil
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = "No Chromium: the browser tests are skipped; on Debian: apt-get install chromium"
HEIGHTS = {390: 844, 768: 1024, 1440: 900}   # pixels, of the screen with this width
SCREENSHOTS = os.environ.get("CRYPTOLSTM_SCREENSHOTS", "")   # folder; empty = none are kept

# What sticks out on the right of the screen and cannot be reached by scrolling within a box. The contents of
# a drawing are cut off at its edge.
STICKING_OUT = """() => {
  const boxed = e => e !== document.body &&
    (/auto|scroll|hidden|clip/.test(getComputedStyle(e).overflowX) || boxed(e.parentElement));
  return [...document.querySelectorAll("body *")]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
    .filter(e => e.checkVisibility({visibilityProperty: true}) && !e.closest("svg"))
    .filter(e => !boxed(e.parentElement))
    .map(e => `${e.tagName}.${e.className} ${e.textContent.trim().slice(0, 40)}`).slice(0, 5);
}"""
DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def find() -> str | None:
    "Path of the browser, None if there is none."
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium():
    "A browser without a window. Its sandbox needs rights that a container does not have."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find(), args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class View:
    "A page that is open, with what it said and what it asked for."
    page: object       # of Playwright
    problems: list     # warnings and errors of the console
    outside: list      # addresses of requests to elsewhere

    def quiet(self) -> None:
        "Fail unless the page opened without a message of the console and without an outside request."
        assert (self.problems, self.outside) == ([], []), f"{self.problems} {self.outside}"

    def keep(self, name: str) -> None:
        "Store what is on the screen, if screenshots are kept."
        if SCREENSHOTS: self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


def is_here(url: str) -> bool:
    return url.startswith(("file:", "data:", "blob:", "about:", "http://127.0.0.1:"))


@contextmanager
def opened(browser, url: str, width: int = 1440, scheme: str = "light", **context):
    "Open a page in a context of its own; yields its `View`."
    size = {"width": width, "height": HEIGHTS[width]}
    place = browser.new_context(viewport=size, color_scheme=scheme, **context)
    place.set_default_timeout(120_000)   # others may use the cores
    view = View(place.new_page(), [], [])
    view.page.on("console", lambda m: m.type in ("error", "warning") and view.problems.append(m.text))
    view.page.on("pageerror", lambda e: view.problems.append(str(e)))
    view.page.on("request", lambda r: is_here(r.url) or view.outside.append(r.url))
    view.page.goto(url)
    if context.get("java_script_enabled", True): view.page.evaluate(DRAWN)
    yield view
    place.close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_): pass


@contextmanager
def served(folder: Path):
    "Serve a folder on the loop-back address; yields the address of its root."
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def findings(page) -> list[str]:
    "What axe-core finds on a page that is serious or critical."
    from axe_playwright_python.sync_playwright import Axe

    # its preloading reads style sheets again, which a page that was opened from a file must not do
    options = {"resultTypes": ["violations"], "preload": False}
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{v['id']} ({v['impact']}): {node['target']} {node['html'][:150]} {node['failureSummary'][:300]}"
        for v in found
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"][:3]
    ]


if __name__ == "__main__": print(f"Browser: {found}" if (found := find()) else MISSING)
