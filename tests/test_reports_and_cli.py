"""What a user types: the commands, the report, and one clear sentence for every mistake. Everything runs as its own process."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cryptolstm.features import INDICATORS

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
CLOSED = "http://127.0.0.1:9"
SPEC_KEYS = {"timestamp", "ticker", "signal", "confidence", "predicted_price", "current_price", "price_difference", "threshold", "indicators",
             "model_info"}
SMALL = {"units": "[8]", "dropout": "[0.1]", "recurrent_dropout": "[0.1]", "dense": "[8]", "epochs": "2"}
TINY = [part for name, value in SMALL.items() for part in ("--set", f"network.{name}={value}")]
SMOKE = ["--params", "params/smoke.yaml"]


def run(*command: str, home: Path, **env: str) -> subprocess.CompletedProcess:
    "A command as a user types it, in the checkout, with a home of its own."
    environment = {**os.environ, "CRYPTOLSTM_HOME": str(home), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **env}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def sentence(done: subprocess.CompletedProcess) -> str:
    "The error text on stderr, without colours and line breaks."
    assert "Traceback" not in done.stderr, done.stderr
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", "", done.stderr).split())


def test_signal_prints_every_key_of_the_spec(loopback, tmp_path):
    done = run("cryptolstm", "signal", "--ticker", "BTC/USD", "--hours", "240", "--json", "--exchange-url", loopback.url, *TINY, home=tmp_path)
    assert done.returncode == 0, done.stderr
    signal = json.loads(done.stdout)
    assert SPEC_KEYS <= set(signal)
    assert set(signal["indicators"]) == set(INDICATORS) and len(INDICATORS) == 14
    assert {"path", "last_trained", "lookback_period"} <= set(signal["model_info"])
    assert signal["signal"] in (-1, 0, 1) and signal["current_price"] > 1000 and signal["data_source"]["simulated"] is False
    assert signal["bar_close_time"].startswith("2025-04-30T23:00")
    again = run("cryptolstm", "signal", "--ticker", "BTC/USD", "--exchange-url", loopback.url, *TINY, home=tmp_path)
    assert again.returncode == 0 and "reused" in again.stdout and "BTC/USD" in again.stdout


def test_backtest_of_real_candles_gives_the_same_numbers_twice(loopback, tmp_path, real_bars):
    command = ["cryptolstm", "backtest", "--ticker", "ETH/USD", "--hours", "240", "--exchange-url", loopback.url, "--json", *SMOKE]
    first, second = (run(*command, home=tmp_path / str(k)) for k in (1, 2))
    assert first.returncode == second.returncode == 0, first.stderr
    a, b = json.loads(first.stdout), json.loads(second.stdout)
    assert a["data"]["sha256"] == b["data"]["sha256"] and not a["data"]["simulated"]
    drop = lambda r: {k: v for k, v in r.items() if k != "data"}
    assert drop(a) == drop(b)
    real = real_bars("ETH/USD")
    assert a["data"]["tested_until"].startswith("2025-04-30T23:00")
    held = a["buy_and_hold"]["final_balance"] / 100_000
    tested = real.loc[:"2025-04-30 22:00"].iloc[-240:]
    assert held == pytest.approx(tested["close"].iloc[-1] / (tested["open"].iloc[1] * 1.0002 * 1.001))


def test_report_of_real_candles_is_one_page_that_opens_offline(loopback, tmp_path, real_bars):
    real_bars("ETH/USD")
    done = run("cryptolstm", "report", "ETH/USD", *SMOKE, "--exchange-url", loopback.url, "--out", str(tmp_path / "out"), home=tmp_path)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip().splitlines()[-1])
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "out" / "eth_usd" / "backtest.html" and path.with_suffix(".ipynb").is_file()
    assert not re.search(r"https?://(?!www\.w3\.org)", page) and "<script" not in page.split("<iframe")[0]
    assert "2025-04-30 23:00 UTC" in page and "SIMULATED MARKET" not in page and "run_backtest" not in page
    assert page.count("<figure>") == 5 and "UNDERPOWERED" in page
    assert "IPKernelApp" not in done.stderr and "Unable to parse" not in done.stderr


def test_without_a_network_the_report_says_in_red_that_its_market_is_invented(tmp_path):
    done = run("cryptolstm", "report", "ETH/USD", *SMOKE, "--out", str(tmp_path / "out"), home=tmp_path, CRYPTOLSTM_EXCHANGE_URL=CLOSED)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "eth_usd" / "backtest.html").read_text(encoding="utf-8")
    assert 'class="note alarm">SIMULATED MARKET' in page
    assert "SIMULATED MARKET" in done.stderr
    assert re.search(r"UNDERPOWERED|NO SKILL", page)


def test_papermill_works_as_typed(tmp_path):
    out = tmp_path / "out.ipynb"
    net = "{units: [8], dropout: [0.1], recurrent_dropout: [0.1], dense: [8], epochs: 1, refit_epochs: 1}"
    less = {"exchange": "simulated", "hours": "120", "train_hours": "300", "lookback": "12"}
    shorter = [part for name, value in less.items() for part in ("-p", name, value)]
    done = run("papermill", "nbs/backtest.ipynb", str(out), "-p", "ticker", "ETH/USD", *shorter, "-y", f"network: {net}", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "SIMULATED MARKET" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize("command, code, says", [
    (["cryptolstm", "signal", "--ticker", "BTC/USD", "--hours", "10"], 2, "hours is 10"),
    (["cryptolstm", "signal", "--ticker", "bitcoin"], 2, "pass BASE/QUOTE"),
    (["cryptolstm", "signal", "--ticker", "BTC/USD"], 1, "cannot be reached"),
    (["cryptolstm", "signal", "--exchange", "coinbas"], 2, "coinbas"),
    (["cryptolstm", "backtest", "--hours", "10"], 2, "hours is 10"),
    (["cryptolstm", "backtest", "--fee", "-1"], 2, "fee is -1"),
    (["cryptolstm", "backtest", "--end", "soon"], 2, "ISO 8601"),
    (["cryptolstm", "backtest", "--tickr", "ETH/USD"], 2, "--tickr"),
    (["cryptolstm", "backtest", "--exchange", "coinbaseexchange"], 1, "cannot be reached"),
    (["cryptolstm", "backtest", "--set", "network.epoch=3"], 2, "did you mean epochs?"),
    (["cryptolstm", "backtest", "--params", "nowhere.yaml"], 2, "there is no parameter file"),
    (["cryptolstm", "report", "ETH/USD", "--set", "tickr=ETH/USD"], 2, "did you mean ticker?"),
    (["cryptolstm", "data", "price", "--ticker", "BTC/USD"], 1, "cannot be reached"),
    (["cryptolstm", "data", "fetch", "BTC"], 2, "pass BASE/QUOTE")])
def test_a_mistake_is_one_sentence_and_an_exit_code(command, code, says, tmp_path):
    done = run(*command, home=tmp_path, CRYPTOLSTM_EXCHANGE_URL=CLOSED)
    assert says in sentence(done)
    assert done.returncode == code and done.stdout == ""


def test_an_unknown_ticker_is_named_and_a_near_one_offered(loopback, tmp_path):
    done = run("cryptolstm", "backtest", "--ticker", "ETC/USD", "--exchange-url", loopback.url, home=tmp_path)
    assert done.returncode == 2 and "ETC/USD" in sentence(done) and "ETH/USD" in sentence(done)


def test_a_misspelt_papermill_parameter_does_not_run_the_default_ticker(tmp_path):
    out = tmp_path / "out.ipynb"
    done = run("papermill", "nbs/backtest.ipynb", str(out), "-p", "tickr", "ETH/USD", home=tmp_path)
    assert done.returncode == 1
    assert "unknown parameter tickr; did you mean ticker?" in done.stderr


def test_data_commands_over_the_loop_back(loopback, tmp_path):
    fetched = run("cryptolstm", "data", "fetch", "BTC/USD", "SOL/USD", "--hours", "700", "--json", "--exchange-url", loopback.url, home=tmp_path)
    assert fetched.returncode == 0, fetched.stderr
    assert {t: d["bars"] for t, d in json.loads(fetched.stdout).items()} == {"BTC/USD": 700, "SOL/USD": 700}
    asked = run("cryptolstm", "data", "price", "--ticker", "BTC/USD", "--json", "--exchange-url", loopback.url, home=tmp_path)
    assert json.loads(asked.stdout)["ticker"] == "BTC/USD"
