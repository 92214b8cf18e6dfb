"""Results of the peer libraries on the same bars and orders.

Runs under the interpreter that CRYPTOLSTM_PEERS names, because the peers' pinned versions may conflict with
ours, and imports nothing of ours: `python tests/peers.py KIND FOLDER`. Exit code 3 means that the peer is not
installed.

`kernel`, `metrics`, `sweep` and `backtesting` read FOLDER/case.npz and write FOLDER/answer.npz: the seconds,
and the numbers that show that both sides computed the same (see bench.py). `oracle vectorbt` and `oracle
backtesting` read FOLDER/cases.json and FOLDER/cases.npz and write FOLDER/KIND.npz, one equity curve per case
(see test_oracles.py). Bars get an index without a time zone: with one, pandas creates an object for every
hour, which is not what is timed."""
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np

warnings.filterwarnings("ignore")
kind, folder = "".join(sys.argv[1:2]), Path("".join(sys.argv[2:3]))
try:
    import pandas as pd
    if "backtesting" in kind: import backtesting
    else: import vectorbt as vbt
except ImportError: sys.exit(3)

def hours(n):
    return pd.date_range("2000-01-01", periods=n, freq="h")
def next_open(signal):
    return np.r_[0, signal[:-1]]            # decided at the close, filled at the next open


def frame(bars):
    return pd.DataFrame(
        {k.title(): bars[k] for k in ("open", "high", "low", "close")}, hours(len(bars["close"]))
    )


# ---- oracles
# --------------------------------------------------------------------------------------------------

def from_signals(bars, settings):
    "Equity of vectorbt: orders at the open; stops and targets at their price, with slippage."
    series = {k: pd.Series(v, hours(len(v))) for k, v in bars.items()}
    side = pd.Series(next_open(bars["signal"]), hours(len(bars["signal"])))
    stops = {k: series[k] for k in ("sl_stop", "tp_stop") if k in series}
    more = {"slippage": series["slippage"]} if "slippage" in series else {}
    p = vbt.Portfolio.from_signals(
        series["close"],
        entries=side == 1,
        exits=side == 0,
        short_entries=side == -1,
        short_exits=side == 0,
        price=series["open"],
        open=series["open"],
        high=series["high"],
        low=series["low"],
        upon_opposite_entry="reverse",
        stop_entry_price="fillprice",
        stop_exit_price="stopmarket",
        upon_stop_exit="close",
        freq="h",
        **stops,
        **more,
        **settings,
    )
    figures = {
        "total_return": p.total_return(),
        "max_drawdown": p.max_drawdown(),
        "sharpe_ratio": p.sharpe_ratio(year_freq="365 days"),
        "num_trades": p.trades.count(),
        "win_rate": p.trades.closed.win_rate(),
        "total_fees": p.orders.fees.sum(),
    }
    return p.value().to_numpy(), np.array([float(v) for v in figures.values()])


def from_orders(bars, settings):
    """Equity of vectorbt for a group of columns that share their cash; `target` is a share of equity, NaN for
    no order."""
    def column(name):
        return pd.DataFrame(bars[name], hours(len(bars[name])))
    p = vbt.Portfolio.from_orders(
        column("close"),
        size=column("target"),
        size_type="targetpercent",
        price=column("open"),
        group_by=True,
        cash_sharing=True,
        call_seq="auto",
        freq="h",
        **settings,
    )
    return p.value().to_numpy(), np.array([float(p.orders.count())])


def by_strategy(bars, settings):
    "Equity of backtesting.py; stops and targets are prices, given with the order."
    size = settings.pop("size")

    class Follow(backtesting.Strategy):
        def init(self): pass

        def next(self):
            t = len(self.data) - 1
            side = bars["signal"][t]
            held = 1 if self.position.is_long else -1 if self.position.is_short else 0
            if side == held or t + 1 == len(bars["signal"]): return
            self.position.close()
            orders = {k: bars[k][t + 1] for k in ("sl", "tp") if k in bars}
            if side > 0: self.buy(size=size, **orders)
            if side < 0: self.sell(size=size, **orders)

    out = backtesting.Backtest(frame(bars), Follow, finalize_trades=False, **settings).run()
    return out["_equity_curve"]["Equity"].to_numpy(), np.array([float(len(out["_trades"]))])


def oracle():
    cases, arrays = json.loads((folder / "cases.json").read_text()), np.load(folder / "cases.npz")
    out = {}
    for name, case in cases.items():
        call = globals()[case["call"]]
        bars = {key.split("|")[1]: arrays[key] for key in arrays.files if key.split("|")[0] == name}
        out[f"{name}|equity"], out[f"{name}|figures"] = call(bars, case["settings"])
    np.savez(folder / f"{kind.replace(' ', '_')}.npz", **out)


# ---- speed
# --------------------------------------------------------------------------------------------------

ROUNDS = 5


def timed_strategy(data):
    "A year of backtesting.py: orders of 99.9 % of equity in whole coins."
    class Follow(backtesting.Strategy):
        def init(self): pass

        def next(self):
            s = data["signal"][len(self.data) - 1]
            held = 1 if self.position.is_long else -1 if self.position.is_short else 0
            if s == held: return
            self.position.close()
            if s > 0: self.buy(size=0.999)
            if s < 0: self.sell(size=0.999)

    test = backtesting.Backtest(frame(data), Follow, cash=1e9, commission=0.0, finalize_trades=False)
    return test.run, lambda out: {"equity": out["_equity_curve"]["Equity"].to_numpy()}


def timed_signals(data):
    "vectorbt: one column, one column with `stats`, or a column for each threshold."
    def series(x):
        return pd.Series(x, hours(len(x)))
    close, open_, side = series(data["close"]), series(data["open"]), next_open(data["signal"])
    common = dict(price=open_, fees=0.0002, init_cash=1e5, upon_opposite_entry="reverse", freq="h")
    def go(s):
        return vbt.Portfolio.from_signals(
            close, entries=s == 1, exits=s == 0, short_entries=s == -1, short_exits=s == 0, **common
        )
    def figures(p):
        return {
            "returns": np.atleast_1d(p.total_return()),
            "trades": np.atleast_1d(p.trades.count()),
            "fees": np.atleast_1d(p.orders.fees.sum()),
        }
    if kind == "kernel":
        return lambda: (p := go(series(side)), p.value())[0], lambda p: {
            "equity": p.value().to_numpy(),
            **figures(p),
        }
    if kind == "metrics":
        return lambda: (p := go(series(side)), p.stats())[0], lambda p: {
            "equity": p.value().to_numpy(),
            **figures(p),
        }
    chosen = (
        np.r_[np.zeros((1, data["scales"].size)), (data["move"][:-1, None] > data["scales"]).astype(float)]
        > 0
    )
    wide = pd.DataFrame(np.where(chosen, side[:, None], 0), close.index)
    def scored(wide):
        return (p := go(wide), p.total_return())[0]
    scored(wide.iloc[:, :2])                               # compile for tables as well
    return lambda: scored(wide), figures


def timed(work):
    "The result, and the shortest time of several calls after a first one, which compiles."
    work()
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        out = work()
        seconds.append(time.perf_counter() - began)
    return out, min(seconds)


if __name__ == "__main__":
    if kind.startswith("oracle"): oracle()
    else:
        work, answer = (timed_strategy if kind == "backtesting" else timed_signals)(
            dict(np.load(folder / "case.npz"))
        )
        out, seconds = timed(work)
        np.savez(folder / "answer.npz", seconds=seconds, **answer(out))
