"""Nothing uses the future: features, scaled windows, predictions and decisions of a truncated or altered
history equal those of the full one."""
import numpy as np
import pandas as pd
import pytest

from cryptolstm.core.config import RunConfig
from cryptolstm.data.demo import demo_market
from cryptolstm.features.indicators import INPUTS, WARMUP, features
from cryptolstm.model.settings import model_config
from cryptolstm.model.training import fit
from cryptolstm.proof.leaks import check_future, check_start, check_truncation, leak_certificate
from cryptolstm.strategy.decide import decide

LOOKBACK = 12
TINY = {"units": [8], "dropout": [0.1], "recurrent_dropout": [0.1], "dense": [8], "epochs": 2}
CUTS = [8, 13, 27, 30, 49, 60, 700, 1500, 2399]


def market(kind: str, real_bars) -> pd.DataFrame:
    "2,400 bars, simulated or recorded."
    return demo_market(2400, seed=5) if kind == "demo" else real_bars("ETH/USD").iloc[:2400]


def loud_forecast(table: pd.DataFrame) -> pd.Series:
    "A causal forecast that exceeds every threshold, so that all rules are evaluated."
    return 3.0 * np.sign(table["macd_diff"]).rename("prediction")


def decisions(bars: pd.DataFrame) -> pd.DataFrame:
    "All steps from bars to signals, with the loud forecast in place of the network."
    table = features(bars)
    return decide(loud_forecast(table), table, RunConfig())


@pytest.fixture(scope="module")
def bundle():
    bars = demo_market(1600, seed=9)
    return fit(bars, features(bars), model_config(RunConfig(lookback=LOOKBACK, network=TINY)))


@pytest.mark.parametrize("kind", ["demo", "real"])
def test_features_hold_the_leak_certificate(kind, real_bars):
    certificate = leak_certificate(features, market(kind, real_bars), cuts=CUTS, warmup=500)
    assert certificate.passed, certificate.offending


@pytest.mark.parametrize("kind", ["demo", "real"])
def test_signals_survive_truncation_and_altered_futures_inside_the_warm_up_too(kind, real_bars):
    bars = market(kind, real_bars)
    assert (decisions(bars)["signal"] != 0).sum() > 10  # there are signals that could change
    assert check_truncation(decisions, bars, CUTS).empty
    assert check_future(decisions, bars, [8, 60, 1500]).empty


def test_signals_do_not_depend_on_where_the_history_starts(real_bars):
    bars = market("real", real_bars)
    def signal(b):
        return decisions(b)[["threshold", "direction", "signal"]].astype(float)
    assert check_start(signal, bars, WARMUP, [1200, 1777, 2399]).empty


@pytest.mark.parametrize("kind", ["demo", "real"])
def test_predictions_of_a_trained_model_survive_truncation_and_altered_futures(bundle, kind, real_bars):
    bars = market(kind, real_bars)
    def predict(b):
        return bundle.predict(features(b), b, in_sample=True).to_frame()
    assert predict(bars)["prediction"].notna().sum() > 2000
    assert check_truncation(predict, bars, [8, 60, 61, 700, 2399]).empty
    assert check_future(predict, bars, [60, 1500]).empty


@pytest.mark.parametrize("leak", ["bfill", "full-sample scale", "tomorrow"])
def test_a_leak_planted_into_our_features_is_caught(leak):
    mutants = {
        "bfill": lambda b: features(b).bfill(),
        "full-sample scale": lambda b: features(b)[INPUTS] / features(b)[INPUTS].std(),
        "tomorrow": lambda b: features(b).assign(rsi=lambda t: t["rsi"].shift(-1)),
    }
    certificate = leak_certificate(mutants[leak], demo_market(1300, seed=5), cuts=[8, 700], warmup=None)
    assert not certificate.passed and certificate.offending


def test_training_does_not_see_what_follows_its_slice(bundle):
    bars = demo_market(1600, seed=9)
    longer = pd.concat([bars, demo_market(100, seed=1, end=bars.index[-1] + pd.Timedelta("101h"))])
    again = fit(longer.iloc[:1600], features(longer).iloc[:1600], bundle.config)
    assert again.scaler == bundle.scaler and again.data_hash == bundle.data_hash
    assert all((a == b).all() for a, b in zip(again.weights, bundle.weights, strict=True))


def test_prices_times_a_thousand_leave_every_signal_unchanged(real_bars):
    bars = market("real", real_bars)
    milli = bars.assign(**{c: bars[c] * 1000 for c in ("open", "high", "low", "close")})
    pd.testing.assert_series_equal(decisions(milli)["signal"], decisions(bars)["signal"])
