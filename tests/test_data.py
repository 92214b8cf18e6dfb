"""Market data that can be trusted: the client's real ccxt code against the loop-back exchange."""
import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import DEMO_END, TICKERS, Answer, Loopback, candles_of

from cryptolstm import data
from cryptolstm.core import COLUMNS, HOUR, InputError, OperationError
from cryptolstm.data import CryptoMarketDataClient, ExchangeUnreachable, bar_path, market_bars, read_store
from cryptolstm.simulate import demo_market

CLOSED = "http://127.0.0.1:9"
ETH, CANDLES = "ETH/USD", "/products/ETH-USD/candles"


def a_market(hours: int = 1000, end: str = "2025-02-01") -> pd.DataFrame:
    return demo_market(hours, end=end, ticker=ETH)


@pytest.fixture
def exchange():
    "A small exchange that lists ETH/USD alone; 1000 closed bars, clock at the full hour."
    with Loopback({ETH: a_market()}, now="2025-02-01") as server:
        yield server


@pytest.fixture
def client(exchange, client_home):
    "A client of that exchange; without the pauses between requests, for these tests only."
    made = CryptoMarketDataClient("coinbaseexchange", exchange.url)
    assert made.exchange.enableRateLimit
    made.exchange.enableRateLimit = False
    return made


@pytest.fixture(autouse=True)
def short_pauses(request, monkeypatch):
    "Retries come quickly, but for the test that measures how long they take."
    if "quickly" not in request.node.name:
        monkeypatch.setattr(data, "PAUSE", 0.02)


def same(got: pd.DataFrame, expected: pd.DataFrame) -> None:
    "Bit-equal values at the same hours."
    pd.testing.assert_index_equal(got.index.as_unit("ns"), expected.index.as_unit("ns"), check_names=True)
    assert np.array_equal(got[COLUMNS].to_numpy(), expected[COLUMNS].to_numpy())


def stored(client) -> data.BarStore:
    return read_store(bar_path(client.home, client.id, ETH))


# -- the right bars ----------------------------------------------------------------------------------------------------


def test_recorded_candles_arrive_bit_equal(loopback, client_home, real_bars):
    expected = real_bars(ETH)
    bars = CryptoMarketDataClient(exchange_url=loopback.url).get_historical_bars(ETH, 2000)
    same(bars, expected.iloc[-2001:-1])  # the last candle of the file is the one in progress
    assert not bars["is_gap"].any() and bars["is_gap"].dtype == bool
    wanted = {"ticker": ETH, "exchange": "coinbaseexchange", "simulated": False, "source": "exchange", "clock": "exchange",
              "exchange_url": loopback.url, "fetched_at": loopback.now.isoformat()}
    assert bars.attrs == wanted


def test_all_thirteen_tickers_are_listed_and_served(loopback, client_home):
    client = CryptoMarketDataClient(exchange_url=loopback.url)
    assert len(TICKERS) == 13
    for ticker in TICKERS:
        same(client.get_historical_bars(ticker, 24), candles_of(ticker).iloc[-25:-1])
    assert loopback.count("/products") == 1 + 13  # the list of markets once, one page each


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
    same(client.get_historical_bars(ETH, 5), exchange.candles(ETH).iloc[-5:])  # whole once it is closed


def test_this_computers_clock_does_not_matter(exchange, client, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    same(client.get_historical_bars(ETH, 10), exchange.candles(ETH).iloc[-10:])


def test_an_exchange_that_does_not_tell_the_time_is_dated_by_its_answers(exchange, client):
    client.exchange.has["fetchTime"] = False
    exchange.now = pd.Timestamp("2025-01-31T23:59:59Z")
    bars = client.get_historical_bars(ETH, 10)
    assert bars.attrs["clock"] == "http date" and bars.index[-1] == pd.Timestamp("2025-01-31T22:00Z")
    assert exchange.count("/time") == 0


def test_an_end_in_the_past(exchange, client):
    bars = client.get_historical_bars(ETH, 30, end="2025-01-20T12:40Z")
    same(bars, exchange.candles(ETH).loc[:"2025-01-20T11:00Z"].iloc[-30:])


def test_an_end_in_the_future_fixes_the_span_and_shortens_it(exchange, client):
    bars = client.get_historical_bars(ETH, 30, end="2025-02-01T10:00Z")
    same(bars, exchange.candles(ETH).iloc[-20:])
    assert "20 of the 30 bars of ETH/USD" in bars.attrs["short"]
    with pytest.raises(InputError, match="pass an end before 2025-02-01"):
        client.get_historical_bars(ETH, 30, end="2025-03-01")


def test_a_young_listing_is_short_and_says_so(exchange, client):
    bars = client.get_historical_bars(ETH, 1500)
    same(bars, exchange.candles(ETH))
    assert "coinbaseexchange has 1000 of the 1500 bars of ETH/USD" in bars.attrs["short"]
    exchange.forget()
    client.get_historical_bars(ETH, 1500)
    assert dict(exchange.requests) == {"/time": 1}  # the hours before the listing are not asked for again
    with pytest.raises(InputError, match="has no bars of ETH/USD from 2024"):
        client.get_historical_bars(ETH, 10, end="2024-06-01")


# -- asked once --------------------------------------------------------------------------------------------------------


def test_a_stored_request_asks_for_the_time_alone(exchange, client):
    first = client.get_historical_bars(ETH, 700)
    assert exchange.count("candles") == 3  # 300 a page
    exchange.forget()
    again = CryptoMarketDataClient(exchange_url=exchange.url).get_historical_bars(ETH, 700)
    assert dict(exchange.requests) == {"/time": 1} and again.attrs["source"] == "store"
    pd.testing.assert_frame_equal(again, first)


def test_a_stored_span_with_an_end_needs_no_network(exchange, client):
    first = client.get_historical_bars(ETH, 100, end="2025-01-20")
    offline = CryptoMarketDataClient("coinbaseexchange", CLOSED, home=client.home)
    pd.testing.assert_frame_equal(offline.get_historical_bars(ETH, 60, end="2025-01-20"), first.iloc[-60:], check_freq=False)
    with pytest.raises(ExchangeUnreachable):
        offline.get_historical_bars(ETH, 101, end="2025-01-20")


def test_only_missing_hours_are_asked_for(exchange, client):
    client.get_historical_bars(ETH, 20, end="2025-01-20")
    client.get_historical_bars(ETH, 20, end="2025-01-25")
    exchange.forget()
    client.get_historical_bars(ETH, 24 * 6, end="2025-01-26")
    spans = sorted((q["start"][:13], q["end"][:13]) for p, q in exchange.asked if p == CANDLES)
    assert spans == [("2025-01-20T00", "2025-01-24T03"), ("2025-01-25T00", "2025-01-25T23")]
    same(client.get_historical_bars(ETH, 24 * 6, end="2025-01-26"), exchange.candles(ETH).loc["2025-01-20":"2025-01-25"])


def test_an_hour_later_one_bar_is_fetched(exchange, client):
    exchange.now = pd.Timestamp("2025-01-31T20:10Z")
    client.get_historical_bars(ETH, 100)
    exchange.now += HOUR
    exchange.forget()
    bars = client.get_historical_bars(ETH, 100)
    assert [q["start"][:13] for p, q in exchange.asked if p == CANDLES] == ["2025-01-31T20"]
    same(bars, exchange.candles(ETH).loc[:"2025-01-31T20:00Z"].iloc[-100:])


def test_bars_put_there_by_hand_are_used(exchange, client):
    path = bar_path(client.home, client.id, ETH)
    path.parent.mkdir(parents=True)
    exchange.candles(ETH).iloc[:900].to_parquet(path)
    same(client.get_historical_bars(ETH, 950), exchange.candles(ETH).iloc[-950:])
    assert len([p for p, _ in exchange.asked if p == CANDLES]) == 1


# -- gaps --------------------------------------------------------------------------------------------------------------


def test_a_gap_is_marked_asked_for_twice_and_never_again(client_home):
    whole = a_market()
    holes = list(range(500, 502)) + list(range(600, 605))
    with Loopback({ETH: whole.drop(whole.index[holes])}, now="2025-02-01") as exchange:
        client = CryptoMarketDataClient(exchange_url=exchange.url)
        bars = client.get_historical_bars(ETH, 900)
        assert len(bars) == 900 and "short" not in bars.attrs
        assert list(bars.index[bars["is_gap"]]) == list(whole.index[holes])
        carried, empty = bars.loc[whole.index[500:502]], bars.loc[whole.index[600:605]]
        assert (carried["volume"] == 0).all() and (carried["close"] == whole["close"].iloc[499]).all() and empty["close"].isna().all()
        kept = ~bars["is_gap"]
        same(bars[kept], whole.iloc[-900:][kept.to_numpy()])
        assert exchange.count("candles") == 3 + 1  # three pages, and a second look at the one with holes
        exchange.forget()
        pd.testing.assert_frame_equal(client.get_historical_bars(ETH, 900)[COLUMNS], bars[COLUMNS])
        assert dict(exchange.requests) == {"/time": 1}


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
        assert "9 of the 10" in bars.attrs["short"]  # nothing is invented for the missing one
    with Loopback({ETH: whole}, now="2025-02-01T00:01Z") as exchange:
        bars = CryptoMarketDataClient(exchange_url=exchange.url).get_historical_bars(ETH, 10)
        same(bars, whole.iloc[-10:])


# -- what cannot be believed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reason", "spoil"), [
    ("high below low", lambda r: [r[0], r[2] + 1, r[1], *r[3:]]), ("a missing value", lambda r: [*r[:4], None, r[5]]),
    ("a price that is not positive", lambda r: [r[0], 0.0, *r[2:]]), ("a price that is not positive", lambda r: [r[0], -r[1], *r[2:]]),
    ("off the hour", lambda r: [r[0] + 60, *r[1:]]), ("a negative volume", lambda r: [*r[:5], -1.0]),
    ("open or close outside high and low", lambda r: [*r[:3], r[2] * 2, *r[4:]])])
@pytest.mark.parametrize("lasting", [False, True])
def test_a_broken_candle_is_dropped_and_counted(exchange, client, reason, spoil, lasting):
    hour = int(pd.Timestamp("2025-01-31T10:00Z").timestamp())

    def broken(path, query, answer):
        if path == CANDLES and (lasting or exchange.count("candles") == 1):
            return Answer([spoil(r) if r[0] == hour else r for r in answer.body])

    exchange.faults.append(broken)
    bars, expected = client.get_historical_bars(ETH, 100), exchange.candles(ETH).iloc[-100:]
    assert bars.attrs["dropped"] == {reason: 1}
    assert list(bars.index[bars["is_gap"]]) == ([pd.Timestamp("2025-01-31T10:00Z")] if lasting else [])
    same(bars[~bars["is_gap"]], expected[~bars["is_gap"].to_numpy()])
    assert client.get_historical_bars(ETH, 100).attrs["dropped"] == {reason: 1}  # the note is kept with the bars


def test_candles_that_a_page_of_duplicates_pushes_out_are_asked_for_again(exchange, client):
    exchange.faults.append(lambda path, query, a: Answer([r for r in a.body for _ in range(3)]) if path == CANDLES else None)
    same(client.get_historical_bars(ETH, 250), exchange.candles(ETH).iloc[-250:])  # ccxt cuts an answer to the number asked for


def test_duplicated_unordered_and_foreign_candles(exchange, client):
    def shuffled(path, query, answer):
        if path == CANDLES:
            far = [answer.body[0][0] + 10**9, *answer.body[0][1:]]
            rows = [*answer.body, *answer.body[50:53], far]
            return Answer(rows[::2] + rows[1::2])

    exchange.faults.append(shuffled)
    bars = client.get_historical_bars(ETH, 100)
    same(bars, exchange.candles(ETH).iloc[-100:])
    assert bars.attrs["dropped"] == {"duplicated": 3}


# -- faults ------------------------------------------------------------------------------------------------------------

HTML = {"Content-Type": "text/html"}
FAULTS = {
    "rate limit": lambda a: Answer({"message": "Public rate limit exceeded"}, 429),
    "rate limit with a time": lambda a: Answer({"message": "slow down"}, 429, {"Content-Type": "application/json", "Retry-After": "1"}),
    "server error": lambda a: Answer(b"<html><h1>Service Unavailable</h1></html>", 503, HTML),
    "login page": lambda a: Answer(b"<html>please log in</html>", 200, HTML),
    "half a document": lambda a: Answer(a.bytes()[: len(a.bytes()) // 2]),
    "connection cut": lambda a: Answer(a.body, send=len(a.bytes()) // 2),
    "empty body": lambda a: Answer(b"", 404),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("path", ["/time", "/products", CANDLES])
def test_a_passing_fault_costs_nothing_but_time(exchange, client, name, path):
    hit = []

    def once(asked, query, answer):
        if asked == path and not hit:
            hit.append(asked)
            return FAULTS[name](answer)

    exchange.faults.append(once)
    same(client.get_historical_bars(ETH, 350), exchange.candles(ETH).iloc[-350:])
    assert hit == [path]


@pytest.mark.parametrize("name", FAULTS)
def test_a_lasting_fault_ends_with_one_sentence_and_keeps_what_was_fetched(exchange, client, monkeypatch, name):
    monkeypatch.setattr(data, "BUDGET", 0.6)
    exchange.faults.append(lambda path, query, a: FAULTS[name](a) if path == CANDLES and query["start"] < "2025-01-15" else None)
    with pytest.raises(OperationError, match="coinbaseexchange did not give the bars of ETH/USD from 2025-01-07") as caught:
        client.get_historical_bars(ETH, 600)
    assert not isinstance(caught.value, ExchangeUnreachable) and "<" not in str(caught.value) and "\n" not in str(caught.value)
    same(stored(client).bars, exchange.candles(ETH).iloc[-300:])
    exchange.faults.clear()
    exchange.forget()
    same(client.get_historical_bars(ETH, 600), exchange.candles(ETH).iloc[-600:])
    assert exchange.count("candles") == 1


def test_nobody_there_is_found_out_quickly(client_home):
    before = time.monotonic()
    with pytest.raises(ExchangeUnreachable, match=r"coinbaseexchange cannot be reached at 127.0.0.1:9 \(connection refused\)"):
        CryptoMarketDataClient(exchange_url=CLOSED).get_historical_bars(ETH, 10)
    assert time.monotonic() - before < 6


def test_a_server_that_never_answers_counts_as_unreachable(exchange, client, monkeypatch):
    monkeypatch.setattr(data, "FIRST_CONTACT", 0.4)
    client.exchange.timeout = 300
    exchange.faults.append(lambda path, query, a: Answer(a.body, delay=1.0))
    with pytest.raises(ExchangeUnreachable, match="did not answer in time"):
        client.get_historical_bars(ETH, 10)


def test_unknown_names(exchange, client):
    with pytest.raises(InputError, match="coinbaseexchange does not list ETHH/USD; did you mean ETH/USD?"):
        client.get_historical_bars("ETHH/USD", 10)
    with pytest.raises(InputError, match="such as ETH/USD"):
        client.get_realtime_price("ZZZ/QQQ")
    with pytest.raises(InputError, match="such as kraken"):
        CryptoMarketDataClient("krakken")
    assert not (client.home / "bars" / "coinbaseexchange" / "ETHH_USD_1h.parquet").exists()


def test_a_damaged_store_is_named(client):
    client.get_historical_bars(ETH, 10)
    bar_path(client.home, client.id, ETH).write_bytes(b"PAR1 not really")
    with pytest.raises(OperationError, match="ETH_USD_1h.parquet cannot be read as stored bars"):
        client.get_historical_bars(ETH, 10)


# -- several processes -------------------------------------------------------------------------------------------------


def fetching(url: str, home, hours: int = 1000) -> subprocess.Popen:
    "Another process that fetches into the same store."
    code = f"""
        from cryptolstm.data import CryptoMarketDataClient
        print(len(CryptoMarketDataClient(exchange_url={url!r}).get_historical_bars({ETH!r}, {hours})))
    """
    env = {**os.environ, "CRYPTOLSTM_HOME": str(home)}
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=env, stdout=subprocess.PIPE, text=True)


def test_two_processes_do_not_fetch_twice(exchange, client_home):
    exchange.faults.append(lambda path, query, a: Answer(a.body, delay=0.1))
    both = [fetching(exchange.url, client_home) for _ in range(2)]
    assert [p.communicate(timeout=60)[0].strip() for p in both] == ["1000", "1000"]
    assert exchange.count("candles") == 4
    same(read_store(bar_path(client_home, "coinbaseexchange", ETH)).bars, exchange.candles(ETH))


def test_a_process_killed_between_pages_leaves_a_store_that_completes(exchange, client):
    exchange.faults.append(lambda path, query, a: Answer(a.body, delay=0.6) if path == CANDLES else None)
    process = fetching(exchange.url, client.home)
    path = bar_path(client.home, client.id, ETH)
    for _ in range(600):
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


def test_what_is_stored_says_where_it_comes_from(exchange, client):
    client.get_historical_bars(ETH, 10)
    notes = pq.read_schema(bar_path(client.home, client.id, ETH)).metadata[b"cryptolstm"].decode()
    assert exchange.url in notes and exchange.now.isoformat() in notes


# -- which market a report gets ----------------------------------------------------------------------------------------


def test_auto_takes_the_exchange_then_the_store_then_the_demo_market(exchange, client_home):
    simulated = market_bars(ETH, 50, exchange_url=CLOSED, seed=3)
    assert simulated.attrs["simulated"] and simulated.attrs["exchange"] == "simulated"
    assert "could not be reached" in simulated.attrs["fallback"]
    same(simulated, demo_market(50, seed=3, ticker=ETH))
    real = market_bars(ETH, 50, exchange_url=exchange.url)
    same(real, exchange.candles(ETH).iloc[-50:])
    assert real.attrs["source"] == "exchange" and not {"fallback", "stale"} & set(real.attrs)
    old = market_bars(ETH, 40, exchange_url=CLOSED)
    same(old, exchange.candles(ETH).iloc[-40:])
    assert not old.attrs["simulated"] and "opened at 2025-01-31 23:00 UTC" in old.attrs["stale"]
    past = market_bars(ETH, 20, end="2025-01-31", exchange_url=CLOSED)
    assert past.attrs["source"] == "store" and "stale" not in past.attrs
    with pytest.raises(ExchangeUnreachable, match="the 50 stored bars of ETH/USD do not answer for these 60 hours"):
        market_bars(ETH, 60, exchange_url=CLOSED)


def test_only_auto_falls_back(client_home, exchange, monkeypatch):
    with pytest.raises(ExchangeUnreachable):
        market_bars(ETH, 50, exchange="coinbaseexchange", exchange_url=CLOSED)
    monkeypatch.setattr(data, "BUDGET", 0.6)
    exchange.faults.append(lambda path, query, a: Answer(b"", 503))
    with pytest.raises(OperationError, match="503"):  # an exchange that answers is not a missing one
        market_bars(ETH, 50, exchange_url=exchange.url)


def test_the_environment_names_the_exchange(exchange, client_home, monkeypatch):
    monkeypatch.setenv("CRYPTOLSTM_EXCHANGE", "simulated")
    chosen = market_bars(ETH, 30)
    assert chosen.attrs["simulated"] and "fallback" not in chosen.attrs and chosen["is_gap"].dtype == bool
    monkeypatch.setenv("CRYPTOLSTM_EXCHANGE", "coinbaseexchange")
    monkeypatch.setenv("CRYPTOLSTM_EXCHANGE_URL", exchange.url)
    same(market_bars(ETH, 30), exchange.candles(ETH).iloc[-30:])


# -- the price ---------------------------------------------------------------------------------------------------------


def test_realtime_price(exchange, client):
    exchange.now = pd.Timestamp("2025-01-31T23:30Z")
    price, bars = client.get_realtime_price("eth-usd"), exchange.candles(ETH)
    last = bars["open"].iloc[-1] + (bars["close"].iloc[-1] - bars["open"].iloc[-1]) / 2
    assert price["last"] == pytest.approx(last) and price["bid"] < price["last"] < price["ask"]
    assert price["change_24h"] == pytest.approx(last / bars["open"].iloc[-24] - 1)
    assert price["volume_24h"] == pytest.approx(bars["volume"].iloc[-24:-1].sum() + bars["volume"].iloc[-1] / 2)
    assert (price["ticker"], price["exchange"]) == (ETH, "coinbaseexchange")
    assert (price["exchange_time"], price["mountain_time"]) == ("2025-01-31T23:30:00+00:00", "2025-01-31 16:30 MST")
    assert client.get_realtime_price(ETH)["bid"] == price["bid"]  # the second question leaves the first as it was


# -- bookkeeping -------------------------------------------------------------------------------------------------------

spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8)


def hours_of(found) -> set[int]:
    return {h for a, b in found for h in range(a, b)}


@settings(deadline=None, max_examples=200)
@given(known=spans, start=st.integers(0, 40), length=st.integers(0, 30), limit=st.integers(1, 9))
def test_missing_hours_are_exactly_the_wanted_ones_that_are_not_known(known, start, length, limit):
    missing = data.missing_spans((start, start + length), known)
    assert hours_of(missing) == set(range(start, start + length)) - hours_of(known)
    cut = data.pages(missing, limit)
    assert hours_of(cut) == hours_of(missing) and sum(b - a for a, b in cut) == len(hours_of(missing))
    assert all(0 < b - a <= limit for a, b in cut) and cut == sorted(cut, reverse=True)
    assert data.merge_spans(missing) == missing


def test_the_demo_span_is_the_recorded_one(real_bars):
    recorded = real_bars(ETH)
    assert recorded.index[-1] + HOUR == pd.Timestamp(DEMO_END, tz="UTC")
