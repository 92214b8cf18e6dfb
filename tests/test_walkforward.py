"""Walk-forward runs: out of sample by construction, repeatable, without false skill on noise, and able to
find planted skill."""
import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cryptolstm.core.errors import OperationError, TrainingSpanError
from cryptolstm.core.bars import regular_grid
from cryptolstm.core.config import RunConfig
from cryptolstm.core.progress import Progress
from cryptolstm.data.demo import demo_market, planted_market
from cryptolstm.features.indicators import INPUTS, features
from cryptolstm.features.targets import target
from cryptolstm.features.windows import purged_split, window_ends
from cryptolstm.model.settings import model_config
from cryptolstm.model.volatility import HAR
from cryptolstm.model.training import fit
from cryptolstm.model.challenge import validation_pairs
from cryptolstm.strategy.threshold import exceedance, exceedance_curve
from cryptolstm.strategy.rules import RULES
from cryptolstm.strategy.decide import decide
from cryptolstm.research.walkforward import bars_needed, schedule, walk_forward
from cryptolstm.research.backtest import backtest

TINY = {
    "units": [16],
    "dropout": [0.1],
    "recurrent_dropout": [0.1],
    "dense": [8],
    "epochs": 6,
    "refit_epochs": 2,
    "batch_size": 64,
}
RUN = RunConfig(hours=720, train_hours=1500, retrain_every=360, lookback=12, network=TINY)


def test_a_model_cannot_be_evaluated_inside_its_training_span():
    bars = demo_market(1000, seed=1)
    bundle = fit(bars.iloc[:900], features(bars).iloc[:900], model_config(RUN))
    with pytest.raises(TrainingSpanError, match="training span"):
        bundle.check_out_of_sample(bars.index[890:])
    bundle.check_out_of_sample(bars.index[900:])
    with pytest.raises(TrainingSpanError, match="training span"):
        bundle.predict(features(bars), bars, start=890)


def first_validation_bar(bars, table, config):
    """Open time of the bar at which the first validation window of a training on these bars ends, from the
    functions that `fit` uses."""
    y = target(bars, table["sigma"], config.horizon).to_numpy()
    ends = window_ends(table[INPUTS], bars, config.lookback)
    return bars.index[purged_split(ends[np.isfinite(y[ends])], config.val_fraction, config.horizon)[1][0]]


@pytest.mark.parametrize("every,train_hours,horizon,holes", [
    (60, 400, 1, False), (7, 2000, 3, False), (24, 400, 6, True)])
def test_no_bar_the_old_weights_were_fitted_to_lies_in_a_later_validation_block(
    every, train_hours, horizon, holes
):
    "Also while the span still grows because there are fewer bars than requested, and with missing hours."
    run = RunConfig(
        hours=6 * every if every > 7 else 48,
        retrain_every=every,
        train_hours=train_hours,
        lookback=6,
        horizon=horizon,
        network={**TINY, "epochs": 1, "refit_epochs": 1},
    )
    bars = demo_market(900, seed=2)
    if holes: bars = regular_grid(bars.drop(bars.index[[500, 501, 640, 641, 642, 643, 644, 700]]))
    table, folds = features(bars), walk_forward(bars, run).folds
    assert folds["warm_started"].tolist() == [False] + [True] * (len(folds) - 1) and len(folds) >= 6
    for f, old in zip(schedule(len(bars), run)[1:], folds["fitted_until"], strict=False):
        past = slice(f.train_start, f.test_start)
        assert pd.Timestamp(old) <= first_validation_bar(bars.iloc[past], table.iloc[past], model_config(run))


def test_weights_that_would_contaminate_validation_are_not_continued():
    """A longer span includes the old training rows: the result equals, bit for bit, that of a training
    without the old model."""
    bars, config = demo_market(1300, seed=1), model_config(replace(RUN, network={**TINY, "epochs": 2}))
    table = features(bars)
    old = fit(bars.iloc[700:1100], table.iloc[700:1100], config)
    late, cold = (fit(bars.iloc[100:1150], table.iloc[100:1150], config, warm_start=w) for w in (old, None))
    assert first_validation_bar(bars.iloc[100:1150], table.iloc[100:1150], config) < pd.Timestamp(
        old.fitted_until
    )
    assert (
        "into the new validation block" in late.training["warm_start_refused"]
        and not late.training["warm_started"]
    )
    assert (
        all((a == b).all() for a, b in zip(late.weights, cold.weights, strict=True))
        and late.calibration == cold.calibration
    )
    moved = fit(bars.iloc[724:1124], table.iloc[724:1124], config, warm_start=old)
    assert moved.training["warm_started"] and moved.training["warm_start_refused"] == ""


def test_continued_weights_remember_the_latest_bar_any_of_them_was_fitted_to():
    """The new training lacks the bars around the end of the old one (an outage found later), so its rows end
    earlier than the old ones."""
    bars = demo_market(1300, seed=1)
    config = model_config(replace(RUN, network={**TINY, "epochs": 1, "refit_epochs": 1}))
    old = fit(bars.iloc[200:1000], features(bars).iloc[200:1000], config)
    end = bars.index.get_loc(pd.Timestamp(old.fitted_until))
    holed = regular_grid(bars.drop(bars.index[end - 10:end + 10]))
    table = features(holed)
    past = next(
        s
        for e in range(end + 100, 1300)
        if first_validation_bar(holed.iloc[s := slice(200, e)], table.iloc[s], config) > bars.index[end]
    )
    heir = fit(holed.iloc[past], table.iloc[past], config, warm_start=old)
    assert heir.training["warm_started"] and heir.fitted_until == old.fitted_until
    assert fit(holed.iloc[past], table.iloc[past], config).fitted_until < old.fitted_until


def test_a_model_that_has_seen_later_bars_is_not_continued():
    bars, config = demo_market(1000, seed=1), model_config(replace(RUN, network={**TINY, "epochs": 1}))
    table = features(bars)
    future = fit(bars, table, config)
    assert (
        "later than this training"
        in fit(bars.iloc[:900], table.iloc[:900], config, warm_start=future).training["warm_start_refused"]
    )


@pytest.mark.parametrize("hours,every,horizon", [(48, 7, 1), (100, 100, 3), (101, 50, 24)])
def test_folds_cover_the_tested_span_once_and_train_strictly_before_it(hours, every, horizon):
    run = RunConfig(hours=hours, retrain_every=every, train_hours=300, lookback=5, horizon=horizon)
    folds = schedule(1000, run)
    rows = [r for f in folds for r in range(f.test_start, f.test_end)]
    assert rows == list(range(1000 - hours, 1000))
    assert all(f.train_start < f.test_start for f in folds)


LIKELY = RunConfig(
    hours=96,
    train_hours=1100,
    retrain_every=48,
    lookback=6,
    entry="probability",
    p_min=0.1,
    horizon=2,
    network={
        "units": [4],
        "dropout": [0.1],
        "recurrent_dropout": [0.1],
        "dense": [4],
        "epochs": 1,
        "refit_epochs": 1,
        "val_fraction": 0.5,
    },
)


@pytest.fixture(scope="module")
def likely():
    "A walk-forward whose folds have enough validation windows for a probability."
    bars = demo_market(bars_needed(LIKELY), seed=4)
    return bars, walk_forward(bars, LIKELY)


def test_a_fold_is_calibrated_on_its_own_validation_windows(likely):
    """Recomputed from the functions of a live signal: the same training, its validation forecasts, their
    outcomes, the curve."""
    bars, walk = likely
    table, fold = features(bars), schedule(len(bars), LIKELY)[0]
    past = slice(fold.train_start, fold.test_start)
    alone = fit(bars.iloc[past], table.iloc[past], model_config(LIKELY), hours=LIKELY.train_hours)
    pairs = validation_pairs(alone, table.iloc[past], bars.iloc[past])
    assert (
        len(pairs) >= 500
        and pairs.index[-1] < bars.index[fold.test_start - LIKELY.horizon]
        and pairs.index[0] >= pd.Timestamp(alone.fitted_until)
    )
    said = walk.predictions["prediction"].iloc[:48]
    p = exceedance(exceedance_curve(pairs, table, LIKELY.horizon), said, table.loc[said.index], LIKELY)
    pd.testing.assert_series_equal(
        walk.predictions["p_exceed"].iloc[:48], p, check_exact=True, check_freq=False
    )
    assert p.between(0, 1).all() and walk.folds["exceed"].all() and (walk.folds["n_exceed"] >= 500).all()


@pytest.mark.parametrize("cut", [1, 49])
def test_no_future_enters_the_probability(likely, cut):
    """Bars after the cut are removed, then replaced by others.

    Earlier decisions stay the same, bit for bit."""
    bars, walk = likely
    def decide_all(w):
        return decide(
            w.predictions["prediction"],
            w.table,
            LIKELY,
            {"macd": RULES["macd"]},
            exceed=w.predictions["p_exceed"],
        )
    whole, last = decide_all(walk).iloc[:cut], len(bars) - 96 + cut
    other = bars.copy()
    other.iloc[last:, :5] = other.iloc[last:, :5].to_numpy() * np.linspace(1.5, 3, len(bars) - last)[:, None]
    pd.testing.assert_frame_equal(
        decide_all(walk_forward(other, LIKELY)).iloc[:cut], whole, check_exact=True, check_freq=False
    )
    # no run tests fewer than 48 hours
    if cut < 48: return
    truncated = walk_forward(bars.iloc[:last], replace(LIKELY, hours=cut))
    pd.testing.assert_frame_equal(decide_all(truncated), whole, check_exact=True, check_freq=False)


def test_deciding_a_walk_forward_bar_by_bar_is_deciding_it_at_once(likely):
    bars, walk = likely
    said, p = walk.predictions["prediction"], walk.predictions["p_exceed"]
    run = replace(LIKELY, p_min=float(p.median()))
    whole = decide(said, walk.table, run, {}, exceed=p)
    single = pd.concat(
        [
            decide(said.iloc[[k]], walk.table.loc[: said.index[k]], run, {}, exceed=p.iloc[[k]])
            for k in range(len(said))
        ]
    )
    pd.testing.assert_frame_equal(single, whole, check_exact=True, check_freq=False)
    assert set(whole["direction"]) == {
        -1,
        0,
        1,
    }, "a property of decisions that are never made would prove nothing"


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
    run = replace(
        RUN,
        hours=1500,
        train_hours=3000,
        retrain_every=750,
        network={**TINY, "epochs": 8, "learning_rate": 2e-3},
    )
    found = backtest(planted_market(bars_needed(run), r2=0.10, seed=3), run)
    row = found["skill"].loc["LSTM"]
    assert row["ic"] > 0.15 and row["cw_p"] < 0.001 and row["pt_p"] < 0.01
    assert found["verdict"].level in ("SKILL, NOT PROFITABLE", "CANDIDATE")
    flipped = backtest(planted_market(bars_needed(run), r2=0.10, seed=3, sign=-1), run)
    assert flipped["skill"].loc["LSTM", "ic"] > 0.15
    aligned = pd.concat(
        [
            found["features"]["volume_ratio"],
            found["predictions"]["prediction"],
            flipped["features"]["volume_ratio"].rename("v2"),
            flipped["predictions"]["prediction"].rename("p2"),
        ],
        axis=1,
    ).dropna()
    first = aligned.corr("spearman").loc["volume_ratio", "prediction"]
    second = aligned.corr("spearman").loc["v2", "p2"]
    assert first > 0.3 and second < -0.3


# -- volatility
# --------------------------------------------------------------------------------------------------

VOLATILITY = replace(
    RUN,
    hours=200,
    train_hours=600,
    retrain_every=100,
    horizon=6,
    network={**TINY, "target": "volatility", "epochs": 1, "refit_epochs": 1},
)


def explained(predictions):
    "Share of the variance of the realised log variance, relative to now, that network and HAR explain."
    known = predictions[["prediction", "har", "realised"]].dropna()
    errors = known[["prediction", "har"]].rsub(known["realised"], axis=0)
    return 1 - errors.var() / known["realised"].var()


def test_har_beside_a_volatility_network_has_not_seen_the_bars_it_speaks_of():
    """Changing bars from the second fold on changes neither forecast of the first, and HAR's forecasts are
    those of a regression on the bars before the fold."""
    bars = demo_market(1600, seed=3)
    walk = walk_forward(bars, VOLATILITY)
    other = bars.copy()
    other.iloc[1500:, :4] *= np.linspace(1, 3, 100)[:, None]
    first, changed = (
        w.predictions[["prediction", "har"]].iloc[:100] for w in (walk, walk_forward(other, VOLATILITY))
    )
    pd.testing.assert_frame_equal(first, changed, check_exact=True)
    alone = HAR(6).fit(walk.table.iloc[:1500], bars.iloc[:1500]).predict(walk.table, bars, start=1500)
    pd.testing.assert_series_equal(
        walk.predictions["har"].iloc[100:], alone, check_names=False, check_freq=False
    )
    assert explained(walk.predictions)["har"] > 0


def test_har_takes_no_move_across_a_missing_hour_for_an_hour():
    """The price halves across two missing hours, in which nobody traded: the forecasts after them are the
    same as without the fall."""
    bars = demo_market(1300, seed=1)
    holed = regular_grid(bars.drop(bars.index[1200:1202]))
    fallen = holed.copy()
    fallen.iloc[1202:, :4] /= 2
    table = features(holed)[["sigma"]].fillna(0.005)
    a, b = (HAR(6).fit(table[:1000], m[:1000]).predict(table, m, start=1202) for m in (holed, fallen))
    np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [1, 24])
def test_volatility_of_real_bars_beside_har(real_bars, horizon, capsys):
    "Errors of a small network and HAR relative to 'as it is now', on recorded hours of ETH/USD."
    bars = regular_grid(real_bars("ETH/USD")).iloc[-6000:]
    run = replace(
        RUN,
        hours=1440,
        train_hours=3500,
        retrain_every=360,
        horizon=horizon,
        lookback=24,
        network={**TINY, "target": "volatility", "epochs": 15},
    )
    shares = explained(walk_forward(bars, run).predictions)
    with capsys.disabled(): print(f"\n{shares.round(3)}")
    assert (shares > 0).all()


def test_an_estimate_of_the_duration_changes_no_result(capsys):
    "The steps that are timed leave neither weights nor random state behind."
    run = replace(RUN, network={**TINY, "epochs": 2, "refit_epochs": 1})
    bars = demo_market(1300, seed=1)
    silent = walk_forward(bars, run)
    np.random.seed(5); random.seed(5)
    with Progress(True) as line:
        line.rest = 100
        shown = walk_forward(bars, run, line)
    text = capsys.readouterr().err
    drawn = np.random.random(), random.random()
    np.random.seed(5); random.seed(5)
    assert drawn == (np.random.random(), random.random())
    pd.testing.assert_frame_equal(shown.predictions, silent.predictions, check_exact=True)
    pd.testing.assert_frame_equal(shown.folds, silent.folds, check_exact=True)
    for a, b in zip(shown.last.weights, silent.last.weights, strict=True): np.testing.assert_array_equal(a, b)
    assert f" here: {len(silent.folds)} trainings" in text and "training 1 of" in text
    assert text.count("100%") == 1 and text.rstrip().endswith("done")


def test_a_run_that_fails_never_shows_that_it_is_complete(capsys):
    "The bar of a fan that cannot be trained ends before 100%."
    wrong = replace(RUN, network={**TINY, "epochs": 1, "learning_rate": 1e6, "clipvalue": 1e9})
    with pytest.raises(OperationError): walk_forward(demo_market(1300, seed=1), wrong, True)
    text = capsys.readouterr().err
    assert "training 1 of" in text and "100%" not in text
