"""The examples of the two original documents, word for word but for the names of modules and scripts.

What an example leaves open is small: one training of a small network on 1,000 hours."""
import re
import shlex
from contextlib import redirect_stdout
from functools import partial
from io import StringIO

import pytest
from conftest import SMALL
from loopback import Loopback
from typer.testing import CliRunner

import cryptolstm
from cryptolstm.cli.main import app
from cryptolstm.cli.terminal import build_run

SIGNAL = """
from cryptolstm import SignalGenerator

sg = SignalGenerator(ticker='BTC/USD', lookback=60)
signals = sg.generate_signals(hours=240)
print(f"Signal: {signals['signal']}, Confidence: {signals['confidence']}")
"""
BACKTEST = """
from cryptolstm import SignalGenerator
from cryptolstm import Backtester

sg = SignalGenerator(ticker='ETH/USD')
backtester = Backtester(sg, hours=720, initial_balance=50000)
results = backtester.run(verbose=True)
print(f"Total Return: {results['total_return']*100:.2f}%")
"""
TIMEFRAMES = """
# Short-term signals
short_signals = sg.generate_signals(hours=48, retrain_threshold=6)

# Medium-term signals
medium_signals = sg.generate_signals(hours=240, retrain_threshold=24)

# Long-term backtest
long_backtest = backtester.run(hours=2160)  # 90 days
"""
COMMANDS = """
cryptolstm signal --ticker BTC/USD --hours 240
cryptolstm backtest --ticker BTC/USD --hours 720
cryptolstm signal --ticker ETH/USD --hours 720 --lookback 168 --retrain-threshold 12
cryptolstm signal --ticker AAVE/USD --hours 480 --lookback 60
cryptolstm backtest --ticker ETH/USD --hours 1440 --initial-balance 50000 --fee 0.0015
cryptolstm backtest --ticker BTC/USD --hours 2160 --initial-balance 100000
cryptolstm backtest --ticker ETH/USD --hours 720 --initial-balance 10000
cryptolstm signal --ticker BTC/USD --hours 240 --lookback 60
cryptolstm trade --ticker BTC/USD --once
cryptolstm trade-all --mode once --max-workers 4
""".strip().splitlines()
OPEN = {"train_hours": 1000, "retrain_every": 2160, "network": SMALL}


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    "An exchange, an empty data folder, and small settings where an example leaves them open."
    with Loopback() as exchange, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRYPTOLSTM_EXCHANGE_URL", exchange.url)
        patch.setenv("CRYPTOLSTM_HOME", str(tmp_path_factory.mktemp("home")))
        small = partial(cryptolstm.SignalGenerator, **OPEN)
        patch.setattr(cryptolstm, "SignalGenerator", small, raising=False)
        opened = [f"{name}={value}" for name, value in OPEN.items()]
        for command in ("signal", "research", "trade"):
            patch.setattr(
                f"cryptolstm.cli.{command}.build_run",
                lambda params, given, *more: build_run(params, [*opened, *(given or [])], *more),
            )
        yield exchange


def executed(text: str, names: dict) -> dict:
    "The variables after an example."
    exec(text, names)
    return names


def test_basic_signal_generation(market, capsys):
    signals = executed(SIGNAL, {})["signals"]
    printed = capsys.readouterr().out
    assert re.fullmatch(r"Signal: (-1|0|1), Confidence: (None|0\.\d+)\n", printed), printed
    assert signals["ticker"] == "BTC/USD" and signals["model_info"]["lookback_period"] == 60
    assert signals["data_source"]["simulated"] is False


@pytest.fixture(scope="module")
def backtested(market):
    "The variables after the backtest of the documents, and what it printed."
    with redirect_stdout(StringIO()) as printed: names = executed(BACKTEST, {})
    return names, printed.getvalue()


def test_comprehensive_backtesting_prints_trade_by_trade(backtested):
    names, printed = backtested
    results, lines = names["results"], printed.splitlines()
    assert lines[-1] == f"Total Return: {results['total_return'] * 100:.2f}%"
    assert results["bars"].shape[0] == 720 and results["initial_balance"] == 50_000
    n = len(results["trades"])
    assert lines[0] == "no trades" if not n else lines[0].startswith(f"{n} trade")


def test_multi_timeframe_analysis(backtested):
    names = executed(TIMEFRAMES, dict(backtested[0]))
    short, medium = names["short_signals"], names["medium_signals"]
    assert short["ticker"] == medium["ticker"] == "ETH/USD"
    assert {short["signal"], medium["signal"]} <= {-1, 0, 1}
    assert len(names["long_backtest"]["bars"]) == 2160


EVERY = [
    pytest.param(text, marks=pytest.mark.slow if k else (), id=text)
    for k, text in enumerate(COMMANDS)
]


@pytest.mark.parametrize("text", EVERY)
def test_a_command_of_the_documents_runs(market, text):
    done = CliRunner().invoke(app, shlex.split(text)[1:])
    assert done.exit_code == 0, done.exception
    ticker = re.search("--ticker ([A-Z/]+)|$", text)[1] or "BTC/USD"
    assert re.search(f"^{ticker}", done.stdout, re.M) and "SIMULATED" not in done.stderr
