"""The user interface: the commands, the report, and one clear sentence for every mistake.

Successful commands run in a separate process."""
import html
import json
import os
import re
from signal import SIGINT
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import yaml
from loopback import Loopback
from papermill import inspect_notebook
from typer.testing import CliRunner

from cryptolstm.core.errors import InputError
from cryptolstm.core.config import QUICK, RunConfig, run_config, run_from_namespace
from cryptolstm.core.settings import declared
from cryptolstm.features.indicators import INDICATORS
from cryptolstm.proof.verdict import Level
from cryptolstm.report.backtest_page import SECTIONS
from cryptolstm.report.figures import DETAILS, FIGURES, MONTHS
from cryptolstm.report.manifest import split
from cryptolstm.report.render import Report, report_parameters
from cryptolstm.cli.research import print_backtest
from cryptolstm.cli.terminal import build_run
from cryptolstm.cli.main import app, main

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
CLOSED = "http://127.0.0.1:9"
SPEC_KEYS = {
    "timestamp",
    "ticker",
    "signal",
    "confidence",
    "predicted_price",
    "current_price",
    "price_difference",
    "threshold",
    "indicators",
    "model_info",
}
SMALL = {"units": "[8]", "dropout": "[0.1]", "recurrent_dropout": "[0.1]", "dense": "[8]", "epochs": "2"}
TINY = [part for name, value in SMALL.items() for part in ("--set", f"network.{name}={value}")]
SMOKE = ["--params", "params/smoke.yaml"]


def run(*command: str, home: Path, **env: str) -> subprocess.CompletedProcess:
    "A command as a user types it, in the checkout, with a temporary home."
    environment = {
        **os.environ,
        "CRYPTOLSTM_HOME": str(home),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        **env,
    }
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """The entry point of a command in this process, which has loaded the libraries; no exchange can be
    reached."""
    def call(*command: str) -> subprocess.CompletedProcess:
        monkeypatch.chdir(ROOT)
        monkeypatch.setenv("CRYPTOLSTM_HOME", str(tmp_path))
        monkeypatch.setenv("CRYPTOLSTM_EXCHANGE_URL", CLOSED)
        monkeypatch.setattr(sys, "argv", list(command))
        with pytest.raises(SystemExit) as end: main()
        return subprocess.CompletedProcess(command, end.value.code, *capsys.readouterr())

    return call


def sentence(done: subprocess.CompletedProcess) -> str:
    "The error text on stderr, without colours and line breaks."
    assert "Traceback" not in done.stderr, done.stderr
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", "", done.stderr).split())


def test_signal_prints_every_key_of_the_spec(loopback, typed, tmp_path):
    done = run(
        "cryptolstm",
        "signal",
        "--ticker",
        "BTC/USD",
        "--hours",
        "240",
        "--json",
        "--exchange-url",
        loopback.url,
        *TINY,
        home=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert SPEC_KEYS <= set(said)
    assert set(said["indicators"]) == set(INDICATORS) and len(INDICATORS) >= 14
    assert {"path", "last_trained", "lookback_period"} <= set(said["model_info"])
    assert (
        said["signal"] in (-1, 0, 1)
        and said["current_price"] > 1000
        and said["data_source"]["simulated"] is False
    )
    assert said["bar_close_time"].startswith("2025-04-30T23:00")
    again = typed("cryptolstm", "signal", "--ticker", "BTC/USD", "--exchange-url", loopback.url, *TINY)
    assert again.returncode == 0 and "reused" in again.stdout and "BTC/USD" in again.stdout


def test_backtest_of_real_candles_gives_the_same_numbers_twice(loopback, typed, tmp_path, real_bars):
    "In a separate process, and in this one, where other networks may have been trained before."
    command = [
        "cryptolstm",
        "backtest",
        "--ticker",
        "ETH/USD",
        "--hours",
        "240",
        "--exchange-url",
        loopback.url,
        "--json",
        *SMOKE,
    ]
    first, second = run(*command, home=tmp_path / "other"), typed(*command)
    assert first.returncode == second.returncode == 0, first.stderr
    a, b = json.loads(first.stdout), json.loads(second.stdout)
    assert a["data"]["sha256"] == b["data"]["sha256"] and not a["data"]["simulated"]
    def drop(r):
        return {k: v for k, v in r.items() if k != "data"}
    assert drop(a) == drop(b)
    real = real_bars("ETH/USD")
    assert a["data"]["tested_until"].startswith("2025-04-30T23:00")
    held = a["buy_and_hold"]["final_balance"] / 100_000
    tested = real.loc[:"2025-04-30 22:00"].iloc[-240:]
    assert held == pytest.approx(tested["close"].iloc[-1] / (tested["open"].iloc[1] * 1.0002 * 1.001))


ASKED = {"short_volume": "above", "entry": "cost", "fee": 2e-3, "exit": "opposite"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """`make report` of recorded candles with test settings: the folder, the address of the exchange, the
    finished command and the page."""
    home = tmp_path_factory.mktemp("report")
    with Loopback() as exchange:
        asked = {
            **yaml.safe_load((ROOT / "params" / "smoke.yaml").read_text()),
            **ASKED,
            "exchange_url": exchange.url,
        }
        (home / "asked.yaml").write_text(yaml.safe_dump(asked))
        outer = {"MAKELEVEL": "", "MAKEFLAGS": ""}   # the tests themselves run under make
        done = run(
            "make",
            "report",
            f"PARAMS={home / 'asked.yaml'}",
            home=home,
            CRYPTOLSTM_REPORTS=str(home / "out"),
            **outer,
        )
    assert done.returncode == 0, done.stderr
    return home, exchange.url, done, (home / "out" / "eth_usd" / "backtest.html").read_text(encoding="utf-8")


def test_report_of_real_candles_is_one_page_that_opens_offline(finished, real_bars):
    real_bars("ETH/USD")
    home, url, done, page = finished
    verdict, *paths = done.stdout.strip().splitlines()[-3:]
    kept, newest = map(Path, paths)
    assert "Clark-West" in verdict and newest == home / "out" / "eth_usd" / "backtest.html"
    assert kept.parent.parent == newest.parent and kept.read_bytes() == newest.read_bytes()
    assert kept.with_suffix(".ipynb").read_bytes() == newest.with_suffix(".ipynb").read_bytes()
    # the address is shown, but not linked
    text = re.sub(r"<script>.*?</script>", "", page, flags=re.S)   # the licence of the charts names addresses
    assert set(re.findall(r"https?://(?!www\.w3\.org)[^ <\"]*", text)) == {url} and f'="{url}' not in page
    outside = re.sub(r"<iframe.*?</iframe>", "", page, flags=re.S)
    blocks = re.findall(r"<script([^>]*)>", outside)   # data, two scripts, data
    assert [re.sub(".* id=", "", block) for block in blocks] == ['"series"', "", "", '"manifest"']
    assert "2025-04-30 23:00 UTC" in page and "SIMULATED MARKET" not in page and "run_backtest" not in page
    assert page.count("<figure>") == 6 and "UNDERPOWERED" in page
    assert "IPKernelApp" not in done.stderr and "Unable to parse" not in done.stderr


def test_a_page_shows_every_figure_the_months_and_when_it_fell(finished):
    page = html.unescape(finished[3])
    rows = {
        row[0]: row[1:]
        for row in (re.findall(r"<td[^>]*>(.*?)</td>", line) for line in re.findall(r"<tr>(.*?)</tr>", page))
        if len(row) == 4
    }
    dropped = {label for label, _, _ in (*FIGURES, *DETAILS)} - set(rows)
    assert dropped <= {"annual return", "Calmar"}, dropped   # no account has them in a test of a month
    blank = {"–", '<span title="undefined">–</span>'}
    assert not any(set(row) <= blank for row in rows.values())
    assert (
        re.fullmatch(r"[\d,.]+", rows["turnover, times the account"][0])
        and "Maximum drawdown: " not in page   # it never traded
        and [m for m in MONTHS if f">{m}</th>" in page] == ["Apr"]
    )


def test_the_notebook_has_the_sections_of_the_table_in_page_order(finished):
    cells = json.loads((ROOT / "nbs" / "backtest.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(c["source"]) for c in cells]
    heads = [k for k, text in enumerate(sources) if text.startswith("## ")]
    assert [sources[k].splitlines()[0].removeprefix("## ") for k in heads] == list(SECTIONS)
    assert [sources[k + 1] for k in heads] == [f'section(results, "{name}")' for name in SECTIONS]
    shown = [html.unescape(text) for text in re.findall(r"<h2>(.*?)</h2>", finished[3])]
    assert shown == [*SECTIONS, "Manifest"]


def test_a_negative_number_on_a_page_has_a_true_minus_sign_and_no_space_before_percent(finished):
    "Dates, identifiers and the manifest keep their hyphens."
    shown = html.unescape(re.sub(r"<(script|style|iframe).*?</\1>|<[^>]+>", "\n", finished[3], flags=re.S))
    assert not re.findall(r"^-\d.*$", shown, re.M) and not re.findall(r"\d %", shown)
    assert re.search(r"^−\d+\.\d+%$", shown, re.M) and "2025-04-30 23:00 UTC" in shown
    assert re.search(r'": -\d', json.dumps(split(finished[3])[1]))


CODES = [*((level.value, level.exit_code) for level in Level), (Level.NOT_SIGNIFICANT.after(37), 3)]


@pytest.mark.parametrize("level, code", CODES)
def test_the_gate_of_a_report_is_its_verdict(level, code, typed, monkeypatch, tmp_path):
    found = Report(
        tmp_path / "x.html",
        tmp_path / "x.ipynb",
        {"verdict": {"level": level, "sentence": "said"}, "data": {}},
    )
    monkeypatch.setattr("cryptolstm.report.render.run_report", lambda *a, **k: found)
    for command in (
        ["report", "ETH/USD"],
        ["report", "ETH/USD", "--json"],
        ["backtest", "--ticker", "ETH/USD", "--report", "--json"],
    ):
        assert (
            typed("cryptolstm", *command, "--gate").returncode == code
            and typed("cryptolstm", *command).returncode == 0
        )


def test_the_gate_of_a_backtest_is_its_verdict(typed):
    done = typed(
        "cryptolstm", "backtest", "--exchange", "simulated", *SMOKE, "--set", "hours=96", "--json", "--gate"
    )
    assert (
        json.loads(done.stdout)["verdict"]["level"] == "UNDERPOWERED"
        and done.returncode == Level.UNDERPOWERED.exit_code == 6
    )


QUICKER = ["--quick", *TINY[:-2], "--set", "lookback=12", "--set", "hours=96"]


def test_a_quick_look_has_the_network_of_the_spec_and_the_settings_of_its_file():
    given = yaml.safe_load((ROOT / "params" / "quick.yaml").read_text(encoding="utf-8"))
    assert given == QUICK and set(QUICK["network"]) == {"epochs", "refit_epochs"}
    run = build_run(None, ["fee=0.002"], {"hours": 96}, quick=True)
    assert run == replace(run_config(QUICK), fee=0.002, hours=96)
    plan = subprocess.run(["make", "-n", "report", "QUICK=1"], cwd=ROOT, capture_output=True, text=True)
    assert "cryptolstm report --quick " in plan.stdout


def test_every_output_of_a_quick_look_says_so(typed, tmp_path, capsys):
    done = typed("cryptolstm", "backtest", "ETH/USD", "--exchange", "simulated", *QUICKER, "--json")
    result = json.loads(done.stdout)
    assert result["data"]["quick"].startswith("Quick look: at most 3 epochs")
    print_backtest(result)
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].endswith("(quick look)") and result["data"]["quick"] in shown
    done = typed("cryptolstm", "report", "ETH/USD", *QUICKER, "--out", str(tmp_path / "out"))
    assert done.stdout.startswith("Quick look: ")
    page = (tmp_path / "out" / "eth_usd" / "backtest.html").read_text(encoding="utf-8")
    assert "(quick look)</span></h1>" in page and 'class="note warn">Quick look: ' in page
    assert split(page)[1]["data"]["quick"] == result["data"]["quick"]


def test_a_report_reuses_the_forecasts_of_a_backtest_and_its_page_can_be_verified(typed, tmp_path):
    "Its progress line goes through the process of the notebook, and is complete once, at the end."
    same = ["--exchange", "simulated", *SMOKE, "--set", "hours=96", "--set", "ticker=ETH/USD"]
    trained = json.loads(typed("cryptolstm", "backtest", *same, "--json").stdout)
    done = typed("cryptolstm", "report", "ETH/USD", *same, "--out", str(tmp_path / "out"))
    assert re.search(r"^Forecasts of .* UTC, reused; --fresh trains again\.$", done.stdout, re.M)
    shares = [int(share) for share in re.findall(r"(\d+)%\|", done.stderr)]
    assert shares.count(100) == 1 and shares[-1] == 100 and "leak certificate" in done.stderr
    text = (tmp_path / "out" / "eth_usd" / "backtest.html").read_text(encoding="utf-8")
    manifest = split(text)[1]
    assert manifest["data"]["forecasts_from"] and " UTC reused</td>" in text
    assert manifest["skill"] == trained["skill"] and manifest["verdict"] == trained["verdict"]
    found = typed("cryptolstm", "verify", str(tmp_path / "out" / "eth_usd" / "backtest.html"), "--json")
    assert json.loads(found.stdout)["outcome"] == "holds", found.stdout


def test_without_a_network_the_report_says_in_red_that_its_market_is_simulated(typed, tmp_path):
    done = typed("cryptolstm", "report", "ETH/USD", *SMOKE, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "eth_usd" / "backtest.html").read_text(encoding="utf-8")
    assert 'class="note alarm">SIMULATED MARKET' in page
    assert "SIMULATED MARKET" in done.stderr
    assert re.search(r"UNDERPOWERED|NO SKILL", page)


@pytest.mark.parametrize("command, code, says", [
    (["cryptolstm", "signal", "--ticker", "BTC/USD", "--hours", "10"], 2, "hours is 10"),
    (["cryptolstm", "signal", "--ticker", "bitcoin"], 2, "pass BASE/QUOTE"),
    (["cryptolstm", "signal", "--ticker", "BTC/USD"], 1, "cannot be reached"),
    (["cryptolstm", "signal", "--exchange", "coinbas"], 2, "coinbas"),
    (["cryptolstm", "backtest", "--hours", "10"], 2, "hours is 10"),
    (["cryptolstm", "backtest", "--fee", "-1"], 2, "fee is -1"),
    (["cryptolstm", "backtest", "--grid", "fee=0,0.001", "--gate"], 2,
     "--gate ends with the code of one verdict and --grid gives none"),
    (["cryptolstm", "backtest", "--end", "soon"], 2, "ISO 8601"),
    (["cryptolstm", "backtest", "--tickr", "ETH/USD"], 2, "--tickr"),
    (["cryptolstm", "backtest", "--exchange", "coinbaseexchange"], 1, "cannot be reached"),
    (["cryptolstm", "backtest", "--set", "network.epoch=3"], 2, "did you mean epochs?"),
    (["cryptolstm", "backtest", "--params", "nowhere.yaml"], 2, "there is no parameter file"),
    (["cryptolstm", "report", "ETH/USD", "--set", "tickr=ETH/USD"], 2, "did you mean ticker?"),
    (["cryptolstm", "backtest", "--set", "network=5", "--set", "network.epochs=3"], 2,
     "pass one of its settings"),
    (["cryptolstm", "report", "ETH/USD", "--set", "network=5"], 2, "pass one of its settings"),
    (["cryptolstm", "signal", "--set", "hours=500"], 2, "pass --hours"),
    (["cryptolstm", "backtest", "--params", "params/"], 2, "unknown parameter file params; choose one of"),
    (["cryptolstm", "data", "price", "--ticker", "BTC/USD"], 1, "cannot be reached"),
    (["cryptolstm", "data", "fetch", "BTC"], 2, "pass BASE/QUOTE")])
def test_a_mistake_is_one_sentence_and_an_exit_code(command, code, says, typed):
    done = typed(*command)
    assert says in sentence(done)
    assert done.returncode == code and done.stdout == ""


@pytest.mark.parametrize("command, code, says", [
    (["cryptolstm", "backtest", "--tickr", "ETH/USD"], 2, "--tickr"),
    (["cryptolstm", "signal", "--ticker", "bitcoin"], 2, "pass BASE/QUOTE"),
    (["cryptolstm", "data", "price", "--ticker", "BTC/USD"], 1, "cannot be reached")])
def test_a_mistake_ends_the_process_with_the_same_sentence_and_code(command, code, says, typed, tmp_path):
    done, here = run(*command, home=tmp_path, CRYPTOLSTM_EXCHANGE_URL=CLOSED), typed(*command)
    assert says in sentence(done) and says in sentence(here)
    assert done.returncode == here.returncode == code and done.stdout == ""


ODD = [
    "=3",
    "",
    "fee",
    "network.=3",
    "network.epochs.x=1",
    "fee.x=1",
    "network=[1]",
    "network={1: 2}",
    "network.units=8",
    "network.epochs=many",
    "network={units: {a: 1}}",
    "hours=abc",
    "hours=[1]",
    "hours={a: 1}",
    "hours=null",
    "hours=.inf",
    "fee=.nan",
    "fee=true",
    "ticker=5",
    "ticker=null",
    "end=2025-13-45",
    "end=[1]",
    "end=true",
    "exchange=3",
    "exchange=null",
    "exchange_url=7",
    "entry=[1]",
    "entry=null",
    "fee=[1",
    "fee=!!python/name:os.system",
    "__class__=3",
    "seed=-1",
    "sizing=fraction=2",
    "nonsense=1",
]
ODD_FILES = [
    b"- a\n- b\n",
    b"5",
    b"hours: [1]\n",
    b"network: 5\n",
    b"network: null\n",
    b"ticker: \xfcber/USD\n",
    b"a: b: c\n",
    b"\x00",
    b"hours: 2025-13-45\n",
    b"fees: 1\n",
    b"network: {epoch: 3}\n",
    b"1: 2\n",
    b"hours: &a [*a]\n",
]


@pytest.mark.parametrize("odd", ODD)
def test_no_odd_setting_shows_a_traceback(odd, tmp_path, monkeypatch):
    """In one process for speed: every exception is one of our errors, says what to pass, and is raised before
    any bar is fetched."""
    monkeypatch.chdir(ROOT)
    for command in (
        ["backtest", "--set", odd],
        ["signal", "--set", odd],
        ["report", "ETH/USD", "--set", odd],
    ):
        done = CliRunner().invoke(app, command)
        assert (
            isinstance(done.exception, InputError)
            and "; " in str(done.exception)
            and "\n" not in str(done.exception)
        ), (command, done.exception)


@pytest.mark.parametrize("content", ODD_FILES)
def test_no_odd_parameter_file_shows_a_traceback(content, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (file := tmp_path / "odd.yaml").write_bytes(content)
    for command in ("backtest", "signal", "report ETH/USD"):
        done = CliRunner().invoke(app, [*command.split(), "--params", str(file)])
        assert isinstance(done.exception, InputError) and "\n" not in str(done.exception), (
            command,
            done.exception,
        )


def test_settings_join_the_network_of_a_file(tmp_path, monkeypatch):
    "`--set network.epochs=3` changes one setting; the file's other network settings stay, for every command."
    monkeypatch.chdir(ROOT)
    (file := tmp_path / "run.yaml").write_text(
        "end: 2025-03-01\nnetwork: {units: [8], dropout: [0.1], recurrent_dropout: [0.1], epochs: 5}\n"
    )
    (empty := tmp_path / "empty.yaml").write_text("")
    joined = {"units": [8], "dropout": [0.1], "recurrent_dropout": [0.1], "epochs": 3}
    assert (
        build_run(file, ["network.epochs=3"], {}).network
        == build_run(file, ["network={epochs: 3}"], {}).network
        == joined
    )
    assert build_run(file, ["network.epochs=4", "network.epochs=3"], {"hours": 99}).hours == 99
    assert build_run(empty, None, {}) == build_run(None, [], {}) == RunConfig()
    injected = report_parameters("SOL/USD", file, {"network": {"epochs": 3}})
    assert (
        injected["network"] == joined
        and injected["ticker"] == "SOL/USD"
        and injected["end"] == "2025-03-01T00:00:00+00:00"
    )
    assert report_parameters("ETH/USD", file)["network"]["epochs"] == 5


def test_backtest_says_market_span_and_what_the_bars_lack(loopback, typed):
    done = typed(
        "cryptolstm", "backtest", "--exchange-url", loopback.url, *SMOKE, "--set", "train_hours=30000"
    )
    assert done.returncode == 0, done.stderr
    said = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert f"coinbaseexchange at {loopback.url}" in said["market"] and "2 times" in said["trained"]
    assert re.search(
        r"2025-04-20 23:00 to 2025-04-30 23:00 UTC, 240 hours, all out of sample", said["tested"]
    )
    notes = [line for line in done.stdout.splitlines() if line.startswith("  note")]
    assert (
        len(notes) == 4
        and "bars of ETH/USD asked for" in notes[0]
        and "will be asked for again" in notes[1]
        and "10 days are too few" in notes[3]
    )
    assert re.search(r"Trained on [\d,]+ of the 30,000 hours", notes[2])
    assert (
        max(map(len, done.stdout[: done.stdout.index("  market")].splitlines()[2:])) <= 80
        and "bet against the last bar" in done.stdout
    )


def test_signal_says_why_and_from_which_market(loopback, typed):
    ask = ["cryptolstm", "signal", "--ticker", "ETH/USD", "--exchange-url", loopback.url, *SMOKE, "--set"]
    assert typed(*ask, "hours=500").returncode == 2
    done = typed(*ask, "threshold_scale=0", "--json")
    assert (
        json.loads(done.stdout)["model_info"]["windows"] < 240
    ), "a parameter file's hours are bars of a backtest"
    done = typed(*ask, "threshold_scale=0")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (
        re.match(r"ETH/USD  (HOLD|LONG|SHORT)$", lines[0])
        and lines[1].split()[0] == "why"
        and "the forecast is beyond the threshold" in lines[1]
    )
    assert any(line.startswith("  market      coinbaseexchange") for line in lines) and any(
        "note" in line and "underpowered" in line for line in lines
    )


OTHER = {
    "ticker": "SOL/USD",
    "end": "2025-03-01T00:00:00+00:00",
    "exchange": "kraken",
    "exchange_url": "http://127.0.0.1:1",
    "sizing": "fraction",
    "sizing_volatility": "trailing",
    "exceed": "distribution",
    "timeframe": "4h",
    "entry": "cost",
    "short_volume": "above",
    "exit": "opposite",
    "max_hold": 50,
    "rules": {"macd": False},
    "network": {"epochs": 2},
    "pool": ["BTC/USD", "ETH/USD"],
    "features": "json:loads",
    "features_mode": "instead",
    "forecaster": "json:loads",
    "forecaster_args": {"alpha": 10},
    "decide": "json:loads",
}


def test_every_setting_of_a_run_reaches_its_page():
    """The notebook's run equals the one requested, field by field; IPython's names (exit, quit, open) shadow
    none of its parameters."""
    usual, known = RunConfig(), declared(RunConfig)
    for field in fields(RunConfig):
        if field.name == "source": continue   # found from the files of the others
        low, high = known[field.name].low, known[field.name].high
        other = OTHER[field.name] if field.name in OTHER else (low + high) // 2 or (low + high) / 2
        asked = {**asdict(usual), field.name: other} | (
            {"size": 0.5, "sizing": "fraction"} if field.name in ("size", "max_leverage") else {}
        )
        injected = {
            "In": [],
            "Out": {},
            "exit": exit,
            "quit": quit,
            "open": open,
            "_": 3,
            **{k: "" if v is None else v for k, v in asked.items()},
        }
        assert run_from_namespace(injected) == run_config(asked), field.name
    for notebook in ("backtest", "signal"):
        known = inspect_notebook(str(ROOT / "nbs" / f"{notebook}.ipynb"))
        besides = {"placebo", "fresh"}
        assert notebook == "signal" or set(known) == {f.name for f in fields(RunConfig)} | besides


def test_a_page_states_the_settings_of_its_run(finished):
    page = re.sub(r"<script.*?</script>|<iframe.*?</iframe>", "", finished[3], flags=re.S)
    _, manifest = split(finished[3])
    asked = {"short_volume": "above", "entry": "cost", "fee": 0.002, "exit": "opposite"}
    assert {k: manifest["config"][k] for k in asked} == asked
    for name, here, usual in (
        ("exit", "opposite", "neutral"),
        ("fee", "0.002", "0.001"),
        ("refit_epochs", "1", "2"),
        ("units", "8", "256, 128, 64"),
    ):
        assert f"<td>{name}</td><td>{here}</td><td>{usual}</td>" in page
    assert "<td>stop_atr</td>" in page and "<td>seed</td>" in page


def test_a_report_of_an_unlisted_ticker_is_a_mistake_of_the_user(loopback, typed, tmp_path):
    done = typed(
        "cryptolstm", "report", "XYZ/USD", *SMOKE, "--exchange-url", loopback.url, "--out", str(tmp_path)
    )
    assert (
        done.returncode == 2
        and "does not list XYZ/USD" in sentence(done)
        and "notebook failed" not in done.stderr
    )
    assert not list(tmp_path.rglob("*.html"))


def test_ctrl_c_says_what_is_kept(tmp_path):
    with Loopback() as exchange:
        exchange.faults.append(
            lambda path, query, answer: replace(answer, delay=0.2) if "candles" in path else None
        )
        command = [
            str(BIN / "cryptolstm"),
            "data",
            "fetch",
            "ETH/USD",
            "--hours",
            "6000",
            "--exchange-url",
            exchange.url,
        ]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        fetch = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "CRYPTOLSTM_HOME": str(tmp_path)}, **pipes
        )
        while exchange.count("candles") < 3 and fetch.poll() is None: time.sleep(0.05)
        fetch.send_signal(SIGINT)
        out, err = fetch.communicate(timeout=60)
    assert (
        fetch.returncode == 130
        and "stopped; bars and finished results are kept" in err
        and "Traceback" not in err
        and out == ""
    )


def test_ctrl_c_while_a_fold_is_trained_loses_the_training_and_keeps_the_bars(
    loopback, typed, tmp_path, monkeypatch
):
    def pressed(*args, **how): raise KeyboardInterrupt
    monkeypatch.setattr("cryptolstm.research.walkforward.LSTM.fit", pressed)
    done = typed("cryptolstm", "backtest", "--exchange-url", loopback.url, *SMOKE)
    assert done.returncode == 130 and "what was being trained is lost" in done.stderr and done.stdout == ""
    assert len(list(tmp_path.glob("bars/*/*.parquet"))) == 1
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and "bars" not in p.parts]


def test_a_page_states_the_rules_of_its_run(finished):
    _, url, _, page = finished
    assert (
        "2 × (0.20% fee + 0.02% slippage), plus 50%" in page and "half an ATR" not in page
    )
    assert "volume / its 20-bar mean &gt; 1</td>" in page and f"coinbaseexchange at {url}" in page


def test_an_unknown_ticker_is_named_and_a_near_one_offered(loopback, typed):
    done = typed("cryptolstm", "backtest", "--ticker", "ETC/USD", "--exchange-url", loopback.url)
    assert done.returncode == 2 and "ETC/USD" in sentence(done) and "ETH/USD" in sentence(done)


def test_a_misspelt_papermill_parameter_does_not_run_the_default_ticker(tmp_path):
    out = tmp_path / "out.ipynb"
    done = run("papermill", "nbs/backtest.ipynb", str(out), "-p", "tickr", "ETH/USD", home=tmp_path)
    assert done.returncode == 1
    assert (
        done.stderr.rstrip().splitlines()[-1] == "InputError: unknown parameter tickr; did you mean ticker?"
    )
    assert (
        "cell_name" not in done.stderr and "run_from_namespace" not in done.stderr
    ), "the notebook's own frames stay out of it"


def test_data_commands_over_the_loop_back(loopback, tmp_path):
    fetched = run(
        "cryptolstm",
        "data",
        "fetch",
        "BTC/USD",
        "SOL/USD",
        "--hours",
        "700",
        "--json",
        "--exchange-url",
        loopback.url,
        home=tmp_path,
    )
    assert fetched.returncode == 0, fetched.stderr
    assert {t: d["bars"] for t, d in json.loads(fetched.stdout).items()} == {"BTC/USD": 700, "SOL/USD": 700}
    asked = run(
        "cryptolstm",
        "data",
        "price",
        "--ticker",
        "BTC/USD",
        "--json",
        "--exchange-url",
        loopback.url,
        home=tmp_path,
    )
    assert json.loads(asked.stdout)["ticker"] == "BTC/USD"
