"""Execution: the kernel against a slow reference, the golden cases, and properties for any bars, signal and
settings."""
import inspect
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cryptolstm.core.errors import InputError
from cryptolstm.core.bars import provenance, regular_grid, stamp
from cryptolstm.core.config import RunConfig
from cryptolstm.core.volatility import average_true_range
from cryptolstm.features.indicators import features
from cryptolstm.stats.performance import figures
from cryptolstm.execution.kernel import COUNTS, MAX_WAIT, REASONS
from cryptolstm.execution.orders import KernelInputs, checked_orders, entry_share, kernel_inputs
from cryptolstm.execution.simulate import SERIES, run_kernel, simulate
from cryptolstm.execution.reference import run_reference, simulate_reference
from cryptolstm.research.baselines import HOLD, REVERSAL, performance
from cryptolstm.report.figures import DETAILS, FIGURES, figure_rows

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "coinbase" / "ETH_USD_1h.parquet"
START = 100_000.0


def market(*rows):
    rows = [r if isinstance(r, tuple) else (r,) * 4 for r in rows]
    index = pd.date_range("2025-01-01", periods=len(rows), freq="h", tz="UTC")
    return pd.DataFrame(rows, index, ["open", "high", "low", "close"], dtype=float).assign(volume=1.0)


def random_prices(n, seed, sigma):
    g = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(sigma * g.standard_normal(n)))
    open_ = np.r_[100, close[:-1]] * np.exp(0.3 * sigma * g.standard_normal(n))
    wick = np.exp(sigma * np.abs(g.standard_normal((2, n))))
    high, low = np.maximum(open_, close) * wick[0], np.minimum(open_, close) / wick[1]
    return {
        "open": open_,
        "high": high,
        "low": low,
        "close": close,
        "volume": np.round(np.exp(g.normal(5, 3, n)), 2),
    }


def random_bars(n, seed, sigma):
    return pd.DataFrame(
        random_prices(n, seed, sigma), pd.date_range("2025-01-01", periods=n, freq="h", tz="UTC")
    )


def real_bars(bars): return bars[~bars["is_gap"]].drop(columns="is_gap") if "is_gap" in bars else bars


@st.composite
def bar_frames(draw, smallest=2, largest=90, holes=True):
    n, seed = draw(st.integers(smallest, largest)), draw(st.integers(0, 2**32 - 1))
    # low, high and ruinous volatility
    bars = random_bars(n, seed, draw(st.sampled_from([0.003, 0.02, 0.15])))
    if not holes or not draw(st.booleans()): return bars
    absent = set()
    for start, length in draw(st.lists(st.tuples(st.integers(2, n), st.integers(1, 6)), max_size=3)):
        absent |= set(range(start, start + length))
    kept = bars.drop(bars.index[[i for i in absent if i < n]])
    # missing hours absent, carried forward, or empty
    return draw(st.sampled_from([lambda b: b, regular_grid, lambda b: regular_grid(b, max_gap=0)]))(kept)


@st.composite
def signals(draw, n):
    runs = draw(
        st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.integers(1, 12)), min_size=1, max_size=max(1, n))
    )
    flat = [side for side, length in runs for _ in range(length)]
    return np.resize(flat, n)


ORDERS = {
    "stop_atr": [0.3, 1.0, 3.0],
    "stop_percent": [0.01, 0.3],
    "take_profit_atr": [0.3, 1.0, 4.0],
    "take_profit_percent": [0.01, 0.2],
    "trailing_atr": [0.3, 1.0, 3.0],
    "max_hold": [1, 3, 20],
}
# settings that refuse or reduce orders
EXCHANGE = {"lot": [0.01, 10.0], "min_notional": [0.5, 20_000.0], "max_volume_share": [0.1, 1.0]}


def setup_of(pick, exchange=True):
    "Settings, each chosen from a list by `pick`."
    sizing = pick(["all_in", "fraction", "volatility"])
    def now_and_then(table):
        return {k: pick(v) for k, v in table.items() if pick([True, False, False])}
    orders = now_and_then(ORDERS) | (now_and_then(EXCHANGE) if exchange else {})
    leverage = 1.0 if sizing == "all_in" else pick([1.0, 1.0, 3.0])
    return {
        "initial_balance": pick([1.0, START]),
        "fee": pick([0.0, 0.001, 0.05]),
        "maker_fee": pick([None, None, 0.0, 0.02]),
        "slippage": pick([0.0, 0.0002, 0.05]),
        "slippage_range": pick([0.0, 0.0, 0.1, 0.5]),
        **orders,
        "sizing": sizing,
        "size": 1.0 if sizing == "all_in" else pick([0.1, 0.7, 1.0 * leverage]),
        "max_leverage": leverage,
        "exit": pick(["neutral", "opposite"]),
        "min_hold": min(pick([0, 1, 5]), orders.get("max_hold", 5)),
        "borrow_rate": pick([0.0, 0.0, 0.001, 0.5]),
    }


@st.composite
def setups(draw, exchange=True): return setup_of(lambda values: draw(st.sampled_from(values)), exchange)


@st.composite
def cases(draw, exchange=True, **kind):
    bars, setup = draw(bar_frames(**kind)), draw(setups(exchange))
    atr = draw(st.sampled_from([None, 3, 5]))  # short windows, so that stops occur in short frames
    if atr is not None: setup["atr"] = average_true_range(bars, atr)
    # σ known from the first bar on, as from a longer history, except for a few bars
    if setup["sizing"] == "volatility" and draw(st.booleans()):
        g = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        setup["sigma"] = pd.Series(
            np.where(g.random(len(bars)) < 0.1, [0.0], g.uniform(0.001, 0.1, len(bars))), bars.index
        ).mask(g.random(len(bars)) < 0.1)
        if draw(st.booleans()):   # forecasts of σ for most of the bars
            ahead = pd.Series(g.uniform(0.001, 0.1, len(bars)), bars.index)
            setup["volatility"] = ahead.mask(g.random(len(bars)) < 0.3)
            setup["sizing_volatility"] = draw(st.sampled_from(["forecast", "trailing"]))
    return bars, draw(signals(len(bars))), setup


def close_to(a, b, scale): np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * scale)


def assert_same_rows(a, b, scale):
    assert list(a) == list(b) and len(a) == len(b)
    for column in a:
        if a[column].dtype == float:close_to(a[column], b[column], scale)
        else: assert a[column].equals(b[column]), column


DEFAULTS = {
    k: p.default
    for k, p in inspect.signature(simulate).parameters.items()
    if k not in SERIES
}

# -- the kernel against the reference
# ----------------------------------------------------------------------------------------------------

def another(seed):
    "Random settings and kernel inputs: prices, signals, holes of any length, ATR, σ."
    g = np.random.default_rng(seed)
    run = checked_orders(DEFAULTS | setup_of(lambda values: values[g.integers(len(values))]))
    n = g.integers(2, 70)
    prices, real = random_prices(n, seed, g.choice([0.003, 0.02, 0.15])), np.ones(n, bool)
    for start, length in zip(g.integers(2, n + 1, g.integers(0, 4)), g.integers(1, 7, 3), strict=False):
        real[start : start + length] = False
    prices = {k: np.where(real, v, np.nan) for k, v in prices.items()}
    sigma = np.where(g.random(n) < 0.1, [0.0], g.uniform(0.001, 0.1, n)) if g.random() < 0.5 else None
    atr = (
        average_true_range(pd.DataFrame(prices), g.choice([3, 5])).to_numpy()
        if g.random() < 0.8
        else np.array([0.5])
    )
    signal = np.repeat(g.integers(-1, 2, n), g.integers(1, 12))[:n].astype("int8")
    share = entry_share(prices["close"], run["sizing"], run["size"], sigma=sigma, cap=run["max_leverage"])
    return run, KernelInputs(**prices, real=real, signal=signal, share=share, atr=atr, rows=np.arange(n))


def computed(equity, low_equity, position, trades, cash, quantity, last, counts):
    "All numbers of a run in one row."
    return np.concatenate(
        [
            equity,
            low_equity,
            position,
            *(trades[name] for name in trades.dtype.names),
            [cash, quantity, last if quantity else 0],
            counts,
        ]
    )


@settings(max_examples=250, deadline=None)
@given(cases(), st.integers(0, 2**32 - 1))
def test_kernel_equals_the_plain_reference(case, seed):
    bars, signal, setup = case
    run = checked_orders(DEFAULTS | {k: v for k, v in setup.items() if k not in SERIES})
    given_ = setup.get("atr"), setup.get("sigma"), run, setup.get("volatility")
    drawn = run, kernel_inputs(bars, signal, *given_)
    # 2,000 cases, each with its own settings
    for run, data in (drawn, *(another([seed, i]) for i in range(1, 8))):
        close_to(
            computed(*run_kernel(data, run)), computed(*run_reference(data, run)), run["initial_balance"]
        )


def test_two_thousand_random_cases_have_settings_holes_and_ends_of_every_kind():
    runs = [another([0, i]) for i in range(2000)]
    assert (
        len(
            {
                (r["sizing"], r["exit"], r["max_leverage"] > 1, r["borrow_rate"] > 0, r["maker_fee"] is None)
                for r, _ in runs
            }
        )
        == (3 * 2 - 1) * 2 * 2 * 2
    )
    assert sum((~d.real).any() for _, d in runs) > 1000
    ends = Counter(REASONS[i] for r, d in runs for i in run_kernel(d, r)[3]["reason"])
    assert set(ends) == set(REASONS) - {""} and min(ends.values()) > 20, ends


@settings(max_examples=100, deadline=None)
@given(cases())
def test_the_tables_of_kernel_and_reference_are_the_same(case):
    bars, signal, setup = case
    fast = simulate(bars, signal, **setup)
    slow = simulate_reference(bars, signal, **setup)
    money = setup["initial_balance"]
    for key in ("equity", "low_equity", "final_balance", "liquidation_value", "total_fees", "total_borrow"):
        close_to(fast[key], slow[key], money)
    assert fast["counts"] == slow["counts"] and fast["position"].equals(slow["position"])
    for key in ("trades", "fills"): assert_same_rows(fast[key], slow[key], money)


def test_the_random_cases_reach_every_way_a_trade_can_end_and_every_count():
    seen, counted = set(), Counter()
    for seed in range(60):
        bars = random_bars(200, seed, 0.15)
        wish = np.repeat(np.random.default_rng(seed).integers(-1, 2, 20), 10)
        r = simulate(
            bars,
            wish,
            stop_atr=[None, 0.5, 2.0][seed % 3],
            take_profit_atr=[None, 0.5, 2.0][seed // 3 % 3],
            trailing_atr=[None, 1.0][seed % 2],
            max_hold=[None, 4][seed // 2 % 2],
            max_volume_share=[None, 0.5][seed // 5 % 2],
            min_notional=[0, 5000][seed // 5 % 2],
        )
        seen |= set(r["trades"]["exit_reason"])
        counted.update(r["counts"])
    assert seen == set(REASONS) - {""}
    assert set(counted) == set(COUNTS) and all(counted.values()), counted


@pytest.mark.skipif(not REAL.exists(), reason="no real candles beside the repository")
def test_kernel_equals_the_reference_on_a_year_of_real_bars():
    bars = pd.read_parquet(REAL)
    signal = np.repeat(np.random.default_rng(0).integers(-1, 2, len(bars) // 12 + 1), 12)[:len(bars)]
    setup = dict(
        slippage=0.0002,
        slippage_range=0.02,
        stop_atr=2.0,
        take_profit_atr=5.0,
        trailing_atr=3.0,
        max_hold=30,
        sizing="volatility",
        size=0.5,
        borrow_rate=0.0002,
        lot=0.0001,
        min_notional=10.0,
        max_volume_share=0.1,
    )
    fast, slow = simulate(bars, signal, **setup), simulate_reference(bars, signal, **setup)
    np.testing.assert_allclose(fast["equity"], slow["equity"], rtol=1e-9)
    assert len(fast["trades"]) == len(slow["trades"]) > 100


# -- properties of any run
# -----------------------------------------------------------------------------------------------------

@settings(max_examples=150, deadline=None)
@given(cases())
def test_money_is_conserved(case):
    bars, signal, setup = case
    r = simulate(bars, signal, **setup)
    close_to(
        r["final_balance"], setup["initial_balance"] + r["trades"]["pnl"].sum(), setup["initial_balance"]
    )
    t = r["trades"]
    gross = (t["side"] * t["quantity"] * (t["exit_price"] - t["entry_price"])).sum()
    close_to(
        r["final_balance"],
        setup["initial_balance"] + gross - r["total_fees"] - r["total_borrow"],
        setup["initial_balance"],
    )
    close_to(r["fills"]["fee"].sum(), r["total_fees"], setup["initial_balance"])
    assert (r["low_equity"] <= r["equity"]).all()
    # Equity covers the cost of closing the position, so it is never negative; with costs of ten percent, a
    # leveraged position that is still open may be valued near zero.
    assert (r["equity"] >= -1e-9 * setup["initial_balance"]).all()


@settings(max_examples=150, deadline=None)
@given(cases(exchange=False), st.sampled_from([0.0001, 0.002, 0.02]))
def test_more_fee_never_earns_more(case, extra):
    # Neither fill prices nor stops depend on the fee; only quantities do (and ruin comes earlier). One
    # exception: a higher fee reduces the quantity, which helps a short that loses more than its whole
    # notional, as one with a small fraction of equity may. A lot or a minimum notional may have the same
    # effect, because a smaller order is refused; these are left out here.
    bars, signal, setup = case
    more = {k: setup[k] + extra for k in ("fee", "maker_fee") if setup[k] is not None}
    low, high = simulate(bars, signal, **setup), simulate(bars, signal, **setup | more)
    assume(
        (
            low["trades"]["pnl"] + low["trades"]["fees"]
            > -low["trades"]["quantity"] * low["trades"]["entry_price"] * 0.999
        ).all()
    )
    money = setup["initial_balance"]
    assert high["final_balance"] <= low["final_balance"] + 1e-9 * money
    if len(low["fills"]) and low["final_balance"] > 1e-6 * money:
        assert high["final_balance"] < low["final_balance"]


@settings(max_examples=100, deadline=None)
@given(cases(), st.sampled_from([0.001, 7.0, 1000.0]))
def test_prices_times_k_change_quantities_only(case, k):
    bars, signal, setup = case
    # the traded value is the same
    dear = bars.assign(
        **{c: bars[c] * k for c in ("open", "high", "low", "close")}, volume=bars["volume"] / k
    )
    lot = {"lot": setup["lot"] / k} if "lot" in setup else {}
    atr = {"atr": setup["atr"] * k} if "atr" in setup else {}
    a, b = simulate(bars, signal, **setup), simulate(dear, signal, **{**setup, **atr, **lot})
    close_to(a["equity"], b["equity"], setup["initial_balance"])
    assert a["trades"]["exit_reason"].tolist() == b["trades"]["exit_reason"].tolist()
    close_to(a["trades"]["quantity"], b["trades"]["quantity"] * k, setup["initial_balance"])


@settings(max_examples=150, deadline=None)
@given(cases(), st.data())
def test_nothing_depends_on_the_future_and_no_bar_on_its_own_signal(case, data):
    bars, signal, setup = case
    cut = data.draw(st.integers(1, len(bars) - 1))
    # the truncated bars must still be hourly
    assume((np.diff(bars.index[:cut].asi8) == np.diff(bars.index.asi8).min()).any() or cut == 1)
    past = setup | {k: setup[k].iloc[:cut] for k in SERIES if k in setup}
    other = signal.copy()
    # another signal at the close of the last bar before the cut
    other[cut - 1] = (signal[cut - 1] + 2) % 3 - 1
    full, part = simulate(bars, signal, **setup), simulate(bars.iloc[:cut], other[:cut], **past)
    # bit for bit
    for key in ("equity", "low_equity", "position"):
        assert full[key].iloc[:cut].tolist() == part[key].tolist()


@settings(max_examples=100, deadline=None)
@given(cases())
def test_no_trade_without_a_signal(case):
    bars, signal, setup = case
    none = simulate(bars, np.zeros(len(bars)), **setup)
    assert (
        len(none["fills"]) == 0
        and (none["equity"] == setup["initial_balance"]).all()
        and (none["position"] == 0).all()
    )
    fills, wished = simulate(bars, signal, **setup)["fills"], pd.Series(signal, bars.index)
    for fill in fills[fills["reason"] == "entry"].itertuples():
        assert fill.side in wished[: fill.time - pd.Timedelta(1, "h")].to_numpy()


@settings(max_examples=150, deadline=None)
@given(cases())
def test_fills_only_at_prices_the_bar_contains(case):
    bars, signal, setup = case
    fills = simulate(bars, signal, **setup)["fills"]
    # the exchange sets the liquidation price even when the market jumps past it
    fills = fills[fills["reason"] != "liquidation"]
    at = bars.loc[fills["time"]]
    slip = setup["slippage"] + setup["slippage_range"] * ((at["high"] - at["low"]) / at["high"]).to_numpy()
    quoted = fills["price"].to_numpy() / (1 + fills["side"].to_numpy() * slip)
    assert (quoted <= at["high"] * (1 + 1e-12)).all() and (quoted >= at["low"] * (1 - 1e-12)).all()
    orders = fills["reason"].isin(["entry", "signal", "reverse", "gap_stop", "time"]).to_numpy()
    np.testing.assert_allclose(quoted[orders], at["open"][orders], rtol=1e-12)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_stops_and_targets_fill_at_their_distance_from_the_entry(case):
    bars, signal, setup = case
    trades = simulate(bars, signal, **setup)["trades"]
    atr = setup.get("atr", average_true_range(regular_grid(real_bars(bars), 0)).reindex(bars.index))
    real = bars.index[~bars["is_gap"]] if "is_gap" in bars else bars.index
    def nearest(order, atr, price):
        return min(
            [setup[k] * x for k, x in ((f"{order}_atr", atr), (f"{order}_percent", price)) if k in setup]
        )
    for t in trades[trades["exit_reason"].isin(["stop", "take_profit"])].itertuples():
        decided = atr[real[real < t.entry_time][-1]]
        order, away = ("stop", -1) if t.exit_reason == "stop" else ("take_profit", 1)
        level = t.entry_price + away * t.side * nearest(order, decided, t.entry_price)
        bar = bars.loc[t.exit_time]
        if order == "take_profit": level = max(level, bar["open"]) if t.side > 0 else min(level, bar["open"])
        slip = setup["slippage"] + setup["slippage_range"] * (bar["high"] - bar["low"]) / bar["high"]
        assert t.exit_price == pytest.approx(level * (1 - t.side * slip), rel=1e-9)


@settings(max_examples=100, deadline=None)
@given(cases(holes=False), st.data())
def test_runs_cut_where_nothing_is_held_join_to_the_whole(case, data):
    # The only state is position, orders and balance: after a cut at a bar without position and signal, the
    # second run starts with the remaining balance.
    bars, signal, setup = case
    cut = data.draw(st.integers(1, len(bars) - 1))
    signal = signal.copy()
    signal[max(0, cut - 1 - max(setup["min_hold"], 1)):cut] = 0
    series = {
        "atr": setup.get("atr", average_true_range(bars)),
        "sigma": setup.get("sigma", np.log(bars["close"]).diff().rolling(24).std()),
        "volatility": setup.get("volatility", pd.Series(np.nan, bars.index)),
    }
    def part(rows, **more):
        return simulate(
            bars.iloc[rows],
            signal[rows],
            **{**setup, "exit": "neutral", **{k: v.iloc[rows] for k, v in series.items()}, **more},
        )
    whole, first = part(slice(None)), part(slice(None, cut))
    assume(
        first["position"].iloc[-1] == 0
        and first["final_balance"] > 1e-6 * setup["initial_balance"]
        and (cut > 1 or signal[0] == 0)
    )
    second = part(slice(cut, None), initial_balance=first["final_balance"])
    close_to(whole["equity"], np.r_[first["equity"], second["equity"]], setup["initial_balance"])
    assert (
        whole["trades"]["exit_reason"].tolist()
        == first["trades"]["exit_reason"].tolist() + second["trades"]["exit_reason"].tolist()
    )
    assert whole["counts"] == {k: first["counts"][k] + second["counts"][k] for k in COUNTS}


@settings(max_examples=150, deadline=None)
@given(cases(exchange=False))
def test_a_short_of_the_mirrored_market_earns_what_the_long_earned(case):
    # Mirrored around 200, with a fixed number of coins (one trade, a fraction of equity so small that neither
    # side is ruined) and without costs in percent of the price: fee, slippage and borrow cost are shares of a
    # price, which the mirror changes, and so are percent orders.
    bars, signal, setup = case
    assume(bars["high"].max() < 190)
    mirrored = bars.assign(
        open=200 - bars["open"], high=200 - bars["low"], low=200 - bars["high"], close=200 - bars["close"]
    )
    atr = {"atr": setup.get("atr", average_true_range(bars, 3))}
    orders = {
        k: setup[k]
        for k in ("stop_atr", "take_profit_atr", "trailing_atr", "min_hold", "max_hold", "exit")
        if k in setup
    }
    plain = dict(fee=0, sizing="fraction", size=1e-6, initial_balance=START) | orders | atr
    a, b = simulate(bars, signal, **plain), simulate(mirrored, -signal, **plain)
    # per coin
    def earned(r):
        return r["trades"]["side"] * (r["trades"]["exit_price"] - r["trades"]["entry_price"])
    np.testing.assert_allclose(earned(a), earned(b), atol=1e-9)
    assert (
        a["trades"]["exit_reason"].tolist() == b["trades"]["exit_reason"].tolist()
        and (a["position"] == -b["position"]).all()
    )
    assert a["counts"] == b["counts"]


# -- the contract, sentence by sentence
# ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("run", [simulate, simulate_reference])
def test_golden_reversal(run):
    r = run(market(100, 100, 110, 99), [1, -1, 0, 0], fee=0.001)
    assert r["final_balance"] == pytest.approx(120_538.9007, abs=5e-5)
    assert r["trades"]["quantity"].tolist() == pytest.approx([999.000999, 997.0049930], abs=1e-6)
    assert r["equity"].iloc[2] == pytest.approx(109_670.5492, abs=5e-5)
    # a reversal is two fills at one open
    assert r["fills"]["time"].tolist()[1:3] == [r["equity"].index[2]] * 2


@pytest.mark.parametrize("run", [simulate, simulate_reference])
def test_golden_fixed_quantity_short(run):
    assert run(market(100, 100, 90, 99), [-1, -1, 0, 0], fee=0)["final_balance"] == pytest.approx(101_000)


both = pytest.mark.parametrize("run", [simulate, simulate_reference])


def one(run, *rows, side=1, atr=5.0, **more):
    "The first trade of a constant signal, entered at the open of row 1; no fee, ATR 5."
    return run(market(*rows), [side] * len(rows), **{"fee": 0.0, "atr": np.full(len(rows), atr), **more})


def exit_of(result): return tuple(result["trades"][["exit_price", "exit_reason"]].iloc[0])


@both
def test_decide_at_the_close_and_fill_at_the_next_open_with_slippage(run):
    bars = market((100, 130, 90, 120), (110, 140, 95, 130), (125, 150, 115, 140))
    fills = run(bars, [1, 0, 0], fee=0.001, slippage=0.0002)["fills"]
    assert (
        fills["price"].tolist() == pytest.approx([110 * 1.0002, 125 * 0.9998])
        and fills["time"].tolist() == bars.index[1:].tolist()
    )
    short = run(bars, [-1, 0, 0], fee=0.001, slippage=0.0002)["fills"]
    assert short["price"].tolist() == pytest.approx([110 * 0.9998, 125 * 1.0002])
    for f in (fills, short):
        assert f["fee"].tolist() == pytest.approx((0.001 * f["price"] * f["quantity"]).tolist())


def test_a_run_pays_two_hundredths_of_a_percent_slippage_and_a_tenth_fee_a_side_by_default():
    run = RunConfig()
    assert (run.slippage, run.fee, run.stop_atr, run.sizing, run.max_leverage) == (
        0.0002,
        0.001,
        2.0,
        "all_in",
        1.0,
    )
    assert all(
        getattr(run, k) in (None, 0.0)
        for k in [*ORDERS, *EXCHANGE, "slippage_range", "borrow_rate"]
        if k != "stop_atr"
    )


@both
def test_a_reversal_is_two_fills_and_two_fees(run):
    r = run(market(100, 100, 100, 100), [1, -1, -1, -1], fee=0.001)
    at = r["fills"][r["fills"]["time"] == r["equity"].index[2]]
    assert (
        at["side"].tolist() == [-1, -1]
        and at["reason"].tolist() == ["reverse", "entry"]
        and (at["fee"] > 0).all()
    )
    assert r["equity"].iloc[2] == pytest.approx(START * (1 / 1.001) * 0.999 * (1 / 1.001))


@both
def test_neutral_closes_unless_only_the_opposite_side_may(run):
    bars, signal = market(*[100] * 6), [1, 0, 0, -1, 0, 0]
    assert run(bars, signal)["position"].tolist() == [0, 1, 0, 0, -1, 0]
    assert run(bars, signal, exit="opposite")["position"].tolist() == [0, 1, 1, 1, -1, -1]
    assert run(bars, signal, min_hold=2)["position"].tolist() == [0, 1, 1, 0, -1, -1]


@both
@pytest.mark.parametrize("side", [1, -1])
def test_inside_a_bar_the_order_is_gap_then_stop_then_target_then_trailing(run, side):
    def flip(*ohlc):
        return ohlc if side > 0 else (200 - ohlc[0], 200 - ohlc[2], 200 - ohlc[1], 200 - ohlc[3])
    def price(x):
        return x if side > 0 else 200 - x
    # stop 90, target 115, trailing 102.5 after a high of 110
    orders = dict(side=side, stop_atr=2, take_profit_atr=3, trailing_atr=1.5)
    entry = flip(100, 110, 99, 105)
    def leave(*ohlc):
        return exit_of(one(run, 100, entry, flip(*ohlc), 100, **orders))
    assert leave(88, 120, 80, 100) == (price(88), "gap_stop")
    # opened beyond the trailing stop
    assert leave(101, 120, 80, 100) == (price(101), "trailing")
    # stop before target and trailing
    assert leave(103, 120, 80, 100) == (price(90), "stop")
    # target before trailing
    assert leave(103, 120, 95, 100) == (price(115), "take_profit")
    # a gap through the target fills at the open
    assert leave(118, 120, 95, 100) == (price(118), "take_profit")
    assert leave(103, 112, 95, 100) == (price(102.5), "trailing")


@both
def test_a_gap_through_a_stop_fills_at_the_open(run):
    assert exit_of(one(run, 100, 100, (80, 95, 70, 90), 90, stop_atr=2)) == (80, "gap_stop")
    assert exit_of(one(run, 100, 100, (120, 125, 105, 110), 110, side=-1, stop_atr=2)) == (120, "gap_stop")


@both
def test_a_bar_that_touches_both_stop_and_target_counts_as_stopped_and_is_counted(run):
    r = one(run, 100, 100, (100, 111, 89, 100), 100, stop_atr=2, take_profit_atr=2)
    assert exit_of(r) == (90, "stop") and r["counts"]["both_touched"] == 1
    assert (
        one(run, 100, 100, (100, 111, 91, 100), 100, stop_atr=2, take_profit_atr=2)["counts"]["both_touched"]
        == 0
    )
    ambiguous = one(
        run, 100, (100, 109, 100, 105), (105, 111, 101, 105), 100, take_profit_atr=2, trailing_atr=1
    )
    assert exit_of(ambiguous) == (110, "take_profit") and ambiguous["counts"]["target_and_trailing"] == 1


@both
def test_trailing_follows_the_extreme_of_earlier_bars_only(run):
    rises = one(
        run, 100, (100, 108, 96, 107), (107, 120, 103.5, 119), (119, 119, 100, 100), 100, trailing_atr=1
    )
    # in bar 2 the stop is 108 − 5, although that bar's high is 120
    assert exit_of(rises) == (115, "trailing") and rises["trades"]["bars_held"][0] == 2
    # in the entry bar: 5 below the fill
    assert exit_of(one(run, 100, (100, 130, 95, 100), 100, 100, trailing_atr=1)) == (95, "trailing")


@both
def test_of_an_atr_and_a_percent_distance_the_nearer_one_holds(run):
    fall, rise = (100, 100, 50, 60), (100, 160, 100, 150)
    assert [
        exit_of(one(run, 100, 100, fall, stop_atr=a, stop_percent=p))[0]
        for a, p in ((2, 0.05), (2, 0.2), (None, 0.2))
    ] == [95, 90, 80]
    def target(a, p):
        return exit_of(one(run, 100, 100, rise, take_profit_atr=a, take_profit_percent=p))[0]
    assert [target(a, p) for a, p in ((2, 0.05), (2, 0.2), (None, 0.2))] == pytest.approx([105, 110, 120])
    assert exit_of(one(run, 100, 100, rise, side=-1, stop_percent=0.04)) == (104, "stop")


@both
@pytest.mark.parametrize("order", ["stop_atr", "take_profit_atr", "trailing_atr"])
def test_no_entry_while_the_atr_an_order_needs_is_unknown(run, order):
    assert (
        len(one(run, *[100] * 6, atr=np.nan, **{order: 2})["fills"])
        == 0
        == len(one(run, *[100] * 6, atr=0.0, **{order: 2})["fills"])
    )
    assert len(one(run, *[100] * 6, atr=np.nan, stop_percent=0.1)["fills"]) == 1


@both
def test_max_hold_closes_at_the_open_and_a_signal_that_stands_enters_again(run):
    r = one(run, *[100] * 9, max_hold=3)
    assert (
        r["position"].tolist() == [0, 1, 1, 1, 0, 1, 1, 1, 0]
        and r["trades"]["exit_reason"].tolist() == ["time"] * 2
    )
    assert r["trades"]["bars_held"].tolist() == [3, 3]
    turned = run(market(*[100] * 6), [1, 1, 1, -1, -1, -1], max_hold=3)["trades"]
    # the signal had already reversed
    assert turned["exit_reason"].tolist() == ["reverse", "open"]


@both
def test_stop_loss_can_be_switched_off(run):
    assert exit_of(one(run, 100, 100, (100, 100, 1, 100), 100))[1] == "open"


@both
def test_slippage_may_be_a_share_of_the_bars_range(run):
    r = one(
        run,
        100,
        (100, 110, 88, 100),
        (100, 100, 80, 90),
        90,
        slippage=0.001,
        slippage_range=0.1,
        stop_percent=0.15,
    )
    price = 100 * (1 + 0.001 + 0.1 * 22 / 110)
    assert r["fills"]["price"].tolist()[:2] == pytest.approx(
        [price, price * 0.85 * (1 - 0.001 - 0.1 * 20 / 100)]
    )


@both
def test_quantities_are_whole_lots_and_orders_below_the_minimum_are_not_placed_but_counted(run):
    assert one(run, 300, 300, 300, lot=0.5)["trades"]["quantity"].tolist() == [333.0]
    # three lots, not two
    assert one(run, 1, 1, 1, lot=0.1, initial_balance=0.3)["trades"]["quantity"].tolist() == [
        pytest.approx(0.3)
    ]
    refused = one(run, 300, 300, 300, 300, lot=1000.0)
    assert len(refused["fills"]) == 0 and refused["counts"]["too_small"] == 3
    assert one(run, 300, 300, 300, min_notional=100_001)["counts"]["too_small"] == 2
    assert one(run, 300, 300, 300, min_notional=100_000)["counts"]["too_small"] == 0


@both
def test_entries_are_limited_to_a_share_of_the_bars_volume_and_exits_beyond_it_counted(run):
    bars = market(*[100] * 4).assign(volume=[1e9, 500, 10, 10])
    r = run(bars, [1, 0, 0, 0], fee=0, max_volume_share=0.1)
    assert (
        r["trades"]["quantity"].tolist() == [50]
        and r["counts"]["cut_by_volume"] == 1
        and r["counts"]["beyond_volume"] == 1
    )
    assert r["final_balance"] == pytest.approx(START)


@both
def test_a_target_pays_the_makers_fee_and_every_other_fill_the_takers(run):
    bars = market(100, 100, (100, 112, 99, 111), 111, 111, (100, 100, 80, 80), 80)
    r = run(
        bars, [1, 1, 0, 1, 1, 0, 0], fee=0.002, maker_fee=0.0005, take_profit_percent=0.1, stop_percent=0.05
    )
    assert r["trades"]["exit_reason"].tolist() == ["take_profit", "gap_stop"]
    rates = (r["fills"]["fee"] / (r["fills"]["price"] * r["fills"]["quantity"])).tolist()
    assert rates == pytest.approx([0.002, 0.0005, 0.002, 0.002])
    same = [
        run(bars, [1, 1, 0, 1, 1, 0, 0], fee=0.002, maker_fee=m, take_profit_percent=0.1)["final_balance"]
        for m in (None, 0.002)
    ]
    assert same[0] == same[1]


@both
def test_leverage_borrows_pays_rent_and_can_ruin_a_long(run):
    bars = market(100, 100, 90, (90, 90, 60, 60), 200)
    r = run(bars, [1] * 5, fee=0, sizing="fraction", size=3.0, max_leverage=3.0)
    assert r["trades"]["quantity"][0] == 3000 and r["equity"].iloc[2] == pytest.approx(70_000)
    assert exit_of(r) == (pytest.approx(200_000 / 3000), "liquidation") and r["equity"].tolist()[3:] == [0, 0]
    rent = run(
        market(100, 100, 100),
        [1, 1, 1],
        fee=0,
        sizing="fraction",
        size=3.0,
        max_leverage=3.0,
        borrow_rate=0.024,
    )
    # 0.1 % per hour of the borrowed amount
    assert rent["total_borrow"] == pytest.approx(200 + 200.2)
    calm = dict(sizing="volatility", size=2.0, sigma=np.full(3, 0.001), fee=0)
    assert [
        run(market(100, 100, 100), [1, 1, 1], **calm, max_leverage=m)["trades"]["quantity"][0]
        for m in (1, 2.5)
    ] == pytest.approx([1000, 2500])


@both
def test_who_is_ruined_at_an_open_pays_no_more_rent_and_no_exit_price_is_negative(run):
    r = run(market(100, 100, 10_000, 10_000), [-1] * 4, fee=0.001, borrow_rate=1.0)
    trade = r["trades"].iloc[0]
    assert trade["exit_reason"] == "liquidation" and trade["exit_price"] == pytest.approx(
        (START + 99_800.2) / 1.001 / (START / 100.1), rel=0.03
    )
    assert (
        trade["fees"] > 0
        and trade["borrow"] == pytest.approx(START / 100.1 * 100 / 24)
        and trade["pnl"] == pytest.approx(-START)
    )
    assert r["equity"].tolist() == [
        START,
        pytest.approx(START - trade["fees"] / 2 - trade["borrow"], rel=0.01),
        0,
        0,
    ]


@both
def test_nobody_is_liquidated_in_an_hour_in_which_nobody_trades(run):
    full = market(*[100] * 60)
    absent = full.drop(full.index[3:50])                    # the borrow cost of two days exceeds the account
    for bars in (absent, regular_grid(absent), regular_grid(absent, max_gap=99)):
        trade = run(bars, [-1] * len(bars), fee=0.001, borrow_rate=1.0)["trades"].iloc[0]
        assert trade["exit_time"] == full.index[50] and trade["exit_reason"] == "liquidation"
        assert (
            0 < trade["exit_price"] <= 100
            and trade["pnl"] == pytest.approx(-START)
            and trade["borrow"] < START
        )


@settings(max_examples=150, deadline=None)
@given(cases())
def test_every_fill_has_a_bar_a_price_above_zero_and_a_fee_that_is_not_negative(case):
    bars, signal, setup = case
    r = simulate(bars, signal, **{**setup, "borrow_rate": 1.0})
    real = real_bars(bars).index
    assert (
        r["fills"]["time"].isin(real).all()
        and (r["fills"]["price"] > 0).all()
        and (r["fills"]["fee"] >= 0).all()
        and (r["trades"]["borrow"] >= 0).all()
    )
    assert (r["equity"] >= -1e-9 * setup["initial_balance"]).all()


def test_after_buying_all_in_no_cash_is_left():
    r = simulate(market(100, 100, 250), [1, 1, 0], fee=0.001, slippage=0.0002)
    fill = r["fills"].iloc[0]
    assert fill["price"] * fill["quantity"] + fill["fee"] == pytest.approx(START, rel=1e-12)
    assert r["final_balance"] == pytest.approx(fill["quantity"] * 250, rel=1e-12)


def test_size_comes_from_equity_at_the_fill():
    r = simulate(market(100, 100, 200, 200, 200), [1, 0, 1, 1, 1], fee=0, sizing="fraction", size=0.5)
    assert r["trades"]["quantity"].tolist() == pytest.approx([500, 150_000 / 2 / 200])


def test_volatility_sizing_knows_the_decision_bar_only_and_caps_leverage_at_one():
    bars = random_bars(60, 0, 0.02)
    r = simulate(bars, np.ones(60), fee=0, sizing="volatility", size=0.3)
    # 24 returns are known at the close of bar 24
    assert r["fills"]["time"][0] == bars.index[25]
    sigma = np.log(bars["close"]).diff().iloc[1:25].std()
    assert r["fills"]["quantity"][0] == pytest.approx(
        START * 0.3 / (sigma * np.sqrt(8760)) / bars["open"].iloc[25]
    )
    quiet = simulate(random_bars(60, 0, 0.0001), np.ones(60), fee=0, sizing="volatility", size=0.3)[
        "fills"
    ].iloc[0]
    assert quiet["quantity"] * quiet["price"] == pytest.approx(START)


@pytest.mark.parametrize("run", [simulate, simulate_reference])
@pytest.mark.parametrize("sigma_scale", [0.02, 0.0001])
def test_volatility_sizing_trades_from_the_first_tested_bar_with_the_volatility_of_the_whole_history(
    run, sigma_scale
):
    history = random_bars(200, 3, sigma_scale)
    sigma = np.log(history["close"]).diff().rolling(24).std()
    tested, known = history.iloc[120:150], sigma.iloc[120:150]
    setup = dict(fee=0, slippage=0.0002, sizing="volatility", size=0.3)
    fill = run(tested, np.ones(30), sigma=known, **setup)["fills"].iloc[0]
    # decided in the first tested bar
    assert fill["time"] == tested.index[1]
    share = min(1.0, 0.3 / (known.iloc[0] * np.sqrt(8760)))
    assert fill["quantity"] * fill["price"] == pytest.approx(START * share) and (share < 1) == (
        sigma_scale == 0.02
    )
    # measured on the tested bars alone
    assert run(tested, np.ones(30), **setup)["fills"]["time"].iloc[0] == tested.index[25]


def test_given_volatility_is_the_measured_one_where_both_exist():
    bars, wish = random_bars(300, 5, 0.02), np.repeat(np.random.default_rng(1).integers(-1, 2, 60), 5)
    sigma = np.log(bars["close"]).diff().rolling(24).std()
    setup = dict(sizing="volatility", size=0.4, stop_atr=2.0)
    own, given_ = simulate(bars, wish, **setup), simulate(bars, wish, sigma=sigma, **setup)
    np.testing.assert_allclose(own["equity"], given_["equity"], rtol=1e-9)
    assert len(own["trades"]) > 20


@pytest.mark.parametrize("run", [simulate, simulate_reference])
def test_no_entry_while_the_volatility_is_unknown_or_zero(run):
    bars = market(*[100] * 40)
    # constant prices
    assert len(run(bars, np.ones(40), sizing="volatility", size=0.3)["fills"]) == 0
    r = run(bars, np.ones(40), sizing="volatility", size=0.3, sigma=np.r_[np.nan, 0.0, np.full(38, 0.01)])
    assert r["fills"]["time"].tolist() == [bars.index[3]]


def test_pending_exit_at_the_open_comes_before_the_stop():
    atr = np.full(4, 5.0)
    def exits(signal):
        return simulate(market(100, 100, (85, 86, 84, 86), 86), signal, stop_atr=2, atr=atr)[
            "trades"
        ].iloc[0]["exit_reason"]
    assert (exits([1, 0, 0, 0]), exits([1, 1, 0, 0])) == ("signal", "gap_stop")


def test_a_stop_is_measured_from_the_fill_with_the_atr_of_the_decision():
    bars = market(100, 105, (105, 105, 90, 95), 95)
    trade = simulate(bars, [1, 1, 0, 0], fee=0, stop_atr=2, atr=[5, 1, 50, 50], slippage=0.01)["trades"].iloc[
        0
    ]
    assert trade["exit_price"] == pytest.approx((105 * 1.01 - 10) * 0.99)


def test_a_stop_may_end_a_position_before_min_hold():
    r = simulate(
        market(100, 100, (100, 100, 80, 85), 85, 85),
        [1, 0, 0, 0, 0],
        min_hold=4,
        stop_atr=2,
        atr=np.full(5, 5.0),
    )
    assert r["trades"]["exit_reason"].tolist() == ["stop"] and r["trades"]["bars_held"].tolist() == [1]


def test_equity_at_or_below_zero_liquidates_for_good():
    r = simulate(market(100, 100, 150, (150, 210, 140, 140), 90, 80), [-1, -1, -1, 1, 1, 1])
    assert r["equity"].tolist()[3:] == [0, 0, 0] and r["trades"]["exit_reason"].tolist() == ["liquidation"]
    assert r["trades"]["exit_price"][0] == pytest.approx(200 / 1.0, rel=0.002) and r["liquidation_value"] == 0
    assert r["trades"]["pnl"].sum() == pytest.approx(-START)


def test_an_exit_that_cannot_be_paid_at_the_open_is_ruin():
    # covering at 500 would cost five times the account
    r = simulate(market(100, 100, 500, 100), [-1, 0, 0, 0])
    assert r["equity"].tolist()[2:] == [0, 0] and r["trades"]["exit_reason"].tolist() == ["liquidation"]


def test_ruin_counts_the_cost_of_covering():
    bars, signal = market(100, 100, (150, 190, 150, 150), 150), [-1, -1, -1, 0]
    r = simulate(bars, signal, fee=0.1)
    quantity = START / 110
    # 181.8, inside the bar
    assert r["trades"]["exit_price"][0] == pytest.approx((START + quantity * 100 * 0.9) / (quantity * 1.1))
    at_open = simulate(market(100, 100, 190, 100), [-1, 0, 0, 0], fee=0.1)
    # the exit could not be paid
    assert at_open["trades"]["exit_reason"].tolist() == ["liquidation"] and at_open["final_balance"] == 0
    # 190 < 200
    assert simulate(bars, signal, fee=0)["trades"]["exit_reason"].tolist() == ["open"]
    assert simulate(bars, signal, fee=0, slippage=0.1)["trades"]["exit_reason"].tolist() == ["liquidation"]


def test_a_stop_below_ruin_saves_the_account_and_one_above_it_does_not():
    bars, signal = market(100, 100, (150, 400, 150, 150), 150), [-1, -1, 0, 0]
    assert simulate(bars, signal, stop_atr=1, atr=np.full(4, 60.0))["trades"]["exit_reason"].tolist() == [
        "stop"
    ]
    assert simulate(bars, signal, stop_atr=1, atr=np.full(4, 160.0))["trades"]["exit_reason"].tolist() == [
        "liquidation"
    ]


def shown(r: dict, bars: pd.DataFrame, label: str, table: tuple = FIGURES) -> str:
    "The strategy's value that page and terminal show beside this label."
    known = performance(r, bars)
    known["baseline_figures"] = dict.fromkeys((HOLD, REVERSAL), known["buy_and_hold"])
    return {name: own for name, own, *_ in figure_rows(known, table)}[label]


def test_the_last_position_is_marked_and_its_liquidation_value_shown():
    r = simulate(market(100, 100, 90), [-1, -1, -1], fee=0.001, slippage=0.01)
    trade = r["trades"].iloc[0]
    assert trade["exit_reason"] == "open" and pd.isna(trade["exit_time"]) and trade["bars_held"] == 2
    assert r["final_balance"] - r["liquidation_value"] == pytest.approx(
        trade["quantity"] * 90 * (0.01 + 1.01 * 0.001)
    )
    assert (
        shown(r, market(100, 100, 90), "liquidation value")
        == f"{r['liquidation_value']:,.2f}"
        != shown(r, market(100, 100, 90), "final balance")
    )


@both
def test_the_position_open_at_the_end_is_in_no_win_rate(run):
    # one loss closed, one gain open
    r = run(market(100, 100, 90, 90, 120), [1, 0, 1, 1, 1], fee=0)
    assert r["trades"]["exit_reason"].tolist() == ["signal", "open"] and r["trades"]["pnl"].iloc[1] > 0
    known = figures(r)
    assert (known["win_rate"], known["closed_trades"], known["open_trades"]) == (0, 1, 1)


@both
def test_a_short_pays_a_borrow_rate_per_day_on_its_notional(run):
    # 24 hours with a position: one day
    r = run(market(*[100] * 26), [-1] * 24 + [0, 0], fee=0, borrow_rate=0.01)
    assert r["total_borrow"] == pytest.approx(START * 0.01) and r["final_balance"] == pytest.approx(
        START * 0.99
    )
    # a long position borrows nothing
    assert run(market(*[100] * 26), [1] * 24 + [0, 0], fee=0, borrow_rate=0.01)["total_borrow"] == 0


@both
def test_a_short_earns_quantity_times_entry_less_exit(run):
    t = run(market(100, 100, 90, 99), [-1, -1, 0, 0], fee=0.001)["trades"].iloc[0]
    assert t["pnl"] == pytest.approx(t["quantity"] * (t["entry_price"] - t["exit_price"]) - t["fees"]) and t[
        "quantity"
    ] == pytest.approx(START / 100.1)


@both
def test_turnover_is_always_shown(run):
    bars = market(100, 100, 100, 100)
    r = run(market(100, 100, 100, 100), [1, -1, 0, 0], fee=0, sizing="fraction", size=0.5)
    # four fills of half the account: a reversal is two fills
    assert figures(r)["turnover"] == pytest.approx(0.5 * 4)
    assert shown(r, bars, "turnover, times the account") == "2.0"
    idle = run(bars, [0, 0, 0, 0])
    assert figures(idle)["turnover"] == 0 and shown(idle, bars, "turnover, times the account") == "0.0"


@both
def test_the_report_counts_bars_that_touch_both(run):
    rows = 100, 100, (100, 111, 89, 100), 100
    r = one(run, *rows, stop_atr=2, take_profit_atr=2)
    assert figures(r)["counts"]["both_touched"] == 1
    assert shown(r, market(*rows), "bars that touched stop and target (counted as stopped)", DETAILS) == "1"


@pytest.mark.parametrize("missing", range(1, 8))
def test_an_order_waits_through_three_missing_hours_and_no_more(missing):
    full = market(100, 100, *[100] * missing, 120, 120)
    bars = full.drop(full.index[2:2 + missing])
    frames = bars, regular_grid(bars), regular_grid(bars, max_gap=0), regular_grid(bars, max_gap=99)
    # absent, carried forward or empty: the result is the same
    for frame in frames:
        r = simulate(frame, (frame.index == bars.index[1]).astype(int), fee=0)
        assert r["fills"]["time"].tolist()[:1] == ([full.index[2 + missing]] if missing <= MAX_WAIT else [])
        assert r["equity"].isna().sum() == 0


def test_a_gap_decides_nothing():
    full = market(*[100] * 8)
    bars = regular_grid(full.drop(full.index[[3, 4]]))
    # signals of the missing hours are ignored
    r = simulate(bars, [1, 1, 1, -1, -1, 1, 1, 1], fee=0)
    assert len(r["fills"]) == 1


def test_bars_before_the_first_trade_and_an_unbroken_hole_cost_nothing():
    bars = market(*[100] * 6).assign(is_gap=True)
    r = simulate(bars, np.ones(6))
    assert (r["equity"] == START).all() and len(r["fills"]) == 0


def test_the_stamp_of_the_bars_travels_with_every_table():
    bars = stamp(market(100, 101, 102), "ETH/USD", "simulated", seed=3)
    r = simulate(bars, [1, 1, 1])
    assert all(
        provenance(r[k]) == provenance(bars)
        for k in ("equity", "low_equity", "position", "trades", "fills")
    )
    assert r["source"] == {"ticker": "ETH/USD", "exchange": "simulated", "simulated": True, "seed": 3}


def test_the_callers_bars_are_left_alone():
    bars = market(100, 101, 102)
    before = bars.copy()
    simulate(bars, [1, -1, 0], stop_atr=2.0)
    pd.testing.assert_frame_equal(bars, before)


BARS = market(100, 101, 102, 103)
BAD = {
    "too short": (lambda: simulate(BARS, [1, 1, 1]), "row 3 .*pass one value per bar"),
    "too long": (lambda: simulate(BARS, [1] * 5), "row 4 .*pass one value per bar"),
    "signal of another value": (
        lambda: simulate(BARS, [0, 0.5, 0, 0]),
        r"row 1 .*signal is 0.5; pass -1, 0 or 1",
    ),
    "signal NaN": (lambda: simulate(BARS, [0, 0, np.nan, 0]), "row 2 .*signal is nan; pass -1, 0 or 1"),
    "signal of other bars": (
        lambda: simulate(BARS, pd.Series(0, BARS.index + pd.Timedelta("1h"))),
        "row 0 .*reindex it",
    ),
    "price NaN": (
        lambda: simulate(BARS.assign(open=[100, 101, 102, np.nan]), [0] * 4),
        "row 3 .*not finite; repair",
    ),
    "unsorted": (lambda: simulate(BARS.iloc[[0, 2, 1, 3]], [0] * 4), "row 2 .*out of order; sort"),
    "duplicated": (lambda: simulate(BARS.iloc[[0, 1, 1, 2]], [0] * 4), "row 2 .*duplicated"),
    "bars of every other day": (
        lambda: simulate(BARS.set_axis(pd.date_range("2025-01-01", periods=4, freq="2D", tz="UTC")), [0] * 4),
        "row 1 .*pass hourly bars",
    ),
    "no bars": (lambda: simulate(BARS.iloc[:0], []), "pass at least one row"),
    "negative fee": (lambda: simulate(BARS, [0] * 4, fee=-0.001), "fee is -0.001; pass a number from 0"),
    "fee NaN": (lambda: simulate(BARS, [0] * 4, fee=np.nan), "fee is nan; pass a number"),
    "zero balance": (
        lambda: simulate(BARS, [0] * 4, initial_balance=0),
        "initial_balance is 0; pass a number above 0",
    ),
    "zero stop": (lambda: simulate(BARS, [0] * 4, stop_atr=0), "stop_atr is 0; pass a number from 0.01"),
    "negative ATR": (lambda: simulate(BARS, [0] * 4, stop_atr=1, atr=[1, 1, 1, -1]), "row 3 .*ATR is -1"),
    "negative volatility": (
        lambda: simulate(BARS, [0] * 4, sizing="volatility", sigma=[1, -1, 1, 1]),
        "row 1 .*sigma is -1",
    ),
    "volatility of other bars": (
        lambda: simulate(BARS, [0] * 4, sigma=[1, 1, 1]),
        "sigma has 3 rows .*pass one value per bar",
    ),
    "half a bar": (lambda: simulate(BARS, [0] * 4, min_hold=1.5), "min_hold is 1.5; pass a whole number"),
    "unknown sizing": (lambda: simulate(BARS, [0] * 4, sizing="al_in"), "did you mean all_in?"),
    "leverage": (
        lambda: simulate(BARS, [0] * 4, sizing="fraction", size=2),
        "pass a fraction of equity from 0 to 1",
    ),
    "a stop of everything": (
        lambda: simulate(BARS, [0] * 4, stop_percent=1),
        "stop_percent is 1; pass a number above 0, up to 0.99, or null",
    ),
    "time exit before min_hold": (
        lambda: simulate(BARS, [0] * 4, min_hold=5, max_hold=3),
        "max_hold is 3 and min_hold 5; pass a max_hold that is not shorter",
    ),
    "more than the whole volume": (
        lambda: simulate(BARS, [0] * 4, max_volume_share=2),
        "max_volume_share is 2; pass a number above 0, up to 1",
    ),
    "negative lot": (lambda: simulate(BARS, [0] * 4, lot=-1), "lot is -1; pass a number from 0"),
    "negative volume": (
        lambda: simulate(BARS.assign(volume=[1, 1, -1, 1]), [0] * 4),
        "row 2 .*negative volume",
    ),
    "a table of signals": (
        lambda: simulate(BARS, np.zeros((4, 1))),
        "signal is a ndarray of 2 dimensions; pass one value per bar",
    ),
    "a frame of signals": (
        lambda: simulate(BARS, pd.DataFrame({"s": [0] * 4})),
        "signal is a DataFrame of 2 dimensions; pass one value per bar",
    ),
    "one signal": (lambda: simulate(BARS, 1), "signal is an int; pass one value per bar"),
    "no signal": (lambda: simulate(BARS, None), "signal is a NoneType; pass one value per bar"),
    "a generator": (
        lambda: simulate(BARS, (x for x in range(4))),
        "signal is a generator; pass one value per bar",
    ),
    "ragged signals": (
        lambda: simulate(BARS, [[0], [0, 1], 0, 0]),
        "signal is a list of 2 dimensions; pass one value per bar",
    ),
    "an ATR for all bars": (
        lambda: simulate(BARS, [0] * 4, stop_atr=1, atr=2.0),
        "atr is a float; pass one value per bar",
    ),
    "text for prices": (
        lambda: simulate(BARS.assign(close=["a", "b", "c", "d"]), [0] * 4),
        "bars hold something that is no number .*pass prices",
    ),
    "no frame": (lambda: simulate(None, [0] * 4), "bars are of the type NoneType; pass a DataFrame"),
    "gaps in words": (
        lambda: simulate(BARS.assign(is_gap=["no"] * 4), [0] * 4),
        "row 0 has is_gap 'no'; pass True or False",
    ),
    "leverage of everything": (
        lambda: simulate(BARS, [0] * 4, max_leverage=5),
        "max_leverage is 5 but sizing=all_in borrows nothing; pass sizing",
    ),
    "negative maker fee": (
        lambda: simulate(BARS, [0] * 4, maker_fee=-0.1),
        "maker_fee is -0.1; pass a number from 0 to 0.1, or null",
    ),
    "ignored size": (lambda: simulate(BARS, [0] * 4, size=0.5), "pass sizing=fraction"),
}


def test_stops_and_sizes_use_the_same_atr_and_sigma_as_the_features():
    """`simulate` without ATR and σ computes what the feature table holds, bit for bit: a stop of 2 ATR is the
    same price in both."""
    bars = random_bars(600, seed=5, sigma=0.01)
    table, signal = features(bars), np.repeat(np.random.default_rng(6).integers(-1, 2, 120), 5)
    signal[:30] = 0                              # the features are NaN for 27 bars
    setup = dict(stop_atr=1.5, take_profit_atr=2.0, sizing="volatility", size=0.5)
    alone = simulate(bars, signal, **setup)
    informed = simulate(bars, signal, **setup, atr=table["atr"], sigma=table["sigma"])
    assert len(alone["trades"]) > 20
    pd.testing.assert_frame_equal(alone["trades"], informed["trades"], check_exact=True)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_sentence_that_names_the_row(name):
    call, text = BAD[name]
    with pytest.raises(InputError, match=text): call()
