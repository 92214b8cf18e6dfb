"""The first hour of a new user: the version, what is stored, and hints that lead on."""
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import nbformat
import pytest
import typer
from loopback import Loopback, a_market
from tqdm import tqdm
from typer.testing import CliRunner

import cryptolstm
from cryptolstm.cli.main import app
from cryptolstm.cli.terminal import build_run
from cryptolstm.core.config import RunConfig, run_from_namespace
from cryptolstm.core.errors import InputError, OperationError
from cryptolstm.core.files import config_hash, write_atomic
from cryptolstm.core.text import display_zone
from cryptolstm.data.client import fetch_many, market_bars
from cryptolstm.core.machine import git_commit
from cryptolstm.data.demo import demo_market
from cryptolstm.data.exchange import connect, not_listed
from cryptolstm.data.store import BarStore, bar_path, hour_number, write_store
from cryptolstm.features.indicators import features
from cryptolstm.model.registry import save_version
from cryptolstm.model.settings import ModelConfig
from cryptolstm.model.training import fit
from cryptolstm.report.manifest import CLOSE, OPEN
from cryptolstm.report.pieces import MIME
from cryptolstm.report.render import Report, report_parameters, write_report

ROOT = Path(__file__).resolve().parents[1]


def invoke(*words: str): return CliRunner().invoke(app, list(words))


def all_commands(group=None, words: tuple = ()) -> list[tuple]:
    "The words of every command, and of every group."
    group = group or typer.main.get_command(app)
    # `report` is a command, and `report diff` is below it
    named = {**getattr(group, "commands", {}), **getattr(group, "below", {})}
    return [words, *(c for name, g in named.items() for c in all_commands(g, (*words, name)))]


def test_the_page_of_commands_names_every_command():
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    named = {row.split("`")[1] for row in page.splitlines() if row.startswith("| `cryptolstm ")}
    groups = {(), ("data",), ("models",), ("reports",), ("trade",)}
    assert named == {" ".join(("cryptolstm", *words)) for words in all_commands() if words not in groups}


# ---- version, help, ticker -------------------------------------------------------------------------------

def test_the_version_names_the_commit_of_a_checkout(monkeypatch):
    done = invoke("--version")
    assert done.exit_code == 0 and done.stdout.split()[:2] == ["cryptolstm", cryptolstm.__version__]
    assert (git_commit() or "") in done.stdout
    monkeypatch.setattr("cryptolstm.cli.main.git_commit", lambda: None)
    assert invoke("--version").stdout == f"cryptolstm {cryptolstm.__version__}\n"


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_every_command_has_a_short_option_for_its_help(words):
    short, long = invoke(*words, "-h"), invoke(*words, "--help")
    assert short.exit_code == 0 and short.stdout == long.stdout and "Usage" in short.stdout


def test_shell_completion_can_be_installed_and_completes_commands(monkeypatch):
    assert "--install-completion" in invoke("--help").stdout
    places = {"_ROOT_COMPLETE": "complete_bash", "COMP_WORDS": "root data ch", "COMP_CWORD": "2"}
    done = CliRunner().invoke(app, [], env=places, prog_name="root")
    assert done.stdout.split() == ["check"]


BOTH = [("backtest",), ("signal",), ("report",), ("data", "price"), ("models", "list"), ("trade",),
        ("trade", "run"), ("trade", "history")]


@pytest.mark.parametrize("words", BOTH, ids=" ".join)
def test_two_different_tickers_are_a_mistake(words):
    done = invoke(*words, "ETH/USD", "--ticker", "SOL/USD")
    assert isinstance(done.exception, InputError) and done.exception.exit_code == 2
    assert str(done.exception) == "the argument is ETH/USD and --ticker is SOL/USD; pass one ticker"


def test_several_tickers_that_differ_from_the_option_are_a_mistake():
    done = invoke("data", "check", "ETH/USD", "--ticker", "SOL/USD")
    assert str(done.exception) == "the arguments are ETH/USD and --ticker is SOL/USD; pass one of the two"


@pytest.mark.parametrize("ticker", [["bitcoin"], ["--ticker", "bitcoin"], ["bitcoin", "--ticker", "bitcoin"]])
@pytest.mark.parametrize("words", BOTH, ids=" ".join)
def test_a_ticker_may_be_an_argument_or_an_option(words, ticker):
    "The ticker that was passed is the one that is refused."
    done = invoke(*words, *ticker)
    assert isinstance(done.exception, InputError) and "bitcoin" in str(done.exception)


@pytest.mark.parametrize("ticker", [["SOL/USD"], ["--ticker", "SOL/USD"], ["sol-usd", "--ticker", "SOL/USD"]])
def test_the_ticker_reaches_the_report_either_way(ticker, monkeypatch, tmp_path):
    asked = []

    def run_report(ticker, *args, **how):
        asked.append(ticker)
        summary = {"verdict": {"level": "NO SKILL", "sentence": "none"}, "data": {}}
        return Report(tmp_path / "x.html", tmp_path / "x.ipynb", summary)

    monkeypatch.setattr("cryptolstm.report.render.run_report", run_report)
    for words in (["report"], ["backtest", "--report", "--json"]):
        assert invoke(*words, *ticker).exit_code == 0
    assert [t.upper().replace("-", "/") for t in asked] == ["SOL/USD"] * 2


def test_a_report_without_a_ticker_says_what_to_pass():
    done = invoke("report")
    assert isinstance(done.exception, InputError) and "cryptolstm report ETH/USD" in str(done.exception)


def test_a_check_takes_the_ticker_as_option():
    words = ["data", "check", "--exchange", "simulated", "--hours", "300", "--json"]
    assert list(json.loads(invoke(*words, "--ticker", "sol-usd").stdout)) == ["SOL/USD"]


# ---- what is stored --------------------------------------------------------------------------------------

@pytest.fixture
def home(tmp_path, monkeypatch):
    "An empty data folder and an empty folder of reports."
    monkeypatch.setenv("CRYPTOLSTM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CRYPTOLSTM_REPORTS", str(tmp_path / "reports"))
    monkeypatch.delenv("CRYPTOLSTM_EXCHANGE_URL", raising=False)
    return tmp_path / "home"


@pytest.mark.parametrize("words", [("data",), ("models",), ("reports",)], ids=" ".join)
def test_an_empty_list_says_how_to_fill_it(words, home):
    done = invoke(*words, "list")
    assert done.exit_code == 0 and "; cryptolstm " in done.stdout
    (rows,) = json.loads(invoke(*words, "list", "--json").stdout).values()
    assert rows == []


def test_stored_bars_are_listed_with_their_span_and_gaps(home):
    bars = demo_market(200, end="2025-02-01", ticker="ETH/USD")
    write_store(bar_path(home, "kraken", "ETH/USD"), BarStore().add(bars.drop(bars.index[[50, 51, 120]]), []))
    market = "coinbaseexchange@127.0.0.1:8765"
    write_store(bar_path(home, market, "BTC/USDT:USDT"), BarStore().add(bars, [], market=market))
    rows = json.loads(invoke("data", "list", "--json").stdout)["bars"]
    span = {"first": "2025-01-23T16:00:00+00:00", "last": "2025-01-31T23:00:00+00:00"}
    assert rows == [
        {"ticker": "BTC/USDT:USDT", "market": market, **span, "bars": 200, "gaps": 0},
        {"ticker": "ETH/USD", "market": "kraken", **span, "bars": 197, "gaps": 3},
    ]
    lines = invoke("data", "list").stdout.splitlines()
    assert lines[0].split()[:4] == "ticker market first (America/Denver)".split()
    assert lines[2].split() == "ETH/USD kraken 2025-01-23 09:00 2025-01-31 16:00 197 3".split()


def test_a_damaged_file_of_bars_is_listed_and_left_alone(home):
    path = bar_path(home, "kraken", "ETH/USD")
    write_store(path, BarStore().add(demo_market(50), []))
    path.write_bytes(damaged := path.read_bytes()[:-7])
    done = invoke("data", "list", "--json")
    assert done.exit_code == 0 and "cannot be read as stored bars" in done.stderr
    assert json.loads(done.stdout)["bars"] == [
        {"ticker": "ETH/USD", "market": "kraken", "first": None, "last": None, "bars": None, "gaps": None}
    ]
    assert path.read_bytes() == damaged


def test_models_are_listed_with_market_and_version_in_use(home):
    bars = demo_market(900)
    small = {"units": (4,), "dropout": (.1,), "recurrent_dropout": (.1,), "dense": (4,)}
    fitted = fit(bars, features(bars), ModelConfig(lookback=12, epochs=1, **small))
    bundle = replace(fitted, ticker="ETH/USD", exchange="kraken")
    save_version(bundle, "mine")
    used = save_version(bundle, "mine")
    save_version(replace(bundle, exchange="bitstamp"), "other", use=False)
    rows = json.loads(invoke("models", "list", "--json").stdout)["lines"]
    known = {"ticker": "ETH/USD", "trained_until": bundle.trained_until}
    assert rows == [
        {"line": "mine", "market": "kraken", "current": used.name, **known},
        {"line": "other", "market": "bitstamp", "current": None, **known},
    ]
    assert list(rows[0]) == ["line", "ticker", "market", "current", "trained_until"]
    of_market = json.loads(invoke("models", "list", "--exchange", "bitstamp", "--json").stdout)["lines"]
    assert of_market == rows[1:]
    assert used.name in invoke("models", "list").stdout
    one = json.loads(invoke("models", "list", "--model", "mine", "--json").stdout)
    assert one["line"] == "mine" and one["other_lines"] == ["other"]


# ---- one folder per run ------------------------------------------------------------------------------------

def a_run(text: str = "shown"):
    "An executed report notebook in one cell."
    summary = {"ticker": "ETH/USD", "verdict": {"level": "NO SKILL"}, "config": {"hours": 240}}
    shown = nbformat.v4.new_output("display_data", {"text/html": f"<p>{text}</p>", MIME: summary})
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[shown])])


def manifest_at(made_at: str):
    "A function that makes the manifest of a page, for `write_report`."
    return lambda result, page, notebook: {**result, "made_at": made_at, "notebook": notebook}


def written(out: Path, text: str = "shown", made_at: str = "2025-05-01T00:30:00+00:00", **config):
    "Write a report of one cell."
    return write_report(a_run(text), "ETH/USD", "backtest", config, manifest_at(made_at), out)


def test_every_run_has_a_folder_and_the_newest_page_is_a_copy(tmp_path):
    first, second = written(tmp_path, "first", hours=240), written(tmp_path, "second", hours=240)
    other = written(tmp_path, "third", "2025-05-02T00:30:00+00:00", hours=480)
    names = [report.html.parent.name for report in (first, second, other)]
    assert re.fullmatch(r"20250501T003000Z-[0-9a-f]{8}", names[0]) and names[1] == f"{names[0]}-2"
    assert names[2].startswith("20250502T003000Z-") and names[2][17:] != names[0][17:]
    for report, text in ((first, "first"), (second, "second"), (other, "third")):
        assert f"<p>{text}</p>" in report.html.read_text()
        assert report.newest == tmp_path / "eth_usd/backtest.html"
        stamp = split_any(report.html.read_text())["notebook"]
        assert sha256(report.notebook.read_bytes()).hexdigest() == stamp["sha256"]
    assert other.newest.read_bytes() == other.html.read_bytes() and not other.newest.is_symlink()
    assert other.newest.with_suffix(".ipynb").read_bytes() == other.notebook.read_bytes()
    assert len(list(tmp_path.rglob("*"))) == 1 + 2 + 3 * 3   # nothing else is left behind


def split_any(page: str) -> dict:
    "The manifest of a page of any kind."
    return json.loads(page.partition(OPEN)[2].partition(CLOSE)[0])


def test_runs_that_end_at_the_same_time_keep_every_page(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda k: written(tmp_path, f"run {k}"), range(24)))
    assert len({report.html for report in made}) == 24
    assert {f"<p>run {k}</p>" in report.html.read_text() for k, report in enumerate(made)} == {True}


@pytest.mark.parametrize("stop_at", ["backtest.ipynb", "backtest.html"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_run_that_is_stopped_while_it_writes_leaves_the_newest_page(stop_at, error, tmp_path, monkeypatch):
    before = written(tmp_path, "before").newest.read_bytes()
    usual = sorted(tmp_path.rglob("*"))

    def stopped(path, content):
        if path.name == stop_at: raise error
        return write_atomic(path, content)

    monkeypatch.setattr("cryptolstm.report.render.write_atomic", stopped)
    with pytest.raises(error): written(tmp_path, "after")
    assert sorted(tmp_path.rglob("*")) == usual and usual[1].parent.name == "eth_usd"
    assert (tmp_path / "eth_usd/backtest.html").read_bytes() == before


KILLED = """
import os, sys
from cryptolstm.report import render
sys.path.insert(0, sys.argv[1])
from test_finding_things import written
from cryptolstm.core.files import write_atomic
def killed(path, content):
    if path.suffix == ".html": os.kill(os.getpid(), 9)
    return write_atomic(path, content)
render.write_atomic = killed
written(render.Path(sys.argv[2]), "after")
"""


def test_a_killed_run_shows_no_page(tmp_path):
    report = written(tmp_path, "before")
    before = report.newest.read_bytes()
    words = [sys.executable, "-c", KILLED, str(ROOT / "tests"), str(tmp_path)]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, timeout=120).returncode == -9
    listed = json.loads(invoke("reports", "list", "--out", str(tmp_path), "--json").stdout)["reports"]
    assert [r["page"] for r in listed] == [str(report.html)] and report.newest.read_bytes() == before


def test_runs_are_listed_newest_first_with_the_verdict_of_their_manifest(home, tmp_path):
    out = tmp_path / "reports"
    old, new = (written(out, made_at=f"2025-05-0{day}T00:30:00+00:00") for day in (1, 3))
    signal = {"ticker": "ETH/USD", "signal": 0}
    page = write_report(
        a_run(), "ETH/USD", "signal", {},
        lambda *_: {"kind": "signal", "made_at": "2025-05-02T00:30:00+00:00", "signal": signal}, out,
    )
    (bare := out / "eth_usd" / "notes" / "page.html").parent.mkdir()
    bare.write_text("<body></body>")
    rows = json.loads(invoke("reports", "list", "--json").stdout)["reports"]
    assert [r["page"] for r in rows] == [str(p) for p in (new.html, page.html, old.html, bare)]
    assert [[r["ticker"], r["made_at"], r["verdict"]] for r in rows] == [
        ["ETH/USD", "2025-05-03T00:30:00+00:00", "NO SKILL"],
        ["ETH/USD", "2025-05-02T00:30:00+00:00", None],
        ["ETH/USD", "2025-05-01T00:30:00+00:00", "NO SKILL"],
        [None, None, None],
    ]
    shown = invoke("reports", "list").stdout
    assert str(new.html) in shown and "2025-05-02 18:30" in shown and "NO SKILL" in shown
    assert invoke("reports", "list", "--out", str(tmp_path / "none")).stdout.startswith("there is no page in")


# ---- the zone of displayed times ---------------------------------------------------------------------------

@pytest.fixture
def zone(monkeypatch):
    "No zone in the environment, and none afterwards."
    monkeypatch.setenv("CRYPTOLSTM_DISPLAY_ZONE", "")
    return monkeypatch


SHOWN = {"America/Denver": "2025-04-30 18:30", "Europe/Berlin": "2025-05-01 02:30", "UTC": "2025-05-01 00:30"}


@pytest.mark.parametrize("name", SHOWN)
def test_a_table_shows_times_in_one_zone_named_in_its_heading(name, zone, home, tmp_path):
    written(tmp_path / "reports", made_at="2025-05-01T00:30:00+00:00")
    by_option = invoke("reports", "list", "--display-zone", name).stdout
    zone.setenv("CRYPTOLSTM_DISPLAY_ZONE", name)
    assert invoke("reports", "list").stdout == by_option
    head, row = by_option.splitlines()
    assert f"made at ({name})" in head and SHOWN[name] in row and by_option.count(name) == 1


WITH_A_ZONE = [("backtest",), ("signal",), ("report", "ETH/USD"), ("reports", "list"), ("data", "list"),
               ("data", "price", "ETH/USD"), ("models", "list"), ("trade", "ETH/USD"), ("trade-all",)]


@pytest.mark.parametrize("words", WITH_A_ZONE, ids=" ".join)
def test_an_unknown_zone_is_refused_before_any_work(words, zone, home):
    for wrong, hint in (("Europe/Berln", "did you mean Europe/Berlin?"), ("?", "pass an IANA name such as")):
        told = f"unknown time zone {wrong}; {hint}"
        assert str(invoke(*words, "--display-zone", wrong).exception).startswith(told)
        zone.setenv("CRYPTOLSTM_DISPLAY_ZONE", wrong)
        assert str(invoke(*words).exception).startswith(told)
        zone.setenv("CRYPTOLSTM_DISPLAY_ZONE", "")
    assert not home.exists()


def test_the_zone_of_a_file_gives_way_to_an_option_and_changes_no_run(zone, tmp_path):
    (file := tmp_path / "run.yaml").write_text("hours: 480\ndisplay_zone: Europe/Berlin\n")
    usual = build_run(None, None, {"hours": 480})
    for assignments, options, expected in (
        (None, {}, "Europe/Berlin"),
        (["display_zone=Asia/Tokyo"], {}, "Asia/Tokyo"),
        (["display_zone=Asia/Tokyo"], {"display_zone": "UTC"}, "UTC"),
    ):
        zone.setenv("CRYPTOLSTM_DISPLAY_ZONE", "")
        assert build_run(file, assignments, options) == usual and display_zone() == expected
    assert report_parameters("ETH/USD", file, {"display_zone": "UTC"}) == {"ticker": "ETH/USD", "hours": 480}
    assert display_zone() == "UTC"
    assert run_from_namespace({"hours": 480, "display_zone": "Asia/Tokyo"}) == usual
    assert display_zone() == "Asia/Tokyo" and config_hash(RunConfig()) == "b665843e0c5d5165"
    file.write_text("display_zone: Europe/Berln\n")
    with pytest.raises(InputError, match="did you mean Europe/Berlin"): build_run(file, None, {})


# ---- names of parameter files ------------------------------------------------------------------------------

def test_a_parameter_file_is_named_as_in_a_report_by_every_command_that_takes_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert build_run(Path("smoke"), None, {}) == build_run(ROOT / "params" / "smoke.yaml", None, {})
    assert build_run(Path("smoke"), ["train_hours=500"], {"hours": 300}).train_hours == 500
    assert report_parameters("ETH/USD", Path("smoke"))["train_hours"] == 400
    (tmp_path / "smoke").mkdir()   # a folder of that name is no parameter file
    assert build_run(Path("smoke"), None, {}).train_hours == 400
    takes = [c for c in all_commands() if "--params" in invoke(*c, "--help").stdout]
    assert takes == [("signal",), ("backtest",), ("report",), ("volatility",), ("rank",), ("check-leaks",),
                     ("models", "compare"), ("trade", "run"), ("trade-all",)]
    commands = (["signal"], ["backtest"], ["report", "ETH/USD"], ["volatility"], ["rank"], ["check-leaks"],
                ["trade"], ["trade-all"])
    for words in commands:
        error = invoke(*words, "--params", "smok").exception
        assert str(error) == "unknown parameter file smok; did you mean smoke?" and error.exit_code == 2
        missing = invoke(*words, "--params", "smok.yaml").exception
        assert str(missing).startswith("there is no parameter file smok.yaml")


# ---- too few bars ------------------------------------------------------------------------------------------

def test_too_few_bars_name_the_settings_that_need_them(exchange, home, monkeypatch):
    monkeypatch.setenv("CRYPTOLSTM_EXCHANGE_URL", exchange.url)
    error = invoke("backtest", "--ticker", "ETH/USD").exception
    assert str(error) == (
        "1,000 bars are too few for hours 720 + lookback 60 + warm-up 60 + training 200 = 1,040 bars;"
        " pass fewer hours, a shorter lookback or more bars"
    )


def test_too_few_stored_bars_name_the_settings_that_need_them(exchange, home, monkeypatch):
    monkeypatch.setenv("CRYPTOLSTM_EXCHANGE_URL", exchange.url)
    assert invoke("data", "fetch", "ETH/USD", "--hours", "300").exit_code == 0
    exchange.stop()
    needed = "hours 720 + train_hours 4,320 + lookback 60 + horizon 1 + warm-up 744 = 5,845 bars"
    error = invoke("backtest", "--ticker", "ETH/USD").exception
    assert f"the 300 stored bars of ETH/USD do not answer for {needed}, pass fewer or" in str(error)


@pytest.mark.parametrize("more", [[], ["--grid", "fee=0,0.001"]], ids=["one run", "grid"])
def test_too_few_imported_bars_name_the_settings_that_need_them(more, home):
    bars = demo_market(1000, end="2025-02-01", ticker="ETH/USD")[["open", "high", "low", "close", "volume"]]
    first = hour_number(bars.index[0])
    write_store(bar_path(home, "my_file", "ETH/USD"), BarStore().add(bars, [(first, first + 1000)]))
    error = invoke("backtest", "--ticker", "ETH/USD", "--exchange", "my_file", *more).exception
    assert "my_file has 1,000 imported bars of ETH/USD" in str(error) and error.exit_code == 2
    needed = "hours 720 + train_hours 4,320 + lookback 60 + horizon 1 + warm-up 744 = 5,845 bars"
    assert f"too few for {needed}; pass fewer" in str(error)


# ---- progress ----------------------------------------------------------------------------------------------

def bars_shown(work, monkeypatch, capsys) -> str:
    "What the progress bars of some work show, every step of them."
    for module in ("client", "fetch"):
        monkeypatch.setattr(f"cryptolstm.data.{module}.tqdm", partial(tqdm, mininterval=0, miniters=1))
    capsys.readouterr()
    work()
    return capsys.readouterr().err


def test_a_bar_of_a_fetch_that_fails_never_shows_100_percent(client_home, monkeypatch, capsys):
    monkeypatch.setattr("cryptolstm.data.exchange.PAUSE", 0.01)
    with Loopback({"ETH/USD": a_market(), "BTC/USD": a_market()}, now="2025-02-10") as silent:
        monkeypatch.setenv("CRYPTOLSTM_EXCHANGE_URL", silent.url)

        def fetch():
            with pytest.raises(OperationError, match="gives no bars of ETH/USD"):
                market_bars("ETH/USD", 900, exchange="coinbaseexchange", progress=True)
            assert not fetch_many(["BTC/USD"], 900, progress=True)["BTC/USD"]["ok"]

        shown = bars_shown(fetch, monkeypatch, capsys)
    assert "99%" in shown and "100%" not in shown


def test_a_bar_of_a_fetch_that_succeeds_reaches_100_percent(exchange, client_home, monkeypatch, capsys):
    monkeypatch.setenv("CRYPTOLSTM_EXCHANGE_URL", exchange.url)
    one = bars_shown(lambda: market_bars("ETH/USD", 900, exchange="coinbaseexchange", progress=True),
                     monkeypatch, capsys)
    assert "100%" in one
    assert "100%" in bars_shown(lambda: fetch_many(["ETH/USD"], 950, progress=True), monkeypatch, capsys)
    with_error = partial(fetch_many, ["ETH/USD", "XYZ/USD"], 950, progress=True)
    assert "100%" not in bars_shown(with_error, monkeypatch, capsys)


# ---- hints -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("ticker, near", [
    ("BTC/USDT", "BTC/USD"), ("BTC/EURR", "BTC/EUR"), ("ETHH/USD", "ETH/USD"), ("ETHH/EUR", "ETH/EUR"),
    ("SOL/USDT", "SOL/USD")])
def test_an_unknown_ticker_is_compared_by_its_base_currency(ticker, near):
    exchange = connect("coinbaseexchange")
    listed = ("BTC/USD", "BTC/EUR", "ETH/USD", "ETH/EUR", "ETH/USDT", "SOL/USD", "XTZ/USDT", "LTC/USDT")
    exchange.markets = {t: {"active": True} for t in listed}
    found = str(not_listed(exchange, ticker)).partition("; did you mean ")[2].removesuffix("?").split(" or ")
    assert found[0] == near and {t.partition("/")[0] for t in found} == {near.partition("/")[0]}
