"""The current signal: settings are used as passed, models are never mixed up, and warnings tell when a signal
is less reliable."""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY
from loopback import Loopback, a_market

from cryptolstm import SignalGenerator
from cryptolstm.core.errors import InputError
from cryptolstm.core.bars import HOUR, LONGEST_SPANNED, bars_hash, stamp
from cryptolstm.core.config import RunConfig
from cryptolstm.core.files import config_hash
from cryptolstm.data.demo import demo_market
from cryptolstm.features.indicators import WARMUP, features
from cryptolstm.model.settings import model_config
from cryptolstm.model.bundle import load_bundle
from cryptolstm.model.training import fit
from cryptolstm.model.registry import (Version, current_version, line_name, lines, read_note,
                                       version_folders)
from cryptolstm.model.challenge import differs
from cryptolstm.model.drift import WINDOW
from cryptolstm.model.intervals import forecast_bars
from cryptolstm.stats.calibration import MIN_CALIBRATION
from cryptolstm.strategy.rules import RULES, check_decidable, rules_of
from cryptolstm.strategy.decide import decide
from cryptolstm.strategy.upkeep import CALIBRATION_BARS, model_plan
from cryptolstm.strategy.answer import lag_warning, signal_dict

NETWORK = {**TINY, "epochs": 2}
RUN = RunConfig(lookback=12, network=NETWORK)


def generator(loopback, home, **settings):
    return SignalGenerator(
        "BTC/USD",
        exchange="coinbaseexchange",
        exchange_url=loopback.url,
        home=home,
        config=replace(RUN, **settings),
    )


def in_use(sg, hours=120): return current_version(sg.line_of(hours), sg.home / "models").name


# -- settings
# --------------------------------------------------------------------------------------------------

def test_what_is_not_given_stays_as_the_configuration_has_it():
    config = RunConfig(
        ticker="ETH/USD", lookback=24, exchange="kraken", exchange_url="http://127.0.0.1:1", fee=0.002
    )
    assert SignalGenerator(config=config).run == config
    assert SignalGenerator("SOL/USD", config=config).run == replace(config, ticker="SOL/USD")
    assert SignalGenerator(lookback=30, config=config, fee=0.003, stop_atr=None).run == replace(
        config, lookback=30, fee=0.003, stop_atr=None
    )


def test_without_a_configuration_the_defaults_hold():
    assert (
        SignalGenerator().run
        == SignalGenerator("BTC/USD", 60).run
        == SignalGenerator(ticker="BTC/USD", lookback=60).run
        == RunConfig()
    )


@pytest.mark.parametrize("config", [{"lookback": 24}, "fast", 3])
def test_a_configuration_of_another_kind_is_one_sentence(config):
    with pytest.raises(InputError, match="^config is (dict|str|int); pass a RunConfig"):
        SignalGenerator(config=config)


@pytest.mark.parametrize("asked,text", [
    ({"hours": 10}, "hours is 10; pass a whole number from 48"),
    ({"hours": "abc"}, "hours is 'abc'; pass a whole number"),
    ({"hours": 240.5}, "hours is 240.5; pass a whole number"),
    ({"hours": None}, "hours is None; pass a whole number"),
    ({"retrain_threshold": -1}, "retrain_threshold is -1; pass a number of hours from 0"),
    ({"retrain_threshold": "abc"}, "retrain_threshold is 'abc'; pass a number of hours"),
    ({"retrain_threshold": float("nan")}, "retrain_threshold is nan; pass a number"),
    ({"retrain_threshold": True}, "retrain_threshold is True; pass a number")])
def test_nonsense_is_one_sentence_before_anything_is_asked_for(asked, text, client_home):
    # the exchange of the tests is closed
    with pytest.raises(InputError, match=f"^{text}"): SignalGenerator(config=RUN).generate_signals(**asked)
    assert not client_home.exists()


# -- rules
# --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("short_volume", ["below", "above"])
def test_the_rules_shown_are_the_rules_that_decide(short_volume):
    bars, run = demo_market(1300, seed=6), replace(RUN, short_volume=short_volume)
    table = features(bars)
    bundle = fit(bars.iloc[900:1200], table.iloc[900:1200], model_config(run))
    short = pd.Series(-3.0, bars.index).iloc[1200:]
    decisions = decide(short, table, run)
    for row in range(0, 100, 9):
        shown = signal_dict(
            run,
            bars.iloc[: 1201 + row],
            table.iloc[: 1201 + row],
            decisions.iloc[row],
            [Version(bundle, Path("x"))],
            "trained",
        )["rules"]
        assert {k: v["short"] for k, v in shown.items()} == {
            k.removeprefix("rule_"): bool(v) for k, v in decisions.iloc[row].items() if k.startswith("rule_")
        }
    assert [shown[k]["asks_for"] for k in shown] == [
        f"{r.what} {r.bounds()['short']}" for r in rules_of(run).values()
    ]
    assert (
        shown["volume"]["asks_for"].endswith("< 1" if short_volume == "below" else "> 1")
        and shown["rsi"]["asks_for"] == "RSI > 35"
    )


def test_a_dropped_rule_stays_dropped():
    usual = {k: v for k, v in RULES.items() if v.on}
    without = {k: v for k, v in usual.items() if k != "volume"}
    assert rules_of(replace(RUN, short_volume="above"), without) == without and rules_of(RUN) == usual
    assert (
        rules_of(replace(RUN, rules={"volume": False}))
        == without
        == rules_of(replace(RUN, rules={"volume": False, "macd": True}))
    )


def test_a_rule_and_its_bound_are_parameters_of_the_run():
    bars = demo_market(1300, seed=6)
    table = features(bars)
    loud = pd.Series(np.where(np.arange(400) % 2, 3.0, -3.0), bars.index[-400:])
    def alone(**rules):
        return decide(
            loud, table, replace(RUN, rules={k: False for k in RULES if k not in rules} | rules)
        )["signal"]
    assert (
        alone(adx=30) == decide(loud, table, RUN, {"adx": replace(RULES["adx"], bound=30)})["signal"]
    ).all()
    rsi = table["rsi"].loc[loud.index]
    assert (alone(rsi=60) == np.where(loud > 0, rsi < 60, -1 * (rsi > 40))).all()
    assert (
        alone(volatility=0.5)
        == np.sign(loud).where(
            table["sigma"] / table["sigma"].rolling(720, min_periods=240).quantile(0.9) <= 0.5, 0
        )
    ).all()
    assert (alone() == np.sign(loud)).all()                              # no rule is left


@pytest.mark.parametrize("rules,text", [
    ({"rsy": False}, "unknown rule rsy; did you mean rsi?"),
    ({"adx": 101}, "rules adx is 101; pass a bound from 0 to 100, or false to drop it"),
    ({"rsi": float("nan")}, "rules rsi is nan; pass a bound from 50 to 100"),
    ({"macd": 0}, "rules macd is 0; pass false to drop it, its bound cannot be changed"),
    ({"adx": "high"}, "rules is {'adx': 'high'}; pass a table such as rules: {macd: false, adx: 30}"),
    (["adx"], "rules is ['adx']; pass a table")])
def test_nonsense_about_rules_is_one_sentence(rules, text, client_home):
    with pytest.raises(InputError) as refused: check_decidable(RunConfig(rules=rules))
    assert str(refused.value).startswith(text)
    with pytest.raises(InputError): SignalGenerator(rules=rules)


# -- choice of the model
# --------------------------------------------------------------------------------------------------

def test_a_question_about_the_past_does_not_put_an_old_model_in_use(loopback, tmp_path):
    now = generator(loopback, tmp_path)
    live = now.generate_signals(hours=120)
    assert in_use(now) == live["model_info"]["version"]
    # the training length of the model in use, and another
    for hours in (120, 200):
        past = generator(loopback, tmp_path, end=(loopback.now - 500 * HOUR).isoformat()).generate_signals(
            hours=hours
        )
        assert past["model_info"]["version"] != live["model_info"]["version"]
        assert ("kept beside the model in use" in past["model_info"]["decision"]) == (hours == 120)
        assert past["model_info"]["trained_until"] < past["bar_close_time"] < live["bar_close_time"]
        assert in_use(now) == live["model_info"]["version"]
    again = now.generate_signals(hours=120)
    assert (
        again["model_info"]["decision"].startswith("reused")
        and again["predicted_price"] == live["predicted_price"]
    )


def test_a_day_later_the_model_is_continued_and_for_another_length_started_afresh(loopback, tmp_path):
    loopback.now -= 100 * HOUR
    sg = generator(loopback, tmp_path)
    first = sg.generate_signals(hours=120)["model_info"]
    loopback.now += 30 * HOUR
    second = sg.generate_signals(hours=120)["model_info"]
    assert (first["warm_started"], second["warm_started"]) == (False, True)
    assert second["decision"] == "trained: training span ended 31 h ago, the threshold is 24 h"
    third = sg.generate_signals(hours=600)["model_info"]
    assert (
        third["decision"] == "trained: there was no model yet"
        and not third["warm_started"]
        and third["windows"] > 400
    )
    assert in_use(sg, 600) == third["version"] and sg.generate_signals(hours=600)["model_info"][
        "decision"
    ].startswith("reused")
    assert in_use(sg) == second["version"]


def test_two_timeframes_keep_a_model_each(loopback, tmp_path):
    "The specification's example: signals from 48 bars and from 240, alternately."
    loopback.now -= 100 * HOUR
    sg = generator(loopback, tmp_path)
    def ask():
        return [
            sg.generate_signals(hours=48, retrain_threshold=6)["model_info"],
            sg.generate_signals(hours=240, retrain_threshold=24)["model_info"],
        ]
    first, again = ask(), ask()
    assert [m["version"] for m in again] == [m["version"] for m in first] and all(
        m["decision"].startswith("reused") for m in again
    )
    loopback.now += 7 * HOUR
    later = ask()
    # only one of them is old enough
    assert [m["version"] == old["version"] for m, old in zip(later, first, strict=True)] == [False, True]
    assert later[0]["warm_started"] and later[0]["challenge"]["against"] == first[0]["version"]
    assert len(lines(tmp_path / "models")) == 2


def test_a_named_line_is_not_made_for_something_else_on_the_way(loopback, tmp_path):
    def mine(**settings):
        run = replace(RUN, **settings)
        return SignalGenerator(
            "BTC/USD",
            exchange="coinbaseexchange",
            exchange_url=loopback.url,
            home=tmp_path,
            model="mine",
            config=run,
        )

    version = mine().generate_signals(hours=120)["model_info"]["version"]
    for other, hours, what in (
        ({}, 240, "hours was 120, asked for is 240"),
        ({"lookback": 24}, 120, "lookback was 12, asked for is 24"),
        ({"horizon": 3}, 120, "horizon was 1, asked for is 3"),
    ):
        with pytest.raises(
            InputError,
            match=(
                f"^the model line mine was made for another request: {what}; pass that, or another --model"
                " name$"
            ),
        ):
            mine(**other).generate_signals(hours=hours)
    assert (
        mine().generate_signals(hours=120)["model_info"]["version"] == version
        and len(version_folders("mine", tmp_path / "models")) == 1
    )


def test_a_model_with_other_features_is_neither_used_nor_continued(loopback, tmp_path, monkeypatch):
    "As an earlier release may have trained it."
    from cryptolstm.features.indicators import INPUTS
    from cryptolstm.model import training, training_data
    loopback.now -= 100 * HOUR
    sg = generator(loopback, tmp_path)
    with monkeypatch.context() as m:
        m.setattr(training_data, "input_columns", lambda config, table=None: INPUTS[:10])
        old = sg.generate_signals(hours=120)["model_info"]["version"]
    loopback.now += 30 * HOUR
    for threshold in (24, 0):
        info = sg.generate_signals(hours=120, retrain_threshold=threshold)["model_info"]
        assert info["version"] != old
        if not threshold: continue
        assert (
            info["decision"]
            == "trained: features were 10 columns, asked for are 23 (the difference begins with atr_rel)"
        )
        assert not info["warm_started"]
    bundle = load_bundle(tmp_path / "models" / sg.line_of(120) / old)
    assert (
        training.warm_start_refusal(bundle, bundle.config, pd.Timestamp.now("UTC"), pd.Timestamp.now("UTC"))
        == "the old model was trained on other features"
    )


def test_a_model_that_must_not_be_continued_is_started_afresh_and_the_signal_says_why(loopback, tmp_path):
    loopback.now -= 100 * HOUR
    sg = generator(loopback, tmp_path)
    version = sg.generate_signals(hours=120)["model_info"]["version"]
    record = tmp_path / "models" / sg.line_of(120) / version / "bundle.json"
    table = json.loads(record.read_text())
    # as an earlier version wrote it
    hashes = table.pop("hashes")
    table = {k: v for k, v in table.items() if k != "fitted_until"} | {"format": 2}
    record.write_text(json.dumps(table | {"hashes": hashes | {"bundle.json": config_hash(table)}}))
    loopback.now += 30 * HOUR
    info = sg.generate_signals(hours=120)["model_info"]
    assert (
        not info["warm_started"]
        and "started afresh, since the old model does not say where its training rows end" in info["decision"]
    )


def test_the_plan_for_a_stored_model_follows_its_age_and_what_it_was_made_for():
    bars = demo_market(600, seed=1)
    config = model_config(RUN)
    stored = fit(bars.iloc[:500], features(bars).iloc[:500], config, hours=400)
    def plan(row, market="simulated", hours=400):
        return model_plan(
            stored, config, "BTC/USD", market, hours, bars.index[row] + HOUR, 24
        )[0]
    assert [plan(row) for row in (499, 500, 522, 523)] == ["afresh", "reuse", "reuse", "continue"]
    assert (plan(500, "kraken"), plan(523, hours=401)) == ("afresh", "afresh")
    assert model_plan(None, config, "BTC/USD", "kraken", 400, bars.index[0], 24)[0] == "afresh"


# -- choice of the market
# --------------------------------------------------------------------------------------------------

def test_each_market_has_a_line_of_its_own_and_the_usual_exchange_the_short_name():
    markets = (
        "coinbaseexchange",
        "simulated",
        "kraken",
        "coinbaseexchange@127.0.0.1:8765",
        "coinbaseexchange@127.0.0.1:8766",
    )
    names = [line_name("ETH/USD", market=m) for m in markets]
    assert (
        names[:3] == ["eth_usd_lstm_v2", "eth_usd_simulated_lstm_v2", "eth_usd_kraken_lstm_v2"]
        and len(set(names)) == 5
    )
    assert line_name("ETH/USD", "mine.keras", "simulated") == "mine"


def test_each_request_has_a_line_of_its_own():
    config = model_config(RunConfig())
    requests = [
        (240, config),
        (48, config),
        (240, replace(config, lookback=24)),
        (240, replace(config, horizon=6)),
        (240, replace(config, epochs=5)),
        (240, replace(config, seed=1)),
    ]
    names = [line_name("ETH/USD", hours=h, config=c) for h, c in requests]
    assert (
        names[:4]
        == [
            "eth_usd_lstm_v2",
            "eth_usd_48h_lstm_v2",
            "eth_usd_lookback24_lstm_v2",
            "eth_usd_horizon6_lstm_v2",
        ]
        and len(set(names)) == 6
    )


def test_the_demo_market_does_not_take_the_real_model_out_of_use(loopback, tmp_path):
    sg = generator(loopback, tmp_path)
    real = sg.generate_signals(hours=120)["model_info"]["version"]
    demo = SignalGenerator("BTC/USD", exchange="simulated", home=tmp_path, config=RUN)
    assert demo.line_of(120).startswith("btc_usd_simulated_120h_lookback12_") and demo.line_of(
        120
    ) != sg.line_of(120)
    demo.generate_signals(hours=120)
    assert in_use(sg) == real and in_use(demo) != real


def test_a_model_keeps_the_market_of_its_bars(tmp_path):
    bars = stamp(
        demo_market(400, seed=1), "BTC/USD", "coinbaseexchange", market="coinbaseexchange@127.0.0.1:8765"
    )
    bundle = fit(bars, features(bars), model_config(RUN), hours=240)
    assert bundle.exchange == "coinbaseexchange@127.0.0.1:8765"
    assert (
        differs(bundle, bundle.config, "BTC/USD", "coinbaseexchange", 240)
        == "exchange was coinbaseexchange@127.0.0.1:8765, asked for is coinbaseexchange"
    )
    assert differs(bundle, bundle.config, "BTC/USD", bundle.exchange, 240) == ""


def test_the_line_of_a_generator_is_known_before_its_bars(loopback, monkeypatch):
    monkeypatch.delenv("CRYPTOLSTM_EXCHANGE_URL")
    assert SignalGenerator("ETH/USD").line == "eth_usd_lstm_v2"
    assert SignalGenerator("ETH/USD", exchange="kraken").line == "eth_usd_kraken_lstm_v2"
    assert (
        SignalGenerator("ETH/USD", exchange_url="http://127.0.0.1:8765").line
        == "eth_usd_coinbaseexchange_127_0_0_1_8765_lstm_v2"
    )
    monkeypatch.setenv("CRYPTOLSTM_EXCHANGE", "kraken")
    assert (
        SignalGenerator("ETH/USD").line == "eth_usd_kraken_lstm_v2"
        and SignalGenerator("ETH/USD", model="mine").line == "mine"
    )


# -- warnings
# --------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def decided():
    "Bars, their features, a model trained on all but the last bars, and a decision."
    bars = demo_market(900, seed=8)
    table = features(bars)
    bundle = fit(bars.iloc[500:899], table.iloc[500:899], model_config(RUN))
    return table, bundle, decide(bundle.predict(table, bars, start=899), table, RUN).iloc[-1], bars


def warnings_of(decided, run=RUN, **attrs):
    table, bundle, decision, bars = decided
    plenty = replace(bundle, training={**bundle.training, "underpowered": False})
    return signal_dict(
        run,
        stamp(bars, "BTC/USD", "kraken", **attrs),
        table,
        decision,
        [Version(plenty, Path("x"))],
        "trained",
    )["warnings"]


@pytest.mark.parametrize("late,warned", [(0, False), (0.5, False), (3, False), (3.5, True), (4000, True)])
def test_a_bar_that_closed_long_ago_is_said_to_be_so(decided, late, warned):
    clock = decided[3].index[-1] + HOUR + pd.Timedelta(hours=late)
    text = (
        f"the newest bar of BTC/USD closed {late:.0f} hours ago by the exchange's clock; the signal is about"
        " then, not now"
    )
    assert warnings_of(decided, clock_time=clock.isoformat()) == ([text] if warned else [])


def test_without_a_clock_nothing_is_compared_and_a_past_that_was_asked_for_is_not_late(decided):
    bars = decided[3]
    end, long_after = (bars.index[-1] + HOUR).isoformat(), (bars.index[-1] + 999 * HOUR).isoformat()
    assert warnings_of(decided) == []
    assert warnings_of(decided, replace(RUN, end=end), clock_time=long_after) == []
    ends_early = lag_warning(
        stamp(bars, "BTC/USD", "kraken", clock_time=long_after),
        replace(RUN, end=(bars.index[-1] + 51 * HOUR).isoformat()),
    )
    assert (
        ends_early
        == "the newest bar of BTC/USD closed 50 hours before the end asked for; the signal is about then,"
        " not now"
    )


def test_short_stale_and_underpowered_are_warnings(decided):
    stale, short = "kraken could not be reached", "kraken has 100 of the 200 bars asked for"
    warnings = warnings_of(decided, stale=stale, short=short)
    assert warnings == [stale, f"{short}; the training span or its warm-up is shorter than asked for"]
    table, bundle, decision, bars = decided
    weak = replace(
        bundle, training={**bundle.training, "underpowered": True, "windows": 100, "weights": 541_405}
    )
    warnings = signal_dict(RUN, bars, table, decision, [Version(weak, Path("x"))], "")["warnings"]
    assert warnings == ["the model is underpowered: 100 training windows for 541405 weights"]


def test_a_real_signal_carries_its_warnings_and_is_json(loopback, tmp_path):
    signal = generator(loopback, tmp_path).generate_signals(hours=120)
    assert json.loads(json.dumps(signal, allow_nan=False))["warnings"] == signal["warnings"]
    assert signal["underpowered"] == any("underpowered" in w for w in signal["warnings"]) and not any(
        "closed" in w for w in signal["warnings"]
    )


def test_the_decided_bar_is_never_in_the_training_span(loopback, tmp_path):
    sg = generator(loopback, tmp_path)
    for _ in range(2):
        info = (signal := sg.generate_signals(hours=120))["model_info"]
        assert pd.Timestamp(info["trained_until"]) + HOUR < pd.Timestamp(signal["bar_close_time"])
        assert np.isfinite(signal["predicted_price"])
    folder = tmp_path / "models" / sg.line_of(120) / info["version"]
    assert load_bundle(folder).hours == 120


# -- the number of training windows
# --------------------------------------------------------------------------------------------------

def with_gaps(*gaps, hours=2000, ticker="BTC/USD"):
    "An exchange whose market lacks bars: each gap is (hours before the last bar, length)."
    bars = a_market(hours, ticker=ticker)
    lost = [k for back, n in gaps for k in range(len(bars) - 1 - back, len(bars) - 1 - back + n)]
    return Loopback({ticker: bars.drop(bars.index[lost])}, now=bars.index[-1] + HOUR)


@pytest.mark.parametrize("hours,retrain_threshold", [(48, 6), (240, 24)])
def test_hours_is_the_number_of_training_windows_with_the_lookback_of_the_design(
    loopback, tmp_path, hours, retrain_threshold
):
    signal = generator(loopback, tmp_path, lookback=60).generate_signals(hours, retrain_threshold)
    info = signal["model_info"]
    assert info["windows"] + info["validation_windows"] == hours
    assert np.isfinite(signal["predicted_price"])


def test_where_gaps_leave_too_few_windows_older_bars_are_fetched(tmp_path):
    with with_gaps((300, 200), (900, 100)) as exchange:
        info = generator(exchange, tmp_path).generate_signals(hours=240)["model_info"]
    assert info["windows"] + info["validation_windows"] == 240


def test_a_market_with_too_few_bars_is_one_sentence(tmp_path):
    with with_gaps(hours=100) as exchange:
        with pytest.raises(
            InputError,
            match=(
                r"^BTC/USD has \d+ complete windows of 60 bars at coinbaseexchange@\S+ before the decided"
                r" bar, too few to train on \(12 are needed\); pass another ticker or a shorter lookback$"
            ),
        ):
            generator(exchange, tmp_path, lookback=60).generate_signals(hours=48)


def test_a_long_horizon_needs_more_windows_and_the_sentence_names_the_number_that_works(loopback, tmp_path):
    sg = generator(loopback, tmp_path, horizon=60)
    with pytest.raises(InputError, match="^hours is 48; pass a whole number from 86, the fewest training"):
        sg.generate_signals(hours=48)
    assert not tmp_path.joinpath("bars").exists()
    assert sg.generate_signals(hours=86)["model_info"]["windows"] >= 10


# -- calibration
# --------------------------------------------------------------------------------------------------

def test_at_the_default_hours_there_is_a_confidence_that_says_what_it_rests_on(loopback, tmp_path):
    signal = (now := generator(loopback, tmp_path).decide_now()).signal
    c, info = signal["calibration"], signal["model_info"]
    assert 0 < signal["confidence"] < 1 and 0 < signal["p_exceed"] < 1 and signal["monitor"]["psi"]
    assert (c["before_training"], c["validation"], c["earlier_versions"]) == (CALIBRATION_BARS, 48, 0)
    assert c["forecasts"] == CALIBRATION_BARS + 48 >= signal["n_calibration"] >= MIN_CALIBRATION
    # the training is on the bars asked for, and on no other
    trained = now.bars.iloc[-1 - 240 - 12 : -1]
    assert (info["windows"], info["trained_from"]) == (192, trained.index[0].isoformat())
    assert now.model.data_hash == bars_hash(trained)
    assert pd.Timestamp(c["from"]) == trained.index[0] - (CALIBRATION_BARS + 1) * HOUR


def test_only_a_training_fetches_the_bars_of_a_calibration(loopback, tmp_path, monkeypatch):
    from cryptolstm.strategy import signal
    asked, fetch = [], signal.market_bars

    def counted(ticker, n, **how):
        asked.append(n)
        return fetch(ticker, n, **how)

    monkeypatch.setattr(signal, "market_bars", counted)
    sg, usual = generator(loopback, tmp_path), 240 + 12 + 1 + WARMUP
    first = sg.generate_signals()
    assert asked == [usual, forecast_bars(1) + 12 + 1 + WINDOW] and asked[1] > usual + CALIBRATION_BARS
    again = sg.generate_signals()
    assert asked[2:] == [usual]
    for k in ("calibration", "confidence", "p_exceed", "predicted_price"): assert again[k] == first[k]


def test_a_continued_model_is_calibrated_on_bars_before_the_first_training_of_its_line(loopback, tmp_path):
    loopback.now -= 100 * HOUR
    sg = generator(loopback, tmp_path)
    first = sg.generate_signals(hours=120)["model_info"]
    for day in (1, 2):
        loopback.now += 30 * HOUR
        signal = sg.generate_signals(hours=120)
        c = signal["calibration"]
        assert signal["model_info"]["warm_started"]
        folder = tmp_path / "models" / sg.line_of(120) / signal["model_info"]["version"]
        assert read_note(folder)["fitted_from"] == first["trained_from"]
        assert pd.Timestamp(c["from"]) == pd.Timestamp(first["trained_from"]) - (CALIBRATION_BARS + 1) * HOUR
        # every bar since the first version, except that of the newest outcome
        assert c["earlier_versions"] == 30 * day and c["validation"] <= 24


def test_the_calibration_uses_no_bar_after_the_decided_one(loopback, tmp_path):
    loopback.now -= 50 * HOUR
    end = loopback.now.floor("h").isoformat()
    then = generator(loopback, tmp_path / "then").generate_signals(hours=120)
    loopback.now += 50 * HOUR
    generator(loopback, tmp_path / "later").generate_signals(hours=200)   # stores the later bars
    later = generator(loopback, tmp_path / "later", end=end).generate_signals(hours=120)
    for k in ("calibration", "confidence", "p_exceed", "predicted_price", "bar_close_time"):
        assert then[k] == later[k]


def test_with_few_older_bars_the_calibration_uses_those_there_are(tmp_path):
    with with_gaps(hours=1100) as exchange:
        signal = generator(exchange, tmp_path).generate_signals()
    assert 600 < signal["calibration"]["before_training"] < 1100 - 240 and signal["calibrated"]
    assert not any("shorter than asked for" in w for w in signal["warnings"])


# -- outages
# --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("hours", [1, 5, LONGEST_SPANNED])
def test_the_first_bar_after_an_outage_has_a_forecast(hours, tmp_path):
    with with_gaps((hours, hours)) as exchange:
        now = generator(exchange, tmp_path).decide_now(hours=120)
    assert now.bars["is_gap"].iloc[-1 - hours : -1].all() and not now.bars["is_gap"].iloc[-1]
    assert np.isfinite(now.signal["predicted_price"])
    assert not any("no forecast" in w for w in now.signal["warnings"])
    alone = now.model.predict_one(now.table, now.bars)
    assert alone == now.model.predict(now.table, now.bars, start=len(now.bars) - 1).iloc[0]


def test_a_longer_outage_states_when_the_forecast_returns_and_retrains_nothing_meanwhile(tmp_path):
    with with_gaps((200, 30)) as exchange:
        end = exchange.now
        sg = generator(exchange, tmp_path)
        exchange.now = end - 230 * HOUR
        first = sg.generate_signals(hours=120)["model_info"]["version"]
        exchange.now = end - 140 * HOUR   # 30 bars after the outage
        # once on the windows before the outage, and not again
        version = sg.generate_signals(hours=120)["model_info"]["version"]
        signal = sg.generate_signals(hours=120)
        assert signal["predicted_price"] is None and signal["model_info"]["version"] == version != first
        assert "no newer window is complete" in signal["model_info"]["decision"]
        (warning,) = [w for w in signal["warnings"] if w.startswith("there is no forecast for this bar")]
        due = pd.Timestamp(warning.split("expected back at ")[1][:16], tz="UTC")
        exchange.now = due - HOUR / 2
        assert sg.generate_signals(hours=120)["predicted_price"] is None
        exchange.now = due + HOUR / 2
        signal = sg.generate_signals(hours=120)
        assert np.isfinite(signal["predicted_price"]) and signal["model_info"]["version"] == version
        exchange.now = due + 3 * HOUR   # two windows now have an outcome
        assert sg.generate_signals(hours=120)["model_info"]["version"] != version


# -- the examples of the specification
# --------------------------------------------------------------------------------------------------

def test_the_usage_examples_of_the_design_run_as_typed(loopback, client_home, monkeypatch):
    "Except for the package's name, and for a small network and few retrainings, which are set by `config`."
    from cryptolstm import Backtester
    monkeypatch.setenv("CRYPTOLSTM_EXCHANGE_URL", loopback.url)
    small = RunConfig(network=NETWORK, lookback=12, train_hours=400, retrain_every=1080)

    sg = SignalGenerator(ticker='ETH/USD', config=small)
    backtester = Backtester(sg, hours=720, initial_balance=50000)

    # Short-term signals
    short_signals = sg.generate_signals(hours=48, retrain_threshold=6)

    # Medium-term signals
    medium_signals = sg.generate_signals(hours=240, retrain_threshold=24)

    # Long-term backtest
    long_backtest = backtester.run(hours=2160)  # 90 days

    assert short_signals["model_info"]["hours"] == 48 and medium_signals["model_info"]["hours"] == 240
    assert (
        sg.generate_signals(hours=48, retrain_threshold=6)["model_info"]["version"]
        == short_signals["model_info"]["version"]
    )
    assert (
        len(long_backtest["equity"]) == 2160
        and long_backtest["initial_balance"] == 50_000
        and len(long_backtest["folds"]) == 2
    )
    print(f"Total Return: {long_backtest['total_return']*100:.2f}%")


# -- the duration of a training
# --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seeds", [[1], [1, 2]])
def test_a_training_is_announced_with_its_duration_on_stderr(tmp_path, capsys, seeds):
    "The network stops after a few epochs; the estimate is the time limit, which many epochs would reach."
    network = {**TINY, "epochs": 100_000, "patience": 1, "max_train_seconds": 120, "seeds": seeds}
    sg = SignalGenerator(
        exchange="simulated", home=tmp_path, config=replace(RUN, network=network), progress=True
    )
    sg.generate_signals(hours=120)
    trained = capsys.readouterr()
    assert "about 2 min here: 1 training\n" in trained.err and trained.out == ""
    assert trained.err.count("100%") == 1 and trained.err.rstrip().endswith("done")
    sg.generate_signals(hours=120)
    assert "here:" not in capsys.readouterr().err   # reused


def test_an_estimate_changes_no_model(tmp_path):
    "The steps that are timed leave neither weights nor random state behind."
    def weights(shown):
        sg = SignalGenerator(exchange="simulated", home=tmp_path / str(shown), config=RUN, progress=shown)
        sg.generate_signals(hours=120)
        return load_bundle(current_version(sg.line_of(120), sg.home / "models")).weights
    for a, b in zip(weights(False), weights(True), strict=True): np.testing.assert_array_equal(a, b)
