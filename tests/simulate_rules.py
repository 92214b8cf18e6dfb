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
    if kind == "fat":
        return rng.standard_t(4, shape) / math.sqrt(2)
    return rng.standard_normal(shape) if kind == "normal" else rng.exponential(1, shape) - 1


# ---------------------------------------------------------------- money
def one_hour_bets(rng: np.random.Generator, trades: int) -> tuple[dict, pd.DataFrame, np.ndarray]:
    "Result, bars and hourly returns of worthless one-hour bets at random hours, without costs."
    move = 0.005 * draw(rng, HOURS)
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
        if not deflated >= DEFLATED:
            continue
        mean = mean_trade(result["trades"]["return"].to_numpy(), reps)
        luck = float(np.max([mean.p, random_entry_p(result, bars, reps)]))
        passed += not luck_reasons(trades, deflated, luck)
    return naive / runs, passed / runs


def coverage(trades: int, kind: str, runs: int = 4000, seed: int = 0, reps: int = 1000) -> float:
    "Share of 95% intervals of the mean trade, and so of the Sharpe ratio, that contain the true zero."
    rng = np.random.default_rng([seed, trades])
    found = [mean_trade(draw(rng, trades, kind), reps) for _ in range(runs)]
    return float(np.mean([abs(m.mean) <= m.half for m in found]))


# ---------------------------------------------------------------- trials
def many_trials(rng: np.random.Generator, kind: str) -> np.ndarray:
    "Returns of worthless trials, (hours × trials): independent, near-copies, or equally correlated ones."
    noise = rng.standard_normal((HOURS, 300))
    if kind == "30 independent":
        return noise[:, :30]
    if kind == "30 and 270 near-copies of one":
        return np.c_[noise[:, :30], noise[:, [0]] + 0.05 * noise[:, 30:]]
    shared = {"300, correlation 0.5": 0.5, "300, correlation 0.9": 0.9}[kind]
    return math.sqrt(shared) * rng.standard_normal((HOURS, 1)) + math.sqrt(1 - shared) * noise


TRIALS = (
    "30 independent",
    "30 and 270 near-copies of one",
    "300, correlation 0.5",
    "300, correlation 0.9",
)


def best_passes(kind: str, runs: int = 200, seed: int = 0) -> tuple[float, float]:
    "Share of searches whose best trial passes: by the variance of the trials alone, and as judged."
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


# ---------------------------------------------------------------- forecast tests
MARKETS = ("normal", "fat tails", "clustered volatility", "drift")
FORECASTERS = (
    "noise",
    "AR 0.9",
    "AR 0.99",
    "reversal",
    "momentum 24 h",
    "momentum 168 h",
    "always up",
    "hour of day",
    "up when calm",
)
LENGTH = 2160


def market_steps(rng: np.random.Generator, kind: str, runs: int, length: int = LENGTH) -> tuple:
    "Hourly returns without predictability, (runs × length), and their volatility."
    size = (runs, length + 400)
    if kind != "clustered volatility":
        steps = draw(rng, size, "fat" if kind == "fat tails" else "normal") + (0.05 if kind == "drift" else 0)
        return steps, np.ones(size)
    sigma, level = np.empty(size), np.zeros(runs)
    for t in range(size[1]):
        level = 0.98 * level + 0.09 * rng.standard_normal(runs)
        sigma[:, t] = np.exp(level)
    return sigma * rng.standard_normal(size), sigma


def past_mean(x: np.ndarray, hours: int) -> np.ndarray:
    "Mean of the last values up to each column, 0 where there are too few."
    total = np.cumsum(x, axis=1)
    out = np.zeros_like(x)
    out[:, hours:] = (total[:, hours:] - total[:, :-hours]) / hours
    return out


def null_forecasts(rng: np.random.Generator, kind: str, steps: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    "Forecasts from past returns, or from nothing, none of which has skill."
    noise = rng.standard_normal(steps.shape)
    if kind.startswith("AR"):
        from scipy.signal import lfilter

        return lfilter([1], [1, -float(kind[3:])], noise, axis=1)
    if kind == "hour of day":
        return np.cos(np.arange(steps.shape[1]) % 24 / 24 * 2 * np.pi) + 0 * steps
    return {
        "noise": noise,
        "reversal": -steps,
        "momentum 24 h": past_mean(steps, 24),
        "momentum 168 h": past_mean(steps, 168),
        "always up": 1 + 0 * steps,
        "up when calm": 1 / past_mean(np.abs(steps), 24).clip(0.1),
    }[kind]


def many_clark_west(steps: np.ndarray, f: np.ndarray, horizon: int, drift: bool) -> np.ndarray:
    """p of `clark_west(y, f, horizon, mean, steps)` for each row, against the expanding mean if `drift`.

    Columns are hours: steps[:, t] is the return of the hour after column t."""
    runs, n = steps.shape
    total = np.cumsum(steps, axis=1)
    y = np.full_like(steps, np.nan)
    y[:, : n - horizon + 1] = total[:, horizon - 1 :] - np.c_[np.zeros(runs), total[:, : n - horizon]]
    base = np.zeros_like(steps)
    if drift:
        known = np.cumsum(y[:, : n - horizon], axis=1) / np.arange(1, n - horizon + 1)
        base[:, horizon:] = known
        base[:, : horizon + 29] = np.nan
    used = np.isfinite(y) & np.isfinite(base)
    x, b = np.where(used, f, 0.0), np.where(used, base, 0.0) * f / horizon
    covered = np.cumsum(x, axis=1), np.cumsum(b, axis=1)
    covered = [c - np.c_[np.zeros((runs, horizon)), c[:, :-horizon]] for c in covered]
    first = int(used[0].argmax())
    gain = (2 * (steps * covered[0] - covered[1]))[:, first:]
    lags = 0 if horizon > 1 else math.ceil(gain.shape[1] ** (1 / 3))
    u = gain - gain.mean(axis=1, keepdims=True)
    variance = (u * u).sum(axis=1)
    for k in range(1, lags + 1):
        variance += 2 * (1 - k / (lags + 1)) * (u[:, k:] * u[:, :-k]).sum(axis=1)
    return stats.norm.sf(gain.mean(axis=1) / np.sqrt(variance / gain.shape[1] ** 2))


def sizes(horizon: int, runs: int = 1000, seed: int = 0, level: float = 0.01) -> pd.DataFrame:
    """Rejections of Clark–West among null forecasts, per market and forecaster, in shares of the level.

    Against persistence; in the market with a drift, against the expanding mean."""
    out = {}
    for i, market in enumerate(MARKETS):
        rng = np.random.default_rng([seed, horizon, i])
        steps, sigma = market_steps(rng, market, runs)
        for name in FORECASTERS:
            f = null_forecasts(rng, name, steps, sigma)[:, 399:-1]
            out[market, name] = (
                many_clark_west(steps[:, 400:], f, horizon, market == "drift") < level
            ).mean()
    return pd.Series(out).unstack(0).loc[list(FORECASTERS), list(MARKETS)] / level


def power(hit: float, n: int, runs: int = 400, seed: int = 0) -> float:
    "Share of runs with this true hit rate in which the rule of the verdict finds skill."
    from cryptolstm.stats.skill import SIGNIFICANCE, pesaran_timmermann

    rng = np.random.default_rng([seed, n])
    rho = math.sin(math.pi * (hit - 0.5))
    steps, sigma = market_steps(rng, "clustered volatility", runs, n)
    steps, sigma = steps[:, 400:], sigma[:, 400:]
    z = rho * steps / sigma + math.sqrt(1 - rho**2) * rng.standard_normal(steps.shape)
    f = z * past_mean(sigma, 24).clip(0.1)
    found = np.ones(runs, bool)
    for drift in (False, True):
        found &= many_clark_west(steps, f, 1, drift) < SIGNIFICANCE
    for k in np.flatnonzero(found):
        found[k] = pesaran_timmermann(steps[k], f[k]).p < SIGNIFICANCE
    return float(found.mean())


# ---------------------------------------------------------------- the page
def table_text(table: pd.DataFrame, corner: str) -> str:
    "A table in Markdown."
    lines = [[corner, *map(str, table.columns)], ["---"] * (1 + table.shape[1])]
    lines += [[str(name), *row] for name, row in zip(table.index, table.to_numpy().tolist(), strict=True)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def page() -> str:
    "The page of docs: every table is computed here."

    def share(x):
        return f"{100 * x:.1f}%"

    money = pd.DataFrame({n: map(share, false_passes(n, 200, reps=200)) for n in TRADES}).T
    money.columns = ["Sharpe ratio of hourly returns alone, 95%", "rule of the verdict"]
    kinds = ("normal", "fat", "skewed")
    covered = pd.DataFrame({k: [share(coverage(n, k)) for n in COVERED] for k in kinds})
    best = pd.DataFrame({kind: map(share, best_passes(kind, 40)) for kind in TRIALS}).T
    best.columns = ["variance of the trials alone", "clusters, and at least 1/n"]
    found = pd.DataFrame({n: [share(h), share(power(h, n, 200))] for n, h in DETECTED.items()}).T
    found.columns = ["true hit rate", "found"]
    parts = (table_text(sizes(h, 300, level=.05).round(1), 'forecaster') for h in HORIZONS)
    size = "\n\n".join(f"Horizon {h} h:\n\n{part}" for h, part in zip(HORIZONS, parts, strict=True))
    return TEXT.format(
        money=table_text(money, "trades"),
        covered=table_text(covered.set_axis(COVERED), "trades"),
        best=table_text(best, "trials"),
        power=table_text(found, "hours"),
        size=size,
    )


HORIZONS, DETECTED = (1, 6, 24), {720: 0.560, 2160: 0.537, 8760: 0.517}
TEXT = """# Size and power of the rules

Every table is printed by `python tests/simulate_rules.py` (fixed seeds). The nightly tests in
`tests/test_luck.py` assert on the same functions with more runs.

## Worthless trades that pass

One-hour bets at random hours of 720, without costs, in a market of independent fat-tailed returns; 200
runs each. The rule of the verdict requires 30 closed trades, a deflated Sharpe ratio of 95% (here of a
single trial), a mean trade above zero (p < 0.05) and entries that are better than random ones (p < 0.05).

{money}

## Coverage of the 95% interval of the Sharpe ratio

Symmetric studentised bootstrap of the trades with 1,000 resamples, true mean 0, 4,000 runs each (sampling
error 0.4%); none is given below 10 trades. "fat" is a t-distribution with 4 degrees of freedom, "skewed" an
exponential one (skew 2).

{covered}

## The best of many worthless trials

Share of searches whose best trial has a deflated Sharpe ratio of at least 95%; 40 searches of 720 hours
each.

{best}

## Power

Share of 200 runs in which the rule (p < 0.01 in all three tests) finds a true hit rate, with clustered
volatility.

{power}

## Size of the Clark–West test

Rejections at a level of 5%, divided by 5% (300 runs of 2,160 hours; the sampling error is 0.25), for
forecasters without skill. Against persistence; in the market with a drift of 0.05 σ an hour, against the
expanding mean. At horizons above one hour the variance is Hodrick's (1992, 1B). Momentum is rejected less
often, because it leans on the mean that it is tested against; the mean of an hour of the day, 24 hours
ahead in a market with drift, is rejected more often (1.7 in 2,000 runs).

{size}
"""

if __name__ == "__main__":
    text = page()
    print(text)
    if "--write" in sys.argv:
        PAGE.write_text(text, encoding="utf-8")
