"""Luck is not taken for skill: few trades, near-copies of a trial and drifting markets pass no rule more often
than it allows."""
import math

import numpy as np
import pandas as pd
import pytest
import simulate_rules as rules
from scipy import stats

from cryptolstm.data.demo import demo_market
from cryptolstm.stats.bootstrap import FEWEST_TRADES, bootstrap, mean_trade, random_entry_p, trade_returns
from cryptolstm.stats.overfit import (ENOUGH_TRADES, clusters, deflation, probabilistic_sharpe, sharpe_sample,
                                      zero_skill_best)
from cryptolstm.execution.simulate import simulate
from cryptolstm.proof.trials import Ledger, Standing, Trial
from cryptolstm.proof.verdict import Level, verdict

SKILLED = {"hit": .56, "hit_low": .53, "hit_high": .59, "hit_expected": .5, "n_hit": 2000, "n": 2000,
           "cw_p": 1e-4, "cw_mean_p": 1e-4, "pt_p": 1e-4}


def allowed(runs: int, level: float) -> float: return stats.binom.ppf(.999, runs, level) / runs


# ---------------------------------------------------------------- few trades
def test_one_lucky_hour_has_no_deflated_ratio():
    r = np.zeros(720)
    r[5] = .005
    assert probabilistic_sharpe(*sharpe_sample(r)) > .97
    for closed in (1, ENOUGH_TRADES - 1):
        found = deflation(sharpe_sample(r), closed, 1, 0.0)
        assert math.isnan(found["deflated_sharpe"]) and math.isnan(found["probabilistic_sharpe"])
        assert found["closed_trades"] == closed


def test_true_forecasts_and_one_lucky_trade_are_no_candidate():
    found = verdict(SKILLED, .1, .02, -.3, trades=1, deflated=math.nan, closed=1, luck_p=math.nan)
    assert Level.of(found.level) == Level.NOT_SIGNIFICANT and "at least 30 are required" in found.sentence
    many = verdict(SKILLED, .1, .02, -.3, trades=300, deflated=.97, closed=300, luck_p=.01)
    assert many.level == "CANDIDATE"
    for more in ({"luck_p": .06}, {"deflated": .9}, {"luck_p": math.nan}):
        given = {"deflated": .97, "luck_p": .01, **more}
        text = verdict(SKILLED, .1, .02, -.3, trades=300, closed=300, **given)
        assert Level.of(text.level) == Level.NOT_SIGNIFICANT and "300 closed trades" in text.sentence


def test_random_entries_have_the_exposure_of_the_trades():
    "An always-long signal in a rising market is no timing; one that sits out the falls is."
    bars = demo_market(720, seed=5)
    up = bars.assign(**{k: bars[k] * np.exp(.001 * np.arange(720)) for k in ("open", "high", "low", "close")})
    rng = np.random.default_rng(0)
    blind = simulate(up, (rng.random(720) < .5).astype(int), fee=0.0)
    move = up["open"].shift(-2) / up["open"].shift(-1) - 1
    timed = simulate(up, (move > 0).astype(int), fee=0.0)
    assert blind["final_balance"] > 110_000 and random_entry_p(blind, up) > .05 > random_entry_p(timed, up)


@pytest.mark.parametrize("trades", [1, 5, 30])
def test_worthless_bets_pass_no_more_often_than_the_level(trades):
    naive, passed = rules.false_passes(trades, runs=100, reps=200)
    assert passed <= allowed(100, .05) and (trades >= ENOUGH_TRADES or passed == 0 < naive)


@pytest.mark.slow
@pytest.mark.parametrize("trades", rules.TRADES)
def test_worthless_bets_pass_no_more_often_than_the_level_for_any_number_of_trades(trades):
    assert rules.false_passes(trades)[1] <= allowed(400, .05)


# ---------------------------------------------------------------- intervals
def coin(bars: pd.DataFrame, trades: int) -> dict:
    "A result with this many closed one-hour trades."
    signal = np.zeros(len(bars), int)
    signal[5:5 + 4 * trades:4] = np.resize([1, -1], trades)
    return simulate(bars, signal, fee=0.0)


def test_intervals_are_undefined_below_ten_trades():
    bars = demo_market(720, seed=1)
    few, enough = (bootstrap(coin(bars, n), reps=100) for n in (FEWEST_TRADES - 1, FEWEST_TRADES))
    assert few[["low", "high"]].isna().all().all() and few.attrs["trades"] == FEWEST_TRADES - 1
    assert enough.notna().all().all() and enough.attrs["trades"] == FEWEST_TRADES
    assert math.isnan(mean_trade(trade_returns(coin(bars, 9))).p)


@pytest.mark.parametrize("kind", ["normal", "fat", "skewed"])
def test_ten_trades_cover_the_true_mean(kind):
    assert .92 <= rules.coverage(10, kind, runs=600, reps=200) <= .98


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "fat", "skewed"])
@pytest.mark.parametrize("trades", rules.COVERED)
def test_intervals_cover_the_truth_as_often_as_they_say(trades, kind):
    assert (.91 if kind == "skewed" and trades == 10 else .93) <= rules.coverage(trades, kind) <= .97


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
    r[50:250, 1] = np.r_[r[50:200, 0], rng.standard_normal(50)]   # three quarters are the same hours
    r[150:, 2] = np.r_[r[150:200, 0], rng.standard_normal(100)]   # a third is
    r[:, 3] = 0.0
    assert clusters(r).tolist() == [0, 0, 1, 2] and clusters(r[:, [3, 3, 0]]).tolist() == [0, 0, 1]
    wide = rng.standard_normal((100, 600))
    assert clusters(np.c_[wide, wide]).tolist() == [*range(600)] * 2


def test_the_ledger_counts_copies_as_one_trial(tmp_path):
    rng, book = np.random.default_rng(2), Ledger(tmp_path)
    first = rng.normal(0, .01, 24)
    for k in range(12):
        r = first + 1e-4 * rng.standard_normal(24) if k else first
        standing = book.enter(Trial("ETH/USD", "kraken", "2025-01-01T00:00Z", "2025-01-02T00:00Z", "d", {"k": k},
                                    r.mean() / r.std(ddof=1), 24, 0.0, 3.0, None, r))
    assert (standing.trials, standing.different) == (12, 1) and 0 < standing.within < standing.variance * 1.01
    assert "12 on these bars, which count as 1" in standing.sentence()


def test_page_and_sweep_deflate_alike():
    from cryptolstm.research.backtest import search_of
    from cryptolstm.research.sweeps import judge_surface

    bars, standing = demo_market(720, seed=3), Standing(3, 40, 1e-6, different=12, within=1e-5)
    result = coin(bars, 60)
    r = (result["equity"] / result["equity"].shift(1).fillna(100_000) - 1).to_frame(0)
    table = pd.DataFrame({"total_return": [.1], "num_trades": [60], "closed_trades": [60]})
    page, sweep = search_of(result, bars, standing), judge_surface(table, r, standing, reps=100)
    for key in ("deflated_sharpe", "expected_best", "closed_trades"):
        assert page[key] == pytest.approx(sweep[key], rel=1e-9)


@pytest.mark.parametrize("kind", rules.TRIALS)
def test_the_best_of_worthless_trials_rarely_passes(kind):
    before, now = rules.best_passes(kind, runs=20)
    assert now <= allowed(20, .05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", rules.TRIALS)
def test_the_best_of_worthless_trials_passes_no_more_often_than_the_level(kind):
    assert rules.best_passes(kind)[1] <= allowed(200, .05)
