"""Market data: the client's real ccxt code against the loop-back exchange."""
import base64
import functools
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import ccxt
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import DEMO_END, TICKERS, Answer, Loopback, a_market, candles_of, same

from cryptolstm.core.errors import InputError, OperationError
from cryptolstm.core.config import RunConfig
from cryptolstm.core.bars import COLUMNS, HOUR, display_time, provenance
from cryptolstm.data import client as client_module, exchange as exchanges, fetch, store
from cryptolstm.data.store import bar_path, read_store
from cryptolstm.data.exchange import ExchangeUnreachable, market_name
from cryptolstm.data.demo import demo_market
from cryptolstm.data.client import CryptoMarketDataClient, market_bars

CLOSED = "http://127.0.0.1:9"
ETH, CANDLES = "ETH/USD", "/products/ETH-USD/candles"


def stored(client) -> store.BarStore:
    return read_store(client.path(ETH))


# -- the right bars
# --------------------------------------------------------------------------------------------------


def test_recorded_candles_arrive_bit_equal(loopback, client_home, real_bars):
    expected = real_bars(ETH)
    bars = CryptoMarketDataClient(exchange_url=loopback.url).get_historical_bars(ETH, 2000)
    same(bars, expected.iloc[-2001:-1])  # the last candle of the file is the current one
    assert not bars["is_gap"].any() and bars["is_gap"].dtype == bool
    wanted = {
        "ticker": ETH,
        "exchange": "coinbaseexchange",
        "simulated": False,
        "source": "exchange",
        "clock": "exchange",
        "exchange_url": loopback.url,
        "market": f"coinbaseexchange@127.0.0.1:{loopback.port}",
        "fetched_at": loopback.now.isoformat(),
        "clock_time": loopback.now.isoformat(),
    }
    assert provenance(bars).to_dict() == wanted


def test_all_thirteen_tickers_are_listed_and_served(loopback, client_home):
    client = CryptoMarketDataClient(exchange_url=loopback.url)
    assert len(TICKERS) == 13
    for ticker in TICKERS:
        same(client.get_historical_bars(ticker, 24), candles_of(ticker).iloc[-25:-1])
    assert loopback.count("/products") == 1 + 13  # the list of markets once, then one page each


@pytest.mark.parametrize(("now", "last"), [
    ("2025-01-31T22:59:59.999Z", "2025-01-31T21:00Z"), ("2025-01-31T23:00:00Z", "2025-01-31T22:00Z"),
    ("2025-01-31T23:30:00Z", "2025-01-31T22:00Z")])
def test_the_bar_in_progress_is_dropped_by_the_exchanges_clock(exchange, client, now, last):
    exchange.now = pd.Timestamp(now)
    bars = client.get_historical_bars(ETH, 50)
    assert bars.index[-1] == pd.Timestamp(last)
    same(bars, exchange.candles(ETH).loc[:last].iloc[-50:])
    assert stored(client).bars.index[-1] == pd.Timestamp(last)  # nor is it stored


def test_an_exchange_that_sends_the_bar_in_progress_unasked(exchange, client):
    exchange.now = pd.Timestamp("2025-01-31T23:30Z")

    def push(path, query, answer):
        if path == CANDLES:  # like exchanges that ignore the end of the span
            running = exchange._row(ETH, int(pd.Timestamp("2025-01-31T23:00Z").timestamp()))
            o, h, l, c, v = running
            return Answer([[int(pd.Timestamp("2025-01-31T23:00Z").timestamp()), l, h, o, c, v], *answer.body])

    exchange.faults.append(push)
    assert client.get_historical_bars(ETH, 5).index[-1] == pd.Timestamp("2025-01-31T22:00Z")
    exchange.faults.clear()
    exchange.now = pd.Timestamp("2025-02-01")
    exchange.now = exchange.now.tz_localize("UTC")
    same(client.get_historical_bars(ETH, 5), exchange.candles(ETH).iloc[-5:])  # complete once it is closed


def test_this_computers_clock_does_not_matter(exchange, client, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    same(client.get_historical_bars(ETH, 10), exchange.candles(ETH).iloc[-10:])


def test_an_exchange_that_does_not_tell_the_time_is_dated_by_its_answers(exchange, client):
    client.exchange.has["fetchTime"] = False
    exchange.now = pd.Timestamp("2025-01-31T23:59:59Z")
    bars = client.get_historical_bars(ETH, 10)
    assert provenance(bars).clock == "http date" and bars.index[-1] == pd.Timestamp("2025-01-31T22:00Z")
    assert exchange.count("/time") == 0


def test_an_end_in_the_past(exchange, client):
    bars = client.get_historical_bars(ETH, 30, end="2025-01-20T12:40Z")
    same(bars, exchange.candles(ETH).loc[:"2025-01-20T11:00Z"].iloc[-30:])


def test_an_end_in_the_future_fixes_the_span_and_shortens_it(exchange, client):
    bars = client.get_historical_bars(ETH, 30, end="2025-02-01T10:00Z")
    same(bars, exchange.candles(ETH).iloc[-20:])
    assert "20 of the 30 bars of ETH/USD" in provenance(bars).short
    with pytest.raises(InputError, match="pass an end before 2025-02-01"):
        client.get_historical_bars(ETH, 30, end="2025-03-01")


def test_a_young_listing_is_short_and_says_so(exchange, client):
    exchange.now = pd.Timestamp("2025-01-31T20:10Z")
    bars = client.get_historical_bars(ETH, 1496)
    same(bars, exchange.candles(ETH).iloc[:-4])
    assert "coinbaseexchange gave 996 of the 1496 bars of ETH/USD" in provenance(bars).short
    assert provenance(bars).unconfirmed == "500 hours came empty and will be asked for again"
    exchange.now += HOUR
    bars = client.get_historical_bars(ETH, 1497)  # empty again, an hour later
    assert (
        "coinbaseexchange has 997 of the 1497 bars of ETH/USD" in provenance(bars).short
        and provenance(bars).unconfirmed is None
    )
    exchange.forget()
    client.get_historical_bars(ETH, 1497)
    assert dict(exchange.requests) == {"/time": 1}  # the hours before the listing are not requested again
    with pytest.raises(InputError, match="has no bars of ETH/USD from 2024"):
        client.get_historical_bars(ETH, 10, end="2024-06-01")


def test_long_before_the_listing_is_probed_not_paged_through(exchange, client):
    bars = client.get_historical_bars(ETH, 1_000_000)
    same(bars, exchange.candles(ETH))
    asked = [q["start"] for p, q in exchange.asked if p == CANDLES]
    assert len(asked) < 30 and min(asked) == "2009-01-01T00:00:00.000Z"  # 139,000 hours would be 470 pages
    assert provenance(bars).unconfirmed


def test_a_halt_of_years_is_not_taken_for_the_listing(client_home, monkeypatch):
    monkeypatch.setattr(exchanges, "PAUSE", 0.01)
    whole = a_market(6000)
    with Loopback({ETH: whole.drop(whole.index[1000:5000])}, now="2025-02-01") as exchange:
        client = CryptoMarketDataClient(exchange_url=exchange.url)
        client.exchange.enableRateLimit = False
        bars = client.get_historical_bars(ETH, 6000)
        assert (
            len(bars) == 6000
            and bars["is_gap"].sum() == 4000
            and provenance(bars).unconfirmed.startswith("4,000 hours")
        )


# -- no repeated requests
# --------------------------------------------------------------------------------------------------


def test_a_stored_request_asks_for_the_time_alone(exchange, client):
    first = client.get_historical_bars(ETH, 700)
    assert exchange.count("candles") == 3  # 300 a page
    exchange.forget()
    again = CryptoMarketDataClient(exchange_url=exchange.url).get_historical_bars(ETH, 700)
    assert dict(exchange.requests) == {"/time": 1} and provenance(again).source == "store"
    pd.testing.assert_frame_equal(again, first)


def test_a_stored_span_with_an_end_needs_no_network(exchange, client):
    first = client.get_historical_bars(ETH, 100, end="2025-01-20")
    exchange.stop()
    offline = CryptoMarketDataClient("coinbaseexchange", exchange.url, home=client.home)
    # no request was made
    assert provenance(offline.get_historical_bars(ETH, 60, end="2025-01-20")).clock_time is None
    pd.testing.assert_frame_equal(
        offline.get_historical_bars(ETH, 60, end="2025-01-20"), first.iloc[-60:], check_freq=False
    )
    with pytest.raises(ExchangeUnreachable):
        offline.get_historical_bars(ETH, 101, end="2025-01-20")


def test_only_missing_hours_are_asked_for(exchange, client):
    client.get_historical_bars(ETH, 20, end="2025-01-20")
    client.get_historical_bars(ETH, 20, end="2025-01-25")
    exchange.forget()
    client.get_historical_bars(ETH, 24 * 6, end="2025-01-26")
    spans = sorted((q["start"][:13], q["end"][:13]) for p, q in exchange.asked if p == CANDLES)
    # and the 20 stored before
    assert fetch.WATCH > 20 and spans == [
        ("2025-01-19T04", "2025-01-24T03"),
        ("2025-01-24T04", "2025-01-25T23"),
    ]
    same(
        client.get_historical_bars(ETH, 24 * 6, end="2025-01-26"),
        exchange.candles(ETH).loc["2025-01-20":"2025-01-25"],
    )


def test_an_hour_later_one_bar_is_fetched(exchange, client):
    exchange.now = pd.Timestamp("2025-01-31T20:10Z")
    client.get_historical_bars(ETH, 100)
    exchange.now += HOUR
    exchange.forget()
    bars = client.get_historical_bars(ETH, 100)
    # the new bar and 24 known ones
    assert [(q["start"][:13], q["end"][:13]) for p, q in exchange.asked if p == CANDLES] == [
        ("2025-01-30T20", "2025-01-31T20")
    ]
    same(bars, exchange.candles(ETH).loc[:"2025-01-31T20:00Z"].iloc[-100:])


def test_bars_put_there_by_hand_are_used(exchange, client):
    path = client.path(ETH)
    path.parent.mkdir(parents=True)
    exchange.candles(ETH).iloc[:900].to_parquet(path)
    same(client.get_historical_bars(ETH, 950), exchange.candles(ETH).iloc[-950:])
    assert len([p for p, _ in exchange.asked if p == CANDLES]) == 1


# -- gaps
# --------------------------------------------------------------------------------------------------


def test_a_gap_is_marked_and_known_for_one_an_hour_later(client_home):
    whole = a_market()
    holes = list(range(500, 502)) + list(range(600, 605))
    with Loopback({ETH: whole.drop(whole.index[holes])}, now="2025-02-01") as exchange:
        client = CryptoMarketDataClient(exchange_url=exchange.url)
        bars = client.get_historical_bars(ETH, 900, end=exchange.now)
        assert (
            len(bars) == 900
            and provenance(bars).short is None
            and provenance(bars).unconfirmed == "7 hours came empty and will be asked for again"
        )
        assert list(bars.index[bars["is_gap"]]) == list(whole.index[holes])
        carried, empty = bars.loc[whole.index[500:502]], bars.loc[whole.index[600:605]]
        assert (
            (carried["volume"] == 0).all()
            and (carried["close"] == whole["close"].iloc[499]).all()
            and empty["close"].isna().all()
        )
        kept = ~bars["is_gap"]
        same(bars[kept], whole.iloc[-900:][kept.to_numpy()])
        assert exchange.count("candles") == 3 + 2  # three pages, and two retries of the page with holes
        for minutes in (59, 1):
            exchange.forget()
            exchange.now += pd.Timedelta(minutes=minutes)
            again = client.get_historical_bars(ETH, 900, end="2025-02-01")
            # both holes on one page
            assert 1 <= exchange.count("candles") <= 2
            assert bool(provenance(again).unconfirmed) == (minutes == 59)
        exchange.forget()
        pd.testing.assert_frame_equal(
            client.get_historical_bars(ETH, 900, end="2025-02-01")[COLUMNS], bars[COLUMNS]
        )
        assert not exchange.requests


def test_known_gaps_are_asked_for_when_that_is_wanted(client_home):
    whole = a_market()
    with Loopback({ETH: whole.drop(whole.index[600:605])}, now="2025-02-01") as exchange:
        client = CryptoMarketDataClient(exchange_url=exchange.url)
        for _ in range(2):
            client.get_historical_bars(ETH, 900, end="2025-02-01")
            exchange.now += HOUR
    with Loopback({ETH: whole}, now=exchange.now, port=exchange.port) as exchange:
        assert (
            client.get_historical_bars(ETH, 900, end="2025-02-01")["is_gap"].sum() == 5
            and not exchange.requests
        )
        bars = client.get_historical_bars(ETH, 900, end="2025-02-01", again=True)
        same(bars, whole.iloc[-900:])
        assert provenance(bars).late == 5 and provenance(bars).revised is None


def test_hours_that_came_empty_are_served_offline_and_called_unconfirmed(client_home):
    whole = a_market()
    with Loopback({ETH: whole.drop(whole.index[600:605])}, now="2025-02-01") as exchange:
        client = CryptoMarketDataClient(exchange_url=exchange.url)
        bars = client.get_historical_bars(ETH, 900, end="2025-02-01")
    offline = CryptoMarketDataClient(exchange_url=exchange.url).get_historical_bars(
        ETH, 900, end="2025-02-01"
    )
    pd.testing.assert_frame_equal(offline, bars, check_freq=False)
    assert provenance(offline).unconfirmed == provenance(bars).unconfirmed
    assert market_bars(ETH, 900, exchange_url=exchange.url)["is_gap"].sum() == 5


def test_an_empty_page_of_the_moment_is_not_taken_for_a_gap(exchange, client):
    served = []

    def empty_once(path, query, answer):
        if path == CANDLES and not served:
            served.append(query)
            return Answer([])

    exchange.faults.append(empty_once)
    same(client.get_historical_bars(ETH, 500), exchange.candles(ETH).iloc[-500:])


def test_a_bar_published_late_is_waited_for(client_home):
    whole = a_market()
    with Loopback({ETH: whole.iloc[:-1]}, now="2025-02-01T00:00:01Z") as exchange:
        client = CryptoMarketDataClient(exchange_url=exchange.url)
        bars = client.get_historical_bars(ETH, 10)
        same(bars, whole.iloc[-10:-1])
        assert "9 of the 10" in provenance(bars).short  # the missing bar is not made up
    with Loopback({ETH: whole}, now="2025-02-01T00:01Z", port=exchange.port) as exchange:
        bars = CryptoMarketDataClient(exchange_url=exchange.url).get_historical_bars(ETH, 10)
        same(bars, whole.iloc[-10:])


# -- several processes
# -------------------------------------------------------------------------------------------------


def fetching(url: str, home, hours: int = 1000) -> subprocess.Popen:
    "Another process that fetches into the same store."
    code = f"""
        from cryptolstm.data.client import CryptoMarketDataClient
        print(len(CryptoMarketDataClient(exchange_url={url!r}).get_historical_bars({ETH!r}, {hours})))
    """
    env = {**os.environ, "CRYPTOLSTM_HOME": str(home)}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, stdout=subprocess.PIPE, text=True
    )


def test_two_processes_do_not_fetch_twice(exchange, client_home):
    exchange.faults.append(lambda path, query, a: Answer(a.body, delay=0.1))
    both = [fetching(exchange.url, client_home) for _ in range(2)]
    assert [p.communicate(timeout=60)[0].strip() for p in both] == ["1000", "1000"]
    assert exchange.count("candles") == 4
    same(
        read_store(bar_path(client_home, f"coinbaseexchange@127.0.0.1:{exchange.port}", ETH)).bars,
        exchange.candles(ETH),
    )


def test_waiting_for_another_process_is_said_and_ends_with_one_ctrl_c(exchange, client):
    path = client.path(ETH)
    path.parent.mkdir(parents=True)
    code = (
        f"from cryptolstm.data.client import fetch_many\nfetch_many([{ETH!r}, 'ETH/USD'], 500,"
        f" exchange_url={exchange.url!r}, progress=True)"
    )
    env = {**os.environ, "CRYPTOLSTM_HOME": str(client.home)}
    with FileLock(path.with_name(f".{path.name}.lock")):
        process = subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE)
        said = b""
        while b"waiting for another process that holds ETH_USD_1h.parquet" not in said:
            said += process.stderr.read1()
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=20)[1]
    assert time.monotonic() - began < 3 and process.returncode and b"KeyboardInterrupt" in rest
    assert not path.exists() and not exchange.count("candles")


def test_a_fetch_that_waited_goes_on_when_the_other_process_is_done(exchange, client, capsys):
    path = client.path(ETH)
    path.parent.mkdir(parents=True)
    other = FileLock(path.with_name(f".{path.name}.lock"), thread_local=False)
    other.acquire()
    threading.Timer(1.0, other.release).start()
    same(client.get_historical_bars(ETH, 50), exchange.candles(ETH).iloc[-50:])
    assert capsys.readouterr().err.count("waiting for another process that holds ETH_USD_1h.parquet") == 1


def test_a_process_killed_between_pages_leaves_a_store_that_completes(exchange, client):
    # the first two pages are saved, and the process is killed while it waits for the next ones
    def slow(path, query, a):
        return (
            Answer(a.body, delay=1.2 if exchange.count("candles") <= 2 else 6.0) if path == CANDLES else None
        )
    exchange.faults.append(slow)
    process = fetching(exchange.url, client.home)
    path = client.path(ETH)
    for _ in range(3000):
        if path.is_file():
            break
        time.sleep(0.02)
    process.kill()
    process.wait()
    half = stored(client)
    assert 300 <= len(half.bars) < 1000
    same(half.bars, exchange.candles(ETH).iloc[-len(half.bars):])
    exchange.faults.clear()
    exchange.forget()
    same(client.get_historical_bars(ETH, 1000), exchange.candles(ETH))
    assert exchange.count("candles") == -(-(1000 - len(half.bars)) // 300)


def test_the_candle_in_progress_is_left_out_to_the_millisecond():
    hour = store.hour_number("2025-01-01T05:00Z")
    row = [[hour * store.HOUR_MS, 10, 12, 9, 11, 5]]
    for ms, n in ((0, 0), (store.HOUR_MS - 1, 0), (store.HOUR_MS, 1)):
        assert len(fetch.clean_candles(row, (hour, hour + 1), hour * store.HOUR_MS + ms)[0]) == n


# -- which market a report uses
# ----------------------------------------------------------------------------------------


def test_auto_takes_the_exchange_then_the_store_then_the_demo_market(exchange, client_home):
    simulated = market_bars(ETH, 50, exchange_url=CLOSED, seed=3)
    assert provenance(simulated).simulated and provenance(simulated).exchange == "simulated"
    assert "could not be reached" in provenance(simulated).fallback
    same(simulated, demo_market(50, seed=3, ticker=ETH))
    real = market_bars(ETH, 50, exchange_url=exchange.url)
    same(real, exchange.candles(ETH).iloc[-50:])
    assert provenance(real).source == "exchange" and provenance(real).notes == []
    exchange.stop()
    old = market_bars(ETH, 40, exchange_url=exchange.url)
    same(old, exchange.candles(ETH).iloc[-40:])
    assert not provenance(old).simulated and "opened at 2025-01-31 23:00 UTC" in provenance(old).stale
    past = market_bars(ETH, 20, end="2025-01-31", exchange_url=exchange.url)
    assert provenance(past).source == "store" and provenance(past).stale is None
    with pytest.raises(
        ExchangeUnreachable, match="the 50 stored bars of ETH/USD do not answer for these 60 hours"
    ):
        market_bars(ETH, 60, exchange_url=exchange.url)


def test_only_auto_falls_back(client_home, exchange, monkeypatch):
    with pytest.raises(ExchangeUnreachable):
        market_bars(ETH, 50, exchange="coinbaseexchange", exchange_url=CLOSED)
    monkeypatch.setattr(exchanges, "BUDGET", 0.6)
    exchange.faults.append(lambda path, query, a: Answer(b"", 503))
    with pytest.raises(OperationError, match="503"):  # an exchange that responds is not unreachable
        market_bars(ETH, 50, exchange_url=exchange.url)


def test_the_environment_names_the_exchange(exchange, client_home, monkeypatch):
    monkeypatch.setenv("CRYPTOLSTM_EXCHANGE", "simulated")
    chosen = market_bars(ETH, 30)
    assert provenance(chosen).simulated and provenance(chosen).notes == []
    assert chosen["is_gap"].dtype == bool
    monkeypatch.setenv("CRYPTOLSTM_EXCHANGE", "coinbaseexchange")
    monkeypatch.setenv("CRYPTOLSTM_EXCHANGE_URL", exchange.url)
    same(market_bars(ETH, 30), exchange.candles(ETH).iloc[-30:])


# -- the price
# --------------------------------------------------------------------------------------------------


def test_realtime_price(exchange, client):
    exchange.now = pd.Timestamp("2025-01-31T23:30Z")
    price, bars = client.get_realtime_price("eth-usd"), exchange.candles(ETH)
    last = bars["open"].iloc[-1] + (bars["close"].iloc[-1] - bars["open"].iloc[-1]) / 2
    assert price["last"] == pytest.approx(last) and price["bid"] < price["last"] < price["ask"]
    assert price["change_24h"] == pytest.approx(last / bars["open"].iloc[-24] - 1)
    assert price["volume_24h"] == pytest.approx(
        bars["volume"].iloc[-24:-1].sum() + bars["volume"].iloc[-1] / 2
    )
    assert (price["ticker"], price["exchange"]) == (ETH, "coinbaseexchange")
    assert (price["exchange_time"], price["mountain_time"]) == (
        "2025-01-31T23:30:00+00:00",
        "2025-01-31 16:30 MST",
    )
    # the second request does not change the first price
    assert client.get_realtime_price(ETH)["bid"] == price["bid"]


@pytest.mark.parametrize("bad", ["0", "-5", "NaN", "Infinity", None, True])
def test_a_last_price_that_is_none_is_asked_for_again(exchange, client, monkeypatch, bad):
    hit = []

    def spoil(path, query, answer):
        if path.endswith("/ticker") and not hit:
            hit.append(path)
            return Answer({**answer.body, "price": bad})

    exchange.faults.append(spoil)
    assert client.get_realtime_price(ETH)["last"] > 0 and hit
    monkeypatch.setattr(exchanges, "BUDGET", 0.2)
    exchange.faults[:] = [
        lambda path, query, a: Answer({**a.body, "price": bad}) if path.endswith("/ticker") else None
    ]
    with pytest.raises(
        OperationError, match="did not give the price of ETH/USD: its answer cannot be understood"
    ):
        client.get_realtime_price(ETH)


@pytest.mark.parametrize(("bid", "ask"), [("99999", "1"), ("NaN", "NaN"), ("-1", "0")])
def test_bids_and_offers_that_cannot_be_are_none(exchange, client, bid, ask):
    exchange.faults.append(
        lambda path, query, a: (
            Answer({**a.body, "bid": bid, "ask": ask}) if path.endswith("/ticker") else None
        )
    )
    price = client.get_realtime_price(ETH)
    assert (price["bid"], price["ask"]) == (None, None) and json.dumps(price, allow_nan=False)


@pytest.mark.parametrize("epoch", [0, -5, 1e15, "abc", None])
def test_an_exchange_clock_that_cannot_be_is_one_sentence(exchange, client, monkeypatch, epoch):
    monkeypatch.setattr(exchanges, "BUDGET", 0.2)
    exchange.faults.append(
        lambda path, query, a: Answer({"iso": "x", "epoch": epoch}) if path == "/time" else None
    )
    with pytest.raises(
        OperationError,
        match=(
            "did not give the time, needed for the newest 5 bars of ETH/USD: its answer cannot be understood"
        ),
    ):
        client.get_historical_bars(ETH, 5)


# -- bookkeeping
# --------------------------------------------------------------------------------------------------

spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8)


def hours_of(found) -> set[int]:
    return {h for a, b in found for h in range(a, b)}


@settings(deadline=None, max_examples=200)
@given(known=spans, start=st.integers(0, 40), length=st.integers(0, 30), limit=st.integers(1, 9))
def test_missing_hours_are_exactly_the_wanted_ones_that_are_not_known(known, start, length, limit):
    missing = store.missing_spans((start, start + length), known)
    assert hours_of(missing) == set(range(start, start + length)) - hours_of(known)
    cut = store.pages(missing, limit)
    assert hours_of(cut) == hours_of(missing) and sum(b - a for a, b in cut) == len(hours_of(missing))
    assert all(0 < b - a <= limit for a, b in cut) and cut == sorted(cut, reverse=True)
    assert store.merge_spans(missing) == missing


def test_the_demo_span_is_the_recorded_one(real_bars):
    recorded = real_bars(ETH)
    assert recorded.index[-1] + HOUR == pd.Timestamp(DEMO_END, tz="UTC")


# -- another address is another market
# ---------------------------------------------------------------------------------


def test_bars_of_another_address_do_not_mix_with_the_exchanges_own(exchange, client):
    other = a_market().assign(volume=1.0)
    with Loopback({ETH: other}, now="2025-02-01") as sandbox:
        bars = CryptoMarketDataClient(exchange_url=sandbox.url).get_historical_bars(ETH, 50)
        same(bars, other.iloc[-50:])
        assert (
            provenance(bars).market == f"coinbaseexchange@127.0.0.1:{sandbox.port}"
            and provenance(bars).exchange == "coinbaseexchange"
        )
        assert provenance(bars).exchange_url == sandbox.url
    same(client.get_historical_bars(ETH, 50), exchange.candles(ETH).iloc[-50:])
    assert sorted(p.name for p in (client.home / "bars").iterdir()) == sorted(
        f"coinbaseexchange@127.0.0.1_{p}" for p in (sandbox.port, exchange.port)
    )


def test_the_exchanges_own_address_typed_out_is_the_exchange():
    assert market_name("coinbaseexchange", "https://api.exchange.coinbase.com/") == "coinbaseexchange"
    assert market_name("kraken", "https://api.kraken.com") == "kraken"
    assert market_name("kraken", "https://proxy.example/kraken/") == "kraken@proxy.example/kraken"
    assert bar_path("x", "kraken@proxy.example/kraken", ETH).parent.name == "kraken@proxy.example%2Fkraken"


@pytest.mark.parametrize("address", [
    "http://me:secret@{}", "http://me@{}", "http://{}/?apikey=secret", "{}/#secret", "//me:secret@{}",
])
def test_an_address_with_credentials_is_refused_and_not_repeated(exchange, client_home, monkeypatch, address):
    address = address.format(exchange.url.partition("//")[2])
    with pytest.raises(InputError, match="exchange_url has .* put user name and password into ~/.netrc") as e:
        CryptoMarketDataClient(exchange_url=address)
    assert "secret" not in str(e.value)
    for asked in (lambda: client_module.connect("kraken", address), lambda: RunConfig(exchange_url=address)):
        with pytest.raises(InputError, match="~/.netrc"): asked()
    monkeypatch.setenv("CRYPTOLSTM_EXCHANGE_URL", address)
    with pytest.raises(InputError, match="^CRYPTOLSTM_EXCHANGE_URL has .*~/.netrc"):
        market_bars(ETH, 5)


def test_credentials_in_netrc_are_sent_and_stored_nowhere(exchange, client_home, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password planted-secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    bars = CryptoMarketDataClient(exchange_url=exchange.url).get_historical_bars(ETH, 5)
    word = base64.b64encode(b"me:planted-secret").decode()
    assert set(exchange.authorizations) == {f"Basic {word}"}
    for text in (str(bars.attrs).encode(), *(p.read_bytes() for p in client_home.rglob("*") if p.is_file())):
        assert b"planted-secret" not in text and word.encode() not in text


# -- revisions
# --------------------------------------------------------------------------------------------------


def test_a_corrected_bar_is_used_and_the_old_value_reported(client_home):
    whole = a_market()
    when = whole.index[990]
    with Loopback({ETH: whole}, now=whole.index[995]) as exchange:
        first = CryptoMarketDataClient(exchange_url=exchange.url).get_historical_bars(ETH, 100)
        assert provenance(first).revised is None
    corrected = whole.copy()
    corrected.loc[when, "volume"] *= 2
    with Loopback({ETH: corrected}, now="2025-02-01", port=exchange.port) as exchange:
        client = CryptoMarketDataClient(exchange_url=exchange.url)
        bars = client.get_historical_bars(ETH, 100)
        same(bars, corrected.iloc[-100:])
        assert provenance(bars).revised == [
            {
                "time": when.isoformat(),
                "column": "volume",
                "was": whole.at[when, "volume"],
                "now": corrected.at[when, "volume"],
                "seen": exchange.now.isoformat(),
            }
        ]
        assert exchange.count("candles") == 1
        # stored with the bars
        assert provenance(client.get_historical_bars(ETH, 100)).revised == provenance(bars).revised
        assert provenance(client.get_historical_bars(ETH, 5)).revised is None


def test_a_bar_that_fills_an_old_gap_is_late_and_no_revision(client_home):
    whole = a_market()
    when = whole.index[990]
    with Loopback({ETH: whole.drop(when)}, now=whole.index[995]) as exchange:
        assert (
            CryptoMarketDataClient(exchange_url=exchange.url).get_historical_bars(ETH, 100)["is_gap"].sum()
            == 1
        )
    with Loopback({ETH: whole}, now="2025-02-01", port=exchange.port) as exchange:
        bars = CryptoMarketDataClient(exchange_url=exchange.url).get_historical_bars(ETH, 100)
        same(bars, whole.iloc[-100:])
        assert provenance(bars).late == 1 and not provenance(bars).revised and not provenance(bars).notes


def test_a_stored_bar_that_one_answer_lacks_is_kept(client_home):
    whole = a_market()
    with Loopback({ETH: whole}, now=whole.index[995]) as exchange:
        CryptoMarketDataClient(exchange_url=exchange.url).get_historical_bars(ETH, 100)
    with Loopback({ETH: whole.drop(whole.index[990])}, now="2025-02-01", port=exchange.port) as exchange:
        bars = CryptoMarketDataClient(exchange_url=exchange.url).get_historical_bars(ETH, 100)
        same(bars, whole.iloc[-100:])
        assert provenance(bars).revised is None and exchange.count("candles") == 1


@settings(deadline=None, max_examples=100)
@given(missing=st.integers(1, 2000), behind=st.integers(0, 400), limit=st.integers(30, 400))
def test_the_newest_stored_bars_are_asked_for_again_with_at_most_one_more_request(missing, behind, limit):
    held = store.BarStore(covered=[(5000 - behind, 5000)] if behind else [])
    jobs, back = fetch.page_jobs(held, (5000, 5000 + missing), limit, False), min(behind, fetch.WATCH)
    asked = sorted(h for j in jobs for h in range(j.start - j.watch, j.stop))
    # each hour once, including the known ones before them
    assert asked == list(range(5000 - back, 5000 + missing))
    assert all(0 < j.stop - j.start + j.watch <= limit for j in jobs) and jobs == sorted(jobs, reverse=True)
    assert len(jobs) <= -(-missing // limit) + (back > 0)


@pytest.mark.parametrize("missing", [1, 277, 290, 299, 300, 600])
def test_corrections_of_the_newest_bars_are_noticed_however_many_bars_are_missing(client_home, missing):
    whole, corrected = a_market(), a_market()
    first = len(whole) - missing
    revised = whole.index[[first - 1, first - 3, first - fetch.WATCH]]
    corrected.loc[revised, "volume"] += 1.0
    with Loopback({ETH: whole}, now=whole.index[first - 1] + HOUR) as exchange:
        CryptoMarketDataClient(exchange_url=exchange.url).get_historical_bars(ETH, 100)
    with Loopback({ETH: corrected}, now="2025-02-01", port=exchange.port) as exchange:
        client = CryptoMarketDataClient(exchange_url=exchange.url)
        client.exchange.enableRateLimit = False
        bars = client.get_historical_bars(ETH, missing + 50)
        same(bars, corrected.iloc[-missing - 50:])
        assert sorted(r["time"] for r in provenance(bars).revised) == sorted(t.isoformat() for t in revised)
        assert exchange.count("candles") == -(-(missing + fetch.WATCH) // 300)


# -- ccxt's candles, read as a table
# -----------------------------------------------------------------------------------

price = st.floats(1e-9, 1e9, allow_nan=False)


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(["coinbaseexchange", "kraken", "binance", "okx",
                             "gemini", "bitfinex", "kucoin", "bybit"]),
       texts=st.booleans(),
       rows=st.lists(st.tuples(st.integers(400_000, 500_000), *[price] * 8), max_size=12),
       late=st.integers(0, 500_000))
def test_candles_read_as_a_table_are_those_of_ccxt(name, texts, rows, late):
    ours, theirs = connected(name)
    unit = 1 if ours.parse_ohlcv([1e9] * 9, None)[0] == 10**12 else 1000
    sent = [[h * 3600 * unit, *(repr(x) if texts else x for x in rest)] for h, *rest in rows]
    how = (None, "1h", late * store.HOUR_MS)
    # ours are not cut off at the number asked for
    assert ours.parse_ohlcvs(sent, *how, 7) == theirs.parse_ohlcvs(sent, *how)


@functools.cache
def connected(name: str):
    return client_module.connect(name), getattr(ccxt, name)()


# -- several tickers
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_pauses(monkeypatch):
    "Clients without the exchange's rate limit."
    connect = client_module.connect

    def quick(*args):
        made = connect(*args)
        made.enableRateLimit = False
        return made

    monkeypatch.setattr(client_module, "connect", quick)


def test_several_tickers_are_fetched_and_one_that_fails_stops_no_other(client_home, no_pauses, monkeypatch):
    monkeypatch.setattr(exchanges, "BUDGET", 0.3)
    frames = {t: a_market(700, ticker=t) for t in TICKERS[:6]}
    bad, unknown = TICKERS[2], "NOSUCH/USD"
    with Loopback(frames, now="2025-02-01") as exchange:
        exchange.faults.append(
            lambda path, query, a: Answer(b"", 503) if bad.replace("/", "-") in path else None
        )
        told = client_module.fetch_many(
            [*frames, unknown, TICKERS[0].lower()], 600, exchange_url=exchange.url
        )
        assert list(told) == [*frames, unknown]
        good = [t for t in frames if t != bad]
        assert all(
            told[t]["ok"]
            and told[t]["bars"] == 600
            and told[t]["gaps"] == 0
            and told[t]["source"] == "exchange"
            for t in good
        )
        assert (
            not told[bad]["ok"]
            and "did not give the bars of " + bad in told[bad]["error"]
            and told[bad]["exit_code"] == 1
        )
        assert "does not list NOSUCH/USD" in told[unknown]["error"] and told[unknown]["exit_code"] == 2
        # one list of markets and one clock for all
        assert (exchange.requests["/products"], exchange.requests["/time"]) == (1, 1)
        assert json.loads(json.dumps(told)) == told
        exchange.forget()
        client = CryptoMarketDataClient(exchange_url=exchange.url)
        for t in good:
            same(client.get_historical_bars(t, 600, end=exchange.now), frames[t].iloc[-600:])
        assert not exchange.requests


def under_way(exchange) -> list[int]:
    "The maximum number of candle requests in flight at the same time, counted from now on."
    running, most = [0], [0]

    def slow(path, query, answer):
        if "candles" in path:
            running[0] += 1
            most[0] = max(most[0], running[0])
            time.sleep(0.1)
            running[0] -= 1

    exchange.faults.append(slow)
    return most


def test_several_tickers_overlap_in_time(client_home, no_pauses):
    frames = {t: a_market(400, ticker=t) for t in TICKERS[:4]}
    with Loopback(frames, now="2025-02-01") as exchange:
        most = under_way(exchange)
        assert all(
            r["ok"]
            for r in client_module.fetch_many(frames, 300, exchange_url=exchange.url, workers=4).values()
        )
        assert most[0] >= 3
        most[0] = 0
        client_module.fetch_many(frames, 400, exchange_url=exchange.url, workers=1)
        assert most[0] == 1


def test_the_next_page_is_on_its_way_while_one_is_read(exchange, client):
    most = under_way(exchange)
    same(client.get_historical_bars(ETH, 1000), exchange.candles(ETH))
    assert most[0] == fetch.LINES == 2 and exchange.count("candles") == 4


def test_several_tickers_share_one_rate_limit(client_home):
    frames, came = {t: a_market(100, ticker=t) for t in TICKERS[:4]}, []
    with Loopback(frames, now="2025-02-01") as exchange:
        exchange.faults.append(lambda *_: came.append(time.monotonic()))
        assert all(
            r["ok"]
            for r in client_module.fetch_many(frames, 50, exchange_url=exchange.url, workers=4).values()
        )
    pause = client_module.connect("coinbaseexchange").rateLimit / 1000
    # in total: one arrival may be late by itself
    assert len(came) == 7 and came[-1] - came[0] > 0.8 * 6 * pause and pause >= 0.05


def test_a_pause_that_is_asked_for_holds_for_all_who_talk_to_the_market(client_home):
    "One ticker's client is told to wait a second; the other sends nothing in that time."
    frames, came, told = {t: a_market(1500, ticker=t) for t in TICKERS[:2]}, [], []

    def fault(path, query, answer):
        if "candles" in path:
            came.append(time.monotonic())
            if len(came) == 4:
                told.append(came[-1])
                return Answer(
                    {"message": "slow down"}, 429, {"Content-Type": "application/json", "Retry-After": "1"}
                )

    with Loopback(frames, now="2025-02-01") as exchange:
        exchange.faults.append(fault)
        told_all = client_module.fetch_many(frames, 1500, exchange_url=exchange.url, workers=2)
    assert all(r["ok"] and r["bars"] == 1500 for r in told_all.values())
    # requests already in flight may still arrive
    quiet = [t - told[0] for t in came if 0.2 < t - told[0] < 0.95]
    assert not quiet and len(came) == 11


def test_nobody_there_fails_for_every_ticker(client_home, monkeypatch):
    monkeypatch.setattr(exchanges, "PAUSE", 0.02)
    told = client_module.fetch_many(["ETH/USD", "BTC/USD"], 10, exchange_url=CLOSED)
    assert all(
        "cannot be reached" in r["error"]
        and f"the newest 10 bars of {t}" in r["error"]
        and r["exit_code"] == 1
        for t, r in told.items()
    )
    with pytest.raises(InputError, match="pass BASE/QUOTE"):
        client_module.fetch_many(["ETH/USD", "dogs"], 10)


def test_progress_shows_the_time_that_is_left(client_home, no_pauses, capsys):
    frames = {t: a_market(400, ticker=t) for t in TICKERS[:2]}
    with Loopback(frames, now="2025-02-01") as exchange:
        exchange.faults.append(lambda path, query, a: Answer(a.body, delay=0.15))
        client_module.fetch_many(frames, 400, exchange_url=exchange.url, workers=1, progress=True)
    shown = capsys.readouterr().err
    assert "bars of 2 tickers" in shown and re.search(r"\d/800 \[\d\d:\d\d<\d\d:\d\d", shown)


# -- Mountain Time
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("day", "hours", "absent", "twice"), [
    ("2025-03-09", 23, {2}, set()), ("2025-11-02", 25, set(), {1})])
def test_mountain_time_through_both_daylight_saving_days_bar_by_bar(day, hours, absent, twice):
    """The index stays in plain UTC hours; the displayed time skips an hour in spring and repeats one in
    autumn, distinguished by its zone."""
    bars = demo_market(24 * 5, end=pd.Timestamp(day) + pd.Timedelta("3D"), ticker=ETH)
    assert (np.diff(bars.index.as_unit("s").asi8) == 3600).all()
    offset = {"MST": 7, "MDT": 6}
    shown = [display_time(t) for t in bars.index]
    assert len(set(shown)) == len(shown)  # no two bars have the same label
    for t, text in zip(bars.index, shown, strict=True):
        local, zone = text.rsplit(" ", 1)
        # each label maps back to its bar
        assert pd.Timestamp(local) + pd.Timedelta(hours=offset[zone]) == t.tz_convert(None)
    of_day = [int(text[11:13]) for text in shown if text.startswith(day)]
    assert (
        len(of_day) == hours
        and set(range(24)) - set(of_day) == absent
        and {h for h in of_day if of_day.count(h) == 2} == twice
    )
    zones = [text[-3:] for text in shown]
    # one change of offset, in the right direction
    assert zones == sorted(zones, reverse=absent == {2}) and set(zones) == {"MST", "MDT"}
    repeated = [text for text in shown if text.startswith(f"{day} 01:")]
    assert repeated == ([f"{day} 01:00 MDT", f"{day} 01:00 MST"] if twice else [f"{day} 01:00 MST"])
