"""Walk-forward runs: out of sample by construction, repeatable, honest on noise and able to find what is there."""
from dataclasses import replace

import pandas as pd
import pytest

from cryptolstm.experiment import backtest
from cryptolstm.core import RunConfig, TrainingSpanError
from cryptolstm.model import fit, model_config
from cryptolstm.features import features
from cryptolstm.simulate import demo_market, planted_market
from cryptolstm.walkforward import bars_needed, schedule, walk_forward

TINY = {"units": [16], "dropout": [0.1], "recurrent_dropout": [0.1], "dense": [8], "epochs": 6, "refit_epochs": 2, "batch_size": 64}
RUN = RunConfig(hours=720, train_hours=1500, retrain_every=360, lookback=12, network=TINY)


def test_a_model_cannot_be_evaluated_inside_its_training_span():
    bars = demo_market(1000, seed=1)
    bundle = fit(bars.iloc[:900], features(bars).iloc[:900], model_config(RUN))
    with pytest.raises(TrainingSpanError, match="training span"):
        bundle.check_out_of_sample(bars.index[890:])
    bundle.check_out_of_sample(bars.index[900:])


@pytest.mark.parametrize("hours,every,horizon", [(48, 7, 1), (100, 100, 3), (101, 50, 24)])
def test_folds_cover_the_tested_span_once_and_train_strictly_before_it(hours, every, horizon):
    run = RunConfig(hours=hours, retrain_every=every, train_hours=300, lookback=5, horizon=horizon)
    folds = schedule(1000, run)
    rows = [r for f in folds for r in range(f.test_start, f.test_end)]
    assert rows == list(range(1000 - hours, 1000))
    assert all(f.train_start < f.test_start for f in folds)


def test_the_same_bars_and_seed_give_the_same_numbers_twice_and_another_seed_others():
    run = RunConfig(hours=96, train_hours=400, retrain_every=48, lookback=8, network={**TINY, "epochs": 2})
    bars = demo_market(bars_needed(run), seed=3)
    first, second = walk_forward(bars, run).predictions, walk_forward(bars, run).predictions
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    other = walk_forward(bars, RunConfig(**{**vars(run), "seed": 1})).predictions
    assert not other["prediction"].equals(first["prediction"])


@pytest.mark.parametrize("seed", [1, 2])
def test_no_skill_is_claimed_on_the_demo_market(seed):
    results = backtest(demo_market(bars_needed(RUN), seed=seed), RUN)
    assert results["verdict"].level in ("NO SKILL", "UNDERPOWERED")
    assert results["data"]["simulated"]


def test_a_planted_signal_is_found_and_its_mirror_flips_the_forecasts():
    run = replace(RUN, hours=1500, train_hours=3000, retrain_every=750, network={**TINY, "epochs": 8, "learning_rate": 2e-3})
    found = backtest(planted_market(bars_needed(run), r2=0.10, seed=3), run)
    row = found["skill"].loc["LSTM"]
    assert row["ic"] > 0.15 and row["cw_p"] < 0.001 and row["pt_p"] < 0.01
    assert found["verdict"].level in ("SKILL, NOT PROFITABLE", "CANDIDATE")
    flipped = backtest(planted_market(bars_needed(run), r2=0.10, seed=3, sign=-1), run)
    assert flipped["skill"].loc["LSTM", "ic"] > 0.15
    aligned = pd.concat([found["features"]["volume_ratio"], found["predictions"]["prediction"], flipped["features"]["volume_ratio"].rename("v2"),
                         flipped["predictions"]["prediction"].rename("p2")], axis=1).dropna()
    first, second = aligned.corr("spearman").loc["volume_ratio", "prediction"], aligned.corr("spearman").loc["v2", "p2"]
    assert first > 0.3 and second < -0.3
