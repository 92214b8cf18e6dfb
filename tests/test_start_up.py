"""No command loads libraries that it does not need: help and input errors load none of the heavy ones, a
reused model no TensorFlow, nor does the process that only starts the notebook of a report."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEARNING = {"tensorflow", "keras", "torch", "jax"}
HEAVY = LEARNING | {
    "arch", "ccxt", "ccxt.pro", "matplotlib", "numba", "onnxruntime", "pandas", "pyarrow", "scipy",
    "scipy.signal", "seaborn", "sklearn", "statsmodels",
}
LISTING = """
import json, sys
from cryptolstm.cli.main import main
sys.argv = ["cryptolstm", *sys.argv[1:]]
try: main()
finally: sys.stderr.write("\\n" + json.dumps(sorted(sys.modules)))
"""


def run(arguments, code=LISTING, **environment):
    "Exit code, output, messages and loaded modules of a process that runs a command."
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    messages, _, modules = done.stderr.rpartition("\n")
    return done.returncode, done.stdout, messages, set(json.loads(modules))


COMMANDS = ["", "backtest", "signal", "report", "report diff", "data", "data price", "models", "verify",
            "prereg", "rank", "trade", "trade run", "trade-all", "trade status"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_no_heavy_library(command):
    code, text, messages, modules = run([*command.split(), "--help"])
    assert code == 0 and "Usage" in text and not modules & HEAVY


ERRORS = {
    "backtest --set fees=1": "did you mean fee?",
    "backtest --set network.epoch=1": "unknown network setting epoch",
    "backtest --set network.target=volatility": "pass target=return",
    "backtest --set rules.mcd=false": "unknown rule mcd",
    "backtest --ticker BTCUSD": "is not a ticker",
    "backtest --exchange coinbas": "unknown exchange coinbas",
    "backtest --grid lookback=20,40": "unknown axis lookback",
    "backtest --grid fee=0 --grid fee=1": "names fee twice",
    "backtest --placebo -1": "placebo is -1",
    "signal --set fees=1": "did you mean fee?",
    "signal --set rules.mcd=false": "unknown rule mcd",
    "signal --ticker BTCUSD": "is not a ticker",
    "signal --exchange coinbas": "unknown exchange coinbas",
    "rank BTC/USD": "1 ticker cannot be ranked",
    "rank BTC/USD --placebos 3": "placebos is 3",
    "rank BTC/USD --exchange coinbas": "unknown exchange coinbas",
    "signal --retrain-threshold -1": "retrain_threshold is -1",
    "report BTC/USD --set fees=1": "did you mean fee?",
    "report BTC/USD --set network.epoch=1": "unknown network setting epoch",
    "report BTC/USD --exchange coinbas": "unknown exchange coinbas",
    "report BTC/USD --placebo -1": "placebo is -1",
    "report BTCUSD": "is not a ticker",
    "data price --ticker BTCUSD": "is not a ticker",
    "data price --exchange coinbas": "unknown exchange coinbas",
    "data fetch ETH/USD --exchange-url http://me:secret@127.0.0.1:9": "~/.netrc",
    "data fetch ETH/USD --ticker BTC/USD": "pass one of the two",
    "models compare a b --exchange-url http://127.0.0.1/?apikey=secret": "~/.netrc",
    "backtest --set exchange_url=http://me:secret@127.0.0.1:9": "~/.netrc",
    "prereg smoke": "--hypothesis",
    "prereg smoke --hypothesis x": "end is not set",
    "prereg smok --hypothesis x": "did you mean smoke?",
    "prereg smoke --hypothesis x --set fees=1": "did you mean fee?",
    "trade BTC/USD --demo --live": "--demo is paper trading and --live is not",
    "trade BTC/USD --override-verdict": "--override-verdict is for --live",
    "trade BTC/USD --exchange simulated": "cannot be traded",
    "trade BTC/USD --exchange coinbas": "unknown exchange coinbas",
    "trade BTC/USD --live --exchange binance": "unknown exchange for trading binance; choose one of coinbase",
    "trade BTC/USD --venue kraken": "--venue is for --live",
    "trade BTC/USD --live --account mine": "--account is for paper accounts",
    "trade BTC/USD --once --metrics 9100": "--metrics serves a program that goes on",
    "trade BTC/USD --set fees=1": "did you mean fee?",
    "trade --guard daily_los=1": "did you mean daily_loss?",
    "trade --guard daily_loss=2": "daily_loss is 2",
    "trade --guard daily_loss": "--guard 'daily_loss' is not an assignment",
    "trade --ticker BTCUSD": "is not a ticker",
    "trade BTC/USD --ticker ETH/USD": "pass one ticker",
    "trade status": "no account was begun yet",
    "trade history BTCUSD": "is not a ticker",
    "trade resume": "no account was begun yet",
    "trade resolve 1 lost": "is not one of 'absent', 'closed'",
    "trade-all BTC/USD --demo --live": "--demo is paper trading and --live is not",
    "trade-all --mode demo --live": "--demo is paper trading and --live is not",
    "trade-all --guard daily_los=1": "did you mean daily_loss?",
    "trade-all BTCUSD": "is not a ticker",
    "trade-all --mode once --metrics 9100": "--metrics serves a program that goes on",
}


@pytest.mark.parametrize("command", ERRORS)
def test_an_input_error_is_found_before_heavy_libraries_are_loaded(command, tmp_path):
    code, _, messages, modules = run(command.split(), CRYPTOLSTM_HOME=str(tmp_path))
    assert code == 2 and ERRORS[command] in messages and not modules & HEAVY


SMALL = "units=[4] recurrent_dropout=[0] dropout=[0] dense=[4] epochs=1"


def test_a_reused_model_answers_without_tensorflow(loopback, tmp_path):
    command = ["signal", "--hours", "120", "--lookback", "12"]
    command += ["--exchange", "coinbaseexchange", "--exchange-url", loopback.url]
    for setting in SMALL.split(): command += ["--set", f"network.{setting}"]
    code, text, messages, modules = run(command, CRYPTOLSTM_HOME=str(tmp_path))
    assert code == 0 and "trained: there was no model yet" in text and "tensorflow" in modules, messages
    code, text, messages, modules = run(command, CRYPTOLSTM_HOME=str(tmp_path))
    assert code == 0 and "reused: " in text, messages
    assert not modules & (HEAVY - {"ccxt", "onnxruntime", "pandas", "pyarrow", "scipy"})


def test_a_price_loads_neither_statistics_nor_streams(loopback, tmp_path):
    code, text, messages, modules = run(
        ["data", "price", "--exchange", "coinbaseexchange", "--exchange-url", loopback.url],
        CRYPTOLSTM_HOME=str(tmp_path),
    )
    assert code == 0 and "BTC/USD" in text, messages
    assert not modules & (HEAVY - {"ccxt", "pandas", "pyarrow"})


PARENT = """
import json, sys
from cryptolstm.report.render import run_report
try: run_report("BTC/USD", overrides=json.loads(sys.argv[1]), out=sys.argv[2], progress=False)
finally: sys.stderr.write("\\n" + json.dumps(sorted(sys.modules)))
"""


def test_the_process_that_starts_a_report_loads_no_tensorflow(tmp_path):
    network = {"units": [4], "recurrent_dropout": [0], "dropout": [0], "dense": [4], "epochs": 1}
    settings = {"exchange": "simulated", "hours": 48, "train_hours": 200, "lookback": 12, "network": network}
    code, _, messages, modules = run(
        [json.dumps(settings), str(tmp_path)], PARENT, CRYPTOLSTM_HOME=str(tmp_path)
    )
    assert code == 0 and (tmp_path / "btc_usd" / "backtest.html").is_file(), messages
    assert not modules & (LEARNING | {"arch", "ccxt", "numba", "statsmodels"})


TRAINING = """
import hashlib, sys
import cryptolstm.core.machine as machine
if sys.argv[1] == "glibc": machine.keep_memory = bool
from cryptolstm.data.demo import demo_market
from cryptolstm.features.indicators import features
from cryptolstm.model.settings import ModelConfig
from cryptolstm.model.training import fit
shape = {"units": (8,), "recurrent_dropout": (0.2,), "dropout": (0.2,), "dense": (4,)}
bars = demo_market(700, seed=1)
bundle = fit(bars, features(bars), ModelConfig(lookback=12, epochs=2, **shape))
weights = b"".join(w.tobytes() for w in bundle.weights)
print(hashlib.sha256(weights).hexdigest())
"""


def test_memory_that_is_kept_changes_no_weight():
    digests = []
    for kind in ("kept", "glibc"):
        done = subprocess.run(
            [sys.executable, "-c", TRAINING, kind], cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        digests.append(done.stdout.split()[-1])
    assert digests[0] == digests[1] and len(digests[0]) == 64
