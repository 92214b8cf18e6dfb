"""Size, power, coverage and false passes of the rules, simulated with fixed seeds.

`python tests/simulate_rules.py` prints the tables of docs/size_and_power.md; `--write` writes the page. The
nightly tests assert on the same functions (tests/test_luck.py)."""
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from cryptolstm.stats.bootstrap import mean_trade, random_entry_p
from cryptolstm.stats.overfit import clusters, deflation, sharpe_sample, within_variance
from cryptolstm.proof.verdict import DEFLATED, luck_reasons

PAGE = Path(__file__).parents[1] / "docs" / "size_and_power.md"
HOURS = 720


def draw(rng: np.random.Generator, shape, kind: str = "fat") -> np.ndarray:
    "Returns with mean zero and standard deviation 1: normal, fat-tailed (t, 4 d.f.) or skewed (exponential)."
    if kind == "fat": return rng.standard_t(4, shape) / math.sqrt(2)
    return rng.standard_normal(shape) if kind == "normal" else rng.exponential(1, shape) - 1


# ---------------------------------------------------------------- money
def one_hour_bets(rng: np.random.Generator, trades: int) -> tuple[dict, pd.DataFrame, np.ndarray]:
    "Result, bars and hourly returns of worthless one-hour bets at random hours, without costs."
    move = .005 * draw(rng, HOURS)
    index = pd.date_range("2025-01-01", periods=HOURS, freq="h", tz="UTC")
    bars = pd.DataFrame({"open": 100 * np.exp(np.r_[0, np.cumsum(move)[:-1]])}, index)
    rows = np.sort(rng.choice(np.arange(1, HOURS - 1), trades, replace=False))
    side = rng.choice([-1, 1], trades)
    earned = side * np.expm1(move[rows])
    before = 100 * np.cumprod(1 + np.r_[0, earned])[:-1]
    table = pd.DataFrame(
        {
            "side": side,
            "entry_time": index[rows],
            "exit_time": index[rows + 1],
            "entry_price": bars["open"].to_numpy()[rows],
            "quantity": 1.0,
            "borrow": 0.0,
            "pnl": before * earned,
            "return": earned,
            "exit_reason": "signal",
        }
    )
    hourly = np.zeros(HOURS)
    hourly[rows] = earned
    settings = {"fee": 0.0, "slippage": 0.0}
    return {"trades": table, "initial_balance": 100.0, "settings": settings}, bars, hourly


def false_passes(trades: int, runs: int = 400, seed: int = 0, reps: int = 400) -> tuple[float, float]:
    "Share of worthless bets with a probabilistic Sharpe ratio of 95%, and share that the money rule passes."
    rng, naive, passed = np.random.default_rng([seed, trades]), 0, 0
    for _ in range(runs):
        result, bars, hourly = one_hour_bets(rng, trades)
        sample = sharpe_sample(hourly)
        naive += deflation(sample, 10**6, 1, 0.0)["deflated_sharpe"] >= DEFLATED
        deflated = deflation(sample, trades, 1, 0.0)["deflated_sharpe"]
        if not deflated >= DEFLATED: continue
        mean = mean_trade(result["trades"]["return"].to_numpy(), reps)
        luck = float(np.max([mean.p, random_entry_p(result, bars, reps)]))
        passed += not luck_reasons(trades, deflated, luck)
    return naive / runs, passed / runs


def coverage(trades: int, kind: str, runs: int = 2000, seed: int = 0, reps: int = 400) -> float:
    "Share of 95% intervals of the mean trade, and so of the Sharpe ratio, that contain the true zero."
    rng = np.random.default_rng([seed, trades])
    found = [mean_trade(draw(rng, trades, kind), reps) for _ in range(runs)]
    return float(np.mean([abs(m.mean) <= m.half for m in found]))


# ---------------------------------------------------------------- trials
def many_trials(rng: np.random.Generator, kind: str) -> np.ndarray:
    "Returns of worthless trials, (hours × trials): independent, near-copies, or equally correlated ones."
    noise = rng.standard_normal((HOURS, 300))
    if kind == "30 independent": return noise[:, :30]
    if kind == "30 and 270 near-copies of one":
        return np.c_[noise[:, :30], noise[:, [0]] + .05 * noise[:, 30:]]
    shared = {"300, correlation 0.5": .5, "300, correlation 0.9": .9}[kind]
    return math.sqrt(shared) * rng.standard_normal((HOURS, 1)) + math.sqrt(1 - shared) * noise


TRIALS = (
    "30 independent",
    "30 and 270 near-copies of one",
    "300, correlation 0.5",
    "300, correlation 0.9",
)


def best_passes(kind: str, runs: int = 200, seed: int = 0) -> tuple[float, float]:
    "Share of searches whose best trial has a deflated ratio of 95%: by the trials' variance alone, and as judged."
    rng, before, now = np.random.default_rng([seed, len(kind)]), 0, 0
    from cryptolstm.stats.overfit import deflated_sharpe
    for _ in range(runs):
        r = many_trials(rng, kind)
        ratios = r.mean(axis=0) / r.std(axis=0, ddof=1)
        best, labels, variance = sharpe_sample(r[:, ratios.argmax()]), clusters(r), float(ratios.var(ddof=1))
        before += deflated_sharpe(*best, r.shape[1], variance) >= DEFLATED
        place = (int(labels.max()) + 1, within_variance(ratios, labels))
        now += deflation(best, 10**6, r.shape[1], variance, *place)["deflated_sharpe"] >= DEFLATED
    return before / runs, now / runs


TRADES, COVERED = (1, 3, 5, 10, 30, 100, 500), (10, 15, 20, 30, 100)
