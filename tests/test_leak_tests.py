"""The leak checks pass honest pipelines and catch every planted mistake, on the demo market and on real
candles."""
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptolstm.core.errors import InputError
from cryptolstm.core.bars import check_bars, regular_grid
from cryptolstm.data.demo import demo_market
from cryptolstm.proof.leaks import (MUTANTS, altered_futures, check_future, check_repeat, check_start,
                                    check_truncation, default_cuts, leak_certificate, same_bits)
from cryptolstm.proof.cuts import stratified_cuts
from cryptolstm.core.user_code import load_function
from cryptolstm.research.certificate import certificate, check_labels

REAL = Path(__file__).parents[2] / "shared/data/binance/BTC_USDT_1h.parquet"


def real_bars() -> pd.DataFrame:
    "2,000 real hours around an exchange outage of four hours, on a regular grid with the outage marked."
    if not REAL.exists(): pytest.skip("no real candles beside the checkout (../shared/data)")
    bars = check_bars(pd.read_parquet(REAL).tz_convert("UTC")).loc["2021-08-01":"2021-10-20"]
    return regular_grid(bars)


def indicators(bars: pd.DataFrame) -> pd.DataFrame:
    """Causal indicators, written by hand: RSI, EMA, volatility, OBV minus its mean, rolling VWAP, a Boolean
    rule, a text column."""
    c = bars["close"]
    up = c.diff().clip(lower=0).ewm(alpha=1 / 14, adjust=False, min_periods=14).mean()
    down = (-c.diff().clip(upper=0)).ewm(alpha=1 / 14, adjust=False, min_periods=14).mean()
    flow = np.sign(c.diff()).fillna(0) * bars["volume"]
    typical = bars[["high", "low", "close"]].mean(axis=1)
    sigma = np.log(c).diff().rolling(24).std()
    vwap = (typical * bars["volume"]).rolling(24).sum() / bars["volume"].rolling(24).sum()
    # obv − mean20(obv), written without the level: Σ_{j=1..19} j/20 · flow of the last bars
    obv = sum(flow.shift(19 - j) * j / 20 for j in range(1, 20))
    return pd.DataFrame(
        {
            "rsi": 100 - 100 / (1 + up / down),
            "ema50": c.ewm(span=50, adjust=False, min_periods=50).mean(),
            "sigma": sigma,
            "obv": obv,
            "vwap": vwap,
            "calm": sigma <= sigma.rolling(200).quantile(0.9),
            "side": np.where(c > vwap, "above", "below"),
        }
    )


BARS = {"demo": lambda: demo_market(2000, seed=5), "real": real_bars}


@pytest.mark.parametrize("source", BARS)
def test_honest_indicators_pass(source):
    certificate = leak_certificate(indicators, BARS[source]())
    assert certificate.passed, [c["first"] for c in certificate.checks if not c["passed"]]
    assert certificate.offending is None and [c["name"] for c in certificate.checks] == [
        "repeat",
        "truncation",
        "future",
        "start",
    ]
    assert all(c["findings"] == 0 for c in certificate.checks)
    assert json.loads(json.dumps(certificate.to_dict())) == certificate.to_dict()


@pytest.mark.parametrize("source", BARS)
@pytest.mark.parametrize("name", MUTANTS)
def test_each_planted_mistake_is_caught(source, name):
    """Cumulative levels do not use the future but depend on the start; all others must fail in the two
    bit-exact checks."""
    certificate = leak_certificate(MUTANTS[name], BARS[source]())
    caught = {c["name"] for c in certificate.checks if not c["passed"]}
    assert not certificate.passed
    if name.startswith("cumulative"): assert caught == {"start"}
    else: assert {"truncation", "future"} <= caught
    assert certificate.offending in {"sigma", "next", "centred", "calm", "obv", "vwap", "entry"}
    assert json.loads(json.dumps(certificate.to_dict())) == certificate.to_dict()


def test_one_bad_column_among_good_ones_is_named():
    def f(bars): return indicators(bars).assign(peek=bars["high"].shift(-1) > bars["high"])
    certificate = leak_certificate(f, demo_market(1200))
    assert certificate.offending == "peek"
    assert all(c["columns"] == ["peek"] for c in certificate.checks if not c["passed"])


def test_a_backward_fill_shows_only_inside_the_warm_up():
    bars, bfill = demo_market(800), MUTANTS["backward fill"]
    assert check_truncation(bfill, bars, [30, 400, 799]).empty
    assert check_future(bfill, bars, [30, 400]).empty
    assert not check_truncation(bfill, bars, [8]).empty and not check_future(bfill, bars, [8]).empty


def test_a_backward_fill_over_an_outage_shows_only_inside_it():
    """Nothing leaks during the warm-up here: only rows inside the hole contain later values, so the default
    cuts must lie there."""
    whole = demo_market(1000)
    bars = regular_grid(whole.drop(whole.index[500:510]))
    def f(b): return b["close"].bfill()
    inside = check_truncation(f, bars, [505])
    assert inside["row"].tolist() == [bars.index[500]] and inside["rows"].tolist() == [6]
    assert not check_future(f, bars, [505]).empty
    assert check_truncation(f, bars, [400, 499, 510]).empty
    assert {499, 500, 504, 509, 510, 511} <= set(default_cuts(bars, n=0))
    assert not leak_certificate(f, bars).passed


def test_the_full_sample_quantile_needs_an_altered_future_at_the_last_row():
    """Compared at the cut alone, as in other tools, a Boolean rule with a full-sample quantile often goes
    undetected."""
    bars, f = demo_market(4000), MUTANTS["quantile over the full sample"]
    full = f(bars)
    slips = [t for t in (1500, 3000, 3999) if f(bars.iloc[:t + 1]).iloc[-1] == full.iloc[t]]
    assert slips
    assert not check_truncation(f, bars, [1500]).empty and not check_future(f, bars, [1500]).empty


def test_columns_that_come_and_go_are_findings():
    "One-hot columns of the categories seen so far: the full run has columns that the past could not have."
    def f(bars): return pd.get_dummies(pd.Series(bars.index.day_name(), index=bars.index))
    found = check_truncation(f, demo_market(400), [8])
    assert not found.empty and set(found["other"]) == {"absent"}


def test_a_pipeline_that_throws_dice_is_told_apart():
    rng = np.random.default_rng(0)
    def f(bars): return bars["close"] * rng.random()
    certificate = leak_certificate(f, demo_market(700))
    assert not certificate.checks[0]["passed"] and not check_repeat(f, demo_market(50)).empty


def test_the_input_is_not_shared():
    "A pipeline that modifies its bars must not affect the next run."
    def f(bars):
        bars["close"] *= 2
        return bars["close"]
    bars = demo_market(700)
    before = bars.copy()
    assert leak_certificate(f, bars).passed
    pd.testing.assert_frame_equal(bars, before)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), cut=st.integers(0, 118), holes=st.sets(st.integers(1, 118), max_size=12))
def test_altered_futures_are_legal_bars_with_the_same_past(seed, cut, holes):
    bars = regular_grid(demo_market(120, seed=3).drop(demo_market(120, seed=3).index[list(holes)]))
    futures = altered_futures(bars, cut, seed)
    assert set(futures) == {
        "scaled",
        "sunk",
        "shuffled",
        "no volume",
        "jumps",
        "million",
        "millionth",
        "missing",
    }
    for other in futures.values():
        pd.testing.assert_frame_equal(check_bars(other).iloc[:cut + 1], bars.iloc[:cut + 1], check_exact=True)
        assert other.index.equals(bars.index)


@settings(deadline=None, max_examples=30)
@given(lag=st.integers(-5, 5), cut=st.integers(20, 110))
def test_a_shift_leaks_exactly_when_it_points_forward(lag, cut):
    bars = demo_market(120)
    def f(b): return b["close"].shift(lag)
    assert check_future(f, bars, [cut]).empty == check_truncation(f, bars, [cut]).empty == (lag >= 0)


def test_comparison_is_to_the_bit():
    a = pd.Series([1.0, np.nan, 3.0])
    assert same_bits(a, a).all() and not same_bits(a, a + np.spacing(a)).any(where=~a.isna().to_numpy())
    assert same_bits(pd.Series([True, False]), pd.Series([True, True])).tolist() == [True, False]
    assert same_bits(pd.Series([1, 2]), pd.Series([1.0, np.nan])).tolist() == [True, False]


def test_start_tolerance_is_relative_to_the_column():
    bars = demo_market(1500)
    def ema(b): return b["close"].ewm(span=50, adjust=False).mean()
    def scaled(b): return 1e-9 * ema(b)
    for f in (ema, scaled):
        assert check_start(f, bars, 500, [1000]).empty
        assert len(check_start(f, bars, 60, [1000])) == 1


def test_missing_where_the_full_run_has_a_value_is_a_finding():
    def slow(b): return b["close"].rolling(300).mean()
    found = check_start(slow, demo_market(1500), 200, [1000])
    assert len(found) == 1 and np.isnan(found["other"].iloc[0])


def test_cuts_cover_warm_up_end_gaps_and_chance():
    whole = demo_market(1000)
    cuts = default_cuts(regular_grid(whole.drop(whole.index[600:620])), n=3, seed=1)
    assert {8, 30, 500, 620, 621, 998, 999} <= set(cuts) and len(cuts) > 7
    # the same hole without rows for the missing hours
    assert {600, 601} <= set(default_cuts(whole.drop(whole.index[600:620])))
    assert default_cuts(whole, seed=1) == default_cuts(whole, seed=1) != default_cuts(whole, seed=2)
    assert default_cuts(whole.iloc[:5], n=0) == [2, 3, 4]


def test_errors_name_the_cause():
    bars = demo_market(600)
    with pytest.raises(InputError, match="exactly the rows"):
        leak_certificate(lambda b: b["close"].dropna().iloc[1:], bars)
    with pytest.raises(InputError, match="exactly the rows"):
        leak_certificate(lambda b: b["close"].to_numpy(), bars)
    with pytest.raises(InputError, match="no cut"): check_truncation(indicators, bars, [])
    with pytest.raises(InputError, match="warm-up"): leak_certificate(indicators, bars.iloc[:400])
    assert "start" not in [
        c["name"] for c in leak_certificate(indicators, bars.iloc[:400], warmup=None).checks
    ]

    def fragile(b):
        if (b["volume"] == 0).any(): raise ZeroDivisionError("volume is zero")
        return b["close"]
    with pytest.raises(ZeroDivisionError) as caught: check_future(fragile, bars, [300])
    assert "no volume" in caught.value.__notes__[0]


# ---------------------------------------------------------------- the certificate of a whole run
@pytest.mark.parametrize("source", BARS)
def test_our_own_way_from_bars_to_orders_holds_the_certificate(source):
    proof = certificate(BARS[source](), thorough=False)
    assert proof.passed, proof.sentence
    assert [c["name"] for c in proof.checks] == [
        "repeat",
        "truncation",
        "future",
        "start",
        "retraining",
        "orders",
        "labels",
    ]
    assert json.loads(json.dumps(proof.to_dict(), allow_nan=False)) == proof.to_dict()


@pytest.mark.parametrize("name", MUTANTS)
def test_each_planted_mistake_in_your_features_is_named(name):
    proof = certificate(demo_market(1500, seed=5), features=MUTANTS[name])
    assert (
        not proof.passed
        and proof.offending in proof.sentence
        and proof.sentence.startswith("LEAK: ")
    )
    assert proof.offending in {"sigma", "next", "centred", "calm", "obv", "vwap", "entry"}


def test_a_leak_behind_honest_features_is_found_in_the_decision():
    def decide(table): return (table["rsi"].shift(-1) > table["rsi"]).rename("entry")
    proof = certificate(demo_market(1500, seed=5), features=indicators, decide=decide)
    assert proof.offending == "decision: entry"


def test_gap_edges_are_among_the_cuts():
    whole = demo_market(1500, seed=5)
    proof = certificate(whole.drop(whole.index[1000:1010]), features=indicators)
    assert proof.passed, proof.sentence
    for check in proof.checks[1:3]: assert {999, 1000, 1004, 1009, 1010, 1011} <= set(check["cuts"])


def test_skill_that_does_not_fade_is_a_leak():
    bars = demo_market(2000, seed=1)
    y = np.log(bars["close"]).diff().shift(-1)
    table = indicators(bars).select_dtypes(float)
    assert check_labels(table, y, 720)["passed"]
    seen = check_labels(table.assign(peek=y.shift(-1)), y, 720)
    assert not seen["passed"] and seen["ic_shifted"] > .9 > abs(seen["ic"])


# ---------------------------------------------------------------- rare leaks of one bar
def planted(kind: str, rows: pd.Series):
    "A pipeline that uses the next bar on the marked rows only."
    def f(bars):
        c, marked = bars["close"], rows.reindex(bars.index)
        mean, later = c.rolling(20).mean(), c.shift(-1)
        sigma = np.log(c).diff().rolling(24).std()
        return {
            "number": lambda: c.mask(marked, later),
            "mean": lambda: mean.mask(marked, mean.shift(-1)),
            "sigma": lambda: sigma.mask(marked, sigma.shift(-1)),
            "rule": lambda: (c > mean) ^ (marked & (later > c)),
            "volume": lambda: bars["volume"].mask(marked, bars["volume"].shift(-1)),
        }[kind]().rename("value")
    return f


KINDS = ["number", "mean", "sigma", "rule", "volume"]


def detected(share: float, seeds: range, thorough: bool = False) -> float:
    "Share of pipelines with a leak on `share` of all rows that fail the certificate."
    found = []
    for seed in seeds:
        bars, rng = demo_market(1500, seed=seed), np.random.default_rng(seed)
        # marked rows whose value changes when the next bar is removed: all but the rows of a rule that is off
        rows = np.flatnonzero(bars["close"].diff().shift(-1) > 0)
        rows = rng.choice(rows[rows > 30], max(round(share * len(bars)), 1), replace=False)
        marked = pd.Series(np.isin(np.arange(len(bars)), rows), bars.index)
        f = planted(KINDS[seed % len(KINDS)], marked)
        found.append(not leak_certificate(f, bars, warmup=None, thorough=thorough).passed)
    return float(np.mean(found))


def test_rare_leaks_of_one_bar_are_found():
    assert detected(.005, range(20)) >= .95
    assert detected(.001, range(20)) >= .6


@pytest.mark.slow
@pytest.mark.parametrize("thorough", [False, True])
def test_rare_leaks_of_one_bar_are_found_in_many_markets(thorough):
    assert detected(.005, range(200), thorough) >= .95
    assert detected(.001, range(200), thorough) >= .6


@pytest.mark.parametrize("rows", ["jumps of the first third", "month starts"])
def test_rare_leaks_in_old_bars_are_found(rows):
    for seed in range(3):
        bars = demo_market(1500, seed=seed)
        move = bars["close"].pct_change(fill_method=None).abs().iloc[30:500]
        old = move.nlargest(4).index if "jumps" in rows else bars.index[bars.index.is_month_start][:1]
        f = planted("mean", pd.Series(bars.index.isin(old), bars.index))
        assert leak_certificate(f, bars, warmup=None, thorough=False).offending == "value", seed


def test_cuts_lie_at_extremes_in_the_whole_span_and_in_the_last_week():
    bars = demo_market(1500, seed=2)
    cuts = stratified_cuts(bars, 60)
    assert len(cuts) == len(set(cuts)) == 60 and sum(c >= 1332 for c in cuts) >= 20
    jumps = np.argsort(-bars["close"].pct_change(fill_method=None).abs().fillna(0).to_numpy())[:15]
    assert {*jumps, *(jumps - 1)} & set(cuts)
    assert any((bars.index[cuts].day == 1) & (bars.index[cuts].hour == 0))
    assert stratified_cuts(bars, 60) == cuts != stratified_cuts(bars, 60, seed=1)
    assert stratified_cuts(demo_market(1500, seed=3), 60) != cuts   # the bars are part of the seed


# ---------------------------------------------------------------- memory of earlier calls
REMEMBERS = {
    "a scaler fitted at the first call": """
SCALER = {}
def make(bars):
    x = bars["close"].pct_change()
    if not SCALER: SCALER.update(mean=x.mean(), std=x.std())
    return ((x - SCALER["mean"]) / SCALER["std"]).rename("z")
""",
    "a cache of rows": """
ROWS = {}
def make(bars):
    later = bars["close"].shift(-1)
    for t, x in zip(bars.index, later > bars["close"]): ROWS.setdefault(t, x)
    return bars["close"].index.map(ROWS).to_series(bars.index).rename("up")
""",
    "a file": """
from pathlib import Path
import json
def make(bars):
    x, kept = bars["close"].pct_change(), Path("scaler.json")
    if not kept.exists(): kept.write_text(json.dumps([x.mean(), x.std()]))
    mean, std = json.loads(kept.read_text())
    return ((x - mean) / std).rename("z")
""",
}


@pytest.mark.parametrize("kind", REMEMBERS)
def test_what_a_pipeline_remembers_of_earlier_calls_is_found(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"remembers_{list(REMEMBERS).index(kind)}"
    Path(f"{name}.py").write_text(REMEMBERS[kind])
    make, bars = load_function(f"{name}:make"), demo_market(600)
    quick = {"warmup": None, "thorough": False}
    assert leak_certificate(make, bars, **quick).passed or kind == "a cache of rows"
    Path("scaler.json").unlink(missing_ok=True)
    for module in [m for m in sys.modules if m == name]: del sys.modules[module]
    proof = leak_certificate(load_function(f"{name}:make"), bars, **quick, fresh=True)
    assert [c["name"] for c in proof.failed][-1] == "fresh process", proof.sentence
    assert "not visible: numbers pasted into the code" in proof.sentence
    if kind == "a file": assert str(tmp_path / "scaler.json") in proof.failed[-1]["first"]["other"]


def test_a_new_process_finds_no_fault_with_honest_code_and_names_what_it_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("spans.csv").write_text("20\n")
    Path("reads_a_file.py").write_text(
        "from pathlib import Path\n"
        "def make(bars): return bars['close'].rolling(int(Path('spans.csv').read_text())).mean()\n"
    )
    bars, quick = demo_market(600), {"warmup": None, "thorough": False, "fresh": True}
    proof = leak_certificate(load_function("reads_a_file:make"), bars, **quick)
    assert proof.passed and f"the content of {tmp_path / 'spans.csv'}" in proof.sentence

    factor = 2.0   # a local function with a value of its surroundings
    assert leak_certificate(lambda b: b["close"] * factor, bars, **quick).passed


def test_a_pipeline_that_needs_this_process_fails_there():
    bars, calls = demo_market(600), []

    def counts(b):
        calls.append(1)
        return b["close"] * len(calls[:2])
    proof = leak_certificate(counts, bars, warmup=None, thorough=False, fresh=True)
    assert not proof.passed
    with pytest.raises(InputError, match="cannot be sent to a new process"):
        leak_certificate(lambda b, g=(x for x in ()): b, bars, warmup=None, fresh=True)
