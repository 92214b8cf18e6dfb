"""The site: built from the sources without a warning, with every link leading somewhere, usable from a file,
and with an index of the reports that believes no page."""
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest
from browser import MISSING, STICKING_OUT, chromium, find, findings, opened, served
from playwright.sync_api import expect
from typer.testing import CliRunner

from cryptolstm.cli.main import app
from cryptolstm.report.manifest import embed
from cryptolstm.report.site import report_entries, reports_index

ROOT = Path(__file__).resolve().parents[1]
TICKER = "<script>alert(1)</script>/USD"


def module(name: str):
    "A script of docs/."
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


problems = module("check_site").problems


def a_page(folder: Path, day: int, file: str = "backtest.html", **entries) -> Path:
    "A page of a run that was made on a day of May 2025."
    made = f"2025-05-{day:02}T00:30:00+00:00"
    (run := folder / "eth_usd" / f"202505{day:02}T003000Z-0a1b2c3d").mkdir(parents=True, exist_ok=True)
    manifest = {"ticker": "ETH/USD", "made_at": made, "verdict": {"level": "NO SKILL"}, **entries}
    text = embed("<html><body>a report</body></html>", manifest).replace("\ud800", r"\ud800")
    (run / file).write_text(text, encoding="utf-8")
    return run / file


def build(target: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "docs/build_site.py"), str(target), *options]
    places = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    how = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 900}
    return subprocess.run(command, env=os.environ | places, **how)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "The site with one report, and what the build said."
    folder = tmp_path_factory.mktemp("site")
    report = a_page(folder / "reports", 1, ticker=TICKER)
    shutil.copy(report, report.parents[1] / "backtest.html")
    for private in ("trading/index.html", "eth_usd/backtest.ipynb", "eth_usd/.new/backtest.html"):
        (folder / "reports" / private).parent.mkdir(exist_ok=True)
        (folder / "reports" / private).write_text("private")
    places = ["--work", str(folder / "work"), "--reports", str(folder / "reports")]
    return folder / "site", build(folder / "site", *places)


# ---- the site --------------------------------------------------------------------------------------------

def test_the_site_is_built_without_a_warning(built):
    site, done = built
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr and done.stdout.splitlines()[-1] == str(site)


def test_nothing_is_left_beside_the_site(built):
    assert [p.name for p in built[0].parent.glob("jupyter_execute*")] == []


def test_every_link_and_anchor_exists_and_nothing_is_loaded_from_elsewhere(built):
    assert problems(built[0]) == [] and len(list(built[0].glob("*.html"))) > 20


def test_names_in_text_link_to_their_module_in_the_same_site(built):
    page = (built[0] / "core" / "files.html").read_text(encoding="utf-8")
    assert 'href="errors.html#' in page
    texts = (p.read_text(encoding="utf-8") for p in built[0].rglob("*.html"))
    assert not any("https://cryptolstm.github.io" in text for text in texts)


def test_every_page_of_the_docs_is_in_the_site_and_can_be_found(built):
    pages = [p.stem for p in (ROOT / "docs").glob("*.md")]
    index = (built[0] / "searchindex.js").read_text(encoding="utf-8")
    found = json.loads(index.removeprefix("Search.setIndex(").removesuffix(")"))
    assert set(pages) <= set(found["docnames"])
    number = found["docnames"].index("why_no_skill_is_normal")
    hits = found["terms"]["memoris"]   # the stem of "memorised"
    assert number in (hits if isinstance(hits, list) else [hits])


def test_every_notebook_has_a_page_with_one_title(built):
    notebooks = [p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    names = [re.sub(r"^\d\d_", "", p.stem).replace("index", "course") for p in notebooks]
    pages = [p for p in built[0].rglob("*.html") if p.stem in names and "reports" not in p.parts[-4:]]
    assert {p.stem for p in pages} == {*names} and len(pages) >= len(notebooks) > 60
    assert [p.name for p in pages if p.read_text(encoding="utf-8").count("<h1>") != 1] == []


def test_a_module_page_shows_documentation_and_examples_but_no_hidden_cells(built):
    page = (built[0] / "core" / "errors.html").read_text(encoding="utf-8")
    assert '<section id="inputerror">' in page and "core.errors" in page and "test_eq" in page
    course = (built[0] / "course.html").read_text(encoding="utf-8")
    assert "Packages build on those above" in course   # the first cell as a whole
    assert "show_doc" not in page and "#|" not in page and "from fastcore.test" not in page


def test_the_search_of_a_site_in_files_asks_for_no_page(built):
    script = (built[0] / "_static" / "offline.js").read_text()
    assert 'location.protocol === "file:"' in script and "SHOW_SEARCH_SUMMARY = false" in script
    page = (built[0] / "search.html").read_text(encoding="utf-8")
    assert page.index("documentation_options.js") < page.index("offline.js")


def test_reports_are_published_without_notebooks_and_accounts(built):
    reports = built[0] / "reports"
    files = {p.relative_to(reports).as_posix() for p in reports.rglob("*") if p.is_file()}
    run = "eth_usd/20250501T003000Z-0a1b2c3d/backtest.html"
    assert files == {"index.html", "feed.xml", "eth_usd/backtest.html", run}
    link = ElementTree.parse(reports / "feed.xml").findtext("channel/item/link")
    assert link == f"https://cryptolstm.github.io/cryptolstm/reports/{run}"


# ---- the site in a browser -------------------------------------------------------------------------------

in_browser = pytest.mark.skipif(find() is None, reason=MISSING)
SHOWN = ("index", "get_started", "how_to_read_a_report", "tutorials/reading_a_report", "settings", "course",
         "core/files", "report/charts", "search", "reports/index")


@pytest.fixture(scope="module")
def browser(built):
    with chromium() as found: yield found


@in_browser
@pytest.mark.parametrize("width, scheme", [(390, "light"), (768, "light"), (1440, "dark")])
@pytest.mark.parametrize("name", SHOWN)
def test_a_page_of_the_site_is_quiet_fits_the_screen_and_can_be_read(name, width, scheme, browser, built):
    with opened(browser, (built[0] / f"{name}.html").as_uri(), width, scheme) as view:
        view.keep(f"site-{name.replace('/', '-')}-{width}-{scheme}")
        assert view.page.evaluate("document.scrollingElement.scrollWidth") <= width
        assert view.page.evaluate(STICKING_OUT) == []
        assert findings(view.page) == []
        view.quiet()


@in_browser
def test_the_site_is_quiet_on_a_server_and_its_search_finds_words(browser, built):
    with served(built[0]) as address:
        for name in SHOWN:
            with opened(browser, f"{address}/{name}.html") as view: view.quiet()
        with opened(browser, f"{address}/search.html?q=memorised") as view:
            expect(view.page.locator("#search-results")).to_contain_text("no skill")
            view.quiet()


@in_browser
def test_the_search_also_works_in_files(browser, built):
    with opened(browser, f"{(built[0] / 'search.html').as_uri()}?q=memorised") as view:
        expect(view.page.locator("#search-results")).to_contain_text("no skill")
        view.quiet()


# ---- links and imports -----------------------------------------------------------------------------------

@pytest.mark.parametrize("broken, sentence", {
    '<a href="none.html">x</a>': "links to none.html, which does not exist",
    '<a href="index.html#none">x</a>': "links to index.html#none, but that page has no such anchor",
    '<img src="https://example.org/a.png">': "loads https://example.org/a.png",
    '<style>@import "//example.org/a.css"; p {}</style>': "loads //example.org/a.css",
    '<p style="background: url(https://example.org/b.png)">x</p>': "loads https://example.org/b.png",
}.items())
def test_a_broken_page_is_found(broken, sentence, tmp_path):
    (tmp_path / "index.html").write_text(f'<p id="here">{broken}</p><a href="#here">x</a>')
    assert problems(tmp_path) == [f"index.html {sentence}"]


def test_imports_of_notebooks_are_in_cells_of_their_own():
    "A cell with an import is executed when the site is built, so nothing else may be in it."
    import ast
    mixed = []
    for path in sorted((ROOT / "nbs").glob("*/*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            if cell["cell_type"] != "code" or "#| export" in text or "import " not in text: continue
            kinds = {isinstance(line, (ast.Import, ast.ImportFrom)) for line in ast.parse(text).body}
            if kinds == {True, False}: mixed.append(f"{path.name}: {text[:60]}")
    assert mixed == []


# ---- the index of reports --------------------------------------------------------------------------------

def times_of_rows(folder: Path) -> list[str]:
    text = (folder / "index.html").read_text(encoding="utf-8")
    return re.findall(r"<tr><td>(?:<span[^>]*>)?(\d{4}-\d\d-\d\d \d\d:\d\d|unknown)<", text)


def test_the_index_lists_runs_newest_first_and_odd_pages_last(tmp_path):
    for day in (2, 9, 5): a_page(tmp_path, day)
    a_page(tmp_path, 7, made_at=7, ticker=["x"], verdict="yes", data=[], equity_sparkline=[None, "x"])
    a_page(tmp_path, 8).write_text("<html>cut")
    reports_index(tmp_path)
    dates = ["2025-05-09 00:30", "2025-05-05 00:30", "2025-05-02 00:30"]
    assert times_of_rows(tmp_path) == [*dates, "unknown", "unknown"]
    assert 'class="sortable filterable"' in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_the_feed_is_rss_with_a_time_and_an_absolute_link_for_each_run(tmp_path):
    for day in (2, 9): a_page(tmp_path, day)
    reports_index(tmp_path, "https://example.org/reports")
    rss = ElementTree.parse(tmp_path / "feed.xml").getroot()
    assert (rss.tag, rss.get("version")) == ("rss", "2.0")
    assert all(rss.findtext(f"channel/{name}") for name in ("title", "link", "description"))
    items = rss.findall("channel/item")
    times = [parsedate_to_datetime(item.findtext("pubDate")) for item in items]
    assert times == [datetime(2025, 5, day, 0, 30, tzinfo=UTC) for day in (9, 2)]
    for item in items:
        file = item.findtext("link").removeprefix("https://example.org/reports/")
        assert item.findtext("title") == "ETH/USD: NO SKILL" and (tmp_path / file).is_file()


def test_text_of_a_manifest_never_becomes_markup(tmp_path):
    evil = '"><img src=x onerror=alert(1)>\x00\ud800'
    a_page(tmp_path, 2, ticker=TICKER + evil, verdict={"level": evil})
    reports_index(tmp_path)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text and "<img" not in text and "&lt;script&gt;" in text
    assert TICKER in ElementTree.parse(tmp_path / "feed.xml").findtext("channel/item/title")


def test_the_names_of_files_become_links_that_lead_to_them(tmp_path):
    page = a_page(tmp_path, 2, 'a "b" #1 <c>.html')
    reports_index(tmp_path)
    assert problems(tmp_path) == [] and report_entries(tmp_path)[0].path == page


def test_a_simulated_market_and_a_quick_look_are_named_in_the_row(tmp_path):
    a_page(tmp_path, 2, data={"simulated": True, "quick": "a quick look"})
    signal = {"ticker": "SOL/USD", "data_source": {"simulated": True}}
    a_page(tmp_path, 3, "signal.html", ticker=None, signal=signal)
    a_page(tmp_path, 4, "universe.html", tickers=["A/B", "C/D"], data={"A/B": {}, "C/D": {"simulated": True}})
    reports_index(tmp_path)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert [entry.simulated for entry in report_entries(tmp_path)] == [True] * 3
    assert all(f">{name} (simulated)<" in text for name in ("ETH/USD", "SOL/USD", "2 tickers"))
    assert "NO SKILL (quick look)" in text


def test_the_command_writes_both_files(tmp_path):
    a_page(tmp_path / "reports", 2)
    done = CliRunner().invoke(app, ["reports", "index", "--out", str(tmp_path / "reports"), "--json"])
    files = json.loads(done.stdout)["files"]
    assert [Path(file).name for file in files] == ["index.html", "feed.xml"]
    assert all(map(os.path.isfile, files))
