"""Execution: the kernel against a slow reference, the golden cases, and what must hold for any bars, signal and settings."""
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cryptolstm.backtester import MAX_WAIT, simulate, simulate_reference, wilder_atr
from cryptolstm.core import InputError, regular_grid

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "coinbase" / "ETH_USD_1h.parquet"
START = 100_000.0


def market(*rows):
    rows = [r if isinstance(r, tuple) else (r,) * 4 for r in rows]
    index = pd.date_range("2025-01-01", periods=len(rows), freq="h", tz="UTC")
    return pd.DataFrame(rows, index, ["open", "high", "low", "close"], dtype=float).assign(volume=1.0)


def random_bars(n, seed, sigma):
    g = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(sigma * g.standard_normal(n)))
    open_ = np.r_[100, close[:-1]] * np.exp(0.3 * sigma * g.standard_normal(n))
    wick = np.exp(sigma * np.abs(g.standard_normal((2, n))))
    high, low = np.maximum(open_, close) * wick[0], np.minimum(open_, close) / wick[1]
    rows = {"open": open_, "high": high, "low": low, "close": close, "volume": 1.0}
    return pd.DataFrame(rows, pd.date_range("2025-01-01", periods=n, freq="h", tz="UTC"))


@st.composite
def bar_frames(draw, smallest=2, largest=90, holes=True):
    n, seed = draw(st.integers(smallest, largest)), draw(st.integers(0, 2**32 - 1))
    bars = random_bars(n, seed, draw(st.sampled_from([0.003, 0.02, 0.15])))  # quiet, lively, ruinous
    if not holes or not draw(st.booleans()): return bars
    absent = set()
    for start, length in draw(st.lists(st.tuples(st.integers(2, n), st.integers(1, 6)), max_size=3)):
        absent |= set(range(start, start + length))
    kept = bars.drop(bars.index[[i for i in absent if i < n]])
    return draw(st.sampled_from([lambda b: b, regular_grid, lambda b: regular_grid(b, max_gap=0)]))(kept)  # absent, carried, empty


@st.composite
def signals(draw, n):
    runs = draw(st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.integers(1, 12)), min_size=1, max_size=max(1, n)))
    flat = [side for side, length in runs for _ in range(length)]
    return np.resize(flat, n)


@st.composite
def setups(draw):
    sizing = draw(st.sampled_from(["all_in", "fraction", "volatility"]))
    return {"initial_balance": draw(st.sampled_from([1.0, START])), "fee": draw(st.sampled_from([0.0, 0.001, 0.05])),
            "slippage": draw(st.sampled_from([0.0, 0.0002, 0.05])), "stop_atr": draw(st.sampled_from([None, 0.3, 1.0, 3.0])),
            "sizing": sizing, "size": 1.0 if sizing == "all_in" else draw(st.sampled_from([0.1, 0.7, 1.0])),
            "exit": draw(st.sampled_from(["neutral", "opposite"])), "min_hold": draw(st.sampled_from([0, 1, 5])),
            "borrow_rate": draw(st.sampled_from([0.0, 0.001, 0.5]))}


@st.composite
def cases(draw, **kind):
    bars, setup = draw(bar_frames(**kind)), draw(setups())
    atr = draw(st.sampled_from([None, 3, 5]))  # short windows, so that short frames see stops
    if atr is not None and setup["stop_atr"] is not None and bars.index.size: setup["atr"] = wilder_atr(bars, atr)
    return bars, draw(signals(len(bars))), setup


def close_to(a, b, scale): np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * scale)


# -- the kernel and the reference ----------------------------------------------------------------------------------------------------

@settings(max_examples=300, deadline=None)
@given(cases())
def test_kernel_equals_the_plain_reference(case):
    bars, signal, setup = case
    fast, slow, money = simulate(bars, signal, **setup), simulate_reference(bars, signal, **setup), setup["initial_balance"]
    for key in ("equity", "low_equity", "final_balance", "liquidation_value", "total_fees", "total_borrow"):
        close_to(fast[key], slow[key], money)
    pd.testing.assert_series_equal(fast["position"], slow["position"])
    for key in ("trades", "fills"): pd.testing.assert_frame_equal(fast[key], slow[key], rtol=1e-9, atol=1e-9 * money)


def test_the_random_cases_reach_every_way_a_trade_can_end():
    seen = set()
    for seed in range(60):
        bars, wish = random_bars(200, seed, 0.15), np.repeat(np.random.default_rng(seed).integers(-1, 2, 20), 10)
        seen |= set(simulate(bars, wish, stop_atr=[None, 0.5, 2.0][seed % 3])["trades"]["exit_reason"])
    assert seen == {"signal", "reverse", "stop", "gap_stop", "liquidation", "open"}


@pytest.mark.skipif(not REAL.exists(), reason="no real candles beside the repository")
def test_kernel_equals_the_reference_on_a_year_of_real_bars():
    bars = pd.read_parquet(REAL)
    signal = np.repeat(np.random.default_rng(0).integers(-1, 2, len(bars) // 12 + 1), 12)[:len(bars)]
    setup = dict(slippage=0.0002, stop_atr=2.0, sizing="volatility", size=0.5, borrow_rate=0.0002)
    fast, slow = simulate(bars, signal, **setup), simulate_reference(bars, signal, **setup)
    np.testing.assert_allclose(fast["equity"], slow["equity"], rtol=1e-9)
    assert len(fast["trades"]) == len(slow["trades"]) > 100


# -- what must hold for anything -----------------------------------------------------------------------------------------------------

@settings(max_examples=150, deadline=None)
@given(cases())
def test_money_is_conserved(case):
    bars, signal, setup = case
    r = simulate(bars, signal, **setup)
    close_to(r["final_balance"], setup["initial_balance"] + r["trades"]["pnl"].sum(), setup["initial_balance"])
    t = r["trades"]
    gross = (t["side"] * t["quantity"] * (t["exit_price"] - t["entry_price"])).sum()
    close_to(r["final_balance"], setup["initial_balance"] + gross - r["total_fees"] - r["total_borrow"], setup["initial_balance"])
    close_to(r["fills"]["fee"].sum(), r["total_fees"], setup["initial_balance"])
    assert (r["equity"] >= -1e-9 * setup["initial_balance"]).all() and (r["low_equity"] <= r["equity"]).all()


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from([0.0001, 0.002, 0.02]))
def test_more_fee_never_earns_more(case, extra):
    # Neither fill prices nor stops depend on the fee, only quantities do (and ruin comes earlier). The one exception: the fee makes the
    # quantity smaller, which is a blessing for a short that loses more than its whole notional, as a small fraction of equity may.
    bars, signal, setup = case
    low, high = simulate(bars, signal, **setup), simulate(bars, signal, **{**setup, "fee": setup["fee"] + extra})
    assume((low["trades"]["pnl"] + low["trades"]["fees"] > -low["trades"]["quantity"] * low["trades"]["entry_price"] * 0.999).all())
    money = setup["initial_balance"]
    assert high["final_balance"] <= low["final_balance"] + 1e-9 * money
    if len(low["fills"]) and low["final_balance"] > 1e-6 * money: assert high["final_balance"] < low["final_balance"]


@settings(max_examples=100, deadline=None)
@given(cases(), st.sampled_from([0.001, 7.0, 1000.0]))
def test_prices_times_k_change_quantities_only(case, k):
    bars, signal, setup = case
    dear = bars.assign(**{c: bars[c] * k for c in ("open", "high", "low", "close")})
    atr = {"atr": setup["atr"] * k} if "atr" in setup else {}
    a, b = simulate(bars, signal, **setup), simulate(dear, signal, **{**setup, **atr})
    close_to(a["equity"], b["equity"], setup["initial_balance"])
    assert a["trades"]["exit_reason"].tolist() == b["trades"]["exit_reason"].tolist()
    close_to(a["trades"]["quantity"], b["trades"]["quantity"] * k, setup["initial_balance"])


@settings(max_examples=150, deadline=None)
@given(cases(), st.data())
def test_nothing_depends_on_the_future_and_no_bar_on_its_own_signal(case, data):
    bars, signal, setup = case
    cut = data.draw(st.integers(1, len(bars) - 1))
    assume((np.diff(bars.index[:cut].asi8) == np.diff(bars.index.asi8).min()).any() or cut == 1)  # the past alone must still be hourly bars
    past = {**setup, "atr": setup["atr"].iloc[:cut]} if "atr" in setup else setup
    other = signal.copy()
    other[cut - 1] = (signal[cut - 1] + 2) % 3 - 1                     # another wish at the close of the last bar of the past
    full, part = simulate(bars, signal, **setup), simulate(bars.iloc[:cut], other[:cut], **past)
    for key in ("equity", "low_equity", "position"): assert full[key].iloc[:cut].tolist() == part[key].tolist()  # bit for bit


@settings(max_examples=100, deadline=None)
@given(cases())
def test_no_trade_without_a_signal(case):
    bars, signal, setup = case
    none = simulate(bars, np.zeros(len(bars)), **setup)
    assert len(none["fills"]) == 0 and (none["equity"] == setup["initial_balance"]).all() and (none["position"] == 0).all()
    fills, wished = simulate(bars, signal, **setup)["fills"], pd.Series(signal, bars.index)
    for fill in fills[fills["reason"] == "entry"].itertuples(): assert fill.side in wished[:fill.time - pd.Timedelta(1, "h")].to_numpy()


@settings(max_examples=150, deadline=None)
@given(cases())
def test_fills_only_at_prices_the_bar_contains(case):
    bars, signal, setup = case
    fills = simulate(bars, signal, **setup)["fills"]
    fills = fills[fills["reason"] != "liquidation"]                    # that price is set by the exchange, also when the market jumps it
    if "is_gap" in bars: assert not bars.loc[fills["time"], "is_gap"].any()
    at = bars.loc[fills["time"]]
    quoted = fills["price"].to_numpy() / (1 + fills["side"].to_numpy() * setup["slippage"])
    assert (quoted <= at["high"] * (1 + 1e-12)).all() and (quoted >= at["low"] * (1 - 1e-12)).all()
    orders = fills["reason"].isin(["entry", "signal", "reverse", "gap_stop"]).to_numpy()
    np.testing.assert_allclose(quoted[orders], at["open"][orders], rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_a_stop_fills_at_its_distance_from_the_entry(case):
    bars, signal, setup = case
    assume("atr" in setup)
    trades, atr = simulate(bars, signal, **setup)["trades"], setup["atr"]
    for t in trades[trades["exit_reason"] == "stop"].itertuples():
        decided = atr[:t.entry_time - pd.Timedelta(1, "h")]
        decided = decided[~bars["is_gap"][decided.index]] if "is_gap" in bars else decided
        stop = t.entry_price - t.side * setup["stop_atr"] * decided.iloc[-1]
        assert t.exit_price == pytest.approx(stop * (1 - t.side * setup["slippage"]), rel=1e-12)


# -- the sentences of the contract, one by one ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("run", [simulate, simulate_reference])
def test_golden_reversal(run):
    r = run(market(100, 100, 110, 99), [1, -1, 0, 0], fee=0.001)
    assert r["final_balance"] == pytest.approx(120_538.9007, abs=5e-5)
    assert r["trades"]["quantity"].tolist() == pytest.approx([999.000999, 997.0049930], abs=1e-6)
    assert r["equity"].iloc[2] == pytest.approx(109_670.5492, abs=5e-5)
    assert r["fills"]["time"].tolist()[1:3] == [r["equity"].index[2]] * 2      # a reversal is two fills at one open


@pytest.mark.parametrize("run", [simulate, simulate_reference])
def test_golden_fixed_quantity_short(run):
    assert run(market(100, 100, 90, 99), [-1, -1, 0, 0], fee=0)["final_balance"] == pytest.approx(101_000)


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
    assert r["fills"]["time"][0] == bars.index[25]                             # 24 returns exist at the close of bar 24
    sigma = np.log(bars["close"]).diff().iloc[1:25].std()
    assert r["fills"]["quantity"][0] == pytest.approx(START * 0.3 / (sigma * np.sqrt(8760)) / bars["open"].iloc[25])
    quiet = simulate(random_bars(60, 0, 0.0001), np.ones(60), fee=0, sizing="volatility", size=0.3)["fills"].iloc[0]
    assert quiet["quantity"] * quiet["price"] == pytest.approx(START)


def test_pending_exit_at_the_open_comes_before_the_stop():
    atr = np.full(4, 5.0)
    exits = lambda signal: simulate(market(100, 100, (85, 86, 84, 86), 86), signal, stop_atr=2, atr=atr)["trades"].iloc[0]["exit_reason"]
    assert (exits([1, 0, 0, 0]), exits([1, 1, 0, 0])) == ("signal", "gap_stop")


def test_a_stop_is_measured_from_the_fill_with_the_atr_of_the_decision():
    bars = market(100, 105, (105, 105, 90, 95), 95)
    trade = simulate(bars, [1, 1, 0, 0], fee=0, stop_atr=2, atr=[5, 1, 50, 50], slippage=0.01)["trades"].iloc[0]
    assert trade["exit_price"] == pytest.approx((105 * 1.01 - 10) * 0.99)


def test_a_stop_may_end_a_position_before_min_hold():
    r = simulate(market(100, 100, (100, 100, 80, 85), 85, 85), [1, 0, 0, 0, 0], min_hold=4, stop_atr=2, atr=np.full(5, 5.0))
    assert r["trades"]["exit_reason"].tolist() == ["stop"] and r["trades"]["bars_held"].tolist() == [1]


def test_equity_at_or_below_zero_liquidates_for_good():
    r = simulate(market(100, 100, 150, (150, 210, 140, 140), 90, 80), [-1, -1, -1, 1, 1, 1])
    assert r["equity"].tolist()[3:] == [0, 0, 0] and r["trades"]["exit_reason"].tolist() == ["liquidation"]
    assert r["trades"]["exit_price"][0] == pytest.approx(200 / 1.0, rel=0.002) and r["liquidation_value"] == 0
    assert r["trades"]["pnl"].sum() == pytest.approx(-START)


def test_an_exit_that_cannot_be_paid_at_the_open_is_ruin():
    r = simulate(market(100, 100, 500, 100), [-1, 0, 0, 0])                    # covering at 500 would cost five times the account
    assert r["equity"].tolist()[2:] == [0, 0] and r["trades"]["exit_reason"].tolist() == ["liquidation"]


def test_ruin_counts_the_cost_of_covering():
    bars, signal = market(100, 100, (150, 190, 150, 150), 150), [-1, -1, -1, 0]
    r = simulate(bars, signal, fee=0.1)
    quantity = START / 110
    assert r["trades"]["exit_price"][0] == pytest.approx((START + quantity * 100 * 0.9) / (quantity * 1.1))   # 181.8, inside the bar
    at_open = simulate(market(100, 100, 190, 100), [-1, 0, 0, 0], fee=0.1)
    assert at_open["trades"]["exit_reason"].tolist() == ["liquidation"] and at_open["final_balance"] == 0     # the exit could not be paid
    assert simulate(bars, signal, fee=0)["trades"]["exit_reason"].tolist() == ["open"]                        # 190 < 200
    assert simulate(bars, signal, fee=0, slippage=0.1)["trades"]["exit_reason"].tolist() == ["liquidation"]


def test_a_stop_below_ruin_saves_the_account_and_one_above_it_does_not():
    bars, signal = market(100, 100, (150, 400, 150, 150), 150), [-1, -1, 0, 0]
    assert simulate(bars, signal, stop_atr=1, atr=np.full(4, 60.0))["trades"]["exit_reason"].tolist() == ["stop"]
    assert simulate(bars, signal, stop_atr=1, atr=np.full(4, 160.0))["trades"]["exit_reason"].tolist() == ["liquidation"]


def test_the_last_position_is_marked_and_its_liquidation_value_shown():
    r = simulate(market(100, 100, 90), [-1, -1, -1], fee=0.001, slippage=0.01)
    trade = r["trades"].iloc[0]
    assert trade["exit_reason"] == "open" and pd.isna(trade["exit_time"]) and trade["bars_held"] == 2
    assert r["final_balance"] - r["liquidation_value"] == pytest.approx(trade["quantity"] * 90 * (0.01 + 1.01 * 0.001))


@pytest.mark.parametrize("missing", range(1, 8))
def test_an_order_waits_through_three_missing_hours_and_no_more(missing):
    full = market(100, 100, *[100] * missing, 120, 120)
    bars = full.drop(full.index[2:2 + missing])
    frames = bars, regular_grid(bars), regular_grid(bars, max_gap=0), regular_grid(bars, max_gap=99)
    for frame in frames:                                                       # absent, carried or empty: the same event
        r = simulate(frame, (frame.index == bars.index[1]).astype(int), fee=0)
        assert r["fills"]["time"].tolist()[:1] == ([full.index[2 + missing]] if missing <= MAX_WAIT else [])
        assert r["equity"].isna().sum() == 0


def test_a_gap_decides_nothing():
    full = market(*[100] * 8)
    bars = regular_grid(full.drop(full.index[[3, 4]]))
    r = simulate(bars, [1, 1, 1, -1, -1, 1, 1, 1], fee=0)                      # the wishes of hours that did not exist
    assert len(r["fills"]) == 1


def test_bars_before_the_first_trade_and_an_unbroken_hole_cost_nothing():
    bars = market(*[100] * 6).assign(is_gap=True)
    r = simulate(bars, np.ones(6))
    assert (r["equity"] == START).all() and len(r["fills"]) == 0


def test_the_stamp_of_the_bars_travels_with_every_table():
    bars = market(100, 101, 102)
    bars.attrs = {"ticker": "ETH/USD", "exchange": "simulated", "simulated": True}
    r = simulate(bars, [1, 1, 1])
    assert all(r[k].attrs == r["source"] == bars.attrs for k in ("equity", "low_equity", "position", "trades", "fills"))


def test_the_callers_bars_are_left_alone():
    bars = market(100, 101, 102)
    before = bars.copy()
    simulate(bars, [1, -1, 0], stop_atr=2.0)
    pd.testing.assert_frame_equal(bars, before)


BARS = market(100, 101, 102, 103)
BAD = {
    "too short": (lambda: simulate(BARS, [1, 1, 1]), "row 3 .*pass one value per bar"),
    "too long": (lambda: simulate(BARS, [1] * 5), "row 4 .*pass one value per bar"),
    "signal of another value": (lambda: simulate(BARS, [0, 0.5, 0, 0]), r"row 1 .*signal is 0.5; pass -1, 0 or 1"),
    "signal NaN": (lambda: simulate(BARS, [0, 0, np.nan, 0]), "row 2 .*signal is nan; pass -1, 0 or 1"),
    "signal of other bars": (lambda: simulate(BARS, pd.Series(0, BARS.index + pd.Timedelta("1h"))), "row 0 .*reindex it"),
    "price NaN": (lambda: simulate(BARS.assign(open=[100, 101, 102, np.nan]), [0] * 4), "row 3 .*not finite; repair"),
    "unsorted": (lambda: simulate(BARS.iloc[[0, 2, 1, 3]], [0] * 4), "row 2 .*out of order; sort"),
    "duplicated": (lambda: simulate(BARS.iloc[[0, 1, 1, 2]], [0] * 4), "row 2 .*duplicated"),
    "daily bars": (lambda: simulate(BARS.set_axis(pd.date_range("2025-01-01", periods=4, tz="UTC")), [0] * 4), "row 1 .*pass hourly bars"),
    "no bars": (lambda: simulate(BARS.iloc[:0], []), "pass at least one row"),
    "negative fee": (lambda: simulate(BARS, [0] * 4, fee=-0.001), "fee is -0.001; pass a number from 0"),
    "fee NaN": (lambda: simulate(BARS, [0] * 4, fee=np.nan), "fee is nan; pass a number"),
    "zero balance": (lambda: simulate(BARS, [0] * 4, initial_balance=0), "initial_balance is 0; pass a number above 0"),
    "zero stop": (lambda: simulate(BARS, [0] * 4, stop_atr=0), "stop_atr is 0; pass a number above 0"),
    "negative ATR": (lambda: simulate(BARS, [0] * 4, stop_atr=1, atr=[1, 1, 1, -1]), "row 3 .*ATR is -1"),
    "half a bar": (lambda: simulate(BARS, [0] * 4, min_hold=1.5), "min_hold is 1.5; pass a whole number"),
    "unknown sizing": (lambda: simulate(BARS, [0] * 4, sizing="al_in"), "did you mean all_in?"),
    "leverage": (lambda: simulate(BARS, [0] * 4, sizing="fraction", size=2), "pass a fraction of equity from 0 to 1"),
    "ignored size": (lambda: simulate(BARS, [0] * 4, size=0.5), 'pass sizing="fraction"'),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_sentence_that_names_the_row(name):
    call, text = BAD[name]
    with pytest.raises(InputError, match=text): call()
