"""The wire formats of the loop-back venue: a class for each personality translates signed requests to orders
of the matching engine, and the engine's facts to JSON, as ccxt's class of the same name expects them."""
import base64
import hashlib
import hmac
import json
import time
import uuid
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pandas as pd
from loopback import Answer
from matching import PlacedOrder, Refusal, Trade

if TYPE_CHECKING:
    from venue import Venue

KEY = "loopback-key-5f1d"
SECRET = base64.b64encode(b"a secret of the loop-back venue, 32+ bytes").decode()
ADVANCED_SECRET = "loopback-advanced-secret-71"  # ccxt takes one with "=" for a key of another kind
PASSPHRASE = "loopback-passphrase-9c"
CLOUD_KEY = "organizations/loopback/apiKeys/5f1d"  # of the kind that Coinbase issues today


@dataclass
class Request:
    "One HTTP request; `query` and `form` hold the last value of each name."
    method: str
    target: str  # path and query, as signed
    headers: object
    body: bytes = b""

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return {k: v[-1] for k, v in parse_qs(urlsplit(self.target).query).items()}

    @property
    def form(self) -> dict:
        "The fields of the body, JSON or URL-encoded."
        text = self.body.decode()
        if text.startswith("{"): return json.loads(text)
        return {k: v[-1] for k, v in parse_qs(text).items()}


def plain(number: Decimal) -> str:
    "A decimal without exponent and trailing zeros."
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def iso(ms: int) -> str:
    return pd.Timestamp(ms, unit="ms").strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


def from_iso(text: str | None) -> int:
    "Milliseconds of a time; 0 without one."
    return int(pd.Timestamp(text).timestamp() * 1000) if text else 0


def decimal(text: object) -> Decimal:
    try: return Decimal(str(text))
    except InvalidOperation: raise Refusal("arguments", str(text)) from None


def signed(secret: bytes, message: bytes, kind=hashlib.sha256) -> bytes:
    return hmac.new(secret, message, kind).digest()


class Wire:
    "What all personalities share; a subclass translates requests to the engine, and its facts to JSON."
    name = ""
    page = 100  # entries of a list

    def __init__(self, venue: "Venue"):
        self.venue, self.engine = venue, venue.engine

    # -- to be defined by each

    def owns(self, path: str) -> bool: raise NotImplementedError
    def verify(self, request: Request) -> Answer | None: raise NotImplementedError
    def kind(self, request: Request) -> str: raise NotImplementedError  # "place", "cancel" or "read"
    def respond(self, request: Request) -> Answer: raise NotImplementedError
    def refused(self, refusal: Refusal) -> Answer: raise NotImplementedError
    def rate_limited(self) -> Answer: raise NotImplementedError
    def public(self, path: str, query: dict) -> Answer | None: return None
    def order_name(self, number: int) -> str: return str(uuid.uuid5(uuid.NAMESPACE_OID, f"order {number}"))
    def trade_name(self, number: int) -> str: return str(1000 + number)

    # -- shared

    def ticker(self, product: str) -> str:
        return product.replace("-", "/")

    def orders(self, ticker: str | None = None) -> list[PlacedOrder]:
        "The orders that lists show now, newest first."
        now = self.engine.now_ms()
        return [
            o for o in reversed(self.engine.orders) if o.visible_at <= now and ticker in (None, o.ticker)
        ]

    def trades(self, ticker: str | None = None, since: int = 0) -> list[Trade]:
        now = self.engine.now_ms()
        return [
            t
            for t in reversed(self.engine.trades)
            if t.visible_at <= now and ticker in (None, t.ticker) and t.at >= since
        ]

    def known(self, name: str) -> PlacedOrder | None:
        return next((o for o in self.engine.orders if o.id == name), None)

    def place(self, **order) -> PlacedOrder:
        "Place an order, with the faults that concern its execution."
        faults, engine = self.venue.private_faults, self.engine
        if order.get("limit") is None and order.get("stop") is None and not self.venue.market_orders:
            raise Refusal("market_order")
        fault, ms = faults.draw("hidden", "fills_first", "fills_late"), round(faults.hidden_seconds * 1000)
        if order.get("immediate", True) and faults.draw("partial"):
            order["portion"] = Decimal(faults.rng.randint(1, 99)) / 100
        return engine.place(
            order_delay=ms if fault in ("hidden", "fills_first") else 0,
            fill_delay=ms if fault in ("hidden", "fills_late") else 0,
            **order,
        )

    def slip(self, rows: list) -> list:
        "A page of fills with the scripted faults."
        faults = self.venue.private_faults
        if rows and faults.draw("duplicate"): rows = [*rows, *faults.rng.choices(rows, k=2)]
        return faults.rng.sample(rows, len(rows)) if faults.draw("disorder") else rows


class CoinbaseExchangeWire(Wire):
    "Coinbase Exchange: client order ids are not checked, and cancelled orders without fills are forgotten."
    name = "coinbaseexchange"

    def owns(self, path: str) -> bool:
        return path.split("/")[1] in ("accounts", "orders", "fills", "fees")

    def verify(self, request: Request) -> Answer | None:
        h = request.headers
        if h.get("CB-ACCESS-KEY") != KEY: return self.message(401, "Invalid API Key")
        if h.get("CB-ACCESS-PASSPHRASE") != PASSPHRASE: return self.message(401, "Invalid Passphrase")
        stamp = h.get("CB-ACCESS-TIMESTAMP", "")
        text = f"{stamp}{request.method}{request.target}".encode() + request.body
        good = base64.b64encode(signed(base64.b64decode(SECRET), text)).decode()
        if not hmac.compare_digest(good, h.get("CB-ACCESS-SIGN", "")):
            return self.message(401, "invalid signature")
        if abs(float(stamp) - time.time()) > 30: return self.message(400, "request timestamp expired")
        return None

    @staticmethod
    def message(status: int, text: str) -> Answer:
        return Answer({"message": text}, status)

    def kind(self, request: Request) -> str:
        return {"POST": "place", "DELETE": "cancel"}.get(request.method, "read")

    def rate_limited(self) -> Answer:
        return self.message(429, "Private rate limit exceeded")

    def refused(self, refusal: Refusal) -> Answer:
        status, text = {
            "funds": (400, "Insufficient funds"),
            "step": (400, "size is too accurate. Smallest unit is {}"),
            "tick": (400, "price is too accurate. Smallest unit is {}"),
            "min_quantity": (400, "size is too small. Minimum size is {}"),
            "min_notional": (400, "Funds is too small. Minimum size is {}"),
            "market_order": (400, "Limit only mode"),
            "delisted": (400, "Trading pair not available"),
            "unknown_ticker": (404, "Product not found"),
            "unknown_order": (404, "order not found"),
            "already_done": (400, "Order already done"),
            "arguments": (400, "Invalid order"),
        }[refusal.kind]
        return self.message(status, text.format(refusal.detail))

    def respond(self, request: Request) -> Answer:
        head, *rest = request.path.strip("/").split("/")
        if head == "accounts": return Answer(self.accounts())
        if head == "fees":
            rate = plain(self.engine.fee)
            return Answer({"maker_fee_rate": rate, "taker_fee_rate": rate, "usd_volume": "0"})
        if head == "fills": return self.fills(request.query)
        if request.method == "POST": return Answer(self.order(self.new(request.form), fresh=True))
        if not rest: return self.listed(request.query)
        order = self.one(rest[0])
        if request.method == "DELETE":
            self.engine.cancel(order)
            return Answer(order.id)
        if order is None or self.forgotten(order) or order.visible_at > self.engine.now_ms():
            return self.message(404, "NotFound")
        return Answer(self.order(order))

    def one(self, name: str) -> PlacedOrder | None:
        "An order by its id, or by `client:` and the client order id: the open one, else the newest."
        kind, _, client = name.partition(":")
        if kind != "client": return self.known(name)
        found = [o for o in self.engine.orders if o.client == client]
        return next((o for o in found if o.status == "open"), found[-1] if found else None)

    @staticmethod
    def forgotten(order: PlacedOrder) -> bool:
        return order.status == "closed" and not order.filled

    def new(self, form: dict) -> PlacedOrder:
        stop = form.get("stop_price")
        if (stop is None) != (form.get("stop") is None): raise Refusal("arguments", "stop")
        limit = form.get("price") if form["type"] == "limit" else None
        if stop is not None and limit is None: raise Refusal("arguments", "price")
        return self.place(
            ticker=self.ticker(form["product_id"]),
            side=1 if form["side"] == "buy" else -1,
            quantity=decimal(form.get("size")),
            limit=None if limit is None else decimal(limit),
            stop=None if stop is None else decimal(stop),
            immediate=form["type"] == "market" or form.get("time_in_force") == "IOC",
            client=form.get("client_oid"),
        )

    def order(self, order: PlacedOrder, fresh: bool = False) -> dict:
        "An order as JSON; the answer to a new one does not say yet what was executed."
        waits = order.stop is not None and not order.triggered
        status = "done" if order.status == "closed" else "active" if waits else "open"
        said = {
            "id": order.id,
            "product_id": order.ticker.replace("/", "-"),
            "side": "buy" if order.side > 0 else "sell",
            "type": "market" if order.limit is None else "limit",
            "size": plain(order.quantity),
            "time_in_force": "IOC" if order.immediate else "GTC",
            "post_only": False,
            "created_at": iso(order.at),
            "fill_fees": "0" if fresh else plain(order.fee),
            "filled_size": "0" if fresh else plain(order.filled),
            "executed_value": "0" if fresh else plain(order.cost),
            "status": "pending" if fresh else status,
            "settled": not fresh and order.status == "closed",
        }
        if order.client: said["client_oid"] = order.client
        if order.limit is not None: said["price"] = plain(order.limit)
        if order.stop is not None: said |= {"stop": "loss", "stop_price": plain(order.stop)}
        if not fresh and order.status == "closed":
            said |= {"done_reason": order.reason, "done_at": iso(order.closed_at)}
        return said

    def listed(self, query: dict) -> Answer:
        status, since = query.get("status"), from_iso(query.get("start_date"))
        wanted = {None: ("open",), "open": ("open",), "done": ("closed",), "all": ("open", "closed")}[status]
        rows = [
            o
            for o in self.orders(self.ticker(query["product_id"]) if "product_id" in query else None)
            if o.status in wanted and not self.forgotten(o) and o.at >= since
        ]
        return self.paged(rows, query, self.order)

    def fills(self, query: dict) -> Answer:
        rows = self.trades(self.ticker(query["product_id"]), from_iso(query.get("start_date")))
        return self.paged(rows, query, self.fill, self.slip)

    def paged(self, rows: list, query: dict, shown, damaged=lambda rows: rows) -> Answer:
        "One page, newest first, with the cursor of the next one in a header."
        rows = [r for r in rows if "after" not in query or r.number < int(query["after"])]
        page = rows[: min(int(query.get("limit", self.page)), self.page)]
        headers = {"Content-Type": "application/json"}
        if page: headers["CB-AFTER"], headers["CB-BEFORE"] = str(page[-1].number), str(page[0].number)
        return Answer([shown(r) for r in damaged(page)], headers=headers)

    @staticmethod
    def fill(trade: Trade) -> dict:
        return {
            "trade_id": int(trade.id),
            "product_id": trade.ticker.replace("/", "-"),
            "order_id": trade.order,
            "liquidity": "T",
            "price": plain(trade.price),
            "size": plain(trade.quantity),
            "fee": plain(trade.fee),
            "created_at": iso(trade.at),
            "side": "buy" if trade.side > 0 else "sell",
            "settled": True,
        }

    def accounts(self) -> list[dict]:
        return [
            {
                "id": str(uuid.uuid5(uuid.NAMESPACE_OID, currency)),
                "currency": currency,
                "balance": plain(total),
                "hold": plain(self.engine.held(currency)),
                "available": plain(total - self.engine.held(currency)),
                "trading_enabled": True,
            }
            for currency, total in self.engine.balances.items()
        ]


class KrakenWire(Wire):
    "Kraken: a client order id is unique among open orders only, and a nonce must grow."
    name = "kraken"
    page = 50

    def __init__(self, venue: "Venue"):
        super().__init__(venue)
        self.nonce = 0

    def owns(self, path: str) -> bool:
        return path.startswith("/0/private/")

    def verify(self, request: Request) -> Answer | None:
        nonce = str(request.form.get("nonce", ""))
        if request.headers.get("API-Key") != KEY: return self.error("EAPI:Invalid key")
        text = request.path.encode() + hashlib.sha256(nonce.encode() + request.body).digest()
        good = base64.b64encode(signed(base64.b64decode(SECRET), text, hashlib.sha512)).decode()
        if not hmac.compare_digest(good, request.headers.get("API-Sign", "")):
            return self.error("EAPI:Invalid signature")
        if not nonce.isdigit() or int(nonce) <= self.nonce: return self.error("EAPI:Invalid nonce")
        self.nonce = int(nonce)
        return None

    @staticmethod
    def error(text: str) -> Answer:
        return Answer({"error": [text]})

    def kind(self, request: Request) -> str:
        verb = request.path.rsplit("/", 1)[1]
        return {"AddOrder": "place", "CancelOrder": "cancel"}.get(verb, "read")

    def rate_limited(self) -> Answer:
        return self.error("EAPI:Rate limit exceeded")

    def refused(self, refusal: Refusal) -> Answer:
        return self.error(
            {
                "funds": "EOrder:Insufficient funds",
                "step": "EGeneral:Invalid arguments:volume",
                "tick": "EOrder:Invalid price:{} has too many decimals",
                "min_quantity": "EOrder:Order minimum not met",
                "min_notional": "EOrder:Cost minimum not met",
                "market_order": "EGeneral:Invalid arguments:ordertype",
                "delisted": "EService:Market in cancel_only mode",
                "unknown_ticker": "EQuery:Unknown asset pair",
                "unknown_order": "EOrder:Unknown order",
                "already_done": "EOrder:Unknown order",
                "duplicate": "EOrder:Duplicate client order id",  # the real words are not documented
                "arguments": "EGeneral:Invalid arguments",
            }[refusal.kind].format(refusal.detail)
        )

    def order_name(self, number: int) -> str: return f"O{number:05d}-LOOPB-ACKVEN"
    def trade_name(self, number: int) -> str: return f"T{number:05d}-LOOPB-ACKVEN"

    def ticker(self, product: str) -> str:
        found = [t for t in self.engine.tickers() if product in (t, t.replace("/", ""))]
        if not found: raise Refusal("unknown_ticker")
        return found[0]

    def respond(self, request: Request) -> Answer:
        verb, form = request.path.rsplit("/", 1)[1], request.form
        answers = {
            "BalanceEx": self.balances,
            "AddOrder": self.add,
            "CancelOrder": self.cancel,
            "OpenOrders": self.open_orders,
            "ClosedOrders": self.closed_orders,
            "QueryOrders": self.query_orders,
            "TradesHistory": self.history,
            "CancelAllOrdersAfter": self.dead_man,
        }
        if verb not in answers: return self.error("EGeneral:Unknown method")
        return Answer({"error": [], "result": answers[verb](form)})

    def balances(self, form: dict) -> dict:
        return {
            c: {"balance": plain(total), "hold_trade": plain(self.engine.held(c))}
            for c, total in self.engine.balances.items()
        }

    def add(self, form: dict) -> dict:
        client, kind = form.get("cl_ord_id"), form["ordertype"]
        if client and any(o.client == client for o in self.engine.open()): raise Refusal("duplicate")
        if kind not in ("limit", "market", "stop-loss", "stop-loss-limit"): raise Refusal("market_order")
        price = None if kind == "market" else decimal(form.get("price"))
        stops = kind.startswith("stop-loss")
        if stops and form.get("timeinforce", "GTC").upper() != "GTC": raise Refusal("arguments")
        order = self.place(
            ticker=self.ticker(form["pair"]),
            side=1 if form["type"] == "buy" else -1,
            quantity=decimal(form["volume"]),
            limit=decimal(form.get("price2")) if kind == "stop-loss-limit" else None if stops else price,
            stop=price if stops else None,
            immediate=kind == "market" or form.get("timeinforce", "GTC").upper() == "IOC",
            client=client,
        )
        return {"descr": {"order": self.described(order)["order"]}, "txid": [order.id]}

    def cancel(self, form: dict) -> dict:
        client = form.get("cl_ord_id")
        wanted = [o for o in self.engine.open() if client and o.client == client]
        order = wanted[0] if wanted else self.known(form.get("txid", ""))
        self.engine.cancel(order)
        return {"count": 1}

    def described(self, order: PlacedOrder) -> dict:
        pair, side = order.ticker.replace("/", ""), "buy" if order.side > 0 else "sell"
        limit = plain(order.limit) if order.limit is not None else "0"
        size = f"{side} {plain(order.quantity)} {pair} @"
        if order.stop is not None:
            kind = "stop-loss" if order.limit is None else "stop-loss-limit"
            price, price2 = plain(order.stop), limit
            text = f"{size} stop loss {price}" + ("" if order.limit is None else f" -> limit {limit}")
        else:
            kind = "market" if order.limit is None else "limit"
            price, price2 = limit, "0"
            text = f"{size} {kind}" + ("" if order.limit is None else f" {limit}")
        return {
            "pair": pair,
            "type": side,
            "ordertype": kind,
            "price": price,
            "price2": price2,
            "leverage": "none",
            "order": text,
        }

    def order(self, order: PlacedOrder) -> dict:
        closed = "closed" if order.reason == "filled" else "canceled"
        said = {
            "cl_ord_id": order.client,
            "status": "open" if order.status == "open" else closed,
            "opentm": order.at / 1000,
            "descr": self.described(order),
            "vol": plain(order.quantity),
            "vol_exec": plain(order.filled),
            "cost": plain(order.cost),
            "fee": plain(order.fee),
            "price": plain(order.average),
            "oflags": "fciq",
        }
        return said if order.closed_at is None else said | {"closetm": order.closed_at / 1000}

    def chosen(self, form: dict, status: str) -> list[PlacedOrder]:
        client, start = form.get("cl_ord_id"), float(form.get("start", 0))
        return [
            o
            for o in self.orders()
            if o.status == status and client in (None, o.client) and o.at / 1000 > start
        ]

    def open_orders(self, form: dict) -> dict:
        return {"open": {o.id: self.order(o) for o in self.chosen(form, "open")}}

    def closed_orders(self, form: dict) -> dict:
        found, ofs = self.chosen(form, "closed"), int(form.get("ofs", 0))
        page = found[ofs: ofs + self.page]
        return {"closed": {o.id: self.order(o) for o in page}, "count": len(found)}

    def query_orders(self, form: dict) -> dict:
        names = form.get("txid", "").split(",")
        return {o.id: self.order(o) for o in self.orders() if o.id in names}

    def history(self, form: dict) -> dict:
        start, end = float(form.get("start", 0)), float(form.get("end", "inf"))
        found = [t for t in self.trades() if start < t.at / 1000 <= end]
        ofs = int(form.get("ofs", 0))
        # the names of an object are unique: what is repeated is repeated by the next page
        begin = max(ofs - 1, 0) if self.venue.private_faults.draw("duplicate") else ofs
        page = found[begin: ofs + self.page]
        if self.venue.private_faults.draw("disorder"):
            page = self.venue.private_faults.rng.sample(page, len(page))
        return {"trades": {t.id: self.fill(t) for t in page}, "count": len(found)}

    @staticmethod
    def fill(trade: Trade) -> dict:
        return {
            "ordertxid": trade.order,
            "pair": trade.ticker.replace("/", ""),
            "time": trade.at / 1000,
            "type": "buy" if trade.side > 0 else "sell",
            "ordertype": "limit",
            "price": plain(trade.price),
            "cost": plain(trade.price * trade.quantity),
            "fee": plain(trade.fee),
            "vol": plain(trade.quantity),
            "margin": "0",
            "misc": "",
            "trade_id": trade.number,
            "maker": False,
        }

    def dead_man(self, form: dict) -> dict:
        seconds = int(form["timeout"])
        self.engine.dead_man = self.engine.time + seconds if seconds else None
        due = iso(round(self.engine.dead_man * 1000)) if seconds else "0"
        return {"currentTime": iso(self.engine.now_ms()), "triggerTime": due}

    def public(self, path: str, query: dict) -> Answer | None:
        if path == "/0/public/Time":
            return Answer({"error": [], "result": {"unixtime": int(self.engine.time)}})
        if path == "/0/public/AssetPairs":
            pairs = self.venue._kraken("AssetPairs", query)
            return Answer({"error": [], "result": {i: self.pair(said) for i, said in pairs.items()}})
        if path == "/0/public/Ticker":
            return Answer({"error": [], "result": {query["pair"]: self.price(self.ticker(query["pair"]))}})
        return None

    def pair(self, said: dict) -> dict:
        rules, fee = self.engine.rules(said["wsname"]), float(self.engine.fee * 100)
        return said | {
            "pair_decimals": -rules.tick.normalize().as_tuple().exponent,
            "lot_decimals": -rules.step.normalize().as_tuple().exponent,
            "tick_size": plain(rules.tick),
            "ordermin": plain(rules.min_quantity),
            "costmin": plain(rules.min_notional),
            "fees": [[0, fee]],
            "fees_maker": [[0, fee]],
        }

    def price(self, ticker: str) -> dict:
        (bid, ask), day = self.engine.quote(ticker), self.venue._day(ticker)
        high, low = repr(max(r[1] for r in day)), repr(min(r[2] for r in day))
        volume, last = repr(sum(r[4] for r in day)), plain(self.engine.last(ticker))
        return {
            "a": [plain(ask), "1", "1.000"],
            "b": [plain(bid), "1", "1.000"],
            "c": [last, "0.1"],
            "v": [volume, volume],
            "p": [last, last],
            "t": [1, 1],
            "l": [low, low],
            "h": [high, high],
            "o": repr(day[0][0]),
        }


class CoinbaseWire(Wire):
    "Coinbase Advanced: an order with a known client order id is the original one, at any time."
    name = "coinbase"
    base = "/api/v3/brokerage/"

    def owns(self, path: str) -> bool:
        shared = ("market", "time")
        return path.startswith(self.base) and path[len(self.base):].split("/")[0] not in shared

    def verify(self, request: Request) -> Answer | None:
        h = request.headers
        if (token := h.get("Authorization", "")).startswith("Bearer "):
            return self.token_refused(token[7:], request)
        if h.get("CB-ACCESS-KEY") != KEY: return self.unauthorized("invalid key")
        stamp = h.get("CB-ACCESS-TIMESTAMP", "")
        text = f"{stamp}{request.method}{request.path}".encode() + request.body
        if not hmac.compare_digest(signed(ADVANCED_SECRET.encode(), text).hex(), h.get("CB-ACCESS-SIGN", "")):
            return self.unauthorized("invalid signature")
        if abs(float(stamp) - time.time()) > 30: return self.unauthorized("request timestamp expired")
        return None

    def token_refused(self, token: str, request: Request) -> Answer | None:
        "Verify a JSON web token, signed with ES256, for one request."
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, utils

        parts = token.split(".")
        head, claims, signature = (base64.urlsafe_b64decode(x + "=" * (-len(x) % 4)) for x in parts)
        r, s = (int.from_bytes(signature[k: k + 32]) for k in (0, 32))
        message = token.rpartition(".")[0].encode()
        try:
            public = cloud_key().public_key()
            public.verify(utils.encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return self.unauthorized("invalid signature")
        said = json.loads(claims)
        method, _, address = said["uri"].partition(" ")
        if said["sub"] != CLOUD_KEY or json.loads(head)["kid"] != CLOUD_KEY:
            return self.unauthorized("invalid key")
        if method != request.method or not address.endswith(request.path):
            return self.unauthorized("the token is for another request")
        return None if said["exp"] > time.time() else self.unauthorized("the token has expired")

    @staticmethod
    def unauthorized(text: str) -> Answer:
        return Answer({"error": "unauthorized", "error_details": text, "message": text}, 401)

    def kind(self, request: Request) -> str:
        if request.method != "POST": return "read"
        return "cancel" if request.path.endswith("batch_cancel") else "place"

    def rate_limited(self) -> Answer:
        return Answer({"error": "rate_limit_exceeded", "message": "too many requests"}, 429)

    def refused(self, refusal: Refusal) -> Answer:
        word = {
            "funds": "INSUFFICIENT_FUND",
            "step": "INVALID_SIZE_PRECISION",
            "tick": "INVALID_PRICE_PRECISION",
            "min_quantity": "PREVIEW_INVALID_BASE_SIZE_TOO_SMALL",
            "min_notional": "PREVIEW_INVALID_QUOTE_SIZE_TOO_SMALL",
            "market_order": "INVALID_LIMIT_PRICE",
            "delisted": "INVALID_PRODUCT_ID",
            "unknown_ticker": "INVALID_PRODUCT_ID",
            "stop_price": "PREVIEW_STOP_PRICE_ABOVE_LAST_TRADE_PRICE",
            "arguments": "UNSUPPORTED_ORDER_CONFIGURATION",
        }[refusal.kind]
        said = {"error": word, "message": word.lower(), "error_details": "", "preview_failure_reason": word}
        return Answer({"success": False, "error_response": said})

    def respond(self, request: Request) -> Answer:
        path, query = request.path[len(self.base):], request.query
        if path == "accounts": return Answer(self.accounts())
        if path == "transaction_summary":
            rate = plain(self.engine.fee)
            return Answer({"fee_tier": {"taker_fee_rate": rate, "maker_fee_rate": rate}})
        if path == "orders": return Answer(self.new(request.form))
        if path == "orders/batch_cancel":
            return Answer({"results": [self.cancelled(name) for name in request.form["order_ids"]]})
        if path == "orders/historical/batch": return Answer(self.listed(query))
        if path == "orders/historical/fills": return Answer(self.fills(query))
        if path.startswith("orders/historical/"):
            order = self.known(path.rsplit("/", 1)[1])
            if order is None or order.visible_at > self.engine.now_ms():
                words = "order with this orderID was not found"
                return Answer({"error": "NOT_FOUND", "error_details": words, "message": words}, 404)
            return Answer({"order": self.order(order)})
        return Answer({"error": "NOT_FOUND"}, 404)

    def accounts(self) -> dict:
        rows = [
            {
                "uuid": str(uuid.uuid5(uuid.NAMESPACE_OID, c)),
                "name": f"{c} Wallet",
                "currency": c,
                "available_balance": {"value": plain(total - self.engine.held(c)), "currency": c},
                "hold": {"value": plain(self.engine.held(c)), "currency": c},
                "type": "ACCOUNT_TYPE_FIAT" if c == "USD" else "ACCOUNT_TYPE_CRYPTO",
                "active": True,
                "ready": True,
            }
            for c, total in self.engine.balances.items()
        ]
        return {"accounts": rows, "has_next": False, "cursor": "", "size": len(rows)}

    def new(self, form: dict) -> dict:
        client = form["client_order_id"]
        order = next((o for o in self.engine.orders if o.client == client), None) or self.placed(form)
        said = {
            "order_id": order.id,
            "product_id": order.ticker.replace("/", "-"),
            "side": form["side"],
            "client_order_id": client,
        }
        return {"success": True, "success_response": said, "order_configuration": form["order_configuration"]}

    def placed(self, form: dict) -> PlacedOrder:
        (kind, how), = form["order_configuration"].items()
        kinds = ("sor_limit_ioc", "limit_limit_gtc", "stop_limit_stop_limit_gtc", "market_market_ioc")
        if kind not in kinds: raise Refusal("arguments")
        ticker, side = self.ticker(form["product_id"]), 1 if form["side"] == "BUY" else -1
        stop = decimal(how["stop_price"]) if "stop_price" in how else None
        if stop is not None:
            if how["stop_direction"] != f"STOP_DIRECTION_STOP_{'UP' if side > 0 else 'DOWN'}":
                raise Refusal("arguments")
            if ticker in self.engine.tickers() and side * (self.engine.last(ticker) - stop) >= 0:
                raise Refusal("stop_price")
        return self.place(
            ticker=ticker,
            side=side,
            quantity=decimal(how.get("base_size")),
            limit=decimal(how["limit_price"]) if "limit_price" in how else None,
            stop=stop,
            immediate=kind.endswith("ioc"),
            client=form["client_order_id"],
            fee_in_base=self.venue.fee_in_base,
        )

    def cancelled(self, name: str) -> dict:
        reason = "UNKNOWN_CANCEL_FAILURE_REASON"
        try: self.engine.cancel(self.known(name))
        except Refusal as refusal:
            filled = refusal.kind == "already_done" and self.known(name).reason == "filled"
            reason = "ORDER_IS_FULLY_FILLED" if filled else "UNKNOWN_CANCEL_ORDER"
        return {"success": reason.startswith("UNKNOWN_CANCEL_F"), "failure_reason": reason, "order_id": name}

    def order(self, order: PlacedOrder) -> dict:
        size = {"base_size": plain(order.quantity)}
        limit = {} if order.limit is None else {"limit_price": plain(order.limit)}
        if order.stop is not None:
            direction = f"STOP_DIRECTION_STOP_{'UP' if order.side > 0 else 'DOWN'}"
            kind = "stop_limit_stop_limit_gtc"
            limit |= {"stop_price": plain(order.stop), "stop_direction": direction}
        else:
            immediate = "sor_limit_ioc" if order.limit is not None else "market_market_ioc"
            kind = immediate if order.immediate else "limit_limit_gtc"
        closed = "FILLED" if order.reason == "filled" else "CANCELLED"
        return {
            "order_id": order.id,
            "client_order_id": order.client or "",
            "product_id": order.ticker.replace("/", "-"),
            "side": "BUY" if order.side > 0 else "SELL",
            "order_configuration": {kind: size | limit},
            "status": "OPEN" if order.status == "open" else closed,
            "time_in_force": "IMMEDIATE_OR_CANCEL" if order.immediate else "GOOD_UNTIL_CANCELLED",
            "created_time": iso(order.at),
            "filled_size": plain(order.filled),
            "filled_value": plain(order.cost),
            "average_filled_price": plain(order.average),
            "total_fees": plain(order.fee),
            "order_type": "STOP_LIMIT" if order.stop is not None else "LIMIT" if limit else "MARKET",
        }

    def listed(self, query: dict) -> dict:
        status, since = query.get("order_status"), from_iso(query.get("start_date"))
        rows = [
            o
            for o in self.orders(self.ticker(query["product_id"]) if "product_id" in query else None)
            if o.at >= since and status in (None, self.order(o)["status"])
        ]
        page, cursor = self.paged(rows, query)
        return {"orders": [self.order(o) for o in page], "has_next": bool(cursor), "cursor": cursor}

    def fills(self, query: dict) -> dict:
        ticker = self.ticker(query["product_id"]) if "product_id" in query else None
        rows = self.trades(ticker, from_iso(query.get("start_sequence_timestamp")))
        page, cursor = self.paged(rows, query)
        return {"fills": [self.fill(t) for t in self.slip(page)], "cursor": cursor}

    def paged(self, rows: list, query: dict) -> tuple[list, str]:
        "One page, newest first, and the cursor of the next one; an empty one at the end."
        rows = [r for r in rows if not query.get("cursor") or r.number < int(query["cursor"])]
        page = rows[: min(int(query.get("limit", self.page)), self.page)]
        return page, str(page[-1].number) if len(page) < len(rows) else ""

    @staticmethod
    def fill(trade: Trade) -> dict:
        said = {
            "entry_id": f"entry-{trade.id}",
            "trade_id": trade.id,
            "order_id": trade.order,
            "trade_time": iso(trade.at),
            "trade_type": "FILL",
            "price": plain(trade.price),
            "size": plain(trade.quantity),
            "commission": plain(trade.fee),
            "product_id": trade.ticker.replace("/", "-"),
            "sequence_timestamp": iso(trade.at),
            "liquidity_indicator": "TAKER",
            "size_in_quote": False,
            "side": "BUY" if trade.side > 0 else "SELL",
        }
        if trade.fee_currency != trade.ticker.split("/")[1]:
            said["fee"] = {"amount": plain(trade.fee), "currency": trade.fee_currency}
        return said

    # -- the few public requests that ccxt needs

    def public(self, path: str, query: dict) -> Answer | None:
        names = sorted({c for t in self.engine.tickers() for c in t.split("/")})
        if path == "/v2/time":
            return Answer({"data": {"iso": iso(self.engine.now_ms()), "epoch": int(self.engine.time)}})
        if path == f"{self.base}time":
            ms = self.engine.now_ms()
            return Answer({"iso": iso(ms), "epochSeconds": str(ms // 1000), "epochMillis": str(ms)})
        if path == "/v2/currencies": return Answer({"data": [{"id": "USD", "name": "US Dollar"}]})
        if path == "/v2/currencies/crypto":
            coins = [{"code": c, "name": c, "asset_id": c} for c in names if c != "USD"]
            return Answer({"data": coins})
        if path == "/v2/exchange-rates":
            return Answer({"data": {"currency": "USD", "rates": dict.fromkeys(names, "1")}})
        if path == f"{self.base}market/product_book": return Answer(self.book(query["product_id"]))
        parts = path.removeprefix(f"{self.base}market/products").strip("/").split("/")
        if not path.startswith(f"{self.base}market/products"): return None
        if parts == [""]:
            spot = query.get("product_type", "SPOT") == "SPOT"
            return Answer({"products": [self.product(t) for t in self.engine.tickers()] if spot else []})
        ticker = self.ticker(parts[0])
        if ticker not in self.engine.tickers(): return Answer({"error": "NOT_FOUND"}, 404)
        if len(parts) == 1: return Answer(self.product(ticker))
        return Answer(self.candles(ticker, query) if parts[1] == "candles" else self.last(ticker))

    def product(self, ticker: str) -> dict:
        rules, (base, quote) = self.engine.rules(ticker), ticker.split("/")
        return {
            "product_id": f"{base}-{quote}",
            "product_type": "SPOT",
            "base_currency_id": base,
            "quote_currency_id": quote,
            "base_increment": plain(rules.step),
            "price_increment": plain(rules.tick),
            "quote_increment": plain(rules.tick),
            "base_min_size": plain(rules.min_quantity),
            "quote_min_size": plain(rules.min_notional),
            "trading_disabled": ticker in self.venue.delisted,
            "status": "online",
        }

    def candles(self, ticker: str, query: dict) -> dict:
        rows = [
            (t, row)
            for t in range(-(-int(query["start"]) // 3600) * 3600, int(query["end"]) + 1, 3600)
            if (row := self.venue._row(ticker, t)) is not None
        ][-350:]
        names = ("open", "high", "low", "close", "volume")
        return {
            "candles": [
                {"start": str(t), **{n: repr(x) for n, x in zip(names, row, strict=True)}}
                for t, row in reversed(rows)
            ]
        }

    def last(self, ticker: str) -> dict:
        bid, ask = self.engine.quote(ticker)
        trade = {
            "trade_id": "1",
            "product_id": ticker.replace("/", "-"),
            "price": plain(self.engine.last(ticker)),
            "size": "0.1",
            "time": iso(self.engine.now_ms()),
            "side": "BUY",
        }
        return {"trades": [trade], "best_bid": plain(bid), "best_ask": plain(ask)}

    def book(self, product: str) -> dict:
        bid, ask = self.engine.quote(self.ticker(product))
        sides = {n: [{"price": plain(p), "size": "1"}] for n, p in (("bids", bid), ("asks", ask))}
        return {"pricebook": {"product_id": product, "time": iso(self.engine.now_ms()), **sides}}


WIRES = {wire.name: wire for wire in (CoinbaseExchangeWire, KrakenWire, CoinbaseWire)}


def credentials(personality: str) -> dict[str, str]:
    "Key, secret and passphrase that the venue accepts."
    if personality == "coinbase": return {"key": KEY, "secret": ADVANCED_SECRET}
    return {"key": KEY, "secret": SECRET, **({"passphrase": PASSPHRASE} if "exchange" in personality else {})}


def cloud_key(name: str = CLOUD_KEY):
    "A private key, the same on every machine."
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.derive_private_key(int.from_bytes(hashlib.sha256(name.encode()).digest()), ec.SECP256R1())


def cloud_credentials(name: str = CLOUD_KEY) -> dict[str, str]:
    "A key of Coinbase Advanced whose secret is a private key in PEM format."
    from cryptography.hazmat.primitives import serialization

    kind = serialization.PrivateFormat.TraditionalOpenSSL
    pem = cloud_key(name).private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())
    return {"key": name, "secret": pem.decode()}
