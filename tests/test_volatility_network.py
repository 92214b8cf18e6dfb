"""The network for volatility has the interface of a forecaster, does not see the future, and can be repeated;
a stored model forecasts without TensorFlow what Keras forecasts."""
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cryptolstm.core.errors import InputError, OperationError, TooFewRows, TrainingSpanError
from cryptolstm.data.demo import demo_market
from cryptolstm.features.panel import panel
from cryptolstm.features.variance import log_realised_variance, seasonal_profile, variance_table
from cryptolstm.model.volatility import PooledRidge
from cryptolstm.model.volatility_network import (FittedBlend, VolatilityLSTM, VolatilityNetwork, WindowData,
                                                 channels, relative_features, ridge_and_lstm,
                                                 train_member)

SMALL = VolatilityNetwork(units=4, batch=64, epochs=2)
LAST, HOURS = 1800, 2000   # training hours, and all
TICKERS = ("BTC/USD", "ETH/USD", "SOL/USD")


def until(bars, hours):
    return {t: b.iloc[:hours] for t, b in bars.items()}


@pytest.fixture(scope="module")
def universe():
    return {t: demo_market(HOURS, seed=k, ticker=t) for k, t in enumerate(TICKERS)}


@pytest.fixture(scope="module")
def fitted(universe):
    return VolatilityLSTM(24, (1, 2), SMALL).fit(None, until(universe, LAST))


@pytest.fixture(scope="module")
def blend(universe, fitted):
    return FittedBlend((PooledRidge(24).fit(None, until(universe, LAST)), fitted))


# -- interface

def test_forecasts_have_the_hours_and_tickers_of_the_bars(universe, fitted):
    forecasts = fitted.predict(None, universe, start=LAST)
    assert list(forecasts.columns) == list(TICKERS) and len(forecasts) == HOURS - LAST
    assert np.isfinite(forecasts).all().all()
    daily = np.exp(forecasts / 2)
    assert (daily > 0.005).all().all() and (daily < 0.2).all().all()   # of 2% to 3%


def test_a_panel_and_a_table_computed_before_give_the_same_forecasts(universe, fitted):
    p = panel(universe)
    table = variance_table(p, 24, seasonal_profile(p.rows(slice(0, LAST))))
    expected = fitted.predict(None, universe, start=LAST)
    assert fitted.predict(table, p, start=LAST).equals(expected)
    again = VolatilityLSTM(24, (1, 2), SMALL).fit(table.rows(slice(0, LAST)), p.rows(slice(0, LAST)))
    assert again.predict(None, universe, start=LAST).equals(expected)


def test_the_bars_of_one_ticker_give_a_series():
    bars = demo_market(2200, seed=3)
    fitted = VolatilityLSTM(6, (1,), SMALL).fit(None, bars.iloc[:2100])
    forecast = fitted.predict(None, bars, start=2100)
    assert forecast.index.equals(bars.index[2100:]) and np.isfinite(forecast).all()


def test_bars_of_the_training_span_are_not_forecast(universe, fitted, blend):
    for model in (fitted, blend):
        assert model.span.outcome == universe["BTC/USD"].index[LAST - 1]
        with pytest.raises(TrainingSpanError): model.predict(None, universe, start=LAST - 1)


def test_hours_without_features_have_no_forecast():
    bars = {t: demo_market(HOURS, seed=k, ticker=t) for k, t in enumerate(TICKERS)}
    fitted = VolatilityLSTM(24, (1,), replace(SMALL, epochs=0)).fit(None, until(bars, 1500))
    late = {**bars, "SOL/USD": bars["SOL/USD"].iloc[1000:]}   # 720 hours later it has features
    forecasts = fitted.predict(None, late, start=1500)
    assert forecasts["SOL/USD"].iloc[:220].isna().all() and forecasts["SOL/USD"].iloc[221:].notna().all()
    assert forecasts["BTC/USD"].notna().all()


def test_too_few_rows_and_unknown_tickers_are_refused(universe, fitted):
    with pytest.raises(TooFewRows, match="too few for a volatility network"):
        VolatilityLSTM(24, (1,), SMALL).fit(None, until(universe, 800))
    with pytest.raises(InputError, match="not on ADA/USD"):
        fitted.predict(None, {"ADA/USD": universe["BTC/USD"]}, start=LAST)
    p = panel(universe)
    narrow = variance_table(p, 24, fitted.season).only(["ETH/USD"])
    with pytest.raises(InputError, match="all of them for its market"):
        fitted.predict(narrow, p.only(["ETH/USD"]), start=LAST)


# -- causality and repeatability

def test_forecasts_do_not_change_when_later_bars_are_missing_or_different(universe, blend):
    whole = blend.predict(None, universe, start=LAST)
    short = blend.predict(None, until(universe, LAST + 50), start=LAST)
    assert short.equals(whole.iloc[:50])
    wild = {t: b.copy() for t, b in universe.items()}
    for b in wild.values():
        b.iloc[LAST + 50:, :4] *= np.linspace(1.2, 3, HOURS - LAST - 50)[:, None]
        b.iloc[LAST + 50:, 4] *= 9
    altered = blend.predict(None, wild, start=LAST)
    assert altered.iloc[:50].equals(whole.iloc[:50])
    assert not altered.iloc[51].equals(whole.iloc[51])


def test_a_training_does_not_see_bars_after_its_own(universe, fitted):
    other = {t: b.copy() for t, b in universe.items()}
    for b in other.values(): b.iloc[LAST:, :4] *= 2
    p = panel(other)
    again = VolatilityLSTM(24, (1, 2), SMALL).fit(None, p.rows(slice(0, LAST)))
    assert again.levels == fitted.levels
    for a, b in zip(again.members, fitted.members, strict=True):
        assert all((x == y).all() for x, y in zip(a.weights, b.weights, strict=True))


def test_a_forecast_does_not_depend_on_how_many_are_requested(universe, fitted):
    whole = fitted.predict(None, universe, start=LAST)
    assert fitted.predict(None, universe, start=HOURS - 1).equals(whole.iloc[-1:])


def test_a_training_repeats_bit_for_bit_in_another_process(universe, fitted):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_volatility_network as t;"
        " bars = {k: t.demo_market(t.HOURS, seed=n, ticker=k) for n, k in enumerate(t.TICKERS)};"
        " model = t.VolatilityLSTM(24, (2,), t.SMALL).fit(None, t.until(bars, t.LAST));"
        " print(*[float(w).hex() for a in model.members[0].weights for w in a.ravel()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200
    )
    assert done.stdout.split() == [float(w).hex() for a in fitted.members[1].weights for w in a.ravel()]


def test_seeds_differ_and_their_forecast_is_their_mean(universe, fitted):
    alone = [
        VolatilityLSTM(24, (s,), SMALL).fit(None, until(universe, LAST)).predict(None, universe, start=LAST)
        for s in (1, 2)
    ]
    assert np.abs(alone[0] - alone[1]).max().max() > 1e-3
    mean = (alone[0] + alone[1]) / 2
    np.testing.assert_allclose(fitted.predict(None, universe, start=LAST), mean, atol=1e-12)


def test_a_diverged_training_is_reported_and_leaves_the_next_one_as_it_was(universe, fitted):
    p = panel(until(universe, LAST))
    table = variance_table(p, 24, fitted.season)
    side = fitted.scaling.apply(relative_features(table, fitted.columns))
    outcomes = log_realised_variance(p, 24)
    learn = np.isfinite(outcomes) & np.isfinite(table.columns["g720"])
    data = WindowData(channels(table, p, SMALL.width), side, *np.nonzero(learn))
    target = (outcomes - table.columns["g168"] - np.log(24))[learn].astype("float32")
    for wrong in (np.nan, np.inf):
        with pytest.raises(OperationError, match="diverged in step 1; lower learning_rate"):
            train_member(data, np.full_like(target, wrong), SMALL, seed=1)
    trained = train_member(data, target, SMALL, seed=1)
    assert all((a == b).all() for a, b in zip(trained.weights, fitted.members[0].weights, strict=True))


# -- the level

def test_an_untrained_network_forecasts_the_level_of_the_last_week(universe):
    settings = VolatilityLSTM(24, (1,), replace(SMALL, epochs=0))
    fitted = settings.fit(None, until(universe, LAST))
    table = variance_table(panel(universe), 24, fitted.season)
    expected = table.columns["g168"][LAST:] + np.log(24) + fitted.levels[0]
    np.testing.assert_allclose(fitted.predict(None, universe, start=LAST), expected, rtol=0, atol=1e-12)


def test_forecasts_have_the_level_of_the_outcomes_in_the_training_rows(universe, fitted):
    # with a span that ends before them, the training bars themselves are forecast
    before = replace(fitted.span, outcome=universe["BTC/USD"].index[0])
    inside = replace(fitted, span=before).predict(None, until(universe, LAST), start=1)
    outcomes = log_realised_variance(panel(until(universe, LAST)), 24)[1:]
    ratio = np.nanmean(np.exp(outcomes - inside.to_numpy()))
    assert abs(ratio - 1) < 0.01


def test_the_blend_is_the_mean_of_the_logs(universe, blend):
    ridge, lstm = (m.predict(None, universe, start=LAST) for m in blend.members)
    assert blend.predict(None, universe, start=LAST).equals((ridge + lstm) / 2)
    once = ridge_and_lstm(24, (1, 2), SMALL).fit(None, until(universe, LAST))
    assert once.predict(None, universe, start=LAST).equals((ridge + lstm) / 2)


# -- start-up

def test_the_module_does_not_load_tensorflow():
    code = (
        "import sys, cryptolstm.model.volatility_network\n"
        "assert not {'tensorflow', 'keras', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
