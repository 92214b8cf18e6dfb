"""Intervals for the close cover what they claim, out of sample, and are the same live and in a backtest;
sizes and probabilities follow from the same forecast of the volatility."""
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, run_bars, small_run
from test_bundle import sealed
from test_signal_generator import generator, with_gaps

from cryptolstm import SignalGenerator, simulate
from cryptolstm.core.bars import regular_grid
from cryptolstm.core.config import Orders, RunConfig
from cryptolstm.core.errors import InputError, TooFewRows, TrainingSpanError
from cryptolstm.data.client import market_bars
from cryptolstm.data.demo import demo_market
from cryptolstm.execution.orders import sizing_sigma
from cryptolstm.execution.portfolio import portfolio
from cryptolstm.execution.sweep import sweep
from cryptolstm.features.indicators import WARMUP, features
from cryptolstm.model.intervals import (LEVELS, FittedIntervals, Intervals, fewest_bars, forecast_bars,
                                        hourly_sigma, interval_coverage, log_moves, move_scores,
                                        training_intervals)
from cryptolstm.model.settings import model_config
from cryptolstm.proof.trials import Trial
from cryptolstm.research import walkforward
from cryptolstm.research.backtest import backtest
from cryptolstm.research.certificate import certificate
from cryptolstm.research.forecasts import forecast_key, packed_forecasts, unpacked_forecasts
from cryptolstm.research.walkforward import walk_forward
from cryptolstm.strategy.signal import past_decisions
from cryptolstm.strategy.threshold import entry_threshold
from cryptolstm.stats.variance_scores import conformal_quantile, known_quantiles, trailing_quantiles
from cryptolstm.strategy.upkeep import CALIBRATION_BARS
from cryptolstm.trading.decision import decision_record
from cryptolstm.trading.journal import Decided
from cryptolstm.trading.paper import paper_account
from cryptolstm.cli.signal import print_signal


# ---------------------------------------------------------------- coverage
def made_intervals(bars: pd.DataFrame, horizon: int, first: int, every: int = 336) -> pd.DataFrame:
    "Intervals of all bars from row `first` on, fitted anew every two weeks."
    parts = []
    for start in range(first, len(bars), every):
        fitted = Intervals(horizon).fit(None, bars.iloc[:start])
        parts.append(fitted.predict(None, bars.iloc[: start + every], start))
    return pd.concat(parts)


def assert_covered(bars, horizon, tolerance):
    table = interval_coverage(made_intervals(bars, horizon, 5040), log_moves(bars, horizon), horizon)
    print(f"\nhorizon {horizon}\n{table.round(4).to_string()}")
    assert (np.abs(table["covered"] - LEVELS) < tolerance).all(), table
    assert (table["independent"] == table["bars"] // horizon).all()


@pytest.mark.parametrize("horizon, tolerance", [(1, 0.015), (24, 0.06)])
def test_intervals_cover_their_share_of_the_demo_market(horizon, tolerance):
    assert_covered(demo_market(5040 + 4320, seed=3), horizon, tolerance)


@pytest.mark.parametrize("ticker", ["BTC/USD", "ETH/USD"])
@pytest.mark.parametrize("horizon, tolerance", [(1, 0.02), (24, 0.06)])
def test_intervals_cover_their_share_of_recorded_candles(real_bars, ticker, horizon, tolerance):
    assert_covered(regular_grid(real_bars(ticker)), horizon, tolerance)


@pytest.mark.parametrize("level", LEVELS)
def test_a_conformal_quantile_covers_the_next_score_of_few(level):
    "The guarantee of split conformal prediction for exchangeable scores, whatever their distribution."
    rng, inside, n = np.random.default_rng(0), 0, 60
    for _ in range(4000):
        scores = np.abs(rng.standard_t(3, n + 1))
        inside += scores[-1] <= conformal_quantile(scores[:-1], level)
    assert level - 0.015 < inside / 4000 < level + 1 / n + 0.015


def test_with_overlapping_outcomes_the_correction_counts_fewer_scores():
    scores = np.random.default_rng(1).random(1500)
    wider = [conformal_quantile(scores, 0.8, horizon) for horizon in (1, 6, 24)]
    assert wider == sorted(wider) and wider[0] < wider[-1]
    with pytest.raises(TooFewRows, match="1,500 scores over 72 h are too few for an interval"):
        conformal_quantile(scores, 0.8, 72)


def test_every_interval_takes_the_same_quantile_of_the_same_scores():
    index = pd.date_range("2024-01-01", periods=24 * 120, freq="h", tz="UTC")
    scores = pd.DataFrame(np.random.default_rng(2).random((len(index), 1)), index)
    known = scores.iloc[-24 * 91 - 24 : -24 * 1 - 24, 0].to_numpy()   # 90 days known at the last midnight
    expected = [conformal_quantile(known, level, 24) for level in LEVELS]
    np.testing.assert_array_equal(trailing_quantiles(scores, 24).iloc[-1], expected)
    np.testing.assert_array_equal(known_quantiles(known, 24), expected)
    assert np.isnan(known_quantiles(known[: 59 * 24], 24)).all()


# ---------------------------------------------------------------- out of sample
BARS = demo_market(3200, seed=5)


@pytest.mark.parametrize("horizon", [1, 24])
def test_scores_are_of_bars_after_the_fit_and_their_outcomes_are_training_bars(horizon):
    scores = move_scores(BARS.iloc[:2700], horizon)
    assert len(scores) == 2700 // 3 - horizon
    changed = BARS.copy()
    changed.iloc[2700:, :4] *= 2.0
    np.testing.assert_array_equal(move_scores(changed.iloc[:2700], horizon), scores)


def test_no_bar_after_the_training_changes_an_interval_and_none_of_it_is_forecast():
    fitted, changed = Intervals(6).fit(None, BARS.iloc[:2700]), BARS.copy()
    changed.iloc[2800:, :4] *= 2.0
    full, other = (fitted.predict(None, b, 2700) for b in (BARS, changed))
    pd.testing.assert_frame_equal(full.iloc[:100], other.iloc[:100], check_exact=True)
    cut = fitted.predict(None, BARS.iloc[:2800], 2700)
    pd.testing.assert_frame_equal(full.iloc[:100], cut, check_exact=True)
    with pytest.raises(TrainingSpanError): fitted.predict(None, BARS, 2699)


def test_intervals_are_the_same_after_a_round_trip_through_json():
    fitted = Intervals(6).fit(None, BARS.iloc[:2700])
    again = FittedIntervals.from_dict(json.loads(json.dumps(fitted.to_dict(), allow_nan=False)))
    pd.testing.assert_frame_equal(again.predict(None, BARS, 2700), fitted.predict(None, BARS, 2700))
    ratios = np.linspace(0, 5, 50)
    np.testing.assert_array_equal(again.beyond(ratios), fitted.beyond(ratios))


@pytest.mark.parametrize("horizon", [1, 6, 72])
def test_the_fewest_bars_are_enough_and_one_less_is_not(horizon):
    n = fewest_bars(horizon)
    long = demo_market(n, seed=2)
    assert Intervals(horizon).fit(None, long).n >= 60 * horizon
    with pytest.raises(TooFewRows, match=f"pass at least {n:,}"):
        Intervals(horizon).fit(None, long.iloc[1:])


@pytest.mark.parametrize("horizon", [1, 6, 24])
def test_a_young_market_has_no_interval_rather_than_an_absurd_one(horizon):
    "Fitted on 1,600 bars, the width is up to 4 times that of a long history."
    assert training_intervals(training_until(horizon), BARS.iloc[-1600:]) is None


def training_until(horizon):
    "A training up to the last bar."
    return SimpleNamespace(config=Intervals(horizon), trained_until=BARS.index[-1].isoformat())


# ---------------------------------------------------------------- one hour: closes, not ranges
def test_the_sigma_of_an_hour_is_that_of_closes_where_ranges_are_smaller():
    "Highs and lows that say half of the volatility of the closes, as in a market of few trades."
    rng = np.random.default_rng(0)
    close = pd.Series(100 * np.exp(np.cumsum(0.01 * rng.standard_normal(5400))))
    open_ = close.shift(1).fillna(100.0) * np.exp(0.5 * np.log(close / close.shift(1).fillna(100.0)))
    ends = pd.concat([open_, close], axis=1)
    index = pd.date_range("2024-01-01", periods=5400, freq="h", tz="UTC")
    table = {"open": open_, "high": ends.max(axis=1), "low": ends.min(axis=1), "close": close}
    bars = pd.DataFrame(table).assign(volume=1.0).set_axis(index)
    fitted = Intervals(1).fit(None, bars.iloc[:5040])
    sigma = fitted.predict(None, bars, 5040)["sigma_ahead"]
    assert hourly_sigma(sigma, 1).median() == pytest.approx(0.01, rel=0.06)
    target = np.exp(fitted.volatility.predict(None, bars, 5040) / 2)
    assert target.median() < 0.008   # of the bar's range, which sizes must not take


# ---------------------------------------------------------------- walk-forward
RUN = small_run(train_hours=2000, hours=240, retrain_every=120)


@pytest.fixture(scope="module")
def walked():
    bars = run_bars(RUN, seed=1)
    return bars, walk_forward(bars, RUN)


def test_each_fold_is_fitted_on_the_bars_before_it(walked):
    bars, walk = walked
    for number, fold in walk.folds.iterrows():
        seen = bars.loc[: pd.Timestamp(fold["trained_until"])]
        assert seen.index[-1] < fold["tested_from"]
        rows = walk.predictions[walk.predictions["fold"] == number]
        start = bars.index.get_loc(rows.index[0])
        alone = Intervals(1).fit(None, seen).predict(None, bars.iloc[: start + len(rows)], start)
        pd.testing.assert_frame_equal(rows[list(alone)], alone, check_exact=True, check_freq=False)


def test_stored_forecasts_keep_the_intervals(walked):
    bars, walk = walked
    again = unpacked_forecasts(packed_forecasts(walk), bars, RUN)
    columns = ["sigma_ahead", "interval_80", "interval_95"]
    pd.testing.assert_frame_equal(again.predictions[columns], walk.predictions[columns], check_freq=False)
    assert forecast_key(bars, RUN) != forecast_key(bars, replace(RUN, exceed="distribution"))
    assert forecast_key(bars, RUN) == forecast_key(bars, replace(RUN, sizing_volatility="trailing"))


def test_too_few_bars_leave_a_run_without_intervals_and_nothing_else():
    run = small_run()
    result = backtest(run_bars(run), run)
    assert result["predictions"]["sigma_ahead"].isna().all() and not result["intervals"]["bars"].any()
    sized = replace(run, sizing="volatility", size=0.3, rules=dict.fromkeys(("adx", "trend", "vwap"), False))
    results = [backtest(run_bars(run), replace(sized, sizing_volatility=v)) for v in ("forecast", "trailing")]
    assert results[0]["equity"].equals(results[1]["equity"])


def test_a_forecast_of_the_volatility_that_looks_ahead_is_a_leak(walked, monkeypatch):
    def peeking(model, bars):
        fitted = training_intervals(model, bars)
        if fitted is None: return None
        class Ahead(FittedIntervals):
            def predict(self, table, b, start=0):
                out, later = super().predict(table, b, start), b["high"].shift(-2) / b["low"].shift(-2)
                return out.mul(1 + np.log(later.iloc[start:]).fillna(0), axis=0)
        return Ahead(fitted.horizon, fitted.volatility, fitted.factors, fitted.errors, fitted.n)

    bars = regular_grid(walked[0])
    assert certificate(bars, run=RUN, thorough=False).passed
    monkeypatch.setattr(walkforward, "training_intervals", peeking)
    proof = certificate(bars, run=RUN, thorough=False)
    assert proof.offending == "forecast: sigma_ahead", proof.sentence


def test_a_fit_on_bars_of_the_test_is_a_leak(walked, monkeypatch):
    "Fitted on all bars there are, with a span that pretends otherwise."
    def on_all(model, bars):
        fitted = training_intervals(model, bars)
        if fitted is None: return None
        known = Intervals(fitted.horizon).fit(None, bars)
        volatility = replace(known.volatility, span=fitted.volatility.span)
        return replace(known, volatility=volatility)

    monkeypatch.setattr(walkforward, "training_intervals", on_all)
    proof = certificate(regular_grid(walked[0]), run=RUN, thorough=False)
    assert not proof.passed and proof.offending == "forecast: sigma_ahead", proof.sentence


# ---------------------------------------------------------------- live
LIVE = RunConfig(lookback=12, network=TINY, horizon=3, threshold_scale=0.01)


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    now = SignalGenerator(exchange="simulated", home=home, config=LIVE).decide_now(hours=240)
    n = 240 + LIVE.lookback + LIVE.horizon + WARMUP + CALIBRATION_BARS
    whole = market_bars("BTC/USD", n, exchange="simulated", home=home, seed=LIVE.seed)
    return now, whole, home


def test_the_live_interval_is_the_one_of_a_backtest_with_the_same_bars(live):
    now, whole, _ = live
    # the last fold tests the decided bar alone
    run = replace(LIVE, hours=49, retrain_every=48, train_hours=240)
    walk = walk_forward(whole, run)
    last, ahead = walk.predictions.iloc[-1], now.signal["predicted_interval"]
    assert walk.folds["trained_until"].iloc[-1] == now.model.trained_until
    assert last.name == now.bars.index[-1] and now.bars["close"].iloc[-1] == whole["close"].iloc[-1]
    assert ahead["sigma"] == pytest.approx(last["sigma_ahead"], rel=1e-9)
    for level in ("80", "95"):
        ends, width = ahead["levels"][level], last[f"interval_{level}"]
        assert ends["low"] == pytest.approx(ahead["center"] * np.exp(-width), rel=1e-9)
        assert ends["high"] == pytest.approx(ahead["center"] * np.exp(width), rel=1e-9)


def test_a_live_interval_is_the_one_of_a_longer_backtest_at_the_same_hour(tmp_path):
    "The signal trains on 240 windows, and still takes as many bars for its interval as the backtest."
    run = replace(LIVE, exchange="coinbaseexchange")
    with with_gaps(hours=6500) as exchange:
        url = exchange.url
        now = SignalGenerator(config=run, exchange_url=url, home=tmp_path).decide_now(hours=240)
        whole = market_bars("BTC/USD", 6400, exchange=run.exchange, exchange_url=url, home=tmp_path)
    walk = walk_forward(whole, replace(run, hours=49, retrain_every=48, train_hours=240))
    last, ahead = walk.predictions.iloc[-1], now.signal["predicted_interval"]
    assert walk.folds["trained_until"].iloc[-1] == now.model.trained_until
    assert last.name == now.bars.index[-1] and len(now.bars) < forecast_bars(run.horizon)
    assert ahead["sigma"] == pytest.approx(last["sigma_ahead"], rel=1e-9)
    for level in ("80", "95"):
        ends, width = ahead["levels"][level], last[f"interval_{level}"]
        assert ends["high"] == pytest.approx(ahead["center"] * np.exp(width), rel=1e-9)


def test_live_and_backtest_agree_on_the_probability_of_the_distribution(live):
    now, whole, home = live
    run = replace(LIVE, exceed="distribution", entry="probability", p_min=0.05)
    again = SignalGenerator(exchange="simulated", home=home, config=run).decide_now(hours=240)
    assert again.signal["model_info"]["version"] == now.signal["model_info"]["version"]
    walk = walk_forward(whole, replace(run, hours=49, retrain_every=48, train_hours=240))
    assert again.signal["p_exceed"] == pytest.approx(walk.predictions["p_exceed"].iloc[-1], rel=1e-9)
    assert again.signal["p_exceed"] != now.signal["p_exceed"]
    assert "either direction is equally likely" in again.signal["p_exceed_definition"]


def test_a_reused_model_has_intervals_for_later_bars_and_a_record_with_probabilities(live, tmp_path):
    end = pd.Timestamp("2025-03-01", tz="UTC")
    run = replace(LIVE, exceed="distribution")
    def at(hours):
        made = replace(run, end=(end + pd.Timedelta(hours, "h")).isoformat())
        return SignalGenerator(exchange="simulated", home=tmp_path, config=made).decide_now(240, 48)
    first, later = at(0), at(20)
    assert later.signal["model_info"]["version"] == first.signal["model_info"]["version"]
    ahead = [d.signal["predicted_interval"] for d in (first, later)]
    assert ahead[0]["sigma"] != ahead[1]["sigma"] and ahead[0]["scores"] == ahead[1]["scores"]
    past = past_decisions(later.history, later.table, later.bars, run)
    assert len(past) == 20 and past["p_exceed"].between(0, 0.5).all()


def test_a_model_of_the_format_before_has_no_interval_and_still_decides(live):
    now, _, home = live
    folder = now.history[0].folder
    stored = (folder / "bundle.json").read_text()
    table = json.loads(stored)
    del table["intervals"]
    try:
        sealed(folder, table | {"format": 3})
        for exceed in ("calibrated", "distribution"):
            run = replace(LIVE, exceed=exceed)
            old = SignalGenerator(exchange="simulated", home=home, config=run).decide_now(hours=240)
            assert old.signal["predicted_price"] == now.signal["predicted_price"]
            assert old.signal["predicted_interval"] is None
            assert (old.signal["p_exceed"] is None) == (exceed == "distribution")
        assert decision_record(old, None)["volatility"] is None
    finally: (folder / "bundle.json").write_text(stored)


def test_a_market_with_a_short_history_gives_a_signal_without_an_interval(tmp_path, capsys):
    with with_gaps(hours=1100) as exchange:
        signal = generator(exchange, tmp_path).generate_signals(hours=120)
    assert signal["predicted_interval"] is None and signal["predicted_price"] is not None
    print_signal(signal)
    out = " ".join(capsys.readouterr().out.split())
    assert "around the last close" not in out and "need 2,700 bars up to the training" in out
    assert "2,700 bars" in signal["no_interval_reason"]


def test_terminal_states_interval_and_centre(live, capsys):
    print_signal(live[0].signal)
    out = " ".join(capsys.readouterr().out.split())
    ends = live[0].signal["predicted_interval"]["levels"]["80"]
    assert f"80%: {ends['low']:,.6g} to {ends['high']:,.6g}" in out and "in 3 h, around the last close" in out


# ---------------------------------------------------------------- sizing
def test_a_run_sizes_by_its_forecast_unless_it_asks_for_the_last_day(walked):
    bars, walk = walked
    run = replace(
        RUN, sizing="volatility", size=0.1, rules=dict.fromkeys(("adx", "trend", "vwap", "macd"), False)
    )
    by = {v: backtest(bars, replace(run, sizing_volatility=v), walk=walk) for v in ("forecast", "trailing")}
    quantities = {v: r["trades"]["quantity"] for v, r in by.items()}
    assert len(quantities["forecast"]) > 5
    assert not np.allclose(quantities["forecast"].iloc[0], quantities["trailing"].iloc[0])
    for v, r in by.items():
        first = r["trades"].iloc[0]
        at = first["decided_time"]
        sigma = walk.predictions["sigma_ahead"][at] if v == "forecast" else walk.table["sigma"][at]
        share = min(1, 0.1 / (sigma * np.sqrt(8760)))
        expected = run.initial_balance * share / (first["entry_price"] * (1 + run.fee))
        assert first["quantity"] == pytest.approx(expected, rel=1e-9)


def test_a_run_that_takes_everything_does_not_depend_on_the_volatility(walked):
    bars, walk = walked
    run = replace(RUN, rules=dict.fromkeys(("adx", "trend", "vwap", "macd"), False))
    results = [backtest(bars, replace(run, sizing_volatility=v), walk=walk) for v in ("forecast", "trailing")]
    assert len(results[0]["trades"]) and results[0]["equity"].equals(results[1]["equity"])


def test_a_sigma_over_hours_is_divided_by_their_root():
    "A target of 30% a year: σ over a day of √24 times the hourly one gives the same size."
    bars, day = BARS.iloc[:100], pd.Series(0.01 * np.sqrt(24), BARS.index[:100])
    aimed = dict(sizing="volatility", size=0.3, sigma=np.full(100, 0.05))
    hourly = simulate(bars, np.ones(100), **aimed, volatility=hourly_sigma(day, 24))["trades"]
    alone = simulate(bars, np.ones(100), **{**aimed, "sigma": np.full(100, 0.01)})["trades"]
    assert hourly["quantity"].iloc[0] == pytest.approx(alone["quantity"].iloc[0], rel=1e-12)


def test_where_there_is_no_forecast_the_last_day_counts():
    ahead = np.where(np.arange(200) % 2, np.nan, 0.02)
    mixed = sizing_sigma(BARS["close"].to_numpy()[:200], None, ahead, "forecast")
    moves = np.log(BARS["close"]).diff()
    assert (mixed[::2] == 0.02).all() and mixed[101] == pytest.approx(moves.iloc[78:102].std(), rel=1e-9)


def test_a_sweep_and_a_simulation_size_alike():
    bars, table = BARS.iloc[800:1600], features(BARS).iloc[800:1600]
    rng = np.random.default_rng(0)
    signal = np.repeat(rng.integers(-1, 2, 80), 10)
    series = {
        "atr": table["atr"],
        "sigma": table["sigma"],
        "volatility": pd.Series(rng.uniform(0.001, 0.02, 800), bars.index).mask(rng.random(800) < 0.3),
    }
    for how in ({}, {"sizing_volatility": "trailing"}):
        points = sweep(bars, signal, {"sizing": ["all_in", "volatility"], "size": [1.0]}, **series, **how)
        for _, row in points.iterrows():
            alone = simulate(bars, signal, sizing=row["sizing"], size=1.0, **series, **how)
            returned = alone["final_balance"] / alone["initial_balance"] - 1
            assert row["total_return"] == pytest.approx(returned, rel=1e-9)


@pytest.mark.parametrize("source, expected", [("forecast", 0.004), ("trailing", 0.008)])
def test_a_paper_account_sizes_as_the_backtest(source, expected):
    bars = BARS.iloc[:6].assign(is_gap=False)
    detail = {"atr": 100.0, "sigma": 0.008, "volatility": 0.004}
    hours = [int(t.timestamp()) // 3600 for t in bars.index]
    decided = [Decided(k, "BTC/USD", hour, 1, 1, detail) for k, hour in enumerate(hours)]
    orders = Orders(sizing="volatility", size=0.3, sizing_volatility=source)
    account = paper_account(bars, decided, orders)
    alone = simulate(bars, np.ones(6), **vars(orders), atr=np.full(6, 100.0), sigma=np.full(6, expected))
    assert account.share == pytest.approx(0.3 / (expected * np.sqrt(8760)))
    assert account.result["equity"].tolist() == alone["equity"].tolist()
    older = [replace(d, detail={"atr": 100.0, "sigma": 0.008}) for d in decided]   # of an earlier release
    assert paper_account(bars, older, orders).share == pytest.approx(0.3 / (0.008 * np.sqrt(8760)))


def test_a_decision_carries_the_forecast_of_the_size(live):
    now, _, _ = live
    ahead = now.signal["predicted_interval"]
    assert decision_record(now, None)["volatility"] == pytest.approx(ahead["sigma"] / np.sqrt(3), rel=1e-12)


# ---------------------------------------------------------------- probability
@pytest.mark.parametrize("horizon", [1, 6])
def test_the_probability_of_the_distribution_is_the_observed_frequency(horizon):
    "Half of the moves beyond the threshold, since a direction drawn by lot is right half of the time."
    bars = demo_market(9000, seed=8)
    table, run = features(bars), RunConfig(horizon=horizon, exceed="distribution")
    fitted = Intervals(horizon).fit(None, bars.iloc[:5040])
    sigma = fitted.predict(None, bars, 5040)["sigma_ahead"]
    rows = table.iloc[5040:]
    side = pd.Series(np.random.default_rng(0).choice([-0.1, 0.1], len(rows)), rows.index)
    p = walkforward.distribution_exceedance(fitted, sigma, side, rows, run)
    gain = np.sign(side) * (bars["close"].shift(-horizon) - bars["close"]).loc[rows.index]
    beyond = (gain > entry_threshold(rows, run)).iloc[:-horizon]
    assert p.iloc[:-horizon].mean() == pytest.approx(beyond.mean(), abs=0.03)
    groups = pd.qcut(p.iloc[:-horizon], 4)
    seen = pd.DataFrame({"p": p.iloc[:-horizon], "beyond": beyond}).groupby(groups, observed=True).mean()
    assert seen["p"].corr(seen["beyond"]) > 0.5, seen


def test_a_run_by_the_distribution_has_a_probability_wherever_it_has_a_forecast(walked):
    bars, walk = walked
    rules = {"likely": 0.08, "adx": False}
    run = replace(RUN, exceed="distribution", entry="probability", p_min=0.05, rules=rules)
    result = backtest(bars, run)
    p = result["predictions"]["p_exceed"]
    assert p.between(0, 0.5).all() and walk.predictions["p_exceed"].isna().all()
    entered = result["signals"][result["signals"]["signal"] != 0]
    assert (entered["p_exceed"] >= 0.08).all()
    pd.testing.assert_series_equal(result["predictions"]["prediction"], walk.predictions["prediction"])


def test_a_required_probability_that_the_distribution_hardly_gives_is_a_note_of_the_run(walked):
    run = replace(RUN, exceed="distribution", entry="probability", threshold_scale=1.0)
    unlikely = backtest(walked[0], run)["data"]["unlikely"]
    assert "reach p_min=0.3" in unlikely and "a tenth reach p_min=" in unlikely
    enough = float(unlikely.rpartition("=")[2])
    assert 0.05 < enough < 0.3
    assert "unlikely" not in backtest(walked[0], replace(run, p_min=enough))["data"]


def test_trials_of_earlier_releases_have_the_same_hash():
    def hashed(config):
        return Trial("BTC/USD", "m", "a", "b", "h", config, None, 1, None, None, None).config_hash
    usual = vars(RunConfig())
    later = ("exceed", "sizing_volatility")
    assert hashed(usual) == hashed({k: v for k, v in usual.items() if k not in later})
    assert hashed(usual) != hashed(usual | {"exceed": "distribution"})


# ---------------------------------------------------------------- bad input
FOUR = BARS.iloc[:4]
REFUSED = {
    "a negative forecast": (
        lambda: simulate(FOUR, [0] * 4, volatility=[0.01, -1, 0.01, 0.01]),
        "row 1 .*volatility is -1; pass a standard deviation",
    ),
    "too few forecasts": (lambda: simulate(FOUR, [0] * 4, volatility=[0.01]), "volatility has 1 rows"),
    "text": (lambda: simulate(FOUR, [0] * 4, volatility=["a"] * 4), "volatility holds .*pass numbers"),
    "an unknown source": (
        lambda: simulate(FOUR, [0] * 4, sizing_volatility="forcast"), "did you mean forecast"
    ),
    "an unknown probability": (lambda: RunConfig(exceed="distributed"), "did you mean distribution"),
    "a probability that the distribution never gives": (
        lambda: backtest(BARS, RunConfig(exceed="distribution", entry="probability", p_min=0.6)),
        "p_min is 0.6, .*pass a smaller one",
    ),
    "a probability above 1": (
        lambda: model_config(RunConfig()) and backtest(BARS, RunConfig(rules={"likely": 1.2})),
        "rules likely is 1.2; pass a bound from 0 to 1",
    ),
    "a portfolio without one ticker's": (
        lambda: portfolio({"A/USD": FOUR}, {"A/USD": [0] * 4}, weighting="risk", volatility={}),
        "volatility has other tickers than the bars",
    ),
    "a portfolio with a negative one": (
        lambda: portfolio({"A/USD": FOUR}, {"A/USD": [0] * 4}, volatility={"A/USD": [1, -1, 1, 1]}),
        "A/USD: row 1 .*volatility is -1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_sentence(name):
    call, text = REFUSED[name]
    with pytest.raises(InputError, match=text): call()
