"""The certificate runs the same functions as the run: a leak planted in any of them gives the verdict LEAK,
an honest run never does."""
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL, run_bars, small_run
from typer.testing import CliRunner

from cryptolstm.core.errors import InputError
from cryptolstm.core.bars import regular_grid
from cryptolstm.data.demo import demo_market, planted_market
from cryptolstm.features.indicators import INPUTS, features
from cryptolstm.features.windows import fit_scaler
from cryptolstm.model import training, training_data
from cryptolstm.strategy import rules
from cryptolstm.research import replay, walkforward
from cryptolstm.research.certificate import certificate, check_labels
from cryptolstm.research.backtest import backtest
from cryptolstm.cli.proof import proof_app

RUN = small_run(train_hours=250)
BARS = regular_grid(run_bars(RUN, seed=1))


def wrap(monkeypatch, module, name, change):
    "Replace a function of a module by `change(real, *args, **kwargs)`."
    real = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kwargs: change(real, *args, **kwargs))


# ---------------------------------------------------------------- planted leaks
def early_feature(m):
    wrap(
        m, walkforward, "feature_table",
        lambda real, b, run: real(b, run).assign(rsi=lambda t: t["rsi"].shift(-1)),
    )


def all_features_early(m): wrap(m, walkforward, "feature_table", lambda real, b, run: real(b, run).shift(-1))
def scaler_of_the_whole_table(m):
    """Like an `InputScaler` fitted before the split: `fit` gets only the past, so the whole table is passed
    in separately."""
    wrap(
        m, training_data, "fit_scaler", lambda real, table, **how: real(features(BARS)[table.columns], **how)
    )


def scaler_swapped_after_training(m):
    wrap(
        m,
        training,
        "fit",
        lambda real, *a, **k: replace(real(*a, **k), scaler=fit_scaler(features(BARS)[INPUTS])),
    )


def label_of_the_bar_itself(m):
    def now(real, kind, bars, sigma, horizon=1):
        return np.log(bars["close"]).diff() / sigma
    for module in (training_data, walkforward): wrap(m, module, "label", now)
def decision_knows_the_next_move(m):
    def early(real, prediction, table, run, *a, **k):
        move = np.sign(table["close"].shift(-1) - table["close"]).loc[prediction.index].fillna(0).astype(int)
        return real(prediction, table, run, *a, **k).assign(signal=move)
    wrap(m, replay, "decide", early)
def decision_read_from_a_file(m):
    "A leak that no change of the bars can reveal, because it does not come from them."
    move = np.sign(BARS["close"].shift(-1) - BARS["close"]).fillna(0).astype(int)
    wrap(m, replay, "decide", lambda real, p, *a, **k: real(p, *a, **k).assign(signal=move.reindex(p.index)))


def late_signals(m):
    wrap(
        m,
        replay,
        "decide",
        lambda real, *a, **k: real(*a, **k).assign(signal=lambda d: d["signal"].shift(-1, fill_value=0)),
    )


def rule_that_peeks(m):
    rule = rules.RULES["rsi"]
    m.setitem(rules.RULES, "rsi", replace(rule, value=lambda t: t["rsi"].shift(-1)))
def threshold_from_the_whole_sample(m):
    def full(real, prediction, *a, **k):
        d = real(prediction, *a, **k)
        return d.assign(signal=d["signal"].where(prediction.abs() > prediction.abs().quantile(.5), 0))
    wrap(m, replay, "decide", full)
def filled_before_it_was_decided(m):
    "An order decided on a bar is filled at that bar's open."
    wrap(
        m,
        replay,
        "simulate",
        lambda real, bars, signal, **k: real(bars, pd.Series(signal).shift(-1, fill_value=0), **k),
    )
def filled_at_the_open_before(m):
    "Filled in the right bar, at the open of the bar before."
    def early(real, bars, signal, **k):
        o = bars["open"].shift(1).fillna(bars["open"])
        return real(
            bars.assign(open=o, high=np.maximum(bars["high"], o), low=np.minimum(bars["low"], o)), signal, **k
        )
    wrap(m, replay, "simulate", early)

def sign_chosen_by_the_whole_test(m):
    "All forecasts are turned if they are worse than chance on the whole tested span."
    def turned(real, *a, **k):
        walk = real(*a, **k)
        f, y = walk.predictions["prediction"], walk.predictions["realised"]
        return replace(walk, predictions=walk.predictions.assign(prediction=f * np.sign(f.corr(y))))
    wrap(m, replay, "walk_forward", turned)
def filled_at_the_best_price(m):
    "Bought at the low of the bar and sold at its high."
    def best(real, bars, signal, **k):
        buys = pd.Series(signal, bars.index).shift(1, fill_value=0) > 0
        return real(bars.assign(open=bars["low"].where(buys, bars["high"])), signal, **k)
    wrap(m, replay, "simulate", best)


PLANTS = {
    early_feature: "rsi",
    all_features_early: "close",
    scaler_of_the_whole_table: "training: scaler",
    scaler_swapped_after_training: "training: scaler",
    label_of_the_bar_itself: "label",
    decision_knows_the_next_move: "decision: signal",
    decision_read_from_a_file: "signals",
    late_signals: "decision: signal",
    rule_that_peeks: "decision: rule_rsi",
    threshold_from_the_whole_sample: "decision: signal",
    filled_before_it_was_decided: "order: position",
    filled_at_the_open_before: "order: fills",
    sign_chosen_by_the_whole_test: "forecast: prediction",
    filled_at_the_best_price: "order: fills",
}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda f: f.__name__)
def test_a_leak_planted_in_any_stage_makes_the_verdict_leak(plant, monkeypatch):
    plant(monkeypatch)
    found = backtest(BARS, RUN, certify=True)
    assert found["verdict"].level == "LEAK", (found["verdict"].level, found["certificate"].sentence)
    assert found["certificate"].offending.startswith(PLANTS[plant]), found["certificate"].sentence
    assert f"certificate failed at {PLANTS[plant]}" in found["verdict"].sentence


# ---------------------------------------------------------------- honest runs
OTHERS = {
    "six hours ahead, sized by volatility": dict(horizon=6, sizing="volatility", size=0.3),
    "by probability": dict(entry="probability"),
    "by cost, either way out": dict(
        entry="cost", exit="opposite", take_profit_atr=3, trailing_atr=2, slippage_range=0.1, min_hold=2
    ),
    "price as target, a fan of two": dict(network={**SMALL, "target": "price", "seeds": [1, 2, 3]}),
    "leverage, rents and lots": dict(
        sizing="fraction",
        size=3.0,
        max_leverage=3.0,
        borrow_rate=0.01,
        lot=0.01,
        stop_atr=None,
        short_volume="above",
    ),
}


OFTEN = "by cost, either way out"   # the others run nightly


@pytest.mark.parametrize("name", [
    name if name == OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in OTHERS])
def test_an_honest_run_passes_whatever_its_settings(name):
    bars = regular_grid(BARS.drop(BARS.index[[700, *range(900, 912)]]))
    proof = certificate(bars, run=replace(RUN, **OTHERS[name]), thorough=False)
    assert proof.passed, proof.sentence
    assert [c["name"] for c in proof.checks] == [
        "repeat",
        "truncation",
        "future",
        "start",
        "retraining",
        "orders",
        "labels",
    ]
    # 500 validation windows need more bars than there are
    assert not [c for c in proof.checks if "untried" in c] or name == "by probability"


def test_what_could_not_be_tried_is_said():
    proof = certificate(BARS.iloc[-240:], run=RUN, thorough=False)
    assert proof.passed and "not tried: retraining (240 bars are too few" in proof.sentence
    assert "retraining" not in proof.sentence.split(" checks on")[0]


def drifting(seed: int, n: int = 1500) -> pd.DataFrame:
    "A market with persistent drift: AR(0.97), with a correlation of 0.28 with the next move."
    rng, bars, d = np.random.default_rng(seed), demo_market(n, seed=seed), np.zeros(n)
    for t in range(1, n): d[t] = .97 * d[t - 1] + np.sqrt(1 - .97**2) * rng.standard_normal()
    close = 100 * np.exp(np.cumsum(.005 * (.28 * d + np.sqrt(1 - .28**2) * rng.standard_normal(n))))
    before = np.r_[100, close[:-1]]
    return regular_grid(
        bars.assign(
            open=before,
            close=close,
            high=np.maximum(before, close) * 1.001,
            low=np.minimum(before, close) * 0.999,
        )
    )


def moves(bars: pd.DataFrame, horizon: int) -> pd.Series:
    return np.log(bars["close"].shift(-horizon) / bars["close"])


@pytest.mark.parametrize("horizon", [1, 6, 12])
def test_real_skill_is_not_called_a_leak_and_one_that_lasts_is_remarked(horizon):
    hints = 0
    for seed in range(5):
        bars = regular_grid(planted_market(1500, r2=.03, seed=seed))
        found = check_labels(features(bars), moves(bars, horizon), 720, horizon=horizon)
        assert found["passed"], (seed, found)
        bars = drifting(seed)
        found = check_labels(
            np.log(bars["close"]).diff().rolling(48).mean().to_frame("mean"),
            moves(bars, horizon),
            720,
            horizon=horizon,
        )
        assert found["passed"], (seed, found)
        hints += "warning" in found
    if horizon == 1: assert hints >= 2


def test_an_answer_from_a_side_table_is_a_leak_though_no_change_of_the_bars_shows_it():
    "The column is bit-identical with and without the future: it is found only because it is always right."
    answers = moves(BARS, 1)
    proof = certificate(
        BARS, features=lambda b: features(b).assign(side=answers.reindex(b.index)), run=RUN, thorough=False
    )
    assert [c["name"] for c in proof.checks if not c["passed"]] == ["labels"]
    assert proof.sentence.startswith(
        "LEAK: (all features) (the features know the outcome better than any honest forecast could;"
    )


# ---------------------------------------------------------------- rare rows and holes
def rsi(b):
    up, down = (
        x.clip(lower=0).ewm(alpha=1 / 14, adjust=False, min_periods=14).mean()
        for x in (b["close"].diff(), -b["close"].diff())
    )
    return 100 - 100 / (1 + up / down)


def monday(b): return pd.Series((b.index.day_of_week == 0) & (b.index.hour == 9), b.index)
RARE = {"oversold and rising": lambda b: (rsi(b) < 30) & (b["close"].shift(-1) > b["close"]),
        "oversold and breaking": lambda b: (rsi(b) < 25) & (b["low"].shift(-1) < b["low"]),
        "oversold unless falling": lambda b: (rsi(b) < 30) & ~(b["close"].shift(-1) < b["close"]),
        "monday at nine": lambda b: monday(b) & (b["close"].shift(-1) > b["close"]),
        "a number on mondays at nine": lambda b: b["close"].mask(monday(b), b["close"].shift(-1)),
        "a side at the bell": lambda b: np.sign(b["close"].diff().shift(-1)).where(b.index.hour == 14, 0)}


@pytest.mark.parametrize("name", RARE)
def test_a_leak_on_rare_rows_is_found_on_every_market(name):
    for seed in range(2):
        proof = certificate(
            demo_market(1500, seed=seed),
            features=lambda b: RARE[name](b).rename("entry").to_frame(),
            fresh=False,
        )
        assert proof.offending == "entry", (seed, proof.sentence)


FILLS = [
    lambda c: c.bfill(),
    lambda c: c.interpolate(),
    lambda c: c.bfill().pct_change(),
    lambda c: c.bfill().rolling(3).mean(),
]


@pytest.mark.parametrize("fill", FILLS)
def test_a_backward_fill_over_an_outage_is_certified_nowhere(fill):
    whole = demo_market(1500, seed=5)
    for hole in (
        range(1000, 1010),
        range(1200, 1205),
        [*range(400, 406), *range(800, 830), *range(1300, 1304)],
    ):
        bars = regular_grid(whole.drop(whole.index[list(hole)]))
        assert (
            certificate(
                bars, features=lambda b: fill(b["close"]).rename("close").to_frame(), fresh=False
            ).offending
            == "close"
        )
    bars = regular_grid(whole.drop(whole.index[1000:1010]))
    assert certificate(bars, features=lambda b: b[["close"]].ffill(), fresh=False).passed


def test_all_bars_given_are_tried():
    "A pipeline without a leak until it has seen 2,000 bars."
    def late(b): return b[["close"]].assign(peek=b["close"].shift(-1) if len(b) > 2000 else b["close"])
    bars = demo_market(2600)
    assert (
        certificate(bars, features=late).offending == "peek"
        and certificate(bars, features=late, newest=1500).passed
    )


MISNAMED = "def make(bars):\n    return bars['clse'].diff()\n"


@pytest.mark.parametrize("code, message", [
    (MISNAMED, r"KeyError \('clse'\) in line 2 of broken_pipeline.py; raised by the pipeline"),
    ("import nothing_of_that_name\n",
     "broken_pipeline raised ModuleNotFoundError .* in line 1 of broken_pipeline.py"),
], ids=["pipeline", "import"])
def test_code_that_raises_is_no_leak_and_has_not_its_exit_code(code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "broken_pipeline", raising=False)
    (tmp_path / "broken_pipeline.py").write_text(code)
    command = "check-leaks --features broken_pipeline:make --exchange simulated --hours 900".split()
    with pytest.raises(InputError, match=message) as refused:
        CliRunner().invoke(proof_app, command, catch_exceptions=False)
    assert refused.value.exit_code == 2
