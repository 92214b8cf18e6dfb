"""Answers are lost, late, wrong in order or missing; people interfere; a second program wants the same
account. The journal of the loop-back account still agrees with the venue, and no order is doubled."""
import multiprocessing
import threading
import time
from collections import Counter
from decimal import Decimal

import pandas as pd
import pytest
from trading import GUARDS, TICKERS, account_of, broker_of, market, runner_of
from trading_figures import record
from venue import PrivateFaults, Venue

from cryptolstm.core.errors import InputError, OperationError
from cryptolstm.trading.broker import Answer, Outcome
from cryptolstm.trading.guards import Guards, position_parity
from cryptolstm.trading.journal import (Journal, acts, add_act, decisions, lease, marks, order_states,
                                        position, stored_fills)
from cryptolstm.trading.live_orders import protect, resting_stops, unfinished
from cryptolstm.trading.reconcile import Patience, differences, explain
from cryptolstm.trading.runner import end_run, run_account, step

START = pd.Timestamp("2025-01-20 00:00:10", tz="UTC")
PERSONALITIES = ("coinbaseexchange", "kraken", "coinbase")
FAULTS = {
    "lost": 0.05, "refused_lost": 0.05, "late": 0.02, "hidden": 0.01, "fills_first": 0.02, "fills_late": 0.02,
    "duplicate": 0.05, "disorder": 0.05, "lost_reads": 0.02, "error_5xx": 0.02, "rate_limit": 0.02,
    "partial": 0.03,
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    from cryptolstm.data import exchange
    monkeypatch.setattr(exchange, "PAUSE", 0.02)
    monkeypatch.setattr(exchange, "TIMEOUT", 1.0)


@pytest.fixture
def desk(tmp_path):
    "Makes a venue and a runner of an account there; waiting moves the clock of the venue."
    opened = []

    def make(personality="kraken", faults=None, balances=None, signal=None, tickers=TICKERS, **account):
        frames = {t: market(t) for t in tickers}
        venue = Venue(personality, frames, START, balances=balances or {"USD": 10_000})
        opened.append(venue.__enter__())
        venue.private_faults = PrivateFaults(**(faults or {}))
        broker = broker_of(personality, venue.url)
        broker.client.timeout = 1000
        from trading import decided_by
        decide = decided_by(broker.clock, *([signal] if signal else []))
        runner = runner_of(
            tmp_path, broker, account_of(venue=personality, tickers=tickers, **account), decide,
            wait=lambda seconds: venue.move_to(venue.now + pd.Timedelta(seconds=max(seconds, 0.001))),
            patience=Patience(absent=60, confirm=5),
        )
        runner.begin()
        return venue, runner
    yield make
    for venue in opened: venue.stop()


def at_hour(venue, k): venue.move_to(max(START + pd.Timedelta(hours=k), venue.now))


def unexplained(venue, runner):
    "What is wrong at the end: differences with the venue's books, and orders of unknown fate."
    venue.private_faults = PrivateFaults()
    venue.move_to(venue.now + pd.Timedelta(minutes=5))
    step(runner)
    base = [t.split("/")[0] for t in runner.account.tickers]
    held = {b: position(runner.journal, f"{b}/USD") for b in base}
    wrong = [str(d) for d in differences(runner.journal, runner.broker, runner.account.tickers)]
    wrong += [b for b in base if venue.cash(b) != held[b]]
    return wrong + [s.order.id for s in order_states(runner.journal) if s.uncertain]


def doubled(venue):
    "Client ids with more than one order, and legs of an hour in which more was bought than once."
    count = Counter(o.client for o in venue.orders if o.by == "api")
    return [name for name, n in count.items() if n > 1]


def faulty_run(desk, personality, hours, seed):
    venue, runner = desk(personality, {**FAULTS, "seed": seed, "late_seconds": 1.5})
    for k in range(hours):
        at_hour(venue, k)
        step(runner)
    told = dict(venue.private_faults.told)
    wrong, pairs = unexplained(venue, runner), [m for t in TICKERS for m in marks(runner.journal, t)]
    known = {s.order.id for s in order_states(runner.journal) if s.venue_order}
    lost = {o.client for o in venue.orders} ^ known
    record(f"faults at {personality}", hours=hours, tickers=len(TICKERS), faults=told,
           orders=len(venue.orders), doubled=len(doubled(venue)), lost=len(lost),
           parity=f"{position_parity(pairs)[0]:.2%}", **{"ledger - venue": "; ".join(wrong) or "0.00"})
    assert sum(told.values()) > 5
    assert not wrong and not doubled(venue) and not lost
    return runner


def test_lost_and_late_answers_leave_journal_and_venue_equal(desk):
    faulty_run(desk, "kraken", 8, 3)


@pytest.mark.slow
@pytest.mark.parametrize("personality", PERSONALITIES)
@pytest.mark.parametrize("seed", range(3))
def test_days_of_faults_leave_journal_and_venue_equal(desk, personality, seed):
    faulty_run(desk, personality, 72, seed)


def always(side): return lambda ticker, bar: side


def test_a_sale_by_hand_stops_the_ticker_until_a_person_explains_it(desk):
    venue, runner = desk(signal=always(1), stop_atr=None)   # a resting stop would hold the coins
    step(runner)
    venue.trade_by_hand("ETH/USD", -1, Decimal("0.2"))
    at_hour(venue, 1)
    rows = {row["ticker"]: row for row in step(runner)}
    assert "not traded: a difference is not explained (ETH:" in rows["ETH/USD"]["done"]
    assert "(-0.200000)" in rows["ETH/USD"]["done"]
    orders = len(venue.orders)
    assert explain(runner.journal, runner.broker, "ETH/USD", "adopt")
    at_hour(venue, 2)
    rows = {row["ticker"]: row for row in step(runner)}
    assert not rows["ETH/USD"]["done"].startswith("not traded")
    assert position(runner.journal, "ETH/USD") == venue.cash("ETH")
    assert len(venue.orders) == orders and acts(runner.journal, "adopt")


def test_a_deposit_stops_entries_and_not_exits(desk):
    signals = {"BTC/USD": [1, 0, 0, 0], "ETH/USD": [0, 0, 1, 1]}
    first = int(START.timestamp() // 3600) - 1
    venue, runner = desk(signal=lambda ticker, bar: signals[ticker][min(bar - first, 3)])
    step(runner)
    venue.deposit("USD", 500)
    at_hour(venue, 1)
    assert {row["ticker"]: row["done"] for row in step(runner)}["BTC/USD"] == "closed"
    at_hour(venue, 2)
    row = next(row for row in step(runner) if row["ticker"] == "ETH/USD")
    assert any("USD: the journal says" in text for text in row["alarms"]) and row["target"] == 0
    assert position(runner.journal, "ETH/USD") == 0


def test_a_foreign_order_is_left_alone(desk):
    venue, runner = desk(signal=always(1))
    order = venue.foreign_order("ETH/USD", 1, Decimal("0.1"), limit=Decimal("100"))
    for k in range(3):
        at_hour(venue, k)
        step(runner)
    end_run(runner, flatten=True)
    assert order.status == "open" and venue.cash("BTC") == 0


def test_a_delisted_ticker_stops_no_other(desk):
    venue, runner = desk(signal=always(1))
    step(runner)
    venue.delist("ETH/USD")
    runner.broker.listed = -1e9   # as if a minute had passed
    at_hour(venue, 1)
    rows = {row["ticker"]: row for row in step(runner)}
    assert rows["BTC/USD"]["bar"] is not None and "stop-loss rests" in rows["BTC/USD"]["done"]
    assert "no longer trades ETH/USD" in str(rows["ETH/USD"])


def test_a_fee_in_coins_is_part_of_the_position(desk, tmp_path):
    with Venue("coinbase", {t: market(t) for t in TICKERS}, START, fee_in_base=True) as venue:
        broker = broker_of("coinbase", venue.url)
        from trading import decided_by
        first = int(START.timestamp() // 3600) - 1
        decide = decided_by(broker.clock, lambda ticker, bar: int(bar < first + 2))
        runner = runner_of(tmp_path, broker, account_of(venue="coinbase"), decide,
                           wait=lambda s: venue.move_to(venue.now + pd.Timedelta(seconds=s)))
        runner.begin()
        for k in range(3):
            at_hour(venue, k)
            step(runner)
            assert not differences(runner.journal, broker, TICKERS)
        assert any(f.fee_currency == "ETH" for f in stored_fills(runner.journal, "ETH/USD"))
        assert venue.cash("ETH") < venue.rules("ETH/USD").step


def test_a_smallest_order_that_grew_after_the_decision_is_a_refusal(desk):
    venue, runner = desk(signal=always(1))
    venue.set_rules("ETH/USD", min_notional=Decimal("1000000"))
    runner.broker.rules("BTC/USD")
    rows = {row["ticker"]: row for row in step(runner)}
    assert rows["ETH/USD"]["position"] == 0 and rows["BTC/USD"]["position"] == 1
    assert not unexplained(venue, runner)


def hold(folder, ready):
    with Journal("account", folder / "trading.sqlite") as journal, lease(journal):
        ready.set()
        time.sleep(60)


def test_a_second_runner_of_an_account_is_refused_with_the_holder(desk, tmp_path):
    venue, runner = desk()
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=hold, args=(tmp_path, ready), daemon=True)
    holder.start()
    assert ready.wait(30)
    names = f"process {holder.pid} on .*started 0 min ago"
    with pytest.raises(OperationError, match=names), lease(runner.journal): pass
    holder.kill()
    holder.join()
    with lease(runner.journal): pass   # a lock dies with its holder


@pytest.mark.parametrize("guard, names", [
    (Guards(daily_loss=0.001, max_drawdown=0.9, price_guard=0.02, deadline=50), "since midnight"),
    (Guards(daily_loss=0.9, max_drawdown=0.001, price_guard=0.02, deadline=50), "below its highest"),
    (Guards(daily_loss=0.9, max_drawdown=0.9, orders_per_day=1, price_guard=0.02, deadline=50),
     "orders were sent"),
])
def test_a_guard_stops_entries_at_the_venue(desk, guard, names):
    venue, runner = desk(guards=guard)
    texts = []
    for k in range(30):
        at_hour(venue, k)
        texts += [text for row in step(runner) for text in row.get("alarms", [])]
    assert any(names in text for text in texts)
    calm = desk(guards=GUARDS, name="calm")
    for k in range(30):
        at_hour(calm[0], k)
        step(calm[1])
    assert len(venue.orders) < len(calm[0].orders)


def test_a_stop_by_a_person_closes_positions_and_enters_none(desk):
    from cryptolstm.trading.journal import add_act
    venue, runner = desk(signal=always(1))
    step(runner)
    assert venue.cash("BTC") > 0
    add_act(runner.journal, "stop", {"flatten": True})
    at_hour(venue, 1)
    step(runner)
    assert venue.cash("BTC") == venue.cash("ETH") == 0
    at_hour(venue, 2)
    step(runner)
    assert venue.cash("BTC") == 0 and not [o for o in venue.orders if o.status == "open"]


def test_a_resting_stop_is_filled_while_the_program_is_down(desk):
    venue, runner = desk(signal=always(1), stop_atr=0.1)
    step(runner)
    held = venue.cash("BTC")
    at_hour(venue, 10)
    assert held > 0 and venue.cash("BTC") == 0
    step(runner)
    legs = [(s.leg, s.state) for s in order_states(runner.journal, "BTC/USD")]
    assert ("stop", "closed") in legs and not unexplained(venue, runner)


def test_bars_missed_while_asleep_are_not_traded(desk):
    venue, runner = desk(signal=always(1))
    at_hour(venue, 0)
    step(runner)
    at_hour(venue, 9)
    row = step(runner)[0]
    made = decisions(runner.journal, "BTC/USD")
    assert [d.bar - made[0].bar for d in made] == [0, 9] and row["position"] == 1
    share, n = position_parity(marks(runner.journal, "BTC/USD"))
    assert (share, n) == (1.0, 2)


def until(hours):
    "A signal of 1 in the first hours, then 0."
    first = int(START.timestamp() // 3600) - 1
    return lambda ticker, bar: int(bar < first + hours)


def test_coins_that_a_stop_sold_are_not_sold_again_while_its_fills_are_not_listed(desk):
    venue, runner = desk(signal=until(3), stop_atr=0.1, balances={"USD": 10_000, "BTC": 5, "ETH": 5})
    step(runner)
    venue.private_faults = PrivateFaults(fills_late=1.0, hidden_seconds=90)
    for k in range(1, 6):
        at_hour(venue, k)
        step(runner)
    assert any(s.leg == "stop" and s.venue_order for s in order_states(runner.journal))
    assert venue.cash("BTC") == 5 and venue.cash("ETH") == 5


def test_a_cancellation_that_takes_its_time_is_waited_for(desk):
    venue, runner = desk(signal=until(1), tickers=("BTC/USD",))
    step(runner)
    cancel, wait, asked = runner.broker.cancel, runner.wait, []
    runner.broker.cancel = lambda order: (asked.append(order), Answer(Outcome.ACCEPTED, order.venue_order))[1]

    def later(seconds):
        wait(seconds)
        if asked: cancel(asked.pop())
    runner.wait = later
    at_hour(venue, 1)
    row = step(runner)[0]
    assert row["done"] == "closed" and not row["unfinished"] and venue.cash("BTC") == 0


def test_a_stop_loss_that_does_not_fit_the_position_is_replaced(desk):
    venue, runner = desk(signal=always(1), tickers=("BTC/USD",))
    step(runner)
    live = runner.live("BTC/USD")
    (old,) = resting_stops(live)
    # a person adopts more coins: the stop covers a part only
    venue.deposit("BTC", Decimal("0.01"))
    explain(runner.journal, runner.broker, "BTC/USD", "adopt")
    assert protect(live, 1).startswith("a stop-loss rests at the venue")
    (new,) = resting_stops(live)
    assert new.order.quantity == old.order.quantity + Decimal("0.01")
    assert [o.quantity for o in venue.orders if o.status == "open"] == [new.order.quantity]


def test_no_stop_loss_is_left_without_a_position(desk):
    venue, runner = desk(signal=always(1), tickers=("BTC/USD",), balances={"USD": 10_000, "BTC": 1})
    step(runner)
    live = runner.live("BTC/USD")
    amount = -position(runner.journal, "BTC/USD")   # a person says that the coins are not the strategy's
    add_act(runner.journal, "adopt", {"currency": "BTC", "amount": str(amount)}, "BTC/USD")
    assert unfinished(live, 1.0, 0) == "a stop-loss rests without a position"
    assert protect(live, 1) == "" and not [o for o in venue.orders if o.status == "open"]


def test_an_exit_that_the_venue_refuses_is_made_within_minutes_of_its_return(desk):
    venue, runner = desk(signal=until(2), tickers=("BTC/USD",))
    rest = runner.wait

    def moving(seconds):
        rest(seconds)
        silent = pd.Timedelta(minutes=110) <= venue.now - START < pd.Timedelta(minutes=145)
        venue.private_faults = PrivateFaults(error_5xx=1.0 if silent else 0.0)
    runner.wait = runner.rest = moving
    run_account(runner, threading.Event(), steps=4)
    sold = [pd.Timestamp(f.at, unit="ms", tz="UTC") for f in stored_fills(runner.journal) if f.side < 0]
    assert len(sold) == 1 and not unexplained(venue, runner)
    assert pd.Timedelta(minutes=145) <= sold[0] - START < pd.Timedelta(minutes=150)


def test_the_end_of_a_run_says_what_it_could_not_sell_and_protects_it(desk):
    venue, runner = desk(signal=always(1), tickers=("BTC/USD",))
    step(runner)
    runner.broker.place, place = (
        lambda order: Answer(Outcome.REFUSED, None, "cancel only") if order.stop is None else place(order)
    ), runner.broker.place
    with pytest.raises(OperationError, match="BTC/USD is not sold .*cancel only.*a stop-loss rests"):
        end_run(runner, flatten=True)
    assert [o.stop is not None for o in venue.orders if o.status == "open"] == [True]


def test_a_stop_by_a_person_after_the_decision_prevents_the_entry(desk):
    venue, runner = desk(signal=always(1), tickers=("BTC/USD",))
    place, runner.broker.place = runner.broker.place, lambda order: Answer(Outcome.REFUSED, None, "busy")
    runner.wait = lambda seconds: None
    step(runner)
    add_act(runner.journal, "stop", {})
    runner.broker.place = place
    step(runner)
    assert not venue.orders


def test_a_live_account_cannot_have_more_capital_than_the_venue_holds(tmp_path):
    with Venue("kraken", {t: market(t) for t in TICKERS}, START, balances={"USD": 100}) as venue:
        runner = runner_of(tmp_path, broker_of("kraken", venue.url), account_of(venue="kraken"))
        with pytest.raises(InputError, match="kraken holds 100.00.* USD; pass an initial_balance"):
            runner.begin()


def test_the_tickers_of_an_account_have_one_quote_currency():
    with pytest.raises(InputError, match="quoted in BTC and USD"):
        account_of(tickers=("BTC/USD", "ETH/BTC"))


def test_a_setting_that_a_later_version_adds_leaves_the_account_usable(tmp_path):
    with Journal("account", tmp_path / "trading.sqlite") as journal:
        settings = account_of().settings()
        old = {**settings, "tickers": {t: {k: v for k, v in s.items() if k != "max_leverage"}
                                       for t, s in settings["tickers"].items()}}
        journal.begin(old)
        journal.begin(settings, {}, account_of().defaults().settings())
        for settings_of in settings["tickers"].values(): settings_of["max_leverage"] = 2.0
        with pytest.raises(InputError, match="max_leverage 1"):
            journal.begin(settings, {}, account_of().defaults().settings())


def test_a_dead_mans_switch_that_a_step_could_outlast_is_refused():
    with pytest.raises(InputError, match="pass more than that"): Guards(dead_man=5, deadline=10)
def test_an_entry_that_never_reached_the_venue_is_made_up_for_in_the_same_bar(desk):
    venue, runner = desk(signal=always(1))
    venue.private_faults, wait = PrivateFaults(refused_lost=1.0), runner.wait

    def calm(seconds):
        venue.private_faults = PrivateFaults()
        wait(seconds)
    runner.wait = calm
    assert [row["position"] for row in step(runner)] == [1, 1]
    entries = [s.state for s in order_states(runner.journal, "BTC/USD") if s.leg == "entry"]
    assert entries == ["absent", "closed"] and not doubled(venue) and not unexplained(venue, runner)
    assert [m["side"] for m in marks(runner.journal, "BTC/USD")] == [1]
