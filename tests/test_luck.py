"""Luck is not taken for skill: few trades, near-copies of a trial and drifting markets pass no rule more
often than it allows."""

import math

import numpy as np
import pandas as pd
import pytest
import simulate_rules as rules
from scipy import stats

from cryptolstm.data.demo import demo_market
from cryptolstm.stats.bootstrap import FEWEST_TRADES, bootstrap, mean_trade, random_entry_p, trade_returns
from cryptolstm.stats.performance import sharpe, sharpe_se
from cryptolstm.stats.skill import RULE_POWER, clark_west, expanding_mean, min_detectable_hit, sharpe_se_hac
from cryptolstm.stats.overfit import (
    ENOUGH_TRADES,
    across_tickers,
    clusters,
    deflation,
    probabilistic_sharpe,
    sharpe_sample,
    zero_skill_best,
)
from cryptolstm.execution.simulate import simulate
from cryptolstm.proof.trials import Ledger, Standing, Trial
from cryptolstm.proof.verdict import Level, verdict

SKILLED = {
    "hit": 0.56,
    "hit_low": 0.53,
    "hit_high": 0.59,
    "hit_expected": 0.5,
    "n_hit": 2000,
    "n": 2000,
    "cw_p": 1e-4,
    "cw_mean_p": 1e-4,
    "pt_p": 1e-4,
}


def allowed(runs: int, level: float) -> float:
    return stats.binom.ppf(0.999, runs, level) / runs


# ---------------------------------------------------------------- few trades
def test_one_lucky_hour_has_no_deflated_ratio():
    r = np.zeros(720)
    r[5] = 0.005
    assert probabilistic_sharpe(*sharpe_sample(r)) > 0.97
    for closed in (1, ENOUGH_TRADES - 1):
        found = deflation(sharpe_sample(r), closed, 1, 0.0)
        assert math.isnan(found["deflated_sharpe"]) and math.isnan(found["probabilistic_sharpe"])
        assert found["closed_trades"] == closed


def test_true_forecasts_and_one_lucky_trade_are_no_candidate():
    found = verdict(SKILLED, 0.1, 0.02, -0.3, trades=1, deflated=math.nan, closed=1, luck_p=math.nan)
    assert Level.of(found.level) == Level.NOT_SIGNIFICANT and "at least 30 are required" in found.sentence
    many = verdict(SKILLED, 0.1, 0.02, -0.3, trades=300, deflated=0.97, closed=300, luck_p=0.01)
    assert many.level == "CANDIDATE"
    for more in ({"luck_p": 0.06}, {"deflated": 0.9}, {"luck_p": math.nan}):
        given = {"deflated": 0.97, "luck_p": 0.01, **more}
        text = verdict(SKILLED, 0.1, 0.02, -0.3, trades=300, closed=300, **given)
        assert Level.of(text.level) == Level.NOT_SIGNIFICANT and "300 closed trades" in text.sentence


def test_random_entries_have_the_exposure_of_the_trades():
    "An always-long signal in a rising market is no timing; one that sits out the falls is."
    bars = demo_market(720, seed=5)
    up = bars.assign(
        **{k: bars[k] * np.exp(0.001 * np.arange(720)) for k in ("open", "high", "low", "close")}
    )
    rng = np.random.default_rng(0)
    blind = simulate(up, (rng.random(720) < 0.5).astype(int), fee=0.0)
    move = up["open"].shift(-2) / up["open"].shift(-1) - 1
    timed = simulate(up, (move > 0).astype(int), fee=0.0)
    assert blind["final_balance"] > 110_000 and random_entry_p(blind, up) > 0.05 > random_entry_p(timed, up)


@pytest.mark.parametrize("trades", [1, 5, 30])
def test_worthless_bets_pass_no_more_often_than_the_level(trades):
    naive, passed = rules.false_passes(trades, runs=100, reps=200)
    assert passed <= allowed(100, 0.05) and (trades >= ENOUGH_TRADES or passed == 0 < naive)


@pytest.mark.slow
@pytest.mark.parametrize("trades", rules.TRADES)
def test_worthless_bets_pass_no_more_often_than_the_level_for_any_number_of_trades(trades):
    assert rules.false_passes(trades)[1] <= allowed(400, 0.05)


# ---------------------------------------------------------------- intervals
def coin(bars: pd.DataFrame, trades: int) -> dict:
    "A result with this many closed one-hour trades."
    signal = np.zeros(len(bars), int)
    signal[5 : 5 + 4 * trades : 4] = np.resize([1, -1], trades)
    return simulate(bars, signal, fee=0.0)


def test_intervals_are_undefined_below_ten_trades():
    bars = demo_market(720, seed=1)
    few, enough = (bootstrap(coin(bars, n), reps=100) for n in (FEWEST_TRADES - 1, FEWEST_TRADES))
    assert few[["low", "high"]].isna().all().all() and few.attrs["trades"] == FEWEST_TRADES - 1
    assert enough.notna().all().all() and enough.attrs["trades"] == FEWEST_TRADES
    assert math.isnan(mean_trade(trade_returns(coin(bars, 9))).p)


@pytest.mark.parametrize("kind", ["normal", "fat", "skewed"])
def test_ten_trades_cover_the_true_mean(kind):
    assert 0.92 <= rules.coverage(10, kind, runs=600, reps=200) <= 0.98


def test_an_interval_of_few_resamples_is_no_narrower_on_average():
    "The 95% quantile of 19 absolute values is the largest; a lower one would cover 90% only."
    x = np.random.default_rng(2).standard_normal((300, 20))
    few, many = (np.mean([mean_trade(row, reps).half for row in x]) for reps in (19, 1000))
    assert few > many


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "fat", "skewed"])
@pytest.mark.parametrize("trades", rules.COVERED)
def test_intervals_cover_the_truth_as_often_as_they_say(trades, kind):
    assert 0.93 <= rules.coverage(trades, kind) <= 0.97


# ---------------------------------------------------------------- near-copies
def test_copies_of_a_trial_do_not_undo_the_deflation():
    rng = np.random.default_rng(0)
    r = rules.many_trials(rng, "30 and 270 near-copies of one")
    labels = clusters(r)
    assert labels.max() + 1 == 30 and (labels[30:] == labels[0]).all()
    alone = zero_skill_best(30, 0.0, 720)
    assert zero_skill_best(10_030, 1e-9, 720, 30, 1e-6) >= alone > 2 / math.sqrt(720)
    # many ratios of small variance: the floor is 1/n however many they are
    assert zero_skill_best(100, 1e-9, 720) == zero_skill_best(100, 0.0, 720) > 2 / math.sqrt(720)


def test_clusters_compare_common_hours_only():
    rng = np.random.default_rng(1)
    r = np.full((300, 4), np.nan)
    r[:200, 0] = rng.standard_normal(200)
    r[50:250, 1] = np.r_[r[50:200, 0], rng.standard_normal(50)]  # three quarters are the same hours
    r[150:, 2] = np.r_[r[150:200, 0], rng.standard_normal(100)]  # a third is
    r[:, 3] = 0.0
    assert clusters(r).tolist() == [0, 0, 1, 2] and clusters(r[:, [3, 3, 0]]).tolist() == [0, 0, 1]
    wide = rng.standard_normal((100, 600))
    assert clusters(np.c_[wide, wide]).tolist() == [*range(600)] * 2


def test_the_ledger_counts_copies_as_one_trial(tmp_path):
    rng, book = np.random.default_rng(2), Ledger(tmp_path)
    first = rng.normal(0, 0.01, 24)
    for k in range(12):
        r = first + 1e-4 * rng.standard_normal(24) if k else first
        standing = book.enter(
            Trial(
                "ETH/USD",
                "kraken",
                "2025-01-01T00:00Z",
                "2025-01-02T00:00Z",
                "d",
                {"k": k},
                r.mean() / r.std(ddof=1),
                24,
                0.0,
                3.0,
                None,
                r,
            )
        )
    assert (standing.trials, standing.different) == (12, 1) and 0 < standing.within < standing.variance * 1.01
    assert "12 on these bars, which count as 1" in standing.sentence()


def test_page_and_sweep_deflate_alike():
    from cryptolstm.research.backtest import search_of
    from cryptolstm.research.sweeps import judge_surface

    bars, standing = demo_market(720, seed=3), Standing(3, 40, 1e-6, different=12, within=1e-5)
    result = coin(bars, 60)
    r = (result["equity"] / result["equity"].shift(1).fillna(100_000) - 1).to_frame(0)
    table = pd.DataFrame({"total_return": [0.1], "num_trades": [60], "closed_trades": [60]})
    page, sweep = search_of(result, bars, standing), judge_surface(table, r, standing, reps=100)
    for key in ("deflated_sharpe", "expected_best", "closed_trades"):
        assert page[key] == pytest.approx(sweep[key], rel=1e-9)


@pytest.mark.parametrize("kind", rules.TRIALS)
def test_the_best_of_worthless_trials_rarely_passes(kind):
    before, now = rules.best_passes(kind, runs=20)
    assert now <= allowed(20, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", rules.TRIALS)
def test_the_best_of_worthless_trials_passes_no_more_often_than_the_level(kind):
    assert rules.best_passes(kind)[1] <= allowed(200, 0.05)


# ---------------------------------------------------------------- forecast tests
@pytest.mark.parametrize("horizon", rules.HORIZONS)
@pytest.mark.parametrize("drift", [False, True])
def test_the_simulated_statistic_is_that_of_the_package(horizon, drift):
    rng = np.random.default_rng(horizon)
    steps, sigma = rules.market_steps(rng, "drift", 2, 400)
    f, steps = rules.null_forecasts(rng, "momentum 24 h", steps, sigma)[:, 399:-1], steps[:, 400:]
    p = rules.many_clark_west(steps, f, horizon, drift)
    for k in range(2):
        step = pd.Series(steps[k], pd.date_range("2025-01-01", periods=400, freq="h", tz="UTC"))
        y, forecast = step.rolling(horizon).sum().shift(1 - horizon), pd.Series(f[k], step.index)
        mean = expanding_mean(y, horizon) if drift else None
        assert clark_west(y, forecast, horizon, mean, step).p == pytest.approx(p[k], rel=1e-9)


def test_a_lucky_mean_is_no_skill():
    "In a rising market 'always up' beats persistence at every horizon, and adds nothing to the mean return."
    rng, beaten = np.random.default_rng(0), {None: 0, "mean": 0}
    index = pd.date_range("2025-01-01", periods=2000, freq="h", tz="UTC")
    for _ in range(60):
        step = pd.Series(rng.standard_normal(2000) + 0.06, index)
        y = step.rolling(24).sum().shift(-23)
        for against in beaten:
            mean = expanding_mean(y, 24) if against else None
            beaten[against] += clark_west(y, 1 + 0 * y, 24, mean, step).p < 0.01
    assert beaten[None] > 30 and beaten["mean"] <= stats.binom.ppf(0.999, 60, 0.015)


def test_overlapping_persistent_forecasts_are_rejected_at_the_level():
    "With Bartlett weights and h - 1 lags the rate was up to five times the level."
    table = rules.sizes(24, runs=200, level=0.05)
    assert table.to_numpy().max() <= 1.5 + 3 * math.sqrt(0.95 / 0.05 / 200)
    assert table.to_numpy().mean() <= 1.2


@pytest.mark.slow
@pytest.mark.parametrize("horizon", rules.HORIZONS)
def test_the_size_of_clark_west_is_near_the_level_in_every_cell(horizon):
    """Momentum leans on the mean and is rejected less often; the mean of an hour of the day, over a whole day
    of drift, is rejected 1.7 times as often; every other cell lies in 0.5 to 1.5 of the level."""
    table, error = rules.sizes(horizon, runs=2000, level=0.05), math.sqrt(0.95 / 0.05 / 2000)
    if horizon == 24:
        assert table.loc["hour of day", "drift"] <= 1.7 + error
        table.loc["hour of day", "drift"] = 1.0
    assert (table <= 1.5 + error).all().all()
    assert (table.drop(["momentum 24 h", "momentum 168 h"]) >= 0.5 - error).all().all()


@pytest.mark.slow
def test_the_power_sentence_keeps_its_promise():
    for n, hit in rules.DETECTED.items():
        assert min_detectable_hit(n, RULE_POWER) == pytest.approx(hit, abs=0.0021)
        assert rules.power(hit, n) == pytest.approx(0.8, abs=0.1)


def test_baselines_and_better_forecasters_stop_a_candidate():
    passed = {"deflated": 0.97, "closed": 300, "luck_p": 0.01, "trades": 300}
    assert (
        verdict(SKILLED, 0.1, 0.02, -0.3, {"momentum": 0.05}, {"ridge": 0.2}, **passed).level == "CANDIDATE"
    )
    for name in ("momentum", "rules without the LSTM", "ridge with the rules"):
        stopped = verdict(SKILLED, 0.1, 0.02, -0.3, {name: 0.2}, {"ridge": 0.2}, **passed)
        assert stopped.level == "SKILL, NOT PROFITABLE" and f"{name}, returned +20.0%" in stopped.sentence
        assert stopped.numbers["to_beat"] == 0.2 and "than ridge = 0.200" in stopped.sentence
    worse = verdict({**SKILLED, "mcs_p": 0.03}, 0.1, 0.02, -0.3, **passed)
    assert (
        Level.of(worse.level) == Level.NOT_SIGNIFICANT and "model confidence set p = 0.030" in worse.sentence
    )


def test_the_alarm_speaks_of_hours_only_at_a_horizon_of_one():
    row = {**SKILLED, "hit": 0.8, "hit_low": 0.75}
    assert "Hourly forecasts" in verdict(row, 0.1, 0.02, -0.3).sentence
    assert "Hourly" not in verdict(row, 0.1, 0.02, -0.3, horizon=24).sentence


def test_a_thin_market_is_measured_from_the_next_open():
    """The close bounces between bid and ask: betting against the last bar is right on closes, and from the
    next open it is right by chance."""
    from cryptolstm.research.backtest import forecast_skill, from_next_open

    bars, rng = demo_market(3000, seed=1), np.random.default_rng(0)
    bounce = np.exp(0.002 * rng.choice([-1, 1], 3000))
    bars = bars.assign(close=bars["close"] * bounce)
    bars[["high", "low"]] = np.c_[
        bars[["open", "close", "high"]].max(axis=1), bars[["open", "close", "low"]].min(axis=1)
    ]
    move = np.log(bars["close"]).diff()
    table = forecast_skill(bars, move.shift(-1), {"LSTM": -0.05 * move}, 1)
    later = table.loc[from_next_open("LSTM")]
    assert table.loc["LSTM", "cw_p"] < 0.01 < later["cw_p"]
    assert table.loc["LSTM", "hit"] > later["hit"] + 0.02


def test_serial_dependence_widens_the_error_of_the_sharpe_ratio():
    "Coverage of zero by ±1.96 errors: hourly returns of positions that are averaged over six hours."
    rng, plain, robust = np.random.default_rng(0), 0, 0
    for _ in range(200):
        r = pd.Series(np.convolve(rng.standard_normal(725), np.ones(6) / 6, "valid"))
        ratio = sharpe(r)
        plain, robust = (
            plain + (abs(ratio) < 1.96 * sharpe_se(r)),
            robust + (abs(ratio) < 1.96 * sharpe_se_hac(r)),
        )
    assert plain < 140 and robust > 170


def test_tickers_that_were_tested_but_not_passed_count():
    def result(ticker, p, others=0):
        skill = {"hit": 0.55, "ic": 0.05, "cw_p": p, "pt_p": p, "cw_mean_p": p}
        return {
            "ticker": ticker,
            "data": {},
            "skill": {"LSTM": skill},
            "sharpe_ratio": 2.0,
            "total_return": 0.1,
            "baseline_returns": {"buy & hold": 0.0},
            "bars": 720,
            "search": {"other_tickers": others},
            "verdict": {"level": "NO SKILL", "numbers": {"n": 700}},
        }

    two = across_tickers([result("A/USD", 0.002), result("B/USD", 0.5)])
    many = across_tickers([result("A/USD", 0.002, 12), result("B/USD", 0.5)])
    assert two.loc["A/USD", "p_holm"] == pytest.approx(0.004) and many.loc[
        "A/USD", "p_holm"
    ] == pytest.approx(0.026)
    assert many.attrs["tried"] == 13 and many.attrs["zero_skill"] > two.attrs["zero_skill"]
