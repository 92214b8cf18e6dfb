"""A sweep is many backtests: every point equals `decide` and `simulate` run for it alone."""
import itertools
import json
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_execution import random_bars
from typer.testing import CliRunner

from cryptolstm.core.errors import InputError
from cryptolstm.core.bars import provenance, regular_grid, stamp
from cryptolstm.core.config import RunConfig
from cryptolstm.core.grid import AXES, axis_values, check_grid, parse_grid
from cryptolstm.data.demo import demo_market
from cryptolstm.features.indicators import features
from cryptolstm.stats.performance import figures, hourly_returns
from cryptolstm.stats.overfit import ENOUGH_TRADES, deflated_sharpe, pbo, probabilistic_sharpe, sharpe_sample
from cryptolstm.execution.simulate import simulate
from cryptolstm.execution.sweep import SCORES, best_point, surface_summary, sweep
from cryptolstm.proof.trials import Ledger, Standing
from cryptolstm.strategy.decide import decide
from cryptolstm.research.replay import trade
from cryptolstm.research.sweeps import judge_surface, point_runs, surface_trials, sweep_forecasts, sweep_run
from cryptolstm.report.plots import SIMULATED
from cryptolstm.report.surface_page import surface_plot
from cryptolstm.cli.main import app


def assert_point(row, result):
    own = figures(result)
    for name in SCORES:
        expected = np.nan if own[name] is None else own[name]
        assert row[name] == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True), name


@pytest.fixture(scope="module")
def forecasts():
    "A market, its features, and a loud forecast of the last 900 bars, some of them missing."
    bars = demo_market(1700, seed=5)
    table = features(bars)
    prediction = pd.Series(np.random.default_rng(0).standard_normal(900), bars.index[-900:])
    prediction.iloc[[3, 50]] = np.nan
    return bars.iloc[-900:], table, prediction


@pytest.mark.parametrize("change", [{}, {"short_volume": "above", "horizon": 3},
                                    {"exit": "opposite", "min_hold": 4, "stop_atr": None},
                                    {"sizing": "volatility", "size": 0.3,
                                     "slippage_range": 0.02, "borrow_rate": 0.001}])
def test_every_point_equals_decide_and_simulate_for_it_alone(forecasts, change):
    bars, table, prediction = forecasts
    run, known = replace(RunConfig(), **change), table.loc[prediction.index]
    grid = {
        "threshold_scale": [0.0, 0.3, 1.0],
        "take_profit_atr": [1.0, 4.0],
        "trailing_atr": [2.0],
        "max_hold": [8, 48],
    }
    points, traded = sweep_forecasts(bars, prediction, table, run, grid), 0
    assert len(points) == 12
    for (_, row), values in zip(points.iterrows(), itertools.product(*grid.values()), strict=True):
        own = replace(run, **dict(zip(grid, values, strict=True)))
        result = trade(
            bars, decide(prediction, table, own)["signal"], own, atr=known["atr"], sigma=known["sigma"]
        )
        assert_point(row, result)
        traded += len(result["trades"])
    assert traded > 50


def test_a_forecast_exactly_at_the_threshold_is_not_beyond_it(forecasts):
    bars, table, prediction = forecasts
    move = np.full(900, 2.0)
    trades = sweep(
        bars, np.ones(900), {"threshold_scale": [0.5, 1.0, 1.5]}, move=move, threshold=np.full(900, 2.0)
    )["num_trades"]
    assert trades.tolist() == [1, 0, 0]


def test_every_axis_has_an_effect(forecasts):
    bars, _, _ = forecasts
    bars = bars.assign(volume=np.where(np.arange(900) % 2, 10.0, 1e6))
    signal = np.repeat(np.random.default_rng(2).integers(-1, 2, 90), 10)
    two = {
        "fee": [0, 0.01],
        "slippage": [0, 0.01],
        "slippage_range": [0, 0.3],
        "stop_atr": [1, 3],
        "stop_percent": [0.005, 0.05],
        "take_profit_atr": [1, 3],
        "take_profit_percent": [0.005, 0.02],
        "trailing_atr": [1, 3],
        "min_hold": [0, 20],
        "max_hold": [2, 9],
        "borrow_rate": [0, 0.1],
        "lot": [0, 0.7],
        "min_notional": [0, 99_990],
        "maker_fee": [0, 0.05],
        "max_volume_share": [0.01, 1],
        "threshold_scale": [0, 1],
        "exit": ["neutral", "opposite"],
        "sizing": ["all_in", "volatility"],
        "size": [0.2, 0.9],
        "max_leverage": [1, 3],
    }
    more_of = {
        "maker_fee": {"take_profit_atr": 1.0},
        "size": {"sizing": "fraction"},
        "max_leverage": {"sizing": "volatility", "size": 5.0},
    }
    assert set(two) == set(AXES)
    for axis, values in two.items():
        more = (
            {"move": np.arange(900) % 3 / 2, "threshold": np.ones(900)} if axis == "threshold_scale" else {}
        )
        atr = np.full(900, bars["close"].iloc[0] * 0.01)
        more |= more_of.get(axis, {})
        returns = sweep(bars, signal, {axis: values}, atr=atr, **more)["total_return"]
        assert returns[0] != returns[1], axis
        if axis != "threshold_scale":
            assert returns.tolist() == pytest.approx(
                [
                    figures(simulate(bars, signal, atr=atr, **more, **{axis: v}))["total_return"]
                    for v in values
                ]
            )


@pytest.mark.parametrize("grid", [
    {"sizing": ["fraction", "volatility"], "size": [0.2, 0.7, 1.0], "max_leverage": [1.0, 2.5],
     "exit": ["neutral", "opposite"]},
    {"sizing": ["all_in", "fraction", "volatility"], "exit": ["opposite"], "stop_atr": [None, 1.0],
     "min_hold": [0, 6]},
    {"size": [0.1, 2.0], "trailing_atr": [None, 1.0], "take_profit_atr": [1.0], "maker_fee": [None, 0.0],
     "max_volume_share": [None, 0.1]}])
@pytest.mark.parametrize("known", [True, False])
def test_every_point_equals_simulate_for_it_alone_bit_for_bit(forecasts, grid, known):
    bars, table, prediction = forecasts
    signal = np.repeat(np.random.default_rng(4).integers(-1, 2, 90), 10)
    base = dict(
        slippage=0.0002,
        **({} if "sizing" in grid else {"sizing": "fraction", "max_leverage": 2.0}),
        **(
            {"sigma": table["sigma"].reindex(bars.index), "atr": table["atr"].reindex(bars.index)}
            if known
            else {}
        ),
    )
    points, returns = sweep(bars, signal, grid, returns=True, **base)
    for i, values in enumerate(itertools.product(*grid.values())):
        own = simulate(bars, signal, **{**base, **dict(zip(grid, values, strict=True))})
        before = np.r_[100_000.0, own["equity"].to_numpy()[:-1]]
        assert (
            points["total_return"][i] == own["final_balance"] / 100_000.0 - 1
            and points["num_trades"][i] == len(own["trades"]) > 10
        )
        assert returns[i].tolist() == (own["equity"].to_numpy() / before - 1).tolist()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(20, 120), st.sampled_from([0.003, 0.05, 0.15]), st.booleans())
def test_scores_are_the_figures_also_over_holes_and_ruin(seed, n, sigma, holes):
    bars, g = random_bars(n, seed, sigma), np.random.default_rng(seed)
    if holes:
        bars = bars.drop(bars.index[g.choice(np.arange(2, n), 5, replace=False)])
        if seed % 2: bars = regular_grid(bars, 0)
    signal = np.repeat(g.integers(-1, 2, len(bars)), 4)[:len(bars)]
    points, returns = sweep(
        bars, signal, {"stop_atr": [0.5, 3.0], "fee": [0, 0.01]}, returns=True, slippage=0.001
    )
    for i, (_, row) in enumerate(points.iterrows()):
        result = simulate(bars, signal, stop_atr=row["stop_atr"], fee=row["fee"], slippage=0.001)
        assert_point(row, result)
        np.testing.assert_allclose(returns[i], hourly_returns(result["equity"], 100_000), atol=1e-12)


def test_the_order_of_points_and_repeats_change_nothing(forecasts):
    bars, _, _ = forecasts
    signal = np.repeat(np.random.default_rng(3).integers(-1, 2, 90), 10)
    values = np.linspace(0.5, 5, 40)
    up, down = sweep(bars, signal, {"stop_atr": values}), sweep(bars, signal, {"stop_atr": values[::-1]})
    pd.testing.assert_frame_equal(up, down.iloc[::-1].reset_index(drop=True), check_exact=True)


def test_a_walk_forward_is_swept_without_another_training():
    network = {
        "units": [4],
        "dropout": [0],
        "recurrent_dropout": [0],
        "dense": [4],
        "epochs": 1,
        "refit_epochs": 1,
    }
    run = RunConfig(
        hours=96, train_hours=300, retrain_every=96, lookback=6, exchange="simulated", network=network
    )
    bars = demo_market(1300, seed=1)
    found = sweep_run(bars, run, {"threshold_scale": [0.0, 0.01], "stop_atr": [1.0, 2.0, 3.0]})
    assert (
        len(found["table"]) == 6 == found["returns"].shape[1]
        and len(found["tested"]) == 96
        and found["summary"]["points"] == 6
    )
    held = (
        trade(found["tested"], pd.Series(1, found["tested"].index), run)["final_balance"]
        / run.initial_balance
        - 1
    )
    assert found["summary"]["hold_return"] == pytest.approx(held)


def test_the_summary_speaks_of_the_whole_surface():
    table = pd.DataFrame(
        {
            "total_return": [-0.1, 0.0, 0.3, 0.1],
            "num_trades": [5, 0, 4, 3],
            "sharpe_ratio": [-1, np.nan, 2, 1.0],
        }
    )
    s = surface_summary(table, 0.05)
    assert (
        s["best"]["total_return"],
        s["median_return"],
        s["beat_hold"],
        s["profitable"],
        s["without_a_trade"],
    ) == (0.3, 0.05, 0.5, 0.5, 0.25)
    assert (
        surface_summary(table.iloc[[1]])["best"]["sharpe_ratio"] is None
        and surface_summary(table)["beat_hold"] is None
    )


def test_grids_are_read_as_they_are_written():
    assert axis_values("stop_atr", "1:4:7") == [1, 1.5, 2, 2.5, 3, 3.5, 4] and axis_values(
        "fee", "0.001"
    ) == [0.001]
    assert parse_grid(["max_hold=4:12:3", "lot=0, 0.5"]) == {"max_hold": [4, 8, 12], "lot": [0, 0.5]}


# -- from the command line
# --------------------------------------------------------------------------------------------------

TINY = {
    "units": "[4]",
    "dropout": "[0]",
    "recurrent_dropout": "[0]",
    "dense": "[4]",
    "epochs": 1,
    "refit_epochs": 1,
}
SET = {
    "train_hours": 400,
    "retrain_every": 1500,
    "lookback": 6,
    "threshold_scale": 0,
    "short_volume": "above",
    **{f"network.{k}": v for k, v in TINY.items()},
}
SMOKE = [
    "backtest",
    "--exchange",
    "simulated",
    "--hours",
    "1500",
    *(x for k, v in SET.items() for x in ("--set", f"{k}={v}")),
]


def cli(*more): return CliRunner().invoke(app, [*SMOKE, *map(str, more)], catch_exceptions=False)


def test_a_grid_on_the_command_line_is_the_surface_of_one_run(client_home):
    done = cli("--grid", "threshold_scale=0:0.2:3", "--grid", "stop_atr=1,3", "--json")
    found = json.loads(done.stdout)
    assert (
        len(found["points"]) == 6 == found["surface"]["points"]
        and found["data"]["simulated"]
        and found["grid"]["stop_atr"] == [1, 3]
    )
    assert found["points"][0]["num_trades"] > 0 and found["surface"]["best"]["total_return"] == pytest.approx(
        max(p["total_return"] for p in found["points"])
    )
    # the same point, run alone
    one = json.loads(cli("--set", "stop_atr=3", "--json").stdout)
    assert (
        one["total_return"] == pytest.approx(found["points"][1]["total_return"])
        and one["num_trades"] == found["points"][1]["num_trades"]
    )
    assert one["baseline_returns"]["buy & hold"] == pytest.approx(found["surface"]["hold_return"])


def test_every_point_of_a_grid_is_a_trial_and_is_judged_as_one_of_many(client_home, tmp_path):
    grid = ["--grid", "exit=neutral,opposite", "--grid", "stop_atr=1,3"]
    found = json.loads(cli(*grid, "--json", "--heatmap", tmp_path / "surface.png").stdout)
    search, book = found["search"], Ledger(client_home).trials_of(found["ticker"], market="simulated:0")
    assert (
        len(book) == 4 == search["trials"]
        and search["reruns"] == 0
        and search["blocks"] == 16
        and search["splits"] == 12_870
    )
    assert (
        0 <= search["pbo"] <= 1
        and (search["deflated_sharpe"] is None) == (search["closed_trades"] < ENOUGH_TRADES)
        and search["spa"]["benchmark"] == "cash"
        and 0 < search["spa"]["consistent"] <= 1
    )
    assert (tmp_path / "surface.png").read_bytes().startswith(b"\x89PNG") and found["heatmap"].endswith(
        "surface.png"
    )
    # the same grid again adds no trial
    told = cli(*grid, "--heatmap", tmp_path / "surface.html").stdout
    again = Ledger(client_home).trials_of(found["ticker"], market="simulated:0")
    assert (
        len(again) == 4
        and (again["reruns"] == 1).all()
        and again["sharpe"].tolist() == book["sharpe"].tolist()
    )
    for text in (
        f"{search['closed_trades']} closed trade",
        "(PBO, 16 blocks)",
        "Hansen's SPA",
        "exit ",
        str(tmp_path / "surface.html"),
    ):
        assert text in told
    page = (tmp_path / "surface.html").read_text()
    assert "SIMULATED MARKET" in page and "Hansen&#x27;s SPA" in page and page.count("<tr>") >= 5
    # a point run alone is the same trial
    one = json.loads(cli("--set", "stop_atr=3", "--set", "exit=opposite", "--json").stdout)
    assert one["search"]["trials"] == 4 and one["search"]["reruns"] == 2
    assert one["search"]["sharpe_per_bar"] == pytest.approx(again["sharpe"].tolist()[3], rel=1e-12)


def test_a_thousand_points_enter_the_ledger_in_one_step_and_quickly(tmp_path):
    bars = stamp(random_bars(200, 0, 0.01), "BTC/USD", "simulated", seed=0)
    grid = {"stop_atr": np.linspace(0.5, 5, 40).tolist(), "take_profit_atr": np.linspace(0.5, 5, 25).tolist()}
    table, returns = sweep(
        bars, np.repeat(np.random.default_rng(1).integers(-1, 2, 50), 4), grid, returns=True
    )
    data = {**provenance(bars).to_dict(), "sha256": "x"}
    trials = surface_trials(point_runs(RunConfig(), grid), returns, data)
    began = time.perf_counter()
    standings = [Ledger(tmp_path).enter_all(trials, int(table["total_return"].idxmax())) for _ in range(2)]
    assert time.perf_counter() - began < 10 and [s.trials for s in standings] == [1000, 1000]
    wrong = replace(trials[4], config={"new": 2}, n="no number")
    broken = [*trials[:3], replace(trials[3], config={"new": 1}), wrong]
    with pytest.raises(ValueError): Ledger(tmp_path).enter_all(broken)
    # all or none
    assert len(Ledger(tmp_path).trials_of(trials[0].ticker, market="simulated:0")) == 1000


def test_the_deflated_ratio_of_a_surface_is_that_of_its_best_point_after_all_trials(forecasts):
    bars, _, _ = forecasts
    grid = {"stop_atr": [0.5, 1.0, 2.0, 4.0], "exit": ["neutral", "opposite"]}
    table, returns = sweep(
        bars, np.repeat(np.random.default_rng(2).integers(-1, 2, 300), 3), grid, returns=True
    )
    best = sharpe_sample(returns[table["total_return"].idxmax()])
    spread = float(np.var([sharpe_sample(returns[k]).sharpe for k in returns], ddof=1))
    judged = judge_surface(table, returns, Standing(3, 8, spread), reps=100)
    assert (
        judged["deflated_sharpe"] == pytest.approx(deflated_sharpe(*best, 8, max(spread, 1 / 900)))
        and judged["pbo"] == pbo(returns, 16).pbo
    )
    assert judged["deflated_sharpe"] < probabilistic_sharpe(*best)


def test_a_point_that_never_traded_is_never_the_best(forecasts):
    bars, _, _ = forecasts
    signal = np.repeat(np.random.default_rng(2).integers(-1, 2, 90), 10)
    table, returns = sweep(bars, signal, {"fee": [0.01, 0.02], "min_notional": [0.0, 1e9]}, returns=True)
    # not trading would have been better
    assert table["num_trades"].tolist()[1::2] == [0, 0] and (table["total_return"] < 0).sum() == 2
    found = surface_summary(table)
    assert (
        best_point(table) == 0
        and found["best"]["fee"] == 0.01
        and found["best"]["num_trades"] > 0
        and found["without_a_trade"] == 0.5
    )
    judged = judge_surface(table, returns, Standing(1, 4, 1e-4), reps=100)
    assert judged["deflated_sharpe"] == pytest.approx(deflated_sharpe(*sharpe_sample(returns[0]), 4, 1 / 900))
    assert "the best point that traded" in surface_plot(table).axes[0].get_title(loc="left")


def test_invented_markets_are_named_above_every_map(forecasts):
    table = sweep(forecasts[0], np.ones(900), {"stop_atr": [1.0, 2.0]})
    assert (surface_plot(table, simulated=True).get_suptitle(), surface_plot(table).get_suptitle()) == (
        SIMULATED,
        "",
    )


def test_forecasts_are_trained_once_for_all_grids_of_the_same_bars_and_settings(client_home, monkeypatch):
    first = cli("--grid", "stop_atr=none,1", "--set", "threshold_scale=0").stdout
    files = list((client_home / "forecasts").iterdir())
    assert "trained now, and stored" in first and len(files) == 1
    # a second training fails
    monkeypatch.setattr("cryptolstm.research.forecasts.walk_forward", None)
    again = json.loads(
        cli("--grid", "stop_atr=none,1", "--set", "threshold_scale=0", "--set", "fee=0.002", "--json").stdout
    )
    assert (
        again["reused"]
        and again["points"][0]["stop_atr"] is None
        and list((client_home / "forecasts").iterdir()) == files
    )
    assert (
        "nothing was trained" in cli("--grid", "exit=neutral,opposite", "--set", "threshold_scale=0").stdout
    )
    with pytest.raises(TypeError):
        cli("--grid", "stop_atr=1,2", "--set", "threshold_scale=0", "--set", "seed=1")


def test_what_a_grid_reads_from_disk_is_what_a_backtest_forecast(client_home, monkeypatch):
    one = json.loads(cli("--set", "stop_atr=3", "--set", "threshold_scale=0", "--json").stdout)
    monkeypatch.setattr("cryptolstm.research.forecasts.walk_forward", None)
    found = json.loads(cli("--grid", "stop_atr=1,3", "--set", "threshold_scale=0", "--json").stdout)
    assert found["reused"] and found["points"][1]["total_return"] == pytest.approx(one["total_return"])
    assert found["points"][1]["num_trades"] == one["num_trades"] > 0


def test_a_backtest_reuses_stored_forecasts_and_says_so(client_home, monkeypatch):
    "Its folds, its drift and its certificate are those of the run that trained."
    first = json.loads(cli("--json").stdout)
    monkeypatch.setattr("cryptolstm.research.forecasts.walk_forward", None)   # a second training fails
    again = json.loads(cli("--json").stdout)
    assert "forecasts_from" not in first["data"] and again["data"].pop("forecasts_from")
    differing = {name for name in first if first[name] != again[name]}
    assert differing <= {"search"} and again["search"]["reruns"] == 1 and again["certificate"]["checks"]
    shown = cli("--set", "fee=0.002").stdout
    assert "UTC, reused; --fresh trains again" in shown
    with pytest.raises(TypeError): cli("--fresh")
    file = next((client_home / "forecasts").iterdir())
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(TypeError): cli()


def test_one_trade_is_explained_and_a_number_without_a_trade_named_after_the_result(client_home):
    told = cli("--explain", "0", "--explain", "-1").stdout
    assert (
        told.count("decided: at the close of the bar of") == 2
        and "trade 0 of" in told
        and "on the way: " in told
    )
    done = CliRunner().invoke(app, [*SMOKE, "--explain", "99999"])
    assert (
        "total return" in done.stdout
        and "there is no trade 99999; pass a number from 0 to" in str(done.exception)
        and done.exception.exit_code == 2
    )


def test_a_file_that_cannot_be_written_costs_no_download_and_no_result(client_home, tmp_path, monkeypatch):
    (tmp_path / "dir.csv").mkdir()
    for path, says in (
        (tmp_path / "dir.csv", "is a folder"),
        ("/proc/nothere/t.csv", "cannot be written"),
        ("/dev/null/t.csv", "cannot be written"),
    ):
        with pytest.raises(InputError, match=says):
            cli("--trades", path)
    assert not client_home.exists()
    def full(*_): raise OSError(28, "No space left on device", "t.csv")
    monkeypatch.setattr("cryptolstm.execution.trade_log.write_atomic", full)
    done = CliRunner().invoke(app, [*SMOKE, "--trades", str(tmp_path / "t.csv")])
    assert "total return" in done.stdout and isinstance(done.exception, OSError)


def test_the_trades_of_a_run_are_listed_and_kept_whole(client_home, tmp_path):
    told = cli("--verbose", "--trades", tmp_path / "trades.csv").stdout
    kept = pd.read_csv(tmp_path / "trades.csv")
    table = told[told.index(f"\n{len(kept)} trades; times in America/Denver") :].strip().splitlines()
    assert table.pop(0).endswith("prices and net P&L in USD") and "decided: at the close" not in told
    head, *rows, total, costs = table
    assert head.split()[:3] == ["#", "side", "entry"] and len(rows) == len(kept) > 0
    assert max(map(len, table)) <= 100 and "".join(table).isascii()
    assert float(total.split()[1].replace(",", "")) == pytest.approx(kept["pnl"].sum(), abs=0.01)
    assert f"fees {kept['fees'].sum():,.2f}" in costs
    side, first = "long" if kept["side"][0] > 0 else "short", pd.Timestamp(kept["entry_time"][0])
    assert rows[0].split()[:4] == ["0", side, *f"{first.tz_convert('America/Denver'):%Y-%m-%d %H:%M}".split()]
    assert kept["simulated"].all() and str(tmp_path / "trades.csv") in told
    cli("--trades", tmp_path / "trades.json")
    rows = json.loads((tmp_path / "trades.json").read_text())
    assert rows["source"]["simulated"] and [r["pnl"] for r in rows["trades"]] == pytest.approx(
        kept["pnl"].tolist()
    )
    # no partial files beside them
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["trades.csv", "trades.json"]


@pytest.mark.parametrize("command, says", [
    (["--grid", "stop_atr=1:4"], "no range of values for stop_atr; pass for instance --grid stop_atr=1:4:7"),
    (["--grid", "stop_art=1:4:7"], "did you mean stop_atr?"),
    (["--trades", "x.xlsx"], "pass for instance --trades trades.csv"),
    (["--heatmap", "x.png"], "pass at least one --grid as well"),
    (["--grid", "fee=0,0.001", "--heatmap", "x.pdf"], "pass for instance surface.png"),
    (["--grid", "stop_atr=0.001,1"], "stop_atr is 0.001; pass a number from 0.01"),
    (["--grid", "exit=never"], "unknown exit never"),
    (["--grid", "fee=0,0.001", "--verbose"], "leave out --verbose"),
    (["--report", "--trades", "x.csv"], "run it without")])
def test_a_mistake_on_the_command_line_costs_no_download(command, says, client_home):
    with pytest.raises(InputError) as e: cli(*command)
    assert says in str(e.value) and e.value.exit_code == 2 and not client_home.exists()


BARS = random_bars(30, 0, 0.01)
BAD = {
    "no axis": (lambda: check_grid({}), "the grid is empty; pass at least one axis"),
    "no equals": (
        lambda: parse_grid(["stop_atr"]),
        "'stop_atr' is not an axis; pass for instance --grid stop_atr=1:4:7",
    ),
    "no numbers": (
        lambda: parse_grid(["stop_atr=a:b:c"]),
        "'a:b:c' is no range of values for stop_atr; pass for instance",
    ),
    "more returns than memory": (
        lambda: sweep(
            random_bars(2000, 0, 0.01), np.zeros(2000), {"fee": np.linspace(0, 0.1, 60_000)}, returns=True
        ),
        "120,000,000 returns to keep; pass a smaller grid",
    ),
    "a grid that is a list": (
        lambda: sweep(BARS, np.zeros(30), ["fee=0"]),
        "the grid is of the type list; pass axes and their values",
    ),
    "one value, not a list": (
        lambda: sweep(BARS, np.zeros(30), {"fee": 0.001}),
        r"the values of fee are 0.001; pass a list of them, for instance \[0.001\]",
    ),
    "one word, not a list": (
        lambda: sweep(BARS, np.zeros(30), {"exit": "neutral"}),
        "the values of exit are 'neutral'; pass a list",
    ),
    "a truth as a scale": (
        lambda: sweep(
            BARS, np.zeros(30), {"threshold_scale": [True]}, move=np.ones(30), threshold=np.ones(30)
        ),
        "threshold_scale is True; pass a number from 0",
    ),
    "no count": (lambda: parse_grid(["stop_atr=1:4:0"]), "no range of values"),
    "four parts": (lambda: parse_grid(["stop_atr=1:4:2:1"]), "no range of values"),
    "half a count": (lambda: parse_grid(["stop_atr=1:4:2.5"]), "no range of values"),
    "empty": (lambda: parse_grid(["stop_atr="]), "no range of values"),
    "twice": (lambda: parse_grid(["fee=0", "fee=1"]), "names fee twice"),
    "out of range": (lambda: parse_grid(["fee=0:2:3"]), "fee is 1.0; pass a number from 0 to 0.1"),
    "negative scale": (
        lambda: parse_grid(["threshold_scale=-1:1:3"]),
        "threshold_scale is -1.0; pass a number from 0",
    ),
    "NaN": (lambda: parse_grid(["threshold_scale=nan"]), "threshold_scale is nan"),
    "unknown": (lambda: parse_grid(["horizon=1:4:4"]), "unknown axis horizon"),
    "too many": (
        lambda: check_grid({"fee": np.linspace(0, 0.1, 1001), "slippage": np.linspace(0, 0.1, 1000)}),
        "1,001,000 points; pass at most 1,000,000",
    ),
    "unknown word": (
        lambda: parse_grid(["sizing=all_in,volatile"]),
        "unknown sizing volatile; did you mean volatility",
    ),
    "no word": (lambda: parse_grid(["exit="]), "unknown exit"),
    "a size all_in ignores": (
        lambda: sweep(BARS, np.zeros(30), {"sizing": ["fraction", "all_in"], "size": [0.5]}),
        "pass sizing=fraction to use it",
    ),
    "more than the leverage": (
        lambda: sweep(
            BARS, np.zeros(30), {"size": [0.5, 2.0], "max_leverage": [3.0, 1.0]}, sizing="fraction"
        ),
        "size is 2; pass a fraction",
    ),
    "bad pair": (
        lambda: sweep(BARS, np.zeros(30), {"min_hold": [5], "max_hold": [3]}),
        "pass a max_hold that is not shorter",
    ),
    "negative move": (
        lambda: sweep(BARS, np.zeros(30), {"threshold_scale": [1]}, move=-np.ones(30), threshold=np.ones(30)),
        "row 0 .*the move is -1",
    ),
    "other signal": (
        lambda: sweep(BARS, np.full(30, 2), {"fee": [0]}),
        "row 0 .*signal is 2; pass -1, 0 or 1",
    ),
    "no threshold": (
        lambda: sweep(BARS, np.zeros(30), {"threshold_scale": [1]}),
        "varies only together with move and threshold",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_sentence(name):
    call, text = BAD[name]
    with pytest.raises(InputError, match=text): call()
