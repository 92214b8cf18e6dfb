"""What the tests of trading share: decisions that are made up, and an account that trades them at the
loop-back venue through real ccxt.

As a program it is a nursery: it loads everything once, then forks a process for each line of JSON on stdin,
so that a process that trades can be killed hundreds of times at the price of one start."""
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from loopback import a_market

from cryptolstm.core.config import RunConfig
from cryptolstm.core.volatility import average_true_range
from cryptolstm.data import exchange
from cryptolstm.proof.trials import Ledger
from cryptolstm.trading.exchange_broker import ExchangeBroker
from cryptolstm.trading.guards import Guards
from cryptolstm.trading.journal import Journal, lease
from cryptolstm.data.store import hour_number
from cryptolstm.trading.paper import bar_rows
from cryptolstm.trading.reconcile import Patience
from cryptolstm.trading.runner import Runner, step
from cryptolstm.trading.tasks import Account, in_this_process
from cryptolstm.trading.venues import Keys
from wires import credentials

TICKERS = ("BTC/USD", "ETH/USD")
HOURS, END = 1000, "2025-02-01"
QUICK = Patience(absent=1.0, confirm=0.3)
GUARDS = Guards(daily_loss=0.9, max_drawdown=0.9, orders_per_day=1000, price_guard=0.02, deadline=50)
CAPITAL = 8000.0
_MARKETS: dict = {}


def market(ticker):
    "Bars of a ticker, with the ATR, the same in every process."
    if ticker not in _MARKETS:
        bars = a_market(HOURS, END, ticker).assign(is_gap=False)
        _MARKETS[ticker] = bars.assign(atr=average_true_range(bars))
    return _MARKETS[ticker]


def signal_of(ticker, bar, share=0.45):
    "A made-up signal: it changes every few hours and is 1 in a share of them."
    block = f"{ticker} {(bar + len(ticker)) // 3}"
    return int(hashlib.sha256(block.encode()).digest()[0] < 256 * share)


def decided_by(clock, signal=signal_of):
    "A function that decides like `decide_bar`, from the bars that are closed by a clock (ms)."
    def decide(run, since=None):
        bars = market(run.ticker)
        bars = bars[bars.index < pd.Timestamp(clock() // 3_600_000 * 3_600_000, unit="ms", tz="UTC")]
        newest, last = hour_number(bars.index[-1]), bars.iloc[-1]
        first = newest if since is None else since
        return {
            "bar": newest,
            "rows": [row for row in bar_rows(bars.iloc[-500:]) if row[0] >= first],
            "signal": signal(run.ticker, newest),
            "close": float(last["close"]),
            "atr": float(last["atr"]),
            "sigma": 0.006,
            "market": "kraken",
            "simulated": False,
            "n_features": 20,
            "reason": "made up",
        }
    return decide


def broker_of(venue, url, pace=False):
    made = ExchangeBroker(venue, url, Keys(**credentials(venue)))
    made.client.enableRateLimit = pace
    return made


def account_of(name="account", tickers=TICKERS, venue="kraken", guards=GUARDS, **orders):
    runs = {t: RunConfig(ticker=t, exchange="kraken", initial_balance=CAPITAL, **orders) for t in tickers}
    return Account(name, runs, guards, True, venue)


def runner_of(folder, broker, account, decide=None, wait=time.sleep, patience=QUICK, clock=None):
    "A runner of an account in the journal of a folder. Without a broker it is a paper account."
    clock = clock or broker.clock
    decide = decide or decided_by(clock)
    return Runner(
        account, Journal(account.name, Path(folder) / "trading.sqlite"), broker,
        lambda tasks: in_this_process(tasks, decide), clock, wait, wait, patience, ledger=Ledger(folder),
    )


class Killed:
    """Counts what a process does to its journal and its venue, and kills it before or after one of these: the
    one of a number, or the first of a name."""

    def __init__(self, at=None):
        self.at, self.count, self.names = at, 0, []

    def point(self, name):
        self.names.append(name)
        if self.at in (self.count, name): os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    def around(self, call, name):
        def called(*args, **more):
            self.point(f"before {name(*args)}")
            result = call(*args, **more)
            self.point(f"after {name(*args)}")
            return result
        return called

    def watch(self, runner):
        "Instrument a runner: every statement that changes its journal, every request that changes its venue."
        db, killed = runner.journal.db, self

        class Watched:
            def __getattr__(self, name): return getattr(db, name)

            def execute(self, line, *values):
                word = " ".join(line.split()[:3])
                if not line.startswith(("insert", "commit", "begin")): return db.execute(line, *values)
                return killed.around(db.execute, lambda *_: word)(line, *values)

        runner.journal.db = Watched()
        broker = runner.broker
        broker.place = self.around(broker.place, lambda order: f"placing {'stop' if order.stop else 'order'}")
        broker.cancel = self.around(broker.cancel, lambda order: "cancelling")


def one_step(wish):
    "Do one step of an account, as a process that may be killed."
    broker = broker_of(wish["venue"], wish["url"])
    runner = runner_of(wish["folder"], broker, account_of(venue=wish["venue"]))
    killed = Killed(wish.get("at"))
    killed.watch(runner)
    with lease(runner.journal):
        runner.begin()
        rows = step(runner)
    return {"rows": rows, "points": killed.names}


def nursery():
    warm = runner_of(tempfile.mkdtemp(), None, account_of(venue=None), clock=lambda: 1_737_331_210_000)
    warm.begin()
    step(warm)   # loads the machine code
    for line in sys.stdin:
        wish = json.loads(line)
        read, write = os.pipe()
        if not (child := os.fork()):
            os.close(read)
            with os.fdopen(write, "w") as out:
                json.dump(one_step(wish), out, default=str)
            os._exit(0)
        os.close(write)
        if "kill_after" in wish:
            time.sleep(wish["kill_after"])
            os.kill(child, signal.SIGKILL)
        with os.fdopen(read) as told: text = told.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = json.loads(text) if text and not status else None
        print(json.dumps({"status": status, "said": said}), flush=True)


class Nursery:
    "Processes that do one step each; a context manager."
    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parent}"},
        )
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(120)

    def step(self, **wish):
        "Exit status (-9 = killed) and what the process said."
        self.process.stdin.write(json.dumps(wish, default=str) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["status"], answer["said"]


if __name__ == "__main__":
    exchange.PAUSE = 0.02
    nursery()
