"""Intervals have their coverage, cells are counted correctly, and learners see nothing of the stretch they
forecast."""
import numpy as np
import pandas as pd
import pytest
from arch.bootstrap import StationaryBootstrap
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptolstm.core.config import RunConfig
from cryptolstm.data.demo import demo_market, planted_market, planted_state
from cryptolstm.features.indicators import INPUTS, features
from cryptolstm.features.targets import target
from cryptolstm.stats.skill import equal_parts, hit_rate, pesaran_timmermann
from cryptolstm.stats.learners import LEARNERS, fold_forecasts
from cryptolstm.stats.performance import hourly_returns, max_drawdown, sharpe
from cryptolstm.stats.overfit import adjust, block_length
from cryptolstm.stats.bootstrap import bootstrap, skill_by, skill_cells, three_figures
from cryptolstm.execution.simulate import simulate


def run_of(returns: np.ndarray) -> dict:
    "A result with exactly these returns, each of an hour's trade."
    index = pd.date_range("2025-01-01", periods=len(returns), freq="h", tz="UTC")
    equity = pd.Series(100 * np.cumprod(1 + returns), index)
    trades = pd.DataFrame({"pnl": np.diff(equity, prepend=100.0), "exit_reason": "signal"})[returns != 0]
    return {"equity": equity, "initial_balance": 100.0, "trades": trades}


def test_the_interval_of_the_drawdown_is_archs_on_the_runs_own_returns():
    returns = .005 * np.random.default_rng(0).standard_t(4, 500)
    result = run_of(returns)
    r = hourly_returns(result["equity"], 100.0).to_numpy()
    table = bootstrap(result, reps=100, seed=3)
    lives = StationaryBootstrap(block_length(r), r, seed=3).apply(three_figures, 100)
    np.testing.assert_allclose(
        table.loc["max_drawdown", ["low", "high"]].astype(float),
        np.quantile(lives[:, 2], [0.025, 0.975]),
        rtol=1e-12,
    )
    assert table.attrs["block"] == block_length(r)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), n=st.integers(30, 400), drift=st.floats(-.01, .01))
def test_what_is_seen_are_the_figures_of_the_report(seed, n, drift):
    result = run_of(.01 * np.random.default_rng(seed).standard_normal(n) + drift)
    seen, equity = bootstrap(result, reps=20)["seen"], result["equity"]
    own = [
        sharpe(hourly_returns(equity, 100.0)),
        equity.iloc[-1] / 100 - 1,
        max_drawdown(equity, 100.0)["drawdown"],
    ]
    assert seen.tolist() == pytest.approx(own, rel=1e-9, abs=1e-12)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    truth, inside = .02 * 8760**.5, 0
    for seed in range(60):
        low, high = bootstrap(
            run_of(0.005 * (np.random.default_rng(seed).standard_normal(500) + 0.02)), reps=200, level=0.9
        ).loc["sharpe_ratio", ["low", "high"]]
        inside += low <= truth <= high
    assert 46 <= inside <= 60   # 54 expected


def test_a_cell_of_one_hour_of_day_uses_every_day():
    "At a horizon of a day its rows do not overlap, however few rows of other hours lie between."
    index = pd.date_range("2025-01-01", periods=24 * 60, freq="h", tz="UTC")
    y = pd.Series(np.random.default_rng(0).standard_normal(len(index)), index)
    hours = skill_by(y, -y, pd.Series(index.hour, index), horizon=24)
    assert (hours["n"] == 60).all() and hours["p"].notna().all()
    months = skill_by(y, -y, pd.Series(index.month, index), horizon=24)
    assert months["n"].tolist() == [31, 28, 1]


def test_nothing_traded_has_no_interval():
    table = bootstrap(run_of(np.zeros(100)))
    assert table["low"].isna().all() and table.loc["total_return", "seen"] == 0


# ---------------------------------------------------------------- cells
def test_cells_partition_the_forecasts_and_are_corrected_together():
    bars = planted_market(1500, seed=4)
    y, f = np.log(bars["close"]).diff().shift(-1), .001 * planted_state(bars)
    tables = skill_cells(y, f, y.rolling(24).std().shift(1))
    assert (
        len(tables["hour of day, UTC"]) == 24
        and len(tables["volatility"]) == 3
        and len(tables["size of the forecast, tenths"]) == 10
    )
    whole = hit_rate(y, f)
    assert tables["hour of day, UTC"]["n"].sum() == whole["n"] == tables["month"]["n"].sum()
    p = pd.concat([t["p"] for t in tables.values()])
    np.testing.assert_allclose(
        pd.concat([t["p_holm"] for t in tables.values()]), adjust(p.reset_index(drop=True))
    )
    third = y.rolling(24).std().shift(1)
    calm = third <= third[f.notna() & y.notna()].quantile(1 / 3)
    row = tables["volatility"].iloc[0]
    assert (
        row["p"] == pytest.approx(pesaran_timmermann(y[calm], f[calm]).p, rel=0.2)
        and abs(row["n"] - calm.sum()) < 30
    )


@pytest.mark.slow
def test_false_alarms_after_the_correction_are_rare():
    alarms = 0
    for seed in range(12):
        bars = demo_market(1500, seed=seed)
        y = np.log(bars["close"]).diff().shift(-1)
        tables = skill_cells(y, .001 * planted_state(bars), y.rolling(24).std().shift(1))
        alarms += pd.concat(tables)["p_holm"].min() < .05
    assert alarms <= 3   # 99 % bound of a binomial (12, 0.05)


@settings(deadline=None, max_examples=50)
@given(x=st.lists(st.one_of(st.floats(-5, 5), st.just(float("nan"))), min_size=1, max_size=60),
       parts=st.integers(1, 10))
def test_parts_are_equal_and_ordered(x, parts):
    s = pd.Series(x)
    cell = equal_parts(s, parts)
    known = pd.DataFrame({"x": s, "cell": cell}).dropna()
    assert cell.isna().equals(s.isna()) and known["cell"].between(1, parts).all()
    assert known.sort_values(["x", "cell"])["cell"].is_monotonic_increasing
    if len(known): assert np.ptp(known["cell"].value_counts().reindex(range(1, parts + 1), fill_value=0)) <= 1


def test_an_empty_cell_table_is_a_table():
    empty = pd.Series(dtype=float, index=pd.DatetimeIndex([], tz="UTC"))
    assert skill_by(empty, empty, empty).empty


# ---------------------------------------------------------------- learners
@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("horizon", [1, 24])
def test_a_learner_sees_nothing_from_the_stretch_on(name, horizon):
    """Changing the bars of a stretch and after it leaves its first forecast unchanged, and no label that was
    unknown when the stretch began is used."""
    bars = demo_market(1200, seed=8)
    starts = bars.index[[800, 1000]]
    def forecasts(b):
        table = features(b)
        return fold_forecasts(
            LEARNERS[name], table[INPUTS], target(b, table["sigma"], horizon), starts, 600, horizon
        )
    full = forecasts(bars)
    for cut in (800, 1000, 1100):
        other = bars.copy()
        other.iloc[cut + 1:, :4] *= 3.0
        np.testing.assert_array_equal(forecasts(other).loc[:bars.index[cut]], full.loc[:bars.index[cut]])
        past = fold_forecasts(
            LEARNERS[name], *_cut(bars, cut, horizon), starts[starts <= bars.index[cut]], 600, horizon
        )
        np.testing.assert_allclose(past, full.loc[:bars.index[cut]], rtol=1e-9)
    assert full.notna().all()


def _cut(bars, cut, horizon):
    past = bars.iloc[:cut + 1]
    table = features(past)
    return table[INPUTS], target(past, table["sigma"], horizon)


def test_the_last_rows_before_a_stretch_are_left_out():
    """Their labels lie inside the stretch and would reveal it: here only those labels contain the planted
    signal."""
    n, horizon, start = 400, 5, 300
    x = pd.DataFrame(
        {"x": np.random.default_rng(0).standard_normal(n)},
        index=pd.date_range("2025-01-01", periods=n, freq="h", tz="UTC"),
    )
    y = pd.Series(0.0, x.index)
    y.iloc[start - horizon:start] = 1e6 * x["x"].iloc[start - horizon:start]
    assert fold_forecasts(LEARNERS["ridge"], x, y, [x.index[start]], 200, horizon).abs().max() == 0
    y.iloc[start - horizon - 1] = 1e6
    assert fold_forecasts(LEARNERS["ridge"], x, y, [x.index[start]], 200, horizon).abs().max() > 1


def test_a_strategy_that_is_bootstrapped_pays_its_costs():
    bars = demo_market(400, seed=1)
    flips = pd.Series(np.resize([1, -1], 400), bars.index)
    paid = bootstrap(simulate(bars, flips, fee=.001), reps=50)
    assert paid.loc["total_return", "high"] < -.2 and RunConfig().fee == .001
