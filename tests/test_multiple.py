"""Many tickers at once: corrections, step-down tests and pooled tests keep the error rates they promise,
although the tickers move together."""
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from cryptolstm.core.errors import InputError
from cryptolstm.stats.multiple import (
    adjust_defined,
    block_counts,
    block_sums,
    romano_wolf,
    studentised,
    zero_skill_best_of,
)
from cryptolstm.stats.overfit import best_of
from cryptolstm.stats.pooled import direction_excess, effective_tickers, pooled_mean, pooled_power
from cryptolstm.stats.skill import SIGNIFICANCE, RULE_POWER, hac_lags, pesaran_timmermann


def together(hours, tickers, correlation, rng):
    "Standard normal values of tickers that are equally correlated."
    common, own = rng.standard_normal((hours, 1)), rng.standard_normal((hours, tickers))
    return correlation**0.5 * common + (1 - correlation) ** 0.5 * own


def share(hits):
    "Share of the simulations, and its standard error if the share were 5%."
    return np.mean(hits), math.sqrt(0.05 * 0.95 / len(hits))


# ---- corrections -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("method, name", [("holm", "holm"), ("bh", "fdr_bh")])
def test_corrections_are_statsmodels_and_a_ticker_without_a_test_does_not_count(method, name):
    p = pd.Series([0.01, math.nan, 0.03, 0.04, 0.002, math.nan], list("abcdef"))
    found = adjust_defined(p, method)
    assert found.index.equals(p.index) and found[["b", "f"]].isna().all()
    assert found.dropna().to_numpy() == pytest.approx(multipletests(p.dropna(), method=name)[1])
    assert adjust_defined(p * math.nan, method).isna().all()


# ---- the bootstrap ---------------------------------------------------------------------------------------

def test_a_sample_of_the_bootstrap_is_the_one_that_its_blocks_spell_out():
    "Statistics of two samples, computed hour by hour from the drawn blocks."
    rng, block, hours = np.random.default_rng(0), 4, 30
    x = together(hours, 3, 0.5, rng)
    x[:11, 1] = math.nan   # a younger listing
    seen, drawn = studentised(x, block, 2, seed=5)
    u = x - np.nanmean(x, axis=0)
    for sample, counts in zip(drawn, block_counts(hours, block, 2, seed=5), strict=True):
        starts = np.repeat(np.arange(hours), counts.astype(int))
        blocks = [u[np.arange(s, s + block) % hours] for s in starts]
        n = np.sum([np.isfinite(b).sum(axis=0) for b in blocks], axis=0)
        mean = np.sum([np.nansum(b, axis=0) for b in blocks], axis=0) / n
        errors = [np.nansum(b, axis=0) - mean * np.isfinite(b).sum(axis=0) for b in blocks]
        assert sample == pytest.approx(mean / (np.sqrt(np.sum(np.square(errors), axis=0)) / n))
    assert block_sums(x[:, :1], block)[28, 0] == pytest.approx(x[[28, 29, 0, 1], 0].sum())


def test_step_down_p_values_are_those_of_the_algorithm():
    "Romano and Wolf (2016), written out: the largest statistic against the largest of all, and so on."
    values = together(400, 6, 0.6, np.random.default_rng(1)) + [0, 0.1, 0, 0.2, 0.05, 0]
    table = romano_wolf(pd.DataFrame(values), reps=300)
    seen, drawn = studentised(values, table.attrs["block"], 300)
    remaining, last = list(range(6)), 0.0
    for k in np.argsort(-seen):
        exceeded = sum(max(sample[j] for j in remaining) >= seen[k] for sample in drawn)
        last = max(last, (1 + exceeded) / 301)
        assert table["p_rw"][k] == pytest.approx(last)
        remaining.remove(k)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_without_skill_a_false_discovery_is_as_rare_as_promised(correlation):
    "200 universes of 13 tickers with clustered volatility; alone, a p below 5% is common."
    rng, found, alone = np.random.default_rng(int(10 * correlation)), [], []
    for seed in range(200):
        wild = np.exp(0.5 * np.repeat(rng.standard_normal((15, 1)), 20, axis=0))   # the same for all tickers
        table = romano_wolf(pd.DataFrame(wild * together(300, 13, correlation, rng)), reps=299, seed=seed)
        found.append(table["p_rw"].min() < 0.05)
        alone.append(table["p"].min() < 0.05)
    rate, error = share(found)
    assert rate < 0.05 + 3 * error and rate < np.mean(alone)
    assert rate > 0.005 and np.mean(alone) > (0.15 if correlation == 0.9 else 0.25)


def test_tickers_without_skill_are_not_found_because_others_have_it():
    "The family-wise error of the ten tickers without skill, next to three with a strong one."
    rng, found = np.random.default_rng(3), []
    for seed in range(150):
        values = together(300, 13, 0.5, rng) + np.r_[np.zeros(10), [0.4] * 3]
        table = romano_wolf(pd.DataFrame(values), reps=299, seed=seed)
        assert table["p_rw"].iloc[10:].max() < 0.05
        found.append(table["p_rw"].iloc[:10].min() < 0.05)
    rate, error = share(found)
    assert rate < 0.05 + 3 * error


def test_with_correlated_tickers_the_step_down_test_finds_more_than_holm():
    rng, rw, holm = np.random.default_rng(4), 0, 0
    for seed in range(100):
        values = together(400, 13, 0.8, rng) + np.r_[np.zeros(10), [0.13] * 3]
        table = romano_wolf(pd.DataFrame(values), reps=499, seed=seed)
        rw += (table["p_rw"].iloc[10:] < 0.05).sum()
        holm += (adjust_defined(table["p"]).iloc[10:] < 0.05).sum()
    assert rw > 1.2 * holm > 0


def test_units_and_order_of_the_tickers_do_not_matter():
    values = pd.DataFrame(together(300, 5, 0.3, np.random.default_rng(5)), columns=list("abcde"))
    table = romano_wolf(values)
    scaled = romano_wolf((values * [1e-6, 1, 10, 1e3, 1e-3])[list("ecabd")])
    pd.testing.assert_frame_equal(scaled.loc[list("abcde")], table, check_exact=False)


def test_what_cannot_be_tested_is_nan_and_changes_nothing():
    values = pd.DataFrame(together(300, 4, 0.3, np.random.default_rng(6)))
    more = values.assign(never=0.0, none=math.nan, few=values[0].where(values.index < 20))
    table = romano_wolf(more)
    assert table.loc[["never", "none", "few"], ["statistic", "p", "p_rw"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(table.loc[[0, 1, 2, 3]], romano_wolf(values), check_index_type=False)
    with pytest.raises(InputError, match="infinite"): romano_wolf(values / 0)


# ---- the best of zero-skill tickers ----------------------------------------------------------------------

def test_the_best_of_independent_tickers_is_the_formula_and_correlation_lowers_it():
    rng = np.random.default_rng(7)
    alone, alike = (pd.DataFrame(0.01 * together(2000, 13, c, rng)) for c in (0, 0.95))
    found = zero_skill_best_of(alone + 0.01)   # the mean return is taken out
    assert found.median == pytest.approx(best_of(13, 2000), rel=0.1) and found.high > found.median
    assert zero_skill_best_of(alike).median < 0.5 * found.median
    assert zero_skill_best_of(alone.assign(idle=0.0)).tickers == 13
    assert math.isnan(zero_skill_best_of(0 * alone).median)
    with pytest.raises(InputError, match="finite"): zero_skill_best_of(alone.where(alone > 0))


# ---- pooled tests ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("horizon", [1, 24])
def test_the_pooled_test_is_a_hac_regression_of_the_hourly_means(horizon):
    statsmodels = pytest.importorskip("statsmodels.api")
    values = pd.DataFrame(together(500, 5, 0.5, np.random.default_rng(8)) + 0.05)
    values.iloc[:200, 4] = math.nan
    found, hourly = pooled_mean(values, horizon), values.mean(axis=1)
    how = {"maxlags": hac_lags(500, horizon), "use_correction": False}
    fit = statsmodels.OLS(hourly, np.ones(500)).fit(cov_type="HAC", cov_kwds=how)
    assert found.statistic == pytest.approx(fit.tvalues.iloc[0])
    assert (found.low, found.high) == pytest.approx(tuple(fit.conf_int().iloc[0]))
    assert (found.n, found.hours, found.tickers) == (2300, 500, 4.6)


def test_pooled_tests_keep_their_size_and_the_naive_one_does_not():
    "400 universes without skill: Clark-West gains, directions and net returns of 13 tickers."
    rng, hits, naive = np.random.default_rng(9), {"gain": [], "direction": [], "net": []}, []
    for _ in range(400):
        y, f = (pd.DataFrame(together(400, 13, 0.8, rng)) for _ in range(2))
        gain = pooled_mean(2 * y * f)
        hits["gain"].append(gain.p < 0.05)
        naive.append(gain.naive_p < 0.05)
        excess = pd.concat([direction_excess(y[k], f[k]) for k in y], axis=1)
        hits["direction"].append(pooled_mean(excess).p < 0.05)
        hits["net"].append(pooled_mean(y * (f > 1)).p < 0.05)   # in the market a sixth of the time
    for name, found in hits.items():
        rate, error = share(found)
        assert abs(rate - 0.05) < 3.5 * error, name
    assert np.mean(naive) > 0.2


def test_overlapping_horizons_keep_the_size_with_their_lags():
    rng, right, wrong = np.random.default_rng(10), [], []
    for _ in range(300):
        raw = pd.DataFrame(together(1500, 5, 0.5, rng))
        smooth = raw.rolling(24).mean().dropna()
        right.append(pooled_mean(smooth, horizon=48).p < 0.05)
        wrong.append(pooled_mean(smooth, horizon=1).p < 0.05)
    rate, error = share(right)
    assert rate < 0.05 + 4.5 * error and np.mean(wrong) > 0.10


def test_the_number_of_effective_tickers_is_that_of_the_design_effect():
    rng = np.random.default_rng(11)
    for correlation in (0.0, 0.2, 0.8):
        found = effective_tickers(pd.DataFrame(together(20_000, 13, correlation, rng)), 0)
        assert found == pytest.approx(13 / (1 + 12 * correlation), rel=0.05)
    one = pd.DataFrame(together(500, 1, 0, rng))
    assert effective_tickers(one, 8) == 1 and effective_tickers(pd.concat([one, one], axis=1), 8) == 1
    assert math.isnan(effective_tickers(0 * one, 8))


def test_the_excess_of_hours_is_the_excess_of_pesaran_and_timmermann():
    rng = np.random.default_rng(12)
    y = pd.Series(rng.standard_normal(2000) + 0.2)
    f = 0.1 * y + pd.Series(rng.standard_normal(2000)) - 0.3
    y.iloc[:5], f.iloc[5:9], f.iloc[9:12] = 0.0, math.nan, 0.0
    excess, alone = direction_excess(y, f), pesaran_timmermann(y, f)
    assert excess.notna().sum() == 1988 and excess.mean() == pytest.approx(alone.hit - alone.expected)
    statistic = excess.mean() / (excess.std(ddof=0) / math.sqrt(1988))
    assert statistic == pytest.approx(alone.statistic, rel=0.02)
    assert direction_excess(y * 0, f).isna().all()


def test_the_pool_has_the_power_it_promises():
    "Hit rates at the detectable one: the pooled test of direction finds it as often as promised."
    rng, found, n = np.random.default_rng(13), [], 300
    noise = pd.DataFrame(np.where(together(n, 13, 0.5, rng) > 0, 1.0, -1.0))
    up = pd.DataFrame(np.sign(rng.standard_normal((n, 13))))
    power = pooled_power(pd.concat([direction_excess(up[k], noise[k] * up[k]) for k in up], axis=1))
    assert 0.5 < power.pool < power.one and n < power.independent < 13 * n
    for _ in range(300):
        up = pd.DataFrame(np.sign(rng.standard_normal((n, 13))))
        right = together(n, 13, 0.5, rng) < stats.norm.ppf(power.pool)
        guess = up * np.where(right, 1, -1)
        excess = pd.concat([direction_excess(up[k], guess[k]) for k in up], axis=1)
        found.append(pooled_mean(excess).p < SIGNIFICANCE)
    assert np.mean(found) == pytest.approx(RULE_POWER, abs=0.1)


def test_too_few_hours_are_undefined_and_not_zero():
    values = pd.DataFrame(together(20, 3, 0, np.random.default_rng(14)))
    for few in (values, values.iloc[:0], pd.DataFrame(np.zeros((100, 3)))):
        found = pooled_mean(few)
        assert math.isnan(found.p) and math.isnan(found.statistic) and math.isnan(found.effective)
    assert pooled_power(values.iloc[:0]).pool == 1.0
