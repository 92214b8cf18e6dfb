"""`cryptolstm trade` and `trade-all` as real processes against the loop-back exchange and venue: what they
print, what they refuse, how they end, and that no key is found anywhere."""
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CLOSED
from loopback import Loopback, a_market
from test_start_up import HEAVY, LISTING
from venue import Venue
from wires import credentials

from cryptolstm.core.config import RunConfig
from cryptolstm.core.settings import declared
from cryptolstm.proof.trials import Ledger, Trial
from cryptolstm.strategy.rules import RULES
from cryptolstm.trading.journal import Journal, decisions
from cryptolstm.trading.reconcile import differences

ROOT = Path(__file__).resolve().parents[1]
START = pd.Timestamp("2025-01-20 00:00:10", tz="UTC")
NAME = "coinbaseexchange"
PLANTED = list(credentials(NAME).values())
NETWORK = {
    "units": [4], "dropout": [0], "recurrent_dropout": [0], "dense": [4], "epochs": 2, "refit_epochs": 1,
}
SETTINGS = {"train_hours": 300, "lookback": 12, "threshold_scale": 0, "initial_balance": 8000}
OPTIONS = [
    *(f"{k}={v}" for k, v in SETTINGS.items()),
    *(f"network.{k}={v}" for k, v in NETWORK.items()),
    *(f"rules.{name}=false" for name in RULES),
]
RUN = RunConfig(ticker="BTC/USD", network=NETWORK, rules=dict.fromkeys(RULES, False), **SETTINGS)
COMMAND = [sys.executable, "-c", "from cryptolstm.cli.main import main; main()"]


def rising(ticker):
    "A market that rises by about a half percent in each hour, so that every forecast is a rise."
    bars = a_market(1000, "2025-02-01", ticker).assign(is_gap=False)
    factor = np.exp(0.005 * np.arange(len(bars) + 1) - 4)
    for name, shift in (("open", 0), ("low", 0), ("high", 1), ("close", 1)):
        bars[name] *= factor[shift: shift + len(bars)]
    return bars.drop(columns="is_gap")


MARKET = {t: rising(t) for t in ("BTC/USD", "ETH/USD")}


@dataclass
class Desk:
    "A home with trained models, the exchange of the bars, and processes that run commands there."
    home: Path
    exchange: Loopback
    venue: Venue | None = None

    @property
    def environment(self):
        usual = {k: v for k, v in os.environ.items() if not k.startswith("CRYPTOLSTM_")}
        return {
            **usual, **(self.venue.environment if self.venue else {}), "CRYPTOLSTM_EXCHANGE": NAME,
            "CRYPTOLSTM_DISPLAY_ZONE": "UTC", "CRYPTOLSTM_EXCHANGE_URL": self.exchange.url,
            "CRYPTOLSTM_HOME": str(self.home),
            "CRYPTOLSTM_REPORTS": str(self.home / "reports"), "PYTHONPATH": str(ROOT),
        }

    def hour(self, k):
        self.exchange.now = START + pd.Timedelta(hours=k)
        if self.venue: self.venue.now = max(self.exchange.now, self.venue.now)

    def arguments(self, words, settings=True, live=False):
        words = words.split()
        if settings: words += [x for o in OPTIONS for x in ("--set", o)]
        return [*words, "--venue-url", self.venue.url] if live else words

    def run(self, words, settings=True, live=False, code=COMMAND, **environment):
        "Exit code, output and messages of a command; no key may be in them."
        done = subprocess.run(
            [*code, *self.arguments(words, settings, live)], capture_output=True, text=True, timeout=300,
            cwd=self.home, env={**self.environment, **environment}, stdin=subprocess.DEVNULL,
        )
        assert not planted_in(done.stdout + done.stderr)
        return done.returncode, done.stdout, done.stderr

    def json(self, words, **how):
        "The JSON that a command prints, if it succeeds."
        code, text, messages = self.run(f"{words} --json", **how)
        assert code == 0, messages
        return json.loads(text)

    @contextmanager
    def running(self, words, **environment):
        "A live command that goes on until it is ended; its messages are in the file `messages`."
        with open(self.home / "messages", "w") as messages:
            process = subprocess.Popen(
                [*COMMAND, *self.arguments(words, live=True)], cwd=self.home, stdin=subprocess.DEVNULL,
                stdout=messages, stderr=messages, env={**self.environment, **environment},
            )
            try: yield process
            finally:
                process.kill()
                process.wait()


def planted_in(text):
    "Parts of the planted keys in a text or in bytes."
    if isinstance(text, str): text = text.encode()
    return [secret for secret in PLANTED if secret[:12].encode() in text]


def children_of(process):
    "Ids of the processes that a process started."
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def until(true, seconds=60):
    "Wait until something is true."
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A home in which two workers trained a model of BTC/USD and of ETH/USD; a third ticker is not listed."
    with Loopback(MARKET, START) as exchange:
        desk = Desk(tmp_path_factory.mktemp("trained"), exchange)
        desk.first = desk.run("trade-all BTC/USD SOL/USD ETH/USD --mode once --max-workers 2")
        yield desk


@pytest.fixture
def desk(trained, tmp_path):
    "A copy of that home without accounts."
    leave = shutil.ignore_patterns("trading.sqlite*", ".*.lock", "logs", "reports")
    shutil.copytree(trained.home, tmp_path / "home", ignore=leave)
    made = Desk(tmp_path / "home", trained.exchange)
    made.hour(0)
    return made


@pytest.fixture
def live(desk):
    "The same with a venue at which it may trade."
    with Venue(NAME, MARKET, START, balances={"USD": 10_000}) as desk.venue: yield desk


def evaluated(desk, verdict):
    "Enter an evaluation of the strategy in the ledger of a home."
    config = {name: getattr(RUN, name) for name in declared(RunConfig)}
    trial = Trial("BTC/USD", NAME, "2025-01-01", "2025-01-19", "bars", config, 0.01, 400, 0.0, 3.0, 0.5)
    Ledger(desk.home).enter(trial)
    Ledger(desk.home).conclude(trial, verdict)


CONFIRMED = {"CRYPTOLSTM_LIVE": f"yes-{NAME}-BTC/USD"}
LIVE = "trade BTC/USD --live --override-verdict --guard price_guard=0.02"
LIVE_ALL = LIVE.replace("trade BTC/USD", "trade-all BTC/USD --mode parallel")


def one_sentence(messages):
    "Whether messages are one error in one line."
    lines = messages.strip().splitlines()
    return len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in messages


# -- paper

def test_a_ticker_that_fails_stops_no_other_and_the_exit_code_is_1(trained):
    code, text, messages = trained.first
    assert code == 1 and "does not list SOL/USD" in text
    assert "BTC/USD  2025-01-20 00:00  long" in text and "ETH/USD  2025-01-20 00:00  long" in text
    assert "Traceback" not in messages and "Warning" not in messages


def test_a_bar_is_decided_once_however_often_the_command_runs(desk):
    first = desk.json("trade BTC/USD --once --demo")
    assert first["signal"] == 1 and not first["repeated"]
    assert "this bar was decided before" in desk.run("trade BTC/USD --once --demo")[1]
    with Journal("paper-btc_usd", desk.home / "trading.sqlite") as journal:
        assert [d.bar for d in decisions(journal, "BTC/USD")] == [first["bar"]]


def test_hours_of_paper_trading_are_shown_and_repeat(desk):
    for k in range(2):
        desk.hour(k)
        row = desk.json("trade BTC/USD --once --demo")
    assert (row["position"], row["verdict"]) == (1, "never evaluated out of sample")
    status = desk.json("trade status", settings=False)
    assert status["tickers"][0]["side"] == 1 and status["equity"] == pytest.approx(row["equity"])
    assert status["running"] == "not running"
    orders = desk.json("trade history", settings=False)["orders"]
    assert [(o["leg"], o["side"], o["state"]) for o in orders] == [("entry", "buy", "closed")]
    parity = desk.json("trade parity", settings=False)["parity"][0]
    assert (parity["decisions"], parity["same"], parity["share"]) == (2, 2, 1.0)
    accounts = desk.json("trade accounts", settings=False)["accounts"]
    assert [a["account"] for a in accounts] == ["paper-btc_usd"]
    page = (desk.home / "reports/trading/index.html").read_text()
    assert "paper-btc_usd" in page and "never evaluated out of sample" in page


def test_a_stopped_account_enters_nothing_until_it_is_resumed(desk):
    desk.json("trade BTC/USD --once --guard deadline=50")
    assert desk.json("trade stop", settings=False)["stopped"]
    desk.hour(1)
    row = desk.json("trade BTC/USD --once")
    assert row["signal"] == 1 and row["alarms"] == ["a person stopped the account"]
    assert not desk.json("trade resume", settings=False)["stopped"]
    desk.hour(2)
    assert desk.json("trade BTC/USD --once")["alarms"] == []


def test_a_step_with_a_current_model_loads_no_learning_library(desk):
    code, _, messages = desk.run("trade BTC/USD --once", code=[sys.executable, "-c", LISTING])
    modules = set(json.loads(messages.rpartition("\n")[2]))
    needed = {"ccxt", "numba", "onnxruntime", "pandas", "pyarrow", "scipy"}
    assert code == 0 and not modules & (HEAVY - needed)


KERNEL = """
import sys, numpy as np
from cryptolstm.data.demo import demo_market
from cryptolstm.execution.simulate import simulate
bars, rng = demo_market(600, seed=3).assign(is_gap=False), np.random.default_rng(4)
signal = np.repeat(rng.integers(-1, 2, 120), 5)
more = {"slippage_range": 0.1, "borrow_rate": 0.001, "take_profit_atr": 3.0, "max_hold": 20, "lot": 0.01}
for terms in ({}, {"stop_atr": 1.0}, {"trailing_atr": 1.5}, more):
    result = simulate(bars, signal, **terms)
    print(len(result["trades"]), *map(float.hex, result["equity"]))
"""


def test_python_computes_what_machine_code_computes():
    results = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", KERNEL], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **more},
        ).stdout
        for more in ({}, {"NUMBA_DISABLE_JIT": "1"})
    ]
    assert results[0] == results[1] and len(results[0].splitlines()) == 4


BAD = {
    "trade BTCUSD --once": "is not a ticker",
    "trade BTC/USD --once --demo --live": "--demo is paper trading",
    "trade BTC/USD --once --override-verdict": "is for --live",
    "trade BTC/USD --once --guard daily_los=0.1": "did you mean daily_loss?",
    "trade BTC/USD --once --guard daily_loss=2": "daily_loss is 2",
    "trade BTC/USD --once --exchange simulated": "cannot be traded",
    "trade BTC/USD --once --set end=2025-01-01": "end is set",
    "trade BTC/USD --once --set fees=1": "did you mean fee?",
    "trade status": "no account was begun yet",
    "trade stop": "no account was begun yet",
    "trade-all BTC/USD ETHUSD --mode once": "is not a ticker",
    "trade BTC/USD --live --venue binance --once": "unknown exchange for trading",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(words, tmp_path):
    desk = Desk(tmp_path, type("Closed", (), {"url": CLOSED}))
    code, _, messages = desk.run(words, settings=False)
    assert code == 2 and BAD[words] in messages and one_sentence(messages)
    assert not (tmp_path / "trading.sqlite").exists()


# -- live

def test_live_trading_is_refused_without_keys(desk):
    code, _, messages = desk.run("trade BTC/USD --live --once", **CONFIRMED)
    assert code == 2 and one_sentence(messages) and "CRYPTOLSTM_COINBASEEXCHANGE_KEY" in messages


def test_live_trading_is_refused_without_evaluation_skill_or_confirmation(live):
    code, _, messages = live.run("trade BTC/USD --live --once", live=True, **CONFIRMED)
    assert code == 2 and "never evaluated out of sample" in messages and one_sentence(messages)
    evaluated(live, "NO SKILL")
    code, _, messages = live.run("trade BTC/USD --live --once", live=True, **CONFIRMED)
    assert code == 2 and "NO SKILL" in messages and one_sentence(messages)
    code, _, messages = live.run("trade BTC/USD --live --once --override-verdict", live=True)
    assert code == 2 and CONFIRMED["CRYPTOLSTM_LIVE"] in messages and one_sentence(messages)
    code, _, messages = live.run("trade BTC/USD --live --once --override-verdict", live=True,
                                 CRYPTOLSTM_LIVE=f"yes-{NAME}-ETH/USD")
    assert code == 2 and one_sentence(messages)
    assert not live.venue.orders and not (live.home / "trading.sqlite").exists()


def account_name(home):
    db = sqlite3.connect(home / "trading.sqlite")
    try: return db.execute("select account from accounts").fetchone()[0]
    finally: db.close()


def unexplained(desk):
    "Differences between the journal of the live account and the books of the venue."
    class Books:
        def balances(self): return {c: a for c, a in desk.venue.engine.balances.items() if a}
    with Journal(account_name(desk.home), desk.home / "trading.sqlite") as journal:
        return differences(journal, Books(), ["BTC/USD"])


def resting(venue): return [o for o in venue.orders if o.stop is not None and o.status == "open"]


def test_a_live_step_buys_and_protects_and_the_books_agree(live):
    evaluated(live, "NO SKILL")
    row = live.json(f"{LIVE} --once", live=True, **CONFIRMED)
    assert row["position"] == 1 and row["verdict"].startswith("NO SKILL")
    assert [(o.side, o.status, o.stop is None) for o in live.venue.orders] == [
        (1, "closed", True), (-1, "open", False)]
    live.hour(1)
    assert live.json(f"{LIVE} --once", live=True, **CONFIRMED)["position"] == 1
    assert len(live.venue.orders) == 2 and not unexplained(live)
    assert live.venue.cash("BTC") > 0
    live.run("trade stop --flatten", settings=False)
    live.hour(2)
    assert live.json(f"{LIVE} --once", live=True, **CONFIRMED)["position"] == 0
    assert live.venue.cash("BTC") == 0 and not resting(live.venue) and not unexplained(live)


def test_a_program_that_is_asked_to_end_does_so_within_seconds_and_leaves_the_stop_loss(live):
    evaluated(live, "NO SKILL")
    with live.running(LIVE_ALL, CRYPTOLSTM_LIVE=f"yes-{NAME}-all") as process:
        until(lambda: resting(live.venue))
        lines = [Path(f"/proc/{n}/cmdline").read_bytes() for n in (process.pid, *children_of(process))]
        assert len(lines) > 1 and not any(map(planted_in, lines))
        assert not [n for n in children_of(process) if planted_in(Path(f"/proc/{n}/environ").read_bytes())]
        code, _, messages = live.run(f"{LIVE} --once", live=True, **CONFIRMED)
        assert code == 1 and f"is traded by process {process.pid} on" in messages and one_sentence(messages)
        assert f"process {process.pid}" in live.json("trade status", settings=False)["running"]
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert time.monotonic() - begun < 10
    assert len(resting(live.venue)) == 1 and not unexplained(live)
    assert live.json("trade status", settings=False)["running"] == "not running"


@pytest.mark.slow
def test_a_killed_program_starts_again_where_it_was(live):
    evaluated(live, "NO SKILL")
    with live.running(LIVE, **CONFIRMED) as process:
        until(lambda: resting(live.venue))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert live.json(f"{LIVE} --once", live=True, **CONFIRMED)["repeated"]
    live.hour(1)
    row = live.json(f"{LIVE} --once", live=True, **CONFIRMED)
    assert not row["repeated"] and row["position"] == 1
    assert len(live.venue.orders) == 2 and not unexplained(live)


@pytest.mark.slow
def test_workers_end_with_a_gateway_that_was_killed(desk):
    with subprocess.Popen(
        [*COMMAND, *desk.arguments("trade-all BTC/USD ETH/USD --mode parallel --max-workers 2")],
        cwd=desk.home, env=desk.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:
        journal = desk.home / "trading.sqlite"
        def decided():
            with Journal("paper-all", journal) as j: return len(decisions(j, "ETH/USD"))
        until(lambda: journal.exists() and decided())
        children = children_of(process)
        process.kill()
    assert len(children) >= 2
    until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 10)


# -- secrets

BUG = """
import sys, traceback
from cryptolstm.cli.main import app
from cryptolstm.trading import runner
def bug(*_): raise RuntimeError("a bug")
runner.step = bug
try: app()
except RuntimeError as e: traceback.TracebackException.from_exception(e, capture_locals=True).print()
"""


def test_a_planted_key_is_found_nowhere(live):
    evaluated(live, "NO SKILL")
    code = [sys.executable, "-c", BUG]
    _, _, messages = live.run(f"{LIVE} --once", live=True, code=code, **CONFIRMED)
    assert "RuntimeError: a bug" in messages and "broker = ExchangeBroker" in messages
    live.venue.private_faults.lost = live.venue.private_faults.lost_reads = 0.2
    live.run(f"{LIVE} --once", live=True, **CONFIRMED)
    live.venue.stop()
    code, _, messages = live.run(f"{LIVE} --once", live=True, **CONFIRMED)
    assert code == 1 and one_sentence(messages)
    live.run("trade status", settings=False)
    files = [p for p in live.home.rglob("*") if p.is_file()]
    assert {"trading.sqlite", "index.html"} <= {p.name for p in files}
    assert any("logs" in p.parts for p in files)
    assert not [p for p in files if planted_in(p.read_bytes())]
