"""Decisions: one bar at a time equals all at once, probabilities are calibrated, and the dictionary conforms
to its schema."""
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
from conftest import TINY
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from loopback import Loopback, a_market

from cryptolstm import SignalGenerator
from cryptolstm.core.errors import InputError
from cryptolstm.core.config import ENTRY_MODES, RunConfig
from cryptolstm.data.demo import demo_market, planted_market, planted_state
from cryptolstm.features.indicators import features
from cryptolstm.features.targets import target
from cryptolstm.stats.calibration import calibrate, confidence
from cryptolstm.strategy.threshold import entry_threshold, exceedance, exceedance_curve
from cryptolstm.strategy.rules import RULES, Rule, rules_of
from cryptolstm.strategy.decide import decide, signal_funnel
from cryptolstm.strategy.answer import rule_results, signal_reason
from cryptolstm.research.certificate import open_decisions
from cryptolstm.report.forecast_sections import rules_table

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "signal.schema.json").read_text())
BARS, TAIL = 1200, 60   # the volatility rule looks back over 720 bars


@cache
def market(seed):
    "The features of a market; the seed also sets its volatility."
    return features(demo_market(BARS, seed=seed, annual_vol=(0.3, 0.6, 1.2, 2.5)[seed % 4]))


@cache
def some_curve():
    "A calibration of forecasts without information."
    table = market(0).iloc[-800:]
    pairs = pd.DataFrame(
        np.random.default_rng(0).standard_normal((800, 2)) * [0.2, 1], table.index, ["prediction", "realised"]
    )
    return exceedance_curve(pairs, table)


# -- one bar at a time
# --------------------------------------------------------------------------------------------------

@st.composite
def questions(draw, rules=RULES):
    """A market with some altered bars, arbitrary forecasts for some of its bars, a subset of the rules, and
    parameters."""
    table, rng = market(draw(st.integers(0, 39))), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        holes = rng.random(table.shape) < draw(st.sampled_from([0.001, 0.05]))
        table = (
            table.mask(holes)
            if draw(st.booleans())
            else table.where(~holes, table * rng.uniform(0.5, 2, table.shape))
        )
    # there are bars after the last one that is decided
    end = draw(st.integers(BARS - 400, BARS - 1))
    kinds = np.stack(
        [rng.uniform(-4, 4, TAIL), np.zeros(TAIL), np.full(TAIL, np.nan), rng.uniform(-0.05, 0.05, TAIL)]
    )
    each = rng.choice(
        4, TAIL, p=draw(st.sampled_from([(1, 0, 0, 0), (0.4, 0.2, 0.2, 0.2), (0, 0, 0.1, 0.9)]))
    )
    forecasts = pd.Series(kinds[each, np.arange(TAIL)], table.index[end - TAIL:end])
    run = RunConfig(
        entry=draw(st.sampled_from(sorted(ENTRY_MODES))),
        threshold_scale=draw(st.floats(0, 3)),
        short_volume=draw(st.sampled_from(["below", "above"])),
        horizon=draw(st.integers(1, 72)),
        p_min=draw(st.floats(0, 1)),
        fee=draw(st.floats(0, 0.01)),
        cost_margin=draw(st.floats(0, 2)),
        rules=(
            draw(st.sampled_from([{}, {"adx": False}, {"adx": 10, "rsi": 80}, {"likely": 0.1}]))
            if rules is RULES
            else {}
        ),
    )
    names = draw(st.lists(st.sampled_from(sorted(rules)), unique=True, min_size=rules is not RULES))
    curve = draw(st.sampled_from([some_curve(), {"gain": None}]))
    # as from a walk-forward, where each fold has its own calibration
    per_bar = exceedance(curve, forecasts, table.loc[forecasts.index], run)
    rows = draw(st.lists(st.integers(0, TAIL - 1), min_size=2, max_size=2))
    return forecasts, table, run, {k: rules[k] for k in names}, draw(st.sampled_from([curve, per_bar])), rows


def check_bar_by_bar(question):
    "Each bar, decided alone and without any later bar, gets the same decision as among all others."
    forecasts, table, run, rules, curve, rows = question
    whole = decide(forecasts, table, run, rules, exceed=curve)
    for k in rows:
        alone = decide(forecasts.iloc[[k]], table.loc[:forecasts.index[k]], run, rules, exceed=curve)
        pd.testing.assert_frame_equal(alone, whole.iloc[[k]], check_freq=False, check_exact=True)
    return whole


QUICK = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@settings(max_examples=500, **QUICK)
@given(questions())
def test_deciding_bar_by_bar_is_deciding_all_at_once(question):
    forecasts, _, run, _, curve, _ = question
    whole = check_bar_by_bar(question)
    assert (
        whole["signal"].isin([-1, 0, 1]).all()
        and (whole["signal"] * whole["direction"] == whole["signal"].abs()).all()
    )
    assert (whole.loc[forecasts.isna() | (forecasts == 0), "signal"] == 0).all()
    if isinstance(curve, pd.Series) and run.entry == "probability":
        assert (whole.loc[~(curve >= run.p_min), "direction"] == 0).all()


SEERS = {
    "the next bar's RSI": Rule("RSI", lambda t: t["rsi"].shift(-1), ("<", ">"), 50, lambda b: 100 - b),
    "the next bar's MACD": Rule("MACD", lambda t: t["macd_diff"].shift(-1), (">", "<")),
    "a quantile of all bars": Rule(
        "σ", lambda t: t["sigma"] / t["sigma"].quantile(0.5), ("<=", "<="), 1, lambda b: b
    ),
    "a value filled backwards": Rule(
        "ADX", lambda t: t["adx"].where(np.arange(len(t)) % 5 == 0).bfill(), (">", ">"), 25, lambda b: b
    ),
}


@pytest.mark.parametrize("seer", sorted(SEERS))
def test_a_rule_that_sees_the_future_is_found_out(seer):
    "Shows that the property detects leaks: each of these rules differs from a real one by a single mistake."
    @settings(max_examples=500, phases=[Phase.generate], **QUICK)
    @given(questions({seer: SEERS[seer]}))
    def property_of_a_seer(question): check_bar_by_bar(question)

    with pytest.raises(AssertionError): property_of_a_seer()


def test_the_property_sees_decisions_of_every_kind():
    "A property that holds only because nothing is ever decided would prove nothing."
    table = market(1)
    forecasts = pd.Series(np.where(np.arange(300) % 2, 3.0, -3.0), table.index[-300:])
    for entry in ENTRY_MODES:
        found = decide(
            forecasts, table, RunConfig(entry=entry, p_min=0.05), {"macd": RULES["macd"]}, exceed=some_curve()
        )["signal"]
        assert set(found) == {-1, 0, 1}


# -- probability
# --------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def knower():
    "A planted market, and forecasts that know the planted signal."
    bars = planted_market(16_000, r2=0.1, seed=5)
    table = features(bars)
    return (
        bars,
        table,
        pd.DataFrame(
            {"prediction": np.sqrt(0.1) * planted_state(bars), "realised": target(bars, table["sigma"])}
        ).dropna(),
    )


@pytest.mark.parametrize("changed", [*({"threshold_scale": k} for k in (0, 0.1, 0.3, 0.7, 1.0, 1.4, 3)),
                                   {"entry": "cost"}, {"entry": "cost", "fee": 0.0002, "slippage": 0}])
def test_a_probability_of_exceeding_is_the_share_that_exceeded(knower, changed):
    "For any threshold: scaled, or the costs of a round trip."
    bars, table, pairs = knower
    half, run = len(pairs) // 2, RunConfig(**changed)
    curve, new = exceedance_curve(pairs.iloc[:half], table), pairs.iloc[half:]
    rows = table.loc[new.index]
    p = exceedance(curve, new["prediction"], rows, run)
    observed = np.sign(new["prediction"]) * (
        bars["close"].shift(-1).loc[new.index] - rows["close"]
    ) > entry_threshold(rows, run)
    assert abs(p.mean() - observed.mean()) < 0.02
    groups = pd.DataFrame({"predicted": p, "observed": observed}).groupby(pd.qcut(p, 4)).mean()
    assert (groups["predicted"] - groups["observed"]).abs().max() < 0.05
    assert groups["observed"].is_monotonic_increasing


def test_a_farther_threshold_is_never_likelier():
    """With as few forecasts as a default training leaves, and no information in them; also beyond the
    thresholds that the curves were fitted at."""
    for seed in range(6):
        table, rng = market(seed).iloc[-900:], np.random.default_rng(seed)
        pairs = pd.DataFrame(
            rng.standard_normal((900, 2)) * [0.05, 1], table.index, ["prediction", "realised"]
        )
        curve, new = exceedance_curve(pairs.iloc[:600], table), pairs["prediction"].iloc[600:]
        p = np.stack(
            [
                exceedance(curve, new, table.loc[new.index], RunConfig(threshold_scale=scale))
                for scale in np.r_[np.linspace(0, 2.5, 60), 5, 20]
            ]
        )
        assert (
            (np.diff(p, axis=0) <= 1e-12).all() and (p > 0).all() and (p < 1).all() and (p[-1] < 0.05).all()
        )
        # forecasts without information must not be separated by chance
        assert p[0].std() < 0.03


def test_below_500_points_there_is_no_probability_and_no_entry(knower):
    _, table, pairs = knower
    few, enough = (exceedance_curve(pairs.iloc[:n], table) for n in (499, 500))
    assert few == {"n": 499, "gain": None, "errors": None, "curves": None} and enough["gain"] is not None
    run = RunConfig(entry="probability", p_min=0.0)
    decided = [decide(pairs["prediction"].iloc[600:], table, run, {}, exceed=c) for c in (few, enough)]
    assert (
        decided[0]["p_exceed"].isna().all()
        and (decided[0]["direction"] == 0).all()
        and (decided[1]["direction"] != 0).any()
    )
    with pytest.raises(InputError, match="^entry=probability needs the calibration"):
        decide(pairs["prediction"].iloc[600:], table, run)


def test_probabilities_of_other_bars_are_refused(knower):
    _, table, pairs = knower
    p = exceedance(
        exceedance_curve(pairs.iloc[:600], table), pairs["prediction"], table.loc[pairs.index], RunConfig()
    )
    with pytest.raises(
        InputError,
        match=f"^exceed says nothing about the bar of {pairs.index[700]:%Y-%m-%d %H:%M}; pass a probability",
    ):
        decide(
            pairs["prediction"].iloc[650:750],
            table,
            RunConfig(entry="probability"),
            exceed=p.drop(pairs.index[700]),
        )


def a_signal(**changed):
    "The part of a signal's dictionary that its reason depends on."
    plain = {
        "entry": "threshold",
        "predicted_price": 99.0,
        "price_difference": -1.0,
        "p_exceed": 0.12,
        "p_min": 0.3,
        "direction": 0,
        "n_calibration": 864,
        "side_tested": "short",
    }
    return {**plain, **changed}


BOUND = {"long": "> 0", "short": "< 0"}
REFUSED = {
    "direction": -1,
    "rules": {
        "a": {"what": "this", "value": 12.3456, "bound": BOUND, "passed": False},
        "b": {"what": "that", "value": -1.0, "bound": BOUND, "passed": True},
    },
}


@pytest.mark.parametrize("signal,reason", [
    (a_signal(), "the forecast does not reach the threshold"),
    (a_signal(entry="cost"), "the forecast does not pay the costs of a round trip"),
    (a_signal(entry="probability"),
     "a fall beyond the threshold has a probability of 12.0%, 30.0% is required"),
    (a_signal(entry="probability", p_exceed=None, n_calibration=48),
     "the model has too little to calibrate a probability on (48 bars, 500 are needed), "
     "and without a probability nothing is entered"),
    (a_signal(entry="probability", p_exceed=None, n_calibration=600),
     "the model has no calibrated probability (all or none of its 600 calibration bars moved beyond the "
     "threshold), "
     "and without a probability nothing is entered"),
    (a_signal(entry="probability", predicted_price=None, price_difference=None, p_exceed=None),
     "there is no forecast for this bar: some of its last hours are missing"),
    (a_signal(**REFUSED),
     "the forecast is beyond the threshold (short), but these rules do not agree with a short: "
     "this is 12.35, < 0 is required"),
    (a_signal(**REFUSED, entry="cost"),
     "the forecast is beyond the costs (short), but these rules do not agree with a short: "
     "this is 12.35, < 0 is required"),
    (a_signal(**REFUSED, entry="probability", p_exceed=0.31),
     "a fall beyond the threshold has a probability of 31.0%, 30.0% is required (short), "
     "but these rules do not agree with a short: this is 12.35, < 0 is required"),
    (a_signal(direction=1, side_tested="long", rules={"b": {"what": "that", "passed": True}}),
     "the forecast is beyond the threshold (long), and every rule agrees")])
def test_the_reason_names_what_decided(signal, reason):
    assert signal_reason(signal) == reason


def test_the_probability_does_not_depend_on_the_unit_of_the_price(knower):
    bars, table, pairs = knower
    bars, pairs = bars.iloc[:2000], pairs.iloc[700:1900]
    milli = features(bars.assign(**{c: bars[c] * 1000 for c in ("open", "high", "low", "close")}))
    curve = exceedance_curve(pairs, table)
    a, b = (exceedance(curve, pairs["prediction"], t.loc[pairs.index], RunConfig()) for t in (table, milli))
    np.testing.assert_allclose(a, b, rtol=1e-6)


# -- confidence
# --------------------------------------------------------------------------------------------------

def confidence_of_a_network(bars, seed=0, n=None, val_fraction=0.5):
    """A small network's confidence in its forecasts after row `n` (default: of the last third), and whether
    each was right."""
    from cryptolstm.model.settings import ModelConfig
    from cryptolstm.model.training import fit
    from cryptolstm.model.challenge import forecast_pairs
    table, n = features(bars), n or len(bars) * 2 // 3
    config = ModelConfig(
        lookback=12,
        units=(8,),
        dropout=(0.1,),
        recurrent_dropout=(0.1,),
        dense=(8,),
        epochs=8,
        learning_rate=3e-3,
        val_fraction=val_fraction,
        seed=seed,
    )
    bundle = fit(bars.iloc[:n], table.iloc[:n], config)
    pairs = forecast_pairs(bundle, table, bars, start=n)
    return bundle.confidence(pairs["prediction"]), np.sign(pairs["prediction"]) == np.sign(pairs["realised"])


@pytest.mark.slow
def test_confidence_collapses_to_one_half_where_nothing_can_be_known():
    sure, _ = confidence_of_a_network(demo_market(24_000, seed=4))
    assert abs(sure.mean() - 0.5) < 0.02 and sure.quantile(0.05) > 0.48 and sure.quantile(0.95) < 0.52


@pytest.mark.slow
def test_at_the_usual_size_confidence_is_one_half_on_every_market_and_not_too_high_where_something_is_planted(
):
    """With the default of 4,320 training bars, 864 of them for validation.

    So few bars determine a share only to within 0.017, and 3,000 tested bars to within 0.009."""
    demo, planted = (
        [confidence_of_a_network(make(7520, seed=seed), seed, 4520, 0.2) for seed in range(6)]
        for make in (demo_market, lambda n, seed: planted_market(n, r2=0.1, seed=seed))
    )
    for sure, _ in demo:
        assert abs(sure.mean() - 0.5) < 0.01 and 0.48 < sure.quantile(0.05) and sure.quantile(0.95) < 0.52
    gaps = np.array([sure.mean() - right.mean() for sure, right in planted])
    assert gaps.mean() < 0.02 and np.abs(gaps).max() < 0.06
    # a better Brier score than a constant 1/2
    for sure, right in planted: assert ((sure - right) ** 2).mean() < 0.25


@pytest.mark.slow
def test_confidence_is_the_truth_where_something_is_planted():
    sure, right = confidence_of_a_network(planted_market(24_000, r2=0.1, seed=4))
    assert abs(sure.mean() - right.mean()) < 0.02 and right.mean() > 0.56
    weak, strong = (sure <= sure.median()), (sure > sure.median())
    assert all(abs(sure[half].mean() - right[half].mean()) < 0.03 for half in (weak, strong))


def test_confidence_of_blind_and_of_informed_forecasts():
    z, noise = np.random.default_rng(2).standard_normal((2, 40_000))
    assert np.abs(confidence(calibrate(z, noise), z) - 0.5)[np.abs(z) < 2].max() < 0.02
    sure = confidence(calibrate(z, 0.3 * z + noise), z)
    from scipy.stats import norm
    assert np.abs(sure - norm.cdf(0.3 * np.abs(z)))[np.abs(z) < 2].max() < 0.02


# -- the dictionary
# --------------------------------------------------------------------------------------------------

def check(signal):
    whole = json.loads(json.dumps(signal, allow_nan=False))
    jsonschema.Draft202012Validator(
        SCHEMA, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    ).validate(whole)
    return whole


@pytest.mark.parametrize("entry", ENTRY_MODES)
def test_the_dictionary_satisfies_its_schema(entry, tmp_path):
    sg = SignalGenerator(
        "BTC/USD",
        exchange="simulated",
        home=tmp_path,
        config=RunConfig(lookback=12, network=TINY, entry=entry),
    )
    signal = check(sg.generate_signals(hours=120))
    assert signal["entry"] == entry and signal["calibrated"]
    assert signal["p_exceed"] is not None and signal["monitor"]["psi"]


def test_a_model_without_a_calibration_satisfies_the_schema_and_enters_nothing(tmp_path):
    with Loopback({"BTC/USD": a_market(330, ticker="BTC/USD")}) as exchange:
        config = RunConfig(lookback=12, network=TINY, entry="probability")
        sg = SignalGenerator("BTC/USD", exchange_url=exchange.url, home=tmp_path, config=config)
        signal = check(sg.generate_signals(hours=120))
    assert signal["p_exceed"] is None and not signal["calibrated"] and signal["direction"] == 0
    assert signal["calibration"]["forecasts"] < 500
    assert signal["monitor"]["psi"] is None


def test_a_calibrated_model_says_how_likely_and_the_schema_holds(tmp_path):
    network = TINY | {"val_fraction": 0.4}
    config = RunConfig(lookback=12, network=network, entry="probability", p_min=0.01)
    sg = SignalGenerator("BTC/USD", exchange="simulated", home=tmp_path, config=config)
    signal = check(sg.generate_signals(hours=1500))
    assert (
        signal["n_calibration"] >= 500
        and 0 < signal["p_exceed"] < 1
        and signal["direction"] != 0
        and 0 < signal["confidence"] < 1
    )
    assert (
        signal["monitor"]["psi"]
        and signal["model_info"]["validation"]["n"] == 600
        and signal["model_info"]["libraries"]["keras"]
    )
    again = check(sg.generate_signals(hours=1500))
    assert again["p_exceed"] == signal["p_exceed"] and again["model_info"]["decision"].startswith("reused")
    by_cost = check(
        SignalGenerator(
            "BTC/USD", exchange="simulated", home=tmp_path, config=replace(config, entry="cost")
        ).generate_signals(hours=1500)
    )
    # the same model with another threshold: the probability shown is that of exceeding this threshold
    scale = by_cost["threshold"] / signal["threshold"]
    scaled = SignalGenerator(
        "BTC/USD", exchange="simulated", home=tmp_path, config=replace(config, threshold_scale=scale)
    ).generate_signals(hours=1500)
    assert by_cost["model_info"]["version"] == signal["model_info"]["version"] and abs(scale - 1) > 0.05
    assert by_cost["p_exceed"] == pytest.approx(scaled["p_exceed"]) and (
        by_cost["p_exceed"] > signal["p_exceed"]
    ) == (scale < 1)
    for broken in (
        {"signal": 2},
        {"entry": "often"},
        {"p_exceed": 1.5},
        {"more": 1},
        {"rules": {"adx": {}}},
        {"indicators": {f"indicator {k}": 1.0 for k in range(14)}},
        {"indicators": {**signal["indicators"], "bollinger": 1.0}},
        {"model_info": signal["model_info"] | {"more": 1}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            check(signal | broken)
    info = signal["model_info"]
    for key in info:
        with pytest.raises(jsonschema.ValidationError):
            check(signal | {"model_info": {k: v for k, v in info.items() if k != key}})
    less = {k: v for k, v in info["validation"].items() if k != "variance"}
    with pytest.raises(jsonschema.ValidationError):
        check(signal | {"model_info": info | {"validation": less}})
    for key in SCHEMA["required"]:
        with pytest.raises(jsonschema.ValidationError): check({k: v for k, v in signal.items() if k != key})


@pytest.mark.parametrize("short_volume", ["below", "above"])
def test_a_rules_value_and_bound_say_whether_it_passed(short_volume):
    bars = demo_market(1400, seed=3)
    table, run = features(bars), RunConfig(short_volume=short_volume)
    compare = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}
    for row in range(1000, 1400, 37):
        for side in ("long", "short"):
            for name, result in rule_results(table.iloc[:row], run, side).items():
                sign, bound = result["bound"][side].split()
                assert (
                    result["passed"]
                    == result[side]
                    == bool(rules_of(run)[name].passes(table, side).iloc[row - 1])
                )
                assert result["asks_for"] == f"{result['what']} {sign} {bound}"
                # the bound is shown with six digits
                if abs(result["value"] - float(bound)) <= 1e-5 * abs(float(bound)): continue
                assert result[side] == compare[sign](result["value"], float(bound))


def test_a_rule_added_to_the_table_is_used_everywhere(monkeypatch):
    "Decision, funnel, signal, page and certificate take the rules from one table."
    calm = Rule("σ", lambda t: t["sigma"], ("<", "<"), 0.01, lambda bound: bound, (0, 1))
    monkeypatch.setitem(RULES, "calm", calm)
    table, run = market(1), RunConfig(rules={"calm": 0.02})
    up = pd.Series(3.0, table.index[-300:])
    decisions = decide(up, table, run)
    assert decisions["rule_calm"].equals(table["sigma"].iloc[-300:] < 0.02)
    assert signal_funnel(decisions).index[-1] == "calm"
    assert rule_results(table, run)["calm"]["asks_for"] == "σ < 0.02"
    assert "σ &lt; 0.02" in rules_table({"config": run}).markup
    assert "rule_calm" in open_decisions(decide, table, run)
    assert "rule_calm" not in decide(up, table, RunConfig(rules={"calm": False}))
