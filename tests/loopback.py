"""A loop-back exchange: a local HTTP server with the public APIs of Coinbase Exchange and Kraken, serving
known candles.

Every test of the data client runs the real ccxt code against it. As a program: `python tests/loopback.py
--port 8765 --now 2025-04-30T23:30Z`."""
import argparse
import base64
import contextlib
import hashlib
import json
import os
import random
import select
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd

from cryptolstm.core.bars import COLUMNS, HOUR, as_utc
from cryptolstm.data.demo import demo_market

ROOT = Path(__file__).resolve().parents[1]
TICKERS = (ROOT / "tickers.txt").read_text(encoding="utf-8").split()
DEMO_HOURS, DEMO_END = 9055, "2025-05-01"  # the span of the recorded files
PAGE = 300


def data_folder(name: str = "coinbase") -> Path:
    "Folder of the recorded candles: `CRYPTOLSTM_TEST_DATA`, else beside the repository. It need not exist."
    return Path(os.environ.get("CRYPTOLSTM_TEST_DATA") or ROOT.parent / "shared" / "data") / name


def recorded(ticker: str, folder: str = "coinbase") -> pd.DataFrame | None:
    "The recorded candles of a ticker, or None if there are none."
    path = data_folder(folder) / f"{ticker.replace('/', '_')}_1h.parquet"
    return pd.read_parquet(path) if path.is_file() else None


def candles_of(ticker: str) -> pd.DataFrame:
    "Recorded candles if there are any, else the demo market's over the same span."
    bars = recorded(ticker)
    return demo_market(DEMO_HOURS, end=DEMO_END, ticker=ticker) if bars is None else bars


def a_market(hours: int = 1000, end: str = "2025-02-01", ticker: str = "ETH/USD") -> pd.DataFrame:
    "A small market, identical on every machine."
    return demo_market(hours, end=end, ticker=ticker)


def same(got: pd.DataFrame, expected: pd.DataFrame) -> None:
    "Assert bit-equal values at the same hours."
    pd.testing.assert_index_equal(got.index.as_unit("ns"), expected.index.as_unit("ns"), check_names=True)
    assert np.array_equal(got[COLUMNS].to_numpy(), expected[COLUMNS].to_numpy())


@dataclass
class Answer:
    """A response of the server.

    If `send` is less than the body's length, the connection is cut there, as on a network failure; with
    `reset` it is reset instead of closed. `delay` and `drip` (the pause between bytes) are in seconds."""
    body: object = b""
    status: int = 200
    headers: dict = field(default_factory=lambda: {"Content-Type": "application/json"})
    send: int | None = None
    delay: float = 0.0
    reset: bool = False
    drip: float = 0.0

    def bytes(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def refuse(status: int, message: str) -> Answer:
    return Answer({"message": message}, status)


HTML = {"Content-Type": "text/html"}
# responses that are recognisably wrong: a retry is all that helps
FAULTS: dict[str, Callable[[Answer], Answer]] = {
    "429": lambda a: refuse(429, "Public rate limit exceeded"),
    "429 with Retry-After": lambda a: Answer(
        {"message": "slow down"}, 429, {"Content-Type": "application/json", "Retry-After": "1"}
    ),
    "5xx": lambda a: Answer(b"<html><h1>Service Unavailable</h1></html>", 503, HTML),
    "500 with JSON": lambda a: refuse(500, "Internal server error"),
    "HTML instead of JSON": lambda a: Answer(b"<html>please log in</html>", 200, HTML),
    "truncated JSON": lambda a: Answer(a.bytes()[: len(a.bytes()) // 2]),
    "connection closed mid-body": lambda a: Answer(a.body, send=len(a.bytes()) // 2),
    "connection reset mid-body": lambda a: Answer(a.body, send=len(a.bytes()) // 2, reset=True),
    "empty body": lambda a: Answer(b"", 404),
    "JSON of another kind": lambda a: Answer({"data": []}),
    "redirect to another host": lambda a: Answer(a.body, 302, {"Location": "http://127.0.0.1:9/elsewhere"}),
}
# well-formed responses that lack bars: indistinguishable from a market without trades
SILENCES: dict[str, Callable[[list], list]] = {
    "empty page": lambda rows: [],
    "short page": lambda rows: rows[: len(rows) // 2],
    "short page, the older half": lambda rows: rows[len(rows) // 2:],
    "holes": lambda rows: [r for r in rows if r[0] // 3600 % 7],
}
_CELLS = {  # one candle [time, low, high, open, close, volume], damaged
    "high < low": lambda r: [r[0], r[2] + 1, r[1], *r[3:]],
    "NaN": lambda r: [*r[:4], None, r[5]],
    "zero price": lambda r: [r[0], 0.0, *r[2:]],
    "negative price": lambda r: [r[0], -r[1], *r[2:]],
    "off the hour": lambda r: [r[0] + 60, *r[1:]],
    "negative volume": lambda r: [*r[:5], -1.0],
    "close above high": lambda r: [*r[:4], r[2] * 2, r[5]],
}
_PAGES = {  # a whole page of candles, newest first
    **{k: lambda rows, rng, f=f: f(rows) for k, f in SILENCES.items()},
    "duplicated": lambda rows, rng: rows + rng.sample(rows, min(3, len(rows))),
    "unordered": lambda rows, rng: rng.sample(rows, len(rows)),
    "overlapping": lambda rows, rng: [
        [rows[0][0] + 10**9, *rows[0][1:]],
        *rows,
        [rows[-1][0] - 3600 * 500, *rows[-1][1:]],
    ],
}


def bad_luck(share: float, seed: int) -> Callable:
    """A fault for `Loopback.faults` that spoils this share of the responses at random, in all ways above,
    each independently. `told` counts them by kind."""
    rng, told = random.Random(seed), Counter()
    kinds = [k for k in FAULTS if "Retry-After" not in k] + list(_CELLS) + list(_PAGES)

    def spoil(path: str, query: dict, answer: Answer) -> Answer | None:
        told["answers"] += 1
        if rng.random() >= share:
            return None
        rows = (
            answer.body
            if path.endswith("/candles") and isinstance(answer.body, list) and answer.body
            else None
        )
        kind = rng.choice(kinds if rows else list(FAULTS)[2:])
        told[kind] += 1
        if kind in _CELLS:
            k = rng.randrange(len(rows))
            return Answer([*rows[:k], _CELLS[kind](rows[k]), *rows[k + 1:]])
        return Answer(_PAGES[kind](rows, rng)) if kind in _PAGES else FAULTS[kind](answer)

    spoil.told = told
    return spoil


class Loopback:
    """The exchange, a context manager with settable `now`, `requests` (requests per path) and `faults`.

    A fault is a function (path, query, answer) -> Answer or None; each in the list sees every request with
    its response and may replace it. `frames` are the candles by ticker (default: the 13 of tickers.txt); a
    ticker with missing rows has gaps. With `memory` the server returns that many of the newest candles for
    any span, as Kraken does. Tickers in `delisted` stay in the list of products, as on Coinbase, but have no
    price and, where `refuses` is set, no candles."""
    handler: type | None = None  # of requests; a subclass of `_Handler`

    def __init__(
        self,
        frames: dict[str, pd.DataFrame] | None = None,
        now=None,
        port: int = 0,
        memory: int | None = None,
    ):
        self.memory, self.stopped = memory, False
        self.delisted: set[str] = set()
        self.refuses = False
        self.feeds: list[dict] = []  # websocket subscriptions
        self.tick, self.cut_after, self.sent = 0.02, 0, 0
        # seconds: the websocket sends one price, then nothing, and is closed after this time
        self.quiet: float | None = None
        self.refuse_feeds = 0  # number of websocket connections to refuse
        self.refusal: int | None = None  # HTTP status of a refusal; None = the connection is closed
        self.frozen = False  # the websocket sends and answers nothing, and no new one is opened
        self._frames = {t: None for t in TICKERS} if frames is None else dict(frames)
        self.requests: Counter[str] = Counter()
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.authorizations: list[str | None] = []  # of every request
        self.faults: list[Callable[[str, dict, Answer], Answer | None]] = []
        self._lock = threading.Lock()
        self._tables: dict[tuple[str, int], dict] = {}
        self.now = (
            as_utc(now) if now is not None else self.candles(next(iter(self._frames))).index[-1] + HOUR / 2
        )
        handler = type("Handler", (self.handler or _Handler,), {"exchange": self})
        self._server = _Server(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Loopback":
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        "Stop listening; open connections get no further response."
        if not self.stopped:
            self.stopped = True
            self._server.shutdown()
            self._server.server_close()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    def candles(self, ticker: str) -> pd.DataFrame:
        "All candles of a ticker, including future ones."
        with self._lock:
            if self._frames[ticker] is None:
                self._frames[ticker] = candles_of(ticker)
            return self._frames[ticker]

    def forget(self) -> None:
        "Reset the request counts."
        self.requests.clear()
        self.asked.clear()

    def count(self, part: str) -> int:
        "Number of requests whose path contains `part`."
        return sum(n for path, n in self.requests.items() if part in path)

    # -- responses
    # -------------------------------------------------------------------------------------------

    def answer(self, path: str, query: dict[str, str]) -> Answer:
        with self._lock:
            self.requests[path] += 1
            self.asked.append((path, query))
        answer = self._route(path, query)
        for fault in list(self.faults):
            answer = fault(path, query, answer) or answer
        return answer

    def _route(self, path: str, query: dict[str, str]) -> Answer:
        parts = path.strip("/").split("/")
        if path.startswith("/0/public/"):
            return Answer({"error": [], "result": self._kraken(parts[-1], query)})
        if path == "/time":
            return Answer({"iso": self._iso(self.now), "epoch": self.now.timestamp()})
        if path == "/currencies":
            names = sorted({c for t in self._frames for c in t.split("/")})
            return Answer(
                [
                    {
                        "id": n,
                        "name": n,
                        "min_size": "0.00000001",
                        "status": "online",
                        "max_precision": "0.00000001",
                        "details": {"type": "fiat" if n == "USD" else "crypto"},
                        "supported_networks": [],
                    }
                    for n in names
                ]
            )
        if path == "/products":
            return Answer([self._product(t) for t in self._frames])
        if len(parts) in (2, 3) and parts[0] == "products":
            ticker = parts[1].replace("-", "/")
            if ticker not in self._frames:
                return refuse(404, "NotFound")
            views = {"candles": self._candles, "ticker": self._ticker, "stats": self._stats}
            if len(parts) == 2:
                return Answer(self._product(ticker))
            if ticker in self.delisted and (parts[2] != "candles" or self.refuses):
                return refuse(400, "Not allowed for delisted products")
            if parts[2] in views:
                return views[parts[2]](ticker, query)
        return refuse(404, "NotFound")

    def _kraken(self, what: str, query: dict[str, str]) -> dict:
        """The same market in Kraken's API: everything inside a `result`, candles by the pair's id, always the
        newest 720."""
        ids = {t.replace("/", ""): t for t in self._frames}
        if what == "Time":
            return {"unixtime": int(self.now.timestamp())}
        if what == "Assets":
            return {
                n: {"altname": n, "decimals": 10, "status": "enabled"}
                for t in self._frames
                for n in t.split("/")
            }
        if what == "AssetPairs":
            return {
                i: {
                    "altname": i,
                    "wsname": t,
                    "base": t.split("/")[0],
                    "quote": t.split("/")[1],
                    "pair_decimals": 5,
                    "lot_decimals": 8,
                    "status": "delisted" if t in self.delisted else "online",
                }
                for i, t in ids.items()
            }
        if what != "OHLC" or query.get("interval") != "60":
            return {}
        running, since = int(self.now.timestamp() // 3600 * 3600), int(query.get("since", 0))
        rows = [
            (t, self._row(ids[query["pair"]], t))
            for t in range(running - 719 * 3600, running + 1, 3600)
            if t > since
        ]
        told = [
            [t, *(repr(x) for x in (o, h, l, c, c, v)), 7]
            for t, (o, h, l, c, v) in ((t, r) for t, r in rows if r is not None)
        ]
        return {query["pair"]: told, "last": running - 3600}

    @staticmethod
    def _iso(t: pd.Timestamp) -> str:
        return t.strftime("%Y-%m-%dT%H:%M:%S.") + f"{t.microsecond // 1000:03d}Z"

    def _product(self, ticker: str) -> dict:
        base, quote = ticker.split("/")
        gone = ticker in self.delisted
        return {
            "id": f"{base}-{quote}",
            "base_currency": base,
            "quote_currency": quote,
            "quote_increment": "0.00001",
            "base_increment": "0.00000001",
            "display_name": ticker,
            "min_market_funds": "1",
            "margin_enabled": False,
            "post_only": False,
            "limit_only": False,
            "cancel_only": False,
            "trading_disabled": gone,
            "status": "delisted" if gone else "online",
            "status_message": "",
        }

    def _table(self, ticker: str, step: int = 3600) -> dict[int, list[float]]:
        "Open time in seconds -> [open, high, low, close, volume] of candles of a length in seconds."
        if (ticker, step) not in self._tables:
            bars = self.candles(ticker)
            seconds = (bars.index.as_unit("ns").asi8 // 10**9).tolist()
            length = min((b - a for a, b in zip(seconds, seconds[1:], strict=False)), default=3600)
            table = {}
            for t, (o, h, l, c, v) in zip(seconds, bars[COLUMNS].to_numpy().tolist(), strict=True):
                if length > step: break   # there are no shorter candles
                opened = t // step * step
                first, top, bottom, _, total = table.get(opened, (o, h, l, c, 0.0))
                table[opened] = [first, max(top, h), min(bottom, l), c, total + v]
            self._tables[ticker, step] = table
        return self._tables[ticker, step]

    def _row(self, ticker: str, opened: int, step: int = 3600) -> list[float] | None:
        "One candle as of now: None in the future, partial in the current one."
        age = (self.now.timestamp() - opened) / step
        row = self._table(ticker, step).get(opened)
        if row is None or age < 0:
            return None
        if age >= 1:
            return row
        o, h, l, c, v = row
        last = o + (c - o) * age
        return [o, max(o, last), min(o, last), last, v * age]

    def _candles(self, ticker: str, query: dict[str, str]) -> Answer:
        if query.get("granularity") not in ("300", "900", "3600", "86400"):
            return refuse(400, "Unsupported granularity")
        step = int(query["granularity"])
        running = int(self.now.timestamp() // step * step)
        if self.memory is not None:
            newest = [
                (t, row)
                for t in range(running, running - self.memory * step, -step)
                if (row := self._row(ticker, t, step)) is not None
            ]
            return Answer([[t, l, h, o, c, v] for t, (o, h, l, c, v) in newest])
        try:
            stop = int(pd.Timestamp(query["end"]).timestamp()) if "end" in query else running
            start = (
                int(pd.Timestamp(query["start"]).timestamp())
                if "start" in query
                else stop - (PAGE - 1) * step
            )
        except ValueError:
            return refuse(400, "invalid start or end")
        if (stop - start) // step + 1 > PAGE:
            return refuse(
                400,
                "granularity too small for the requested time range. Count of aggregations requested exceeds"
                f" {PAGE}",
            )
        opened = range(-(-start // step) * step, min(stop, running) + 1, step)
        rows = [(t, row) for t in reversed(opened) if (row := self._row(ticker, t, step)) is not None]
        return Answer([[t, l, h, o, c, v] for t, (o, h, l, c, v) in rows])

    def _day(self, ticker: str) -> list[list[float]]:
        "The candles of the last 24 hours, oldest first, including the current one."
        running = int(self.now.timestamp() // 3600 * 3600)
        return [
            row
            for t in range(running - 23 * 3600, running + 1, 3600)
            if (row := self._row(ticker, t)) is not None
        ]

    def _ticker(self, ticker: str, query: dict[str, str]) -> Answer:
        day = self._day(ticker)
        if not day:
            return refuse(404, "NotFound")
        last = day[-1][3]
        return Answer(
            {
                "trade_id": 1,
                "price": repr(last),
                "size": "0.1",
                "bid": repr(last * 0.9999),
                "ask": repr(last * 1.0001),
                "volume": repr(sum(r[4] for r in day)),
                "time": self._iso(self.now),
            }
        )

    def _stats(self, ticker: str, query: dict[str, str]) -> Answer:
        day = self._day(ticker)
        if not day:
            return refuse(404, "NotFound")
        return Answer(
            {
                "open": repr(day[0][0]),
                "high": repr(max(r[1] for r in day)),
                "low": repr(min(r[2] for r in day)),
                "last": repr(day[-1][3]),
                "volume": repr(sum(r[4] for r in day)),
                "volume_30day": "0",
            }
        )


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that no longer waits
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # send header and body together
    exchange: Loopback

    def do_GET(self) -> None:
        if self.exchange.stopped:
            self.close_connection = True
            return
        url = urlsplit(self.path)
        if self.headers.get("Upgrade", "").lower() == "websocket":
            self._feed()
            return
        self.exchange.authorizations.append(self.headers.get("Authorization"))
        answer = self.exchange.answer(url.path, {k: v[0] for k, v in parse_qs(url.query).items()})
        self._send(answer)

    def _send(self, answer: Answer) -> None:
        body = answer.bytes()
        if answer.delay:
            time.sleep(answer.delay)
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        for byte in body if answer.drip else b"":
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(answer.drip)
            if self.exchange.stopped:
                return
        self.wfile.write(b"" if answer.drip else body if answer.send is None else body[:answer.send])
        if answer.send is not None:
            self.close_connection = True
            if answer.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _feed(self) -> None:
        """The ticker channel of Coinbase's websocket: a price every `tick` seconds; after `cut_after`
        messages the connection breaks once."""
        self.close_connection, exchange = True, self.exchange
        while exchange.frozen and not exchange.stopped:
            time.sleep(0.02)
        if exchange.refuse_feeds:
            exchange.refuse_feeds -= 1
            if exchange.refusal: self.send_error(exchange.refusal)
            return
        accept = hashlib.sha1(
            (self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()
        ).digest()
        self.send_response(101)
        for name, value in (
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", base64.b64encode(accept).decode()),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()
        asked = json.loads(self._frame()[1])
        exchange.feeds.append(asked)
        self._prices(asked)

    def _prices(self, asked: dict) -> None:
        exchange, until = self.exchange, None
        while not exchange.stopped and (until is None or time.monotonic() < until):
            if exchange.frozen:
                time.sleep(exchange.tick)
                continue
            for product in asked["product_ids"] if until is None else ():
                ticker = product.replace("-", "/")
                now, day = exchange._ticker(ticker, {}).body, exchange._stats(ticker, {}).body
                said = json.dumps(
                    {
                        "type": "ticker",
                        "product_id": product,
                        "price": now["price"],
                        "open_24h": day["open"],
                        "volume_24h": now["volume"],
                        "best_bid": now["bid"],
                        "best_ask": now["ask"],
                        "time": now["time"],
                    }
                ).encode()
                try:
                    self.wfile.write(bytes([0x81, 126]) + len(said).to_bytes(2) + said)
                    self.wfile.flush()
                except OSError:
                    return
                exchange.sent += 1
            if exchange.sent == exchange.cut_after:
                return
            if exchange.quiet and until is None:
                until = time.monotonic() + exchange.quiet
            if select.select([self.connection], [], [], exchange.tick)[0] and self._answered():
                return

    def _answered(self) -> bool:
        "Read one message of the client, answer a ping with a pong, and return whether it was a close frame."
        kind, body = self._frame()
        if kind in (8, 9):
            with contextlib.suppress(OSError):
                self.wfile.write(bytes([0x88 if kind == 8 else 0x8A, len(body)]) + body)
                self.wfile.flush()
        return kind == 8

    def _frame(self) -> tuple[int, bytes]:
        "Kind and content of one websocket message of the client; a lost connection counts as a close frame."
        head = self.rfile.read(2)
        if len(head) < 2:
            return 8, b""
        size = head[1] & 127
        size = int.from_bytes(self.rfile.read(2)) if size == 126 else size
        mask, body = self.rfile.read(4), self.rfile.read(size)
        return head[0] & 15, bytes(b ^ mask[k % 4] for k, b in enumerate(body))

    def date_time_string(self, timestamp=None) -> str:
        return super().date_time_string(self.exchange.now.timestamp())  # the HTTP date follows the same clock

    def log_message(self, *_) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description="A local exchange that serves known candles.")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument(
        "--now", help="the exchange's clock, ISO 8601; without it, half an hour into the last candle"
    )
    args = parser.parse_args()
    with Loopback(now=args.now, port=args.port) as exchange:
        sys.stdout.write(f"{exchange.url} now {exchange.now.isoformat()}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
