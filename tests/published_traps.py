"""The leak checks on traps that other packages publish: caught, missed, false alarms.

`python tests/published_traps.py` prints docs/published_traps.md, `--write` writes it. The packages are
in an environment of their own, whose interpreter CRYPTOLSTM_TRAPS_PYTHON names (see CONTRIBUTING)."""
import importlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd

from cryptolstm.data.demo import demo_market
from cryptolstm.features.indicators import WARMUP
from cryptolstm.proof.cuts import default_cuts
from cryptolstm.proof.leaks import TRUNCATIONS, Certificate, leak_certificate
from cryptolstm.research.certificate import certificate

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "published_traps.md"
HEADING = "## Results\n"
PYTHON = os.environ.get("CRYPTOLSTM_TRAPS_PYTHON")
HOURS, SEED = 900, 0
SYMBOLS = 6
CUTS, LATE = 6, 100   # cuts besides the fixed ones; first cut of strategies that need a history
COLUMNS = ["open", "high", "low", "close", "volume"]
LISTED, DELISTED = (pd.Timestamp(day, tz="UTC") for day in ("2024-12-05", "2024-12-27"))


@dataclass(frozen=True)
class Trap:
    "One published trap or honest control as a function from bars to columns."
    package: str
    group: str
    name: str
    honest: bool
    what: str
    features: Callable | None = None   # None: not about features
    reason: str = ""                   # why it is not tried


# ---- bars as each package expects them
# -------------------------------------------------------------------

def table(bars: pd.DataFrame, minutes: bool = False) -> pd.DataFrame:
    """Rows of bars that exist, with a column `timestamp` without time zone.

    With `minutes`, one hour is one minute: the traps of the suite are about minutes of an hour."""
    known = bars if bars["close"].notna().all() else bars.dropna(subset="close")
    hours = known.index.as_unit("s").asi8 // 3600
    times = hours.astype("datetime64[m]") if minutes else hours.astype("datetime64[h]")
    columns = {k: known[k].to_numpy() for k in COLUMNS}
    return pd.DataFrame({"timestamp": times.astype("datetime64[ns]"), **columns})


def universe(bars: pd.DataFrame, symbols: int = SYMBOLS) -> pd.DataFrame:
    "Symbols from one market: its bars, and those of some hours ago; one is listed late, one is delisted."
    values, parts = bars[COLUMNS].to_numpy(float), []
    for k in range(symbols):
        late, known = min(7 * k, len(bars)), np.ones(len(bars), bool)
        if k == 1: known = bars.index >= LISTED
        if k == 2: known = bars.index < DELISTED
        part = pd.DataFrame(values[:len(bars) - late], bars.index[late:], COLUMNS)[known[late:]]
        parts.append(part.assign(symbol=f"S{k}"))
    df = pd.concat(parts).dropna(subset="close").rename_axis("timestamp").reset_index()
    return df[["timestamp", "symbol", *COLUMNS]]


# ---- monte-neo: files with a function signal(df)
# ---------------------------------------------------------

@cache
def strategy(path: str) -> Callable:
    "The function `signal` of a file."
    scope = {"__name__": Path(path).stem, "__file__": path}
    exec(compile(Path(path).read_text(encoding="utf-8"), path, "exec"), scope)
    return scope["signal"]


def positions(bars: pd.DataFrame, path: str, market: str) -> pd.DataFrame:
    "Positions of a strategy, one column per symbol; NaN on hours without a bar."
    if market != "universe":
        out = np.full(len(bars), np.nan)
        out[bars["close"].notna()] = strategy(path)(table(bars, minutes=market == "random_walk"))
        return pd.DataFrame({"position": out}, bars.index)
    df = universe(bars)
    df = df.assign(position=np.asarray(strategy(path)(df), float))
    wide = df.pivot(index="timestamp", columns="symbol", values="position")
    return wide.reindex(bars.index, columns=[f"S{k}" for k in range(SYMBOLS)])


# ---- nullius: gates on a column of predictions
# -----------------------------------------------------------

def gate(bars: pd.DataFrame, name: str) -> pd.DataFrame:
    "Threshold and signal of a gate on the last move."
    known = bars.dropna(subset="close")
    data = pd.DataFrame({"time": known.index, "predicted": known["close"].pct_change().fillna(0).to_numpy()})
    out = getattr(importlib.import_module("nullius"), name)(data)
    return out.set_index(known.index)[["threshold", "signal"]].reindex(bars.index)


# ---- alphaverdict: strategies that score symbols on snapshots
# --------------------------------------------

def scores(bars: pd.DataFrame, name: str) -> pd.DataFrame:
    "Scores of a strategy at midnight, held until the next."
    cases = importlib.import_module("alphaverdict.selfcheck.zoo")
    snapshots = importlib.import_module("alphaverdict.strategy.context").ResearchSnapshot
    frame, metadata = universe(bars, 3).assign(source="zoo"), cases._clean_metadata()
    if name == "_LookaheadMetadata":   # as the loader of the case does
        metadata["full_sample_drift"] = float(frame["close"].mean() / 100 - 1)
    bundle, strategy = cases._bundle(frame, metadata), getattr(cases, name)()
    times = bars.index[(bars.index.hour == 0) & (np.arange(len(bars)) >= 24)]
    rows = {
        t: strategy.screen(snapshots.from_bundle(bundle, t)).frame.set_index("symbol")["score"] for t in times
    }
    out = pd.DataFrame.from_dict(rows, orient="index", dtype=float)
    return out.reindex(bars.index, columns=["S0", "S1", "S2"]).ffill()


# ---- all traps
# -------------------------------------------------------------------------------------------

NOT_FEATURES = [   # package, group, name, what, reason
    ("nullius", "negative controls", "leaky_unpurged_splits", "folds without a purge", "folds, not columns"),
    *(
        ("alphaverdict", "selfcheck", *row)
        for row in (
            ("impossible-prices", "a high below the low, a negative close", "data, validated on reading"),
            ("feature-temporal-leak", "a figure available before it was observed", "no such data here"),
            ("survivorship-undisclosed", "a universe of unknown origin", "a statement about the data"),
            ("cost-fragile-turnover", "a profit that costs consume", "economics, not a leak"),
            ("ledger-tampering-detected", "an edited diary of trials", "the ledger has its own checks"),
            ("underdeclared-trials", "three variants declared as one", "the ledger counts trials"),
        )
    ),
    *(
        ("monte-neo", *row)
        for row in (
            ("trap suite", "survivors only (test)", "every symbol trades to the end", "the data"),
            ("trap suite", "data snooping (test)", "the best of 200 random signals", "multiple testing"),
            ("trap suite", "overclaim (test)", "reported figures above the true ones", "a claim"),
            ("trap suite", "grid on a random walk (test)", "the best of a grid", "multiple testing"),
            ("quotes", "traps and controls (tests)", "latency of quotes", "milliseconds; bars have none"),
            ("zoo", "fit/predict models (tests)", "models refitted on the whole file", "no function of bars"),
            ("zoo", "claims, data, economics, statistics (tests)", "costs, luck, data", "no leaks"),
            ("zoo", "five disguises of each mechanism", "for checks that read code", "these checks run it"),
        )
    ),
]


@cache
def published() -> dict:
    "Answer of `trap_sources.py` under the interpreter of the traps."
    done = subprocess.run([PYTHON, ROOT / "tests" / "trap_sources.py"], capture_output=True, text=True)
    if done.returncode: raise RuntimeError(f"{PYTHON} has no traps: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def all_traps(folder: Path) -> list[Trap]:
    "Every trap; the sources of monte-neo are written to the folder, and those of the others imported."
    traps = []
    for group, name, honest, what, market, source in published()["traps"]:
        path = folder / f"{group.replace(' ', '_')}_{name}.py"
        path.write_text(source, encoding="utf-8")
        features = partial(positions, path=str(path), market=market)
        traps.append(Trap("monte-neo", group, name, honest, what, features))
    if published()["folder"] not in sys.path: sys.path.append(published()["folder"])   # behind our own
    for name, honest, what in (
        ("leaky_global_quantile_gate", False, "threshold from the quantile of the whole sample"),
        ("clean_expanding_quantile_gate", True, "threshold from the quantile so far"),
    ): traps.append(Trap("nullius", "negative controls", name, honest, what, partial(gate, name=name)))
    for case, name, honest, what in (
        ("lookahead-metadata-smuggling", "_LookaheadMetadata", False, "metadata know the mean of all prices"),
        ("frozen-warmup-state", "_FrozenWarmup", False, "a mean frozen at the first decision"),
        ("nondeterministic-strategy", "_Nondeterministic", False, "an unseeded random score"),
        ("momentum of the other cases", "_Momentum", True, "return since the first bar"),
    ): traps.append(Trap("alphaverdict", "selfcheck", case, honest, what, partial(scores, name=name)))
    return traps + [Trap(*row[:3], False, row[3], None, row[4]) for row in NOT_FEATURES]


# ---- trials
# ----------------------------------------------------------------------------------------------

def bars_for(package: str) -> pd.DataFrame:
    "Bars of the demo market; few for alphaverdict, whose snapshots take long."
    return demo_market(HOURS, seed=SEED).iloc[-240 if package == "alphaverdict" else 0:]


def needs_history(trap: Trap, bars: pd.DataFrame) -> bool:
    "Whether the function raises an exception on nine bars, where a cut lies: the command ends with code 2."
    try: trap.features(bars.iloc[:9])
    except Exception: return True
    return False


def failures(
    features: Callable, bars: pd.DataFrame, late: bool = False, fresh: bool = False, more: int = CUTS
) -> dict[str, list[str]]:
    "Names of the failed checks for each column at fault, at the cuts of a quick certificate or at more."
    cuts = [c for c in default_cuts(bars, more, SEED) if c >= LATE or not late]
    warmup = min(WARMUP, len(bars) // 2)
    return by_column(leak_certificate(features, bars, cuts, warmup, SEED, thorough=more > CUTS, fresh=fresh))


def by_column(proof: Certificate) -> dict[str, list[str]]:
    "Names of the failed checks for each column at fault."
    found: dict[str, list[str]] = {}
    for check in proof.failed:
        for column in check["columns"]: found.setdefault(column, []).append(check["name"])
    return found


TRUTH = {True: "honest", False: "leak"}
RESULTS = {   # (honest, anything found)
    (False, True): "caught", (False, False): "missed", (True, True): "false alarm", (True, False): "passed"
}


def verdict(honest: bool, names: list[str]) -> tuple[str, str]:
    "Result from the names of the failed checks, and these."
    names = list(dict.fromkeys(names))
    if names == ["start"]: return "start only", "start"
    return RESULTS[honest, bool(names)], ", ".join(names)


def leak_result(trap: Trap) -> tuple[str, str]:
    "Result of a leak. What the cuts of a quick certificate do not find is tried as `check-leaks` does."
    bars = bars_for(trap.package)
    late = needs_history(trap, bars)
    found = failures(trap.features, bars, late)
    if not found and late: found = failures(trap.features, bars, late, more=TRUNCATIONS)
    elif not found: found = by_column(certificate(bars, trap.features))
    result, text = verdict(False, sum(found.values(), []))
    return result, (text or "see above") + "; raises on nine bars" * late


def side_by_side(bars: pd.DataFrame, traps: list[Trap]) -> pd.DataFrame:
    "Columns of several traps."
    return pd.concat([t.features(bars).add_prefix(f"{t.name}: ") for t in traps], axis=1)


def honest_results(traps: list[Trap]) -> dict[str, tuple[str, str]]:
    "Results of the honest controls, tried side by side and in new processes, too."
    names: dict[str, list[str]] = {t.name: [] for t in traps}
    for package in {t.package for t in traps}:
        features = partial(side_by_side, traps=[t for t in traps if t.package == package])
        for column, checks in failures(features, bars_for(package), fresh=True).items():
            names[column.partition(": ")[0]].extend(checks)
    return {name: verdict(True, checks) for name, checks in names.items()}


@cache
def results() -> list[tuple[Trap, str, str]]:
    "Every trap with its result and the failed checks, or the reason why it was not tried."
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prices = Path(folder, "prices.csv")
        bars_for("").to_csv(prices)
        os.environ["MONTE_NEO_TRAP_DATA"] = str(prices)   # read by one of the traps
        traps = all_traps(Path(folder))
        honest = honest_results([t for t in traps if t.features and t.honest])
        found = {False: leak_result, True: lambda t: honest[t.name]}
        return [
            (t, *(("not applicable", t.reason) if t.features is None else found[t.honest](t))) for t in traps
        ]


# ---- page
# -------------------------------------------------------------------------------------------------

def lines(rows: list[tuple], head: tuple) -> str:
    "A table in Markdown."
    cells = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in cells)


def totals(rows: list[tuple[Trap, str, str]]) -> str:
    "Number of traps and controls by result."
    counts: dict[tuple, Counter] = {}
    for t, result, _ in rows: counts.setdefault((t.package, t.group, t.honest), Counter())[result] += 1
    names = ("caught", "passed", "start only", "missed", "false alarm")
    return lines(
        [
            (package, group, TRUTH[honest], *(n[name] or "" for name in names))
            for (package, group, honest), n in counts.items() if set(n) != {"not applicable"}
        ],
        ("package", "collection", "truth", *names),
    )


def page() -> str:
    "The text of docs/published_traps.md: as it stands up to its results, and these."
    rows, above = results(), PAGE.read_text(encoding="utf-8").partition(HEADING)[0]
    versions = ", ".join(f"{name} {number}" for name, number in published()["versions"].items())
    all_rows = lines(
        [
            (t.package, t.group, t.name, t.what, TRUTH[t.honest] if t.features else "", result, text)
            for t, result, text in rows
        ],
        ("package", "collection", "trap", "what it does", "truth", "result", "failed checks, or reason"),
    )
    return f"{above}{HEADING}\n{versions}\n\n{totals(rows)}\n\n{all_rows}\n"


if __name__ == "__main__":
    import published_traps   # functions of a module can be sent to new processes
    text = published_traps.page()
    print(text, end="")
    if "--write" in sys.argv: PAGE.write_text(text, encoding="utf-8")
