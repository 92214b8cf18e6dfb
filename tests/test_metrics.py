"""Figures: each against an independent computation, and limits of what they claim."""
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from cryptolstm.core.errors import InputError
from cryptolstm.core.bars import regular_grid
from cryptolstm.stats.performance import (daily_returns, excursions, figures, hourly_returns, max_drawdown,
                                          monthly_table, sharpe, sharpe_se, win_rate)
from cryptolstm.execution.simulate import simulate
from cryptolstm.research.baselines import performance

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "coinbase" / "ETH_USD_1h.parquet"


def walk(n, seed=0, sigma=0.01, drift=0.0, start="2025-01-01"):
    g = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(drift + sigma * g.standard_normal(n)))
    open_ = np.r_[100, close[:-1]]
    rows = {
        "open": open_,
        "high": np.maximum(open_, close) * 1.002,
        "low": np.minimum(open_, close) / 1.002,
        "close": close,
        "volume": 1.0,
    }
    return pd.DataFrame(rows, pd.date_range(start, periods=n, freq="h", tz="UTC"))


def wishes(n, seed=0, hold=6):
    return np.repeat(np.random.default_rng(seed).integers(-1, 2, n // hold + 1), hold)[:n]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 400), st.integers(0, 2**31), st.sampled_from([0.001, 0.02, 0.1]))
def test_figures_agree_with_a_second_computation(n, seed, sigma):
    bars = walk(n, seed, sigma)
    r = simulate(bars, wishes(n, seed), stop_atr=2.0, slippage=0.0002)
    f, money = figures(r), [r["initial_balance"], *r["equity"]]
    back = [b / a - 1 if a > 0 else 0.0 for a, b in zip(money[:-1], money[1:], strict=True)]
    assert f["total_return"] == pytest.approx(np.prod([1 + x for x in back]) - 1, abs=1e-9)
    assert f["max_drawdown"] == pytest.approx(
        min(0, min(money[j] / max(money[:j]) - 1 for j in range(1, len(money)))), abs=1e-12
    )
    assert f["max_drawdown_intrabar"] <= f["max_drawdown"] + 1e-12
    if len(r["trades"]):
        mean = sum(back) / len(back)
        spread = (sum((x - mean) ** 2 for x in back) / (len(back) - 1)) ** 0.5
        assert f["sharpe_ratio"] == pytest.approx(mean / spread * 8760**0.5, rel=1e-9, abs=1e-9)
        assert f["volatility"] == pytest.approx(spread * 8760**0.5)
    finished = [
        p for p, why in zip(r["trades"]["pnl"], r["trades"]["exit_reason"], strict=True) if why != "open"
    ]
    assert f["win_rate"] == (sum(p > 0 for p in finished) / len(finished) if finished else None)


def test_daily_returns_start_from_the_initial_balance_and_compound_to_the_total():
    bars = walk(500, 3, start="2025-01-01 17:00")
    r = simulate(bars, wishes(500, 3))
    daily = daily_returns(r["equity"], r["initial_balance"])
    assert (1 + daily).prod() == pytest.approx(r["final_balance"] / r["initial_balance"])
    assert len(daily) == len(set(bars.index.date)) and daily.index.tz is None
    # 17:00 … 23:00 is the first UTC day
    assert daily.iloc[0] == pytest.approx(r["equity"].iloc[6] / r["initial_balance"] - 1)


def test_months_compound_to_years_and_years_to_the_total():
    bars = walk(24 * 150, 1, 0.005, start="2024-11-10")
    r = simulate(bars, wishes(len(bars), 1, 48))
    table = monthly_table(r["equity"], r["initial_balance"])
    assert table.index.tolist() == [2024, 2025] and table[list(range(1, 13))].notna().sum().sum() == 6
    assert (1 + table["year"]).prod() == pytest.approx(r["final_balance"] / r["initial_balance"])
    assert (1 + table[list(range(1, 13))].fillna(0)).prod(axis=1).tolist() == pytest.approx(
        (1 + table["year"]).tolist()
    )


def test_the_first_bar_counts():
    equity = pd.Series([50.0, 50.0], pd.date_range("2025-01-01", periods=2, freq="h", tz="UTC"))
    assert hourly_returns(equity, 100).tolist() == [-0.5, 0] and daily_returns(equity, 100).tolist() == [-0.5]
    assert max_drawdown(equity, 100)["drawdown"] == -0.5


def test_a_flat_bar_counts():
    bars = walk(240, 5)
    always = figures(simulate(bars, np.ones(240), fee=0))
    rarely = figures(simulate(bars, np.r_[np.ones(24), np.zeros(216)], fee=0))
    assert rarely["exposure"] == 0.1 and rarely["volatility"] < always["volatility"] / 2


def test_undefined_is_none_and_not_zero():
    f = figures(simulate(walk(100), np.zeros(100)))
    assert all(
        f[k] is None
        for k in (
            "sharpe_ratio",
            "sharpe_se",
            "sharpe_daily",
            "sortino",
            "win_rate",
            "win_rate_interval",
            "profit_factor",
        )
    )
    assert f["average_trade"] is None and f["num_trades"] == 0
    one = figures(simulate(walk(100), np.ones(100)))
    assert (
        one["num_trades"] == 1
        and one["open_trades"] == 1
        and one["win_rate"] is None
        and one["sharpe_ratio"] is not None
    )


def test_nothing_is_annualised_from_under_ninety_days_without_a_warning():
    short, long = (figures(simulate(walk(n), wishes(n))) for n in (90 * 24 - 1, 90 * 24))
    assert short["annual_return"] is None and "too few to annualise" in short["warning"]
    assert long["warning"] is None and long["annual_return"] == pytest.approx(
        (1 + long["total_return"]) ** (365 / 90) - 1
    )


def test_the_standard_error_of_sharpe_is_what_many_runs_scatter():
    g = np.random.default_rng(0)
    runs = [pd.Series(0.001 + 0.01 * g.standard_t(6, 400)) for _ in range(600)]
    assert np.mean([sharpe_se(r, 1) for r in runs]) == pytest.approx(
        np.std([sharpe(r, 1) for r in runs]), rel=0.1
    )
    # rare large losses, and a mean that is not negligible
    skewed = [pd.Series(0.1 + np.where(g.random(500) < 0.1, -1.5, 0.3)) for _ in range(2000)]
    assert np.mean([sharpe_se(r, 1) for r in skewed]) == pytest.approx(
        np.std([sharpe(r, 1) for r in skewed]), rel=0.1
    )


def test_a_month_of_hours_says_little_about_sharpe():
    """Standard errors of the annual Sharpe ratio of normal returns with zero mean: 3.5 after thirty days, 1
    after a year."""
    for n, error in {129: 8.2, 720: 3.49, 1440: 2.47, 2160: 2.01, 8760: 1.0, 17520: 0.71}.items():
        assert sharpe_se(pd.Series(norm.ppf((np.arange(n) + 0.5) / n))) == pytest.approx(error, rel=0.02)
    assert sharpe_se(pd.Series(np.zeros(100))) is None


def test_a_win_is_counted_after_its_fees():
    bars = pd.DataFrame({c: [100.0, 100, 100.1, 100.1] for c in ("open", "high", "low", "close")},
                        pd.date_range("2025-01-01", periods=4, freq="h", tz="UTC")).assign(volume=1.0)
    rates = [figures(simulate(bars, [1, 0, 0, 0], fee=fee))["win_rate"] for fee in (0, 0.001)]
    assert rates == [1.0, 0.0]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_wilson_interval_is_the_formula(case):
    wins, n = case
    rate, (low, high) = win_rate(wins, n)
    z = 1.959963984540054
    centre = (rate + z * z / 2 / n) / (1 + z * z / n)
    half = z * np.sqrt(rate * (1 - rate) / n + z * z / 4 / n / n) / (1 + z * z / n)
    assert (low, high) == pytest.approx(
        (centre - half, centre + half), abs=1e-9
    ) and low - 1e-12 <= rate <= high + 1e-12


def test_buy_and_hold_pays_the_same_costs_on_the_same_bars():
    bars = walk(200, 7)
    f = performance(
        simulate(bars, np.zeros(200), initial_balance=5000, fee=0.002, slippage=0.001, stop_atr=2.0), bars
    )["buy_and_hold"]
    assert f["final_balance"] == pytest.approx(
        5000 / (bars["open"].iloc[1] * 1.001 * 1.002) * bars["close"].iloc[-1]
    )
    always = performance(simulate(bars, np.ones(200), initial_balance=5000), bars)
    assert always["excess_return"] == 0 and always["turnover"] == always["buy_and_hold"]["turnover"]
    with pytest.raises(InputError, match="not the bars of the result"):
        performance(simulate(bars, np.zeros(200)), bars.iloc[1:])


def test_a_ruined_run_has_figures_without_nan():
    bars = pd.DataFrame({c: [100.0, 100, 300, 300, 300] for c in ("open", "high", "low", "close")},
                        pd.date_range("2025-01-01", periods=5, freq="h", tz="UTC")).assign(volume=1.0)
    f = performance(simulate(bars, [-1] * 5), bars)
    assert f["total_return"] == -1 and f["max_drawdown"] == -1 and f["exits"] == {"liquidation": 1}
    assert not any(isinstance(v, float) and np.isnan(v) for v in f.values())


def test_the_intrabar_drawdown_sees_what_the_close_hides():
    bars = walk(50, 1, 0.001)
    bars.loc[bars.index[20], "low"] *= 0.8
    f = figures(simulate(bars, np.ones(50), fee=0))
    assert (
        f["max_drawdown"] > -0.05
        and f["max_drawdown_intrabar"] < -0.19
        and f["max_drawdown_intrabar_trough"] == bars.index[20]
    )


@pytest.mark.skipif(not REAL.exists(), reason="no real candles beside the repository")
def test_buy_and_hold_of_a_real_year():
    bars = pd.read_parquet(REAL)
    f = performance(simulate(bars, np.zeros(len(bars)), fee=0), bars)["buy_and_hold"]
    assert f["total_return"] == pytest.approx(bars["close"].iloc[-1] / bars["open"].iloc[1] - 1)
    assert (
        f["warning"] is None
        and 0.3 < f["volatility"] < 1.5
        and f["max_drawdown_intrabar"] <= f["max_drawdown"] < -0.3
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 150), st.integers(0, 2**31), st.sampled_from([0.003, 0.05]))
def test_excursions_are_what_a_loop_over_the_bars_finds(n, seed, sigma):
    bars = walk(n, seed, sigma)
    r = simulate(bars, wishes(n, seed), stop_percent=0.02, take_profit_percent=0.03, slippage=0.001)
    found = excursions(r, bars)
    for t, mae, mfe in zip(r["trades"].itertuples(), found["mae"], found["mfe"], strict=True):
        whole = (
            bars.loc[t.entry_time :]
            if t.exit_reason == "open"
            else bars.loc[t.entry_time : t.exit_time].iloc[:-1]
        )
        seen = [
            t.side * (x / t.entry_price - 1)
            for x in [t.entry_price, t.exit_price, *whole["low"], *whole["high"]]
        ]
        assert (mae, mfe) == pytest.approx((min(seen), max(seen)), abs=1e-12) and mae <= 0 <= mfe
    with pytest.raises(InputError, match="not the bars of the result"): excursions(r, bars.iloc[1:])


def test_at_the_break_even_fee_nothing_is_left_and_the_cost_share_is_what_costs_took():
    bars = walk(24 * 100, 2, 0.002, drift=0.0004)
    signal = (np.arange(len(bars)) % 48 < 40).astype(int)
    f = figures(simulate(bars, signal, fee=0.0001, sizing="fraction", size=0.01))
    assert f["total_return"] > 0 and 0 < f["cost_share"] < 1
    again = figures(simulate(bars, signal, fee=f["break_even_fee"], sizing="fraction", size=0.01))
    assert again["total_return"] == pytest.approx(0, abs=f["total_return"] * 0.02)
    gross = f["final_balance"] - f["initial_balance"] + f["total_fees"]
    assert f["cost_share"] == pytest.approx(f["total_fees"] / gross)
    assert f["calmar"] == pytest.approx(f["annual_return"] / -f["max_drawdown"])


def test_counts_reach_the_figures_and_what_is_undefined_is_none():
    idle = figures(simulate(walk(100 * 24), np.zeros(2400)))
    assert idle["counts"]["both_touched"] == 0 and all(
        idle[k] is None for k in ("calmar", "break_even_fee", "cost_share", "sharpe_daily_se")
    )
    # too short for annual figures
    assert figures(simulate(walk(300), wishes(300)))["calmar"] is None
    assert performance(simulate(walk(300), np.zeros(300)), walk(300))["average_mae"] is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(30, 400),
       st.sampled_from([0.003, 0.05]), st.sampled_from([0, 3, 99]))
def test_hours_that_are_absent_and_hours_marked_as_gaps_have_the_same_figures(seed, n, sigma, max_gap):
    g, full = np.random.default_rng(seed), walk(n, seed, sigma)
    absent = full[(g.random(n) < 0.6) | np.isin(np.arange(n), [0, 1, n - 1])]
    marked = regular_grid(absent, max_gap)
    signal = pd.Series(wishes(n, seed), full.index)
    a, b = (
        performance(simulate(f, signal.loc[f.index], stop_atr=2.0, slippage=0.001), f)
        for f in (absent, marked)
    )
    assert a["final_balance"] == b["final_balance"] and a.keys() == b.keys()
    for key in a.keys() - {"source"}: assert a[key] == b[key], key


def test_half_the_hours_missing_does_not_make_a_year_shorter():
    full = walk(24 * 200, 4, 0.003)
    half = full[(np.arange(len(full)) % 2 == 0) | np.isin(np.arange(len(full)), [1, len(full) - 1])]
    whole = figures(simulate(full, np.ones(len(full)), fee=0))
    holed = figures(simulate(half, np.ones(len(half)), fee=0))
    assert holed["days"] == whole["days"] == 200 and holed["bars"] == whole["bars"]
    for key in ("annual_return", "calmar", "exposure"):
        assert holed[key] == pytest.approx(whole[key], rel=0.15)
    assert holed["volatility"] == pytest.approx(whole["volatility"], rel=0.15) and holed[
        "sharpe_ratio"
    ] == pytest.approx(whole["sharpe_ratio"], rel=0.15)


def test_a_day_has_twenty_four_hours_and_a_year_365_days():
    bars = walk(24 * 100, 6)
    result = simulate(bars, wishes(len(bars), 6))
    f, equity = figures(result), result["equity"]
    daily = equity.iloc[23::24].to_numpy() / np.r_[100_000, equity.iloc[23:-1:24].to_numpy()] - 1
    assert f["sharpe_daily"] == pytest.approx(daily.mean() / daily.std(ddof=1) * 365**0.5, rel=1e-9)
    assert f["sharpe_daily_se"] == pytest.approx(sharpe_se(pd.Series(daily), 365), rel=1e-9)
