"""Does the LSTM of the specification beat "bet against the last bar" and a ridge regression if it is pooled
over tickers, trained for longer horizons, or averaged over seeds?

    python docs/examples/direction_study.py --exchange binance --end 2023-07-01 BTC/USDT ETH/USDT ...

Trains once on the hours before the tested ones, forecasts the tested ones, and prints Diebold-Mariano tests
of daily means over all tickers. Bars come from the store; `cryptolstm data import` puts recorded ones there.
Every variant is entered in the trial ledger."""

import argparse
import json
from dataclasses import asdict

import numpy as np
import pandas as pd

from cryptolstm.core.config import RunConfig
from cryptolstm.data.client import market_bars
from cryptolstm.features.indicators import INPUTS, WARMUP, features
from cryptolstm.features.targets import target
from cryptolstm.model.settings import model_config
from cryptolstm.model.training import fit
from cryptolstm.proof.provenance import data_stamp
from cryptolstm.proof.trials import Ledger, Trial, market_of, trial_span
from cryptolstm.research.baselines import last_bar_reversal
from cryptolstm.stats.learners import LEARNERS, Learner
from cryptolstm.stats.variance_scores import daily_test


def prepared(ticker: str, run: RunConfig) -> dict:
    "Bars, features and outcomes of a ticker."
    bars = market_bars(
        ticker, run.hours + run.train_hours + WARMUP + run.lookback + run.horizon, run.end, run.exchange
    )
    table = features(bars)
    return {"bars": bars, "table": table, "y": target(bars, table["sigma"], run.horizon)}


def networks(data: dict, run: RunConfig, pool: bool) -> dict:
    "Forecasts of each member on the tested hours: ticker → (hours × seeds)."
    cut, found = -run.hours, {}
    groups = [list(data)] if pool else [[t] for t in data]
    for names in groups:
        seen = {
            t: tuple(
                data[t][k].iloc[: len(data[t]["bars"]) - run.hours].iloc[-run.train_hours - run.lookback :]
                for k in ("bars", "table")
            )
            for t in names
        }
        config = model_config(run)
        bundle = fit(seen, None, config) if pool else fit(*seen[names[0]], config)
        for t in names:
            rows = slice(len(data[t]["bars"]) - run.hours - run.lookback, None)
            part = data[t]["table"].iloc[rows], data[t]["bars"].iloc[rows]
            found[t] = bundle.predict_each(*part, start=run.lookback)
            assert len(found[t]) == -cut
    return found


def rivals(data: dict, run: RunConfig) -> dict:
    "The last bar reversed, and a ridge regression per ticker."
    found = {"against the last bar": {}, "ridge": {}}
    for t, d in data.items():
        cut = len(d["bars"]) - run.hours
        learner = Learner(
            LEARNERS["ridge"],
            list(INPUTS),
            lambda table, bars: target(bars, table["sigma"], run.horizon),
            run.horizon,
        )
        past = slice(cut - run.train_hours, cut)
        fitted = learner.fit(d["table"].iloc[past], d["bars"].iloc[past])
        found["ridge"][t] = fitted.predict(d["table"], d["bars"], cut)
        found["against the last bar"][t] = (
            last_bar_reversal(d["bars"], run.horizon) / (d["table"]["sigma"] * run.horizon**0.5)
        ).iloc[cut:]
    return found


def compared(y: pd.DataFrame, forecasts: dict, horizon: int) -> pd.DataFrame:
    "Diebold-Mariano tests of absolute errors against persistence and the two rivals; a positive t is better."
    loss = {name: (y - f).abs() for name, f in forecasts.items()} | {"persistence": y.abs()}
    rows = {}
    for name, own in loss.items():
        tests = {
            other: daily_test(loss[other] - own, max(horizon, 1))
            for other in ("persistence", "against the last bar", "ridge")
        }
        hit = (
            (np.sign(y) == np.sign(forecasts[name])).where(y.ne(0) & y.notna()).stack().mean()
            if name in forecasts
            else np.nan
        )
        rows[name] = (
            {"MAE": own.mean().mean(), "hit": hit}
            | {f"t {k}": v.t for k, v in tests.items()}
            | {f"p {k}": v.p for k, v in tests.items()}
        )
    return pd.DataFrame.from_dict(rows, orient="index")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tickers", nargs="+")
    parser.add_argument("--exchange", default="auto")
    parser.add_argument("--end", default=None)
    parser.add_argument("--hours", type=int, default=4320)
    parser.add_argument("--train-hours", type=int, default=2160)
    parser.add_argument("--horizons", type=int, nargs="+", default=[1, 24, 72])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4)
    given = parser.parse_args()
    ledger = Ledger()
    for h in given.horizons:
        run = RunConfig(
            ticker=given.tickers[0],
            hours=given.hours,
            train_hours=given.train_hours,
            retrain_every=given.hours,
            horizon=h,
            end=given.end,
            exchange=given.exchange,
            network={"epochs": given.epochs, "seeds": given.seeds},
        )
        data = {t: prepared(t, run) for t in given.tickers}
        y = pd.DataFrame({t: d["y"].iloc[-run.hours :] for t, d in data.items()})
        forecasts = {name: pd.DataFrame(found) for name, found in rivals(data, run).items()}
        for kind, pool in (("pooled", True), ("single", False)):
            one = RunConfig(
                **{
                    **asdict(run),
                    "network": run.network if pool else {**run.network, "seeds": given.seeds[:1]},
                }
            )
            members = networks(data, one, pool)
            forecasts[f"{kind} LSTM"] = pd.DataFrame(
                {t: m.mean(axis=1, skipna=False) for t, m in members.items()}
            )
            if pool:
                forecasts["pooled LSTM, one seed"] = pd.DataFrame(
                    {t: m.iloc[:, 0] for t, m in members.items()}
                )
        table = compared(y, forecasts, h)
        print(f"horizon {h}", table.round(4).to_string(), sep="\n", flush=True)
        for name in table.index.drop("persistence"):
            stamp = data_stamp(data[run.ticker]["bars"], data[run.ticker]["bars"].iloc[-run.hours :])
            ledger.enter(
                Trial(
                    f"direction of {' '.join(sorted(data))}",
                    market_of(stamp),
                    **trial_span(y.index),
                    data_hash=stamp["sha256"],
                    config={**asdict(run), "study": name},
                    sharpe=None,
                    n=int(y.notna().sum().sum()),
                    skew=None,
                    kurtosis=None,
                    hit=float(table.loc[name, "hit"]),
                )
            )
    print(json.dumps({"entered in": str(ledger.path)}))


if __name__ == "__main__":
    main()
