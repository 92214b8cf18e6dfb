"""The matching engine of the loop-back venue: one account in exact decimals, and a price at every moment.

Inside each hour the price follows a path through the candle: from the open to the low and then the high if
the bar rises, to the high and then the low if it falls, and to the close; each third is a straight line. An
hour without a candle keeps the last close."""
import math
import threading
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

HOUR_S = 3600
COIN = Decimal("0.00000001")  # fees are rounded to this


class Refusal(Exception):
    "The venue does not do what is asked; each personality has its own words for a `kind`."

    def __init__(self, kind: str, detail: str = ""):
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


@dataclass(frozen=True)
class Rules:
    "What orders of a ticker must satisfy."
    step: Decimal = Decimal("0.000001")
    tick: Decimal = Decimal("0.01")
    min_quantity: Decimal = Decimal("0.0001")
    min_notional: Decimal = Decimal("1")


@dataclass
class PlacedOrder:
    "An order in the venue's books. Times are ms since 1970."
    number: int
    id: str
    client: str | None
    ticker: str
    side: int
    quantity: Decimal
    limit: Decimal | None
    stop: Decimal | None
    immediate: bool
    by: str  # "api", "hand" (a person) or "foreign" (another program)
    at: int
    visible_at: int  # lists of orders show it from then on
    fill_delay: int = 0  # ms until lists of fills show an execution
    fee_in_base: bool = False
    triggered: bool = False
    status: str = "open"
    reason: str = ""  # "filled" or "canceled"
    filled: Decimal = Decimal(0)
    cost: Decimal = Decimal(0)
    fee: Decimal = Decimal(0)
    closed_at: int | None = None

    @property
    def left(self) -> Decimal:
        return self.quantity - self.filled

    @property
    def average(self) -> Decimal:
        return self.cost / self.filled if self.filled else Decimal(0)


@dataclass(frozen=True)
class Trade:
    "An execution. Times are ms since 1970."
    number: int
    id: str
    order: str
    client: str | None
    ticker: str
    side: int
    quantity: Decimal
    price: Decimal
    fee: Decimal
    fee_currency: str
    at: int
    visible_at: int
    by: str


class PricePath:
    "The price at every moment, from candles: `table(ticker)` maps open time (s) to open, high, low, close."

    def __init__(self, table: Callable[[str], dict]):
        self.table, self._hours = table, {}

    def points(self, ticker: str, opened: int) -> list[tuple[float, float]]:
        "Times (s) and prices between which the path of one hour is straight."
        table = self.table(ticker)
        if row := table.get(opened):
            o, h, l, c = row[:4]
            prices = (o, l, h, c) if c >= o else (o, h, l, c)
            return [(opened + k * HOUR_S / 3, price) for k, price in enumerate(prices)]
        hours = self._hours.setdefault(ticker, sorted(table))
        k = bisect_right(hours, opened)
        price = table[hours[k - 1]][3] if k else table[hours[0]][0]
        return [(opened, price), (opened + HOUR_S, price)]

    def until(self, ticker: str, at: float) -> list[tuple[float, float]]:
        "The points of the hour of a moment up to that moment, which is the last one."
        points = self.points(ticker, int(at // HOUR_S * HOUR_S))
        past = [point for point in points if point[0] <= at]
        after = next((point for point in points if point[0] > at), None)
        if after is None or past[-1][0] == at:
            return past
        (t0, p0), (t1, p1) = past[-1], after
        return [*past, (at, p0 + (p1 - p0) * (at - t0) / (t1 - t0))]

    def price(self, ticker: str, at: float) -> float:
        return self.until(ticker, at)[-1][1]

    def crossing(self, ticker: str, down: bool, level: float, start: float, end: float):
        "The first (time, price) from `start` to `end` at which the price is at the level or beyond; or None."
        sign = -1 if down else 1
        for opened in range(int(start // HOUR_S * HOUR_S), int(end) + 1, HOUR_S):
            points = [p for p in self.points(ticker, opened) if start < p[0] <= end]
            if opened <= start: points.insert(0, (start, self.price(ticker, start)))
            if end < opened + HOUR_S: points.append((end, self.price(ticker, end)))
            for k, (t, price) in enumerate(points):
                if sign * (price - level) < 0: continue
                if k == 0: return t, price
                t0, before = points[k - 1]
                return t0 + (t - t0) * (level - before) / (price - before), level
        return None


class Matching:
    "The books. Every method holds the lock, and money is exact."

    def __init__(
        self,
        path: PricePath,
        tickers: Callable[[], list[str]],
        balances: dict[str, object],
        fee: Decimal,
        spread: Decimal,
        order_name: Callable[[int], str],
        trade_name: Callable[[int], str],
    ):
        self.path, self.tickers, self.fee, self.spread = path, tickers, fee, spread
        self.order_name, self.trade_name = order_name, trade_name
        self.balances = {c: Decimal(str(amount)) for c, amount in balances.items()}
        self.orders: list[PlacedOrder] = []
        self.trades: list[Trade] = []
        self.delisted: set[str] = set()
        self.special: dict[str, Rules] = {}
        self.time = 0.0  # s since 1970
        self.dead_man: float | None = None  # s since 1970: all orders are cancelled then
        self.fills_per_order = 1
        self.lock = threading.RLock()

    # -- prices and rules

    def now_ms(self) -> int:
        return round(self.time * 1000)

    def rules(self, ticker: str) -> Rules:
        "Rules of a ticker; the tick is a hundred thousandth of the price, as a power of ten."
        if ticker not in self.special:
            first = next(iter(self.path.table(ticker).values()))[0]
            self.special[ticker] = Rules(tick=Decimal(10) ** (math.floor(math.log10(first)) - 5))
        return self.special[ticker]

    def last(self, ticker: str) -> Decimal:
        tick = self.rules(ticker).tick
        return (Decimal(repr(self.path.price(ticker, self.time))) / tick).to_integral_value() * tick

    def quote(self, ticker: str, price: float | None = None) -> tuple[Decimal, Decimal]:
        "Bid and ask, on the tick, around a price (default: the price now)."
        exact = Decimal(repr(self.path.price(ticker, self.time) if price is None else price))
        tick, half = self.rules(ticker).tick, self.spread / 2
        bid = (exact * (1 - half) / tick).to_integral_value(ROUND_FLOOR) * tick
        return bid, (exact * (1 + half) / tick).to_integral_value(ROUND_CEILING) * tick

    # -- the clock

    def advance(self, to: float) -> None:
        "Move the clock forward; stops, limits and the dead man's switch act in their order on the way."
        with self.lock:
            if to < self.time: raise ValueError("the clock of a venue does not go back")
            while event := min(self._events(to), key=lambda e: e[0], default=None):
                self.time = max(self.time, event[0])
                event[1]()
            self.time = to

    def _events(self, to: float) -> list:
        "What happens up to a time: (time, act)."
        found = []
        if self.dead_man is not None and self.dead_man <= to:
            found.append((self.dead_man, self._die))
        for order in self.open():
            down, level = self._condition(order)
            if hit := self.path.crossing(order.ticker, down, level, self.time, to):
                act = self._trigger if order.stop is not None and not order.triggered else self._match
                found.append((hit[0], lambda act=act, order=order, price=hit[1]: act(order, price)))
        return found

    def _condition(self, order: PlacedOrder) -> tuple[bool, float]:
        "Whether the price must fall (else rise) to a level for the order to act, and the level."
        if order.stop is not None and not order.triggered:
            return order.side < 0, float(order.stop)
        half = order.side * self.spread / 2
        return order.side > 0, float(order.limit / (1 + half))

    def _die(self) -> None:
        self.dead_man = None
        for order in self.open(): self.close(order, "canceled")

    def _trigger(self, order: PlacedOrder, price: float) -> None:
        "A stop becomes a market order, or a limit order that rests if the price is already beyond its limit."
        order.triggered = True
        bid, ask = self.quote(order.ticker, price)
        touch = ask if order.side > 0 else bid
        if order.limit is None or order.side * (order.limit - touch) >= 0:
            self.execute(order, order.left, touch)

    def _match(self, order: PlacedOrder, price: float) -> None:
        "A resting limit order is filled at its limit, or better after a gap."
        bid, ask = self.quote(order.ticker, price)
        better = min(order.limit, ask) if order.side > 0 else max(order.limit, bid)
        self.execute(order, order.left, better)

    # -- orders

    def open(self, ticker: str | None = None) -> list[PlacedOrder]:
        return [o for o in self.orders if o.status == "open" and ticker in (None, o.ticker)]

    def held(self, currency: str) -> Decimal:
        "What open orders hold of a currency."
        total = Decimal(0)
        for order in self.open():
            base, quote = order.ticker.split("/")
            if order.side < 0 and base == currency: total += order.left
            if order.side > 0 and quote == currency:
                total += order.left * (order.limit or order.stop) * (1 + self.fee)
        return total

    def check(self, ticker: str, side: int, quantity: Decimal, limit, stop, by: str) -> None:
        "Raise `Refusal` for an order that the rules or the balance forbid."
        if ticker not in self.tickers(): raise Refusal("unknown_ticker", ticker)
        if ticker in self.delisted: raise Refusal("delisted", ticker)
        rules, prices = self.rules(ticker), [p for p in (limit, stop) if p is not None]
        if quantity <= 0 or any(p <= 0 for p in prices): raise Refusal("arguments")
        if quantity % rules.step: raise Refusal("step", f"{rules.step:f}")
        if quantity < rules.min_quantity: raise Refusal("min_quantity", f"{rules.min_quantity:f}")
        if any(p % rules.tick for p in prices): raise Refusal("tick", f"{rules.tick:f}")
        bid, ask = self.quote(ticker)
        price = limit or stop or (ask if side > 0 else bid)
        if by == "api" and quantity * price < rules.min_notional:
            raise Refusal("min_notional", f"{rules.min_notional:f}")
        base, quote = ticker.split("/")
        currency, needed = (base, quantity) if side < 0 else (quote, quantity * price * (1 + self.fee))
        if self.balances.get(currency, Decimal(0)) - self.held(currency) < needed:
            raise Refusal("funds", currency)

    def place(
        self,
        ticker: str,
        side: int,
        quantity: Decimal,
        limit: Decimal | None = None,
        stop: Decimal | None = None,
        immediate: bool = True,
        client: str | None = None,
        by: str = "api",
        portion: Decimal = Decimal(1),  # of an immediate order that is filled
        order_delay: int = 0,  # ms until lists of orders show it
        fill_delay: int = 0,
        fee_in_base: bool = False,
    ) -> PlacedOrder:
        "Take an order, and fill what can be filled. Raises `Refusal`."
        with self.lock:
            self.check(ticker, side, quantity, limit, stop, by)
            number, now = len(self.orders) + 1, self.now_ms()
            order = PlacedOrder(
                number, self.order_name(number), client, ticker, side, quantity, limit, stop, immediate, by,
                now, now + order_delay, fill_delay, fee_in_base,
            )
            self.orders.append(order)
            if stop is not None:
                down, level = self._condition(order)
                price = self.path.price(ticker, self.time)
                if price <= level if down else price >= level: self._trigger(order, price)
                return order
            bid, ask = self.quote(ticker)
            touch = ask if side > 0 else bid
            if limit is None or side * (limit - touch) >= 0:
                step = self.rules(ticker).step
                part = (quantity * portion / step).to_integral_value(ROUND_CEILING) * step
                self.execute(order, part, touch)
            if immediate and order.status == "open": self.close(order, "canceled")
            return order

    def close(self, order: PlacedOrder, reason: str) -> None:
        order.status, order.reason, order.closed_at = "closed", reason, self.now_ms()

    def cancel(self, order: PlacedOrder | None) -> None:
        "Cancel an open order. Raises `Refusal`."
        with self.lock:
            if order is None: raise Refusal("unknown_order")
            if order.status == "closed": raise Refusal("already_done")
            self.close(order, "canceled")

    def execute(self, order: PlacedOrder, quantity: Decimal, price: Decimal) -> None:
        "Fill a quantity at a price, in `fills_per_order` executions."
        step, parts = self.rules(order.ticker).step, max(self.fills_per_order, 1)
        part = (quantity / parts / step).to_integral_value(ROUND_FLOOR) * step
        sizes = [part] * (parts - 1) if part else []
        for size in (*sizes, quantity - sum(sizes)): self._fill(order, size, price)
        if not order.left: self.close(order, "filled")

    def _fill(self, order: PlacedOrder, quantity: Decimal, price: Decimal) -> None:
        base, quote = order.ticker.split("/")
        in_base = order.fee_in_base and order.side > 0
        fee = (quantity * (1 if in_base else price) * self.fee).quantize(COIN)
        self.credit(base, order.side * quantity)
        self.credit(quote, -order.side * quantity * price)
        self.credit(base if in_base else quote, -fee)
        order.filled, order.cost, order.fee = (
            order.filled + quantity,
            order.cost + quantity * price,
            order.fee + fee,
        )
        number, now = len(self.trades) + 1, self.now_ms()
        self.trades.append(
            Trade(
                number, self.trade_name(number), order.id, order.client, order.ticker, order.side, quantity,
                price, fee, base if in_base else quote, now, now + order.fill_delay, order.by,
            )
        )

    def credit(self, currency: str, amount: Decimal) -> None:
        self.balances[currency] = self.balances.get(currency, Decimal(0)) + amount
