"""Many tickers in one command: the same numbers in one process, in several and on a cluster; nothing is done
twice, and one ticker that fails takes no other with it."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from loopback import ROOT, TICKERS, Loopback, a_market, data_folder, recorded

from cryptolstm.core.errors import InputError
from cryptolstm.core.bars import regular_grid
from cryptolstm.core.config import run_config
from cryptolstm.core.files import plain
from cryptolstm.proof.provenance import data_notes
from cryptolstm.proof.trials import Ledger
from cryptolstm.report.manifest import embed, split
from cryptolstm.report.render import read_summary
from cryptolstm.research import universe_run
from cryptolstm.research.backtest import summary
from cryptolstm.research.runs import run_settings
from cryptolstm.research.universe import universe_summary
from cryptolstm.research.universe_run import (
    Prepared,
    archive,
    job_result,
    run_job,
    run_universe,
    unarchived,
)
from cryptolstm.scale.tasks import Results

SMALL = {
    "hours": 96,
    "train_hours": 300,
    "retrain_every": 96,
    "lookback": 12,
    "exchange": "simulated",
    "end": "2024-01-01",
    "network": {
        "units": [4],
        "dropout": [0.1],
        "recurrent_dropout": [0.1],
        "dense": [4],
        "epochs": 2,
        "refit_epochs": 1,
    },
}
PAIR = ["ETH/USD", "BTC/USD"]


def numbers(universe) -> dict:
    "Everything that a universe says, without the times at which it was made."
    results = {t: plain(summary(r)) for t, r in universe.results.items()}
    return {"whole": universe_summary(universe), "results": results, "failed": universe.failed}


def trials(folder) -> list:
    "What the ledger says, in the order of its entries."
    kept = ["ticker", "data_hash", "config_hash", "sharpe"]
    return [Ledger(folder).trials_of(t)[kept].fillna(0).to_numpy().tolist() for t in PAIR]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    "The universe of two tickers, done in this process, and its folder."
    home = tmp_path_factory.mktemp("here")
    return run_universe(PAIR, settings=SMALL, home=home), home


@pytest.mark.parametrize("way", ["processes", "dask"])
def test_the_numbers_do_not_depend_on_where_the_jobs_are_done(way, here, tmp_path):
    universe, home = here
    if way == "processes":
        other = run_universe(PAIR, settings=SMALL, max_workers=2, home=tmp_path)
    else:
        from distributed import LocalCluster

        with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
            address = cluster.scheduler_address
            other = run_universe(PAIR, settings=SMALL, scheduler=address, home=tmp_path)
    assert numbers(other) == numbers(universe)
    assert trials(tmp_path) == trials(home)


def test_finished_jobs_are_not_repeated_and_the_page_says_that_they_are_of_an_earlier_run(here):
    universe, home = here
    times = {p.name: p.stat().st_mtime_ns for p in (home / "runs").iterdir()}
    again = run_universe(PAIR, settings=SMALL, home=home)
    assert {p.name: p.stat().st_mtime_ns for p in (home / "runs").iterdir()} == times
    assert all("forecasts_from" in r["data"] for r in again.results.values())
    assert not any("forecasts_from" in r["data"] for r in universe.results.values())
    assert {t: r["verdict"].level for t, r in again.results.items()} == {
        t: r["verdict"].level for t, r in universe.results.items()
    }


def test_a_backtest_of_one_ticker_has_the_same_numbers_and_reuses_the_forecasts(here, tmp_path):
    from cryptolstm.core.config import RunConfig
    from cryptolstm.research.backtest import run_backtest

    universe, home = here
    run = universe.results["BTC/USD"]["config"]
    alone = run_backtest(run, home, ledger=Ledger(tmp_path))
    assert alone["data"]["forecasts_from"]
    assert alone["equity"].equals(universe.results["BTC/USD"]["equity"])
    assert alone["certificate"] == universe.results["BTC/USD"]["certificate"]
    assert isinstance(run, RunConfig)


def test_forecasts_of_another_kind_of_cpu_say_so_and_are_not_taken_for_those_of_this_one(here, tmp_path):
    universe, home = here
    result = universe.results["ETH/USD"]
    p = Prepared(result["config"], result["history"], {})
    files = unarchived(Results(home / "runs").get(run_job(p).key))
    files["cpu"] = b"another CPU"
    other = job_result(archive(files), p, Ledger(tmp_path), tmp_path)
    assert "another kind of CPU" in " ".join(data_notes(other["data"]))
    assert summary(other)["determinism"]["cpu"] == "another CPU"
    assert not (tmp_path / "forecasts").exists()


def test_an_unknown_exchange_is_found_before_anything_is_done(tmp_path):
    with pytest.raises(InputError, match="unknown exchange nowhere"):
        run_universe(["ETH/USD"], settings={**SMALL, "exchange": "nowhere"}, home=tmp_path)


def test_a_scheduler_and_workers_exclude_each_other(tmp_path):
    with pytest.raises(InputError, match="either max_workers or scheduler"):
        run_universe(PAIR, settings=SMALL, max_workers=2, scheduler="tcp://127.0.0.1:8786", home=tmp_path)


def test_pool_true_is_one_network_for_all_tickers(tmp_path):
    pooled = run_universe(PAIR, settings={**SMALL, "pool": True}, home=tmp_path)
    assert {t: r["config"].pool for t, r in pooled.results.items()} == dict.fromkeys(PAIR, sorted(PAIR))
    spread = run_universe(PAIR, settings={**SMALL, "pool": True}, max_workers=2, home=tmp_path / "other")
    assert numbers(spread) == numbers(pooled)
    assert all(r["certificate"].passed for r in pooled.results.values())


# --- the command, against an exchange on this machine


@pytest.fixture
def market():
    "The thirteen recorded tickers, as an exchange."
    if not data_folder("coinbase_2023q4").is_dir():
        pytest.skip("no recorded candles (../shared/data/coinbase_2023q4)")
    bars = {t: recorded(t, "coinbase_2023q4").loc[:"2024-01-01T13:00Z"] for t in TICKERS}
    with Loopback(bars, now="2024-01-01T14:30Z") as exchange:
        yield exchange


def command(market, home, *words, **settings):
    "The arguments and the environment of a command on that market."
    end = [x for k, v in settings.items() for x in ("--set", f"{k}={v}")]
    place = ["--exchange", "coinbaseexchange", "--exchange-url", market.url]
    program = [sys.executable, "-c", "from cryptolstm.cli.main import main; main()"]
    env = {**os.environ, "CRYPTOLSTM_HOME": str(home), "CRYPTOLSTM_REPORTS": str(Path(home) / "reports")}
    return {"args": [*program, *words, *place, *end], "env": env}


def done(market, home, *words, **settings):
    "What a command prints, its messages, and its exit code."
    asked = command(market, home, *words, **settings)
    r = subprocess.run(asked["args"], env=asked["env"], capture_output=True, text=True, timeout=3000)
    return r.stdout, r.stderr, r.returncode


def test_report_of_several_tickers_writes_all_pages_and_names_the_one_that_fails(market, tmp_path):
    "DOGE/USD is not listed: it gets a page with the reason, and the exit code is 1."
    words = ("report", "ETH/USD", "DOGE/USD", "BTC/USD", "--params", "smoke", "--json")
    out, err, code = done(market, tmp_path, *words, hours=96, retrain_every=96)
    assert code == 1 and "error: DOGE/USD: " in err
    result = json.loads(out)
    assert [*result["results"]] == ["ETH/USD", "BTC/USD"]
    page = Path(result["report"])
    text = page.read_text()
    for ticker, link in result["pages"].items():
        assert f'href="{link}"' in text
        assert ticker in (page.parent / link).resolve().read_text()
    assert (page.parent / result["pages"]["DOGE/USD"]).name == "failed.html"
    newest = (tmp_path / "reports" / "universe" / "universe.html").read_text()
    link = re.search(r'url=([^"]+)', newest)[1]
    assert (tmp_path / "reports/universe" / link).resolve() == page.resolve()


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["backtest", "--all", "ETH/USD"], "--all and single tickers exclude each other"),
        (["backtest", "--all", "--grid", "stop_atr=1:2:2"], "--grid is for one ticker"),
        (["backtest", "ETH/USD", "--max-workers", "2"], "--max-workers is for several tickers"),
        (["report", "--all", "--scheduler", "localhost"], "is no address of a scheduler"),
        (["report", "--all", "--set", "ticker=ETH/USD"], "--set ticker is for one ticker"),
        (["signal", "--all", "--report"], "--report is for one ticker"),
        (["report", "--all", "--set", "hours=1"], "hours is 1"),
        (["backtest", "BTC/USD", "ETH/EUR"], "quoted in EUR and USD"),
        (["signal", "--all", "--model", "mine"], "--model is for one ticker"),
        (["backtest", "ETH/USD", "--set", "pool=true"], "pool is true"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(words, sentence, tmp_path):
    program = [sys.executable, "-c", "from cryptolstm.cli.main import main; main()", *words]
    env = {**os.environ, "CRYPTOLSTM_HOME": str(tmp_path)}
    r = subprocess.run(program, env=env, capture_output=True, text=True, timeout=60)
    assert (r.returncode, r.stdout) == (2, "")
    assert sentence in r.stderr and len(r.stderr.strip().splitlines()) == 1


def test_an_invalid_key_is_named_with_its_file_and_line(tmp_path):
    (file := tmp_path / "mine.yaml").write_text("hours: 96\nnetwork:\n  epochs: 2\n  unit: [4]\n")
    program = [sys.executable, "-c", "from cryptolstm.cli.main import main; main()"]
    words = ["backtest", "--all", "--params", str(file)]
    r = subprocess.run([*program, *words], capture_output=True, text=True, timeout=60)
    assert r.returncode == 2 and f"{file}, line 4: " in r.stderr and "did you mean units?" in r.stderr


def test_the_settings_of_a_ticker_are_stronger_than_the_file_that_is_asked_for(tmp_path, monkeypatch):
    from cryptolstm.research import runs

    for name in ("nbs", "params"):
        (tmp_path / name).mkdir()
    (tmp_path / "nbs/backtest.ipynb").write_text("{}")
    (tmp_path / "params/default.yaml").write_text("hours: 100\nfee: 0.002\nretrain_every: 100\n")
    (tmp_path / "params/full.yaml").write_text("hours: 200\nfee: 0.003\n")
    (tmp_path / "params/eth_usd.yaml").write_text("fee: 0.004\n")
    monkeypatch.chdir(tmp_path)
    run, _ = runs.run_settings("ETH/USD", "full", {"lookback": 20})
    assert (run.hours, run.fee, run.retrain_every, run.lookback) == (200, 0.004, 100, 20)
    other, _ = runs.run_settings("BTC/USD", "full")
    assert (other.hours, other.fee) == (200, 0.003)


def test_papermill_takes_a_parameter_file(tmp_path):
    "papermill -f FILE, as typed: the keys of a file are parameters of the notebook."
    (file := tmp_path / "mine.yaml").write_text("ticker: SOL/USD\nhours: 96\nnetwork: {epochs: 2}\n")
    out = tmp_path / "out.ipynb"
    words = ["-m", "papermill", "nbs/backtest.ipynb", str(out), "-f", str(file), "--prepare-only"]
    subprocess.run([sys.executable, *words], check=True, cwd=ROOT, capture_output=True, timeout=120)
    cells = json.loads(out.read_text())["cells"]
    injected, = (c["source"] for c in cells if "injected-parameters" in c["metadata"].get("tags", []))
    given: dict = {}
    exec("".join(injected), given)
    assert (given["ticker"], given["hours"], given["network"]) == ("SOL/USD", 96, {"epochs": 2})
    assert run_settings("SOL/USD", file)[0].network == {"epochs": 2}


def test_one_ticker_whose_backtest_fails_takes_no_other_with_it(here, tmp_path, monkeypatch):
    universe, home = here
    real = universe_run.backtest

    def failing(bars, run, **more):
        if run.ticker == "ETH/USD":
            raise ValueError("a number that nobody expected")
        return real(bars, run, **more)

    monkeypatch.setattr(universe_run, "backtest", failing)
    again = run_universe(PAIR, settings=SMALL, home=home, ledger=Ledger(tmp_path))
    assert list(again.results) == ["BTC/USD"]
    assert again.failed == {"ETH/USD": "the job failed (ValueError: a number that nobody expected)"}


def test_forecasts_of_a_single_backtest_are_reused_and_keep_their_time(here, tmp_path):
    "Only the certificate is new: the page says when the forecasts were made, and their file stays."
    universe, home = here
    file = next((home / "forecasts").glob("*.npz")).stat().st_mtime_ns
    other = run_universe(PAIR, settings={**SMALL, "fee": 0.002}, home=home)
    assert all("forecasts_from" in r["data"] for r in other.results.values())
    assert next((home / "forecasts").glob("*.npz")).stat().st_mtime_ns == file


def test_a_ticker_that_ends_earlier_is_left_out_of_a_pool_and_a_quiet_hour_is_carried_forward(monkeypatch):
    bars = {t: a_market(700, "2025-02-01", t) for t in ("A/USD", "B/USD", "C/USD", "D/USD")}
    bars["B/USD"], bars["C/USD"] = bars["B/USD"].iloc[:-2], bars["C/USD"].iloc[:-6]
    runs = {t: run_config({**SMALL, "ticker": t, "end": None, "pool": True}) for t in bars}
    monkeypatch.setattr(universe_run, "run_bars", lambda run, home: regular_grid(bars[run.ticker]))
    found = universe_run.universe_bars(runs, failed := {})
    assert [*found] == ["A/USD", "B/USD", "D/USD"] and "end at 2025-01-31 18:00" in failed["C/USD"]
    assert {str(p.bars.index[-1]) for p in found.values()} == {"2025-01-31 23:00:00+00:00"}
    assert all(p.run.pool == [*found] for p in found.values())
    assert len({universe_run.pool_job(p).key for p in found.values()}) == 1


def test_one_horizon_for_all(tmp_path, monkeypatch):
    def settings(ticker, *_):
        return run_config({"ticker": ticker, "horizon": len(ticker)}), {}

    monkeypatch.setattr(universe_run, "run_settings", settings)
    with pytest.raises(InputError, match="horizon is 7 for ETH/USD and 8 for DOGE/USD"):
        universe_run.universe_runs(["ETH/USD", "DOGE/USD"])


@pytest.mark.parametrize("kind, sentence", [("universe", "several tickers"), ("failed", "without a result")])
def test_verify_says_what_the_other_pages_are(kind, sentence):
    with pytest.raises(InputError, match=sentence):
        split(embed("<html><body></body></html>", {"kind": kind}))


def test_signals_of_several_tickers_in_two_processes_are_those_of_one(market, tmp_path):
    words = ("signal", "ETH/USD", "BTC/USD", "--json", "--hours", "48", "--lookback", "12")
    small = {f"network.{k}": json.dumps(v) for k, v in SMALL["network"].items()}
    one, two = (
        json.loads(done(market, tmp_path / str(n), *words, "--max-workers", str(n), **small)[0])["signals"]
        for n in (1, 2)
    )
    keys = ("signal", "predicted_price", "threshold", "current_price")
    assert [*one] == [*two] == ["ETH/USD", "BTC/USD"]
    assert all(one[t][k] == two[t][k] for t in one for k in keys)


# --- the whole universe


@pytest.mark.slow
def test_thirteen_real_tickers_have_equal_numbers_in_each_of_the_three_ways(market, tmp_path):
    from distributed import LocalCluster

    found = {}
    for way in ("here", "processes", "dask"):
        words = ["report", "--all", "--quick", "--json"]
        if way == "processes":
            words += ["--max-workers", "2"]
        if way == "dask":
            cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
            words += ["--scheduler", cluster.scheduler_address]
        out, err, code = done(market, tmp_path / way, *words, end="2024-01-01T14:00Z")
        assert code == 0, err[-2000:]
        found[way] = json.loads(out)
    cluster.close()
    times = ("report", "pages", "data")
    kept = {way: {k: v for k, v in r.items() if k not in times} for way, r in found.items()}
    for r in kept.values():
        for one in r["results"].values():
            one["data"].pop("fetched_at", None)
            one["data"].pop("clock_time", None)
    assert len(kept["here"]["results"]) == 13
    assert kept["processes"] == kept["here"]
    assert kept["dask"] == kept["here"]


@pytest.mark.slow
def test_papermill_runs_the_universe_notebook_as_typed(tmp_path):
    out = tmp_path / "out.ipynb"
    words = ["-p", "tickers", "BTC/USD ETH/USD", "-p", "params", "smoke"]
    words += ["-y", "settings: {exchange: simulated}"]
    program = [sys.executable, "-m", "papermill", "nbs/universe.ipynb", str(out), *words]
    env = {**os.environ, "CRYPTOLSTM_HOME": str(tmp_path)}
    done = subprocess.run(program, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_summary(nbformat.read(out, as_version=4))["tickers"] == ["BTC/USD", "ETH/USD"]


@pytest.mark.slow
def test_a_driver_killed_in_the_middle_goes_on_where_it_was(market, tmp_path):
    words = ("backtest", "--all", "--params", "smoke", "--max-workers", "2", "--json")
    asked = command(market, tmp_path, *words, end="2024-01-01T14:00Z")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    driver = subprocess.Popen(asked["args"], env=asked["env"], **quiet)
    runs, end = tmp_path / "runs", time.monotonic() + 600
    while len(list(runs.glob("[!.]*")) if runs.exists() else []) < 4:
        assert driver.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {p.name: p.stat().st_mtime_ns for p in runs.glob("[!.]*")}
    out, err, code = done(market, tmp_path, *words, end="2024-01-01T14:00Z")
    assert code == 0, err[-2000:]
    assert len(json.loads(out)["results"]) == 13
    after = {p.name: p.stat().st_mtime_ns for p in runs.glob("[!.]*")}
    assert {name: after[name] for name in before} == before and len(after) == 13
