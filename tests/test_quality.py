"""The quality report finds every defect of bars at its place and nothing else; `data check` shows it to
people and programs."""
import json
import re

import ccxt
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from loopback import ROOT, Answer, Loopback, recorded, same
from typer.testing import CliRunner

from cryptolstm.core.errors import InputError, OperationError
from cryptolstm.core.bars import COLUMNS, HOUR, bars_hash, check_bars, provenance, regular_grid, stamp
from cryptolstm.data import exchange as exchanges
from cryptolstm.data.exchange import ExchangeUnreachable
from cryptolstm.data.names import exchange_ids
from cryptolstm.data.demo import demo_market
from cryptolstm.data.quality import CHECKS, compare, moves, quality_report, report_rows
from cryptolstm.data.client import CryptoMarketDataClient, market_bars
from cryptolstm.cli.data import data_app, read_tickers

ETH, CANDLES = "ETH/USD", "/products/ETH-USD/candles"
PRICES = ["open", "high", "low", "close"]
NONE = dict.fromkeys(CHECKS, ())
CLOSED = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def clean():
    "1500 real hours without defects; the demo market's where there are no recorded candles."
    bars = recorded(ETH)
    bars = (
        demo_market(1500, seed=6, end="2025-03-02", ticker=ETH)
        if bars is None
        else bars.loc["2024-08-15":].iloc[:1500]
    )
    return check_bars(bars)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(exchanges, "PAUSE", 0.02)


def places(bars: pd.DataFrame, report) -> dict:
    "Row numbers, in `bars`, of all findings."
    return {name: tuple(bars.index.get_loc(t) for t in table["at"]) for name, table in report.tables.items()}


def spoil(bars: pd.DataFrame) -> pd.DataFrame:
    "One defect of each kind, on a copy."
    out = bars.copy()
    out.iloc[200:203, 4] = 0.0
    out.iloc[400:406, :4] = out["close"].iloc[399]
    out.iloc[600, :4] *= 1.3
    out.iloc[800, 2] *= 0.75
    return out.drop(out.index[[1000, 1001, *range(1200, 1205)]])


# -- every defect at its place
# -------------------------------------------------------------------------------------------


def test_a_clean_real_stretch_reports_nothing(clean):
    report = quality_report(clean)
    assert (
        places(clean, report) == NONE
        and report.grade == "clean"
        and report.sentence == "clean: 1,500 bars without a gap"
    )
    assert (report.hours, report.bars, report.missing, report.judged) == (1500, 1500, 0, 1500)


def test_every_planted_defect_is_found_at_its_place_and_nothing_else(clean):
    report = quality_report(regular_grid(spoil(clean)))
    assert places(clean, report) == {
        "gaps": (1000, 1200),
        "zero_volume": (200,),
        "stale": (400,),
        "jumps": (600,),
        "spikes": (800,),
    }
    tables = report.tables
    assert tables["gaps"]["hours"].tolist() == [2, 5] and tables["gaps"]["effect"].tolist() == [
        "carried forward",
        "splits the series",
    ]
    assert tables["zero_volume"]["bars"].tolist() == [3] and tables["stale"]["bars"].tolist() == [6]
    jump, spike = tables["jumps"].iloc[0], tables["spikes"].iloc[0]
    assert jump["then"] == "taken back" and jump["size"] == pytest.approx(
        0.3 + 1.3 * moves(regular_grid(clean))["move"].iloc[600], abs=0.01
    )
    assert (
        spike["side"] == "low"
        and 0.25 < spike["size"] < 0.34
        and report.missing == 7
        and report.grade == "doubtful"
    )


@pytest.mark.parametrize(("name", "plant"), [
    ("gaps", lambda b: b.drop(b.index[700:702])), ("gaps", lambda b: b.drop(b.index[700:705])),
    ("zero_volume", lambda b: b.assign(volume=b["volume"].where(b.index != b.index[700], 0.0))),
    ("jumps", lambda b: b.mul(np.where(b.index == b.index[700], 0.8, 1.0), axis=0)),
    ("spikes", lambda b: b.assign(high=b["high"].where(b.index != b.index[700], b["high"] * 1.2)))])
def test_a_single_defect_is_the_only_finding(clean, name, plant):
    assert places(clean, quality_report(regular_grid(check_bars(plant(clean))))) == NONE | {name: (700,)}


def test_looking_alters_nothing(clean):
    bars = stamp(regular_grid(spoil(clean)), ETH, "someexchange")
    before, attrs = bars_hash(bars), dict(bars.attrs)
    quality_report(bars, bars)
    assert bars_hash(bars) == before and bars.attrs == attrs


def test_a_jump_that_stands_is_no_bad_print_and_a_bad_print_has_no_way_back_of_its_own(clean):
    stays, once = clean.copy(), clean.copy()
    stays.iloc[700:, :4] *= 1.3
    once.iloc[700, :4] *= 1.3
    assert (
        quality_report(stays).tables["jumps"]["then"].tolist() == ["stood"]
        and quality_report(stays).grade == "clean"
    )
    assert (
        quality_report(once).tables["jumps"]["then"].tolist() == ["taken back"]
        and quality_report(once).grade == "doubtful"
    )
    newest = quality_report(once.iloc[:701]).tables["jumps"]  # not yet known
    assert newest["then"].tolist() == ["not known yet"]


@pytest.mark.parametrize("second", [1.3, 1.25, 1.15])
def test_a_bad_print_of_two_bars_is_one(clean, second):
    twice = clean.copy()
    twice.iloc[700, :4] *= 1.3
    twice.iloc[701, :4] *= second
    report = quality_report(twice)
    assert (
        places(clean, report)["jumps"] == (700,)
        and len(report.bad_prints) == 1
        and report.grade == "doubtful"
    )
    assert set(quality_report(twice.iloc[:702]).tables["jumps"]["then"]) == {"not known yet"}


@pytest.mark.parametrize("factor", [10.0, 0.01, 2.5, 0.4])
def test_a_price_in_another_unit_from_one_hour_on_is_doubtful(clean, factor):
    other = clean.copy()
    other.iloc[700:, :4] *= factor
    report = quality_report(other)
    assert report.tables["jumps"]["then"].tolist() == ["stood"] and report.grade == "doubtful"
    assert report.sentence.endswith(
        "; one move by more than a factor of 2 that was not taken back: look at"
        f" {clean.index[700]:%Y-%m-%d %H:%M}"
    )
    assert quality_report(other.iloc[:701]).grade == "doubtful"  # the newest bar is the first after the move


def test_findings_do_not_depend_on_the_unit_of_the_price(clean):
    bars = regular_grid(spoil(clean))
    cents = bars.assign(**{c: bars[c] * 1024 for c in PRICES})
    for name, table in quality_report(bars).tables.items():
        pd.testing.assert_frame_equal(
            quality_report(cents).tables[name].drop(columns="price", errors="ignore"),
            table.drop(columns="price", errors="ignore"),
        )


def test_a_feed_that_hangs_for_weeks_makes_no_honest_move_an_outlier(clean):
    bars = clean.copy()
    bars.iloc[300:900, :4] = bars["close"].iloc[299]
    after = clean["close"].iloc[900] / bars["close"].iloc[899]
    bars.iloc[900:, :4] *= 1 / after
    report = quality_report(bars)
    assert report.tables["stale"]["bars"].tolist() == [600] and not len(report.tables["jumps"])


def test_what_cannot_be_judged_is_said(clean):
    report = quality_report(clean.iloc[:40])
    assert report.judged == 0 and (
        "not judged",
        "40 bars have too few neighbours for the price checks",
    ) in report_rows(report)
    assert quality_report(clean.iloc[:1]).bars == 1
    with pytest.raises(InputError, match="no bars to look at"):
        quality_report(clean.iloc[:0])


@given(st.sets(st.integers(1, 398), max_size=120), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
@example({1, 2, 3, 5, 398}, 3)
@example(set(range(1, 399)), 3)
def test_planted_gaps_are_reported_exactly(rows, max_gap):
    bars = demo_market(400, seed=6, end="2025-03-02", ticker=ETH)
    found = quality_report(regular_grid(bars.drop(bars.index[sorted(rows)]), max_gap)).tables["gaps"]
    runs = [
        (i, next(k for k in range(1, 400) if i + k not in rows)) for i in sorted(rows) if i - 1 not in rows
    ]
    expected = [
        (bars.index[i], n, "carried forward" if n <= max_gap else "splits the series") for i, n in runs
    ]
    assert list(found.itertuples(index=False, name=None)) == expected


def test_the_three_outages_of_binance_are_all_its_gaps(real_bars):
    for ticker in ("BTC/USDT", "XTZ/USDT"):
        report = quality_report(regular_grid(check_bars(real_bars(ticker, "binance"))))
        assert (
            report.tables["gaps"]["hours"].tolist() == [4, 2, 1]
            and report.missing == 7
            and report.grade == "usable"
        )
        assert not len(report.bad_prints) and report.hours == 17520


def test_real_crashes_are_not_taken_for_bad_prints(real_bars):
    # ten of the 13 fell and rose by ten of the month's sigmas at noon of 2022-05-11
    for ticker in [t.replace("USD", "USDT") for t in read_tickers(ROOT / "tickers.txt")]:
        report = quality_report(regular_grid(check_bars(real_bars(ticker, "binance"))))
        assert not len(report.bad_prints) and report.grade == "usable"
    ada = quality_report(check_bars(real_bars("ADA/USD")))
    jumps = ada.tables["jumps"]
    assert (
        jumps["at"].tolist() == [pd.Timestamp("2025-03-02 15:00Z")]
        and jumps["size"].iloc[0] > 0.4
        and jumps["then"].tolist() == ["stood"]
    )
    assert ada.grade != "doubtful"


def test_the_demo_market_is_called_simulated():
    report = quality_report(demo_market(500, seed=6, end="2025-03-02", ticker=ETH))
    assert (
        report.simulated
        and report.sentence.startswith("SIMULATED MARKET.")
        and report.to_dict()["simulated"] is True
    )


def test_programs_get_json_with_full_counts_and_the_worst_rows(clean):
    holes = clean.drop(clean.index[[10, 20, 30, 31, 40]])
    report = quality_report(regular_grid(holes), clean, now=clean.index[-1] + 3 * HOUR)
    table = json.loads(json.dumps(report.to_dict(limit=2), allow_nan=False))
    assert table["found"]["gaps"]["count"] == 4 and [r["hours"] for r in table["found"]["gaps"]["rows"]] == [
        2,
        1,
    ]
    assert (
        table["age_hours"] == 2.0
        and table["against"]["only_there"] == 5
        and table["stamp"]["sha256"] == bars_hash(regular_grid(holes))
    )


# -- a second market
# -----------------------------------------------------------------------------------------------------


def test_a_second_market_tells_which_hours_differ(clean):
    other = clean.copy()
    other[PRICES] *= 1.0004
    other.iloc[[50, 900], :4] *= 0.97
    other = stamp(regular_grid(other.drop(other.index[[100, 101]])), "ETH/USDT", "elsewhere")
    found = compare(clean.drop(clean.index[500]), other)
    assert found["apart"]["at"].tolist() == [clean.index[50], clean.index[900]] and found["max_at"] in (
        clean.index[50],
        clean.index[900],
    )
    assert (found["only_here"], found["only_there"], found["common"]) == (2, 1, 1497) and found[
        "share"
    ] == pytest.approx(1497 / 1500)
    assert found["median_bps"] == pytest.approx(1e4 * (1 - 1 / 1.0004), rel=1e-6)
    assert found["max_bps"] == pytest.approx(1e4 * (1 / (1.0004 * 0.97) - 1), rel=1e-6)
    same = compare(clean, clean)
    assert same["max_bps"] == 0 and same["correlation"] == pytest.approx(1) and not len(same["apart"])


def test_hours_that_the_second_market_does_not_reach_are_counted_and_its_notes_shown(clean):
    """A long span against a market that serves only its newest 720 hours: without the count, half of the span
    would go unmentioned."""
    newest = stamp(
        regular_grid(clean.iloc[-720:]),
        ETH,
        "kraken",
        short="kraken gave 720 of the 1500 bars of ETH/USD asked for",
    )
    report = quality_report(clean, newest)
    assert (report.against["common"], report.against["only_here"], report.against["only_there"]) == (
        720,
        780,
        0,
    )
    assert report.against["share"] == pytest.approx(720 / 1500) and report.against["notes"] == [
        provenance(newest).short
    ]
    rows = dict(report_rows(report))
    assert rows["against"].startswith(
        "ETH/USD on kraken: 720 hours in both (48.00%), 780 only here, 0 only there"
    )
    assert rows["note on kraken"] == provenance(newest).short
    assert report.sentence.endswith("0 of 720 hours more than 1% from kraken, 780 hours not compared")
    whole = quality_report(clean, stamp(regular_grid(clean), ETH, "kraken"))
    assert (
        whole.sentence.endswith("0 of 1,500 hours more than 1% from kraken") and whole.against["notes"] == []
    )
    longer = compare(clean.iloc[100:200], clean)
    # the span is the first market's
    assert (longer["common"], longer["only_here"], longer["only_there"]) == (100, 0, 0)
    json.dumps(report.to_dict(), allow_nan=False)


# -- the specification's test of historical data
# ----------------------------------------------------------------------------------


def test_historical_data_has_the_span_columns_hours_and_freshness_asked_for(loopback, client_home):
    bars = CryptoMarketDataClient("coinbaseexchange", loopback.url).get_historical_bars("BTC/USD", 720)
    assert list(bars.columns) == [*COLUMNS, "is_gap"] and all(bars[c].dtype == np.float64 for c in COLUMNS)
    assert str(bars.index.tz) == "UTC" and bars.index.name == "timestamp" and len(bars) == 720
    # hourly, no duplicates, none missing
    assert (np.diff(bars.index.as_unit("s").asi8) == 3600).all()
    # the newest closed bar
    assert bars.index[-1] + HOUR <= loopback.now < bars.index[-1] + 2 * HOUR
    assert bars.index[0] == bars.index[-1] - 719 * HOUR
    assert (bars["high"] >= bars[["open", "close", "low"]].max(axis=1)).all() and (
        bars["low"] <= bars[["open", "close"]].min(axis=1)
    ).all()
    report = quality_report(bars, now=loopback.now)
    assert report.missing == 0 and 0 <= report.age < 1 and report.ticker == "BTC/USD" and not report.simulated


# -- an exchange's faults in the report
# --------------------------------------------------------------------------


def test_unusable_rows_of_an_exchange_are_counted_and_its_gaps_found(clean, client_home):
    served = clean.drop(clean.index[[1300, 1301]])

    def faulty(path, query, answer):
        if not path.endswith("/candles") or not isinstance(answer.body, list): return None
        body = [list(row) for row in answer.body]
        twice = [row for row in body if row[0] == int(clean.index[1250].timestamp())]
        for row in body:
            # high below low
            if row[0] == int(clean.index[1400].timestamp()): row[1], row[2] = row[2], row[1] * 0.5
        return Answer(body + twice)

    with Loopback({ETH: served}, now=clean.index[-1] + HOUR) as exchange:
        exchange.faults.append(faulty)
        bars = CryptoMarketDataClient("coinbaseexchange", exchange.url).get_historical_bars(ETH, 400)
    report = quality_report(bars)
    gaps = report.tables["gaps"]
    assert list(zip(gaps["at"], gaps["hours"], strict=True)) == [
        (clean.index[1300], 2),
        (clean.index[1400], 1),
    ]
    assert report.dropped == {"duplicated": 1, "high below low": 1} and report.grade == "usable"


def test_every_report_notebook_has_a_section_on_data_quality():
    reports = [
        p for p in (ROOT / "nbs").glob("*.ipynb") if not p.name[0].isdigit() and p.name != "index.ipynb"
    ]
    assert reports
    for path in reports:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        # the table of the market data of many tickers has the quality of each
        headings = {"universe": "Market data", "volatility": "Market data", "universe_rank": "Universe"}
        heading = headings.get(path.stem, "Data quality")
        assert any(
            re.search(rf'quality_piece\(|section\(results, "{heading}"\)', "".join(c["source"]))
            for c in cells
            if c["cell_type"] == "code"
        ), path.name


# -- the command
# ---------------------------------------------------------------------------------------------------------


def invoke(*words: str):
    return CliRunner().invoke(data_app, [str(w) for w in words])


@pytest.fixture
def exchange(clean, client_home):
    "Lists ETH/USD with every defect and BTC/USD without; the clock is at the end of the bars."
    with Loopback({ETH: spoil(clean), "BTC/USD": clean}, now=clean.index[-1] + HOUR) as server:
        yield server


def test_check_prints_a_sentence_and_a_table(exchange):
    done = invoke("check", ETH, "--hours", 1500, "--exchange-url", exchange.url)
    assert done.exit_code == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert (
        "ETH/USD coinbaseexchange doubtful: 2 gaps (7 of 1,500 hours missing)" in text
        and "one price jump taken back at once" in text
    )
    for label in ("stale price", "no volume", "spikes", "rows dropped", "last bar closed 0.0 h ago"):
        assert label in text
    assert "SIMULATED" not in text


def test_check_gives_programs_one_object_per_ticker(exchange, clean):
    done = invoke("check", ETH, "BTC/USD", "--hours", 1500, "--exchange-url", exchange.url, "--json")
    assert done.exit_code == 0, done.stderr
    table = json.loads(done.stdout)
    assert list(table) == [ETH, "BTC/USD"] and table["BTC/USD"]["grade"] == "clean" and table["BTC/USD"]["ok"]
    assert {k: v["count"] for k, v in table[ETH]["found"].items()} == {
        "gaps": 2,
        "zero_volume": 1,
        "stale": 1,
        "jumps": 1,
        "spikes": 1,
    }
    assert table[ETH]["found"]["jumps"]["rows"][0]["at"] == clean.index[600].isoformat()


def test_one_ticker_that_fails_does_not_stop_the_others(exchange):
    def broken(path, query, answer):
        return Answer({"message": "oops"}, 500) if "BTC-USD/candles" in path else None

    exchange.faults.append(broken)
    for command in ("check", "fetch"):
        done = invoke(command, "BTC/USD", ETH, "--hours", 200, "--exchange-url", exchange.url, "--json")
        table = json.loads(done.stdout)
        assert (
            done.exit_code == 1
            and table[ETH]["ok"]
            and not table["BTC/USD"]["ok"]
            and table["BTC/USD"]["exit_code"] == 1
        )
        assert done.stderr.count("error: BTC/USD:") == 1 and "Traceback" not in done.stderr
        assert done.exception is None or isinstance(done.exception, SystemExit)
    mistyped = invoke("check", "ETC/USD", ETH, "--hours", 200, "--exchange-url", exchange.url)
    assert mistyped.exit_code == 2 and "ETC/USD" in mistyped.stderr and "ETH/USD" in mistyped.stdout
    # exit code 1: a retry may help
    assert (
        invoke("check", "ETC/USD", "BTC/USD", "--hours", 200, "--exchange-url", exchange.url).exit_code == 1
    )


def test_check_of_one_ticker_ends_with_its_own_error(client_home):
    assert isinstance(invoke("check", ETH, "--exchange-url", CLOSED).exception, ExchangeUnreachable)
    assert isinstance(invoke("check", "ether").exception, InputError)
    assert isinstance(invoke("check", ETH, "--hours", 0, "--exchange", "simulated").exception, InputError)
    assert not invoke("check", ETH, "--exchange-url", CLOSED, "--json").stdout


def test_stored_asks_nobody_and_tells_unknown_hours_from_missing_ones(exchange, clean):
    assert isinstance(invoke("check", ETH, "--stored", "--exchange-url", exchange.url).exception, InputError)
    for end in (1100, 1400):
        assert (
            invoke(
                "fetch",
                ETH,
                "--hours",
                150,
                "--end",
                clean.index[end].isoformat(),
                "--exchange-url",
                exchange.url,
            ).exit_code
            == 0
        )
    exchange.forget()
    table = json.loads(invoke("check", ETH, "--stored", "--exchange-url", exchange.url, "--json").stdout)[ETH]
    assert not exchange.requests and table["hours"] == 450
    assert table["missing"] == 2 + 150 and table["notes"] == [
        "2 hours came empty and will be asked for again",
        "150 of the missing hours were never asked for; leave --stored out to fetch them",
    ]
    part = json.loads(
        invoke("check", ETH, "--stored", "--hours", 100, "--exchange-url", exchange.url, "--json").stdout
    )[ETH]
    assert not exchange.requests and (part["hours"], part["missing"], part["notes"]) == (100, 0, [])


def test_without_a_ticker_those_of_tickers_txt(exchange, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tickers.txt").write_text("ETH/USD, BTC/USD  # two\n")
    for command in (["check"], ["fetch"], ["fetch", "--all"]):
        assert list(
            json.loads(invoke(*command, "--hours", 60, "--exchange-url", exchange.url, "--json").stdout)
        ) == [ETH, "BTC/USD"]
    (tmp_path / "tickers.txt").unlink()
    assert len(read_tickers()) == 13   # the file in the checkout
    assert isinstance(invoke("fetch", "--all", ETH).exception, InputError)


@pytest.fixture
def twin(monkeypatch):
    "A second ccxt id that uses the loop-back exchange's API."
    class Twin(ccxt.coinbaseexchange):
        def describe(self): return self.deep_extend(super().describe(), {"id": "coinbasetwin"})

    monkeypatch.setattr(ccxt, "coinbasetwin", Twin, raising=False)
    ids = exchange_ids() | {"coinbasetwin"}
    for module in ("names", "client", "exchange"):
        monkeypatch.setattr(f"cryptolstm.data.{module}.exchange_ids", lambda: ids)
    return "coinbasetwin"


def test_against_a_second_exchange(exchange, clean, twin):
    there = clean.copy()
    there.iloc[-100, :4] *= 1.05
    with Loopback({"BTC/USDT": there}, now=clean.index[-1] + 40 * HOUR) as second:
        words = [
            "check",
            "BTC/USD",
            "--hours",
            300,
            "--exchange-url",
            exchange.url,
            "--against",
            twin,
            "--against-quote",
            "USDT",
        ]
        table = json.loads(invoke(*words, "--against-url", second.url, "--json").stdout)["BTC/USD"]
        assert (
            table["against"]["common"] == 300
            and table["against"]["exchange"] == twin
            and table["against"]["ticker"] == "BTC/USDT"
        )
        assert [r["at"] for r in table["against"]["apart"]["rows"]] == [clean.index[-100].isoformat()]
        assert f"BTC/USDT on {twin}: 300 hours in both" in " ".join(
            invoke(*words, "--against-url", second.url).stdout.split()
        )
    # the address in the environment is for one exchange only
    assert "pass --against-url" in str(invoke(*words).exception)


def test_a_market_is_not_compared_with_itself(exchange):
    words = [
        "check",
        "BTC/USD",
        "--hours",
        300,
        "--exchange-url",
        exchange.url,
        "--against",
        "coinbaseexchange",
        "--against-url",
        exchange.url,
    ]
    assert "--against coinbaseexchange is the exchange itself; pass another one" in str(
        invoke(*words).exception
    ) and not exchange.count("candles")


def test_a_comparison_that_fails_leaves_the_report(exchange, twin):
    done = invoke(
        "check",
        "BTC/USD",
        ETH,
        "--hours",
        300,
        "--exchange-url",
        exchange.url,
        "--against",
        twin,
        "--against-url",
        CLOSED,
        "--json",
    )
    table = json.loads(done.stdout)
    assert (
        done.exit_code == 1
        and table["BTC/USD"]["ok"]
        and table["BTC/USD"]["against"] is None
        and twin in done.stderr
    )
    done = invoke(
        "check",
        "BTC/USD",
        "--hours",
        300,
        "--exchange-url",
        exchange.url,
        "--against",
        twin,
        "--against-url",
        CLOSED,
        "--json",
    )
    assert isinstance(done.exception, OperationError) and json.loads(done.stdout)["BTC/USD"]["ok"]


def test_watched_prices_come_one_a_line(exchange):
    done = invoke(
        "price",
        "--ticker",
        ETH,
        "--exchange-url",
        exchange.url,
        "--watch",
        "--every",
        0,
        "--count",
        3,
        "--json",
    )
    prices = [json.loads(line) for line in done.stdout.splitlines()]
    assert (
        done.exit_code == 0 and len(prices) == 3 and all(p["ticker"] == ETH and p["last"] > 0 for p in prices)
    )
    assert isinstance(
        invoke("price", "--watch", "--count", 0, "--exchange-url", exchange.url).exception, InputError
    )
    assert "add --watch or leave it out" in str(
        invoke("price", "--count", 3, "--exchange-url", exchange.url).exception
    )


def test_bars_of_a_file_are_imported_checked_and_exported_bit_equal(clean, client_home, tmp_path):
    holed = clean.drop(clean.index[[1000, 1001, *range(1200, 1205)]])
    holed.to_csv(tmp_path / "mine.csv")
    done = invoke("import", tmp_path / "mine.csv", "--ticker", ETH, "--exchange", "mine", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["bars"] == len(holed)
    found = json.loads(invoke("check", ETH, "--exchange", "mine", "--stored", "--json").stdout)[ETH]
    assert (
        found["found"]["gaps"]["count"] == 2
        and found["missing"] == 7
        and found["exchange"] == "mine"
        and found["notes"] == []
    )
    assert invoke("export", tmp_path / "again.parquet", "--ticker", ETH, "--exchange", "mine").exit_code == 0
    same(pd.read_parquet(tmp_path / "again.parquet"), holed)
    assert isinstance(
        invoke("export", tmp_path / "x.csv", "--ticker", "BTC/USD", "--exchange", "mine").exception,
        InputError,
    )


def test_the_case_of_a_markets_name_does_not_matter(exchange, clean, tmp_path, monkeypatch):
    monkeypatch.delenv("CRYPTOLSTM_EXCHANGE_URL")
    clean.to_csv(tmp_path / "mine.csv")
    assert invoke("import", tmp_path / "mine.csv", "--ticker", ETH, "--exchange", "Mine").exit_code == 0
    for words in (
        ["check", ETH, "--hours", 100],
        ["check", ETH, "--stored"],
        ["export", tmp_path / "out.csv", "--ticker", ETH],
    ):
        for name in ("mine", "Mine", " MINE "):
            done = invoke(*words, "--exchange", name)
            assert done.exit_code == 0, done.exception
    assert len(market_bars(ETH, 100, exchange="Mine")) == 100
    monkeypatch.setenv("CRYPTOLSTM_EXCHANGE", "Mine")
    assert len(market_bars(ETH, 100)) == 100
    there = ["--exchange", "CoinbaseExchange", "--exchange-url", exchange.url]
    assert (
        invoke("fetch", "BTC/USD", "--hours", 50, *there).exit_code == 0
        and invoke("price", "--ticker", "BTC/USD", *there).exit_code == 0
    )
    assert invoke("check", "BTC/USD", "--stored", *there).exit_code == 0


def test_what_cannot_be_fetched_says_what_it_is(client_home):
    for name, words in (
        (
            "simulated",
            (
                "market is made when it is asked for; there is nothing to fetch, pass an exchange such as"
                " coinbaseexchange"
            ),
        ),
        ("coinbas", "unknown exchange coinbas; pass a ccxt id such as coinbase"),
    ):
        error = invoke("fetch", ETH, "--exchange", name).exception
        assert isinstance(error, InputError) and words in str(error) and "or simulated" not in str(error)
    error = invoke("fetch", ETH, "--exchange", "auto", "--exchange-url", CLOSED, "--json").exception
    # `auto` is the default exchange, as for check
    assert isinstance(error, OperationError) and "coinbaseexchange cannot be reached" in str(error)
    error = invoke("check", ETH, "--exchange", "bitstmp").exception
    assert "unknown exchange bitstmp; pass a ccxt id such as bitstamp" in str(error)


def test_imported_bars_are_checked_as_far_as_they_go(client_home, clean, tmp_path, monkeypatch):
    "No exchange serves these bars, so the check covers all that is stored."
    monkeypatch.delenv("CRYPTOLSTM_EXCHANGE_URL")
    clean.to_csv(tmp_path / "mine.csv")
    assert invoke("import", tmp_path / "mine.csv", "--ticker", ETH, "--exchange", "mine").exit_code == 0
    table = json.loads(invoke("check", ETH, "--exchange", "mine", "--json").stdout)[ETH]
    assert table["hours"] == len(clean) and table["grade"] == "clean"
    assert (
        json.loads(invoke("check", ETH, "--exchange", "mine", "--hours", 100, "--json").stdout)[ETH]["hours"]
        == 100
    )
    assert "pass fewer" in str(invoke("check", ETH, "--exchange", "mine", "--hours", 8760).exception)
