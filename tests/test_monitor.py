"""An alarm that rings when the market or the model has changed, and not otherwise."""
import numpy as np
import pandas as pd
import pytest

from cryptolstm import SignalGenerator
from cryptolstm.core import RunConfig
from cryptolstm.features import INPUTS, features
from cryptolstm.model import fit
from cryptolstm.monitor import MIN_REFERENCE, WINDOW, class_shares, drift, health, live_skill, psi, reference
from cryptolstm.registry import validation_figures, validation_pairs
from cryptolstm.settings import ModelConfig
from cryptolstm.simulate import demo_market, planted_market

TRAIN, START = 4320, 100
SMALL = ModelConfig(lookback=12, units=(8,), dropout=(0.1,), recurrent_dropout=(0.1,), dense=(8,), epochs=10, learning_rate=3e-3)


def inputs(bars): return features(bars)[INPUTS].iloc[START:]


@pytest.mark.parametrize("n", [720, TRAIN])
def test_twenty_markets_that_go_on_as_before_are_quiet(n):
    alarms = {}
    for seed in range(20):
        table = inputs(demo_market(START + n + WINDOW, seed=100 + seed))
        found = drift(reference(table.iloc[:n]), table)
        alarms |= {seed: found.index[found["drifted"]].tolist()} if found["drifted"].any() else {}
    assert alarms == {}


def busier(bars, since):
    "Every other hour reports no volume, the one before it twice as much."
    later, odd = np.arange(len(bars)) >= since, np.arange(len(bars)) % 2 == 1
    return bars.assign(volume=bars["volume"].where(~(later & odd), 0.0).where(~(later & ~odd), bars["volume"] * 2))


def narrower(bars, since):
    "Bars whose wicks are gone: high and low are those of open and close."
    later = np.arange(len(bars)) >= since
    body = bars[["open", "close"]]
    return bars.assign(high=bars["high"].where(~later, body.max(axis=1)), low=bars["low"].where(~later, body.min(axis=1)))


@pytest.mark.parametrize("change,feature", [(busier, "volume_ratio"), (narrower, "high_low_dist")])
@pytest.mark.parametrize("seed", range(3))
def test_a_market_that_is_reported_in_another_way_raises_the_alarm(change, feature, seed):
    bars = demo_market(START + TRAIN + WINDOW, seed=seed)
    table = inputs(change(bars, START + TRAIN))
    assert drift(reference(table.iloc[:TRAIN]), table).loc[feature, "drifted"]


@pytest.mark.parametrize("feature", ["rsi", "log_return_z", "volume_ratio", "vwap_dist", "volume_delta_rel"])
def test_a_shift_of_three_deviations_raises_the_alarm_for_that_feature_alone(feature):
    table = inputs(demo_market(START + TRAIN + WINDOW, seed=1))
    past = table.iloc[:TRAIN]
    found = drift(reference(past), table.assign(**{feature: table[feature] + 3 * past[feature].std()}))
    assert found.index[found["drifted"]].tolist() == [feature]


def test_the_index_is_zero_for_the_same_and_finite_for_anything():
    x = np.random.default_rng(0).standard_normal(1000)
    edges = np.quantile(x, np.arange(1, 10) / 10)
    same, far = class_shares(x, edges), class_shares(x + 100, edges)
    assert psi(same, same) == 0 and 3 < psi(far, same) < 20 and psi(far, same) == pytest.approx(psi(same, far))
    assert far.sum() == pytest.approx(1) and class_shares(np.empty(0), edges) == pytest.approx(np.full(10, 0.1))


def test_too_little_to_compare_is_no_alarm_and_says_so():
    table = inputs(demo_market(START + 600, seed=1))
    assert reference(table.iloc[:MIN_REFERENCE - 1]) is None and drift(None, table) is None
    assert drift(reference(table.iloc[:MIN_REFERENCE]), table.iloc[:WINDOW - 1]) is None
    constant = reference(table.assign(rsi=50.0))
    assert drift(constant, table.assign(rsi=50.0)).loc["rsi", "psi"] < 0.01


@pytest.fixture(scope="module")
def model():
    bars = planted_market(2200, r2=0.2, seed=7)
    table = features(bars)
    bundle = fit(bars.iloc[:1800], table.iloc[:1800], SMALL)
    return bundle, {"validation": validation_figures(validation_pairs(bundle, table, bars))}, bars, table


def test_a_promise_that_is_kept_is_quiet_and_a_broken_one_is_said(model):
    bundle, note, bars, table = model
    assert health(bundle, note, table, bars)["warnings"] == [] and note["validation"]["loss"] < note["validation"]["loss_of_zero"]
    turned = pd.concat([bars.iloc[:1800], planted_market(2200, r2=0.2, seed=7, sign=-1).iloc[1800:]])
    said = health(bundle, note, features(turned), turned)
    assert said["skill"]["broken"] and said["skill"]["live"] < 0 < said["skill"]["promised"]
    assert "no longer does what its validation promised" in said["warnings"][0]


def test_only_bars_the_model_has_not_seen_are_counted(model):
    bundle, note, bars, table = model
    for bars_after, counted in ((0, 0), (1, 0), (20, 19), (100, 99), (400, WINDOW)):
        upto = slice(0, 1800 + bars_after)
        found = live_skill(bundle, note["validation"], table.iloc[upto], bars.iloc[upto])
        assert found["bars"] == counted and (found["p"] is None) == (counted < 30)
    assert live_skill(bundle, None, table, bars)["promised"] is None


@pytest.mark.parametrize("seeds", [range(100, 103), pytest.param(range(100, 120), marks=pytest.mark.slow)])
def test_honest_models_do_not_break_their_promise(seeds):
    "Networks on markets without a secret: what their validation promised was luck or nothing, and the test allows for it."
    broken = []
    for seed in seeds:
        bars = demo_market(1100, seed=seed)
        table = features(bars)
        bundle = fit(bars.iloc[:900], table.iloc[:900], ModelConfig(**{**vars(SMALL), "epochs": 3, "learning_rate": 5e-4}))
        found = live_skill(bundle, validation_figures(validation_pairs(bundle, table, bars)), table, bars)
        broken += [(seed, found["p"])] if found["broken"] else []
        assert found["bars"] == WINDOW and found["p"] is not None
    assert broken == []


def test_the_alarm_reaches_the_signal(tmp_path, monkeypatch):
    from cryptolstm import signals
    run = RunConfig(lookback=12, network={"units": [4], "dropout": [0], "recurrent_dropout": [0], "dense": [4], "epochs": 1})
    sg = SignalGenerator(exchange="simulated", home=tmp_path, config=run)
    quiet = sg.generate_signals(hours=2500)
    assert not any("drifted" in w for w in quiet["warnings"]) and quiet["monitor"]["drifted"] == []
    whole = signals.market_bars

    def other_volume(*args, **more):
        bars = whole(*args, **more)
        changed = busier(bars, len(bars) - WINDOW)
        changed.attrs = bars.attrs
        return changed

    monkeypatch.setattr(signals, "market_bars", other_volume)
    loud = sg.generate_signals(hours=2500)
    assert loud["model_info"]["decision"].startswith("reused") and "volume_ratio" in loud["monitor"]["drifted"]
    assert any(w.startswith("the market has left what the model was trained on: ") for w in loud["warnings"])
