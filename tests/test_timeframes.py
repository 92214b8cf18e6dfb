"""Bars of other lengths than an hour: made, fetched, stored, simulated, tested and traded, and hourly ones as
before."""
import json
import math
import threading
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY
from hypothesis import given, settings, strategies as st
from loopback import Loopback, recorded, same
from trading import CAPITAL, runner_of

from cryptolstm.core.bars import (BARS_PER_YEAR, COLUMNS, HOUR, TIMEFRAMES, bar_length, bars_hash,
                                  bars_per_day, bars_per_year, check_bars, grid_until, provenance,
                                  regular_grid, stamp)
from cryptolstm.core.config import TIMEFRAME_WORDS, RunConfig
from cryptolstm.core.errors import InputError
from cryptolstm.data.client import CryptoMarketDataClient, fetch_many, market_bars
from cryptolstm.data.demo import demo_market, planted_market
from cryptolstm.data.quality import quality_report, report_rows
from cryptolstm.data.resample import resampled
from cryptolstm.data.store import bar_path, hour_number, hour_time, read_store
from cryptolstm.data.transfer import export_bars, import_bars
from cryptolstm.execution.portfolio import portfolio, portfolio_reference
from cryptolstm.execution.reference import simulate_reference
from cryptolstm.execution.simulate import simulate
from cryptolstm.execution.sweep import sweep
from cryptolstm.features.indicators import features
from cryptolstm.features.panel import panel
from cryptolstm.model.registry import line_name
from cryptolstm.proof.trials import Ledger, Trial
from cryptolstm.report.verify import bars_again
from cryptolstm.research.backtest import backtest, run_backtest
from cryptolstm.research.walkforward import bars_needed
from cryptolstm.stats.performance import all_figures, daily_returns, figures, hourly_returns, sharpe
from cryptolstm.strategy.signal import SignalGenerator
from cryptolstm.trading.guards import Guards, loss_alarms
from cryptolstm.trading.journal import decisions
from cryptolstm.trading.paper import bar_rows, journal_bars
from cryptolstm.trading.runner import run_account
from cryptolstm.trading.status import account_status
from cryptolstm.trading.tasks import Account, account_of

OTHERS = [name for name in TIMEFRAMES if name != "1h"]
NOON = "2025-01-20T12:00"


def real_hours(n: int = 9000) -> pd.DataFrame:
    "Hourly bars that were recorded, else of the demo market, which end at midnight."
    bars = recorded("BTC/USDT", "binance")
    if bars is None: return regular_grid(demo_market(n, end="2023-06-30", ticker="BTC/USDT"))
    bars = stamp(check_bars(bars).loc[:"2023-06-29"], "BTC/USDT", "binance")
    return regular_grid(bars).iloc[-n:]


def bars_of_length(timeframe: str, n: int) -> pd.DataFrame:
    "Real bars, made from hourly ones where there are none; of shorter lengths those of the demo market."
    if TIMEFRAMES[timeframe] < HOUR: return regular_grid(demo_market(n, timeframe=timeframe))
    return resampled(real_hours(100_000), timeframe).iloc[-n:]


# -- bars of an hour are what they were

# values of the version before there were other lengths
BEFORE = {
    "demo": "763a748bfa970171ef24445d44d375ddf687e0b3575dadc999b62c9177b4ec6a",
    "planted": "b49953c39da0b4767f8d340cc5aa2da44e1d90e6cc83f5a25c954a611ee0fbba",
    "trial": "c0702d071e3ee345",
    "features": "7f1a20445e28d875208927e3227dbd86e8dd24a4667a48069e3b892a9facd193",
    "sharpe": -2.0754150127572624,
    "final": 84899.59165539879,
}


def test_the_hourly_demo_market_has_the_same_bytes_and_stamp_as_before():
    bars = demo_market(2000)
    assert bars_hash(bars) == BEFORE["demo"]
    assert bars_hash(planted_market(500, ticker="ETH/USD", seed=3)) == BEFORE["planted"]
    known = {"ticker": "BTC/USD", "exchange": "simulated", "simulated": True, "seed": 0}
    assert bars.attrs == {"provenance": known}


def test_an_hourly_simulation_gives_the_same_digits_as_before():
    bars = demo_market(2000)
    table = features(bars)
    assert table.notna().sum().sum() > 70_000
    side = pd.Series(np.sign(table["rsi"] - 50).fillna(0).astype(int).to_numpy(), bars.index)
    result = simulate(
        bars, side, atr=table["atr"], sigma=table["sigma"], sizing="volatility", size=0.3, borrow_rate=0.001,
        stop_atr=2, slippage=0.0002,
    )
    assert figures(result)["sharpe_ratio"] == pytest.approx(BEFORE["sharpe"], rel=1e-12)
    assert result["final_balance"] == pytest.approx(BEFORE["final"], rel=1e-12)


def trial_of(run: RunConfig) -> Trial:
    span = {"first": "2024-01-01T00:00+00:00", "until": "2024-02-01T00:00+00:00"}
    return Trial(run.ticker, "kraken", **span, data_hash="x", config=asdict(run), sharpe=None, n=3, skew=None,
                 kurtosis=None, hit=None)


def test_the_length_is_part_of_a_trial_unless_it_is_an_hour():
    assert trial_of(RunConfig()).config_hash == BEFORE["trial"]
    assert trial_of(RunConfig(timeframe="4h")).config_hash != BEFORE["trial"]


def test_hourly_bars_are_stored_where_they_were():
    assert bar_path(Path("d"), "kraken", "BTC/USD").as_posix() == "d/bars/kraken/BTC_USD_1h.parquet"
    assert bar_path(Path("d"), "kraken", "BTC/USD", "15m").name == "BTC_USD_15m.parquet"
    assert line_name("BTC/USD") == "btc_usd_lstm_v2" != line_name("BTC/USD", timeframe="4h")


# -- the length is a property of the bars

def test_settings_and_bars_know_the_same_lengths():
    assert list(TIMEFRAME_WORDS) == list(TIMEFRAMES)
    with pytest.raises(InputError, match="timeframe"):
        RunConfig(timeframe="2h")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(TIMEFRAMES)), st.integers(20, 200), st.data())
def test_gaps_do_not_change_the_length_of_bars(timeframe, n, data):
    index = pd.date_range("2025-01-01", periods=n, freq=TIMEFRAMES[timeframe], tz="UTC")
    kept = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    kept[3:9] = [True] * 6
    assert bar_length(index[kept]) == TIMEFRAMES[timeframe]


def test_the_stamp_is_stronger_than_the_index():
    bars = demo_market(200, timeframe="15m")
    assert provenance(bars).timeframe == "15m" and bar_length(bars.iloc[::4]) == TIMEFRAMES["15m"]
    unstamped = pd.DataFrame(bars[COLUMNS].to_numpy(), bars.index, COLUMNS)
    assert provenance(stamp(unstamped, "A/USD", "x")).timeframe == "15m"


@pytest.mark.parametrize("minutes", [1, 10, 30])
def test_bars_of_a_length_that_is_not_known_are_refused_with_those_that_are(minutes):
    index = pd.date_range("2025-01-01", periods=50, freq=f"{minutes}min", tz="UTC")
    with pytest.raises(InputError, match=f"{minutes} minutes apart; pass bars of 5m, 15m, 1h, 4h, 1d"):
        check_bars(pd.DataFrame(1.0, index, COLUMNS))


def test_one_misplaced_bar_is_named_and_does_not_change_the_length():
    index = demo_market(50).index
    moved = index[:30].append(index[30:31] + pd.Timedelta(minutes=55)).append(index[31:])
    with pytest.raises(InputError, match="row 30 .*not on the hour; pass hourly bars"):
        check_bars(pd.DataFrame(1.0, moved, COLUMNS))


@pytest.mark.parametrize("timeframe", TIMEFRAMES)
def test_gaps_count_bars_of_any_length(timeframe):
    bars = demo_market(60, timeframe=timeframe)
    grid = regular_grid(bars.drop(bars.index[[10, 11, 20, 21, 22, 23]]))
    assert len(grid) == 60 and grid["is_gap"].sum() == 6 and grid["close"].isna().sum() == 4
    last = bars.index[-1] + 2 * TIMEFRAMES[timeframe]
    assert len(grid_until(regular_grid(bars), last)) == 62


# -- longer bars from shorter ones

def by_hand(bars: pd.DataFrame, length: pd.Timedelta) -> dict:
    "Longer bars of the spans of which every part was traded, one at a time."
    rows, k = {}, length // bar_length(bars)
    for start in bars.index[bars.index == bars.index.floor(length)]:
        part = bars.loc[start : start + length - bar_length(bars)]
        part = part[~part["is_gap"]]
        if len(part) == k:
            rows[start] = (
                part["open"].iloc[0], max(part["high"]), min(part["low"]), part["close"].iloc[-1],
                sum(part["volume"].tolist()),
            )
    return rows


PAIRS = [("5m", "15m"), ("5m", "1h"), ("15m", "4h"), ("1h", "4h"), ("1h", "1d"), ("4h", "1d")]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(PAIRS), st.integers(0, 30), st.sets(st.integers(0, 199), max_size=20), st.integers(0, 3)
)
def test_longer_bars_are_those_of_a_loop_and_do_not_know_the_future(pair, first, missing, seed):
    short, long = pair
    whole = demo_market(230, seed, timeframe=short, end="2025-01-07T03:00").iloc[first:]
    bars = regular_grid(whole.drop(whole.index[sorted(k for k in missing if 0 < k < len(whole) - 1)]))
    length = TIMEFRAMES[long]
    try: made = resampled(bars, long)
    except InputError: return
    assert bar_length(made) == length and provenance(made).made_from == short
    assert made.index[0] >= bars.index[0] and made.index[-1] + length <= bars.index[-1] + TIMEFRAMES[short]
    for start, row in by_hand(bars, length).items():
        got = made.loc[start]
        assert not got["is_gap"] and np.allclose(got[COLUMNS].to_numpy(float), row, rtol=1e-12, atol=0)
    cut = bars.iloc[: len(bars) * 2 // 3]
    try: earlier = resampled(cut, long)
    except InputError: return
    real = earlier[~earlier["is_gap"]]
    pd.testing.assert_frame_equal(real[COLUMNS], made.loc[real.index, COLUMNS], check_freq=False)


def test_a_longer_bar_is_not_made_from_a_part_of_it_nor_across_an_outage():
    bars = regular_grid(demo_market(24 * 5, end="2025-01-06"))
    assert resampled(bars.iloc[1:-1], "1d").index[[0, -1]].tolist() == [bars.index[24], bars.index[72]]
    outage = regular_grid(bars[~bars["is_gap"]].drop(bars.index[30:40]))
    assert resampled(outage, "1d")["is_gap"].tolist() == [False, True, False, False, False]
    with pytest.raises(InputError, match="cannot be made from them"): resampled(resampled(bars, "1d"), "4h")


# -- exchange and store

def test_daily_bars_are_those_of_the_exchange_and_those_made_from_its_hours(tmp_path):
    hours = demo_market(24 * 40, end="2025-01-20", ticker="ETH/USD")
    with Loopback({"ETH/USD": hours}, NOON) as server:
        def of(timeframe):
            return CryptoMarketDataClient("coinbaseexchange", server.url, tmp_path, timeframe=timeframe)
        theirs = of("1d").get_historical_bars("ETH/USD", 30)
        assert {q["granularity"] for path, q in server.asked if "candles" in path} == {"86400"}
        made = resampled(of("1h").get_historical_bars("ETH/USD", 30 * 24, theirs.index[-1] + 24 * HOUR), "1d")
    assert len(theirs) == 30 and theirs.index[-1] == pd.Timestamp("2025-01-19", tz="UTC")   # not today
    pd.testing.assert_frame_equal(theirs[COLUMNS], made[COLUMNS], check_freq=False, rtol=1e-12)
    assert provenance(theirs).timeframe == "1d" and provenance(theirs).made_from is None
    assert sorted(p.name for p in tmp_path.rglob("*.parquet")) == ["ETH_USD_1d.parquet", "ETH_USD_1h.parquet"]


def test_bars_that_the_exchange_does_not_have_are_made_from_its_hours_and_kept_when_it_is_gone(tmp_path):
    hours = demo_market(24 * 30, end="2025-01-20T11:00", ticker="ETH/USD")
    with Loopback({"ETH/USD": hours}, "2025-01-20T11:30") as server:
        where = {"exchange": "coinbaseexchange", "exchange_url": server.url, "home": tmp_path}
        ask = {**where, "timeframe": "4h"}
        bars = market_bars("ETH/USD", 100, **ask)
        assert bars.index[-1] == pd.Timestamp("2025-01-20T04:00", tz="UTC") and len(bars) == 100
        same(bars, resampled(regular_grid(hours), "4h").iloc[-100:])
        found = fetch_many(["ETH/USD"], 100, **ask)["ETH/USD"]
        assert found["ok"] and found["bars"] == 100 and found["last"] == bars.index[-1].isoformat()
        same(market_bars("ETH/USD", 20, "2025-01-18T08:00", **ask), bars.loc[:"2025-01-18T04:00"].iloc[-20:])
    client = CryptoMarketDataClient("coinbaseexchange", server.url, tmp_path, timeframe="1d")
    stored = client.stored_bars("ETH/USD", 10)   # daily bars were never fetched
    assert provenance(stored).made_from == "1h" and len(stored) == 10


def test_quarters_of_an_hour_are_fetched_in_pages_and_completed_later(tmp_path):
    quarters = demo_market(900, end="2025-01-20T12:00", ticker="ETH/USD", timeframe="15m")
    with Loopback({"ETH/USD": quarters}, "2025-01-20T06:07") as server:
        client = CryptoMarketDataClient("coinbaseexchange", server.url, tmp_path, timeframe="15m")
        same(client.get_historical_bars("ETH/USD", 700), quarters.loc[:"2025-01-20T05:45"].iloc[-700:])
        assert server.count("candles") >= 3
        server.now = pd.Timestamp("2025-01-20T12:01", tz="UTC")
        server.forget()
        same(client.get_historical_bars("ETH/USD", 700), quarters.iloc[-700:])
        assert server.count("candles") == 1
    store = read_store(client.path("ETH/USD"))
    assert store.timeframe == "15m" and len(store.bars) == 724
    assert store.covered == [(hour_number(store.bars.index[0], "15m"), hour_number(NOON, "15m"))]
    assert hour_time(store.covered[0][1], "15m") == pd.Timestamp(NOON, tz="UTC")


def test_imported_hours_serve_longer_bars_and_no_shorter_ones(tmp_path):
    hours = demo_market(500, end="2025-01-20T05:00", ticker="ETH/USD")
    hours.to_csv(tmp_path / "bars.csv")
    import_bars(tmp_path / "bars.csv", "ETH/USD", "mine", tmp_path / "home")
    bars = market_bars("ETH/USD", 100, exchange="mine", home=tmp_path / "home", timeframe="4h")
    same(bars, resampled(regular_grid(hours), "4h").iloc[-100:])
    with pytest.raises(InputError, match="too few for these 200 4h bars"):
        market_bars("ETH/USD", 200, exchange="mine", home=tmp_path / "home", timeframe="4h")
    with pytest.raises(InputError, match="mine"):
        market_bars("ETH/USD", 20, exchange="mine", home=tmp_path / "home", timeframe="15m")
    written = export_bars("ETH/USD", "mine", tmp_path / "out.csv", tmp_path / "home")
    assert len(pd.read_csv(written)) == 500


def test_the_quality_of_bars_is_told_in_their_own_length():
    bars = demo_market(900, timeframe="15m")
    report = quality_report(bars.drop(bars.index[[500, 501]]), now=bars.index[-1] + pd.Timedelta(minutes=45))
    rows = dict(report_rows(report))
    assert rows["gaps"].endswith("2 bars (carried forward)") and rows["span"].endswith("900 15m bars")
    assert report.age == 0.5 and len(report.tables["jumps"]) < 20


@pytest.mark.parametrize("timeframe", TIMEFRAMES)
def test_the_demo_market_has_the_same_volatility_per_year_at_each_length(timeframe):
    bars = demo_market(20_000, seed=1, timeframe=timeframe)
    assert bar_length(bars) == TIMEFRAMES[timeframe]
    annual = np.log(bars["close"]).diff().std() * math.sqrt(bars_per_year(bars))
    assert 0.45 < annual < 0.68
    assert (bars["high"] >= bars[["open", "close"]].max(axis=1)).all() and (bars["volume"] > 0).all()


# -- golden cases: money

@pytest.mark.parametrize("timeframe", TIMEFRAMES)
def test_a_trade_is_that_of_a_calculation_by_hand(timeframe):
    "A short of one bar and a half, with fees, slippage and borrow cost per day."
    length, day = TIMEFRAMES[timeframe], pd.Timedelta(days=1)
    index = pd.date_range("2025-01-01", periods=6, freq=length, tz="UTC")
    opens, closes = [100, 100, 102, 96, 95, 95], [100, 102, 96, 95, 95, 95]
    bars = pd.DataFrame({"open": opens, "high": 110, "low": 90, "close": closes, "volume": 5.0}, index,
                        dtype="float64")
    result = simulate(bars, [0, -1, -1, 0, 0, 0], 10_000, fee=0.001, slippage=0.01, borrow_rate=0.024)
    (trade,) = result["trades"].itertuples()
    assert trade.decided_time == index[1] and trade.entry_time == index[2] and trade.exit_time == index[4]
    assert trade.bars_held == 2
    entry, exit = 102 * 0.99, 95 * 1.01
    quantity = 10_000 / (entry * 1.001)
    rent = 0.024 * (length / day) * quantity * (102 + 96)      # of two bars, at their opens
    assert trade.quantity == pytest.approx(quantity)
    assert trade.borrow == pytest.approx(rent, rel=1e-9)
    money = quantity * (entry - exit) - 0.001 * quantity * (entry + exit) - rent
    assert result["final_balance"] == pytest.approx(10_000 + money, rel=1e-12)
    found = figures(result)
    assert found["end"] == index[-1] + length and found["days"] == pytest.approx(6 * length / day)
    returns = np.diff(np.r_[10_000, result["equity"]]) / np.r_[10_000, result["equity"].iloc[:-1]]
    year = pd.Timedelta(days=365) / length
    assert found["sharpe_ratio"] == pytest.approx(returns.mean() / returns.std(ddof=1) * math.sqrt(year))
    assert len(daily_returns(result["equity"], 10_000)) == math.ceil(6 * length / day)


@pytest.mark.parametrize("timeframe", OTHERS)
def test_kernel_sweep_and_reference_agree_on_real_bars(timeframe):
    bars = bars_of_length(timeframe, 400)
    rng = np.random.default_rng(3)
    side = pd.Series(rng.integers(-1, 2, len(bars)), bars.index)
    how = {"sizing": "volatility", "size": 0.4, "borrow_rate": 0.01, "stop_atr": 2.0, "slippage": 0.0005}
    fast, slow = simulate(bars, side, **how), simulate_reference(bars, side, **how)
    assert len(fast["trades"]) > 20
    pd.testing.assert_series_equal(fast["equity"], slow["equity"], rtol=1e-9)
    pd.testing.assert_frame_equal(fast["trades"], slow["trades"], rtol=1e-7)
    (point,) = sweep(bars, side, {"fee": [0.001]}, **how).itertuples()
    assert point.sharpe_ratio == pytest.approx(all_figures(fast, bars)["sharpe_ratio"], rel=1e-9)
    target = 0.4 / (bars["close"].pipe(np.log).diff().rolling(24).std() * math.sqrt(bars_per_year(bars)))
    first = fast["trades"].iloc[0]
    share = first["quantity"] * first["entry_price"] / 100_000
    assert share == pytest.approx(min(target.loc[first["decided_time"]], 1), rel=0.01)


@pytest.mark.parametrize("timeframe", OTHERS)
def test_a_portfolio_trades_bars_of_one_length(timeframe):
    pair = {t: demo_market(300, ticker=t, timeframe=timeframe) for t in ("A/USD", "B/USD")}
    rng = np.random.default_rng(5)
    wish = {t: rng.integers(-1, 2, 300) for t in pair}
    fast, slow = (f(pair, wish, borrow_rate=0.01) for f in (portfolio, portfolio_reference))
    assert fast["final_balance"] == pytest.approx(slow["final_balance"], rel=1e-9)
    with pytest.raises(InputError, match="another length|pass"):
        portfolio({**pair, "B/USD": demo_market(300, ticker="B/USD")}, wish)


def test_annual_figures_come_from_the_length_of_the_bars():
    assert [bars_per_day(demo_market(9, timeframe=t)) for t in TIMEFRAMES] == [288, 96, 24, 6, 1]
    bars = demo_market(500, timeframe="4h")
    result = simulate(bars, np.ones(500))
    returns = hourly_returns(result["equity"], 100_000)
    assert figures(result)["sharpe_ratio"] == sharpe(returns, BARS_PER_YEAR / 4)
    assert figures(result, BARS_PER_YEAR)["sharpe_ratio"] == sharpe(returns)


# -- research

def small(timeframe: str, **more) -> RunConfig:
    usual = dict(
        ticker="BTC/USDT", timeframe=timeframe, hours=96, train_hours=260, retrain_every=96, lookback=8,
        network=TINY, threshold_scale=0, rules=dict.fromkeys(("volume", "macd", "adx"), False),
    )
    return RunConfig(**{**usual, **more})


@pytest.mark.parametrize("timeframe", OTHERS)
def test_a_backtest_of_each_length_trades_what_the_reference_trades(timeframe):
    run = small(timeframe)
    bars = bars_of_length(timeframe, bars_needed(run))
    result = backtest(bars, run)
    tested = bars.iloc[-96:]
    assert result["signals"].index.equals(tested.index)
    assert result["end"] == tested.index[-1] + TIMEFRAMES[timeframe]
    assert result["data"]["tested_until"] == (tested.index[-1] + TIMEFRAMES[timeframe]).isoformat()
    assert f"{timeframe} bars" in result["verdict"].sentence
    settings_ = result["settings"]
    table = features(bars).loc[tested.index]
    again = simulate_reference(tested, result["signals"]["signal"], atr=table["atr"], sigma=table["sigma"],
                               **settings_)
    assert again["final_balance"] == pytest.approx(result["final_balance"], rel=1e-9)
    assert result["power"]["sharpe_noise"] == pytest.approx(math.sqrt(bars_per_year(bars) / 96))


@pytest.mark.slow
@pytest.mark.parametrize("timeframe", OTHERS)
def test_the_certificate_of_each_length_passes(timeframe):
    run = small(timeframe, hours=120)
    bars = bars_of_length(timeframe, bars_needed(run) + 700)
    proof = backtest(bars, run, certify=True)["certificate"]
    assert proof.passed and not [c for c in proof.checks if "untried" in c], proof.sentence


def test_bars_of_another_length_than_the_run_are_refused():
    with pytest.raises(InputError, match="these are 4h bars and timeframe is 15m; pass timeframe=4h"):
        backtest(demo_market(900, timeframe="4h"), small("15m"))


def test_a_run_enters_a_trial_of_its_own_and_its_bars_can_be_had_again(tmp_path):
    run = small("15m", exchange="simulated", ticker="BTC/USD")
    result = run_backtest(run, tmp_path, certify=False)
    assert result["data"]["timeframe"] == "15m"
    (trial,) = Ledger(tmp_path).trials_of("BTC/USD", market="simulated:0").itertuples()
    assert json.loads(trial.config)["timeframe"] == "15m"
    manifest = {"data": result["data"], "ticker": "BTC/USD", "config": asdict(run)}
    assert bars_hash(bars_again(manifest, tmp_path)) == result["data"]["sha256"]


def test_trials_of_two_lengths_count_as_two_on_the_same_bars(tmp_path):
    ledger, rng = Ledger(tmp_path), np.random.default_rng(0)
    for timeframe, n in (("1h", 744), ("4h", 186)):
        trial = replace(trial_of(RunConfig(timeframe=timeframe)), n=n, sharpe=0.01, data_hash=timeframe,
                        returns=rng.normal(size=n))
        standing = ledger.enter(trial)
    assert standing.trials == 2 and standing.different == 2


def test_volatility_and_rank_forecasts_refuse_other_bars():
    with pytest.raises(InputError, match="A/USD are 4h bars; volatility and rank forecasts use hourly bars"):
        panel({"A/USD": demo_market(300, timeframe="4h")})


# -- live

def test_a_signal_at_four_hours_has_its_own_model_and_its_own_times(tmp_path):
    make = dict(ticker="BTC/USD", exchange="simulated", lookback=8, home=tmp_path, network=TINY)
    four = SignalGenerator(timeframe="4h", **make)
    signal = four.generate_signals(240)
    assert signal["timeframe"] == "4h" and signal["bar_close_time"] == "2025-01-01T00:00:00+00:00"
    assert "4h" in four.line != SignalGenerator(**make).line
    again = four.generate_signals(240)
    assert again["model_info"]["decision"].startswith("reused") and again["predicted_price"] is not None
    first, last = (pd.Timestamp(signal["model_info"][k]) for k in ("trained_from", "trained_until"))
    assert last == pd.Timestamp("2024-12-31T16:00", tz="UTC")
    assert (last - first) % TIMEFRAMES["4h"] == 0 * HOUR


class FastClock:
    "A clock that moves when it is waited for."

    def __init__(self, start: str): self.now = int(pd.Timestamp(start, tz="UTC").timestamp() * 1000)
    def __call__(self) -> int: return self.now
    def wait(self, seconds: float) -> None: self.now += max(int(1000 * seconds), 1)


def made_up(bars: pd.DataFrame, timeframe: str, clock):
    "A function that decides like `decide_bar`."
    def decide(run, since=None):
        seen = bars[bars.index + TIMEFRAMES[timeframe] <= pd.Timestamp(clock(), unit="ms", tz="UTC")]
        newest = hour_number(seen.index[-1], timeframe)
        rows = [r for r in bar_rows(seen) if r[0] >= (newest if since is None else since)]
        return {"bar": newest, "rows": rows, "signal": newest % 3 - 1, "close": float(seen["close"].iloc[-1]),
                "atr": 10.0, "sigma": 0.006, "market": "kraken", "simulated": False, "n_features": 20,
                "reason": "made up"}
    return decide


@pytest.mark.parametrize("timeframe", ["5m", "15m", "4h", "1d"])
def test_the_runner_decides_at_the_close_of_each_bar(timeframe, tmp_path):
    length, steps = TIMEFRAMES[timeframe], 6
    bars = regular_grid(demo_market(60, end="2025-01-20", ticker="BTC/USD", timeframe=timeframe))
    clock = FastClock(bars.index[40].isoformat()[:19])   # the close of bar 39
    run = RunConfig(ticker="BTC/USD", exchange="kraken", initial_balance=CAPITAL, timeframe=timeframe)
    account = Account("a", {"BTC/USD": run}, Guards(daily_loss=0.9, max_drawdown=0.9))
    decide, at = made_up(bars, timeframe, clock), []
    runner = runner_of(tmp_path, None, account, lambda *a: (at.append(clock.now), decide(*a))[1], clock.wait,
                       clock=clock)
    runner.begin()
    run_account(runner, threading.Event(), steps=steps)
    made = decisions(runner.journal, "BTC/USD")
    first = hour_number(bars.index[39], timeframe)
    assert [d.bar for d in made] == list(range(first, first + steps))
    assert all(0 < (t / 1000) % length.total_seconds() <= 20 for t in at) and len(at) == steps
    status = account_status(runner.journal)
    closed = bars.index[39 + steps - 1] + length
    assert status["tickers"][0]["bar_close_time"] == f"{closed:%Y-%m-%d %H:%M}"
    assert status["timeframe"] == account_of(runner.journal).timeframe == timeframe
    # the account is the simulation of the same decisions
    some = bars.iloc[39 : 39 + steps]
    orders = vars(account.orders("BTC/USD"))
    expected = simulate(some, [d.acted for d in made], **orders, atr=np.full(steps, 10.0))
    assert status["equity"] == pytest.approx(expected["final_balance"], rel=1e-9)


def test_an_account_of_another_length_is_another_account_and_tickers_share_one(tmp_path):
    def account(**lengths):
        runs = {f"{t}/USD": RunConfig(ticker=f"{t}/USD", timeframe=x) for t, x in lengths.items()}
        return Account("a", runs)
    with pytest.raises(InputError, match="an account decides bars of one length"): account(BTC="1h", ETH="4h")
    assert "timeframe" not in account(BTC="1h").settings() and account(BTC="5m").deadline == 4
    runner_of(tmp_path, None, account(BTC="1h"), clock=FastClock(NOON)).begin()
    with pytest.raises(InputError, match="timeframe"):
        runner_of(tmp_path, None, account(BTC="4h"), clock=FastClock(NOON)).begin()


@pytest.mark.parametrize("timeframe", TIMEFRAMES)
def test_the_loss_of_a_day_begins_at_midnight(timeframe):
    day = pd.Timedelta(days=1) // TIMEFRAMES[timeframe]
    midnight = hour_number("2025-01-02", timeframe)
    before = [(midnight - 1, 100.0)]      # the bar that closes at midnight
    limit = Guards(daily_loss=0.05, max_drawdown=0.9)
    assert loss_alarms(limit, [*before, (midnight, 96.0)], 50.0, day) == []
    assert [a.guard for a in loss_alarms(limit, [*before, (midnight, 94.0)], 50.0, day)] == ["daily_loss"]


@pytest.mark.parametrize("timeframe", TIMEFRAMES)
def test_bars_come_back_from_the_journal_as_they_were(timeframe):
    bars = regular_grid(demo_market(30, timeframe=timeframe))
    back = journal_bars(bar_rows(bars), timeframe)
    same(back.rename_axis("timestamp"), bars)
    assert bar_length(back.iloc[:1]) == TIMEFRAMES[timeframe]
