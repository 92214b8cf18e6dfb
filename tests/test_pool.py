"""One network for several tickers: the single ticker is the case of one, no ticker's future reaches another,
and one training serves the runs of all."""
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, small_run
from filelock import FileLock
from typer.testing import CliRunner

from cryptolstm.cli.main import app
from cryptolstm.core.bars import COLUMNS, bars_hash, regular_grid
from cryptolstm.core.config import read_params, run_from_namespace
from cryptolstm.core.errors import InputError
from cryptolstm.data.client import CryptoMarketDataClient
from cryptolstm.data.demo import demo_market
from cryptolstm.data.store import BarStore, bar_path, hour_number, load_store, write_store
from cryptolstm.features.indicators import features
from cryptolstm.model import training, training_data
from cryptolstm.proof.prereg import flat
from cryptolstm.report.manifest import canonical_json, embed, make_manifest, split
from cryptolstm.report.render import page_again, report_parameters
from cryptolstm.report.signal_page import run_signal_report
from cryptolstm.report.verify import check_pool, check_stored, verify
from cryptolstm.research import forecasts as stored
from cryptolstm.research import replay, walkforward
from cryptolstm.research.backtest import backtest, run_backtest, summary
from cryptolstm.research.certificate import check_retraining
from cryptolstm.research.forecasts import forecast_key
from cryptolstm.research.placebo import backtest_with_placebo
from cryptolstm.research.walkforward import (bars_needed, pool_folds, pooled_walk_forward, walk_forward)
from cryptolstm.strategy.signal import SignalGenerator
from cryptolstm.trading.decision import decide_bar

TICKERS = ["BTC/USD", "ETH/USD", "SOL/USD"]
ALONE = small_run(hours=96, retrain_every=48, train_hours=300, network=TINY)
RUN = replace(ALONE, pool=TICKERS)
PAIR = replace(ALONE, pool=TICKERS[:2])


def markets(run=RUN, n: int = 900) -> dict:
    "Bars of the demo market of every ticker of a pool."
    return {t: regular_grid(demo_market(n, seed=3, ticker=t)) for t in run.pool}


BARS, LONG = markets(), markets(PAIR, 1700)


@pytest.fixture(scope="module")
def walks(): return pooled_walk_forward(BARS, RUN)


def forecast(walks, ticker: str) -> pd.Series: return walks[ticker].predictions["prediction"]


def altered(bars: pd.DataFrame, rows: slice) -> pd.DataFrame:
    "Bars with other prices in some rows."
    out = bars.copy()
    out.iloc[rows, :4] *= 1 + .02 * np.sin(np.arange(len(out)))[rows, None]
    out["high"], out["low"] = out.iloc[:, :4].max(axis=1), out.iloc[:, :4].min(axis=1)
    return out


# ---------------------------------------------------------------- walk-forward
@pytest.mark.parametrize("target", ["return", "volatility"])
def test_a_pool_of_one_is_the_walk_forward_of_its_ticker_to_the_bit(target):
    run = replace(ALONE, network={**TINY, "target": target})
    alone, pooled = walk_forward(BARS["ETH/USD"], run), pooled_walk_forward({"ETH/USD": BARS["ETH/USD"]}, run)
    for part in ("predictions", "folds", "table"):
        pd.testing.assert_frame_equal(
            getattr(pooled["ETH/USD"], part), getattr(alone, part), check_exact=True
        )
    assert replace(run, pool=["ETH/USD"]) == run   # one ticker is no pool


def test_a_pooled_run_repeats_itself_to_the_bit_whichever_ticker_it_is_for(walks):
    again = pooled_walk_forward(dict(reversed(BARS.items())), replace(RUN, ticker="SOL/USD"))
    for ticker in TICKERS:
        pd.testing.assert_frame_equal(
            again[ticker].predictions, walks[ticker].predictions, check_exact=True
        )
        for part in ("weights", "scaler"):
            a, b = (getattr(w[ticker].last, part) for w in (again, walks))
            assert a == b if part == "scaler" else all((x == y).all() for x, y in zip(a, b, strict=True))


def test_one_training_serves_all_tickers_and_each_is_calibrated_on_its_own_forecasts(walks):
    folds = {t: w.folds for t, w in walks.items()}
    for ticker in TICKERS:
        assert folds[ticker]["val_loss"].equals(folds["ETH/USD"]["val_loss"])
        assert folds[ticker]["tested_from"].equals(folds["ETH/USD"]["tested_from"])
        assert len(walks[ticker].predictions) == RUN.hours
        assert set(walks[ticker].others) == {*TICKERS} - {ticker}
    first = {t: f.iloc[0] for t, f in folds.items()}   # this fold has validation forecasts only
    assert sum(f["n_exceed"] for f in first.values()) == first["ETH/USD"]["validation_windows"]
    run = replace(PAIR, hours=48, train_hours=1300, network={**TINY, "val_fraction": 0.5})
    long = pooled_walk_forward(LONG, run).values()
    assert all(w.predictions["p_exceed"].between(0, 1).all() for w in long)
    calibrations = [w.last.calibration for w in long]
    assert calibrations[0] != calibrations[1] and all(c["slope"] is not None for c in calibrations)


def test_forecasts_change_with_the_past_of_another_ticker_and_not_with_its_future(walks):
    "Also the second fold, which continues from the first, does not see what comes after its cut."
    n, cut = len(BARS["BTC/USD"]), RUN.hours - RUN.retrain_every
    past = {**BARS, "BTC/USD": altered(BARS["BTC/USD"], slice(n - 300, n - 200))}
    assert not forecast(pooled_walk_forward(past, RUN), "ETH/USD").equals(forecast(walks, "ETH/USD"))
    later = {**BARS, "BTC/USD": altered(BARS["BTC/USD"], slice(n - cut, n))}
    changed = pooled_walk_forward(later, RUN)
    pd.testing.assert_series_equal(
        forecast(changed, "ETH/USD"), forecast(walks, "ETH/USD"), check_exact=True
    )
    assert not forecast(changed, "BTC/USD").equals(forecast(walks, "BTC/USD"))
    first = {**BARS, "BTC/USD": altered(BARS["BTC/USD"], slice(n - RUN.hours, n))}
    seen = pooled_walk_forward(first, RUN)
    assert (forecast(seen, "ETH/USD").iloc[:48] == forecast(walks, "ETH/USD").iloc[:48]).all()
    # the altered hours are validation bars of the second fold
    losses = [w["ETH/USD"].folds["val_loss"] for w in (seen, walks)]
    assert (losses[0] == losses[1]).tolist() == [True, False]


def test_a_later_listing_adds_fewer_windows_and_one_without_the_tested_hours_is_named():
    young = {**BARS, "SOL/USD": BARS["SOL/USD"].iloc[-380:]}
    whole, fewer = (pooled_walk_forward(b, RUN)["ETH/USD"].folds["by_ticker"].iloc[0] for b in (BARS, young))
    assert fewer[2] < whole[2] and len(fewer) == 3
    with pytest.raises(InputError, match="^of SOL/USD, 250 bars are too few.*leave it out of the pool$"):
        pool_folds({**BARS, "SOL/USD": BARS["SOL/USD"].iloc[-250:]}, RUN)
    with pytest.raises(InputError, match="^the bars of SOL/USD are not those of the tested hours"):
        pool_folds({**BARS, "SOL/USD": BARS["SOL/USD"].iloc[:-1]}, RUN)


def test_a_ticker_that_is_silent_during_the_validation_has_no_pairs_to_be_calibrated_on():
    n = len(BARS["SOL/USD"])
    quiet = BARS["SOL/USD"].drop(columns="is_gap").drop(BARS["SOL/USD"].index[n - 96 - 90:n - 96 - 1])
    walk = pooled_walk_forward({**BARS, "SOL/USD": regular_grid(quiet)}, RUN)["SOL/USD"]
    assert walk.folds["n_exceed"].iloc[0] == 0 and walk.predictions["prediction"].iloc[-20:].notna().all()


# ---------------------------------------------------------------- stored forecasts
@pytest.fixture(scope="module")
def home(tmp_path_factory): return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def first(home): return run_backtest(replace(RUN, end="2025-02-01"), home, certify=False)


def test_the_forecasts_of_all_tickers_are_stored_by_the_run_of_one(first, home, monkeypatch):
    def trained(*args, **kwargs): raise AssertionError("trained again")
    for name in ("pooled_walk_forward", "walk_forward"): monkeypatch.setattr(stored, name, trained)
    assert "forecasts_from" not in first["data"]
    for ticker in ("BTC/USD", "SOL/USD"):
        other = run_backtest(replace(RUN, end="2025-02-01", ticker=ticker), home, certify=False)
        assert "forecasts_from" in other["data"] and other["config"].ticker == ticker
        assert set(other["data"]["pool"]) == {*TICKERS} - {ticker}
        assert other["data"]["sha256"] == first["data"]["pool"][ticker]["sha256"]
    with pytest.raises(AssertionError, match="trained again"):
        run_backtest(replace(PAIR, end="2025-02-01"), home, certify=False)


def test_the_key_of_stored_forecasts_covers_the_bars_of_every_ticker():
    eth, other = BARS["ETH/USD"], {**BARS, "SOL/USD": altered(BARS["SOL/USD"], slice(0, 5))}
    keys = [forecast_key(eth, RUN, BARS), forecast_key(eth, RUN, other), forecast_key(eth, PAIR, BARS)]
    keys += [forecast_key(eth, ALONE), forecast_key(BARS["BTC/USD"], replace(RUN, ticker="BTC/USD"), BARS)]
    assert len(set(keys)) == 5
    assert forecast_key(eth, RUN, dict(reversed(BARS.items()))) == keys[0]
    assert forecast_key(eth, ALONE, BARS) == keys[3]   # without a pool other bars do not matter


def test_a_pool_that_another_process_is_training_is_awaited(tmp_path):
    "The run of the next ticker waits for the lock, and reads what was stored meanwhile."
    btc = replace(PAIR, ticker="BTC/USD")
    path = tmp_path / "forecasts" / f"{forecast_key(BARS['BTC/USD'], btc, BARS)}.lock"
    path.parent.mkdir()

    def run(): return stored.forecasts(BARS["ETH/USD"], PAIR, folder=tmp_path, pool=BARS)
    with ThreadPoolExecutor(1) as other:
        with FileLock(path):
            waiting = other.submit(run)
            with pytest.raises(TimeoutError): waiting.result(timeout=0.5)
            for ticker, walk in pooled_walk_forward({t: BARS[t] for t in PAIR.pool}, PAIR).items():
                stored.store_forecasts(BARS[ticker], replace(PAIR, ticker=ticker), walk, tmp_path, BARS)
        assert waiting.result(timeout=60).stored_at is not None


# ---------------------------------------------------------------- certificate


def wrap(monkeypatch, module, name, change):
    "Replace a function of a module by `change(real, *args, **kwargs)`."
    real = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kwargs: change(real, *args, **kwargs))


def remembered(m) -> list:
    "The bars of every ticker of the walk-forward in progress, whole; the last is that of the other ticker."
    seen = []
    wrap(m, walkforward, "feature_table", lambda real, b, run: (seen.append(b), real(b, run))[1])
    return seen


def scaled_with_the_future_of_another(m):
    seen = remembered(m)
    wrap(m, training_data, "fit_scaler", lambda real, table, **how: real(
        pd.concat([table, features(seen[-1])[table.columns]]), **how
    ))


def trained_on_the_future_of_another(m):
    "The bars of the other ticker are those of twelve hours later, under earlier times."
    seen = remembered(m)

    def fit(real, pool, *args, **kwargs):
        last = max(pool)
        late = seen[-1].shift(-12).loc[pool[last][0].index].dropna().astype({"is_gap": bool})
        return real({**pool, last: (late, features(late))}, *args, **kwargs)
    wrap(m, training, "fit", fit)


def targets_of_the_future_of_another(m):
    "Only the labels of the other ticker come from later hours."
    seen = remembered(m)

    def label(real, kind, bars, sigma, horizon=1):
        other = seen[-1]["close"].reindex(bars.index)
        return real(kind, bars, sigma, horizon) if not other.equals(bars["close"]) else (
            real(kind, seen[-1], features(seen[-1])["sigma"], horizon).shift(-12).loc[bars.index]
        )
    wrap(m, training_data, "label", label)


LEAKS = [
    scaled_with_the_future_of_another,
    trained_on_the_future_of_another,
    targets_of_the_future_of_another,
]


@pytest.mark.parametrize("leak", LEAKS, ids=lambda f: f.__name__)
def test_a_leak_from_the_future_of_another_ticker_is_found(leak, monkeypatch):
    # the other ticker is the last in the alphabet, as the mutants expect
    run = replace(PAIR, ticker="BTC/USD")
    leak(monkeypatch)
    found = check_retraining(replay.run_line, LONG["BTC/USD"], run, LONG)
    assert not found["passed"] and found["columns"][0].startswith("training: "), found


@pytest.mark.parametrize("horizon, entry", [(1, "threshold"), (6, "probability")])
def test_an_honest_pool_passes_and_the_entry_names_the_tickers_of_its_small_run(horizon, entry):
    run = replace(PAIR, ticker="BTC/USD", horizon=horizon, entry=entry)
    found = check_retraining(replay.run_line, LONG["BTC/USD"], run, LONG)
    assert found["passed"] and "untried" not in found and found["pool"] == PAIR.pool, found


@pytest.mark.slow
def test_a_leak_makes_the_verdict_of_a_pooled_backtest_leak(monkeypatch):
    scaled_with_the_future_of_another(monkeypatch)
    found = backtest(LONG["BTC/USD"], replace(PAIR, ticker="BTC/USD"), certify=True, pool=LONG)
    assert found["verdict"].level == "LEAK" and found["certificate"].offending == "training: scaler"


def test_the_small_run_of_a_large_pool_leaves_out_the_tickers_with_the_most_gaps():
    many = [*TICKERS, "ADA/USD", "DOT/USD"]
    bars = {t: regular_grid(demo_market(1100, seed=1, ticker=t)) for t in many}
    bars["ADA/USD"] = bars["ADA/USD"].iloc[-300:]
    btc = bars["BTC/USD"].drop(columns="is_gap")
    bars["BTC/USD"] = regular_grid(btc.drop(btc.index[400:500]))
    found = check_retraining(replay.run_line, bars["ETH/USD"], replace(RUN, pool=many), bars)
    assert found["passed"] and found["pool"] == ["DOT/USD", "ETH/USD", "SOL/USD"] and "untried" not in found


# ---------------------------------------------------------------- page and verify
@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "A data folder with bars of two tickers of a market that exists only as files, and a page of them."
    home, page = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("reports") / "backtest.html"
    for ticker in PAIR.pool: write(home, ticker, demo_market(bars_needed(PAIR), seed=6, ticker=ticker))
    results = run_backtest(replace(PAIR, exchange="bitstamp_file"), home)
    text = page_again(results)
    page.write_text(embed(text, make_manifest(summary(results), text)), encoding="utf-8")
    return home, page


def write(home: Path, ticker: str, bars: pd.DataFrame) -> None:
    first = hour_number(bars.index[0])
    (path := bar_path(home, "bitstamp_file", ticker)).unlink(missing_ok=True)
    write_store(path, BarStore().add(bars[COLUMNS], [(first, first + len(bars))]))


def test_a_pooled_page_is_verified_and_differing_bars_of_another_ticker_are_named(files):
    home, page = files
    manifest = split(page.read_text(encoding="utf-8"))[1]
    assert list(manifest["data"]["pool"]) == ["BTC/USD"] and manifest["config"]["pool"] == PAIR.pool
    assert "One network was trained on 2 tickers: BTC/USD, ETH/USD" in page.read_text(encoding="utf-8")
    (entry,) = [c for c in manifest["certificate"]["checks"] if c["name"] == "retraining"]
    assert manifest["certificate"]["passed"] and entry["pool"] == PAIR.pool and "untried" not in entry
    found = verify(page, home=home)
    assert found["outcome"] == "holds", [f for f in found["findings"] if not f["ok"]]
    path = bar_path(home, "bitstamp_file", "BTC/USD")
    kept = load_store(path).bars
    assert bars_hash(regular_grid(kept)) == manifest["data"]["pool"]["BTC/USD"]["sha256"]
    write(home, "BTC/USD", kept.assign(volume=kept["volume"] + 1))
    found = verify(page, home=home)
    assert {f["what"]: f["text"] for f in found["findings"]}["pool"] == (
        "the bars of BTC/USD are not those of the page"
    ) and found["outcome"] == "does not hold"
    path.unlink()
    found = verify(page, home=home)
    (text,) = [f["text"] for f in found["findings"] if f["what"] == "pool"]
    assert text.startswith("BTC/USD: the bars of the page are not stored here")
    assert found["outcome"] == "cannot be checked"
    write(home, "BTC/USD", kept)


def test_a_ticker_without_a_trade_in_the_last_hours_stays_in_the_pool(tmp_path):
    "Its last price is carried forward, also in its own run, and `verify` does the same."
    end, n = pd.Timestamp("2025-01-01", tz="UTC"), bars_needed(PAIR)
    span = (hour_number(end) - n, hour_number(end))
    for ticker, quiet in (("BTC/USD", 2), ("ETH/USD", 0)):
        bars = demo_market(n, seed=6, ticker=ticker, end=end)[COLUMNS].iloc[:n - quiet]
        path = CryptoMarketDataClient("kraken", home=tmp_path).path(ticker)
        write_store(path, BarStore().add(bars, [span]))
    run = replace(PAIR, exchange="kraken", end=end.isoformat())
    for ticker, reused in (("ETH/USD", False), ("BTC/USD", True)):
        found = run_backtest(replace(run, ticker=ticker), tmp_path, certify=False)
        assert ("forecasts_from" in found["data"]) is reused
        assert found["data"]["tested_until"] == end.isoformat()
    assert found["bars"]["is_gap"].tolist()[-3:] == [False, True, True]
    page = "<body></body>"
    manifest = json.loads(canonical_json(make_manifest(summary(found), page)))
    assert check_stored(manifest, tmp_path)[0]["ok"] and check_pool(manifest, tmp_path)[0][0]["ok"]


# ---------------------------------------------------------------- setting and refusals
def test_a_pool_is_given_as_option_as_file_and_as_parameter_of_a_notebook(tmp_path, monkeypatch):
    (file := tmp_path / "pool.yaml").write_text("pool: [sol-usd, BTC/USD]\n", encoding="utf-8")
    assert read_params(file) == {"pool": ["sol-usd", "BTC/USD"]}
    assert report_parameters("SOL/USD", file)["pool"] == ["BTC/USD", "SOL/USD"]
    assert run_from_namespace({"pool": ["ETH/USD", "BTC/USD"]}).pool == ["BTC/USD", "ETH/USD"]
    from cryptolstm.cli.terminal import build_run
    run = build_run(None, ["pool=[BTC/USD,ETH/USD]"], {"ticker": "ETH/USD"})
    assert run.pool == ["BTC/USD", "ETH/USD"] and build_run(file, ["pool=[]"], {}).pool == []
    assert build_run(None, ["pool=true"], {}).pool is True   # for a command that runs all tickers
    with pytest.raises(InputError, match="pool lacks ETH/USD"): report_parameters("ETH/USD", file)


def test_no_pool_leaves_the_identity_of_a_trial_and_of_a_registration_as_they_were():
    from cryptolstm.core.files import config_hash
    from cryptolstm.proof.trials import Trial
    now = {"ticker": "BTC/USD", "fee": 0.001, "pool": []}
    before = {k: v for k, v in now.items() if k != "pool"}
    facts = {"ticker": "BTC/USD", "market": "x", "first": "", "until": "", "data_hash": "", "sharpe": None,
             "n": 1, "skew": None, "kurtosis": None, "hit": None}
    assert Trial(**facts, config=now).config_hash == config_hash(before)
    assert Trial(**facts, config={**now, "pool": TICKERS}).config_hash != config_hash(before)
    assert flat(now) == flat(before) and "pool" in flat({**now, "pool": TICKERS})


REFUSED = {
    "a backtest": lambda home, run: run_backtest(run, home),
    "its walk-forward": lambda home, run: walk_forward(BARS["ETH/USD"], run),
    "a report": lambda home, run: report_parameters("ETH/USD", None, {"pool": True}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_runs_one_ticker_asks_for_the_list_instead_of_true(what, tmp_path):
    with pytest.raises(InputError, match=r"pass the list, for instance pool: \[BTC/USD, ETH/USD\], or run"):
        REFUSED[what](tmp_path, replace(ALONE, pool=True))
    assert not list(tmp_path.iterdir())


ONE_TICKER = {
    "a signal generator": lambda home, run: SignalGenerator(config=run, home=home),
    "the page of a signal": lambda home, run: run_signal_report(run),
    "a live decision": lambda home, run: decide_bar(run, home=home),
    "placebo runs": lambda home, run: backtest_with_placebo(run, 1, home),
}


@pytest.mark.parametrize("what", ONE_TICKER)
@pytest.mark.parametrize("pool", [True, TICKERS])
def test_signals_and_placebo_runs_refuse_a_pool_before_anything_is_trained(what, pool, tmp_path):
    with pytest.raises(InputError, match="^pool is set, but .*; leave pool out$"):
        ONE_TICKER[what](tmp_path, replace(ALONE, pool=pool))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [
    ["signal", "ETH/USD"], ["signal", "ETH/USD", "--report"], ["trade", "ETH/USD", "--once"],
    ["backtest", "ETH/USD", "--placebo", "1"],
])
def test_the_commands_end_with_2_and_one_sentence(command):
    done = CliRunner().invoke(app, [*command, "--set", "pool=[BTC/USD,ETH/USD]"])
    assert isinstance(done.exception, InputError) or done.exit_code == 2
    assert "leave pool out" in str(done.exception) + done.output


def test_a_pool_cannot_learn_prices():
    with pytest.raises(InputError, match="cannot pool tickers, whose prices have no scale in common"):
        run_backtest(replace(RUN, network={**TINY, "target": "price"}))


def test_a_sweep_trades_the_forecasts_of_a_pool_and_the_next_ticker_reuses_them(tmp_path, monkeypatch):
    monkeypatch.setenv("CRYPTOLSTM_HOME", str(tmp_path))
    options = [x for k in ("hours=96", "retrain_every=48", "train_hours=300", f"network={json.dumps(TINY)}",
                           "lookback=12", "pool=[BTC/USD,ETH/USD]") for x in ("--set", k)]
    for ticker, reused in (("ETH/USD", False), ("BTC/USD", True)):
        command = ["backtest", ticker, "--exchange", "simulated", *options, "--grid", "stop_atr=1:2:2"]
        done = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
        assert done["reused"] is reused and done["config"]["pool"] == ["BTC/USD", "ETH/USD"]
        assert list(done["data"]["pool"]) == [t for t in ("BTC/USD", "ETH/USD") if t != ticker]
