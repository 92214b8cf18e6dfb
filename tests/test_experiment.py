"""One run from bars to verdict: settings reach the code that needs them, and shortcomings of the bars are
reported."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL, run_bars, small_run
from scipy.stats import spearmanr

from cryptolstm import Backtester, SignalGenerator
from cryptolstm.core.errors import InputError
from cryptolstm.core.bars import stamp
from cryptolstm.core.config import RunConfig
from cryptolstm.data.demo import demo_market
from cryptolstm.features.indicators import features
from cryptolstm.stats.skill import skill_row
from cryptolstm.execution.simulate import simulate
from cryptolstm.proof.trials import ALONE, Ledger, Trial
from cryptolstm.proof.provenance import data_notes
from cryptolstm.strategy.decide import decide
from cryptolstm.research.walkforward import walk_forward
from cryptolstm.research.replay import trade
from cryptolstm.research.baselines import (HOLD, MOMENTUM, REVERSAL, RULES_ALONE, STRATEGY,
                                           last_bar_reversal, learner_exceedance, learner_forecasts,
                                           without_rules)
from cryptolstm.research.backtest import backtest, run_backtest, search_of, summary
from cryptolstm.report.backtest_page import data_table, headline
from cryptolstm.report.forecast_sections import entry_text
from cryptolstm.report.performance_sections import search_table

RUN = small_run()


@pytest.fixture(scope="module")
def day():
    "A run with a horizon of one day and volatility sizing."
    run = replace(RUN, horizon=24, sizing="volatility", size=0.3)
    bars = run_bars(run)
    return run, bars, backtest(bars, run)


def test_the_first_tested_bars_are_sized_by_what_was_known_before_them(day):
    run, bars, result = day
    tested, table = result["bars"], features(bars).loc[result["bars"].index]
    signal = pd.Series(1, tested.index)
    knowing = trade(tested, signal, run, atr=table["atr"], sigma=table["sigma"])
    blind = trade(tested, signal, run, atr=table["atr"])
    assert knowing["fills"]["time"].iloc[0] == tested.index[1] < blind["fills"]["time"].iloc[0]
    by_hand = simulate(
        tested,
        result["signals"]["signal"],
        atr=table["atr"],
        sigma=table["sigma"],
        stop_atr=run.stop_atr,
        sizing="volatility",
        size=0.3,
        fee=run.fee,
        slippage=run.slippage,
    )
    pd.testing.assert_series_equal(result["equity"], by_hand["equity"], check_exact=True)


def test_the_rule_to_beat_opposes_a_move_as_long_as_the_horizon(day):
    run, bars, result = day
    y = (np.log(bars["close"]).shift(-24) - np.log(bars["close"])).loc[result["predictions"].index]
    both = pd.concat([y, last_bar_reversal(bars, 24)], axis=1, join="inner").dropna()
    assert result["skill"].loc[REVERSAL, "ic"] == pytest.approx(
        skill_row(both.iloc[:, 0], both.iloc[:, 1], 24)["ic"]
    )
    moves = np.sign(last_bar_reversal(bars, 24)).loc[y.index].fillna(0)
    held = result["baselines"][REVERSAL]["position"]
    assert (held.iloc[1:].to_numpy() == moves.iloc[:-1].to_numpy()).mean() > 0.95


def test_a_verdict_over_a_horizon_counts_separate_spans(day):
    result = day[2]
    assert (
        "separate 24-hour spans" in result["verdict"].sentence and result["verdict"].level == "UNDERPOWERED"
    )


def test_a_shorter_training_is_said_on_page_and_in_json():
    bars = run_bars(RUN)
    whole, late = (backtest(b, RUN) for b in (bars, bars.iloc[-560:]))
    assert data_notes(whole["data"]) == []
    # 49 bars pass before the indicators are known
    note = f"Trained on {560 - 240 - 49 - 12} of the 400 hours asked for"
    assert data_notes(late["data"])[0].startswith(note) and summary(late)["data"]["shortened"].startswith(
        note
    )
    assert f'class="note warn">{note}' in headline(late).markup


PROBABLE = replace(
    RUN,
    entry="probability",
    p_min=0.05,
    threshold_scale=1,
    hours=96,
    retrain_every=48,
    train_hours=1150,
    network={**SMALL, "val_fraction": 0.5},
)


def test_a_run_by_probability_enters_by_it_and_so_do_those_in_the_networks_place():
    bars = run_bars(PROBABLE)
    result = backtest(bars, PROBABLE, certify=True)
    seen, p = result["signals"], result["predictions"]["p_exceed"]
    pd.testing.assert_series_equal(seen["p_exceed"], p, check_exact=True)
    assert (
        ((seen["direction"] != 0) == (p >= 0.05)).all()
        and seen["direction"].any()
        and result["certificate"].passed
    )
    assert data_notes(result["data"]) == [] and {
        "ridge with the rules",
        "gradient boosting with the rules",
    } <= set(result["baselines"])
    alone = decide(result["predictions"]["prediction"], features(bars), PROBABLE, {}, exceed=p)["signal"]
    known = features(bars).loc[p.index]
    traded = trade(result["bars"], alone, PROBABLE, atr=known["atr"], sigma=known["sigma"])
    pd.testing.assert_series_equal(
        result["baselines"][without_rules("LSTM")]["equity"], traded["equity"], check_exact=True
    )


def test_a_learners_probability_knows_nothing_of_the_bars_it_is_asked_about():
    run = replace(PROBABLE, horizon=3)
    bars = run_bars(run)
    walk = walk_forward(bars, run)
    other = bars.copy()
    # from the second bar of the last fold on
    other.iloc[-47:, :4] *= np.linspace(1.2, 3, 47)[:, None]
    probabilities = []
    for b in (bars, other):
        changed = replace(walk, table=features(b))
        probabilities.append(learner_exceedance(b, changed, run, learner_forecasts(b, changed, run)))
    for name in ("ridge", "gradient boosting"):
        a, b = (p[name].iloc[:49] for p in probabilities)
        assert a.between(0, 1).all()
        pd.testing.assert_series_equal(a, b, check_exact=True)
    assert learner_exceedance(bars, walk, replace(run, entry="cost"), {}) == {}


def test_folds_that_cannot_say_how_likely_a_move_is_enter_nothing_and_that_is_said():
    run = replace(PROBABLE, train_hours=900)
    result = backtest(run_bars(run), run)
    fewest = result["folds"]["n_exceed"].min()
    note = (
        f"2 of 2 folds entered nothing: they had too little to calibrate a probability on (at fewest {fewest}"
        " forecasts, 500 are needed)"
    )
    assert (
        result["folds"]["n_exceed"].max() < 500
        and (result["signals"]["direction"] == 0).all()
        and not len(result["trades"])
    )
    assert data_notes(result["data"])[0].startswith(note) and summary(result)["data"][
        "uncalibrated"
    ].startswith(note)
    assert (
        f'class="note warn">{note}' in headline(result).markup
        and "No forecast has one" in entry_text(result).markup
    )


def test_bars_from_another_address_say_so():
    run = replace(RUN, hours=48, retrain_every=48)
    bars = stamp(run_bars(run), "ETH/USD", "kraken", exchange_url="http://127.0.0.1:8765/<b>")
    result = backtest(bars, run)
    for piece in (headline(result), data_table(result)):
        assert "kraken at http://127.0.0.1:8765/&lt;b&gt;" in piece.markup


def test_a_backtester_changes_only_what_it_is_given():
    sg = SignalGenerator(config=replace(RUN, hours=96, initial_balance=5000.0, fee=0.004))
    assert Backtester(sg).config == sg.run
    assert Backtester(sg, hours=120, initial_balance=7000, fee=0.0).config == replace(
        sg.run, hours=120, initial_balance=7000.0, fee=0.0
    )
    assert Backtester(SignalGenerator()).config == RunConfig()
    with pytest.raises(InputError, match="pass SignalGenerator"): Backtester(RUN)


def test_every_run_is_entered_and_a_rerun_is_no_new_trial(tmp_path):
    run = replace(RUN, hours=96)
    first, again, dear = (
        run_backtest(r, home=tmp_path, certify=False) for r in (run, run, replace(run, fee=0.002))
    )
    assert [r["search"]["trial"] for r in (first, again, dear)] == [1, 1, 2] and again["search"][
        "reruns"
    ] == 1
    book = Ledger(tmp_path).trials_of("ETH/USD", market="simulated:0")
    assert book["reruns"].tolist() == [1, 0] and book["verdict"].tolist() == [
        first["verdict"].level,
        dear["verdict"].level,
    ]
    assert (
        book["data_hash"].eq(first["data"]["sha256"]).all()
        and book["until"].iloc[0].isoformat() == first["data"]["tested_until"]
    )
    assert summary(dear)["search"]["sentence"] == "This is trial 2 on these bars, which count as 1"


def test_a_backtest_of_given_bars_writes_nothing_unless_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("CRYPTOLSTM_HOME", str(tmp_path))
    run = replace(RUN, hours=96)
    bars = run_bars(run)
    silent = backtest(bars, run)
    assert not list(tmp_path.iterdir()) and silent["search"]["trial"] == 1 and silent["certificate"] is None
    backtest(bars, run, ledger=Ledger())
    assert len(Ledger().trials_of("ETH/USD", market="simulated:2")) == 1


def test_every_mandatory_baseline_is_traded_at_the_same_costs(day):
    run, bars, result = day
    known = {HOLD, REVERSAL, MOMENTUM, "ridge without the rules", "ridge with the rules", RULES_ALONE}
    assert (
        known <= set(result["baseline_returns"]) == set(result["baselines"]) | {STRATEGY}
        and result["baseline_figures"][MOMENTUM]["num_trades"] > 0
    )
    moves = np.sign(bars["close"] - bars["close"].shift(24)).loc[result["bars"].index].astype(int)
    by_hand = simulate(result["bars"], moves, fee=run.fee, slippage=run.slippage)
    pd.testing.assert_series_equal(
        result["baselines"][MOMENTUM]["equity"], by_hand["equity"], check_exact=True
    )
    assert all(
        b["settings"]["fee"] == run.fee and b["settings"]["slippage"] == run.slippage
        for b in result["baselines"].values()
    )


def test_a_run_tells_programs_its_months_its_funnel_and_how_its_inputs_went(day):
    result, told = day[2], json.loads(json.dumps(summary(day[2]), allow_nan=False))
    months = [
        1 + x
        for year in told["monthly"]["strategy"].values()
        for month, x in year.items()
        if month != "year" and x is not None
    ]
    assert np.prod(months) == pytest.approx(1 + result["total_return"]) and set(told["monthly"]) == {
        "strategy",
        HOLD,
    }
    assert told["funnel"]["bars"]["bars left"] == len(result["bars"])
    assert [v["bars left"] for v in told["funnel"].values()][-1] == (result["signals"]["signal"] != 0).sum()
    name, rho = next(iter(told["correlation"].items()))
    both = pd.concat([result["features"][name], result["predictions"]["realised"]], axis=1).dropna()
    assert rho == pytest.approx(spearmanr(*both.to_numpy().T).statistic) and abs(rho) == max(
        abs(x) for x in told["correlation"].values() if x is not None
    )
    assert (
        (result["trades"]["mae"] <= 0).all()
        and (result["trades"]["mfe"] >= 0).all()
        and len(result["trades"]) > 0
    )


def test_the_halves_of_the_strategy_are_traded_alone(day):
    run, bars, result = day
    table, index = features(bars), result["bars"].index
    assert set(result["baselines"]) >= {
        RULES_ALONE,
        without_rules("LSTM"),
        "ridge with the rules",
        "gradient boosting with the rules",
    }
    forecast = result["predictions"]["prediction"]
    known = table.loc[index]
    alone = trade(
        result["bars"],
        decide(forecast, table, run, rules={})["signal"],
        run,
        atr=known["atr"],
        sigma=known["sigma"],
    )
    pd.testing.assert_series_equal(
        result["baselines"][without_rules("LSTM")]["equity"], alone["equity"], check_exact=True
    )
    def shout(side):
        return decide(pd.Series(100.0 * side, index), table, run)["signal"]
    both = shout(1) + shout(-1)
    plain = trade(result["bars"], both, run, atr=known["atr"], sigma=known["sigma"])
    pd.testing.assert_series_equal(
        result["baselines"][RULES_ALONE]["equity"], plain["equity"], check_exact=True
    )
    assert {"ridge", "gradient boosting"} <= set(result["skill"].index)


def earned(sharpe: float, n: int = 720) -> dict:
    "A simulation result with this Sharpe ratio per bar."
    r = np.random.default_rng(1).normal(size=n)
    r = .001 * ((r - r.mean()) / r.std(ddof=1) + sharpe)
    bars = demo_market(n)
    equity = bars["close"] * 0 + 100 * np.cumprod(1 + r)
    trades = pd.DataFrame(
        {
            "side": 1,
            "entry_time": bars.index[:-1],
            "exit_time": bars.index[1:],
            "entry_price": 1.0,
            "quantity": 1.0,
            "borrow": 0.0,
            "pnl": np.diff(equity),
            "return": r[1:],
            "exit_reason": "signal",
        }
    )
    settings = {"fee": 0.0, "slippage": 0.0}
    return {"equity": equity, "initial_balance": 100.0, "trades": trades, "settings": settings}


def attempt(k: int, sharpe: float | None) -> Trial:
    return Trial(
        "ETH/USD",
        "kraken",
        "2025-01-01T00:00Z",
        "2025-01-31T00:00Z",
        "bars",
        {"threshold_scale": k},
        sharpe,
        720,
        0.0,
        3.0,
        0.5,
    )


def test_forty_trials_of_which_one_traded_are_not_taken_for_one(tmp_path):
    "Their variance is zero, so the best of them would have been judged like a single trial."
    book = Ledger(tmp_path)
    for k in range(39): book.enter(attempt(k, None))
    standing = book.enter(attempt(39, .065))
    found = search_of(earned(.065), demo_market(720), standing)
    assert (standing.trials, standing.traded, standing.variance) == (40, 1, 0.0)
    assert found["probabilistic_sharpe"] > .95 > .5 > found["deflated_sharpe"] and found["expected_best"] > 5


def test_a_run_that_nobody_counted_says_so():
    found = search_of(earned(.065), demo_market(720), ALONE.enter(attempt(0, .065)))
    assert (
        found["entered"] is False
        and found["sentence"]
        == "This run was entered in no trial ledger and counts as the first on these bars"
    )
    assert found["deflated_sharpe"] == found["probabilistic_sharpe"] and found["among"] is None


def test_the_tenth_trial_of_the_same_hours_says_what_choosing_among_them_is_worth(tmp_path):
    run, book = replace(RUN, hours=96), Ledger(tmp_path)
    bars = run_bars(run)
    lucky = np.random.default_rng(0).normal(0, .01, (9, 96))
    result = backtest(bars, run, ledger=book)
    assert result["search"]["among"] is None
    first = book.trials_of("ETH/USD", market="simulated:2").iloc[0]
    span = first["first"].isoformat(), first["until"].isoformat()
    others = [
        Trial("ETH/USD", "simulated:2", *span, "d", {"k": k}, 0.0, 96, 0.0, 3.0, 0.5, r)
        for k, r in enumerate(lucky)
    ]
    book.enter_all(others)
    again = backtest(bars, run, ledger=book)
    assert again["search"]["among"]["different"] == 10 and 0 <= again["search"]["among"]["pbo"] <= 1
    assert (
        "rank the best of 10 trials" in search_table(again).markup
        and "fewer than ten different ones" in search_table(result).markup
    )
    assert summary(again)["search"]["among"] == again["search"]["among"]
