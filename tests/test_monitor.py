"""The drift alarm is raised when the market or the model has changed, and not otherwise."""
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cryptolstm import SignalGenerator
from cryptolstm.core.bars import HOUR
from cryptolstm.core.config import RunConfig
from cryptolstm.data.demo import demo_market, planted_market
from cryptolstm.features.indicators import INPUTS, features
from cryptolstm.model.settings import ModelConfig
from cryptolstm.model.training import fit
from cryptolstm.model.registry import Version, version_folders
from cryptolstm.model.challenge import validation_figures, validation_pairs
from cryptolstm.model.drift import (MIN_REFERENCE, WINDOW, class_edges, class_shares, drift, health,
                                    live_skill, psi, reference)

TRAIN, START = 4320, 100
SMALL = ModelConfig(
    lookback=12,
    units=(8,),
    dropout=(0.1,),
    recurrent_dropout=(0.1,),
    dense=(8,),
    epochs=10,
    learning_rate=3e-3,
)


def inputs(bars): return features(bars)[INPUTS].iloc[START:]


@pytest.mark.parametrize("n,seeds", [
    (720, 20), (TRAIN, 20),
    pytest.param(720, 60, marks=pytest.mark.slow), pytest.param(TRAIN, 60, marks=pytest.mark.slow)])
def test_markets_that_go_on_as_before_are_quiet(n, seeds):
    alarms = {}
    for seed in range(seeds):
        table = inputs(demo_market(START + n + WINDOW, seed=100 + seed))
        found = drift(reference(table.iloc[:n]), table)
        alarms |= {seed: found.index[found["drifted"]].tolist()} if found["drifted"].any() else {}
    # about one in a hundred independent weeks lies outside the range of a training of 30 days
    assert len(alarms) <= (0 if seeds == 20 else 1), alarms


def busier(bars, since):
    "Every other hour has no volume, the one before it twice as much."
    later, odd = np.arange(len(bars)) >= since, np.arange(len(bars)) % 2 == 1
    return bars.assign(
        volume=bars["volume"].where(~(later & odd), 0.0).where(~(later & ~odd), bars["volume"] * 2)
    )


def narrower(bars, since):
    "Bars without wicks: high and low are the larger and smaller of open and close."
    later = np.arange(len(bars)) >= since
    body = bars[["open", "close"]]
    return bars.assign(
        high=bars["high"].where(~later, body.max(axis=1)), low=bars["low"].where(~later, body.min(axis=1))
    )


@pytest.mark.parametrize("change,feature", [(busier, "volume_ratio"), (narrower, "high_low_dist")])
@pytest.mark.parametrize("seed", range(3))
def test_a_market_that_is_reported_in_another_way_raises_the_alarm(change, feature, seed):
    bars = demo_market(START + TRAIN + WINDOW, seed=seed)
    table = inputs(change(bars, START + TRAIN))
    assert drift(reference(table.iloc[:TRAIN]), table).loc[feature, "drifted"]


@pytest.mark.parametrize("n", [MIN_REFERENCE, 720, TRAIN])
@pytest.mark.parametrize("seed", [1, 2])
def test_any_feature_moved_beyond_its_training_raises_the_alarm_for_itself_alone(n, seed):
    "For every input, in both directions, also when the training contains a volatile week."
    table = inputs(demo_market(START + n + WINDOW, seed=seed))
    past = table.iloc[:n]
    ref = reference(past)
    for feature in INPUTS:
        for beyond in (-1, 1):
            moved = table.assign(
                **{feature: table[feature] + beyond * 1.01 * (past[feature].max() - past[feature].min())}
            )
            found = drift(ref, moved)
            assert found.index[found["drifted"]].tolist() == [feature], (feature, beyond)


def wilder(bars, times, since):
    "The same bars, but with larger moves from one bar on."
    moves = np.log(bars["close"]).diff().fillna(0) * np.where(np.arange(len(bars)) < since, 1, times)
    close = bars["close"].iloc[0] * np.exp(moves.cumsum())
    o, k = close.shift(1, fill_value=close.iloc[0]), close / bars["close"]
    return bars.assign(
        open=o,
        close=close,
        high=np.maximum(bars["high"] * k, np.maximum(o, close)),
        low=np.minimum(bars["low"] * k, np.minimum(o, close)),
    )


@pytest.mark.parametrize("n", [720, TRAIN])
def test_a_market_that_moves_five_times_as_much_raises_the_alarm(n):
    "Except for markets whose training contains such weeks."
    rang = []
    for seed in range(10):
        bars = demo_market(START + n + WINDOW, seed=seed)
        past = inputs(bars).iloc[:n]
        ref = reference(past)
        found = drift(ref, inputs(wilder(bars, 5, len(bars) - WINDOW)))
        rang.append(found.loc[["log_sigma", "atr_rel", "high_low_dist", "log_return_z"], "drifted"].any())
    assert sum(rang) >= 7, rang


def test_the_index_is_zero_for_the_same_and_finite_for_anything():
    x = np.random.default_rng(0).standard_normal(1000)
    edges = class_edges(x)
    same, far = class_shares(x, edges), class_shares(x + 100, edges)
    assert (
        psi(same, same) == 0 and 3 < psi(far, same) < 20 and psi(far, same) == pytest.approx(psi(same, far))
    )
    assert far.sum() == pytest.approx(1) and class_shares(np.empty(0), edges) == pytest.approx(
        np.full(12, 1 / 12)
    )
    # nothing in the training lies outside its own range
    assert same[[0, -1]] == pytest.approx(0.5 / (1000 + 6))


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
    return (
        Version(bundle, Path("1"), {"validation": validation_figures(validation_pairs(bundle, table, bars))}),
        bars,
        table,
    )


def test_only_a_loss_of_skill_gives_a_warning(model):
    version, bars, table = model
    promise = version.note["validation"]
    assert health([version], table, bars)["warnings"] == [] and promise["loss"] < promise["loss_of_zero"]
    turned = pd.concat([bars.iloc[:1800], planted_market(2200, r2=0.2, seed=7, sign=-1).iloc[1800:]])
    said = health([version], features(turned), turned)
    assert said["skill"]["broken"] and said["skill"]["live"] < 0 < said["skill"]["promised"]
    assert "skill has fallen below that of its validation" in said["warnings"][0]


def test_only_bars_the_model_has_not_seen_are_counted(model):
    version, bars, table = model
    for bars_after, counted in ((0, 0), (1, 0), (20, 19), (100, 99), (400, WINDOW)):
        upto = slice(0, 1800 + bars_after)
        found = live_skill([version], table.iloc[upto], bars.iloc[upto])
        assert found["bars"] == counted and (found["p"] is None) == (counted < 30)
    assert live_skill([version._replace(note={})], table, bars)["promised"] is None


def test_each_bar_is_held_against_the_promise_of_the_version_that_forecast_it(model):
    "Three versions, one day apart: none has thirty bars, together they do."
    first, bars, table = model
    later = [
        Version(
            fit(bars.iloc[k : 1800 + k], table.iloc[k : 1800 + k], SMALL, warm_start=first.model),
            Path(str(k)),
            first.note,
        )
        for k in (48, 24)
    ]
    upto = slice(0, 1800 + 48 + 13)
    found = live_skill([*later, first], table.iloc[upto], bars.iloc[upto])
    alone = live_skill(later[:1], table.iloc[upto], bars.iloc[upto])
    assert (found["bars"], found["versions"], alone["bars"], alone["p"]) == (60, 3, 12, None) and found[
        "p"
    ] is not None
    lofty = first._replace(note={"validation": {**first.note["validation"], "loss": 0.0, "variance": 0.0}})
    # the oldest version predicted a lower loss, and its bars are compared with that
    assert live_skill([*later, lofty], table.iloc[upto], bars.iloc[upto])["p"] < found["p"]
    silent = first._replace(note={})
    # a version without a predicted loss is left out
    assert live_skill([*later, silent], table.iloc[upto], bars.iloc[upto])["bars"] == 36


@pytest.mark.parametrize("seeds", [range(100, 103), pytest.param(range(100, 120), marks=pytest.mark.slow)])
def test_honest_models_do_not_break_their_promise(seeds):
    """Networks on markets without a planted signal: any skill in their validation was luck, and the test
    allows for it."""
    broken = []
    for seed in seeds:
        bars = demo_market(1100, seed=seed)
        table = features(bars)
        bundle = fit(
            bars.iloc[:900],
            table.iloc[:900],
            ModelConfig(**{**vars(SMALL), "epochs": 3, "learning_rate": 5e-4}),
        )
        found = live_skill(
            [
                Version(
                    bundle,
                    Path("1"),
                    {"validation": validation_figures(validation_pairs(bundle, table, bars))},
                )
            ],
            table,
            bars,
        )
        broken += [(seed, found["p"])] if found["broken"] else []
        assert found["bars"] == WINDOW and found["p"] is not None
    assert broken == []


def test_the_alarm_reaches_the_signal(tmp_path, monkeypatch):
    from cryptolstm.strategy import signal
    run = RunConfig(
        lookback=12,
        network={"units": [4], "dropout": [0], "recurrent_dropout": [0], "dense": [4], "epochs": 1},
    )
    sg = SignalGenerator(exchange="simulated", home=tmp_path, config=run)
    quiet = sg.generate_signals(hours=2500)
    assert not any("drifted" in w for w in quiet["warnings"]) and quiet["monitor"]["drifted"] == []
    whole = signal.market_bars

    def other_volume(*args, **more):
        bars = whole(*args, **more)
        changed = busier(bars, len(bars) - WINDOW)
        changed.attrs = bars.attrs
        return changed

    monkeypatch.setattr(signal, "market_bars", other_volume)
    loud = sg.generate_signals(hours=2500)
    assert (
        loud["model_info"]["decision"].startswith("reused") and "volume_ratio" in loud["monitor"]["drifted"]
    )
    assert any(w.startswith("the market has changed since the training: ") for w in loud["warnings"])


def test_at_the_usual_rhythm_drift_is_watched_and_the_line_is_judged(loopback, tmp_path):
    "240 training bars, a new version every day."
    loopback.now -= 200 * HOUR
    network = {
        "units": [4],
        "dropout": [0],
        "recurrent_dropout": [0],
        "dense": [4],
        "epochs": 1,
        "refit_epochs": 1,
    }
    sg = SignalGenerator(
        exchange="coinbaseexchange",
        exchange_url=loopback.url,
        home=tmp_path,
        config=RunConfig(lookback=12, network=network),
    )
    first = sg.generate_signals()["monitor"]
    assert (
        first["skill"]["p"] is None
        and len(first["psi"]) == len(INPUTS)
        and first["sentence"].endswith("; no forecast of this line has come true yet")
    )
    for _ in range(3):
        loopback.now += 24 * HOUR
        monitor = sg.generate_signals()["monitor"]
    used = sum((folder / "used.json").is_file() for folder in version_folders(sg.line, tmp_path / "models"))
    assert (
        monitor["skill"]["versions"] >= 2
        and used >= 2
        and monitor["skill"]["bars"] >= 48
        and monitor["skill"]["p"] is not None
    )
    assert "% in validation" in monitor["sentence"] and "for a loss of skill" in monitor["sentence"]
