"""Several tickers on one balance: against a plain reference, against `simulate`, and properties for any
market."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_execution import market, random_bars

from cryptolstm.core.errors import InputError
from cryptolstm.core.bars import regular_grid, stamp
from cryptolstm.execution.simulate import simulate
from cryptolstm.execution.portfolio import portfolio, portfolio_reference

START = 100_000.0


def random_case(seed):
    "Tickers with different listing hours and holes, signals or weights, and settings."
    g = np.random.default_rng(seed)
    m, n, sigma = g.integers(1, 5), g.integers(30, 90), g.choice([0.003, 0.03, 0.15, 0.4])
    bars, signals, weights = {}, {}, {}
    for i in range(m):
        frame = random_bars(n, [seed, i], sigma).iloc[g.integers(0, 9):]
        if g.random() < 0.5:
            frame = frame.drop(
                frame.index[g.choice(np.arange(3, len(frame) - 3), g.integers(1, 7), replace=False)]
            )
        if g.random() < 0.5: frame = regular_grid(frame, g.choice([0, 3]))
        name = f"{'ABCDE'[i]}/USD"
        bars[name], signals[name] = (
            frame,
            np.repeat(g.integers(-1, 2, len(frame)), g.integers(1, 9))[: len(frame)],
        )
        weights[name] = np.repeat(
            g.uniform(-1, 1, len(frame)) * (g.random(len(frame)) < 0.8) / m, g.integers(1, 9)
        )[: len(frame)]
    setup = {
        "fee": g.choice([0, 0.001, 0.05]),
        "slippage": g.choice([0, 0.0005, 0.05]),
        "borrow_rate": g.choice([0, 0.01, 0.5]),
        "weighting": g.choice(["equal", "risk"]),
        "cap": g.choice([0.3, 1.0]),
        "band": g.choice([0, 0.01, 0.2]),
    }
    want = (
        {"signals": signals}
        if g.random() < 0.5
        else {"weights": {t: np.clip(w, -setup["cap"], setup["cap"]) for t, w in weights.items()}}
    )
    return bars, want, {k: v.item() if isinstance(v, np.generic) else v for k, v in setup.items()}


CASES = st.integers(0, 2**31)


@settings(max_examples=40, deadline=None)
@given(CASES)
# in the fourth of these an entry was once made with a rounding residue
@example(4999999)
def test_kernel_equals_the_plain_reference(seed):
    for k in range(4):
        bars, want, setup = random_case([seed, k])
        fast, slow = portfolio(bars, **want, **setup), portfolio_reference(bars, **want, **setup)
        for key in ("equity", "final_balance", "total_fees", "total_borrow", "written_off"):
            np.testing.assert_allclose(fast[key], slow[key], rtol=1e-9, atol=1e-9 * START)
        np.testing.assert_allclose(fast["quantity"], slow["quantity"], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(
            fast["attribution"][["pnl", "fees", "borrow"]],
            slow["attribution"][["pnl", "fees", "borrow"]],
            rtol=1e-9,
            atol=1e-9 * START,
        )


def test_the_random_cases_reach_ruin_and_trades_of_both_kinds():
    runs = [portfolio(bars, **want, **setup) for bars, want, setup in map(random_case, range(120))]
    assert (
        sum(r["written_off"] > 0 for r in runs) > 3
        and sum(r["attribution"]["fills"].sum() > 10 for r in runs) > 60
    )


@settings(max_examples=80, deadline=None)
@given(CASES)
def test_money_is_conserved_and_attributed(seed):
    bars, want, setup = random_case(seed)
    r = portfolio(bars, **want, **setup)
    assert r["final_balance"] == pytest.approx(
        START + r["attribution"]["pnl"].sum() + r["written_off"], abs=1e-9 * START * max(1, len(bars)) * 100
    )
    assert (r["equity"] >= 0).all() and r["attribution"]["fees"].sum() == pytest.approx(r["total_fees"])


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_the_order_of_the_tickers_does_not_matter(seed):
    bars, want, setup = random_case(seed)
    turned = {k: {t: v[t] for t in reversed(v)} for k, v in want.items()}
    a = portfolio(bars, **want, **setup)
    b = portfolio({t: bars[t] for t in reversed(bars)}, **turned, **setup)
    np.testing.assert_allclose(a["equity"], b["equity"], rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(
        a["attribution"]["pnl"], b["attribution"]["pnl"].reindex(list(bars)), rtol=1e-9, atol=1e-6
    )


@settings(max_examples=60, deadline=None)
@given(CASES, st.sampled_from([0.001, 7.0, 1000.0]))
def test_prices_times_k_change_quantities_only(seed, k):
    bars, want, setup = random_case(seed)
    dear = {t: f.assign(**{c: f[c] * k for c in ("open", "high", "low", "close")}) for t, f in bars.items()}
    a, b = portfolio(bars, **want, **setup), portfolio(dear, **want, **setup)
    np.testing.assert_allclose(a["equity"], b["equity"], rtol=1e-9, atol=1e-9 * START)
    np.testing.assert_allclose(a["quantity"], b["quantity"] * k, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("run", [portfolio, portfolio_reference])
@pytest.mark.parametrize("order", ["ABC", "CBA", "BAC", "CAB"])
@pytest.mark.parametrize("k", [1, 7, 1000])
def test_what_rounding_leaves_of_the_account_is_nothing_to_enter_with(run, order, k):
    # A takes all that is left beside no other position; B and C may enter when A is closed
    a, b, c = 70.56 * k, 77.55 * k, 60.37 * k
    bars = {"A": market(a, a, *[10 * a] * 6), "B": market(*[b] * 8), "C": market(*[c] * 7, 2 * c)}
    wish = {"A": [1, 1, 1, 1, 0, 0, 0, 0], "B": [0] + [1] * 7, "C": [0, 0] + [1] * 6}
    end = run({t: bars[t] for t in order}, {t: wish[t] for t in order}, fee=0.001)["final_balance"]
    assert end == pytest.approx(532_090.6200027079, rel=1e-12)


@settings(max_examples=80, deadline=None)
@given(CASES, st.booleans())
def test_one_ticker_alone_is_simulate(seed, half):
    g = np.random.default_rng(seed)
    bars, signal = random_bars(80, seed, 0.01), np.repeat(g.integers(-1, 2, 20), 4)
    if seed % 2: bars, signal = bars.drop(bars.index[[10, 11, 40, 41, 42, 43, 44]]), signal[:73]
    costs = dict(fee=0.002, slippage=0.001, borrow_rate=0.01)
    one = portfolio({"A/USD": bars}, {"A/USD": signal}, cap=0.5 if half else 1.0, **costs)
    own = simulate(bars, signal, **costs, **({"sizing": "fraction", "size": 0.5} if half else {}))
    np.testing.assert_allclose(one["equity"].loc[bars.index], own["equity"], rtol=1e-9)
    assert one["attribution"]["fills"].tolist() == [len(own["fills"])]


@settings(max_examples=60, deadline=None)
@given(CASES)
@example(297582915)                                         # both tickers closed at the cut
def test_no_future_enters(seed):
    bars, want, setup = random_case(seed)
    cut = min(f.index[0] for f in bars.values()) + pd.Timedelta(20, "h")
    kind, values = next(iter(want.items()))
    past = {t: f.loc[:cut] for t, f in bars.items()}
    full = portfolio(bars, **want, **setup)
    part = portfolio(past, **{kind: {t: values[t][:len(past[t])] for t in past}}, **setup)
    # there may be a gap at the cut: the curve ends at the last bar before it
    known = max(f.index[-1] for f in past.values())
    # bit for bit
    assert (
        part["equity"].index[-1] == known and full["equity"].loc[:known].tolist() == part["equity"].tolist()
    )


@settings(max_examples=40, deadline=None)
@given(CASES)
def test_nothing_wanted_is_nothing_traded(seed):
    bars, _, setup = random_case(seed)
    for want in (
        {"signals": {t: np.zeros(len(f)) for t, f in bars.items()}},
        {"weights": {t: np.zeros(len(f)) for t, f in bars.items()}},
    ):
        r = portfolio(bars, **want, **setup)
        assert (r["equity"] == START).all() and r["attribution"]["fills"].sum() == 0


def test_every_order_is_sized_by_the_whole_account():
    bars = {"A/USD": market(100, 100, 300, 300), "B/USD": market(10, 10, 10, 10)}
    r = portfolio(bars, {"A/USD": [1, 1, 1, 1], "B/USD": [0, 1, 1, 1]}, fee=0, cap=0.3)
    # B: 30 % of 160,000, which includes A's gain
    assert r["quantity"].iloc[-1].tolist() == [300, 4_800] and r["final_balance"] == pytest.approx(160_000)


@pytest.mark.parametrize("run", [portfolio, portfolio_reference])
def test_an_entry_takes_no_more_than_what_is_left_beside_the_positions_held(run):
    bars = {
        "A/USD": market(100, 100, 300, 300),
        "B/USD": market(10, 10, 10, 10),
        "C/USD": market(10, 10, 10, 10),
    }
    late = run(
        bars,
        {"A/USD": [1] * 4, "B/USD": [0, 1, 1, 1], "C/USD": [0, 1, -1, -1]},
        fee=0,
        cap=0.5,
        weighting="equal",
    )
    # 166,667 less the 100,000 of A, in two equal parts
    assert late["quantity"].iloc[2].tolist() == pytest.approx([1000 / 3, 10_000 / 3, 10_000 / 3])


@settings(max_examples=40, deadline=None)
@given(CASES, st.sampled_from(["equal", "risk"]))
def test_entries_from_signals_never_borrow(seed, weighting):
    g = np.random.default_rng(seed)
    bars = {f"{name}/USD": random_bars(120, [seed, i], 0.03) for i, name in enumerate("ABC")}
    r = portfolio(bars, {t: np.repeat(g.integers(-1, 2, 30), 4) for t in bars}, fee=0, weighting=weighting)
    opens, closes = (pd.DataFrame({t: f[k] for t, f in bars.items()}) for k in ("open", "close"))
    # at the opens
    worth = r["equity"] + (r["quantity"] * (opens - closes)).sum(axis=1)
    gross = (r["quantity"].abs() * opens).sum(axis=1)
    entered = ((r["quantity"] != 0) & (r["quantity"] != r["quantity"].shift(fill_value=0.0))).any(axis=1)
    assert entered.sum() > 10 and (gross[entered] <= worth[entered] * (1 + 1e-9)).all()


@pytest.mark.parametrize("run", [portfolio, portfolio_reference])
@pytest.mark.parametrize("side", [1, -1])
def test_weights_never_borrow_what_a_sale_pays_for_comes_after_its_costs(run, side):
    bars = {"A/USD": market(*[100] * 5), "B/USD": market(*[50] * 5)}
    r = run(bars, weights={"A/USD": [1, 0, 0, 0, 0], "B/USD": [0, *[side] * 4]}, fee=0.01, slippage=0.01)
    # and nothing is sold again
    assert (
        r["weights"].abs().sum(axis=1).max() <= 1 + 1e-12 and r["quantity"]["B/USD"].iloc[2:].nunique() == 1
    )
    # bought, sold and bought again
    if side == 1: assert r["final_balance"] == pytest.approx(START * 0.99 * 0.99 / (1.01 * 1.01) ** 2)


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_after_an_open_at_which_weights_were_traded_up_no_more_is_held_than_the_account_is_worth(seed):
    bars, _, setup = random_case(seed)
    bars = {t: random_bars(60, [seed, i], 0.03) for i, t in enumerate(bars)}
    g = np.random.default_rng(seed)
    raw = np.repeat(g.normal(size=(12, len(bars))), 5, axis=0)
    # always the whole account
    weights = pd.DataFrame(raw / np.abs(raw).sum(axis=1, keepdims=True), bars["A/USD"].index, list(bars))
    r = portfolio(bars, weights=weights, **{**setup, "cap": 1.0, "borrow_rate": 0})
    opens, closes = (pd.DataFrame({t: f[k] for t, f in bars.items()}) for k in ("open", "close"))
    held = r["quantity"]
    # at the opens, after the trades
    worth, gross = r["equity"] + (held * (opens - closes)).sum(axis=1), (held.abs() * opens).sum(axis=1)
    grown = (held.abs() > held.shift(fill_value=0.0).abs() * (1 + 1e-9)).any(axis=1)
    assert grown.any() and (gross[grown] <= worth[grown] * (1 + 1e-9)).all()


def test_equal_risk_gives_the_calm_ticker_more_and_a_cap_limits_it():
    frames = {
        t: random_bars(60, i, s) for i, (t, s) in enumerate({"CALM/USD": 0.002, "WILD/USD": 0.02}.items())
    }
    hold = {t: np.ones(60) for t in frames}
    free, capped = (portfolio(frames, hold, weighting="risk", cap=c, fee=0)["weights"] for c in (1.0, 0.6))
    first = free.index[25]                                                       # σ needs 24 returns
    sigma = np.array([np.log(frames[t]["close"]).diff().iloc[1:25].std() for t in frames])
    opened = [free.loc[first, t] for t in frames]
    assert (free.loc[:first].iloc[:-1] == 0).all().all() and opened == pytest.approx(
        (1 / sigma / (1 / sigma).sum()).tolist(), rel=0.05
    )
    assert capped.loc[first, "CALM/USD"] == pytest.approx(0.6, rel=0.02)


def test_weights_are_traded_back_only_beyond_the_band():
    drift = {"A/USD": market(*np.linspace(100, 140, 40)), "B/USD": market(*[100] * 40)}
    halves = pd.DataFrame({t: np.full(40, 0.5) for t in drift}, drift["A/USD"].index)
    fills = [
        portfolio(drift, weights=halves, fee=0, band=b)["attribution"]["fills"].sum()
        for b in (0.0, 0.02, 0.2)
    ]
    assert fills[0] > fills[1] > fills[2] == 2
    close = portfolio(
        drift, weights=halves.assign(**{"B/USD": np.r_[np.full(20, 0.1), np.zeros(20)]}), fee=0, band=0.2
    )
    # a weight of zero closes the position, whatever the band
    assert close["quantity"]["B/USD"].iloc[-1] == 0


def test_a_ticker_that_is_not_listed_yet_or_has_a_hole_is_left_alone():
    a, b = market(*[100] * 12), market(*[50] * 12)
    late, holed = b.iloc[5:], b.drop(b.index[4:9])
    assert (
        portfolio({"A/USD": a, "B/USD": late}, {"A/USD": [1] * 12, "B/USD": [1] * 7})["quantity"][
            "B/USD"
        ].iloc[:6]
        == 0
    ).all()
    gone = portfolio({"A/USD": a, "B/USD": holed}, {"A/USD": [0] * 12, "B/USD": [1, 1, 1, 0, 0, 0, 0]}, fee=0)
    # the order is too old; the next close decides anew
    assert (gone["quantity"]["B/USD"].iloc[1:10] == 1000).all() and gone["quantity"]["B/USD"].iloc[-1] == 0


def test_the_tables_say_where_each_ticker_came_from():
    bars = {"A/USD": stamp(market(1, 1, 1), "A/USD", "simulated")}
    assert portfolio(bars, {"A/USD": [0, 0, 0]})["source"]["A/USD"]["simulated"]


PAIR = {"A/USD": market(1, 2, 3), "B/USD": market(1, 2, 3)}
NONE = {t: [0] * 3 for t in PAIR}
BAD = {
    "no tickers": (lambda: portfolio({}, {}), "pass for instance"),
    "length": (
        lambda: portfolio(PAIR, {**NONE, "B/USD": [0, 0]}),
        "B/USD: what is wanted has 2 rows .*pass one value per bar",
    ),
    "NaN signal": (
        lambda: portfolio(PAIR, {**NONE, "A/USD": [0, np.nan, 0]}),
        "A/USD: row 1 .*signal is nan",
    ),
    "NaN price": (
        lambda: portfolio({**PAIR, "B/USD": PAIR["B/USD"].assign(close=[1, np.nan, 3])}, NONE),
        "B/USD: bars: row 1 .*not finite",
    ),
    "duplicated": (
        lambda: portfolio({**PAIR, "B/USD": PAIR["B/USD"].iloc[[0, 1, 1]]}, NONE),
        "B/USD: bars: row 2 .*duplicated",
    ),
    "empty": (
        lambda: portfolio({**PAIR, "B/USD": PAIR["B/USD"].iloc[:0]}, {**NONE, "B/USD": []}),
        "B/USD: there are no bars",
    ),
    "bars of every other day": (
        lambda: portfolio(
            {
                t: f.set_axis(pd.date_range("2025-01-01", periods=3, freq="2D", tz="UTC"))
                for t, f in PAIR.items()
            },
            NONE,
        ),
        "A/USD: bars: row 1 .*opens 48 hours after row 0; pass hourly bars",
    ),
    "a list of weights": (
        lambda: portfolio(PAIR, weights=[0.5, 0.5]),
        "what is wanted is a list; pass one column per ticker",
    ),
    "a weight for all bars": (
        lambda: portfolio(PAIR, weights=dict.fromkeys(PAIR, 0.5)),
        "A/USD: what is wanted is a float; pass one value per bar",
    ),
    "a table of a ticker": (
        lambda: portfolio(PAIR, dict.fromkeys(PAIR, np.zeros((3, 1)))),
        "ndarray of 2 dimensions; pass one value per bar",
    ),
    "no bars under a table of weights": (
        lambda: portfolio(
            {**PAIR, "A/USD": None}, weights=pd.DataFrame(0.0, PAIR["A/USD"].index, list(PAIR))
        ),
        "A/USD: bars are of the type NoneType; pass a DataFrame",
    ),
    "another ticker": (lambda: portfolio(PAIR, {**NONE, "C/USD": [0] * 3}), "C/USD has no bars"),
    "missing weight": (
        lambda: portfolio(PAIR, weights=pd.DataFrame(0.0, PAIR["A/USD"].index[:2], list(PAIR))),
        "A/USD: there is no weight for the bar of 2025-01-01 02:00",
    ),
    "too much": (lambda: portfolio(PAIR, weights={t: [0.6] * 3 for t in PAIR}), "row 0 .*add up to 1.2"),
    "above the cap": (
        lambda: portfolio(PAIR, weights={t: [0.4] * 3 for t in PAIR}, cap=0.3),
        "A/USD: row 0 .*weight is 0.4; pass a share of equity from -0.3 to 0.3",
    ),
    "nothing wanted": (lambda: portfolio(PAIR), "either signals or weights"),
    "fee": (lambda: portfolio(PAIR, NONE, fee=-1), "fee is -1"),
    "balance": (lambda: portfolio(PAIR, NONE, initial_balance=0), "initial_balance is 0"),
    "band": (lambda: portfolio(PAIR, NONE, band=2), "band is 2; pass a share of equity"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_the_ticker_and_the_row(name):
    call, text = BAD[name]
    with pytest.raises(InputError, match=text): call()
