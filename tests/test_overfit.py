"""Effect of a search on a Sharpe ratio: published examples, brute force, other libraries, and test sizes
under the null."""
import gc
import itertools
import math

import numpy as np
import pandas as pd
import pytest
from arch.bootstrap import SPA
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from cryptolstm.core.errors import InputError
from cryptolstm.stats.performance import sharpe, sharpe_se
from cryptolstm.stats.overfit import (adjust, best_of, block_length, deflated_sharpe, expected_maximum,
                                      minimum_track_record, pbo, probabilistic_sharpe, sharpe_sample,
                                      spa_test)


def fat(n: int, seed: int, mean: float = 0.0) -> np.ndarray:
    "Skewed, fat-tailed returns."
    return (
        0.005
        * (
            np.random.default_rng(seed).standard_t(5, n) ** 1
            - 0.3 * np.random.default_rng(seed + 1).exponential(1, n)
        )
        + mean
    )


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_reference_formulas(reference, seed):
    r = fat(720, seed, .0005 * seed)
    s = sharpe_sample(r)
    trials = np.random.default_rng(seed).normal(0, .04, 12)
    assert probabilistic_sharpe(*s, .01) == pytest.approx(reference.psr(r, .01), rel=1e-9)
    assert deflated_sharpe(*s, 12, trials.var(ddof=1)) == pytest.approx(reference.dsr(r, trials), rel=1e-9)
    assert expected_maximum(12, .002) == pytest.approx(reference.sr0(12, .002), rel=1e-12)
    assert minimum_track_record(0.05, s.skew, s.kurtosis, 0.01) == pytest.approx(
        reference.min_trl(0.05, 0.01, s.skew, s.kurtosis), rel=1e-12
    )
    m = np.random.default_rng(seed).standard_normal((500, 15)) + .01 * seed
    ours, theirs = pbo(m, 10), reference.pbo_cscv(m, 10)
    assert (ours.pbo, ours.slope, ours.loss) == pytest.approx(
        (theirs["pbo"], theirs["slope"], theirs["p_loss"]), rel=1e-9
    )
    np.testing.assert_allclose(ours.logits, theirs["logits"], rtol=1e-9)


def test_one_definition_of_the_standard_error():
    """One standard error below the observed ratio, the probabilistic ratio is Φ(1), with the error that
    `metrics` shows."""
    r = pd.Series(fat(720, 3, .001))
    s = sharpe_sample(r)
    assert s.sharpe == pytest.approx(sharpe(r, 1)) and probabilistic_sharpe(
        *s, s.sharpe - sharpe_se(r, 1)
    ) == pytest.approx(stats.norm.cdf(1), abs=1e-12)


@pytest.mark.parametrize("skew,kurtosis,n,expected", [(0, 3, 24, .982), (-2.448, 10.164, 24, .913)])
def test_bailey_and_lopez_de_prado_2012(skew, kurtosis, n, expected):
    assert probabilistic_sharpe(.458, n, skew, kurtosis) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("trials,expected", [(100, .9004), (46, .9505)])
def test_bailey_and_lopez_de_prado_2014(trials, expected):
    assert deflated_sharpe(2.5 / 250**.5, 1250, -3, 10, trials, .5 / 250) == pytest.approx(expected, abs=1e-4)


def test_an_excess_kurtosis_is_refused_where_it_can_be_told():
    for call in (lambda: probabilistic_sharpe(.1, 100, 0, 0), lambda: minimum_track_record(.1, -3, 7)):
        with pytest.raises(InputError, match="non-excess"): call()


@settings(deadline=None, max_examples=60)
@given(sr=st.floats(-.2, .2), n=st.integers(2, 20_000), skew=st.floats(-2, 2),
       tail=st.floats(.1, 30), trials=st.integers(1, 500), v=st.floats(0, .01))
def test_more_trials_never_make_a_ratio_better(sr, n, skew, tail, trials, v):
    shape = (skew, 1 + skew**2 + tail)
    one, more = (deflated_sharpe(sr, n, *shape, k, v) for k in (trials, trials + 1))
    assert 0 <= more <= one + 1e-12 <= 1 + 1e-9 and one <= probabilistic_sharpe(sr, n, *shape) + 1e-12
    length = minimum_track_record(sr, *shape)
    if sr > .01: assert probabilistic_sharpe(sr, max(2, math.ceil(length)), *shape) >= .95 - 1e-9
    if sr <= 0: assert length == math.inf


def test_nothing_traded_is_undefined_not_zero():
    s = sharpe_sample(np.zeros(100))
    assert math.isnan(s.sharpe) and s.n == 100
    assert all(
        math.isnan(x)
        for x in (probabilistic_sharpe(*s), deflated_sharpe(*s, 5, 0.01), minimum_track_record(s.sharpe))
    )


@pytest.mark.parametrize("tickers,expected", [(5, 4.2), (10, 5.5), (50, 7.9), (100, 8.8)])
def test_the_best_of_worthless_tickers(tickers, expected):
    assert best_of(tickers, 720) == pytest.approx(expected, abs=.06)
    drawn = np.random.default_rng(0).standard_normal((400, tickers, 720)) if tickers <= 10 else None
    if drawn is not None:
        seen = (drawn.mean(axis=2) / drawn.std(axis=2)).max(axis=1).mean() * 8760**.5
        assert best_of(tickers, 720) == pytest.approx(seen, rel=.08)


# ---------------------------------------------------------------- overfitting
def slow_pbo(m: np.ndarray, splits: int) -> list[float]:
    "The definition, applied literally to the rows."
    blocks, logits = np.array_split(np.arange(len(m)), splits), []
    for picks in itertools.combinations(range(splits), splits // 2):
        inside = np.concatenate([blocks[k] for k in picks])
        outside = np.concatenate([blocks[k] for k in range(splits) if k not in picks])
        def ratio(rows):
            return m[rows].mean(axis=0) / m[rows].std(axis=0)
        w = stats.rankdata(ratio(outside))[ratio(inside).argmax()] / (m.shape[1] + 1)
        logits.append(math.log(w / (1 - w)))
    return logits


def test_pbo_is_its_definition():
    m = .01 * np.random.default_rng(2).standard_t(4, (203, 9))
    np.testing.assert_allclose(pbo(m, 6).logits, slow_pbo(m, 6), rtol=1e-9)


def test_pbo_under_the_null_and_with_a_winner():
    null = [pbo(np.random.default_rng(k).standard_normal((1080, 12)), 10).pbo for k in range(40)]
    assert np.mean(null) == pytest.approx(.5, abs=.08) and .08 < np.std(null) < .25
    for seed in range(3):
        m = np.random.default_rng(seed).standard_normal((1080, 12))
        m[:, 3] += .15
        assert pbo(m, 10).pbo < .1
    assert pbo(np.random.default_rng(0).standard_normal((1080, 12)) - .2).loss == 1.0


def test_pbo_refuses_what_it_cannot_split():
    m = np.zeros((100, 3))
    for bad, said in (
        (m[:, :1], "at least two settings"),
        (m[:20], "pass an even number"),
        (m + np.nan, "not finite"),
    ):
        with pytest.raises(InputError, match=said):
            pbo(bad)
    with pytest.raises(InputError, match="even number up to 20"): pbo(m, 5)


# ---------------------------------------------------------------- SPA and corrections
def test_spa_is_arch_on_negative_returns():
    table = pd.DataFrame({f"s{k}": fat(400, 10 + k) for k in range(5)})
    test = SPA(np.zeros(400), -table.to_numpy(), block_size=30, reps=300, seed=4)
    test.compute()
    ours = spa_test(table, reps=300, block=30, seed=4)
    assert {k: ours[k] for k in ("lower", "consistent", "upper")} == test.pvalues.to_dict()
    assert (
        ours == spa_test(table, reps=300, block=30, seed=4)
        and ours["lower"] <= ours["consistent"] <= ours["upper"]
    )


def test_spa_has_no_more_false_alarms_than_its_level():
    alarms = sum(
        spa_test(pd.DataFrame(0.01 * np.random.default_rng(k).standard_normal((400, 8))), reps=200)[
            "consistent"
        ]
        < 0.05
        for k in range(40)
    )
    assert alarms <= 6   # 99 % bound of a binomial (40, 0.05)
    real = pd.DataFrame(.01 * np.random.default_rng(1).standard_normal((400, 8)))
    real[3] += .003
    assert (
        spa_test(real, reps=300)["consistent"] < 0.01
        and spa_test(real, real[3], reps=300)["consistent"] > 0.3
    )
    # nothing differs from the benchmark
    assert spa_test(real * 0)["consistent"] == spa_test(real[[3]], real[3])["consistent"] == 1.0


def test_blocks_are_a_day_at_least_and_follow_volatility():
    rng = np.random.default_rng(0)
    calm = .01 * rng.standard_normal(2000)
    clustered = calm * np.exp(np.convolve(rng.standard_normal(2200), np.ones(200) / 10, mode="valid")[:2000])
    assert block_length(calm) == 24 < block_length(clustered) <= 2000 // 3
    assert block_length(np.zeros(500)) == 24


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(p=st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), min_size=1, max_size=12))
def test_corrections_are_statsmodels_with_one_for_what_is_undefined(monkeypatch, p):
    # statsmodels runs the garbage collector in every call: a fifth of a second in a process this large
    monkeypatch.setattr(gc, "collect", int)
    s = pd.Series(p, index=[f"cell {k}" for k in range(len(p))])
    for ours, theirs in (("holm", "holm"), ("bh", "fdr_bh")):
        out = adjust(s, ours)
        assert out.isna().equals(s.isna()) and (out.dropna() >= s.dropna() - 1e-12).all()
        if s.notna().any():
            # an undefined p counts as 1
            np.testing.assert_allclose(
                out.dropna(), multipletests(s.fillna(1), method=theirs)[1][s.notna()], rtol=1e-12
            )
