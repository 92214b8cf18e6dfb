"""A gateway with worker processes trades a week of many tickers at a venue that fails now and then, in
accelerated time. One worker is killed, one ticker is slow, one fails for a day. At the end, journal and venue
agree to the cent, positions are those of the backtester, and memory has not grown."""
import contextlib
import http.client
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from loopback import TICKERS, Answer
from trading import GUARDS, account_of, broker_of, decided_by, market, runner_of
from trading_figures import record
from venue import PrivateFaults, Venue

from cryptolstm.core.errors import OperationError
from cryptolstm.data import exchange
from cryptolstm.trading.guards import Guards, position_parity
from cryptolstm.trading.journal import Journal, decisions, lease, marks, order_states
from cryptolstm.trading.reconcile import Patience, differences
from cryptolstm.trading.runner import run_account, step
from cryptolstm.trading.tasks import InProcesses, Task

START = pd.Timestamp("2025-01-20 00:00:01", tz="UTC")
FIRST = int(START.timestamp() // 3600) - 1   # the first decided bar
FAULTS = {  # together 5 % of the orders and cancellations, and 5 % of the questions
    "lost": 0.015, "refused_lost": 0.015, "late": 0.005, "error_5xx": 0.01, "rate_limit": 0.01,
    "lost_reads": 0.03, "hidden": 0.01, "fills_first": 0.02, "fills_late": 0.02, "duplicate": 0.05,
    "disorder": 0.05, "partial": 0.03, "late_seconds": 1.5,
}
GATEWAY_GUARDS = Guards(**{**vars(GUARDS), "deadline": 10})


class MovableVenue(Venue):
    "A venue whose clock another process reads and moves, by GET /clock?seconds=…"
    def _route(self, path, query):
        if path != "/clock": return super()._route(path, query)
        with self.engine.lock:
            self.move_to(self.now + pd.Timedelta(seconds=float(query.get("seconds", 0))))
            return Answer({"ms": int(self.now.timestamp() * 1000)})


def clock_of(url):
    "A function that moves the clock of a venue by some seconds and returns its time, ms."
    def ask(seconds=0.0):
        line = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        with contextlib.closing(line):
            line.request("GET", f"/clock?seconds={seconds}")
            return json.loads(line.getresponse().read())["ms"]
    return ask


def decide_at_venue(run, since=None):
    "A made-up decision about the newest bar, in a worker. Some tickers have troubles."
    clock = clock_of(run.exchange_url)
    answer, k = decided_by(clock)(run, since), clock() // 3_600_000 - 1 - FIRST
    troubles = json.loads(os.environ["CRYPTOLSTM_TEST_TROUBLES"])
    if run.ticker == troubles["slow"]: time.sleep(0.3)
    if run.ticker == troubles["fails"] and troubles["from"] <= k < troubles["to"]:
        raise OperationError("its exchange does not answer")
    mark = Path(troubles["mark"])
    if run.ticker == troubles["killed"] and k == troubles["at"] and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return answer


def resident():
    "Resident memory of this process, MB."
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def gateway(wish, line):
    "Trade some hours, then one more step without faults; sends the memory at the end of each of the days."
    exchange.PAUSE, exchange.TIMEOUT = 0.02, 1.0
    from cryptolstm.trading import runner as module
    module.AGAIN = 120.0   # fewer questions than usual between two bars
    broker = broker_of(wish["venue"], wish["url"])
    broker.client.timeout = 1000
    clock, memory = clock_of(wish["url"]), {}
    account = account_of(venue=wish["venue"], tickers=wish["tickers"], guards=GATEWAY_GUARDS)
    runs = {t: run.__class__(**{**vars(run), "exchange_url": wish["url"]}) for t, run in account.runs.items()}
    account = account.__class__(**{**vars(account), "runs": runs})
    def note(rows): memory[(clock() // 3_600_000 - 1 - FIRST) // wish["day"]] = resident()
    with InProcesses(wish["workers"], 100, decide_at_venue) as decide:
        runner = runner_of(wish["folder"], broker, account, wait=lambda s: clock(max(s, 0.001)), clock=clock,
                           patience=Patience(absent=60, confirm=5))
        runner.decide, runner.on_step = decide, note
        with lease(runner.journal):
            runner.begin()
            run_account(runner, threading.Event(), steps=wish["hours"])
            line.send(memory)
            line.recv()
            step(runner)
    line.send("done")


def run_days(folder, tickers, hours, workers, troubles, personality="coinbaseexchange", seed=1, day=24):
    """Trade some hours in accelerated time. Returns what `judged` finds, the faults by kind, and the memory
    of the gateway in each day, MB."""
    troubles = {"mark": str(folder / "killed"), **troubles}
    frames = {t: market(t).drop(columns=["is_gap", "atr"]) for t in tickers}
    with MovableVenue(personality, frames, START, balances={"USD": 10_000}) as venue:
        venue.private_faults = PrivateFaults(seed=seed, **FAULTS)
        here, there = multiprocessing.Pipe()
        wish = {"venue": personality, "url": venue.url, "tickers": tickers, "folder": str(folder),
                "hours": hours, "workers": workers, "day": day}
        os.environ["CRYPTOLSTM_TEST_TROUBLES"] = json.dumps(troubles)
        process = multiprocessing.get_context("spawn").Process(target=gateway, args=(wish, there))
        process.start()
        there.close()
        try:
            memory, told = here.recv(), Counter(venue.private_faults.told)
            venue.private_faults = PrivateFaults()
            venue.move_to(venue.now + pd.Timedelta(minutes=5))
            here.send("go on")
            assert here.recv() == "done"
            process.join(30)
        finally: process.kill()
        found = judged(venue, folder, tickers)
    record(f"week at {personality}, {workers} workers", hours=hours, tickers=len(tickers),
           kills=int(Path(troubles["mark"]).exists()), faults=dict(told), orders=len(venue.orders),
           doubled=found["doubled"], lost=len(found["uncertain"]), parity=f"{found['parity']:.2%}",
           memory=" ".join(f"{memory[k]:.0f}" for k in sorted(memory)),
           **{"ledger - venue": "; ".join(found["differences"]) or "0.00"})
    return found | {"memory": memory, "faults": told}


def judged(venue, folder, tickers):
    "The books of the venue against the journal, without a word of the gateway."
    class Books:
        def balances(self): return {c: a for c, a in venue.engine.balances.items() if a}
    with Journal("account", Path(folder) / "trading.sqlite") as journal:
        marked = {t: marks(journal, t) for t in tickers}
        shares, counts = zip(*(position_parity(m) for m in marked.values()), strict=True)
        known = {s.order.id for s in order_states(journal) if s.venue_order}
        numbers = Counter(o.client for o in venue.orders if o.by == "api")
        return {
            "differences": [str(d) for d in differences(journal, Books(), tickers)],
            "uncertain": [s.order.id for s in order_states(journal) if s.uncertain],
            "doubled": sum(n - 1 for n in numbers.values()),
            "lost": sorted({o.client for o in venue.orders} ^ known),
            "parity": float(np.average(shares, weights=counts)),
            "apart": {t: [(m["bar"] - FIRST, m["side"], m["target"], m["note"]) for m in rows
                          if m["side"] != m["target"]] for t, rows in marked.items()},
            "undecided": {t: sum(d.signal is None for d in decisions(journal, t)) for t in tickers},
            "marks": {t: len(m) for t, m in marked.items()},
        }


def hang(run, since=None): time.sleep(100)


def test_a_stop_and_a_deadline_end_a_worker_that_hangs():
    task, stopped = Task("BTC/USD", None, None), threading.Event()
    for workers, name in ((InProcesses(1, 1, hang), "no decision within 1 s"),
                          (InProcesses(1, 100, hang, stopped), "it was stopped")):
        threading.Timer(1, stopped.set).start()
        with workers:
            begun = time.monotonic()
            (_, answer), = workers([task])
            assert name in str(answer) and time.monotonic() - begun < 20
        until = time.monotonic() + 10
        while multiprocessing.active_children() and time.monotonic() < until: time.sleep(0.05)
        assert not multiprocessing.active_children()


def nothing_is_wrong(found):
    return not any(found[kind] for kind in ("differences", "uncertain", "doubled", "lost"))


def test_hours_of_faults_and_a_killed_worker_leave_journal_and_venue_equal(tmp_path):
    tickers = ("BTC/USD", "ETH/USD", "SOL/USD")
    troubles = {"slow": "SOL/USD", "fails": "ETH/USD", "from": 4, "to": 6, "killed": "BTC/USD", "at": 3}
    found = run_days(tmp_path, tickers, 8, 2, troubles, day=4)
    assert nothing_is_wrong(found), found
    assert (tmp_path / "killed").exists() and sum(found["faults"].values()) > 10
    assert found["undecided"] == {"BTC/USD": 0, "ETH/USD": 2, "SOL/USD": 0}


@pytest.mark.slow
def test_a_week_of_faults_leaves_journal_and_venue_equal_and_memory_flat(tmp_path):
    slow, fails, killed = TICKERS[:3]
    troubles = {"slow": slow, "fails": fails, "from": 50, "to": 74, "killed": killed, "at": 30}
    found = run_days(tmp_path, tuple(TICKERS), 168, 4, troubles)
    assert nothing_is_wrong(found), found
    assert found["parity"] >= 0.99, found["apart"]
    assert (tmp_path / "killed").exists()
    assert found["undecided"] == {t: 24 if t == fails else 0 for t in TICKERS}
    assert found["memory"][6] < 1.05 * found["memory"][1]
