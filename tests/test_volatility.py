"""Forecasts of volatility: causal in every way a universe allows, honest about small samples, and as good on
recorded candles as the documentation says."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from loopback import Loopback, recorded
from typer.testing import CliRunner

from cryptolstm.core.errors import InputError, TooFewRows
from cryptolstm.core.volatility_config import VolatilityConfig
from cryptolstm.data.demo import demo_market
from cryptolstm.features import variance
from cryptolstm.features.panel import panel
from cryptolstm.features.variance import log_realised_variance, seasonal_profile, variance_table
from cryptolstm.model import volatility as model_volatility
from cryptolstm.model.volatility import (
    CALENDAR,
    PLAIN,
    CalendarHAR,
    FittedCalendarHAR,
    FittedPooledRidge,
    PooledRidge,
)
from cryptolstm.model.volatility_benchmarks import GARCH, Trailing
from cryptolstm.proof.prereg import preregister
from cryptolstm.proof.trials import Ledger
from cryptolstm.report.manifest import read_manifest
from cryptolstm.report.volatility_page import SECTIONS
from cryptolstm.research import volatility_run
from cryptolstm.research.volatility_checks import (
    LEAK,
    TOO_SHORT,
    run_volatility,
    volatility_certificate,
    volatility_subject,
    volatility_summary,
    volatility_verdict,
)
from cryptolstm.research.volatility_run import (
    BLEND,
    HARS,
    RIDGE,
    TRAILING,
    VolatilityResult,
    volatility_walk,
)
from cryptolstm.stats.variance_scores import daily_test, qlike, volatility_errors

NAMES = ("BTC/USD", "ETH/USD", "SOL/USD", "ADA/USD")
SMALL = VolatilityConfig(hours=480, train_hours=1300, retrain_every=240)


def universe(hours: int = 2600) -> dict:
    "Four demo markets."
    return {t: demo_market(hours, seed=k, ticker=t) for k, t in enumerate(NAMES)}


# ---- what a forecaster may know


def test_a_frame_and_a_mapping_of_one_ticker_give_the_same_forecasts():
    bars = demo_market(3000, seed=3)
    alone = CalendarHAR(6).fit(None, bars.iloc[:2500]).predict(None, bars, start=2500)
    named = (
        CalendarHAR(6).fit(None, {"BTC/USD": bars.iloc[:2500]}).predict(None, {"BTC/USD": bars}, start=2500)
    )
    np.testing.assert_array_equal(alone.to_numpy(), named["BTC/USD"].to_numpy())


def test_a_table_computed_before_gives_the_same_forecasts_as_the_bars_alone():
    p = panel(universe())
    past = p.rows(slice(0, 2200))
    table = variance_table(p, 24, seasonal_profile(past))
    fitted = PooledRidge(24).fit(table.rows(slice(0, 2200)), past)
    again = PooledRidge(24).fit(None, past)
    np.testing.assert_array_equal(fitted.weights, again.weights)
    pd.testing.assert_frame_equal(fitted.predict(table, p, 2200), again.predict(None, p, 2200))


@pytest.mark.parametrize("model", [CalendarHAR(24), PooledRidge(24)], ids=["calendar HAR", "ridge"])
def test_a_fit_does_not_use_outcomes_that_reach_beyond_its_bars(model):
    bars = universe()
    shorter = {t: b.iloc[:2400] for t, b in bars.items()}
    # the last 24 rows have no outcome: other bars there change features of these rows only
    fitted = model.fit(None, shorter)
    assert (
        fitted.span.last == shorter["BTC/USD"].index[-25]
        and fitted.span.outcome == shorter["BTC/USD"].index[-1]
    )
    with pytest.raises(InputError, match="training span"):
        fitted.predict(None, bars, start=2399)


def test_a_stored_model_forecasts_the_same():
    bars = universe()
    for kind, stored in ((CalendarHAR(24), FittedCalendarHAR), (PooledRidge(24), FittedPooledRidge)):
        fitted = kind.fit(None, {t: b.iloc[:2300] for t, b in bars.items()})
        again = stored.from_dict(json.loads(json.dumps(fitted.to_dict())))
        pd.testing.assert_frame_equal(fitted.predict(None, bars, 2300), again.predict(None, bars, 2300))


def test_prices_in_another_unit_change_no_forecast():
    bars = universe()
    scaled = {
        t: b.assign(**{c: b[c] * 1024 for c in ("open", "high", "low", "close")}) for t, b in bars.items()
    }
    a, b = (
        volatility_walk(x, SMALL, models={RIDGE: PooledRidge(24)}).forecasts[RIDGE] for x in (bars, scaled)
    )
    np.testing.assert_allclose(a, b, atol=1e-9)


# ---- what goes wrong is refused or left out


def test_a_ticker_that_is_listed_late_and_one_with_gaps_get_forecasts_where_they_can():
    bars = universe()
    bars["ADA/USD"] = bars["ADA/USD"].iloc[2300:]  # too young for any row
    bars["SOL/USD"] = bars["SOL/USD"].drop(bars["SOL/USD"].index[1900:1910])
    walk = volatility_walk(bars, SMALL)
    assert walk.forecasts["calendar HAR"]["ADA/USD"].isna().all()
    assert walk.forecasts[RIDGE][["BTC/USD", "ETH/USD", "SOL/USD"]].notna().all(axis=None)
    realised = log_realised_variance(panel(bars), 24)
    assert np.isnan(realised[1880:1909, list(walk.panel.tickers).index("SOL/USD")]).all()  # spans the gap


def test_too_few_bars_are_one_sentence():
    with pytest.raises(TooFewRows, match="pass at least"):
        CalendarHAR(24).fit(None, demo_market(900))
    with pytest.raises(TooFewRows, match="pass at least"):
        PooledRidge(24).fit(None, universe(800))


def test_a_short_history_is_not_fitted_to_noise():
    "Hours overlap: 800 of them hold some 33 independent days, fewer than twice the columns."
    losses = {}
    for penalty in (0.0, CalendarHAR().penalty):
        found = []
        for seed in range(6):
            bars = demo_market(2300, seed=seed)
            fitted = CalendarHAR(24, CALENDAR, penalty).fit(None, bars.iloc[:1550])
            real = log_realised_variance(panel({"": bars}), 24)[1550:, 0]
            found.append(np.nanmean(qlike(real - fitted.predict(None, bars, start=1550).to_numpy())))
        losses[penalty] = np.median(found)
    assert losses[CalendarHAR().penalty] < 0.8 * losses[0.0]


# ---- the certificate refuses what looks ahead through the universe


def test_a_seasonal_profile_of_all_bars_is_refused(monkeypatch):
    bars, known = universe(), {}
    assert volatility_certificate(bars, SMALL).passed
    whole = volatility_run.panel

    def remembered(bars):
        known["all"] = whole(bars)
        return known["all"]

    monkeypatch.setattr(volatility_run, "panel", remembered)
    monkeypatch.setattr(model_volatility, "seasonal_profile", lambda p: seasonal_profile(known["all"]))
    assert not volatility_certificate(bars, SMALL, {RIDGE: PooledRidge(24)}).passed


def test_a_market_mean_of_the_next_hour_is_refused(monkeypatch):
    "Another ticker's future reaches a forecast through the mean of the market."

    def ahead(x):
        return np.vstack([variance_mean(x)[1:], variance_mean(x)[-1:]])

    variance_mean = variance.market_mean
    monkeypatch.setattr(variance, "market_mean", ahead)
    refused = volatility_certificate(universe(), SMALL, {RIDGE: PooledRidge(24)})
    assert not refused.passed
    assert {c["name"] for c in refused.failed} >= {"future", "other ticker"}


# ---- what a test may claim


@pytest.mark.parametrize("days, most", [(60, 0.022), (90, 0.018), (180, 0.018), (365, 0.018)])
def test_a_test_of_daily_losses_rejects_about_as_often_as_it_says(days, most):
    "Daily differences with an autocorrelation of .5, tested at 1%; normal quantiles reject 2 to 4%."
    x = np.random.default_rng(days).normal(size=(100 + days, 2500))
    for t in range(1, len(x)):
        x[t] += 0.5 * x[t - 1]
    index = pd.date_range("2024-01-01", periods=days, freq="D", tz="UTC")
    found = [daily_test(pd.Series(one, index)) for one in x[100:].T]
    rejected, normal = (float(np.mean(r)) for r in ([f.p < 0.01 for f in found], [f.t > 2.33 for f in found]))
    assert 0.004 < rejected < most < normal


def planted(share: float) -> VolatilityResult:
    "A forecast that knows so much of the outcome."
    bars = universe()
    walk = volatility_walk(bars, VolatilityConfig(hours=480, train_hours=1300, retrain_every=480))
    known = walk.realised.fillna(walk.forecasts[RIDGE])
    forecasts = walk.forecasts | {RIDGE: share * known + (1 - share) * walk.forecasts[RIDGE]}
    return VolatilityResult(SMALL, replace(walk, forecasts=forecasts), RIDGE)


def test_an_implausible_r2_is_a_leak_although_no_placebo_shows_it():
    level, sentence = volatility_verdict(planted(0.9))
    assert level == LEAK and "implausible" in sentence
    assert volatility_verdict(planted(0.1))[0] == TOO_SHORT


# ---- one hour: the benchmarks have the level of the outcome


def choppy(seed: int) -> pd.DataFrame:
    "Bars whose ranges are half as wide as their closes say."
    bars = demo_market(3400, seed=seed, ticker="BTC/USD")
    before = bars["close"].shift(1).fillna(bars["open"])
    opened = before * (bars["close"] / before) ** 0.5
    both = pd.concat([opened, bars["close"]], axis=1)
    return bars.assign(open=opened, high=both.max(axis=1), low=both.min(axis=1))


@pytest.mark.parametrize("model", [Trailing(1), GARCH(1)], ids=["trailing", "GARCH"])
def test_a_benchmark_of_an_hour_has_the_level_of_its_outcome(model):
    bars = choppy(4)
    forecast = model.fit(None, bars.iloc[:2600]).predict(None, bars, start=2600)
    realised = log_realised_variance(panel({"": bars}), 1)[2600:, 0]
    assert np.nanmean(np.exp(realised - forecast)) == pytest.approx(1, abs=0.15)
    cut = model.fit(None, bars.iloc[:2600]).predict(None, bars.iloc[:3000], start=2600)
    np.testing.assert_array_equal(forecast.iloc[:400], cut)


# ---- the whole run


def test_a_registration_survives_a_ticker_that_is_missing_at_the_time_of_judging(tmp_path):
    ledger, config = Ledger(tmp_path), replace(SMALL, exchange="simulated", end="2025-01-01")
    asked = volatility_subject(config, (*NAMES, "XRP/USD"))
    preregister(config, "the ridge beats HAR", ledger, tmp_path, asked)
    bars = {t: demo_market(2600, seed=k, ticker=t, end="2025-01-01") for k, t in enumerate(NAMES)}
    found = run_volatility(bars, config, ledger, placebos=0, certify=False).notes["standing"]
    assert "pre-registered" in found.sentence() and "but without XRP/USD" in found.sentence()
    assert "tickers is" not in found.sentence()


def test_every_forecaster_is_a_trial_and_a_second_run_is_a_second_look(tmp_path):
    ledger = Ledger(tmp_path)
    first = run_volatility(universe(), SMALL, ledger, placebos=1, certify=False)
    second = run_volatility(universe(), SMALL, ledger, placebos=1, certify=False)
    trials = ledger.trials_of("VOLATILITY/USD", market="simulated:0")
    assert len(trials) == len(first.walk.forecasts)
    assert "run 2 times" in second.notes["standing"].sentence()
    assert json.dumps(volatility_summary(second), allow_nan=False, default=str)


def test_the_command_forecasts_recorded_candles_and_writes_a_page(client_home, tmp_path, monkeypatch):
    if recorded("BTC/USD") is None:
        pytest.skip("no recorded candles beside the checkout (../shared/data)")
    from cryptolstm.cli.main import app

    monkeypatch.setenv("CRYPTOLSTM_REPORTS", str(tmp_path / "reports"))
    with Loopback({t: recorded(t) for t in NAMES}, now="2025-05-01T00:30Z") as exchange:
        words = [
            "volatility",
            *NAMES,
            "--hours",
            "1440",
            "--set",
            "train_hours=4320",
            "--placebos",
            "2",
            "--report",
        ]
        done = CliRunner().invoke(
            app,
            [*words, "--json", "--exchange", "coinbaseexchange", "--exchange-url", exchange.url],
            catch_exceptions=False,
        )
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["forecast"] == RIDGE and found["certificate"]["passed"]
    assert found["errors"][RIDGE]["QLIKE"] < found["errors"][TRAILING]["QLIKE"]
    assert 0.7 < found["coverage"]["all"]["0.8"] < 0.9
    page = (tmp_path / "reports/volatility/volatility.html").read_text(encoding="utf-8")
    text = BeautifulSoup(page, "html.parser").get_text(" ")
    for heading in SECTIONS:
        assert heading in text
    assert "cryptolstm volatility BTC/USD" in read_manifest(page)["command"]
    assert "SIMULATED" not in text


def test_the_gate_is_the_verdict_and_now_names_what_was_scored(tmp_path, monkeypatch):
    from cryptolstm.cli.main import app

    monkeypatch.setenv("CRYPTOLSTM_HOME", str(tmp_path))
    words = ["volatility", "BTC/USD", "--hours", "240", "--set", "train_hours=3500"]
    words += ["--exchange", "simulated"]
    gated = CliRunner().invoke(app, [*words, "--placebos", "0", "--gate", "--json"])
    assert (json.loads(gated.stdout)["verdict"]["level"], gated.exit_code) == (TOO_SHORT, 6)
    now = CliRunner().invoke(app, [*words, "--now", "--json"])
    found = json.loads(now.stdout)
    assert found["scored"] == "calendar HAR" and "earlier errors of the calendar HAR" in found["intervals"]
    assert found["newest"]["BTC/USD"]["low_80"] < found["newest"]["BTC/USD"]["close"]
    refused = CliRunner().invoke(app, [*words, "--now", "--gate"]).exception
    assert isinstance(refused, InputError) and "--gate is for a test" in str(refused)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no ticker is given"),
        (["BTC"], "not a ticker"),
        (["BTC/USD", "--horizon", "0"], "from 1 to 72"),
        (["BTC/USD", "--set", "retrain=5"], "retrain"),
        (["BTC/USD", "--params", "nowhere"], "nowhere"),
        (["BTC/USD", "--placebos", "-1"], "placebo"),
    ],
)
def test_bad_input_is_one_sentence_and_loads_nothing_heavy(words, said, tmp_path):
    code = (
        "import sys; sys.argv = ['cryptolstm', 'volatility', *sys.argv[1:]]\n"
        "from cryptolstm.cli.main import main\n"
        "try: main()\n"
        "finally: assert not {'keras', 'sklearn', 'arch', 'matplotlib'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2 and said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and done.stdout == ""


# ---- the figures of the documentation, on candles that were recorded

BINANCE = ("AAVE", "ADA", "ALGO", "ATOM", "AVAX", "BTC", "DOT", "ETH", "LINK", "MATIC", "SOL", "UNI", "XTZ")


def binance() -> dict:
    found = {f"{t}/USDT": recorded(f"{t}/USDT", "binance") for t in BINANCE}
    if any(b is None for b in found.values()):
        pytest.skip("no recorded candles (../shared/data/binance)")
    return {t: b.loc[:"2023-06-30 23:00"] for t, b in found.items()}


def walked(bars: dict, horizon: int, seeds=()) -> VolatilityResult:
    "Half-yearly refits from 2022 on, each on everything before it."
    index = panel(bars).index
    hours = len(index) - index.searchsorted(pd.Timestamp("2022-01-01", tz="UTC"))
    config = VolatilityConfig(horizon, hours, 200_000, 4380, seeds)
    return VolatilityResult(config, volatility_walk(bars, config), BLEND if seeds else RIDGE)


def since(result: VolatilityResult, first: str) -> pd.DataFrame:
    walk = result.walk
    return volatility_errors(
        walk.realised.loc[first:],
        {k: f.loc[first:] for k, f in walk.forecasts.items()},
        result.config.horizon,
    )


def frozen(bars: dict, horizon: int) -> pd.DataFrame:
    "Scores on Coinbase of models fitted on Binance up to 2023-06."
    other = {t.replace("USD", "USDT"): recorded(t) for t in NAMES}
    p, past = panel(other), panel(bars)
    realised = p.frame(log_realised_variance(p, horizon))
    models = {
        HARS: CalendarHAR(horizon, PLAIN, 0),
        "calendar HAR": CalendarHAR(horizon),
        RIDGE: PooledRidge(horizon),
    }
    made = {k: m.fit(None, past).predict(None, p) for k, m in models.items()}
    return volatility_errors(realised, made, horizon)


@pytest.mark.slow
def test_the_figures_of_the_documentation_hold_on_recorded_candles(capsys):
    bars = binance()
    day, three, hour = (walked(bars, h) for h in (24, 72, 1))
    blend = walked(bars, 24, (1, 2, 3))
    later, coinbase = since(blend, "2022-07-01"), frozen(bars, 24)
    with capsys.disabled():
        print()
        for name, r in {"24 h": blend, "72 h": three, "1 h": hour}.items():
            print(name, r.errors.round(4).to_string(), sep="\n")
        print("24 h since 2022-07", later.round(4).to_string(), sep="\n")
        print("Coinbase, frozen, 24 h", coinbase.round(4).to_string(), sep="\n")
        print("against HAR, log MSE", day.gains(HARS, "log MSE").round(4).to_string(), sep="\n")
        print("network against ridge", blend.gains(RIDGE).round(4).to_string(), sep="\n")
        print(day.coverage.round(3).to_string())
    e, gain = day.errors, day.gains(HARS, "log MSE").loc[RIDGE]
    assert abs(e.loc[RIDGE, "QLIKE"] - 0.303) < 0.003 and e.loc[RIDGE, "R2"] >= 0.535
    assert blend.errors.loc[BLEND, "QLIKE"] <= 0.304 and later.loc[BLEND, "QLIKE"] <= 0.350
    assert gain["gain"] >= 0.12 and gain["below_1"] >= 11
    assert three.errors.loc[RIDGE, "QLIKE"] <= 0.238 and hour.errors.loc[RIDGE, "QLIKE"] <= 0.465
    assert coinbase.loc[RIDGE, "QLIKE"] <= 0.345
    assert e.loc[RIDGE, "targeting"] <= 0.355
    assert (
        abs(day.coverage.loc["all", 0.8] - 0.8) < 0.01 and abs(day.coverage.loc["all", 0.95] - 0.95) < 0.01
    )
