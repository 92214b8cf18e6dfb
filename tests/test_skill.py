"""Skill statistics equal the libraries and published tables and have the stated size; the verdict follows its
rule."""
import json
import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.sandwich_covariance import cov_hac
from statsmodels.tsa.stattools import diebold_mariano_test

from cryptolstm.core.errors import InputError
from cryptolstm.core.text import percent
from cryptolstm.core.bars import regular_grid
from cryptolstm.data.demo import demo_market, planted_market, planted_state
from cryptolstm.stats.skill import (SIGNIFICANCE, break_even_hit, clark_west, diebold_mariano, hac_lags,
                                    hac_variance, hit_rate, information_coefficient, mase, min_detectable_hit,
                                    pairs, pesaran_timmermann, r2_oos, skill_table)
from cryptolstm.proof.verdict import Level, Verdict, verdict
from cryptolstm.research.baselines import last_bar_reversal, momentum

NAN = math.nan


def sample(n: int, seed: int, strength: float = .1) -> tuple[np.ndarray, np.ndarray]:
    "Fat-tailed returns with clustered volatility, and a forecast partly correlated with them."
    rng = np.random.default_rng(seed)
    sigma = np.exp(np.convolve(rng.standard_normal(n + 50), np.ones(50) / 20, mode="valid")[:n])
    y = .005 * sigma * rng.standard_t(5, n)
    return y, strength * y + .002 * rng.standard_normal(n) + .0003


def next_return(bars): return np.log(bars["close"]).diff().shift(-1)


# ---------------------------------------------------------------- agreement with libraries and reference
# formulas
@pytest.mark.parametrize("n,horizon,seed", [(30, 1, 0), (720, 1, 1), (720, 24, 2), (5000, 3, 3)])
def test_equal_to_the_reference_formulas(reference, n, horizon, seed):
    y, f = sample(n, seed)
    a, b = y[::horizon], f[::horizon]   # overlapping returns are thinned
    assert clark_west(y, f, horizon) == pytest.approx(reference.clark_west(a, 0 * a, b), rel=1e-9)
    assert clark_west(y, f, horizon, mean=0 * f + .001) == pytest.approx(
        reference.clark_west(a, 0 * a + .001, b + .001), rel=1e-9
    )
    assert diebold_mariano(y, f, horizon) == pytest.approx(
        reference.dm_hln(a, a - b, loss=np.abs), rel=1e-9, abs=1e-12
    )
    assert diebold_mariano(y, f, horizon, "squared") == pytest.approx(
        reference.dm_hln(a, a - b), rel=1e-9, abs=1e-12
    )
    assert tuple(pesaran_timmermann(y, f)) == pytest.approx(reference.pesaran_timmermann(y, f), rel=1e-9)
    assert r2_oos(y, f) == pytest.approx(reference.r2_oos(y, f), rel=1e-9)
    assert mase(y, f) == pytest.approx(reference.mase_oos(y, f, 0 * y), rel=1e-9)
    hit = hit_rate(y, f)
    assert (hit["low"], hit["high"]) == pytest.approx(reference.wilson(round(hit["hit"] * n), n), rel=1e-9)


@pytest.mark.parametrize("lags", [0, 1, 9, 40])
def test_hac_variance_is_statsmodels(lags):
    x = sample(500, 7)[0]
    fit = sm.OLS(x, np.ones(500)).fit()
    assert hac_variance(x, lags) == pytest.approx(
        cov_hac(fit, nlags=lags, use_correction=False)[0, 0], rel=1e-10
    )


def test_clark_west_is_a_hac_regression_on_a_constant():
    y, f = sample(720, 8)
    fit = sm.OLS(2 * y * f, np.ones(720)).fit(
        cov_type="HAC", cov_kwds={"maxlags": hac_lags(720), "use_correction": False}
    )
    t, p = clark_west(y, f)
    assert t == pytest.approx(fit.tvalues[0], rel=1e-10)
    assert p == pytest.approx(fit.pvalues[0] / 2 if t > 0 else 1 - fit.pvalues[0] / 2, rel=1e-8)


@pytest.mark.parametrize("horizon", [1, 24])
def test_diebold_mariano_is_statsmodels_one_sided(horizon):
    y, f = sample(720, 9)
    theirs = diebold_mariano_test(y[::horizon], 0 * y[::horizon], f[::horizon], criterion="mae",
                                  harvey_adj=True, horizon=1)
    t, p = diebold_mariano(y, f, horizon)
    assert t == pytest.approx(theirs.statistic, rel=1e-12)
    assert min(p, 1 - p) == pytest.approx(theirs.pvalue / 2, rel=1e-9)


def test_correlations_are_scipy():
    y, f = sample(720, 10)
    assert information_coefficient(y, f) == pytest.approx(stats.spearmanr(y, f).statistic, rel=1e-12)
    assert information_coefficient(y, f, "pearson") == pytest.approx(np.corrcoef(y, f)[0, 1], rel=1e-12)


def test_pesaran_timmermann_by_hand():
    """60 rises and 40 falls; 30 of 50 'up' and 20 of 50 'down' forecasts are right: half observed, half
    expected."""
    rose = np.r_[np.ones(30), -np.ones(20), np.ones(30), -np.ones(20)]
    said = np.r_[np.ones(50), -np.ones(50)]
    assert tuple(pesaran_timmermann(rose, said)) == pytest.approx((.5, .5, 0, .5))


# ---------------------------------------------------------------- published values
def test_clark_west_of_the_published_example(monkeypatch):
    """Twenty errors of a small and a larger model; P.

    Söderlind's values, used by the tests of HypothesisTests.jl, without lags."""
    monkeypatch.setattr("cryptolstm.stats.skill.LEAST", 2)
    monkeypatch.setattr("cryptolstm.stats.skill.hac_lags", lambda n, horizon=1: 0)
    small = np.array(
        [
            9.78432,
            12.73500,
            8.67224,
            2.62740,
            5.60947,
            7.57809,
            4.53774,
            2.51084,
            0.49290,
            3.48394,
            9.46152,
            9.41220,
            2.36289,
            0.34495,
            3.33599,
            5.31357,
            4.28219,
            -3.74471,
            -5.73575,
            -3.71781,
        ]
    )
    large = np.array(
        [
            2.82053,
            4.39754,
            -1.78647,
            -4.30662,
            3.69526,
            3.37259,
            -1.09002,
            -0.50984,
            -0.78973,
            3.89077,
            7.52849,
            2.82373,
            -3.95838,
            -0.13606,
            4.54444,
            4.18216,
            1.67993,
            -5.38077,
            -0.85686,
            2.70479,
        ]
    )
    assert clark_west(small, small - large).p == pytest.approx(.0001, abs=5e-5)


@pytest.mark.parametrize("loss, better", [("squared", .5565), ("absolute", .3909)])
def test_diebold_mariano_of_the_published_example(loss, better, monkeypatch):
    """Errors of exponential smoothing and ARIMA on R's WWWusage, the example of `dm.test` in R's forecast,
    without lags; p that the second is better."""
    monkeypatch.setattr("cryptolstm.stats.skill.LEAST", 2)
    without_lags = partial(diebold_mariano_test, lags=0)
    monkeypatch.setattr("statsmodels.tsa.stattools.diebold_mariano_test", without_lags)
    smooth = np.array(
        [
            0.002241270,
            -0.000661906,
            -1.200002613,
            -4.000218178,
            3.799373533,
            3.401005111,
            -1.199692125,
            -0.800490048,
            -1.200048999,
            3.399847229,
            7.000708948,
            2.200989241,
            -4.800165569,
            -1.201043375,
            3.400167556,
            3.000709085,
            0.400267950,
            -6.800169207,
            -2.401259050,
            1.200112198,
        ]
    )
    arima = np.array(
        [
            0.1209998,
            8.0622269,
            -0.9189429,
            -1.7952436,
            5.3431277,
            2.0459823,
            -0.6073261,
            0.5516816,
            -0.7633238,
            4.1229472,
            5.8785333,
            1.2828331,
            -3.4854233,
            1.1971370,
            3.1709314,
            2.3408457,
            0.4962286,
            -5.9841362,
            0.1537114,
            0.4207951,
        ]
    )
    assert diebold_mariano(0 * arima, -arima, loss=loss, against=-smooth).p == pytest.approx(better, abs=5e-5)


def test_minimum_detectable_hit_rates():
    table = {720: .546, 1440: .533, 2160: .527, 8760: .513, 17520: .509}
    assert {n: round(min_detectable_hit(n, alpha=.05), 3) for n in table} == table
    for n in (20, 129, 5000):  # the equation it solves
        p = min_detectable_hit(n, alpha=.05)
        assert np.sqrt(n) * (p - 0.5) == pytest.approx(
            stats.norm.isf(0.05) / 2 + stats.norm.ppf(0.8) * np.sqrt(p * (1 - p)), rel=1e-9
        )
    needed = {.505: 61_830, .51: 15_456, .52: 3_863, .53: 1_716, .55: 617, .56: 428}
    for hit, n in needed.items(): assert min_detectable_hit(n, alpha=.05) == pytest.approx(hit, abs=2e-4)
    assert min_detectable_hit(0) == 1 and .9 < min_detectable_hit(1) <= 1


def test_minimum_detectable_hit_has_the_power_it_promises():
    rng, n = np.random.default_rng(0), 720
    right = rng.binomial(n, min_detectable_hit(n), 20_000)
    found = np.mean((right / n - .5) * 2 * np.sqrt(n) > stats.norm.isf(SIGNIFICANCE))
    assert found == pytest.approx(.8, abs=.02)


def test_break_even():
    assert break_even_hit(.0010, .0051) == pytest.approx(.58, abs=.002)
    assert break_even_hit(0, .01) == .5 and math.isnan(break_even_hit(.5, .01))
    rng, rho = np.random.default_rng(0), .0010 / (math.sqrt(2 / math.pi) * .0051)
    f = rng.standard_normal(400_000)
    r = .0051 * (rho * f + math.sqrt(1 - rho**2) * rng.standard_normal(400_000))
    gain = np.sign(f) * r
    assert gain.mean() == pytest.approx(0.0010, rel=0.05) and (gain > 0).mean() == pytest.approx(
        break_even_hit(0.0010, 0.0051), abs=0.003
    )
    with pytest.raises(InputError, match="pass"): break_even_hit(.001, 0)


# ---------------------------------------------------------------- size and power
def test_no_more_false_alarms_than_promised():
    """300 forecasts without information, of returns with clustered volatility: about 5 % rejections at 5 %,
    fewer for Diebold-Mariano."""
    p = {"cw": [], "pt": [], "dm": []}
    for seed in range(300):
        y, f = sample(720, seed, strength=0)
        p["cw"].append(clark_west(y, f).p)
        p["pt"].append(pesaran_timmermann(y, f).p)
        p["dm"].append(diebold_mariano(y, f).p)
    bound = stats.binom.ppf(.9995, 300, .05)
    for name in ("cw", "pt"): assert 3 <= sum(x < .05 for x in p[name]) <= bound
    assert sum(x < .05 for x in p["dm"]) <= bound


def test_an_optimist_in_a_rising_market_is_no_expert():
    "Against 50 % nearly every run would look significant; Pesaran-Timmermann rejects at its stated level."
    rng, naive, timing = np.random.default_rng(0), 0, 0
    for _ in range(200):
        y, f = np.where(rng.random(2000) < .55, 1, -1), np.where(rng.random(2000) < .9, 1, -1)
        hit = hit_rate(y, f)
        naive += stats.binomtest(round(hit["hit"] * 2000), 2000, alternative="greater").pvalue < .05
        timing += pesaran_timmermann(y, f).p < .05
    assert naive > 150 and timing <= stats.binom.ppf(.9995, 200, .05)


def test_nothing_is_found_on_the_demo_market():
    p = []
    for seed in range(40):
        bars = demo_market(1500, seed=seed)
        row = skill_table(next_return(bars), {"state": .001 * planted_state(bars)}).loc["state"]
        p.append((row["cw_p"], row["pt_p"]))
        assert row["hit_low"] < .5 + .04 and row["mase"] >= .99
    for column in np.array(p).T: assert (column < .05).sum() <= stats.binom.ppf(.999, 40, .05)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_planted_signal_is_found_and_its_mirror_is_not(sign):
    bars = planted_market(3000, r2=.10, seed=2, sign=sign)
    y, f = next_return(bars), .001 * planted_state(bars)
    table = skill_table(y, {"right": sign * f, "wrong": -sign * f})
    assert (
        table.loc["right", "cw_p"] < 0.001
        and table.loc["right", "pt_p"] < 0.001
        and table.loc["right", "ic"] > 0.15
    )
    assert table.loc["wrong", "cw_p"] > .999 and table.loc["wrong", "pt_p"] > .999
    assert table.loc["right", "ic"] == pytest.approx(-table.loc["wrong", "ic"])


# ---------------------------------------------------------------- identities
@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3))
def test_units_do_not_matter(seed, scale):
    y, f = sample(200, seed)
    assert clark_west(scale * y, scale * f).statistic == pytest.approx(clark_west(y, f).statistic, rel=1e-6)
    assert pesaran_timmermann(scale * y, 3 * scale * f) == pesaran_timmermann(y, f)
    for measure in (r2_oos, mase, information_coefficient):
        assert measure(scale * y, scale * f) == pytest.approx(measure(y, f), rel=1e-6)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), drop=st.floats(0, .5))
def test_only_complete_pairs_count_and_order_of_rows_is_by_index(seed, drop):
    rng, (y, f) = np.random.default_rng(seed), sample(200, seed)
    index = pd.date_range("2025-01-01", periods=200, freq="h", tz="UTC")
    y, f = pd.Series(y, index), pd.Series(f, index).mask(rng.random(200) < drop)
    shuffled = f.iloc[rng.permutation(200)]
    a, b = pairs(y, shuffled)
    assert sorted(b.tolist()) == sorted(f.dropna().tolist())
    assert pairs(y[f.notna()], f.dropna())[0].sum() == pytest.approx(a.sum())
    whole = skill_table(y, {"model": f}).loc["model"]
    assert (
        whole["n"] == f.count()
        and whole["cw"] == clark_west(y[f.notna()].to_numpy(), f.dropna().to_numpy()).statistic
    )


def test_the_two_identity_models():
    y = next_return(demo_market(500))
    assert mase(y, 0 * y) == 1 and mase(y, y) == 0 and r2_oos(y, 0 * y) == 0 and r2_oos(y, y) == 1
    late = y.shift(1)  # labels shifted by one bar must lose the perfect score
    assert mase(y, late) > 1.2 and abs(hit_rate(y, late)["hit"] - .5) < .1


def test_undefined_is_nan_never_a_number():
    y = sample(200, 0)[0]
    assert math.isnan(clark_west(y, 0 * y).p) and math.isnan(diebold_mariano(y, 0 * y).p)
    assert math.isnan(pesaran_timmermann(y, 0 * y + 1).p) and math.isnan(pesaran_timmermann(0 * y + 1, y).p)
    assert math.isnan(information_coefficient(y, 0 * y + 1)) and math.isnan(hit_rate(y, 0 * y)["hit"])
    for short in (clark_west, diebold_mariano, pesaran_timmermann):
        assert math.isnan(short(y[:29], y[:29]).p) and not math.isnan(short(y[:30], np.roll(y[:30], 1)).p)
    assert math.isnan(r2_oos(0 * y, y)) and math.isnan(mase([], []))


def test_overlapping_returns_are_thinned_for_directions():
    y, f = sample(240, 0)
    assert hit_rate(y, f, horizon=24)["n"] == 10
    rng, rejected = np.random.default_rng(0), 0
    for _ in range(200):  # 24-hour returns at every hour, and a slow forecast without information
        r, s = rng.standard_normal(3024), np.convolve(rng.standard_normal(3047), np.ones(24), "valid")
        y = np.convolve(r, np.ones(24), "valid")[:3000]
        rejected += pesaran_timmermann(y, s[:3000], horizon=24).p < .05
    assert rejected <= stats.binom.ppf(.9995, 200, .05)


def test_bad_input_says_what_to_pass():
    bars = demo_market(50)
    y = next_return(bars)
    with pytest.raises(InputError, match="one row per bar"): clark_west(y, pd.concat([y, y]))
    with pytest.raises(InputError, match="one length"): clark_west([1, 2], [1])
    with pytest.raises(InputError, match="finite"): r2_oos([1.0, np.inf], [1.0, 2.0])
    with pytest.raises(InputError, match="unknown loss"): diebold_mariano(y, y, loss="huber")
    with pytest.raises(InputError, match="unknown method"): information_coefficient(y, y, method="kendal")


# ---------------------------------------------------------------- baselines
def test_baselines_use_no_later_bar_and_no_return_across_a_gap():
    bars = demo_market(300)
    for f in (last_bar_reversal, momentum):
        pd.testing.assert_series_equal(f(bars.iloc[:200]), f(bars).iloc[:200], check_exact=True)
    holed = bars.drop(bars.index[100:102])
    for frame in (holed, regular_grid(holed), regular_grid(holed, max_gap=0)):
        f = last_bar_reversal(frame)
        assert (
            math.isnan(f[bars.index[102]]) and f[bars.index[103]] == last_bar_reversal(bars)[bars.index[103]]
        )
        assert f.reindex(bars.index[100:102]).isna().all()
    assert last_bar_reversal(bars, horizon=3).iloc[3] == pytest.approx(
        -0.05 * np.log(bars["close"].iloc[3] / bars["close"].iloc[0])
    )
    assert momentum(bars).first_valid_index() == bars.index[24]


def test_reversal_is_recognised_where_the_market_reverses():
    rng = np.random.default_rng(0)
    e = .005 * rng.standard_normal(3001)
    r = e[1:] - .1 * e[:-1]
    index = pd.date_range("2025-01-01", periods=3000, freq="h", tz="UTC")
    close = pd.Series(100 * np.exp(np.cumsum(r)), index)
    bars = pd.DataFrame({"open": close, "high": close, "low": close, "close": close, "volume": 1.0})
    table = skill_table(
        next_return(bars), {"reversal": last_bar_reversal(bars), "momentum": momentum(bars, window=1)}
    )
    assert table.loc["reversal", "cw_p"] < .001 and table.loc["momentum", "cw_p"] > .999
    assert list(table.index) == ["persistence", "reversal", "momentum"] and table["n"].nunique() == 1


# ---------------------------------------------------------------- the verdict
CHANCE = {
    "n": 720,
    "n_hit": 720,
    "hit": 0.504,
    "hit_low": 0.468,
    "hit_high": 0.540,
    "hit_expected": 0.501,
    "cw_p": 0.41,
    "cw_mean_p": 0.41,
    "pt_p": 0.45,
}
SKILLED = {**CHANCE, "hit": .56, "hit_low": .524, "hit_high": .596, "cw_p": .0004, "cw_mean_p": .0004,
           "pt_p": .002}


def test_the_sentence_for_a_normal_result():
    v = verdict(CHANCE, -.032, .011, -.2)
    assert (
        v.level == "NO SKILL"
        and v.sentence
        == "No evidence of skill: on 720 hours the direction was right 50.4% of the time (95% interval 46.8"
        " to 54.0; by chance it would be 50.1), Clark-West p = 0.410 (against the mean return 0.410),"
        " Pesaran-Timmermann p = 0.450 (skill needs all below 0.01); after costs the"
        " strategy returned -3.2% against +1.1% for buy & hold. A"
        " test this long detects a hit rate of 56.1% in 80% of cases."
    )


@pytest.mark.parametrize("skill,money,n,level", [
    (CHANCE, (.5, .1, .1), 720, "NO SKILL"), (CHANCE, (.5, .1, .1), 500, "NO SKILL"),
    (CHANCE, (.5, .1, .1), 499, "UNDERPOWERED"),
    (SKILLED, (.05, .01, -.2), 720, "CANDIDATE"), (SKILLED, (.05, .01, -.2), 500, "CANDIDATE"),
    (SKILLED, (.05, .01, -.2), 499, "UNDERPOWERED"), (SKILLED, (-.05, .01, -.2), 200, "UNDERPOWERED"),
    ({**SKILLED, "hit": .75, "hit_low": .582}, (.05, .01, -.2), 40, "SUSPICIOUS"),
    ({**SKILLED, "hit": .75, "hit_low": .58}, (.05, .01, -.2), 600, "CANDIDATE"),
    ({**CHANCE, "hit": .75, "hit_low": .70}, (-.05, .01, -.2), 720, "SUSPICIOUS"),
    (SKILLED, (-.01, -.05, -.2), 720, "SKILL, NOT PROFITABLE"),
    (SKILLED, (.05, .06, -.2), 720, "SKILL, NOT PROFITABLE"),
    (SKILLED, (.05, .01, .07), 720, "SKILL, NOT PROFITABLE"),
    ({**SKILLED, "cw_p": .011}, (.05, .01, -.2), 720, "NO SKILL"),
    ({**SKILLED, "pt_p": .011}, (.05, .01, -.2), 720, "NO SKILL"),
    ({**SKILLED, "pt_p": NAN}, (.05, .01, -.2), 720, "NO SKILL"),
    ({**SKILLED, "hit": .582}, (.05, .01, -.2), 2001, "SUSPICIOUS"),
    ({**SKILLED, "hit": .581}, (.05, .01, -.2), 2000, "CANDIDATE"),
    ({**CHANCE, "hit": .582}, (-.05, .01, -.2), 2001, "SUSPICIOUS"),
    # always up in a rising market, and six of six
    ({**CHANCE, "hit": .622, "hit_low": .587, "hit_expected": .62}, (.05, .01, -.2), 2001, "NO SKILL"),
    ({**SKILLED, "hit": 1.0, "hit_low": .61}, (.05, .01, -.2), 6, "UNDERPOWERED"),
    ({**SKILLED, "cw_mean_p": .011}, (.05, .01, -.2), 720, "NO SKILL"),
    ({**SKILLED, "hit": .58}, (.05, .01, -.2), 2001, "CANDIDATE")])
def test_the_rule(skill, money, n, level):
    v = verdict(skill, *money, n=n)
    assert (
        v.level == level and v.sentence.startswith(Level(level).opening + ": ") and v.sentence.endswith(".")
    )


def test_a_short_test_is_never_evidence_and_says_so():
    v = verdict({**SKILLED, "n_hit": 200}, .05, .01, -.2)
    assert v.level == "UNDERPOWERED" and v.sentence.endswith(
        "Below 500 separate forecasts even that is no evidence: test a longer span."
    )
    assert (
        "skill needs all" not in v.sentence
        and "forecasts there is no evidence: test a longer span"
        in verdict({**CHANCE, "n_hit": 200}, 0.05, 0.01, -0.2).sentence
    )


def test_forecasts_of_a_day_are_counted_in_separate_days():
    """720 overlapping forecasts of 24 hours are 30 separate spans: the sentence, the level and the detectable
    hit rate use those."""
    y = np.log(demo_market(743, seed=3)["close"]).diff(24).shift(-24)
    row = skill_table(y, {"model": y + 0.02 * np.random.default_rng(0).standard_normal(743)}, horizon=24).loc[
        "model"
    ]
    v = verdict({**row, "hit_low": .5}, .05, .01, -.2, horizon=24)
    assert (
        row["cw_p"] < 0.01
        and v.level == "UNDERPOWERED"
        and v.numbers["n"] == row["n_hit"] <= 30
        and v.numbers["horizon"] == 24
    )
    assert (
        f"on {row['n_hit']:.0f} separate 24-hour spans the direction" in v.sentence
        and "hours" not in v.sentence
    )
    assert "on 720 hours" in verdict(CHANCE, .05, .01, -.2).sentence


def test_no_trade_is_an_explained_result():
    for skill in (CHANCE, SKILLED):
        v = verdict(skill, 0.0, -.1, -.2, trades=0)
        assert "it did not trade: no forecast was large enough" in v.sentence and v.level != "CANDIDATE"
    assert "in 1 trade against" in verdict(CHANCE, .01, 0.0, 0.0, trades=1).sentence


def test_a_forecaster_that_never_commits():
    "All forecasts are zero: direction cannot be judged, and no undefined number is shown as one."
    y = next_return(demo_market(800))
    v = verdict(skill_table(y, {"silent": 0 * y}).loc["silent"], 0.0, .02, -.1, trades=0)
    assert (
        v.level == "NO SKILL"
        and "none of the 799 forecasts pointed up or down" in v.sentence
        and "nan" not in v.sentence.lower()
    )
    assert v.numbers["hit"] is None and v.numbers["cw_p"] is None


def test_one_sided_forecasts_explain_their_missing_p():
    y = next_return(planted_market(800)).abs()
    v = verdict(skill_table(y, {"always up": 0 * y + .001}).loc["always up"], .1, .02, -.1)
    assert (
        v.level != "CANDIDATE"
        and "undefined (every forecast, or every outcome, went the same way)" in v.sentence
    )


def test_too_few_directions_are_given_as_the_reason_where_they_are_it():
    y, f = sample(800, 0)
    f[29:] = 0   # 29 nonzero forecasts, of both signs
    v = verdict(skill_table(pd.Series(y), {"shy": pd.Series(f)}).loc["shy"], .1, .02, -.1)
    assert (
        len(set(np.sign(f[:29]))) == 2
        and "undefined (fewer than 30 forecasts with a direction)" in v.sentence
    )


def test_verdict_is_frozen_and_json():
    v = verdict({**SKILLED, "pt_p": NAN, "ic": NAN}, .05, .01, -.2, trades=3)
    table = json.loads(json.dumps(v.to_dict(), allow_nan=False))
    assert table["level"] == v.level and table["numbers"]["trades"] == 3 and table["numbers"]["ic"] is None
    assert Verdict(**table) == v
    with pytest.raises(AttributeError): v.level = "CANDIDATE"
    with pytest.raises(InputError, match="buy_and_hold_return is nan"): verdict(CHANCE, .1, NAN, 0.0)


def test_percentages_read_well():
    assert [percent(0.5), percent(0.0104, True), percent(-0.5, True), percent(-0.0001, True)] == [
        "50.0%",
        "+1.0%",
        "-50.0%",
        "0.0%",
    ]


@pytest.mark.parametrize("deflated,made,level", [
    (.951, 1, "CANDIDATE"), (.951, 40, "CANDIDATE"), (.949, 1, "PROFITABLE, NOT SIGNIFICANT AFTER 1 TRIAL"),
    (.3, 1037, "PROFITABLE, NOT SIGNIFICANT AFTER 1,037 TRIALS"),
    (NAN, 3, "PROFITABLE, NOT SIGNIFICANT AFTER 3 TRIALS")])
def test_a_profit_must_be_more_than_the_luck_of_all_trials(deflated, made, level):
    v = verdict(SKILLED, .05, .01, -.2, deflated=deflated, trials=made)
    assert (
        v.level == level and v.sentence.startswith(Level.of(level).opening) and v.numbers["trials"] == made
    )
    if level != "CANDIDATE":
        assert (
            "95% is required" in v.sentence and "nan" not in v.sentence and Level.of(v.level).exit_code == 3
        )
    # multiple testing of the profit is not considered without skill
    assert verdict(CHANCE, .05, .01, -.2, deflated=deflated, trials=made).level == "NO SKILL"


def test_a_leak_goes_before_everything():
    for skill in (CHANCE, SKILLED, {**SKILLED, "hit": .9, "hit_low": .8}, {**SKILLED, "n_hit": 10}):
        v = verdict(skill, .05, .01, -.2, leak="rsi")
        assert (
            v.level == "LEAK"
            and "failed at rsi" in v.sentence
            and v.sentence.endswith("until then, no figure of this run is valid.")
        )


def test_every_level_has_its_own_exit_code_and_none_is_that_of_an_error():
    codes = [level.exit_code for level in Level]
    assert len({*codes}) == len(codes) and not {1, 2} & {*codes}
    assert [level for level in Level if level.exit_code == 0] == [Level.CANDIDATE]
