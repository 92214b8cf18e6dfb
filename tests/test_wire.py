"""What a venue must prove before it may be traded live: real ccxt against the loop-back venue, in its three
personalities."""
import contextlib
import json
import logging
import random
import subprocess
import sys
import traceback
from dataclasses import replace
from decimal import Decimal

import pandas as pd
import pytest
from loopback import ROOT, Answer, a_market
from matching import Refusal
from venue import PrivateFaults, Venue
from wires import cloud_credentials, credentials

from cryptolstm.core.errors import CryptolstmError, InputError, OperationError
from cryptolstm.trading.broker import Order, Outcome, order_id, rounded_down, worst_price
from cryptolstm.trading.exchange_broker import ExchangeBroker
from cryptolstm.trading.venues import VENUES, Keys, outcome_of, read_keys

ETH = "ETH/USD"
MARKET = a_market()
START = "2025-01-20 00:10"
PERSONALITIES = ("coinbaseexchange", "kraken", "coinbase")


def keys_of(personality, **changed):
    return Keys(**{**credentials(personality), **changed})


def broker_of(venue, **changed):
    made = ExchangeBroker(venue.personality, venue.url, keys_of(venue.personality, **changed))
    made.client.enableRateLimit = False
    return made


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    from cryptolstm.data import exchange
    monkeypatch.setattr(exchange, "PAUSE", 0.02)


@pytest.fixture(params=PERSONALITIES)
def venue(request):
    with Venue(request.param, {ETH: MARKET}, START) as made: yield made


@pytest.fixture
def broker(venue):
    return broker_of(venue)


@pytest.fixture
def ready(venue, broker):
    "A broker that has read the list of markets, so that only its orders meet the faults."
    broker.rules(ETH)
    venue.calls.clear()
    return broker


def orders_sent(venue):
    "The requests for new orders."
    return [c for c in venue.calls if c[0] == "POST" and c[1].split("/")[-1] in ("orders", "AddOrder")]


def an_order(venue, side=1, quantity="0.5", leg="entry", attempt=0, guard="0.01", **changed):
    bid, ask = venue.quote(ETH)
    price = ask if side > 0 else bid
    identity = order_id("main", ETH, 1737331200000, leg, attempt)
    limit = worst_price(price, side, guard, venue.rules(ETH).tick)
    return replace(Order(identity, ETH, side, Decimal(quantity), limit), **changed)


def a_stop(venue, share="0.999", **changed):
    tick, bid = venue.rules(ETH).tick, venue.quote(ETH)[0]
    stop = rounded_down(bid * Decimal(share), tick)
    limit = rounded_down(stop * Decimal("0.98"), tick)
    return an_order(venue, -1, leg="stop", **{"stop": stop, "limit": limit, **changed})


def now_ms(venue):
    return int(venue.now.timestamp() * 1000)


def bought(venue, broker, **changed):
    order = an_order(venue, **changed)
    assert broker.place(order).outcome is Outcome.ACCEPTED
    return order


# ---- orders are sent with their id, and found by it -------------------------------------------------------


def test_the_id_arrives_and_the_answer_names_the_order(venue, broker):
    order = an_order(venue)
    answer = broker.place(order)
    placed, = venue.orders
    assert placed.client == order.id and placed.immediate and placed.limit == order.limit
    assert answer.outcome is Outcome.ACCEPTED and answer.venue_order == placed.id


def test_an_order_is_found_by_its_id_when_it_is_closed(venue, broker):
    order = bought(venue, broker)
    found = broker.find(order, now_ms(venue) - 1000)
    assert (found.client, found.status, found.filled) == (order.id, "closed", order.quantity)
    assert found.venue_order == venue.orders[0].id and found.at == now_ms(venue)


def test_an_order_is_found_by_its_id_while_it_is_open(venue, broker):
    bought(venue, broker)
    stop = a_stop(venue)
    assert broker.place(stop).outcome is Outcome.ACCEPTED
    found = broker.find(stop, now_ms(venue))
    assert (found.client, found.status, found.stop, found.side) == (stop.id, "open", stop.stop, -1)
    assert broker.open_orders(ETH) == [found]


def test_an_order_that_was_never_sent_is_not_found(venue, broker):
    bought(venue, broker)
    assert broker.find(an_order(venue, leg="exit"), 0) is None


def test_an_order_is_found_behind_pages_of_others(venue, broker):
    venue.wire.page = 3
    order = bought(venue, broker, quantity="0.01")
    for k in range(8): bought(venue, broker, quantity="0.01", attempt=k + 1)
    stops = [a_stop(venue, quantity="0.01", share=f"0.9{k}") for k in range(7)]
    for k, stop in enumerate(stops):
        assert broker.place(replace(stop, id=order_id("main", ETH, 0, "stop", k))).outcome == "accepted"
    assert broker.find(order, 0).client == order.id
    assert len(broker.open_orders(ETH)) == len(stops)


def test_an_order_that_lists_show_later_is_found_later(venue, broker):
    venue.private_faults = PrivateFaults(hidden=1)
    order = bought(venue, broker)
    assert broker.find(order, 0) is None and broker.fills(ETH, 0) == []
    venue.move_to("2025-01-20 00:10:29")
    assert broker.find(order, 0) is None
    venue.move_to("2025-01-20 00:10:30")
    assert broker.find(order, 0).client == order.id and len(broker.fills(ETH, 0)) == 1


# ---- fills are facts --------------------------------------------------------------------------------------


def test_fills_carry_order_fee_and_exact_numbers(venue, broker):
    bought(venue, broker, quantity="0.123457")
    fill, = broker.fills(ETH, now_ms(venue))
    trade, = venue.trades
    assert (fill.venue_order, fill.side, fill.at) == (venue.orders[0].id, 1, now_ms(venue))
    assert (fill.quantity, fill.price, fill.fee) == (trade.quantity, trade.price, trade.fee)
    assert fill.fee_currency == "USD" and fill.trade == trade.id
    assert venue.cash("USD") == 10000 - fill.quantity * fill.price - fill.fee
    assert broker.balances() == {"USD": venue.cash("USD"), "ETH": fill.quantity}


@pytest.mark.parametrize("faults", [{}, {"duplicate": 0.7}, {"duplicate": 0.5, "disorder": 1}])
def test_fills_of_many_pages_are_read_once_each_and_in_order(venue, broker, faults):
    venue.wire.page = 4
    venue.engine.fills_per_order = 3
    for k in range(5):
        bought(venue, broker, quantity="0.03", attempt=k)
        venue.move_to(venue.now + pd.Timedelta("7min"))
    venue.private_faults = PrivateFaults(**faults)
    fills = broker.fills(ETH, 0)
    assert sorted(f.trade for f in fills) == sorted(t.id for t in venue.trades) and len(fills) == 15
    assert [f.at for f in fills] == sorted(f.at for f in fills)


def test_fills_before_the_given_time_are_left_out(venue, broker):
    bought(venue, broker)
    venue.move_to("2025-01-20 03:00")
    later = now_ms(venue)
    bought(venue, broker, attempt=1)
    assert [f.at for f in broker.fills(ETH, later)] == [later]
    assert len(broker.fills(ETH, later - 1)) == 1 and len(broker.fills(ETH, 0)) == 2


def test_fills_can_come_after_their_order(venue, broker):
    venue.private_faults = PrivateFaults(fills_late=1)
    order = bought(venue, broker)
    assert broker.fills(ETH, 0) == [] and broker.find(order, 0).filled == order.quantity
    venue.move_to("2025-01-20 00:10:30")
    assert len(broker.fills(ETH, 0)) == 1


def test_fills_can_come_before_their_order(venue, broker):
    venue.private_faults = PrivateFaults(fills_first=1)
    order = bought(venue, broker)
    assert len(broker.fills(ETH, 0)) == 1 and broker.find(order, 0) is None


def test_a_fee_in_coins_is_read_as_one():
    with Venue("coinbase", {ETH: MARKET}, START, fee_in_base=True) as venue:
        broker = broker_of(venue)
        bought(venue, broker)
        fill, = broker.fills(ETH, 0)
        assert fill.fee_currency == "ETH" and venue.cash("ETH") == fill.quantity - fill.fee
        assert broker.balances()["ETH"] == venue.cash("ETH")


def test_a_part_that_was_not_filled_is_not_bought(venue, broker):
    venue.private_faults = PrivateFaults(partial=1)
    order = bought(venue, broker)
    found = broker.find(order, 0)
    assert 0 < found.filled < order.quantity and found.status == "closed"
    assert sum(f.quantity for f in broker.fills(ETH, 0)) == found.filled == venue.cash("ETH")


def test_a_limit_that_the_price_has_left_buys_nothing(venue, broker):
    order = an_order(venue, guard="-0.01")
    assert broker.place(order).outcome is Outcome.ACCEPTED
    assert venue.orders[0].reason == "canceled" and broker.fills(ETH, 0) == []


# ---- refused is refused only by words that prove it -------------------------------------------------------


@pytest.mark.parametrize("rule", [{"min_notional": 3000}, {"min_quantity": 2}, {"step": 1}, {"tick": 1000}])
def test_rules_that_were_changed_meanwhile_refuse_the_order(venue, broker, rule):
    order = an_order(venue)
    broker.rules(ETH)
    venue.set_rules(ETH, **rule)
    answer = broker.place(order)
    assert answer.outcome is Outcome.REFUSED and "not sent" not in answer.text and venue.orders == []


def test_too_little_money_and_too_few_coins_are_refused(venue, broker):
    for order in (an_order(venue, quantity="100"), an_order(venue, -1, leg="exit")):
        answer = broker.place(order)
        assert answer.outcome is Outcome.REFUSED and "not sent" not in answer.text
    assert venue.orders == []


WRONG = {
    "coinbaseexchange": ({"key": "other"}, {"secret": "YWJjZA=="}, {"secret": "#"}, {"passphrase": "other"}),
    "kraken": ({"key": "other"}, {"secret": "YWJjZA=="}),
    "coinbase": ({"key": "other"}, {"secret": "other-secret"}),
}


def test_wrong_keys_are_refused(venue):
    for wrong in WRONG[venue.personality]:
        broker = broker_of(venue, **wrong)
        assert broker.place(an_order(venue)).outcome is Outcome.REFUSED
        with pytest.raises(OperationError): broker.balances()
    assert venue.orders == []


def test_a_nonce_that_goes_back_is_refused():
    with Venue("kraken", {ETH: MARKET}, START) as venue:
        broker = broker_of(venue)
        broker.balances()
        venue.wire.nonce *= 2
        answer = broker.place(an_order(venue))
        assert (answer.outcome, answer.text) == (Outcome.REFUSED, "EAPI:Invalid nonce")


def test_an_order_that_breaks_the_rules_is_not_sent(venue, broker):
    good = an_order(venue)
    for changed in ({"quantity": Decimal("0.00000001")}, {"limit": None}, {"side": 0}):
        order = replace(good, **changed)
        answer = broker.place(order)
        assert answer.outcome is Outcome.REFUSED and answer.text.startswith("not sent")
    assert orders_sent(venue) == []


def test_a_delisted_ticker_is_refused_and_said_to_be_delisted(venue, broker):
    bought(venue, broker)
    venue.delist(ETH)
    assert broker.place(an_order(venue, attempt=1)).outcome is Outcome.REFUSED
    with pytest.raises(InputError, match="no longer trades"): broker.rules(ETH)


def test_the_rate_limit_is_a_refusal(venue, ready):
    venue.private_faults = PrivateFaults(rate_limit=1)
    answer = ready.place(an_order(venue))
    assert answer.outcome is Outcome.REFUSED and "imit" in answer.text and venue.orders == []


@pytest.mark.parametrize("name", PERSONALITIES)
@pytest.mark.parametrize("response", [
    None,
    "",
    "<html>Bad Request</html>",
    "[]",
    "null",
    '"Insufficient funds"',
    '{"message": "Internal server error"}',
    '{"error": ["EService:Unavailable"]}',
    '{"error": ["EService:Deadline elapsed"]}',
    '{"error": ["EOrder:Duplicate client order id"]}',
    '{"error": ["EOrder:Insufficient funds", "EGeneral:Internal error"]}',
    '{"error": ["EOrder:Insufficient funds"], "result": {"txid": ["O1"]}}',
    '{"success": false, "error_response": {"error": "UNKNOWN_FAILURE_REASON"}}',
    '{"success": true, "error_response": {"error": "INSUFFICIENT_FUND"}}',
    '{"message": "Not an Insufficient funds"}',
    '{"message": "Insufficient funds',
])
def test_no_other_words_prove_a_refusal(name, response):
    assert outcome_of(VENUES[name], True, response) is Outcome.UNKNOWN


def test_words_of_one_venue_prove_nothing_at_another():
    responses = {
        "kraken": '{"error": ["EOrder:Insufficient funds"]}',
        "coinbaseexchange": '{"message": "Insufficient funds"}',
        "coinbase": '{"success": false, "error_response": {"error": "INSUFFICIENT_FUND"}}',
    }
    for name, venue in VENUES.items():
        refused = [n for n, text in responses.items() if outcome_of(venue, True, text) is Outcome.REFUSED]
        assert refused == [name]


# ---- what is lost is unknown ------------------------------------------------------------------------------


def test_a_lost_answer_is_unknown_and_the_order_is_found(venue, ready):
    venue.private_faults = PrivateFaults(lost=1)
    order = an_order(venue)
    assert ready.place(order).outcome is Outcome.UNKNOWN
    venue.private_faults = PrivateFaults()
    assert len(venue.orders) == len(orders_sent(venue)) == 1
    assert ready.find(order, 0).venue_order == venue.orders[0].id


def test_an_order_that_never_arrived_is_unknown_too(venue, ready):
    venue.private_faults = PrivateFaults(refused_lost=1)
    order = an_order(venue)
    assert ready.place(order).outcome is Outcome.UNKNOWN
    assert venue.orders == [] and len(orders_sent(venue)) == 1 and ready.find(order, 0) is None


def test_a_late_answer_is_unknown_and_nothing_is_sent_again(venue, ready):
    venue.private_faults = PrivateFaults(late=1, late_seconds=0.6)
    ready.client.timeout = 200
    assert ready.place(an_order(venue)).outcome is Outcome.UNKNOWN
    assert len(venue.orders) == len(orders_sent(venue)) == 1


def test_an_earlier_refusal_proves_nothing_about_an_order_whose_answer_is_lost(venue, ready):
    assert ready.place(an_order(venue, quantity="100")).outcome is Outcome.REFUSED
    venue.private_faults = PrivateFaults(lost=1)
    assert ready.place(an_order(venue)).outcome is Outcome.UNKNOWN and len(venue.orders) == 1


def test_an_error_page_is_unknown_whether_the_order_was_executed_or_not(venue, ready):
    venue.private_faults = PrivateFaults(seed=3, error_5xx=1)
    answers = [ready.place(an_order(venue, quantity="0.01", attempt=k)) for k in range(8)]
    assert {a.outcome for a in answers} == {Outcome.UNKNOWN}
    assert 0 < len(venue.orders) < 8 == len(orders_sent(venue))


def test_a_venue_that_is_down_leaves_the_outcome_unknown(venue, ready):
    order = an_order(venue)
    venue.stop()
    assert ready.place(order).outcome is Outcome.UNKNOWN


def test_a_redirect_is_not_followed_with_an_order(venue, ready):
    moved = []

    def redirect(request):
        moved.append(request.path)
        return Answer(b"", 307, {"Location": request.target})
    venue.private = redirect
    assert ready.place(an_order(venue)).outcome is Outcome.UNKNOWN and len(moved) == 1


def test_questions_are_asked_again_until_they_are_answered(venue, ready):
    bought(venue, ready)
    venue.private_faults = PrivateFaults(seed=5, lost_reads=0.2, error_5xx=0.2)
    for _ in range(4):
        fills, balances, orders = ready.fills(ETH, 0), ready.balances(), ready.open_orders(ETH)
        assert len(fills) == 1 and balances["ETH"] == Decimal("0.5") and orders == []
    assert venue.private_faults.told["lost_reads"] and venue.private_faults.told["error_5xx"]


def test_a_question_that_is_never_answered_is_an_error_and_not_an_empty_list(venue, ready):
    order = bought(venue, ready)
    venue.private_faults = PrivateFaults(lost_reads=1)
    for ask in (lambda: ready.find(order, 0), lambda: ready.fills(ETH, 0), lambda: ready.open_orders(ETH)):
        with pytest.raises(OperationError): ask()


# ---- the same id again ------------------------------------------------------------------------------------

DOUBLED = {"coinbaseexchange": 2, "kraken": 2, "coinbase": 1}


def test_a_blind_retry_after_a_fill_doubles_the_order_except_on_coinbase_advanced(venue, ready):
    order = an_order(venue)
    venue.private_faults = PrivateFaults(lost=1)
    assert ready.place(order).outcome is Outcome.UNKNOWN
    venue.private_faults = PrivateFaults()
    assert ready.place(order).outcome is Outcome.ACCEPTED      # what must never be done
    count = DOUBLED[venue.personality]
    assert len(venue.orders) == count and venue.cash("ETH") == count * order.quantity


def test_a_blind_retry_of_an_open_order_doubles_it_only_on_coinbase_exchange(venue, ready):
    bought(venue, ready)
    stop = a_stop(venue, quantity="0.2")
    assert ready.place(stop).outcome is Outcome.ACCEPTED
    again = ready.place(stop)
    resting = [o for o in venue.orders if o.status == "open"]
    assert len(resting) == (2 if venue.personality == "coinbaseexchange" else 1)
    # a duplicate proves that there is an order, and so it is no refusal
    assert again.outcome is (Outcome.UNKNOWN if venue.personality == "kraken" else Outcome.ACCEPTED)


# ---- stops and cancellations ------------------------------------------------------------------------------


def test_a_stop_rests_until_the_price_is_reached(venue, broker):
    bought(venue, broker)
    low = MARKET.loc["2025-01-20 01:00":"2025-01-20 19:00", "low"].min()
    level = rounded_down(Decimal(str(low)) * Decimal("1.001"), venue.rules(ETH).tick)
    stop = a_stop(venue, stop=level)
    assert broker.place(stop).outcome is Outcome.ACCEPTED
    venue.move_to("2025-01-20 20:00")
    sale = broker.fills(ETH, 0)[-1]
    assert sale.side == -1 and level * Decimal("0.999") < sale.price <= level and venue.cash("ETH") == 0
    assert broker.find(stop, 0).status == "closed" and broker.open_orders(ETH) == []
    bar = MARKET.loc[pd.Timestamp(sale.at, unit="ms", tz="UTC").floor("h")]
    assert bar["low"] <= float(level) <= bar["high"]


def crashed():
    "A market that loses a fifth at an open, and that time."
    opened = pd.Timestamp("2025-01-20 03:00", tz="UTC")
    crash = MARKET.copy()
    crash.loc[opened:, ["open", "high", "low", "close"]] *= 0.8
    return crash, opened


def test_a_stop_below_a_gap_is_filled_at_the_price_after_the_gap(venue, broker):
    crash, opened = crashed()
    with Venue(venue.personality, {ETH: crash}, START) as falling:
        broker = broker_of(falling)
        bought(falling, broker)
        stop = a_stop(falling, share="0.9", limit=Decimal(1000))
        assert broker.place(stop).outcome is Outcome.ACCEPTED
        falling.move_to("2025-01-20 03:30")
        sale = broker.fills(ETH, 0)[-1]
        assert sale.at == opened.value // 10**6
        assert sale.price == falling.engine.quote(ETH, float(crash.loc[opened, "open"]))[0] < stop.stop


def test_a_stop_whose_limit_was_jumped_over_rests_as_a_limit_order(venue):
    crash, _ = crashed()
    with Venue(venue.personality, {ETH: crash}, START) as falling:
        broker = broker_of(falling)
        bought(falling, broker)
        broker.place(a_stop(falling, share="0.9"))
        falling.move_to("2025-01-20 04:00")
        assert len(broker.open_orders(ETH)) == 1 and falling.cash("ETH") == Decimal("0.5")


def test_a_stop_holds_its_coins(venue, broker):
    bought(venue, broker)
    assert broker.place(a_stop(venue)).outcome is Outcome.ACCEPTED
    assert broker.place(an_order(venue, -1, leg="exit")).outcome is Outcome.REFUSED
    assert broker.balances()["ETH"] == Decimal("0.5")


def test_only_kraken_takes_a_stop_without_a_limit(venue, broker):
    bought(venue, broker)
    answer = broker.place(a_stop(venue, limit=None))
    assert answer.outcome is (Outcome.ACCEPTED if venue.personality == "kraken" else Outcome.REFUSED)
    assert len(broker.open_orders(ETH)) == (venue.personality == "kraken")


def test_a_stop_is_cancelled_once_and_then_already_closed(venue, broker):
    bought(venue, broker)
    stop = a_stop(venue)
    broker.place(stop)
    found = broker.find(stop, 0)
    assert broker.cancel(found).outcome is Outcome.ACCEPTED and broker.open_orders(ETH) == []
    again = broker.cancel(found)
    assert (again.outcome, again.text) == (Outcome.REFUSED, "already closed")


def test_the_cancellation_of_a_filled_order_is_already_closed(venue, broker):
    found = broker.find(bought(venue, broker), 0)
    again = broker.cancel(found)
    assert (again.outcome, again.text, again.venue_order) == (
        Outcome.REFUSED, "already closed", found.venue_order
    )


@pytest.mark.parametrize("fault", ["lost", "refused_lost", "error_5xx"])
def test_a_cancellation_without_an_answer_is_unknown(venue, broker, fault):
    bought(venue, broker)
    stop = a_stop(venue)
    broker.place(stop)
    found = broker.find(stop, 0)
    venue.private_faults = PrivateFaults(**{fault: 1})
    assert broker.cancel(found).outcome is Outcome.UNKNOWN


def test_the_dead_mans_switch_cancels_what_rests_unless_it_hears_something(venue, broker):
    if not broker.has_dead_man:
        with pytest.raises(InputError): broker.dead_man(60)
        return
    bought(venue, broker)
    broker.place(a_stop(venue, share="0.5"))
    broker.dead_man(60)
    venue.move_to("2025-01-20 00:10:50")
    broker.dead_man(60)
    venue.move_to("2025-01-20 00:11:40")
    assert len(broker.open_orders(ETH)) == 1
    venue.move_to("2025-01-20 00:11:50")
    assert broker.open_orders(ETH) == [] and venue.cash("ETH") == Decimal("0.5")
    broker.dead_man(0)


# ---- other people, rules and prices -----------------------------------------------------------------------


def test_orders_and_trades_of_other_people_are_seen(venue, broker):
    venue.trade_by_hand(ETH, 1, "0.3")
    venue.foreign_order(ETH, -1, "0.1", limit=9000, client="bot-7")
    venue.deposit("USD", 500)
    fill, = broker.fills(ETH, 0)
    order, = broker.open_orders(ETH)
    assert (fill.quantity, order.client, order.quantity) == (Decimal("0.3"), "bot-7", Decimal("0.1"))
    assert broker.balances()["USD"] == 10500 - fill.quantity * fill.price - fill.fee


def test_rules_quote_and_clock_are_those_of_the_venue(venue, broker):
    rules, expected = broker.rules(ETH), venue.rules(ETH)
    assert (rules.step, rules.tick, rules.min_quantity, rules.min_notional) == (
        expected.step, expected.tick, expected.min_quantity, expected.min_notional
    )
    assert rules.taker_fee == Decimal("0.001")
    quote = broker.quote(ETH)
    assert (quote.bid, quote.ask) == venue.quote(ETH) and quote.at == broker.clock() == now_ms(venue)
    venue.set_rules(ETH, min_notional=25)
    broker.listed = -1e9   # as if a minute had passed
    assert broker.rules(ETH).min_notional == 25


def test_the_price_runs_through_every_candle_and_the_current_candle_follows_it(venue):
    for opened, bar in MARKET.loc["2025-01-20 01:00":"2025-01-20 05:00"].iterrows():
        path = [venue.engine.path.price(ETH, opened.timestamp() + s) for s in range(0, 3600, 60)]
        assert path[0] == bar["open"] and min(path) == bar["low"] and max(path) == bar["high"]
        venue.move_to(opened + pd.Timedelta("50min"))
        current = venue._row(ETH, int(opened.timestamp()))
        assert current[:3] == [bar["open"], bar["high"], bar["low"]] and current[3] == path[50]


def test_the_venue_keeps_its_books(venue):
    rng = random.Random(7)
    for _ in range(200):
        venue.move_to(venue.now + pd.Timedelta(minutes=rng.randint(1, 90)))
        bid, quantity = venue.quote(ETH)[0], rounded_down(Decimal(rng.random()), Decimal("0.000001"))
        acts = (
            lambda q=quantity: venue.trade_by_hand(ETH, 1, q),
            lambda q=quantity: venue.trade_by_hand(ETH, -1, q),
            lambda q=quantity, p=bid: venue.foreign_order(ETH, -1, q, stop=rounded_down(p, Decimal(10))),
            lambda q=quantity, p=bid: venue.foreign_order(ETH, 1, q, limit=rounded_down(p, Decimal(10))),
            lambda: venue.engine.cancel(venue.engine.open()[0] if venue.engine.open() else None),
        )
        with contextlib.suppress(Refusal): rng.choice(acts)()
        trades = venue.trades
        assert venue.cash("ETH") == sum(t.side * t.quantity for t in trades) >= venue.engine.held("ETH")
        paid = sum(t.side * t.quantity * t.price + t.fee for t in trades)
        assert venue.cash("USD") == 10000 - paid >= venue.engine.held("USD")
    done = [o for o in venue.orders if o.status == "closed"]
    assert all(o.filled == sum(t.quantity for t in venue.trades if t.order == o.id) for o in venue.orders)
    assert {o.reason for o in done} == {"filled", "canceled"} and any(o.triggered for o in done)


def test_the_clock_of_a_venue_does_not_go_back(venue):
    with pytest.raises(ValueError): venue.now = "2025-01-19"


def test_the_engine_refuses_what_breaks_its_rules():
    with Venue("kraken", {ETH: MARKET}, START) as venue:
        for kind, changed in {
            "step": {"quantity": Decimal("0.00000001")},
            "arguments": {"quantity": Decimal(0)},
            "tick": {"limit": Decimal("3000.001")},
            "funds": {"quantity": Decimal(100)},
            "unknown_ticker": {"ticker": "ABC/USD"},
        }.items():
            order = {"ticker": ETH, "side": 1, "quantity": Decimal(1), "limit": Decimal(3000)} | changed
            with pytest.raises(Refusal) as caught: venue.engine.place(**order)
            assert caught.value.kind == kind


# ---- keys -------------------------------------------------------------------------------------------------


def everything_said(call):
    "All texts of the exceptions that a call raises, with their causes and the variables of their frames."
    try: return repr(call())
    except CryptolstmError as e:
        assert e.__cause__ is None and e.__context__ is None
        shown = traceback.TracebackException.from_exception(e, capture_locals=True)
        return f"{e} {e!r} {''.join(shown.format())}"


def test_no_key_is_in_any_exception_repr_or_log(venue, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    logging.getLogger("ccxt").setLevel(logging.DEBUG)
    keys, broker = keys_of(venue.personality), broker_of(venue)
    order = bought(venue, broker)
    said = [repr(broker), repr(keys), str(keys), repr(broker.place(an_order(venue, quantity="100")))]
    real = venue.private
    for text in (f"who is {keys.key}", f"{keys.secret} signs badly " * 9, f"{keys.passphrase or 'x'}?"):
        body = {"message": text, "error": [text] if venue.personality == "kraken" else text}
        venue.private = lambda request, body=body: Answer(body, 400)
        said += [
            repr(broker.place(an_order(venue, attempt=1))),
            everything_said(broker.balances),
            everything_said(lambda: broker.find(order, 0)),
            everything_said(lambda: broker.fills(ETH, 0)),
        ]
    venue.private = real
    venue.stop()
    said += [repr(broker.place(an_order(venue, attempt=2))), everything_said(broker.clock)]
    out, err = capfd.readouterr()
    everything = "\n".join([*said, caplog.text, out, err])
    for secret in filter(None, (keys.key, keys.secret, keys.passphrase)):
        assert secret not in everything and secret[:8] not in everything
    assert "Request" not in caplog.text   # ccxt would log the headers


def test_keys_that_coinbase_issues_today_are_accepted_and_hidden(monkeypatch):
    pytest.importorskip("cryptography")   # not on every platform
    key, pem = cloud_credentials().values()
    monkeypatch.setenv("CRYPTOLSTM_COINBASE_KEY", key)
    monkeypatch.setenv("CRYPTOLSTM_COINBASE_SECRET", pem.replace("\n", "\\n"))
    with Venue("coinbase", {ETH: MARKET}, START) as venue:
        broker = ExchangeBroker("coinbase", venue.url)
        broker.client.enableRateLimit = False
        assert broker.keys.secret == pem
        order = bought(venue, broker)
        assert broker.find(order, 0).client == order.id
        shown = broker.keys.cleaned(f"bad key {pem} or {json.dumps(pem)}, {pem[:90]}")
        assert not any(line[:8] in shown for line in pem.splitlines())
        for wrong in ({"key": key + "0"}, {"secret": cloud_credentials("another")["secret"]}):
            refused = ExchangeBroker("coinbase", venue.url, Keys(**{"key": key, "secret": pem} | wrong))
            assert refused.place(an_order(venue, attempt=1)).outcome is Outcome.REFUSED
        assert len(venue.orders) == 1


def test_keys_come_from_the_environment(venue, monkeypatch):
    with pytest.raises(InputError, match=f"CRYPTOLSTM_{venue.personality.upper()}_KEY"):
        read_keys(venue.personality)
    for name, value in venue.environment.items(): monkeypatch.setenv(name, value)
    broker = ExchangeBroker(venue.personality, venue.url)
    broker.client.enableRateLimit = False
    assert broker.balances() == {"USD": Decimal(10000)}


# ---- the venue as a program -------------------------------------------------------------------------------

TWO_CLIENTS = """
import os, sys
from decimal import Decimal
from cryptolstm.trading.broker import Order, order_id
from cryptolstm.trading.exchange_broker import ExchangeBroker
broker = ExchangeBroker(os.environ["CRYPTOLSTM_EXCHANGE"], os.environ["CRYPTOLSTM_EXCHANGE_URL"])
broker.client.enableRateLimit = False
for k in range(10):
    price = (broker.quote("ETH/USD").ask * Decimal("1.01")).quantize(broker.rules("ETH/USD").tick)
    order = Order(order_id(sys.argv[1], "ETH/USD", 0, "entry", k), "ETH/USD", 1, Decimal("0.01"), price)
    assert broker.place(order).outcome == "accepted"
"""


@pytest.mark.slow
def test_several_processes_can_trade_at_one_venue(monkeypatch):
    with Venue("coinbaseexchange", {ETH: MARKET}, START, speed=100) as venue:
        for name, value in venue.environment.items(): monkeypatch.setenv(name, value)
        jobs = [
            subprocess.Popen([sys.executable, "-c", TWO_CLIENTS, name], cwd=ROOT) for name in ("one", "two")
        ]
        assert [job.wait(120) for job in jobs] == [0, 0]
        assert len(venue.orders) == 20 and venue.cash("ETH") == Decimal("0.2")
        assert venue.cash("USD") == 10000 - sum(t.quantity * t.price + t.fee for t in venue.trades)
        assert venue.now > pd.Timestamp(START, tz="UTC")


@pytest.mark.slow
def test_the_venue_runs_as_a_program():
    command = [sys.executable, "tests/venue.py", "--personality", "kraken", "--port", "0", "--speed", "1000"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
        try:
            lines = dict(program.stdout.readline().strip().split("=", 1) for _ in range(4))
            keys = Keys(lines["CRYPTOLSTM_KRAKEN_KEY"], lines["CRYPTOLSTM_KRAKEN_SECRET"])
            broker = ExchangeBroker("kraken", lines["CRYPTOLSTM_EXCHANGE_URL"], keys)
            broker.client.enableRateLimit = False
            first = broker.clock()
            assert broker.balances() == {"USD": Decimal(10000)} and broker.clock() >= first
        finally:
            program.terminate()
