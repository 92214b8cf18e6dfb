"""The backtests of many tickers as one result and one page: joint hours, one verdict, and a page that opens
offline."""
import html
import json
import math
import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from conftest import TINY, small_run
from papermill import inspect_notebook

from cryptolstm.core.bars import HOUR, stamp
from cryptolstm.core.config import RunConfig
from cryptolstm.core.errors import InputError
from cryptolstm.data.demo import demo_market
from cryptolstm.execution.portfolio import portfolio_reference
from cryptolstm.features.indicators import features
from cryptolstm.proof.verdict import Level
from cryptolstm.report.pieces import MIME
from cryptolstm.report.render import page_again, read_summary
from cryptolstm.report.universe_page import SECTIONS, headline, section, verdict_box
from cryptolstm.research.backtest import backtest
from cryptolstm.research.certificate import certificate
from cryptolstm.research.universe import (
    EQUAL,
    HOLD_ALL,
    INVERSE,
    Universe,
    joint_hours,
    universe_summary,
)
from cryptolstm.research.walkforward import bars_needed

ROOT = Path(__file__).resolve().parents[1]
TICKERS = ("BTC/USD", "ETH/USD", "AAVE/USD", "XTZ/USD")
EASY = dict.fromkeys(("adx", "macd", "volume"), False)   # rules without which there are trades
LINK = '../btc_usd/" onclick="x.html'
FAILED = {"<i>/USD": 'coinbase does not list "<i>/USD"; did you mean I/USD?'}


def small_backtest(ticker, bars=None, **settings):
    "The backtest of a ticker with a tiny network, on given bars or the demo market."
    run = small_run(**{"ticker": ticker, "network": TINY, "rules": EASY, **settings})
    if bars is None: bars = demo_market(bars_needed(run), seed=sum(map(ord, ticker)), ticker=ticker)
    return backtest(bars, run)


@pytest.fixture(scope="module")
def real(real_bars):
    "Four recorded tickers; AAVE/USD ends some days before the others."
    each = {t: stamp(real_bars(t, "coinbase_2023q4"), t, "coinbase") for t in TICKERS}
    results = {t: small_backtest(t, bars) for t, bars in each.items()}
    return Universe(results, FAILED, {"BTC/USD": LINK, "ETH/USD": ""})


@pytest.fixture(scope="module")
def simulated():
    "Three tickers of the demo market, of which the last one was listed later."
    hours = {"BTC/USD": 240, "ETH/USD": 240, "SOL/USD": 150}
    return Universe({t: small_backtest(t, hours=n) for t, n in hours.items()})


@pytest.fixture(scope="module")
def page(real):
    "The page of the recorded tickers, from the cells of its notebook."
    return rendered(real)


def rendered(universe):
    "The page of a universe; its results are at hand, so the notebook's import of the runs may be empty."
    name = "cryptolstm.research.universe_run"
    missing = find_spec(name) is None
    if missing: sys.modules[name] = ModuleType(name)
    if missing: sys.modules[name].run_universe = None
    try: return page_again(universe, "universe")
    finally:
        if missing: del sys.modules[name]


def section_of(page, heading):
    return page.split(f">{heading}</h2>")[1].split("<h2")[0]


# ---- joint hours -----------------------------------------------------------------------------------------

def test_tickers_are_compared_on_the_hours_that_all_were_tested_on(real, simulated):
    for u in (real, simulated):
        spans = [r["predictions"].index for r in u.results.values()]
        assert u.joint.hours[0] == max(s[0] for s in spans) and u.joint.hours[-1] == min(s[-1] for s in spans)
        assert u.joint.tickers == list(u.results) and not u.joint.apart
        assert all(len(table) == len(u.joint.hours) for table in u.tables)
    assert len(simulated.joint.hours) == 150 and 100 < len(real.joint.hours) < 240


def test_a_delisted_ticker_keeps_its_row_and_leaves_the_others_their_hours(simulated):
    old = demo_market(bars_needed(small_run()), seed=9, ticker="MATIC/USD", end="2023-01-01")
    u = Universe({"MATIC/USD": small_backtest("MATIC/USD", old), **simulated.results})
    assert u.joint.apart == ["MATIC/USD"] and u.joint.hours.equals(simulated.joint.hours)
    assert math.isnan(u.table.loc["MATIC/USD", "cw_rw"]) and u.table.loc["MATIC/USD", "cw_holm"] <= 1
    assert u.tests == simulated.tests and "MATIC/USD" not in u.portfolios[EQUAL].attribution.index
    assert "Tested at other hours and left out of the joint tests and portfolios: MATIC" in headline(u).markup
    json.dumps(universe_summary(u), allow_nan=False)


def test_no_span_is_so_short_that_nothing_is_left():
    def span(first, hours):
        index = pd.date_range(first, periods=hours, freq="h", tz="UTC")
        return {"predictions": pd.DataFrame(index=index), "config": RunConfig()}
    for case in (
        {"A": span("2025-01-01", 100), "B": span("2025-01-03", 100), "C": span("2025-01-05", 100)},
        {"A": span("2025-01-01", 500), "B": span("2025-01-01", 30), "C": span("2025-01-15", 30)},
        {"A": span("2025-01-01", 50), "B": span("2025-06-01", 50)},
    ):
        joint = joint_hours(case)
        assert sorted(joint.tickers + joint.apart) == sorted(case) and joint.tickers
        assert len(joint.hours) >= 25
        assert all(joint.hours.isin(case[t]["predictions"].index).all() for t in joint.tickers)


# ---- the numbers -----------------------------------------------------------------------------------------

def test_the_gains_of_one_ticker_give_the_test_of_its_own_page():
    for horizon in (1, 6):
        r = small_backtest("BTC/USD", horizon=horizon)
        u = Universe({"BTC/USD": r})
        row = r["skill"].loc["LSTM"]
        assert u.tests.gain.effective == 1 and u.tests.power.one == u.tests.power.pool
        assert u.tests.right.mean == pytest.approx(row["hit"], abs=0.02)
        assert u.tests.right.n == pytest.approx(row["n_hit"], abs=4)
        if horizon == 1:
            assert u.tests.gain.statistic == pytest.approx(row["cw"], abs=0.05)
            assert u.tests.gain_mean.p == pytest.approx(row["cw_mean_p"], abs=0.02)
        assert u.table["cw_holm"].tolist() == u.table["cw_p"].tolist()


def test_the_portfolio_is_that_of_the_plain_reference(real):
    hours, start = real.joint.hours, real.joint.hours[0] - 25 * HOUR
    bars = {t: r["history"].loc[start:hours[-1]] for t, r in real.results.items()}
    signals = {t: real.results[t]["signals"]["signal"].reindex(b.index) for t, b in bars.items()}
    signals = {t: s.where(s.index >= hours[0]).fillna(0) for t, s in signals.items()}
    assert any((s != 0).any() for s in signals.values())
    for name, weighting in ((EQUAL, "equal"), (INVERSE, "risk")):
        plain = portfolio_reference(bars, signals, fee=0.001, slippage=0.0002, weighting=weighting)
        account = real.portfolios[name]
        assert account.equity.to_numpy() == pytest.approx(plain["equity"].loc[hours].to_numpy())
        assert account.figures["fees"] == pytest.approx(plain["total_fees"]) and account.figures["fills"] > 0
    growth = [b["close"].iloc[-1] / (b["open"].loc[hours[1]] * 1.0002 * 1.001) for b in bars.values()]
    assert real.portfolios[HOLD_ALL].figures["total_return"] == pytest.approx(np.mean(growth) - 1)


def test_no_evidence_is_the_normal_result_and_the_sentence_names_the_power(real):
    v, x = real.verdict, real.verdict.numbers
    assert v.level in ("NO SKILL", "UNDERPOWERED") and Level.of(v.level).exit_code in (5, 6)
    assert f"over 4 tickers and {len(real.joint.hours)} joint hours" in v.sentence
    assert f"4 tickers count as {x['effective_tickers']:.1f} independent ones" in v.sentence
    assert x["min_detectable_hit"] < x["min_detectable_hit_one"]
    assert 1 < x["effective_tickers"] < 4 and x["n"] == real.tests.power.independent


def test_a_leak_of_one_ticker_is_a_leak_of_all(simulated):
    bars = simulated.results["ETH/USD"]["bars"]
    def ahead(b): return features(b).assign(rsi=lambda t: t["rsi"].shift(-1))
    proof = certificate(bars, features=ahead, warmup=100, thorough=False)
    leaky = {**simulated.results, "ETH/USD": simulated.results["ETH/USD"].replaced(certificate=proof)}
    u = Universe(leaky)
    assert u.verdict.level == "LEAK" and "found in ETH/USD" in u.verdict.sentence
    assert 'class="first alarm"' in headline(u).markup and "1 failed" in verdict_box(u).markup
    assert "FAILED" in section(u, "Market data").markup
    sol = simulated.results["SOL/USD"]
    odd = replace(sol, verdict=replace(sol.verdict, level="SUSPICIOUS"))
    u = Universe({**simulated.results, "SOL/USD": odd})
    assert u.verdict.level == "SUSPICIOUS" and "found in SOL/USD" in u.verdict.sentence


def test_a_universe_that_never_trades_has_a_verdict_and_no_best_ratio():
    u = Universe({t: small_backtest(t, threshold_scale=9.0, rules={}) for t in ("BTC/USD", "ETH/USD")})
    assert u.table["trades"].sum() == 0 and u.zero_skill.tickers == 0 and math.isnan(u.zero_skill.median)
    assert "no ticker traded" in u.verdict.sentence
    page = rendered(u)
    assert "No ticker traded, so there is no best Sharpe ratio" in page and "No strategy traded" in page
    assert "nan" not in re.sub(r"<[^>]*>", " ", page).lower().split()


def test_one_ticker_alone_is_a_universe(simulated):
    page = rendered(Universe({"BTC/USD": simulated.results["BTC/USD"]}))
    assert "One ticker has no correlations" in page and "1 ticker and 240 joint hours" in page
    assert "A test this long detects a hit rate of" in page


def test_a_universe_without_a_result_and_a_link_elsewhere_are_refused(simulated):
    with pytest.raises(InputError, match="BTC/USD: it cannot be reached"):
        Universe({}, {"BTC/USD": "it cannot be reached"})
    elsewhere = ("https://example.org/x", "javascript:alert(1)", "//example.org/x", "/etc/passwd", r"\\x.org")
    for link in elsewhere:
        with pytest.raises(InputError, match="relative"): Universe(simulated.results, {}, {"BTC/USD": link})


def test_everything_is_computed_once_and_again_with_the_same_numbers(simulated):
    assert simulated.table is simulated.table and simulated.tests is simulated.tests
    again = Universe(simulated.results)
    assert universe_summary(again) == universe_summary(simulated)


def test_the_summary_is_json_without_nan_and_holds_every_ticker(real):
    summary = json.loads(json.dumps(universe_summary(real), allow_nan=False))
    assert summary["kind"] == "universe" and list(summary["table"]) == summary["tickers"] == list(TICKERS)
    assert summary["failed"] == FAILED and summary["joint"]["hours"] == len(real.joint.hours)
    assert summary["verdict"]["level"] == real.verdict.level and "ticker" not in summary["config"]
    assert summary["pooled"]["gain"]["p"] == real.tests.gain.p
    assert {"BTC/USD": 1.0}.items() <= summary["correlation"]["market"]["BTC/USD"].items()
    assert summary["data"]["BTC/USD"]["sha256"] == real.results["BTC/USD"]["data"]["sha256"]


# ---- the page --------------------------------------------------------------------------------------------

def test_the_page_opens_offline_and_runs_no_code(page):
    scripts = re.findall(r"<script(?: [^>]*)?>", page)
    assert scripts == ['<script type="application/json" id="series">', "<script>", "<script>"]
    code = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.findall(r"https?://(?!www\.w3\.org)[^ <\"]*", code) and "script-src &#39;sha256-" in page
    soup = BeautifulSoup(page, "html.parser")
    links = [a["href"] for a in soup.select("[href]") if not a["href"].startswith("data:")]
    assert all(link in (LINK, "#" + link[1:]) for link in links) and not soup.select("[src]")
    outside = re.sub(r"url\(#", "", code)
    assert "@import" not in page and "url(" not in outside and "run_universe" not in page
    assert page.count("<h1") == 1 and "<title>5 tickers: " in page


def test_the_page_has_the_sections_of_the_table_in_page_order(page):
    nb = nbformat.read(ROOT / "nbs" / "universe.ipynb", as_version=4)
    sources = [c.source for c in nb.cells]
    heads = [k for k, text in enumerate(sources) if text.startswith("## ")]
    assert [sources[k].splitlines()[0].removeprefix("## ") for k in heads] == list(SECTIONS)
    assert [sources[k + 1] for k in heads] == [f'section(results, "{name}")' for name in SECTIONS]
    assert [html.unescape(t) for t in re.findall(r"<h2>(.*?)</h2>", page)] == list(SECTIONS)


def test_names_and_reasons_are_escaped(page):
    failed = section_of(page, "Failed tickers")
    assert "<i>" not in page and "&lt;i&gt;/USD" in failed and "did you mean I/USD?" in failed
    assert [link.attrs for link in BeautifulSoup(page, "html.parser").select("td a")] == [{"href": LINK}]


def test_every_picture_has_a_text(page):
    soup = BeautifulSoup(page, "html.parser")
    pictures, drawings = soup.select("svg.plot"), soup.select('svg[role="img"]:not(.plot)')
    assert len(pictures) == 4 and all(len(picture["aria-label"]) > 20 for picture in pictures)
    assert [d["aria-label"].split(":")[0] for d in drawings] == [f"Equity of {t}" for t in TICKERS]
    assert all("at the end, lowest" in d["aria-label"] for d in drawings) and "<svg" in page


def test_a_negative_number_has_a_true_minus_sign_and_no_space_before_percent(page):
    shown = html.unescape(re.sub(r"<(script|style).*?</\1>|<[^>]+>", "\n", page, flags=re.S))
    assert not re.findall(r"^-\d.*$", shown, re.M) and not re.findall(r"\d %", shown)
    assert re.search(r"^−\d+\.\d+%$", shown, re.M)


def test_every_row_has_verdict_link_and_figures(real, page):
    rows = section_of(page, "Tickers").split("<tr>")[2:]
    assert len(rows) == len(TICKERS)
    for (t, row), text in zip(real.table.iterrows(), rows, strict=True):
        assert t in text and f"<td>{row['verdict']}</td>" in text and f"{row['trades']:,}</td>" in text
        assert ("<a " in text) == bool(real.pages.get(t))
    tests = section_of(page, "Multiple testing")
    assert all(name in tests for name in ("Holm", "Benjamini–Hochberg", "Romano–Wolf", "Clark–West p"))
    assert f"{len(real.joint.hours)} joint hours" in page and "1 of 5 tickers failed" in page
    assert "Stops, targets, holding times and position sizes" in section_of(page, "Portfolio")


def test_a_wide_table_scrolls_inside_the_page(page):
    tables = BeautifulSoup(page, "html.parser").select("table")
    assert len(tables) > 6 and all("scroll" in t.parent["class"] for t in tables)


def test_a_simulated_market_is_said_in_red(simulated, page):
    assert 'class="note alarm">SIMULATED MARKET' in rendered(simulated) and "SIMULATED MARKET" not in page


def test_the_first_piece_carries_the_summary(real):
    piece = headline(real)
    output = nbformat.v4.new_output("display_data", piece._repr_mimebundle_())
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[output])])
    assert read_summary(nb) == universe_summary(real) and MIME in output["data"]


def test_the_settings_name_what_differs_between_the_runs(simulated):
    shown = section(simulated, "Settings").markup
    assert "The runs differ in hours" in shown and "<td>ticker</td>" not in shown
    assert "<td>train_hours</td><td>400</td><td>4320</td>" in shown


def test_the_parameters_of_the_notebook_have_types_and_comments():
    known = inspect_notebook(str(ROOT / "nbs" / "universe.ipynb"))
    types = {"tickers": "str", "params": "str", "settings": "dict", "max_workers": "int", "scheduler": "str",
             "fresh": "bool"}
    assert {k: p["inferred_type_name"] for k, p in known.items()} == types
    assert all(p["help"] for p in known.values())


def test_the_universe_prints_its_verdict_and_a_line_per_ticker(real):
    lines = repr(real).splitlines()
    assert lines[0] == f"5 tickers: {real.verdict.level}" and lines[1] == real.verdict.sentence
    assert [line.split()[0] for line in lines[2:]] == [*TICKERS, "<i>/USD"]
    assert "&lt;i&gt;/USD" in real._repr_html_() and "<i>" not in real._repr_html_()
