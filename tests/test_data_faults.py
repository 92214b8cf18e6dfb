"Faults of exchange, connection and disk, through the real ccxt code against the loop-back exchange."
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from loopback import FAULTS, SILENCES, TICKERS, Answer, Loopback, a_market, bad_luck, same

from cryptolstm.core.errors import InputError, OperationError
from cryptolstm.core.bars import bars_hash, provenance
from cryptolstm.data import client as client_module, exchange as exchanges, fetch, store
from cryptolstm.data.store import load_store, read_store
from cryptolstm.data.exchange import ExchangeUnreachable, NotListed
from cryptolstm.data.demo import demo_market
from cryptolstm.data.transfer import export_bars
from cryptolstm.data.client import CryptoMarketDataClient, market_bars

CLOSED = "http://127.0.0.1:9"
ETH, CANDLES = "ETH/USD", "/products/ETH-USD/candles"


def stored(client) -> store.BarStore:
    return read_store(client.path(ETH))


# -- implausible candles
# -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reason", "spoil"), [
    ("high below low", lambda r: [r[0], r[2] + 1, r[1], *r[3:]]),
    ("a missing value", lambda r: [*r[:4], None, r[5]]),
    ("a missing value", lambda r: [r[0], True, *r[2:]]), ("a missing value", lambda r: [*r[:5], True]),
    ("a price that is not positive", lambda r: [r[0], 0.0, *r[2:]]),
    ("a price that is not positive", lambda r: [r[0], -r[1], *r[2:]]),
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
    # none dropped where the bar was good on the retry
    assert provenance(bars).dropped == ({reason: 1} if lasting else None)
    assert list(bars.index[bars["is_gap"]]) == ([pd.Timestamp("2025-01-31T10:00Z")] if lasting else [])
    same(bars[~bars["is_gap"]], expected[~bars["is_gap"].to_numpy()])
    # the note is stored with the bars
    assert provenance(client.get_historical_bars(ETH, 100)).dropped == provenance(bars).dropped


@pytest.mark.parametrize("when", [1e18, -1e18, 1e300, 9e15, 0, "soon", None])
@pytest.mark.parametrize("place", [0, 150, -1])
@pytest.mark.filterwarnings("error")
def test_a_time_that_cannot_be_is_a_failed_request_and_no_crash(exchange, client, monkeypatch, when, place):
    monkeypatch.setattr(exchanges, "BUDGET", 0.1)

    def absurd(path, query, answer):
        if path == CANDLES:
            rows, at = list(answer.body), min(place, len(answer.body) - 1)
            rows[at] = [when, *rows[at][1:]]
            return Answer(rows)

    exchange.faults.append(absurd)
    with pytest.raises(
        OperationError, match="did not give the bars of ETH/USD from .*: its answer cannot be understood"
    ):
        client.get_historical_bars(ETH, 300)
    exchange.faults.clear()
    same(client.get_historical_bars(ETH, 300), exchange.candles(ETH).iloc[-300:])


def test_one_ticker_with_an_absurd_time_leaves_the_others_alone(client_home, monkeypatch):
    monkeypatch.setattr(exchanges, "PAUSE", 0.01)
    frames = {t: a_market(50, ticker=t) for t in TICKERS[:4]}
    with Loopback(frames, now="2025-02-01") as exchange:
        exchange.faults.append(
            lambda path, query, a: (
                Answer([[1e18, *a.body[0][1:]], *a.body[1:]])
                if TICKERS[2].replace("/", "-") in path
                else None
            )
        )
        told = client_module.fetch_many(frames, 50, exchange_url=exchange.url)
    assert [r["ok"] for r in told.values()] == [True, True, False, True]
    assert (
        "its answer cannot be understood" in told[TICKERS[2]]["error"] and told[TICKERS[2]]["exit_code"] == 1
    )


def test_candles_that_a_page_of_duplicates_pushes_out_are_asked_for_again(exchange, client):
    exchange.faults.append(
        lambda path, query, a: Answer([r for r in a.body for _ in range(3)]) if path == CANDLES else None
    )
    # ccxt truncates a response to the number requested
    same(client.get_historical_bars(ETH, 250), exchange.candles(ETH).iloc[-250:])


def test_duplicated_unordered_and_foreign_candles(exchange, client):
    def shuffled(path, query, answer):
        if path == CANDLES:
            far = [answer.body[0][0] + 10**9, *answer.body[0][1:]]
            rows = [*answer.body, *answer.body[50:53], far]
            return Answer(rows[::2] + rows[1::2])

    exchange.faults.append(shuffled)
    bars = client.get_historical_bars(ETH, 100)
    same(bars, exchange.candles(ETH).iloc[-100:])
    assert provenance(bars).dropped == {"duplicated": 3}


def another_bar(row: list) -> list:
    "The same hour with another, also plausible bar."
    return [row[0], row[1] * 0.99, *row[2:5], row[5] + 1]


@pytest.mark.parametrize("place", [0, 50, 99], ids=["newest", "middle", "oldest"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("lasting", [True, False])
def test_of_two_different_bars_of_an_hour_neither_is_used(exchange, client, place, first, lasting):
    hour = int(exchange.candles(ETH).index[-1 - place].timestamp())

    def twice(path, query, answer):
        if path == CANDLES and (lasting or exchange.count("candles") == 1):
            return Answer([
                x for r in answer.body
                for x in ([another_bar(r), r][:: 1 if first else -1] if r[0] == hour else [r])
            ])

    exchange.faults.append(twice)
    bars, expected = client.get_historical_bars(ETH, 100), exchange.candles(ETH).iloc[-100:]
    same(bars[~bars["is_gap"]], expected.drop(expected.index[-1 - place]) if lasting else expected)
    assert provenance(bars).dropped == ({"contradictory": 1} if lasting else None)


@pytest.mark.parametrize("liar", [1, 2, 3])
def test_of_answers_that_differ_the_majority_is_used(exchange, client, liar):
    "Hours 20 and 60 are missing in two answers, so that everything between them is given three times."
    def differs(path, query, answer):
        if path == CANDLES:
            rows, n = answer.body, exchange.count("candles")
            if n == liar: rows = [another_bar(r) if r[0] == hours[40] else r for r in rows]
            return Answer([r for r in rows if n > 2 or r[0] not in (hours[20], hours[60])])

    expected = exchange.candles(ETH).iloc[-100:]
    hours = (expected.index.as_unit("s").asi8).tolist()
    exchange.faults.append(differs)
    same(client.get_historical_bars(ETH, 100), expected)


# -- faults
# --------------------------------------------------------------------------------------------------

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
def test_a_lasting_fault_ends_with_one_sentence_and_keeps_what_was_fetched(
    exchange, client, monkeypatch, name
):
    monkeypatch.setattr(exchanges, "BUDGET", 0.6)
    exchange.faults.append(
        lambda path, query, a: FAULTS[name](a) if path == CANDLES and query["start"] < "2025-01-15" else None
    )
    with pytest.raises(
        OperationError, match="coinbaseexchange did not give the bars of ETH/USD from 2025-01-07"
    ) as caught:
        client.get_historical_bars(ETH, 600)
    assert (
        not isinstance(caught.value, ExchangeUnreachable)
        and "<" not in str(caught.value)
        and "\n" not in str(caught.value)
    )
    same(stored(client).bars, exchange.candles(ETH).iloc[-300:])
    exchange.faults.clear()
    exchange.forget()
    same(client.get_historical_bars(ETH, 600), exchange.candles(ETH).iloc[-600:])
    assert exchange.count("candles") == 1


@pytest.fixture
def kraken(exchange, client_home):
    """A client of the same market through Kraken's API; for Kraken, ccxt turns a response it cannot interpret
    into an empty list of candles."""
    made = CryptoMarketDataClient("kraken", exchange.url)
    made.exchange.enableRateLimit = False
    return made


@pytest.mark.parametrize("name", [k for k in FAULTS if k != "JSON of another kind"])
@pytest.mark.parametrize("path", ["/0/public/Time", "/0/public/AssetPairs", "/0/public/OHLC"])
def test_a_passing_fault_costs_nothing_but_time_in_another_dialect(exchange, kraken, name, path):
    hit = []

    def once(asked, query, answer):
        if asked == path and not hit:
            hit.append(asked)
            return FAULTS[name](answer)

    exchange.faults.append(once)
    same(kraken.get_historical_bars(ETH, 350), exchange.candles(ETH).iloc[-350:])
    assert hit == [path] and exchange.count("OHLC") == (2 if path.endswith("OHLC") else 1)


@pytest.mark.parametrize("name", [k for k in FAULTS if k != "JSON of another kind"])
def test_a_lasting_fault_in_another_dialect_is_no_market_without_trades(exchange, kraken, monkeypatch, name):
    monkeypatch.setattr(exchanges, "BUDGET", 0.3)
    exchange.faults.append(lambda path, query, a: FAULTS[name](a) if path.endswith("OHLC") else None)
    with pytest.raises(
        OperationError, match="kraken did not give the bars of ETH/USD from 2025-01-07"
    ) as caught:
        kraken.get_historical_bars(ETH, 600)
    assert not isinstance(caught.value, ExchangeUnreachable) and "<" not in str(caught.value)
    assert not kraken.path(ETH).exists()


def test_an_answer_of_another_kind_that_reads_as_no_candles_is_never_remembered(
    exchange, kraken, monkeypatch
):
    "ccxt turns it into an empty list for Kraken: the client raises an error and stores nothing."
    monkeypatch.setattr(exchanges, "PAUSE", 0.002)
    exchange.faults.append(
        lambda path, query, a: FAULTS["JSON of another kind"](a) if path.endswith("OHLC") else None
    )
    with pytest.raises(OperationError, match="kraken lists ETH/USD but gives no bars of it"):
        kraken.get_historical_bars(ETH, 600)
    assert not kraken.path(ETH).exists()
    exchange.faults.clear()
    same(kraken.get_historical_bars(ETH, 600), exchange.candles(ETH).iloc[-600:])


@pytest.mark.parametrize("name", SILENCES)
@pytest.mark.parametrize("where", ["newest", "middle", "oldest", "all"])
@pytest.mark.parametrize("hours", [1, 5, 600, 900])
def test_a_lasting_silence_is_never_remembered_as_a_gap(exchange, client, monkeypatch, name, where, hours):
    """Pages that are empty or short for a while give an error or a note, are not stored as gaps, and
    afterwards the bars are exactly those served."""
    monkeypatch.setattr(exchanges, "PAUSE", 0.002)
    exchange.now, spoil = pd.Timestamp("2025-01-30T00:10Z"), SILENCES[name]
    hit = {
        "newest": lambda q: q["end"] > "2025-01-25",
        "middle": lambda q: q["start"] < "2025-01-12" < q["end"],
        "oldest": lambda q: q["start"] < "2025-01-08",
        "all": lambda q: True,
    }[where]
    exchange.faults.append(
        lambda path, query, a: Answer(spoil(a.body)) if path == CANDLES and hit(query) else None
    )
    served = exchange.candles(ETH)
    for minutes in (0, 20, 39):  # less than an hour in all
        exchange.now += pd.Timedelta(minutes=minutes)
        try:
            bars = client.get_historical_bars(ETH, hours)
        except OperationError as e:
            assert "ETH/USD" in str(e) and "try again later" in str(e) and not isinstance(e, InputError)
        else:
            gone = len(served.loc[:bars.index[-1]].iloc[-hours:]) - int((~bars["is_gap"]).sum())
            assert not gone or provenance(bars).unconfirmed or provenance(bars).short
        half = stored(client)
        # an hour counts as known only where its bar is stored
        same(half.bars, served[store.inside(store.hours_of(served.index), half.covered)])
    exchange.faults.clear()
    bars = client.get_historical_bars(ETH, hours)
    same(
        bars,
        served.loc[
            : "2025-01-29 23:00" if exchange.now < pd.Timestamp("2025-01-30T01:00Z") else "2025-01-30 00:00"
        ].iloc[-hours:],
    )
    assert not bars["is_gap"].any() and not provenance(bars).notes and not provenance(bars).revised


def test_an_exchange_that_keeps_back_its_newest_bars_fails_and_heals(exchange, client):
    exchange.now = pd.Timestamp("2025-01-30T00:10Z")
    exchange.faults.append(
        lambda path, query, a: Answer([]) if path == CANDLES and query["end"] > "2025-01-25" else None
    )
    with pytest.raises(
        OperationError,
        match=(
            r"coinbaseexchange gives no bars of ETH/USD from 2025-01-17 12:00 to 2025-01-30 00:00, although"
            r" it has "
            r"earlier ones; try again later, or pass an end of 2025-01-17T12:00Z or before"
        ),
    ):
        client.get_historical_bars(ETH, 600)
    same(
        client.get_historical_bars(ETH, 100, end="2025-01-17T12:00Z"),
        exchange.candles(ETH).loc[:"2025-01-17T11:00Z"].iloc[-100:],
    )
    exchange.faults.clear()
    same(client.get_historical_bars(ETH, 600), exchange.candles(ETH).loc[:"2025-01-29 23:00"].iloc[-600:])


def test_an_exchange_that_has_no_bars_at_all_is_an_error_and_no_mistake_of_the_user(exchange, client):
    exchange.faults.append(lambda path, query, a: Answer([]) if path == CANDLES else None)
    for how in ({}, {"end": "2025-01-20"}):
        with pytest.raises(
            OperationError,
            match=(
                "coinbaseexchange lists ETH/USD but gives no bars of it, neither from .* nor at any other"
                " time; try"
            ),
        ):
            client.get_historical_bars(ETH, 300, **how)
    assert not client.path(ETH).exists()


def test_bars_that_stop_while_the_clock_goes_on_are_an_error_within_a_day(exchange, client, monkeypatch):
    monkeypatch.setattr(exchanges, "PAUSE", 0.002)
    exchange.now = pd.Timestamp("2025-01-25T00:10Z")
    client.get_historical_bars(ETH, 100)
    stop = exchange.now.timestamp() // 3600 * 3600
    exchange.faults.append(
        lambda path, query, a: Answer([r for r in a.body if r[0] < stop]) if path == CANDLES else None
    )
    errors = []
    for _ in range(30):
        exchange.now += pd.Timedelta("1h")
        try:
            assert provenance(client.get_historical_bars(ETH, 100)).short
        except OperationError as e:
            errors.append(str(e))
    assert len(errors) == 6 and "gives no bars of ETH/USD from 2025-01-25 00:00" in errors[0]
    exchange.faults.clear()
    exchange.now += pd.Timedelta("1h")
    bars = client.get_historical_bars(ETH, 100)
    same(bars, exchange.candles(ETH).loc[:"2025-01-26 06:00"].iloc[-100:])
    assert not provenance(bars).notes and not provenance(bars).revised


def test_bars_that_ended_months_ago_are_named_by_the_last_of_them(client_home, monkeypatch):
    monkeypatch.setattr(exchanges, "PAUSE", 0.002)
    whole = a_market(6000)
    with Loopback({ETH: whole.iloc[:2345]}, now="2025-02-01") as exchange:
        client = CryptoMarketDataClient(exchange_url=exchange.url)
        client.exchange.enableRateLimit = False
        with pytest.raises(
            OperationError,
            match=(
                f"it has earlier ones; try again later, or pass an end of {whole.index[2345]:%Y-%m-%dT%H:%MZ}"
                " or before"
            ),
        ):
            client.get_historical_bars(ETH, 200)
        assert exchange.count("candles") < 40
        same(client.get_historical_bars(ETH, 200, end=whole.index[2345]), whole.iloc[2145:2345])


def test_nobody_there_is_found_out_quickly(client_home):
    before = time.monotonic()
    with pytest.raises(
        ExchangeUnreachable, match=r"coinbaseexchange cannot be reached at 127.0.0.1:9 \(connection refused\)"
    ):
        CryptoMarketDataClient(exchange_url=CLOSED).get_historical_bars(ETH, 10)
    assert time.monotonic() - before < 6


def test_a_server_that_never_answers_counts_as_unreachable(exchange, client, monkeypatch):
    monkeypatch.setattr(exchanges, "FIRST_CONTACT", 0.4)
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


# -- rate limits and pauses
# -------------------------------------------------------------------------------------------------


def limited(exchange, times: int, retry_after, part: str = "candles"):
    """A fault: the first `times` requests for `part` get a 429 with a `Retry-After`.

    Returns the arrival times of the requests."""
    came = []

    def fault(path, query, answer):
        if part in path:
            came.append(time.monotonic())
            if len(came) <= times:
                return Answer(
                    {"message": "slow down"},
                    429,
                    {"Content-Type": "application/json", "Retry-After": retry_after(exchange)},
                )

    exchange.faults.append(fault)
    return came


@pytest.mark.parametrize("retry_after", [
    lambda e: "1", lambda e: (e.now + pd.Timedelta("1s")).strftime("%a, %d %b %Y %H:%M:%S GMT"),
], ids=["seconds", "date"])
def test_retry_after_is_obeyed_within_the_budget(exchange, client, retry_after):
    came = limited(exchange, 1, retry_after)
    same(client.get_historical_bars(ETH, 100), exchange.candles(ETH).iloc[-100:])
    assert 1.0 <= came[1] - came[0] < 2.5  # the date is compared with the exchange's clock, which is in 2025


def test_retry_after_beyond_the_budget_is_said_at_once(exchange, client):
    came = limited(exchange, 9, lambda e: "3600")
    before = time.monotonic()
    with pytest.raises(
        OperationError,
        match=(
            "the bars of ETH/USD from 2025-01-27 20:00 to 2025-02-01 00:00: it limits our requests and asks"
            " to wait 3600 s"
        ),
    ):
        client.get_historical_bars(ETH, 100)
    assert len(came) == 1 and time.monotonic() - before < 2


def test_a_server_that_is_busy_says_how_long(exchange, client):
    exchange.faults.append(
        lambda path, query, a: Answer(b"busy", 503, {"Retry-After": "120"}) if path == CANDLES else None
    )
    with pytest.raises(OperationError, match="HTTP status 503 and asks to wait 120 s"):
        client.get_historical_bars(ETH, 100)


@pytest.mark.parametrize("path", ["/time", "/products", CANDLES])
def test_a_time_out_is_tried_again(exchange, client, path):
    client.exchange.timeout, slow = 300, []

    def once(asked, query, answer):
        if asked == path and not slow:
            slow.append(asked)
            return Answer(answer.body, delay=0.8)

    exchange.faults.append(once)
    same(client.get_historical_bars(ETH, 100), exchange.candles(ETH).iloc[-100:])
    assert slow == [path]


@pytest.mark.parametrize("path", ["/time", "/products", CANDLES])
def test_an_answer_that_drips_is_not_waited_for(exchange, client, monkeypatch, path):
    "A byte now and then keeps a connection from timing out, so the whole response has a time limit."
    client.exchange.timeout = 300
    monkeypatch.setattr(exchanges, "BUDGET", 1.0)
    monkeypatch.setattr(exchanges, "FIRST_CONTACT", 1.0)
    exchange.faults.append(lambda asked, query, a: Answer(a.body, drip=0.1) if asked == path else None)
    began = time.monotonic()
    with pytest.raises(OperationError, match="did not answer in time"):
        client.get_historical_bars(ETH, 100)
    assert time.monotonic() - began < 4


def test_a_pause_beyond_the_budget_holds_nobody_up(exchange, client):
    came = limited(exchange, 1, lambda e: "3600")
    with pytest.raises(OperationError, match="asks to wait 3600 s"):
        client.get_historical_bars(ETH, 100)
    same(client.get_historical_bars(ETH, 100), exchange.candles(ETH).iloc[-100:])
    assert len(came) == 2 and came[1] - came[0] < 5


HANGS = {
    "429": lambda a: Answer({}, 429, {"Content-Type": "application/json", "Retry-After": "9"}),
    "a byte now and then": lambda a: Answer(a.body, drip=2.0),
    "nothing": lambda a: Answer(a.body, delay=15.0),
}


@pytest.mark.parametrize("kind", HANGS)
@pytest.mark.parametrize("several", [True, False])
def test_one_ctrl_c_ends_every_wait(exchange, client, kind, several):
    "The interrupt reaches the main thread, while others wait for the exchange."
    began = []

    def hang(path, query, answer):
        if path == CANDLES:
            began.append(now := time.monotonic())
            if began[0] is now: threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
            return HANGS[kind](answer)

    exchange.faults.append(hang)
    with pytest.raises(KeyboardInterrupt):
        if several: client_module.fetch_many([ETH, "BTC/USD"], 900, exchange_url=exchange.url)
        else: client.get_historical_bars(ETH, 900)
    assert time.monotonic() - began[0] < 1.0 + 3.0
    assert not [t for t in threading.enumerate() if "ThreadPoolExecutor" in t.name]
    exchange.faults.clear()
    client.exchange.turns.held = 0.0
    same(client.get_historical_bars(ETH, 900), exchange.candles(ETH).iloc[-900:])


def test_a_header_that_drips_is_not_waited_for(client_home, monkeypatch):
    monkeypatch.setattr(exchanges, "BUDGET", 0.5)
    monkeypatch.setattr(exchanges, "FIRST_CONTACT", 0.5)

    def drip(connection):
        with contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while True:
                connection.sendall(b"x")
                time.sleep(0.1)

    def accept():
        with contextlib.suppress(OSError):
            while True: threading.Thread(target=drip, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        client = CryptoMarketDataClient(exchange_url=f"http://127.0.0.1:{server.getsockname()[1]}")
        client.exchange.timeout, began = 300, time.monotonic()
        with pytest.raises(OperationError, match="did not answer in time"):
            client.get_historical_bars(ETH, 100)
        assert time.monotonic() - began < 4


# -- redirects and empty lists
# ------------------------------------------------------------------------------------------------


def moved(place: str):
    return lambda path, query, a: (
        Answer(b"", 302, {"Location": f"{place}{path}?{urlencode(query | {'moved': 1})}"})
        if path == CANDLES and "moved" not in query
        else None
    )


def test_a_redirect_to_another_address_is_not_followed(exchange, client, monkeypatch):
    monkeypatch.setattr(exchanges, "BUDGET", 0.3)
    with Loopback({ETH: a_market().assign(volume=1.0)}, now="2025-02-01") as other:
        exchange.faults.append(moved(other.url))
        with pytest.raises(
            OperationError,
            match=f"bars of ETH/USD .*: it redirects to another address, 127.0.0.1:{other.port}",
        ):
            client.get_historical_bars(ETH, 100)
        assert not other.requests
    exchange.faults[:] = [moved("")]
    same(client.get_historical_bars(ETH, 100), exchange.candles(ETH).iloc[-100:])
    exchange.faults[:] = [lambda path, query, a: Answer(b"", 302, {"Location": path})]
    with pytest.raises(OperationError, match="redirects in a circle"):
        client.get_historical_bars(ETH, 200)


@pytest.mark.parametrize("status", [203, 206, 304])
def test_an_answer_with_an_odd_status_is_no_answer(exchange, client, monkeypatch, status):
    monkeypatch.setattr(exchanges, "BUDGET", 0.1)
    exchange.faults.append(
        lambda path, query, a: Answer(a.body[::2], status) if path == CANDLES else None
    )
    with pytest.raises(OperationError, match="the bars of ETH/USD .*: it answers with HTTP status"):
        client.get_historical_bars(ETH, 100)


def test_an_empty_list_of_products_is_a_failed_request(exchange, client, kraken, monkeypatch):
    once = []

    def empty(path, query, answer):
        if path == "/products" and not once:
            once.append(path)
            return Answer([])

    exchange.faults.append(empty)
    same(client.get_historical_bars(ETH, 100), exchange.candles(ETH).iloc[-100:])
    assert once
    monkeypatch.setattr(exchanges, "BUDGET", 0.1)
    exchange.faults[:] = [
        lambda path, query, a: Answer({"error": [], "result": {}}) if "AssetPairs" in path else None
    ]
    with pytest.raises(OperationError, match="did not give its list of markets.*ETH/USD: it is empty"):
        kraken.get_historical_bars(ETH, 100)


def test_a_ticker_with_another_quote_is_offered(client_home):
    frames = {t: a_market(50, ticker=t) for t in ("BTC/USDT", "BTC/EUR", "ETH/USD", "BTCB/USD")}
    with Loopback(frames, now="2025-02-01") as exchange:
        with pytest.raises(InputError, match="does not list BTC/USD; did you mean BTC/USDT"):
            CryptoMarketDataClient(exchange_url=exchange.url).get_historical_bars("BTC/USD", 10)


@pytest.mark.parametrize("path", ["/time", "/products", CANDLES])
def test_an_error_names_exchange_ticker_and_span(exchange, client, monkeypatch, path):
    monkeypatch.setattr(exchanges, "BUDGET", 0.3)
    exchange.faults.append(lambda asked, query, a: Answer(b"", 503) if asked == path else None)
    with pytest.raises(OperationError, match="coinbaseexchange did not give .*ETH/USD.*503") as caught:
        client.get_historical_bars(ETH, 100, end="2025-01-20")
    assert path == "/products" or "from 2025-01-15 20:00 to 2025-01-20 00:00" in str(caught.value)


# -- pages that differ from the request
# -----------------------------------------------------------------------------


def test_an_empty_page_inside_a_span_is_asked_for_again(exchange, client):
    empty = []

    def twice(path, query, answer):
        if path == CANDLES and query["start"] < "2025-01-20" < query["end"] and len(empty) < fetch.LOOKS - 1:
            empty.append(query)
            return Answer([])

    exchange.faults.append(twice)
    bars = client.get_historical_bars(ETH, 900)
    same(bars, exchange.candles(ETH).iloc[-900:])
    assert len(empty) == fetch.LOOKS - 1 and not bars["is_gap"].any()


def test_a_page_shorter_than_asked_is_completed(exchange, client):
    exchange.faults.append(lambda path, query, a: Answer(a.body[:100]) if path == CANDLES else None)
    bars = client.get_historical_bars(ETH, 700)
    same(bars, exchange.candles(ETH).iloc[-700:])


def test_overlapping_pages_give_every_bar_once(exchange, client):
    def wide(path, query, answer):  # 50 extra candles on both sides
        if path == CANDLES:
            first, last = answer.body[-1][0], answer.body[0][0]
            more = [
                t
                for t in (*range(first - 50 * 3600, first, 3600), *range(last + 3600, last + 51 * 3600, 3600))
                if exchange._row(ETH, t)
            ]
            return Answer(
                [
                    *answer.body,
                    *([t, r[2], r[1], r[0], r[3], r[4]] for t in more for r in [exchange._row(ETH, t)]),
                ]
            )

    exchange.faults.append(wide)
    same(client.get_historical_bars(ETH, 700), exchange.candles(ETH).iloc[-700:])


def test_an_exchange_that_gives_only_its_newest_bars_is_short_and_says_so(client_home):
    # 720 closed candles, as Kraken serves
    with Loopback({ETH: a_market(3000)}, now="2025-01-20T00:10Z", memory=721) as exchange:
        client = CryptoMarketDataClient(exchange_url=exchange.url)
        client.exchange.enableRateLimit = False
        bars = client.get_historical_bars(ETH, 1000)
        same(bars, exchange.candles(ETH).loc[:"2025-01-19 23:00"].iloc[-720:])
        assert (
            "coinbaseexchange gave 720 of the 1000 bars of ETH/USD asked for" in provenance(bars).short
            and not bars["is_gap"].any()
        )
        exchange.now += pd.Timedelta("10D")  # stored bars stay, and new ones are added
        bars = client.get_historical_bars(ETH, 960)
        same(bars, exchange.candles(ETH).loc[:"2025-01-29 23:00"].iloc[-960:])
        assert provenance(bars).short is None


def test_what_an_exchange_has_forgotten_is_no_gap_in_trading(client_home):
    with Loopback({ETH: a_market(3000)}, now="2024-12-01T00:10Z", memory=721) as exchange:
        client = CryptoMarketDataClient(exchange_url=exchange.url)
        client.exchange.enableRateLimit = False
        client.get_historical_bars(ETH, 300)
        exchange.now = pd.Timestamp("2025-01-20T00:10Z")
        bars = client.get_historical_bars(ETH, 1500)
        missing = bars.index[bars["is_gap"]]
        assert missing[0] == pd.Timestamp("2024-12-01", tz="UTC") and missing[-1] == pd.Timestamp(
            "2024-12-20 23:00", tz="UTC"
        )
        assert "no longer gives the bars from 2024-12-01 00:00 to 2024-12-21 00:00" in provenance(bars).short
        # and it is stored
        assert "no longer gives" in provenance(client.get_historical_bars(ETH, 1500)).short


@pytest.mark.parametrize("until", [900, 700], ids=["one page", "two pages"])
def test_a_true_gap_is_not_called_forgotten(client_home, until):
    whole = a_market()
    with Loopback({ETH: whole.drop(whole.index[until:until + 5])}, now=whole.index[until]) as exchange:
        client = CryptoMarketDataClient(exchange_url=exchange.url)
        client.get_historical_bars(ETH, 100)
        exchange.now = pd.Timestamp("2025-02-01", tz="UTC")
        bars = client.get_historical_bars(ETH, 1050 - until)
        assert bars["is_gap"].sum() == 5 and provenance(bars).short is None and len(bars) == 1050 - until


# -- clocks
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [-30, -1, 1, 30])
def test_clock_skew_between_this_computer_and_the_exchange_does_not_matter(
    exchange, client, monkeypatch, hours
):
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)
    bars = client.get_historical_bars(ETH, 10)
    same(bars, exchange.candles(ETH).iloc[-10:])
    assert provenance(bars).clock_time == exchange.now.isoformat() and provenance(bars).clock == "exchange"


def test_an_exchange_whose_clock_goes_back_gives_no_bar_twice(exchange, client):
    client.get_historical_bars(ETH, 10)
    exchange.now -= pd.Timedelta("5h")
    same(client.get_historical_bars(ETH, 10), exchange.candles(ETH).iloc[-15:-5])


# -- names
# --------------------------------------------------------------------------------------------------


def test_a_renamed_ticker_is_fetched_under_its_new_name_and_says_so(client_home):
    with Loopback({"POL/USD": a_market(ticker="POL/USD")}, now="2025-02-01") as exchange:
        client = CryptoMarketDataClient(exchange_url=exchange.url)
        bars = client.get_historical_bars("MATIC/USD", 100)
        same(bars, exchange.candles("POL/USD").iloc[-100:])
        assert (
            provenance(bars).alias
            == "coinbaseexchange lists MATIC/USD as POL/USD; these are the bars of POL/USD"
        )
        assert provenance(client.get_historical_bars("POL/USD", 100)).alias is None
        price = client.get_realtime_price("MATIC/USD")
        assert (
            price["ticker"] == "MATIC/USD" and price["alias"] == "coinbaseexchange lists MATIC/USD as POL/USD"
        )


def test_a_renamed_ticker_is_found_in_the_store_without_the_exchange(client_home):
    with Loopback({"POL/USD": a_market(ticker="POL/USD")}, now="2025-02-01") as exchange:
        CryptoMarketDataClient(exchange_url=exchange.url).get_historical_bars("MATIC/USD", 100)
    bars = market_bars("MATIC/USD", 50, exchange_url=exchange.url)
    same(bars, a_market(ticker="POL/USD").iloc[-50:])
    assert (
        not provenance(bars).simulated
        and provenance(bars).ticker == "MATIC/USD"
        and provenance(bars).alias.endswith("these are the stored bars of POL/USD")
    )
    with pytest.raises(
        ExchangeUnreachable, match="the 100 stored bars of MATIC/USD do not answer for these 200 hours"
    ):
        market_bars("MATIC/USD", 200, exchange_url=exchange.url)


def test_a_renamed_ticker_is_exported_under_its_new_name_and_it_is_said(client_home, tmp_path, capsys):
    with Loopback({"POL/USD": a_market(ticker="POL/USD")}, now="2025-02-01") as exchange:
        client = CryptoMarketDataClient(exchange_url=exchange.url)
        bars = client.get_historical_bars("MATIC/USD", 100)
    out = export_bars("MATIC/USD", client.market, tmp_path / "out.parquet")
    assert (
        capsys.readouterr().err == "MATIC/USD is now called POL/USD; these are the stored bars of POL/USD\n"
    )
    assert (
        pd.read_parquet(out)["close"].tolist() == bars["close"].tolist()
        and b"POL/USD" in pq.read_schema(out).metadata[b"cryptolstm_export"]
    )


def test_what_a_killed_writer_left_is_removed_by_the_next_one(client_home, client):
    client.get_historical_bars("ETH/USD", 50)
    folder = client.path("ETH/USD").parent
    (half := folder / f".{client.path('ETH/USD').name}.x1y2z3.parquet").write_bytes(b"PAR1 half a file")
    client.get_historical_bars("ETH/USD", 100)
    assert not half.exists() and len(load_store(client.path("ETH/USD")).bars) == 100


def test_a_home_that_is_a_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CRYPTOLSTM_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"file is a file; set CRYPTOLSTM_HOME to a folder"):
        CryptoMarketDataClient(exchange_url=CLOSED).get_historical_bars("ETH/USD", 50)


@pytest.mark.parametrize("refuses", [False, True],
                         ids=["its candles are still served", "its candles are refused"])
def test_a_renamed_ticker_that_stays_listed_as_delisted_is_fetched_under_its_new_name(client_home, refuses):
    old, new = a_market(ticker="MATIC/USD").iloc[:600], a_market(ticker="POL/USD", hours=900)
    with Loopback({"MATIC/USD": old, "POL/USD": new}, now="2025-02-01") as exchange:
        exchange.delisted, exchange.refuses = {"MATIC/USD"}, refuses
        client = CryptoMarketDataClient(exchange_url=exchange.url)
        began = time.monotonic()
        bars = client.get_historical_bars("MATIC/USD", 100)
        assert time.monotonic() - began < 5
        same(bars, new.iloc[-100:])
        assert (
            provenance(bars).alias
            == "coinbaseexchange lists MATIC/USD as POL/USD; these are the bars of POL/USD"
        )
        price = client.get_realtime_price("MATIC/USD")
        assert (
            price["last"] == new["close"].iloc[-1]
            and price["alias"] == "coinbaseexchange lists MATIC/USD as POL/USD"
        )
        # what is still served under the old name is used
        past = client.get_historical_bars("MATIC/USD", 100, end=old.index[500])
        same(past, (new if refuses else old).loc[:old.index[499]].iloc[-100:])
        assert bool(provenance(past).alias) == refuses
        # months after the last bar of the old name
        after = client.get_historical_bars("MATIC/USD", 50, end=new.index[-100])
        same(after, new.loc[:new.index[-101]].iloc[-50:])


def test_a_delisted_ticker_that_stays_listed_is_named_with_its_last_bar(client_home):
    whole = a_market(6000)
    old, last = whole.iloc[:2345], whole.index[2345]
    closed = f"{last:%Y-%m-%dT%H:%MZ}"
    with Loopback({"XYZ/USD": old, ETH: whole}, now="2025-02-01") as exchange:
        exchange.delisted = {"XYZ/USD"}
        client = CryptoMarketDataClient(exchange_url=exchange.url)
        client.exchange.enableRateLimit = False
        for hours in (200, 5000):
            with pytest.raises(
                NotListed,
                match=(
                    f"no longer trades XYZ/USD; its last bar closed at {closed}, pass an end of {closed} or"
                    " before"
                ),
            ):
                client.get_historical_bars("XYZ/USD", hours)
        same(client.get_historical_bars("XYZ/USD", 200, end=last), old.iloc[-200:])
        with pytest.raises(NotListed, match="coinbaseexchange no longer trades XYZ/USD"):
            client.get_realtime_price("XYZ/USD")
        stale = market_bars("XYZ/USD", 50, exchange_url=exchange.url)
        same(stale, old.iloc[-50:])
        assert provenance(stale).stale.startswith(
            "coinbaseexchange no longer trades XYZ/USD; the newest bar stored opened at"
        )
        exchange.refuses = True
        with pytest.raises(
            NotListed, match="no longer trades XYZ/USD; its stored bars from .* are had by passing an end of"
        ):
            client.get_historical_bars("XYZ/USD", 6000)


def test_a_market_that_only_pauses_is_served_as_far_as_it_goes(client_home):
    with Loopback({ETH: a_market().iloc[:-5]}, now="2025-02-01") as exchange:
        # ccxt calls a market inactive both when it is delisted and when it is halted for an hour
        exchange.delisted = {ETH}
        bars = CryptoMarketDataClient(exchange_url=exchange.url).get_historical_bars(ETH, 100)
        same(bars, a_market().iloc[-100:-5])
        assert "95 of the 100 bars" in provenance(bars).short


def test_an_alias_is_not_used_where_the_old_name_is_listed(client_home):
    both = {t: a_market(ticker=t) for t in ("MATIC/USD", "POL/USD")}
    with Loopback(both, now="2025-02-01") as exchange:
        bars = CryptoMarketDataClient(exchange_url=exchange.url).get_historical_bars("MATIC/USD", 100)
        same(bars, both["MATIC/USD"].iloc[-100:])
        assert provenance(bars).alias is None


def test_a_delisted_ticker_ends_with_an_error_or_with_what_is_stored(client_home):
    with Loopback({"XYZ/USD": a_market(), ETH: a_market()}, now="2025-01-31") as exchange:
        CryptoMarketDataClient(exchange_url=exchange.url).get_historical_bars("XYZ/USD", 100)
    with Loopback({ETH: a_market()}, now="2025-02-01", port=exchange.port) as exchange:
        client = CryptoMarketDataClient(exchange_url=exchange.url)
        with pytest.raises(
            NotListed,
            match=(
                r"does not list XYZ/USD any more; its stored bars from 2025-01-26T20:00Z to 2025-01-31T00:00Z"
            ),
        ):
            client.get_historical_bars("XYZ/USD", 100)
        same(
            client.get_historical_bars("XYZ/USD", 100, end="2025-01-31T00:00Z"),
            a_market().loc[:"2025-01-30"].iloc[-100:],
        )
        stale = market_bars("XYZ/USD", 50, exchange_url=exchange.url)
        assert (
            provenance(stale).stale
            == "coinbaseexchange does not list XYZ/USD; the newest bar stored opened at 2025-01-30 23:00 UTC"
        )
        with pytest.raises(NotListed):
            market_bars("XYZ/USD", 50, exchange="coinbaseexchange", exchange_url=exchange.url)
        # never stored, never listed: no demo market as a substitute
        with pytest.raises(InputError, match="does not list QQQ/USD"):
            market_bars("QQQ/USD", 50, exchange_url=exchange.url)


# -- random faults
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 3, 4))])
def test_thirteen_tickers_and_two_years_under_random_faults_end_with_exactly_the_served_bars(
    client_home, monkeypatch, seed
):
    monkeypatch.setattr(exchanges, "PAUSE", 0.005)
    frames = {t: demo_market(2 * 8760, end="2025-02-01", ticker=t, seed=k) for k, t in enumerate(TICKERS)}
    with Loopback(frames, now="2025-02-01") as exchange:
        exchange.faults.append(luck := bad_luck(0.08, seed))
        for ticker in TICKERS:
            client = CryptoMarketDataClient(exchange_url=exchange.url)
            client.exchange.enableRateLimit = False
            bars = client.get_historical_bars(ticker, 2 * 8760)
            same(bars, frames[ticker])
            assert not bars["is_gap"].any() and provenance(bars).short is None
    told = dict(luck.told)
    answers = told.pop("answers")
    assert sum(told.values()) >= 0.05 * answers and len(told) >= 15, told


# -- killed processes
# --------------------------------------------------------------------------------------------------

FORKS = """
import os, sys
from cryptolstm.data import client as client_module, exchange as exchanges, fetch
url, home = sys.argv[1:]
fetch.CHECKPOINT, fetch.page_limit = 0.0, lambda exchange: 20  # a page is small, and each is saved
client = client_module.CryptoMarketDataClient(exchange_url=url, home=home)
client.exchange.enableRateLimit = False
client.exchange.load_markets()
for line in sys.stdin:
    if not (child := os.fork()):
        client.exchange = exchanges.new_connection(client.exchange)
        client.get_historical_bars("ETH/USD", int(line))
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def changed(path, before: int, process) -> bool:
    "Wait until a store has been rewritten; False if the child ends before that."
    while True:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime_ns != before:
                return True
        if process():
            return False
        time.sleep(0.002)


def gone(child: int) -> bool:
    "Whether a process has ended (its parent has not waited for it yet)."
    return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="a child that ended is told by /proc")
def test_a_process_killed_fifty_times_at_random_leaves_a_store_that_opens_and_completes(client_home):
    """Each process is killed within 60 ms of its first save, while it saves page after page; each adds bars
    to the store."""
    rng, struck, kills, step = random.Random(50), 0, 50, 60
    with Loopback({ETH: a_market(step * kills)}, now="2025-02-01") as exchange:
        exchange.faults.append(lambda path, query, a: Answer(a.body, delay=0.004))
        served = exchange.candles(ETH)
        path = CryptoMarketDataClient(exchange_url=exchange.url, home=client_home).path(ETH)
        command, known_before, halves = [sys.executable, "-c", FORKS, exchange.url, str(client_home)], 0, 0
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
            # each requests 60 more bars, and those the killed ones left missing
            for k in range(1, kills + 1):
                before = path.stat().st_mtime_ns if path.exists() else 0
                parent.stdin.write(f"{step * k}\n")
                parent.stdin.flush()
                child = int(parent.stdout.readline())
                assert changed(path, before, lambda child=child: gone(child))
                time.sleep(rng.uniform(0.0, 0.06))
                with contextlib.suppress(ProcessLookupError):  # it had already ended
                    os.kill(child, signal.SIGKILL)
                struck += int(parent.stdout.readline()) == signal.SIGKILL
                halves += len(list(path.parent.glob(f".{path.name}.*.parquet")))
                half = load_store(path)
                known = store.inside(store.hours_of(served.index), half.covered)
                same(half.bars, served[known])
                assert len(half.bars) > known_before
                known_before = len(half.bars)
            parent.stdin.close()
        # on a busy machine many processes end before they are killed
        assert struck >= kills / 10, (struck, halves)
        exchange.faults.clear()
        bars = CryptoMarketDataClient(exchange_url=exchange.url, home=client_home).get_historical_bars(
            ETH, step * kills
        )
        same(bars, served)
        assert not bars["is_gap"].any() and not provenance(bars).notes
        assert not provenance(bars).revised and not provenance(bars).dropped


# -- the disk
# --------------------------------------------------------------------------------------------------


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x5A]) + content[at + 1:]


@pytest.mark.parametrize("damage", [
    lambda c: b"", lambda c: b"PAR1 not really", lambda c: c[: len(c) // 2], lambda c: c[:-1],
    lambda c: flip(c, 200), lambda c: flip(c, len(c) - 400),
    lambda c: b"<html>a page</html>"],
    ids=["empty", "text", "half", "one byte short", "a byte of the bars", "a byte of the notes",
         "a web page"])
def test_a_damaged_store_is_set_aside_said_and_fetched_again(exchange, client, capsys, damage):
    client.get_historical_bars(ETH, 400)
    path = client.path(ETH)
    path.write_bytes(spoilt := damage(path.read_bytes()))
    exchange.forget()
    bars = client.get_historical_bars(ETH, 400)
    same(bars, exchange.candles(ETH).iloc[-400:])
    assert exchange.count("candles") == 2
    aside = list(path.parent.glob("*.damaged-*"))
    assert [p.name for p in aside] == [provenance(bars).set_aside] and aside[0].read_bytes() == spoilt
    assert aside[0].name in capsys.readouterr().err
    again = client.get_historical_bars(ETH, 400)
    assert provenance(again).set_aside is None and provenance(again).source == "store"


def test_no_changed_byte_goes_unnoticed(exchange, client):
    client.get_historical_bars(ETH, 300)
    path, rng = client.path(ETH), np.random.default_rng(3)
    content, whole = path.read_bytes(), stored(client)
    for at in rng.integers(0, len(content), 300):
        path.write_bytes(flip(content, int(at)))
        try:
            got = load_store(path)
        except store.DamagedStore:
            continue
        same(got.bars, whole.bars)
        assert (got.covered, got.origin) == (whole.covered, whole.origin)


def test_a_file_that_may_not_be_read_is_not_taken_for_damaged(client, monkeypatch):
    client.get_historical_bars(ETH, 10)
    path = client.path(ETH)
    path.unlink()
    path.mkdir()
    with pytest.raises(OperationError, match="cannot read .*; check its permissions"):
        client.get_historical_bars(ETH, 10)
    assert path.is_dir() and not list(path.parent.glob("*.damaged-*"))


def test_what_is_stored_says_where_it_comes_from(exchange, client):
    client.get_historical_bars(ETH, 10)
    origin = stored(client).origin
    assert origin == {
        "market": f"coinbaseexchange@127.0.0.1:{exchange.port}",
        "exchange": "coinbaseexchange",
        "ticker": ETH,
        "clock": "exchange",
        "exchange_url": exchange.url,
        "fetched_at": exchange.now.isoformat(),
        "dropped": {},
    }
    assert bars_hash(stored(client).bars) in client.path(ETH).read_bytes().decode("latin1")
