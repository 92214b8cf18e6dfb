"""Two independent backtesters get the same bars and orders, and must reach the same equity at every bar.

vectorbt and backtesting.py run under the interpreter that CRYPTOLSTM_PEERS names (`python -m venv peers;
peers/bin/pip install vectorbt backtesting`), because their pinned versions may conflict with ours; without
them these tests are skipped. `python tests/test_oracles.py` prints the table of
nbs/execution/07_oracles.ipynb."""
import json
import subprocess
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pandas as pd
import pytest
from bench import PEERS, ask_peer
from test_execution import market, random_bars

from cryptolstm.core.volatility import average_true_range
from cryptolstm.stats.performance import figures
from cryptolstm.execution.simulate import simulate
from cryptolstm.execution.portfolio import portfolio

REL = 1e-9        # of equity, at every bar
SEEDS = range(5)
HOURS = 1000
FEE, SLIP, CASH = 0.001, 0.0005, 100_000.0
# in vectorbt's names
FIGURES = ("total_return", "max_drawdown", "sharpe_ratio", "num_trades", "win_rate", "total_fees")


@dataclass
class Case:
    "One run on both sides."
    package: str
    call: str                   # a function of tests/peers.py
    ours: dict                  # from `simulate` or `portfolio`
    arrays: dict                # inputs of the peer
    settings: dict = field(default_factory=dict)


def wishes(seed, reversals=True, n=HOURS):
    """A signal that holds for some hours at a time; zero in the first twenty.

    Without reversals, every second stretch is flat."""
    g = np.random.default_rng(seed)
    sides = g.integers(-1, 2, n)
    if not reversals: sides[::2] = 0
    signal = np.repeat(sides, g.integers(2, 15, n))[:n]
    signal[:20] = 0
    return signal


def calm(bars, signal):
    """Bars with constant prices where the signal has changed at the open, so that a stop and an order cannot
    coincide."""
    rows = np.flatnonzero(np.diff(signal)) + 2
    bars, rows = bars.copy(), rows[rows < len(bars)]
    for k in ("open", "high", "low", "close"):
        bars.iloc[rows, bars.columns.get_loc(k)] = bars["close"].to_numpy()[rows - 1]
    return bars


def columns(bars, signal):
    return {**{k: bars[k].to_numpy() for k in ("open", "high", "low", "close")}, "signal": np.asarray(signal)}


def after(values): return np.r_[np.nan, np.asarray(values)[:-1]]     # known at the close before


# ---- vectorbt
# --------------------------------------------------------------------------------------------------

def vectorbt_case(seed, setup):
    signal = wishes(seed, setup != "fraction")
    settings = {"fees": FEE, "slippage": SLIP, "init_cash": CASH}
    arrays = {}
    bars, ours = random_bars(HOURS, seed, 0.005).assign(volume=1000.0), {"fee": FEE, "slippage": SLIP}
    if setup == "no costs": settings |= {"fees": 0.0, "slippage": 0.0}; ours = {"fee": 0.0}
    elif setup == "long only": signal = np.maximum(signal, 0)
    elif setup == "fixed quantity": settings["size"] = 50; ours["max_volume_share"] = 0.05
    elif setup == "fraction":
        settings |= {"size": 0.5, "size_type": "percent"}; ours |= {"sizing": "fraction", "size": 0.5}
    elif setup == "slippage by range":
        del settings["slippage"]
        ours["slippage_range"], arrays["slippage"] = (
            0.05, (SLIP + 0.05 * (bars["high"] - bars["low"]) / bars["high"]).to_numpy()
        )
    elif setup == "stop and target, percent":
        bars, ours = calm(bars, signal), ours | {"stop_percent": 0.025, "take_profit_percent": 0.03}
        arrays |= {"sl_stop": np.full(HOURS, 0.025), "tp_stop": np.full(HOURS, 0.03)}
    elif setup == "stop and target, ATR":
        bars = calm(bars, signal)
        atr = average_true_range(bars)
        fill = bars["open"].to_numpy() * (1 + np.nan_to_num(after(signal)) * SLIP)
        ours |= {"stop_atr": 2.5, "take_profit_atr": 3.0, "atr": atr}
        arrays |= {"sl_stop": 2.5 * after(atr) / fill, "tp_stop": 3.0 * after(atr) / fill}
    return Case(
        "vectorbt", "from_signals", simulate(bars, signal, initial_balance=CASH, **ours),
        {**columns(bars, signal), **arrays}, settings,
    )


VECTORBT = (
    "all in", "no costs", "long only", "fixed quantity", "fraction", "slippage by range",
    "stop and target, percent", "stop and target, ATR",
)


def group_case(seed, setup, m=4):
    "Several tickers: the peer gets, for each bar, the share of equity to hold; NaN for no order."
    g = np.random.default_rng([seed, m])
    bars = {f"{'ABCD'[i]}/USD": random_bars(HOURS, [seed, i], 0.005) for i in range(m)}
    fee, slip = (0.0, 0.0) if "no costs" in setup else (FEE, SLIP)
    if setup == "weights":
        raw = (
            np.column_stack(
                [np.repeat(g.uniform(-1, 1, HOURS) * (g.random(HOURS) < 0.8), 7)[:HOURS] for _ in range(m)]
            )
            / m
        )
        ours = portfolio(
            bars, weights=pd.DataFrame(raw, bars["A/USD"].index, list(bars)), fee=fee, slippage=slip, band=0.0
        )
        target = np.vstack([np.full(m, np.nan), raw[:-1] / ((1 + slip) * (1 + fee))])
    else:
        signals = np.column_stack([wishes([seed, i], "reverse" in setup) for i in range(m)])
        # in each hour only one of the m tickers may change: no exit with an entry and no two entries at one
        # open
        if "one ticker at a time" in setup:
            for t in range(1, HOURS):
                for i in range(m):
                    if i != t % m: signals[t, i] = signals[t - 1, i]
        if "long" in setup: signals = np.abs(signals)
        cap = 0.2 if "reverse" in setup else 1.0   # with a fifth each, the cash left is always enough
        ours = portfolio(bars, dict(zip(bars, signals.T, strict=True)), fee=fee, slippage=slip, cap=cap)
        side = np.vstack([np.zeros(m), signals[:-1]])
        changed = np.vstack([np.zeros(m), np.diff(side, axis=0)]) != 0
        target = np.where(changed, side * min(1 / m, cap) / ((1 + side * slip) * (1 + fee)), np.nan)
    def table(k):
        return np.column_stack([b[k] for b in bars.values()])
    arrays = {"open": table("open"), "close": table("close"), "target": target}
    return Case("vectorbt", "from_orders", ours, arrays, {"fees": fee, "slippage": slip, "init_cash": CASH})


GROUP = ("weights", "signals that reverse, no costs", "long signals, one ticker at a time")


# ---- backtesting.py
# --------------------------------------------------------------------------------------------------

def backtesting_case(seed, setup):
    signal, settings, arrays = wishes(seed), {"commission": FEE, "cash": CASH, "size": 0.9}, {}
    bars = random_bars(HOURS, seed, 0.01 if "stop" in setup else 0.005).assign(volume=1000.0)
    ours = {"fee": FEE, "sizing": "fraction", "size": 0.9, "lot": 1.0}
    if setup != "whole coins":
        settings |= {"cash": 1e6, "size": 50}
        ours = {"fee": FEE, "max_volume_share": 0.05, "initial_balance": 1e6}
    if "stop" in setup:
        atr, side, open_ = average_true_range(bars), np.nan_to_num(after(signal)), bars["open"].to_numpy()
        stop, target = (
            (after(1.0 * atr), after(1.2 * atr)) if "ATR" in setup else (0.015 * open_, 0.015 * open_)
        )
        ours |= (
            {"stop_atr": 1.0, "take_profit_atr": 1.2, "atr": atr}
            if "ATR" in setup
            else {"stop_percent": 0.015, "take_profit_percent": 0.015}
        )
        arrays |= {"sl": open_ - side * stop, "tp": open_ + side * target}
    return Case(
        "backtesting",
        "by_strategy",
        simulate(bars, signal, **{"initial_balance": CASH, **ours}),
        {**columns(bars, signal), **arrays},
        settings,
    )


BACKTESTING = (
    "whole coins",
    "fixed quantity",
    "fixed quantity, stop and target, percent",
    "fixed quantity, stop and target, ATR",
)


# ---- where the peers' definitions differ: hand-made bars, one event each
# ------------------------------------------------------------------------

def hand_made(name):
    "A single event; the row of the same name in the notebook's table explains it."
    stop = {"sl_stop": 0.1}
    reached, v = (99, 100, 80, 85), "vectorbt"
    made = {
        "a stop in the bar of the entry": (
            "vectorbt",
            market(100, 100, (100, 101, 85, 95), 96, 97),
            [0, 1, 1, 1, 1],
            {"stop_percent": 0.1},
            stop,
        ),
        "an exit at the open of a bar that reaches the stop": (
            v,
            market(100, 100, 100, reached, 86),
            [0, 1, 0, 0, 0],
            {"stop_percent": 0.1},
            stop,
        ),
        "a reversal at the open of a bar that reaches the stop": (
            v,
            market(100, 100, 100, reached, 86),
            [0, 1, -1, -1, -1],
            {"stop_percent": 0.1},
            stop,
        ),
        "a short that loses more than the account": (
            "vectorbt",
            market(100, 100, 100, (150, 260, 150, 250), 120),
            [0, -1, -1, -1, -1],
            {},
            {},
        ),
    }
    library, bars, signal, ours, peers = made[name]
    arrays = {k: np.full(len(bars), v) for k, v in peers.items()}
    own = simulate(bars, signal, initial_balance=CASH, fee=0.0, **ours)
    return Case(library, "from_signals", own, {**columns(bars, signal), **arrays}, {"init_cash": CASH})


EVENTS = (
    "a stop in the bar of the entry",
    "an exit at the open of a bar that reaches the stop",
    "a reversal at the open of a bar that reaches the stop",
    "a short that loses more than the account",
)


def group_event(name):
    """At the same open one ticker is sold and another bought; or two are bought while half the account is in
    a third."""
    if name == "an exit and an entry at one open":
        signals, fee, prices = [[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]], 0.01, [[100] * 5, [50] * 5]
        target = [[np.nan, np.nan], [0.5 / 1.01, np.nan], [np.nan, np.nan], [0, 0.5 / 1.01], [np.nan, np.nan]]
    else:
        signals = [[1] * 5, [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]
        fee = 0.0
        prices = [[100, 100, 400, 400, 400], [50, 50, 50, 50, 60], [50, 50, 50, 50, 80]]
        target = [[np.nan] * 3, [1 / 3, np.nan, np.nan], [np.nan] * 3, [np.nan, 1 / 3, 1 / 3], [np.nan] * 3]
    bars = {f"{'ABC'[i]}/USD": market(*p) for i, p in enumerate(prices)}
    ours = portfolio(bars, dict(zip(bars, signals, strict=True)), fee=fee, initial_balance=CASH)
    def table(k):
        return np.column_stack([b[k] for b in bars.values()])
    return Case(
        "vectorbt",
        "from_orders",
        ours,
        {"open": table("open"), "close": table("close"), "target": np.array(target)},
        {"fees": fee, "init_cash": CASH},
    )


def spread_event():
    "backtesting.py has a spread, which only entries pay."
    bars, signal = market(*[100] * 5), [0, 1, 1, 0, 0]
    ours = simulate(
        bars.assign(volume=1000.0),
        signal,
        initial_balance=CASH,
        fee=0.0,
        slippage=0.01,
        max_volume_share=0.01,
    )
    return Case(
        "backtesting", "by_strategy", ours, columns(bars, signal), {"cash": CASH, "spread": 0.01, "size": 10}
    )


# ---- both sides
# --------------------------------------------------------------------------------------------------

def all_cases():
    "{(library, setup, seed): Case}; seed None: a single event."
    out = {("vectorbt", s, seed): vectorbt_case(seed, s) for s in VECTORBT for seed in SEEDS}
    out |= {("vectorbt group", s, seed): group_case(seed, s) for s in GROUP for seed in SEEDS}
    out |= {("backtesting", s, seed): backtesting_case(seed, s) for s in BACKTESTING for seed in SEEDS}
    out |= {("vectorbt", name, None): hand_made(name) for name in EVENTS}
    out |= {
        ("vectorbt group", name, None): group_event(name)
        for name in ("an exit and an entry at one open", "two entries at one open and not enough cash")
    }
    return out | {("backtesting", "slippage", None): spread_event()}


def ask(library, cases, folder):
    "{key: (equity, figures)} of a peer, all cases in one process; None where it is not installed."
    named = {str(i): (key, case) for i, (key, case) in enumerate(cases.items()) if case.package == library}
    np.savez(
        folder / "cases.npz",
        **{f"{i}|{k}": v for i, (_, case) in named.items() for k, v in case.arrays.items()},
    )
    (folder / "cases.json").write_text(
        json.dumps({i: {"call": case.call, "settings": case.settings} for i, (_, case) in named.items()})
    )
    if ask_peer(f"oracle {library}", folder) is None: return None
    found = np.load(folder / f"oracle_{library}.npz")
    return {key: (found[f"{i}|equity"], found[f"{i}|figures"]) for i, (key, _) in named.items()}


@pytest.fixture(scope="module")
def cases(): return all_cases()


@pytest.fixture(scope="module")
def peers(request, tmp_path_factory):
    said = {}

    def of(key):
        library = key[0].split()[0]
        if not installed(library):
            pytest.skip(
                f"{library} is not installed for {PEERS}; name an interpreter that has it in CRYPTOLSTM_PEERS"
            )
        if library not in said:
            said[library] = ask(library, request.getfixturevalue("cases"), tmp_path_factory.mktemp(library))
        return said[library][key]

    return of


@cache
def installed(library):
    "Whether the peer is installed, checked without importing it, which takes seconds."
    return (
        subprocess.run(
            [
                PEERS,
                "-c",
                f"import importlib.util, sys; sys.exit(importlib.util.find_spec({library!r}) is None)",
            ]
        ).returncode
        == 0
    )


def furthest(case, equity): return float(np.max(np.abs(case.ours["equity"].to_numpy() / equity - 1)))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("setup", VECTORBT)
def test_equity_and_figures_are_those_of_vectorbt(setup, seed, peers, request):
    equity, theirs = peers(("vectorbt", setup, seed))
    case = request.getfixturevalue("cases")["vectorbt", setup, seed]
    trades, own = case.ours["trades"], figures(case.ours)
    assert len(trades) > 20 and furthest(case, equity) < REL
    assert [own[k] for k in FIGURES] == pytest.approx(theirs.tolist(), rel=REL)
    if "stop" in setup:
        assert (trades["bars_held"] > 0).all() and {"stop", "take_profit"} <= set(trades["exit_reason"])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("setup", BACKTESTING)
def test_equity_is_that_of_backtesting_py(setup, seed, peers, request):
    equity, (closed,) = peers(("backtesting", setup, seed))
    case = request.getfixturevalue("cases")["backtesting", setup, seed]
    trades = case.ours["trades"]
    assert (
        furthest(case, equity) < REL
        and len(trades) == closed + (trades["exit_reason"].iloc[-1] == "open") > 20
    )
    if "stop" in setup:      # also in the entry bar
        assert {"stop", "take_profit", "reverse", "signal"} <= set(trades["exit_reason"]) and (
            trades["bars_held"] == 0
        ).any()


def test_the_runs_compared_with_backtesting_py_contain_gaps_through_stops_and_bars_that_touch_both(
    peers, request
):
    peers(("backtesting", BACKTESTING[-1], 0))
    runs = [
        case.ours
        for key, case in request.getfixturevalue("cases").items()
        if key[0] == "backtesting" and "stop" in key[1]
    ]
    assert (
        sum((r["trades"]["exit_reason"] == "gap_stop").sum() for r in runs) > 5
        and sum(r["counts"]["both_touched"] for r in runs) > 100
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("setup", GROUP)
def test_equity_is_that_of_a_group_of_vectorbt_that_shares_its_cash(setup, seed, peers, request):
    equity, (orders,) = peers(("vectorbt group", setup, seed))
    case = request.getfixturevalue("cases")["vectorbt group", setup, seed]
    assert furthest(case, equity) < REL and case.ours["attribution"]["fills"].sum() > 100 and orders > 100


DIFFERENT = {  # event: our final balance and theirs, both computed by hand
    "a stop in the bar of the entry": (90_000 * 97 / 96, 97_000),
    "an exit at the open of a bar that reaches the stop": (99_000, 90_000),
    "a reversal at the open of a bar that reaches the stop": (99_000 + 1000 * (99 - 86), 90_000),
    "a short that loses more than the account": (0, 100_000 - 1000 * (120 - 100)),
    "an exit and an entry at one open": (98_519.7530, 98_517.3022),
    "two entries at one open and not enough cash": (
        400_000 / 3 + 100_000 / 3 * (1.2 + 1.6),
        400_000 / 3 + 200_000 / 3 * 1.2,
    ),
    "slippage": (100_000 - 10 * 2, 100_000 - 10 * 1),
}


@pytest.mark.parametrize("event", DIFFERENT)
def test_where_a_peer_means_something_else_both_numbers_are_known(event, peers, request):
    (key, case), = ((k, c) for k, c in request.getfixturevalue("cases").items() if k[1] == event)
    equity, _ = peers(key)
    assert (case.ours["final_balance"], equity[-1]) == pytest.approx(DIFFERENT[event], abs=5e-5)


if __name__ == "__main__":
    import tempfile
    from pathlib import Path
    made = all_cases()
    with tempfile.TemporaryDirectory() as d:
        said = {lib: ask(lib, made, Path(d)) or {} for lib in ("vectorbt", "backtesting")}
    rows = {}
    for key, case in made.items():
        got = said[case.package].get(key)
        if got is None: print("absent:", case.package)
        elif key[2] is not None: rows.setdefault(key[:2], []).append(furthest(case, got[0]))
        else: print(*key[:2], case.ours["equity"].round(4).tolist(), got[0].round(4).tolist(), sep=" | ")
    for (library, setup), far in rows.items(): print(f"| {library} | {setup} | {max(far):.1e} |")
