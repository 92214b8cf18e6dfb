"""Watched prices, pushed or polled: real ccxt, REST and websocket, against the loop-back exchange."""

import itertools
import threading
import time

import pandas as pd
import pytest
from loopback import Answer
from typer.testing import CliRunner

from cryptolstm.cli.data import data_app
from cryptolstm.core.errors import InputError, OperationError
from cryptolstm.data import exchange as exchanges, prices as prices_module
from cryptolstm.data.prices import watch_prices

ETH = "ETH/USD"


def test_a_stream_gives_the_prices_that_are_pushed(exchange, client):
    exchange.now = pd.Timestamp("2025-01-31T23:30Z")
    prices = watch_prices(client.exchange, "eth-usd")
    first = next(prices)
    assert exchange.feeds == [{"type": "subscribe", "product_ids": ["ETH-USD"], "channels": ["ticker"]}]
    # the same price, in the same form, as from a request
    assert first == {**client.get_realtime_price(ETH), "by": "stream"}
    exchange.now = pd.Timestamp("2025-01-31T23:45Z")
    later = next(p for p in itertools.islice(prices, 50) if p["exchange_time"] != first["exchange_time"])
    assert later["exchange_time"] == "2025-01-31T23:45:00+00:00" and later["last"] != first["last"]
    asked = exchange.count("ticker")
    next(prices)
    assert exchange.count("ticker") == asked  # no request while prices are pushed
    prices.close()


def test_a_stream_that_breaks_is_opened_again(exchange, client):
    exchange.cut_after = 3
    assert [p["by"] for p in watch_prices(client.exchange, ETH, count=8)] == ["stream"] * 8
    assert len(exchange.feeds) == 2


def test_a_stream_that_stays_away_ends_with_one_sentence(exchange, client, monkeypatch):
    monkeypatch.setattr(exchanges, "BUDGET", 0.5)
    prices = watch_prices(client.exchange, ETH)
    next(prices)
    exchange.stop()
    with pytest.raises(OperationError, match="coinbaseexchange did not give the stream of prices of ETH/USD"):
        for _ in prices:
            pass


def test_a_stream_of_a_market_without_trades_is_opened_again_however_long_it_was_quiet(
    exchange, client, monkeypatch
):
    """Waiting for a trade is not a failed request: each connection lasts longer than the whole budget and is
    closed without another price."""
    monkeypatch.setattr(exchanges, "BUDGET", 0.3)
    exchange.quiet = 0.5
    assert [p["by"] for p in watch_prices(client.exchange, ETH, count=5)] == ["stream"] * 5
    assert len(exchange.feeds) == 5


def test_the_budget_begins_when_the_line_breaks(exchange, client, monkeypatch):
    "Quiet for nearly the whole budget, then unreachable for a while: the quiet time does not count."
    monkeypatch.setattr(exchanges, "BUDGET", 1.2)
    monkeypatch.setattr(exchanges, "PAUSE", 0.4)
    exchange.quiet, prices = 1.0, watch_prices(client.exchange, ETH)
    next(prices)
    exchange.refuse_feeds = 2
    next(prices)
    assert len(exchange.feeds) == 2 and not exchange.refuse_feeds


def test_an_exchange_that_freezes_is_noticed_in_a_stated_time(exchange, client, monkeypatch):
    monkeypatch.setattr(exchanges, "BUDGET", 0.6)
    monkeypatch.setattr(prices_module, "PING", 0.2)
    monkeypatch.setattr(prices_module, "TIMEOUT", 1.0)
    prices = watch_prices(client.exchange, ETH)
    next(prices)
    exchange.frozen, began = True, time.monotonic()
    with pytest.raises(
        OperationError,
        match="coinbaseexchange did not give the stream of prices of ETH/USD: it did not answer in time",
    ):
        for _ in prices:
            pass
    assert time.monotonic() - began < 5


def test_a_frozen_exchange_that_wakes_up_goes_on(exchange, client, monkeypatch):
    monkeypatch.setattr(prices_module, "PING", 0.2)
    prices = watch_prices(client.exchange, ETH)
    next(prices)
    exchange.frozen = True
    threading.Timer(1.5, lambda: setattr(exchange, "frozen", False)).start()
    assert next(p for p in prices if len(exchange.feeds) > 1)["by"] == "stream"
    prices.close()


def test_a_quiet_line_that_answers_pings_is_left_alone(exchange, client, monkeypatch):
    monkeypatch.setattr(exchanges, "BUDGET", 0.3)
    monkeypatch.setattr(prices_module, "PING", 0.1)
    exchange.quiet = 1.5
    began = time.monotonic()
    assert len(list(watch_prices(client.exchange, ETH, count=2))) == 2
    assert time.monotonic() - began >= 1.5 and len(exchange.feeds) == 2


def test_a_feed_that_hangs_while_its_line_stands_is_opened_anew(exchange, client, monkeypatch):
    monkeypatch.setattr(prices_module, "HUSH", 0.4)
    exchange.quiet = 60
    assert len(list(watch_prices(client.exchange, ETH, count=3))) == 3 == len(exchange.feeds)


def test_polling_asks_at_its_pace(exchange, client):
    exchange.now, began = pd.Timestamp("2025-01-31T23:30Z"), time.monotonic()
    told = list(watch_prices(client.exchange, ETH, every=0.1, count=4, stream=False))
    assert 0.3 <= time.monotonic() - began < 3 and not exchange.feeds
    assert [p["by"] for p in told] == ["polling"] * 4 and told[0]["last"] == client.get_realtime_price(ETH)[
        "last"
    ]


def test_polling_survives_a_passing_fault_and_ends_with_one_sentence_on_a_lasting_one(
    exchange, client, monkeypatch
):
    prices, bad = watch_prices(client.exchange, ETH, every=0, stream=False), []

    def fault(path, query, answer):
        if path.endswith("/ticker") and bad:
            bad.pop()
            return Answer(b"", 503)

    exchange.faults.append(fault)
    next(prices)
    bad.append(1)
    next(prices)
    assert not bad
    monkeypatch.setattr(exchanges, "BUDGET", 0.3)
    bad.extend(range(100))
    with pytest.raises(
        OperationError, match="did not give the price of ETH/USD: it answers with HTTP status 503"
    ):
        next(prices)


def test_a_ticker_that_is_not_listed_is_not_watched(exchange, client):
    for stream in (True, False):
        with pytest.raises(InputError, match="does not list ETHH/USD; did you mean ETH/USD?"):
            next(watch_prices(client.exchange, "ETHH/USD", stream=stream))


@pytest.mark.parametrize("status", [None, 403])
def test_prices_are_polled_where_the_stream_is_refused(exchange, client, status, monkeypatch):
    exchange.refuse_feeds, exchange.refusal = 100, status
    prices = list(watch_prices(client.exchange, ETH, every=0, count=3))
    assert [p["by"] for p in prices] == ["polling"] * 3
    assert exchange.refuse_feeds >= 98  # aiohttp repeats a request whose connection was closed
    monkeypatch.setattr(exchanges, "BUDGET", 0.3)
    with pytest.raises(OperationError, match="did not give the stream of prices of ETH/USD"):
        next(watch_prices(client.exchange, ETH, stream=True))


@pytest.mark.parametrize("refused", [False, True])
def test_the_command_says_in_one_sentence_that_it_polls(exchange, client, refused):
    exchange.refuse_feeds = 100 * refused
    words = f"price --ticker {ETH} --exchange-url {exchange.url} --watch --every 0.1 --count 2 --json"
    done = CliRunner().invoke(data_app, words.split())
    assert done.exit_code == 0 and len(done.stdout.splitlines()) == 2
    sentence = "coinbaseexchange offers no stream of prices here; asking every 0.1 seconds.\n"
    assert done.stderr == sentence * refused
