"""Permutation importance: it finds the one family that carries the signal, changes no forecast, and is the
same for stored forecasts, seeds, pools and re-runs."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import run_bars, small_run

from cryptolstm.data.demo import demo_market, planted_market
from cryptolstm.features.indicators import FEATURES, features
from cryptolstm.features.targets import target
from cryptolstm.model.importance import FEWEST, importance_table, permutation_importance
from cryptolstm.model.settings import model_config
from cryptolstm.model.training import fit
from cryptolstm.report.forecast_sections import importance_figure
from cryptolstm.report.manifest import make_manifest
from cryptolstm.report.verify import compare_results
from cryptolstm.research import walkforward
from cryptolstm.research.backtest import backtest, run_backtest, summary
from cryptolstm.research.forecasts import packed_forecasts, unpacked_forecasts
from cryptolstm.research.walkforward import bars_needed, pooled_walk_forward, walk_forward

RUN = small_run(hours=96, retrain_every=48)
FAN = replace(RUN, network={**RUN.network, "seeds": [1, 2, 3]})


def same(a, b): pd.testing.assert_frame_equal(a, b, check_exact=True)


@pytest.fixture(scope="module")
def walk(): return walk_forward(run_bars(RUN), RUN)


@pytest.fixture(scope="module")
def fan(): return walk_forward(run_bars(FAN), FAN)


# ---- what it finds ---------------------------------------------------------------------------------------

def test_the_family_that_carries_a_planted_signal_ranks_first_by_far():
    "The next move of the planted market depends on volume over its mean, and on nothing else."
    network = {"units": [8], "dropout": [0], "recurrent_dropout": [0], "dense": [8], "epochs": 20,
               "refit_epochs": 3, "batch_size": 64, "learning_rate": 3e-3}
    run = small_run(hours=800, train_hours=2500, retrain_every=80, network=network)
    found = importance_table(walk_forward(planted_market(bars_needed(run), r2=.25, seed=2), run).importance)
    assert found.index[0] == "volume_ratio" and found["low"].iloc[0] > 0
    assert found["mean"].iloc[0] > 2 * found["mean"].iloc[1], found


def test_a_network_without_inputs_gives_exactly_zero():
    bars = run_bars(RUN)
    table, split = features(bars), len(bars) - 96
    model = fit(bars.iloc[:split], table.iloc[:split], model_config(RUN))
    kernel = model.weights[-2]
    assert kernel.shape[1] == 1   # of the output
    constant = replace(model, members=([*model.weights[:-2], np.zeros_like(kernel), model.weights[-1]],))
    outcomes = target(bars, table["sigma"]).iloc[split:]
    assert (permutation_importance(constant, table, bars, outcomes).to_numpy() == 0).all()
    assert (permutation_importance(model, table, bars, outcomes).to_numpy() != 0).any()


def test_a_network_is_never_judged_on_bars_it_was_trained_on(walk):
    bars = run_bars(RUN)
    outcomes = target(bars, walk.table["sigma"]).iloc[-200:]
    with pytest.raises(ValueError, match="training span"):
        permutation_importance(walk.last, walk.table, bars, outcomes)


# ---- what it leaves alone --------------------------------------------------------------------------------

@pytest.mark.parametrize("run", [RUN, FAN], ids=["one network", "a fan"])
def test_forecasts_and_weights_are_the_same_bits_without_it(run, monkeypatch, request):
    known = request.getfixturevalue("walk" if run is RUN else "fan")
    monkeypatch.setattr(walkforward, "permutation_importance", lambda *a, **k: pd.DataFrame())
    plain = walk_forward(run_bars(run), run)
    assert not len(plain.importance) and len(known.importance)
    same(plain.predictions, known.predictions)
    same(plain.folds, known.folds)
    for a, b in zip(plain.last.members, known.last.members, strict=True):
        assert all((v == w).all() for v, w in zip(a, b, strict=True))


def test_a_fold_uses_nothing_of_the_folds_after_it(walk):
    bars = run_bars(RUN)
    bars.iloc[-47:, :4] *= 3.0   # the outcome of the last bar of the first fold stays as it is
    same(walk_forward(bars, RUN).importance.loc[[0]], walk.importance.loc[[0]])


# ---- folds, seeds, pools ---------------------------------------------------------------------------------

def test_every_fold_and_seed_counts_once(fan):
    assert fan.importance.index.tolist() == [(fold, seed) for fold in (0, 1) for seed in (1, 2, 3)]
    table = importance_table(fan.importance)
    assert (table["n"] == 6).all() and sorted(table.index) == sorted(FEATURES)
    assert (table["mean"].diff().dropna() <= 0).all() and (table["low"] <= table["mean"]).all()
    np.testing.assert_allclose(table["sd"], fan.importance.std()[table.index])


def test_a_fan_gives_each_of_its_networks_what_that_gives_alone(fan):
    alone = walk_forward(run_bars(RUN), replace(RUN, network={**RUN.network, "seeds": [2]}))
    same(alone.importance, fan.importance.xs(2, level="seed", drop_level=False))


def test_each_ticker_of_a_pool_has_its_own():
    run = replace(RUN, ticker="BTC/USD", pool=["BTC/USD", "ETH/USD"])
    bars = {t: demo_market(bars_needed(run), seed=2, ticker=t) for t in run.pool}
    btc, eth = (pooled_walk_forward(bars, run)[t].importance for t in run.pool)
    assert len(btc) == len(eth) == 2 and not btc.equals(eth)
    result = backtest(bars["BTC/USD"], run, pool=bars)
    same(result["importance"], importance_table(btc))


@pytest.mark.parametrize("kind", ["volatility", "price"])
def test_other_targets_have_it_too(kind):
    run = replace(RUN, network={**RUN.network, "target": kind})
    values = walk_forward(run_bars(run), run).importance
    assert values.shape == (2, len(FEATURES)) and np.isfinite(values.to_numpy()).all()


def test_one_fold_has_no_interval_and_a_short_one_no_value():
    one = replace(RUN, hours=48)
    table = importance_table(walk_forward(run_bars(one), one).importance)
    assert table["low"].isna().all() and table["mean"].notna().all()
    short = replace(RUN, hours=48, retrain_every=15)
    none = walk_forward(run_bars(short), short)
    assert len(none.importance) == 0 and list(none.importance) == list(FEATURES)
    assert len(importance_table(none.importance)) == 0 and FEWEST == 16


# ---- stored forecasts, pages and re-runs -----------------------------------------------------------------

def test_stored_forecasts_give_the_same_table(tmp_path):
    first, second = (run_backtest(FAN, tmp_path, certify=False) for _ in range(2))
    assert "forecasts_from" in second["data"] and "forecasts_from" not in first["data"]
    same(second["importance"], first["importance"])
    assert summary(second)["importance"] == summary(first)["importance"]


@pytest.mark.parametrize("retrain_every", [48, 15], ids=["two folds", "no value"])
def test_it_survives_being_packed(retrain_every):
    run = replace(RUN, retrain_every=retrain_every)
    bars = run_bars(run)
    walk = walk_forward(bars, run)
    pd.testing.assert_frame_equal(
        unpacked_forecasts(packed_forecasts(walk), bars, run).importance, walk.importance,
        check_exact=True, check_index_type=len(walk.importance) > 0,
    )


def test_a_page_shows_it_and_a_rerun_compares_it():
    results = backtest(run_bars(RUN), RUN, certify=True)
    done = json.loads(json.dumps(summary(results), allow_nan=False))
    first = next(iter(done["importance"]))
    assert first == results["importance"].index[0] and first in importance_figure(results).markup
    assert set(done["importance"][first]) == {"mean", "sd", "low", "high", "n"}
    manifest = json.loads(json.dumps(make_manifest(done, "")))
    assert all(f["ok"] for f in compare_results(manifest, done))
    done["importance"][first]["mean"] += 0.001
    (wrong,) = (f for f in compare_results(manifest, done) if not f["ok"])
    assert wrong["what"] == "importance" and first in wrong["text"]
