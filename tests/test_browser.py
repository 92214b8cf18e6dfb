"""The pages and their index in a real browser: quiet, readable at every width, and usable."""
import csv
import json
import re
from dataclasses import asdict, replace

import pytest
from browser import HEIGHTS, MISSING, STICKING_OUT, chromium, find, findings, opened, served
from conftest import SMALL, run_bars, small_run
from playwright.sync_api import expect

from cryptolstm import SignalGenerator
from cryptolstm.core.config import RunConfig
from cryptolstm.core.files import write_atomic
from cryptolstm.report.diff_page import diff_html, diff_pages
from cryptolstm.report.render import report_of
from cryptolstm.report.signal_page import run_signal_report
from cryptolstm.report.site import reports_index
from cryptolstm.report.trading_page import write_trading_page
from cryptolstm.report.universe_report import failure_page, universe_page
from cryptolstm.research.backtest import backtest
from cryptolstm.research.universe import Universe
from cryptolstm.trading.journal import Journal, add_decision, add_mark
from cryptolstm.trading.tasks import Account

pytestmark = pytest.mark.skipif(find() is None, reason=MISSING)
EASY = dict.fromkeys(("adx", "macd", "volume"), False)   # rules without which there are trades
PAGES = ("trades", "idle", "signal", "universe", "failed", "trading", "diff", "index")
SCREENS = [(390, "light"), (390, "dark"), (768, "light"), (1440, "light"), (1440, "dark")]


# ---- the pages -------------------------------------------------------------------------------------------

def a_backtest(folder, **settings):
    "Results and page of a backtest that takes seconds."
    run = small_run(**settings)
    results = backtest(run_bars(run), run)
    values = {k: v for k, v in asdict(run).items() if v is not None and k != "pool"}
    return results, report_of(results, run.ticker, values, asdict(run), out=folder).html


def a_signal(folder):
    "The page of the third decision of a model."
    run = RunConfig(
        hours=240, exchange="simulated", lookback=12, threshold_scale=0.01, network=SMALL, seed=1
    )
    for end in ("2025-02-28T10:00Z", "2025-03-01T10:00Z"):
        SignalGenerator(config=replace(run, end=end)).decide_now(hours=240)
    return run_signal_report(replace(run, end="2025-03-01T20:00Z"), out=folder, progress=False).html


def a_trading_page(folder):
    with Journal("paper", folder / "trading.sqlite") as journal:
        journal.begin(Account("paper", {"BTC/USD": RunConfig(initial_balance=1000.0)}).settings())
        for k in range(48):
            add_mark(journal, "BTC/USD", 482_000 + k, {"equity": 1000.0 + k % 7, "side": 1, "price": 1e5 + k})
        seen = {"reason": "the forecast is smaller than the threshold", "late": "late by 20 min"}
        add_decision(journal, "BTC/USD", 482_047, 1, None, seen)
    return write_trading_page(folder / "trading.sqlite", folder / "trading")


@pytest.fixture(scope="module")
def trading_results(): return {}


@pytest.fixture(scope="module")
def reports(tmp_path_factory, trading_results):
    "Name → file of every kind of page, in one folder of reports."
    folder = tmp_path_factory.mktemp("reports")
    results, trades = a_backtest(folder, rules=EASY, hours=480)
    never, idle = a_backtest(folder, ticker="BTC/USD", threshold_scale=50.0, hours=480)
    assert len(results["trades"]) > 15 and not len(never["trades"])
    trading_results.update(results)
    failed = failure_page("UNI/USD", "the exchange does not list UNI/USD", folder)
    links = {t: f"../../{p.relative_to(folder)}" for t, p in (("ETH/USD", trades), ("BTC/USD", idle))}
    universe = Universe({"ETH/USD": results, "BTC/USD": never}, {"UNI/USD": "not listed"}, links)
    asked = {"tickers": "ETH/USD BTC/USD", "params": "", "settings": {}}
    pages = {
        "trades": trades,
        "idle": idle,
        "signal": a_signal(folder),
        "universe": universe_page(universe, asked, folder).html,
        "failed": failed,
        "trading": a_trading_page(folder),
        "diff": write_atomic(folder / "diff.html", diff_html(diff_pages(trades, idle))),
        "sheet": trades.with_name("tear_sheet.html"),
    }
    return {**pages, "index": reports_index(folder)[0]}


@pytest.fixture(scope="module")
def browser(reports):
    "After the pages: while Playwright runs, nothing else in this process can start an event loop."
    with chromium() as found: yield found


VIEWS = {f"{name}-{width}-{scheme}": (name, width, scheme) for name in PAGES for width, scheme in SCREENS}


@pytest.fixture(scope="module", params=VIEWS)
def view(request, browser, reports):
    "A page on a screen, opened from its file; for tests that only look."
    name, width, scheme = VIEWS[request.param]
    with opened(browser, reports[name].as_uri(), width, scheme) as found:
        found.name, found.width, found.scheme = name, width, scheme
        yield found


@pytest.fixture
def trades(browser, reports):
    "The page of the run that trades, on a wide screen, for a test that uses it."
    with opened(browser, reports["trades"].as_uri()) as found: yield found.page


@pytest.fixture
def prices(trades):
    "The chart of prices, on the screen."
    box = trades.locator('.chart[data-panes~="price"]')
    box.scroll_into_view_if_needed()
    return box


def shown_range(box) -> tuple[float, float]:
    "First and last bar that a chart shows."
    found = box.evaluate("box => box.range()")
    return found["from"], found["to"]


def span(box) -> float:
    first, last = shown_range(box)
    return last - first


def luminance(page, selector: str, what: str) -> float:
    "Relative luminance of a colour on the page, 0 to 1."
    text = page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{what}")
    r, g, b = (int(x) / 255 for x in re.findall(r"\d+", text)[:3])
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in (r, g, b)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def saved(page, link) -> list[dict]:
    "Rows of the CSV file that a link saves."
    with page.expect_download() as waiting: link.click()
    with open(waiting.value.path(), encoding="utf-8", newline="") as file: return list(csv.DictReader(file))


# ---- what every page promises ----------------------------------------------------------------------------

def test_a_page_opens_from_a_file_without_a_message_or_an_outside_request(view):
    view.keep(f"{view.name}-{view.width}-{view.scheme}")
    view.quiet()


def test_nothing_is_wider_than_the_screen(view):
    widest = view.page.evaluate("document.scrollingElement.scrollWidth")
    assert widest <= view.width and view.page.evaluate(STICKING_OUT) == []
    assert view.page.locator("main").bounding_box()["width"] > min(0.75 * view.width, 1000)


def test_axe_finds_nothing_serious(view):
    assert findings(view.page) == []


def test_the_colours_are_those_that_the_reader_asked_for(view):
    back = luminance(view.page, "main", "backgroundColor")
    text = luminance(view.page, "main .lead", "color")
    assert (back < 0.05 and text > 0.5) if view.scheme == "dark" else (back > 0.9 and text < 0.1)


def test_the_first_screen_says_the_result(view):
    "The title, the sentence and the key figures; of a backtest the equity, too."
    height, page = HEIGHTS[view.width], view.page
    bottom = max(e.bounding_box()["y"] + e.bounding_box()["height"] for e in page.locator("h1, .lead").all())
    assert bottom < height and page.locator("h1 .level").inner_text()
    if view.name not in ("trades", "idle", "universe", "signal"): return
    keys = page.locator(".keys > div")
    assert keys.count() == (6 if view.name == "signal" else 5)
    last = keys.last.bounding_box()
    assert last["y"] + last["height"] < height
    if view.name == "signal": return
    live = page.locator(".first .live").bounding_box()
    assert height - live["y"] >= (100 if view.width == 390 else live["height"])


@pytest.mark.parametrize("name", [*PAGES, "sheet"])
def test_a_page_opens_from_a_server_without_a_message_or_an_outside_request(name, browser, reports):
    folder = reports["index"].parent
    with served(folder) as address:
        with opened(browser, f"{address}/{reports[name].relative_to(folder)}") as found: found.quiet()


def test_the_tear_sheet_opens_from_a_file_without_a_message_or_an_outside_request(browser, reports):
    with opened(browser, reports["sheet"].as_uri()) as found:
        found.quiet()
        assert "Strategy" in found.page.locator("body").inner_text()


def test_the_index_leads_to_the_pages(browser, reports):
    with opened(browser, reports["index"].as_uri()) as found:
        page = found.page
        links = page.locator("table a")
        assert links.count() == 5
        for number in range(5):
            links.nth(number).click()
            assert page.locator("h1").count() == 1 and page.url != reports["index"].as_uri()
            page.go_back()
        found.quiet()


# ---- charts ----------------------------------------------------------------------------------------------

def test_the_wheel_scrolls_the_page_until_the_chart_has_the_focus_and_then_zooms(trades, prices):
    live, whole = prices.locator(".live"), span(prices)
    live.hover()
    trades.mouse.wheel(0, -120)
    trades.wait_for_timeout(200)
    assert span(prices) == pytest.approx(whole)
    prices.scroll_into_view_if_needed()
    live.focus()
    live.hover()
    trades.mouse.wheel(0, -300)
    trades.wait_for_timeout(300)
    assert span(prices) < 0.95 * whole


def test_a_button_shows_the_last_week_or_day_and_all_again(trades, prices):
    whole = span(prices)
    for text, bars in (("7 d", 168), ("1 d", 24)):
        prices.get_by_role("button", name=text).click()
        trades.wait_for_timeout(100)
        assert span(prices) == pytest.approx(bars + 1, abs=1.5)
    prices.get_by_role("button", name="All").click()
    trades.wait_for_timeout(100)
    assert span(prices) == pytest.approx(whole)
    assert prices.get_by_role("button", name="30 d").count() == 0   # more than the 20 days of this page


def test_keys_zoom_and_move(trades, prices):
    prices.locator(".live").focus()
    whole = span(prices)
    trades.keyboard.press("+")
    trades.wait_for_timeout(100)
    first, last = shown_range(prices)
    assert last - first == pytest.approx(whole * 2 / 3, rel=0.02)
    trades.keyboard.press("ArrowLeft")
    trades.wait_for_timeout(100)
    assert shown_range(prices)[0] == pytest.approx(first - (last - first) / 8, abs=1)
    trades.keyboard.press("-")
    trades.wait_for_timeout(100)
    assert span(prices) == pytest.approx(whole, rel=0.02)


def test_the_legend_shows_the_values_under_the_pointer(trades, prices, trading_results):
    legend, live = prices.locator(".legend"), prices.locator(".live").bounding_box()
    def told(share):
        trades.mouse.move(live["x"] + share * live["width"], live["y"] + 60)
        trades.wait_for_timeout(150)
        return legend.inner_text()
    end, early, late = legend.inner_text(), told(0.2), told(0.6)
    assert len({end, early, late}) == 3
    time, price = re.search(r"([\d-]{10} \d\d:\d\d) UTC.*?price ([\d,.]+)", early, re.S).groups()
    bar = trading_results["bars"]["close"].loc[f"{time}Z"]
    assert float(price.replace(",", "")) == pytest.approx(bar, rel=1e-5)


def test_a_click_on_a_trade_shows_it_in_the_chart(trades, prices):
    rows = trades.locator("tr[data-trade]")
    known = json.loads(trades.locator("#series").text_content())["trades"]
    for number in (2, len(known) - 1):
        rows.nth(number).locator("button").click()
        trades.wait_for_timeout(200)
        first, last = shown_range(prices)
        trade = known[number]
        assert first < trade["entry"] and (trade["exit"] or trade["entry"]) < last and last - first < 200
        assert trades.locator("tr.chosen").get_attribute("data-trade") == str(number)
        expect(prices).to_be_in_viewport(timeout=30_000)


def test_the_charts_change_their_colours_with_the_page(trades):
    live = trades.locator(".first .live")
    light = live.screenshot()
    trades.emulate_media(color_scheme="dark")
    trades.wait_for_timeout(300)
    dark = live.screenshot()
    trades.emulate_media(color_scheme="light")
    trades.wait_for_timeout(300)
    assert live.screenshot() == light != dark


# ---- tables and files ------------------------------------------------------------------------------------

def test_the_trades_are_sorted_by_number_in_both_directions(trades, trading_results):
    table = trades.locator("table.filterable")
    head = table.locator("th", has_text="net P&L")
    place = table.locator("th").all_inner_texts().index("net P&L")
    def column():
        cells = table.locator(f"tbody td:nth-child({place + 1})").all_inner_texts()
        return [float(text.replace("−", "-").replace(",", "")) for text in cells]
    pnl = [pytest.approx(x, abs=0.006) for x in sorted(trading_results["trades"]["pnl"])]
    assert column() != pnl
    for direction, expected in (("ascending", pnl), ("descending", pnl[::-1])):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == direction and column() == expected
    assert table.locator("th[aria-sort]").count() == 1


def test_the_filter_leaves_the_rows_with_its_words_and_counts_them(trades, trading_results):
    sides = trading_results["trades"]["side"]
    shorts, count = int((sides < 0).sum()), trades.locator(".filter .count")
    assert 0 < shorts < len(sides) and count.inner_text() == f"{len(sides)} of {len(sides)} rows"
    trades.get_by_label("Filter").fill("short")
    shown = trades.locator("table.filterable tbody tr:visible")
    assert shown.count() == shorts and count.inner_text() == f"{shorts} of {len(sides)} rows"
    assert all("short" in text for text in shown.all_inner_texts())


def test_the_series_and_the_trades_are_saved_as_files(trades, trading_results):
    results, plain = trading_results, ("time", "open", "high", "low", "close", "drawdown (%)", "position")
    for link in trades.locator(".tools.series a").all():
        rows = saved(trades, link)
        assert len(rows) == len(results["equity"])
        shares = results["equity"] / results["initial_balance"] - 1
        name = next(k for k in rows[0] if k not in plain)   # the strategy is the first curve
        assert [float(r[name]) for r in rows] == pytest.approx((100 * shares).tolist(), abs=6e-4)
    rows = saved(trades, trades.locator('a[download="trades.csv"]'))
    assert [float(r["pnl"]) for r in rows] == pytest.approx(results["trades"]["pnl"].tolist(), rel=1e-5)


# ---- other ways to read a page ---------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["trades", "idle", "universe"])
def test_a_page_can_be_read_without_scripts(name, browser, reports):
    with opened(browser, reports[name].as_uri(), java_script_enabled=False) as found:
        page = found.page
        texts = [page.locator(s).inner_text() for s in ("h1", ".lead", "#verdict")]
        assert all(texts) and page.locator(".keys dd").count() == 10
        drawings = page.locator(".fallback svg")
        assert drawings.count() and all(x.is_visible() for x in drawings.all())
        assert page.locator(".live, .filter").count() == 0


def test_a_printed_page_shows_drawings_and_no_navigation(trades):
    trades.emulate_media(media="print")
    assert all(x.is_visible() for x in trades.locator(".fallback svg").all())
    for selector in (".rail", ".live", ".ranges", ".filter", ".menu"):
        assert not any(x.is_visible() for x in trades.locator(selector).all()), selector
