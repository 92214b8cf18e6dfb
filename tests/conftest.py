"""Fixtures for all tests: a temporary home, no exchange but the loop-back one, and recorded candles where
available."""
import atexit
import importlib.util
import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path

import pytest
from kernels import kernels, onednn
from loopback import Loopback, a_market, recorded

CLOSED = "http://127.0.0.1:9"  # nothing listens on the discard port: a client without a server fails at once
os.environ["CRYPTOLSTM_HOME"] = tempfile.mkdtemp(prefix="cryptolstm-tests-")
atexit.register(shutil.rmtree, os.environ["CRYPTOLSTM_HOME"], ignore_errors=True)
os.environ["CRYPTOLSTM_EXCHANGE_URL"] = CLOSED
os.environ.pop("CRYPTOLSTM_EXCHANGE", None)
# a shell starts background jobs with Ctrl-C ignored, and their children inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)

# a network that is trained in seconds, and a smaller one
SMALL = {
    "units": [8],
    "dropout": [0.1],
    "recurrent_dropout": [0.1],
    "dense": [8],
    "epochs": 1,
    "refit_epochs": 1,
}
TINY = {**SMALL, "units": [4], "dense": [4]}


def small_run(**settings):
    "A `RunConfig` on the demo market whose backtest takes seconds."
    from cryptolstm.core.config import RunConfig

    usual = {
        "ticker": "ETH/USD",
        "hours": 240,
        "train_hours": 400,
        "retrain_every": 240,
        "lookback": 12,
        "exchange": "simulated",
        "threshold_scale": 0,
        "network": SMALL,
    }
    return RunConfig(**{**usual, **settings})


def run_bars(run, seed: int = 2):
    "As many bars of the demo market as a run needs."
    from cryptolstm.data.demo import demo_market
    from cryptolstm.research.walkforward import bars_needed

    return demo_market(bars_needed(run), seed=seed, ticker=run.ticker)


def pytest_terminal_summary(terminalreporter):
    "Print the kind of CPU on which failures happened."
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        for name, text in {**kernels(), "oneDNN": onednn()}.items():
            terminalreporter.write_line(f"{name}: {text}")


@pytest.fixture(autouse=True)
def no_real_exchange(monkeypatch):
    "Block connections that leave this machine, in every test."
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in (
            "127.0.0.1",
            "::1",
            "localhost",
        ):
            raise ConnectionRefusedError(f"tests may not connect to {address[0]}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def client_home(tmp_path, monkeypatch):
    "An empty data folder, set in the environment as well."
    monkeypatch.setenv("CRYPTOLSTM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def loopback():
    "The loop-back exchange with the 13 tickers; its clock is half an hour into the last candle."
    with Loopback() as exchange:
        yield exchange


@pytest.fixture(scope="session")
def real_bars():
    "`real_bars(ticker, folder='coinbase')`: recorded candles; skips the test where the folder is absent."
    def load(ticker: str, folder: str = "coinbase"):
        bars = recorded(ticker, folder)
        if bars is None:
            pytest.skip(f"no recorded candles of {ticker} in {folder}")
        return bars

    return load


@pytest.fixture(scope="session")
def reference():
    "Independent implementations of the formulas, stored beside the checkout."
    path = Path(__file__).parents[2] / "shared/reference/ref_stats.py"
    if not path.exists(): pytest.skip("no reference formulas beside the checkout (../shared/reference)")
    spec = importlib.util.spec_from_file_location("ref_stats", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def exchange(monkeypatch):
    """A small exchange that lists only ETH/USD: 1000 closed bars, clock at the full hour.

    Clients retry quickly."""
    from cryptolstm.data import exchange as exchanges

    monkeypatch.setattr(exchanges, "PAUSE", 0.02)
    with Loopback({"ETH/USD": a_market()}, now="2025-02-01") as server:
        yield server


@pytest.fixture
def client(exchange, client_home):
    "A client of that exchange, without the pauses between requests."
    from cryptolstm.data.client import CryptoMarketDataClient

    made = CryptoMarketDataClient("coinbaseexchange", exchange.url)
    assert made.exchange.enableRateLimit
    made.exchange.enableRateLimit = False
    return made
