"""A loop-back venue: the loop-back exchange with an account, so that real ccxt code trades against it.

It has three personalities: `coinbaseexchange`, `kraken` and `coinbase` (Coinbase Advanced). A class for each
(`wires.py`) translates between the wire and one matching engine (`matching.py`), which is the judge:
`venue.orders`, `venue.trades`, `venue.cash("USD")`. As a program:
`python tests/venue.py --personality kraken --port 8765`."""
import argparse
import contextlib
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from urllib.parse import urlsplit

import pandas as pd
from loopback import HTML, Answer, Loopback, _Handler
from matching import Matching, PlacedOrder, PricePath, Refusal, Rules, Trade
from wires import WIRES, Request, credentials, plain

from cryptolstm.core.bars import as_utc

LOST = Answer(b"the connection is closed without an answer", 599)


@dataclass
class PrivateFaults:
    "Shares of private requests that go wrong, each drawn from one seeded generator; `told` counts them."
    seed: int = 0
    lost: float = 0.0           # placed or cancelled, but the connection is closed without an answer
    refused_lost: float = 0.0   # not placed or cancelled, and the connection is closed without an answer
    late: float = 0.0           # placed or cancelled, answered after `late_seconds` of real time
    lost_reads: float = 0.0     # a question is not answered
    error_5xx: float = 0.0      # an error page; half of the orders and cancellations were executed
    rate_limit: float = 0.0     # refused by the rate limit
    hidden: float = 0.0         # an order and its fills are in no list for `hidden_seconds` of venue time
    fills_first: float = 0.0    # an order is in no list for `hidden_seconds`, but its fills are
    fills_late: float = 0.0     # fills are in no list for `hidden_seconds`, but their order is
    duplicate: float = 0.0      # a list of fills repeats some
    disorder: float = 0.0       # a list of fills is shuffled
    partial: float = 0.0        # of an immediate order only a part is filled
    late_seconds: float = 7.0
    hidden_seconds: float = 30.0
    told: Counter = field(default_factory=Counter)

    def __post_init__(self):
        self.rng = random.Random(self.seed)

    def draw(self, *names: str) -> str | None:
        "At most one of these faults."
        for name in names:
            share = getattr(self, name)
            if share and self.rng.random() < share:
                self.told[name] += 1
                return name
        return None


WRITE_FAULTS = ("rate_limit", "error_5xx", "lost", "refused_lost", "late")
READ_FAULTS = ("rate_limit", "error_5xx", "lost_reads")


class _VenueHandler(_Handler):
    exchange: "Venue"

    def do_GET(self) -> None:
        if not self.exchange.wire.owns(urlsplit(self.path).path):
            super().do_GET()
            return
        size = int(self.headers.get("Content-Length") or 0)
        request = Request(self.command, self.path, self.headers, self.rfile.read(size))
        answer = LOST if self.exchange.stopped else self.exchange.private(request)
        if answer is LOST: self.close_connection = True
        else:
            # a client that no longer waits
            with contextlib.suppress(BrokenPipeError, ConnectionResetError): self._send(answer)

    do_POST = do_DELETE = do_GET


class Venue(Loopback):
    """A loop-back exchange with one account.

    `now = …` or `move_to(…)` advances its clock along the prices; with `speed`, it also advances by itself,
    by that many seconds in each real one. Orders are filled at bid and ask, the price less or plus half of
    `spread` (a share), at a `fee` (a share) in quote currency; with `fee_in_base`, purchases on Coinbase
    Advanced pay it in coins. `private_faults` says what goes wrong; `calls` lists the private requests."""
    handler = _VenueHandler

    def __init__(
        self,
        personality: str = "coinbaseexchange",
        frames: dict[str, pd.DataFrame] | None = None,
        now=None,
        port: int = 0,
        balances: dict[str, object] | None = None,
        fee: object = "0.001",
        spread: object = "0.0002",
        fee_in_base: bool = False,
        market_orders: bool = False,
        speed: float = 0.0,
    ):
        if fee_in_base and personality != "coinbase":
            raise ValueError(f"fills of {personality} cannot name a currency of the fee; use coinbase")
        self.personality, self.fee_in_base, self.market_orders = personality, fee_in_base, market_orders
        self.speed, self._started = speed, time.monotonic()
        self.private_faults = PrivateFaults()
        self.calls: list[tuple[str, str, dict]] = []
        self._now: pd.Timestamp | None = None
        kind = WIRES[personality]
        self.engine = Matching(
            PricePath(self._table),
            lambda: list(self._frames),
            {"USD": 10000} if balances is None else balances,
            Decimal(str(fee)),
            Decimal(str(spread)),
            lambda number: kind.order_name(self.wire, number),
            lambda number: kind.trade_name(self.wire, number),
        )
        self.wire = kind(self)
        super().__init__(frames, now, port)
        self.engine.delisted = self.delisted

    # -- the clock

    @property
    def now(self) -> pd.Timestamp:
        if self.speed and self._now is not None:
            with self.engine.lock:
                passed, self._started = time.monotonic() - self._started, time.monotonic()
                self._set(self._now + pd.Timedelta(seconds=passed * self.speed))
        return self._now

    @now.setter
    def now(self, value) -> None:
        with self.engine.lock:
            self._started = time.monotonic()
            self._set(as_utc(value))

    def _set(self, value: pd.Timestamp) -> None:
        self.engine.advance(value.timestamp())
        self._now = value

    def move_to(self, value) -> None:
        "Advance the clock; stops are triggered and resting orders filled on the way."
        self.now = value

    # -- the judge

    @property
    def orders(self) -> list[PlacedOrder]:
        with self.engine.lock: return list(self.engine.orders)

    @property
    def trades(self) -> list[Trade]:
        with self.engine.lock: return list(self.engine.trades)

    def cash(self, currency: str) -> Decimal:
        "The whole balance of a currency or coin, including what open orders hold."
        with self.engine.lock: return self.engine.balances.get(currency, Decimal(0))

    def quote(self, ticker: str) -> tuple[Decimal, Decimal]:
        "Bid and ask now."
        with self.engine.lock: return self.engine.quote(ticker)

    def rules(self, ticker: str) -> Rules:
        with self.engine.lock: return self.engine.rules(ticker)

    @property
    def environment(self) -> dict[str, str]:
        "The environment variables with which a client finds the venue and its keys."
        prefix = f"CRYPTOLSTM_{self.personality.upper()}"
        return {
            "CRYPTOLSTM_EXCHANGE": self.personality,
            "CRYPTOLSTM_EXCHANGE_URL": self.url,
            **{f"{prefix}_{k.upper()}": v for k, v in credentials(self.personality).items()},
        }

    # -- other people

    def set_rules(self, ticker: str, **changed) -> None:
        "Change rules, e.g. `min_notional=10`."
        with self.engine.lock:
            values = {k: Decimal(str(v)) for k, v in changed.items()}
            self.engine.special[ticker] = replace(self.engine.rules(ticker), **values)

    def deposit(self, currency: str, amount) -> None:
        "Pay in, or out if the amount is negative."
        with self.engine.lock: self.engine.credit(currency, Decimal(str(amount)))

    def trade_by_hand(self, ticker: str, side: int, quantity) -> PlacedOrder:
        "A person buys (1) or sells (-1) at once with the same account."
        return self.engine.place(ticker, side, Decimal(str(quantity)), by="hand")

    def foreign_order(self, ticker: str, side: int, quantity, limit=None, stop=None, client=None):
        "Another program places an order that rests, with the same account."
        limit, stop = (None if x is None else Decimal(str(x)) for x in (limit, stop))
        quantity = Decimal(str(quantity))
        return self.engine.place(ticker, side, quantity, limit, stop, False, client, by="foreign")

    def delist(self, ticker: str) -> None:
        "End trading of a ticker; its open orders are cancelled."
        with self.engine.lock:
            self.delisted.add(ticker)
            for order in self.engine.open(ticker): self.engine.close(order, "canceled")

    # -- requests

    def private(self, request: Request) -> Answer:
        "Answer a private request, or spoil it as `private_faults` says."
        with self.engine.lock:
            self.now  # noqa: B018  a clock that runs moves on
            details = request.query if request.method == "GET" else request.form
            self.calls.append((request.method, request.path, {k: v for k, v in details.items()}))
            self.requests[request.path] += 1
            if refusal := self.wire.verify(request): return refusal
            kind = self.wire.kind(request)
            fault = self.private_faults.draw(*(READ_FAULTS if kind == "read" else WRITE_FAULTS))
            if fault == "rate_limit": return self.wire.rate_limited()
            if fault == "error_5xx":
                if kind != "read" and self.private_faults.rng.random() < 0.5: self._respond(request)
                return Answer(b"<html><h1>Bad Gateway</h1></html>", 502, HTML)
            if fault in ("refused_lost", "lost_reads"): return LOST
            answer = self._respond(request)
            if fault == "late": answer.delay = self.private_faults.late_seconds
            return LOST if fault == "lost" else answer

    def _respond(self, request: Request) -> Answer:
        try: return self.wire.respond(request)
        except Refusal as refusal: return self.wire.refused(refusal)

    # -- public prices follow the path

    def _route(self, path: str, query: dict[str, str]) -> Answer:
        with self.engine.lock:
            self.now  # noqa: B018
            try: answer = self.wire.public(path, query)
            except Refusal as refusal: answer = self.wire.refused(refusal)
            return super()._route(path, query) if answer is None else answer

    def _row(self, ticker: str, opened: int) -> list[float] | None:
        row, at = self._table(ticker).get(opened), self.engine.time
        if row is None or at < opened: return None
        if at >= opened + 3600: return row
        prices = [price for _, price in self.engine.path.until(ticker, at)]
        return [row[0], max(prices), min(prices), prices[-1], row[4] * (at - opened) / 3600]

    def _ticker(self, ticker: str, query: dict[str, str]) -> Answer:
        answer = super()._ticker(ticker, query)
        if answer.status == 200:
            bid, ask = self.engine.quote(ticker)
            last = plain(self.engine.last(ticker))
            answer.body |= {"price": last, "bid": plain(bid), "ask": plain(ask)}
        return answer

    def _product(self, ticker: str) -> dict:
        rules = self.engine.rules(ticker)
        return super()._product(ticker) | {
            "quote_increment": plain(rules.tick),
            "base_increment": plain(rules.step),
            "base_min_size": plain(rules.min_quantity),
            "min_market_funds": plain(rules.min_notional),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="A local venue with an account of 10,000 USD.")
    parser.add_argument("--personality", choices=sorted(WIRES), default="coinbaseexchange")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--now", help="its clock, ISO 8601; default: half an hour into the last candle")
    parser.add_argument("--speed", type=float, default=1.0, help="seconds of its clock in a real second")
    shares = [f.name for f in fields(PrivateFaults) if f.type is float]
    for name in shares: parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=None)
    args = parser.parse_args()
    with Venue(args.personality, now=args.now, port=args.port, speed=args.speed) as venue:
        for name in shares:
            if (value := getattr(args, name)) is not None: setattr(venue.private_faults, name, value)
        sys.stdout.write("".join(f"{k}={v}\n" for k, v in venue.environment.items()))
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
