"""Answers are lost, late, wrong in order or missing; people interfere; a second program wants the same account.
The journal of the loop-back account still agrees with the venue, and no order is doubled."""
import multiprocessing
import time
from collections import Counter
from decimal import Decimal

import pandas as pd
import pytest
from trading import CAPITAL, GUARDS, QUICK, TICKERS, account_of, broker_of, market, runner_of
from venue import PrivateFaults, Venue

from cryptolstm.core.errors import OperationError
from cryptolstm.trading.guards import Guards, position_parity
from cryptolstm.trading.journal import (Journal, acts, decisions, lease, marks, order_states, position,
                                        stored_fills)
from cryptolstm.trading.reconcile import Patience, differences, explain
from cryptolstm.trading.runner import end_run, step

START = pd.Timestamp("2025-01-20 00:00:10", tz="UTC")
PERSONALITIES = ("coinbaseexchange", "kraken", "coinbase")
FAULTS = {"lost": 0.05, "refused_lost": 0.05, "late": 0.02, "hidden": 0.01, "fills_first": 0.02, "duplicate": 0.05,
          "disorder": 0.05, "lost_reads": 0.02, "error_5xx": 0.02, "rate_limit": 0.02, "partial": 0.03}


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
        venue = Venue(personality, {t: market(t) for t in tickers}, START, balances=balances or {"USD": 10_000})
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
    orders, wrong = len(venue.orders), unexplained(venue, runner)
    print(f"{personality}: {hours} h, faults {told}, {orders} orders, doubled {doubled(venue)}, wrong {wrong}")
    assert sum(told.values()) > 5
    assert not wrong and not doubled(venue)
    return runner


def test_lost_and_late_answers_leave_journal_and_venue_equal(desk):
    faulty_run(desk, "kraken", 8, 3)


@pytest.mark.slow
@pytest.mark.parametrize("personality", PERSONALITIES)
@pytest.mark.parametrize("seed", range(3))
def test_days_of_faults_leave_journal_and_venue_equal(desk, personality, seed):
    faulty_run(desk, personality, 72, seed)
