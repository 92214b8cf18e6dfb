"""The demo market has valid bars, cannot be forecast and resembles crypto; the planted market has exactly the
stated signal."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.diagnostic import acorr_ljungbox

from cryptolstm.core.errors import InputError
from cryptolstm.core.bars import HOUR, bars_hash, check_bars, provenance
from cryptolstm.data.demo import START_PRICES, demo_market, facts, planted_market, planted_state

SEEDS = range(12)


@pytest.fixture(scope="module")
def years() -> list[pd.DataFrame]:
    "Two years each, twelve seeds."
    return [demo_market(17_520, seed=s) for s in SEEDS]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31 - 1), hours=st.integers(1, 400),
       base=st.sampled_from([*START_PRICES, "XYZ", "SHIB"]),
       vol=st.floats(.01, 5), planted=st.booleans())
def test_bars_fit_together(seed, hours, base, vol, planted):
    make = planted_market if planted else demo_market
    bars = make(hours, seed=seed, ticker=f"{base}/USD", annual_vol=vol)
    check_bars(bars)  # refuses unordered bars, non-finite values, impossible highs and lows
    assert len(bars) == hours and bars.index.name == "timestamp"
    assert (np.diff(bars.index) == HOUR).all() and bars.index[-1] + HOUR == pd.Timestamp(
        "2025-01-01", tz="UTC"
    )
    assert (bars["open"].to_numpy()[1:] == bars["close"].to_numpy()[:-1]).all()
    assert (bars["volume"] > 0).all()
    origin = provenance(bars)
    assert origin.simulated and origin.ticker == f"{base}/USD" and origin.seed == seed
    assert bars_hash(bars) == bars_hash(make(hours, seed=seed, ticker=f"{base}/USD", annual_vol=vol))


def test_seed_ticker_and_end_choose_the_market():
    hashes = {bars_hash(demo_market(50, seed=s, ticker=f"{b}/USD")) for s in (0, 1) for b in START_PRICES}
    assert len(hashes) == 2 * len(START_PRICES)
    bars = demo_market(50, end="2025-03-30T12:40+02:00")
    assert bars.index[-1] == pd.Timestamp("2025-03-30 09:00", tz="UTC")  # the last bar closed by then


@pytest.mark.parametrize("wrong", [dict(hours=0), dict(hours=2.5), dict(hours=5, seed=-1),
                                   dict(hours=5, ticker="BTC"), dict(hours=5, end="soon"),
                                   dict(hours=5, annual_vol=0)])
def test_nonsense_is_refused(wrong):
    with pytest.raises(InputError, match="pass"): demo_market(**wrong)


def test_direction_cannot_be_forecast():
    """Given the past, a return is symmetric, so its signs are independent coin tosses: the Ljung-Box test has
    its exact size on them."""
    p = []
    for seed in range(60):
        sign = np.sign(demo_market(2000, seed=seed)["close"].pct_change().dropna())
        p.append(float(acorr_ljungbox(sign, lags=[24])["lb_pvalue"].iloc[0]))
    assert sum(x < .05 for x in p) <= stats.binom.ppf(.999, 60, .05)
    assert stats.kstest(p, "uniform").pvalue > .001


def test_returns_have_no_mean_and_no_memory_and_volatility_has(years):
    t_mean, t_lag = [], []
    for bars in years:
        x = bars["close"].pct_change().dropna().to_numpy()
        t_mean.append(x.mean() / x.std() * np.sqrt(len(x)))
        product = x[1:] * x[:-1]  # the variance of the product is used, because volatility clusters
        t_lag.append(product.sum() / np.sqrt((product**2).sum()))
        assert acorr_ljungbox(np.abs(x), lags=[24])["lb_pvalue"].iloc[0] < 1e-6
    for t in (t_mean, t_lag): assert abs(np.mean(t)) < 3 / np.sqrt(len(t)) and np.std(t) < 2


# Smallest and largest value in three real two-year spans of hourly bitcoin; a simulated statistic may leave
# the span by a quarter.
REAL = {
    "annual vol": (0.48, 0.70),
    "excess kurtosis": (9.7, 33.0),
    "tail index": (2.6, 3.3),
    "ACF |r| 1": (0.25, 0.31),
    "ACF |r| 24": (0.13, 0.18),
    "ACF |r| 168": (0.09, 0.17),
    "volume ~ |r|": (0.32, 0.62),
    "range / |r|": (2.06, 2.18),
    "Parkinson": (1.02, 1.11),
    "no upper wick": (0.015, 0.034),
    "peak / mean": (1.40, 1.70),
    "weekend / mean": (0.67, 0.78),
    "peak hour": (13, 15),
}


@pytest.mark.parametrize("name", REAL)
def test_looks_like_crypto(years, name):
    "The median of twelve seeds must be in the real range widened by a quarter."
    low, high = REAL[name]
    median = np.median([facts(bars)[name] for bars in years])
    assert .75 * low <= median <= 1.25 * high


@pytest.mark.parametrize("sign", [1, -1])
def test_the_plant_has_the_size_it_claims(sign):
    """Hit rate 1/2 + arcsin(rho)/pi, up to two points more for fat tails; Spearman near rho, lower because
    volatility varies."""
    bars = planted_market(30_000, r2=.10, seed=3, sign=sign)
    state, r = planted_state(bars), np.log(bars["close"]).diff().shift(-1)
    rho, ok = np.sqrt(.10), planted_state(bars).notna() & r.notna()
    hit = float((np.sign(state) == np.sign(sign * r))[ok].mean())
    assert 0 <= hit - (.5 + np.arcsin(rho) / np.pi) < .03
    assert .8 * rho < sign * state[ok].corr(r[ok], method="spearman") < 1.05 * rho
    assert provenance(bars).planted_r2 == .10 and provenance(bars).planted_sign == sign


def test_a_weak_plant_is_weak():
    bars = planted_market(60_000, r2=.01, seed=4)
    ic = planted_state(bars).corr(np.log(bars["close"]).diff().shift(-1), method="spearman")
    assert .06 < ic < .13


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), cut=st.integers(1, 299))
def test_the_state_is_known_at_the_close(seed, cut):
    bars = planted_market(300, seed=seed)
    pd.testing.assert_series_equal(
        planted_state(bars.iloc[:cut]), planted_state(bars).iloc[:cut], check_exact=True
    )


def test_the_plant_is_no_drift():
    """Buy & hold must not profit from the planted signal: over seeds and signs the mean return stays within
    its noise."""
    t = []
    for seed in range(10):
        for sign in (1, -1):
            x = planted_market(8760, seed=seed, sign=sign)["close"].pct_change().dropna()
            t.append(x.mean() / x.std() * np.sqrt(len(x)))
    assert abs(np.mean(t)) < 1 and np.max(np.abs(t)) < 4
