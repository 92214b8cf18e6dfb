"Bars from users' files: format detection, errors by row, recorded origin, and lossless export."
import contextlib
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import zipfile
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from loopback import TICKERS, Loopback, a_market, same

from cryptolstm.core.errors import InputError, OperationError
from cryptolstm.core.bars import COLUMNS, HOUR, bars_hash, provenance, stamp
from cryptolstm.data import store
from cryptolstm.data.store import bar_path, hour_number, missing_spans, read_store
from cryptolstm.data.exchange import ExchangeUnreachable, market_name
from cryptolstm.data.quality import quality_report
from cryptolstm.data.barfiles import read_bars
from cryptolstm.data.transfer import export_bars, import_bars, report_text
from cryptolstm.data.client import CryptoMarketDataClient, market_bars

BTC = "BTC/USD"
# hours in which Binance was down
TRUE_GAPS = [("2021-08-13T02:00Z", 4), ("2021-09-29T07:00Z", 2), ("2023-03-24T13:00Z", 1)]
HEAD = "date,open,high,low,close,volume\n"
GOOD = [
    "2025-01-01 00:00,10,12,9,11,5",
    "2025-01-01 01:00,11,12,10,12,6",
    "2025-01-01 02:00,12,13,11,12,7",
    "2025-01-01 03:00,12,13,11,12,7",
]


def written(folder, name: str, content: str | bytes):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def exactly(got: pd.DataFrame, expected: pd.DataFrame) -> None:
    "Assert the same hours and the same bits."
    same(got, expected)
    assert got.index.name == "timestamp" and list(got.columns) == COLUMNS and (got.dtypes == "float64").all()


# -- every format, written and read back
# ----------------------------------------------------------------------------------------


@st.composite
def some_bars(draw) -> pd.DataFrame:
    """Between 8 and 60 hourly bars with arbitrary floats as prices, some of them with holes.

    They begin late on a day after the 12th, so that every order of day, month and year can be told apart."""
    n = draw(st.integers(8, 60))
    month = f"{draw(st.integers(2012, 2025))}-{draw(st.integers(1, 12)):02}-01"
    first = hour_number(month) + 24 * draw(st.integers(12, 24)) + draw(st.integers(20, 23))
    price = st.floats(1e-9, 1e9, allow_nan=False)
    prices = np.sort(np.array(draw(st.lists(st.tuples(*[price] * 4), min_size=n, max_size=n))), axis=1)
    volume = draw(st.lists(st.floats(0, 1e12), min_size=n, max_size=n))
    index = pd.DatetimeIndex(
        pd.to_datetime(3600 * (first + np.arange(n)), unit="s", utc=True), name="timestamp"
    ).as_unit("us")
    bars = pd.DataFrame(
        {
            "open": prices[:, 1],
            "high": prices[:, 3],
            "low": prices[:, 0],
            "close": prices[:, 2],
            "volume": volume,
        },
        index=index,
    )
    inside = [k for k in range(1, n - 1) if index[k].hour not in (23, 0)]
    holed = bars.drop(bars.index[draw(st.lists(st.sampled_from(inside), max_size=n // 4, unique=True))])
    steps = np.diff(holed.index.as_unit("s").asi8)
    like_longer = (steps[:-2] == steps[1:-1]) & (steps[1:-1] == steps[2:]) & (steps[2:] > 3600)
    return bars if like_longer.any() else holed


def seconds(bars, unit=1):
    return (bars.index.as_unit("s").asi8 * unit).tolist()


def cells(bars):
    "Open, high, low, close and volume of each bar in their shortest exact notation."
    return [",".join(map(repr, r)) for r in bars[COLUMNS].to_numpy().tolist()]


def as_csv(bars, times=None, head=HEAD, end="\n"):
    times = bars.index.strftime("%Y-%m-%d %H:%M:%S") if times is None else times
    return (head + end.join(f"{t},{c}" for t, c in zip(times, cells(bars), strict=True)) + end).encode()


def as_cdd(bars):
    units = [1, 1000]
    lines = [
        f"{t * units[i % 2]},{when},BTC/USD,{c},{1.5 * i}"
        for i, (t, when, c) in enumerate(
            zip(seconds(bars), bars.index.strftime("%Y-%m-%d %H:%M:%S"), cells(bars), strict=True)
        )
    ]
    return "\r\n".join(
        [
            "https://www.CryptoDataDownload.com",
            "unix,date,symbol,open,high,low,close,Volume BTC,Volume USD",
            *lines[::-1],
            "",
        ]
    ).encode()


def as_old_cdd(bars):
    lines = [
        f"{when},BTCUSD,{c},9"
        for when, c in zip(bars.index.strftime("%Y-%m-%d %I-%p"), cells(bars), strict=True)
    ]
    return "\n".join(
        [
            "https://www.CryptoDataDownload.com",
            "Date,Symbol,Open,High,Low,Close,Volume BTC,Volume USD",
            *lines[::-1],
            "",
        ]
    ).encode()


def as_klines(bars, unit=1000, head=""):
    lines = [
        f"{t},{c},{t + 3600 * unit - 1},1.0,5,1.0,1.0,0"
        for t, c in zip(seconds(bars, unit), cells(bars), strict=True)
    ]
    return (head + "\n".join(lines)).encode()


def as_zip(content):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("BTCUSDT-1h-2025-01.csv", content)
    return out.getvalue()


def as_file(frame, kind, **how):
    out = io.BytesIO()
    getattr(frame, f"to_{kind}")(out, **how)
    return out.getvalue()


def number_text(x, mark=".", group=""):
    "A float in its shortest exact notation, with a decimal mark and a separator of thousands."
    sign, whole, rest = re.fullmatch(r"(\D*)(\d*)(.*)", repr(x)).groups()
    if not whole: return repr(x)
    return f"{sign}{int(whole):,}".replace(",", group) + rest.replace(".", mark)


def as_local(bars, mark, group="", separator=";", times="%d.%m.%Y %H:%M",
             head="Datum;Eröffnung;Hoch;Tief;Schluss;Volumen\n", quote=""):
    "Bars as a spreadsheet of another language writes them."
    rows = zip(bars.index.strftime(times), bars[COLUMNS].to_numpy().tolist(), strict=True)
    numbers = (
        [when, *(quote + number_text(x, mark, group) + quote for x in row)] for when, row in rows
    )
    return (head + "".join(separator.join(row) + "\n" for row in numbers)).encode()


def as_kraken(bars, pair="XXBTZUSD", error=()):
    rows = [
        [t, *map(repr, r[:4]), "1.5", repr(r[4]), 23]
        for t, r in zip(seconds(bars), bars[COLUMNS].to_numpy().tolist(), strict=True)
    ]
    return json.dumps({"error": [*error], "result": {pair: rows, "last": 1688671200}}).encode()


def as_ohlcvt(bars, sixth=None, trades=None):
    "Kraken's downloadable history: seconds, prices, volume and the number of trades, without a header."
    sixth = bars["volume"] if sixth is None else sixth
    trades = (bars["volume"] != 0).astype(int) * 17 if trades is None else trades
    rows = zip(seconds(bars), bars[COLUMNS[:4]].to_numpy().tolist(), sixth.tolist(), trades, strict=True)
    return "".join(f"{t},{','.join(map(repr, prices))},{v!r},{n}\n" for t, prices, v, n in rows).encode()


def as_yfinance(bars, *symbols):
    "One file of yfinance: pandas writes two levels of column names and the name of the index."
    table = pd.concat({s: bars[["close", "high", "low", "open", "volume"]] for s in symbols}, axis=1)
    table.columns = pd.MultiIndex.from_tuples(
        [(c.capitalize(), s) for s, c in table.columns], names=["Price", "Ticker"]
    )
    return table.rename_axis("Datetime").to_csv().encode()


def dated(bars):
    return bars.reset_index().rename(columns={"timestamp": "date"})


KLINE_HEAD = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,"
    "taker_buy_volume,taker_buy_quote_volume,ignore\n"
)
FORMATS = {  # format name in the report → function that writes such a file
    "CSV: ISO 8601 text": as_csv,
    "CSV: ISO 8601 text with a zone": lambda b: as_csv(b, b.index.strftime("%Y-%m-%dT%H:%M:%SZ")),
    "CSV: ISO 8601 text, another zone": lambda b: as_csv(
        b, [t.isoformat() for t in b.index.tz_convert("Asia/Kolkata")]
    ),
    "CSV: s": lambda b: as_csv(b, seconds(b), "Timestamp,Open,High,Low,Close,Volume\n"),
    "CSV: s as floats": lambda b: as_csv(b, [f"{t}.0" for t in seconds(b)]),
    "CSV: µs": lambda b: as_csv(b, seconds(b, 10**6), end="\r\n"),
    "CSV: ns": lambda b: as_csv(b, seconds(b, 10**9)),
    "CSV: of pandas, its index without a name": lambda b: b.rename_axis(None).to_csv().encode(),
    "CSV: of pandas, twice": lambda b: dated(b).to_csv().encode(),
    "CSV: date and time apart": lambda b: as_csv(
        b, b.index.strftime("%Y-%m-%d,%H:%M:%S"), "Date,Time,Open,High,Low,Close,Volume\n"
    ),
    "CSV: date and time apart, as MetaTrader": lambda b: as_csv(
        b, b.index.strftime("%Y.%m.%d,%H:%M"), "<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>\n"
    ),
    "CSV: by semicolons, with a mark": lambda b: b"\xef\xbb\xbf" + as_csv(b).replace(b",", b";"),
    "CSV: decimal comma": lambda b: as_local(b, ","),
    "CSV without header: decimal comma": lambda b: as_local(b, ",", head=""),
    "CSV: decimal comma, quoted, Windows-1252": lambda b: (
        as_local(b, ",", quote='"').decode().encode("cp1252")
    ),
    "CSV: decimal comma, commas between fields": lambda b: as_local(
        b, ",", separator=",", quote='"', head="Date,Ouverture,Plus Haut,Plus Bas,Clôture,Volume\n"
    ),
    "CSV: decimal comma, UTF-16": lambda b: as_local(b, ",").decode().encode("utf-16"),
    "CSV: 1.234,5": lambda b: as_local(b, ",", "."),
    "CSV: 1 234,5": lambda b: as_local(b, ",", " ", head="Fecha;Apertura;Máximo;Mínimo;Cierre;Volumen\n"),
    "CSV: 1\u202f234,5": lambda b: as_local(b, ",", "\u202f"),
    "CSV: 1,234.5": lambda b: as_local(
        b, ".", ",", ",", "%Y-%m-%d %H:%M", "Date,Open,High,Low,Close,Volume\n", '"'
    ),
    "CSV: 1'234.5": lambda b: as_local(b, ".", "'"),
    "CSV: date and time apart, German": lambda b: as_local(
        b, ",", times="%d.%m.%Y;%H:%M", head="Datum;Uhrzeit;Eröffnung;Hoch;Tief;Schluss;Volumen\n"
    ),
    "CSV: points, two-digit year": lambda b: as_local(b, ",", times="%d.%m.%y %H:%M:%S"),
    "CSV in gzip": lambda b: gzip.compress(as_csv(b)),
    "CSV without header": lambda b: as_csv(b, seconds(b), ""),
    "CryptoDataDownload CSV": as_cdd,
    "CryptoDataDownload CSV: old": as_old_cdd,
    "Binance Vision klines": as_klines,
    "Binance Vision klines: µs": lambda b: as_klines(b, 10**6),
    "Binance Vision klines: header": lambda b: as_klines(b, 1000, KLINE_HEAD),
    "Binance Vision klines in zip": lambda b: as_zip(as_klines(b)),
    "freqtrade JSON": (
        lambda b: json.dumps(
            [[t, *r] for t, r in zip(seconds(b, 1000), b[COLUMNS].to_numpy().tolist(), strict=True)]
        ).encode()
    ),
    "JSON records": (
        lambda b: json.dumps(
            [{"time": t, **r} for t, r in zip(seconds(b), b[COLUMNS].to_dict("records"), strict=True)]
        ).encode()
    ),
    "Kraken JSON": as_kraken,
    "freqtrade Feather": lambda b: as_file(dated(b), "feather"),
    "Parquet": lambda b: as_file(b, "parquet"),
    "Parquet: no zone, ms": lambda b: as_file(
        dated(b.set_axis(b.index.tz_localize(None).as_unit("ms"))), "parquet"
    ),
    "Parquet: date and time apart": lambda b: as_file(
        b.assign(date=b.index.date, time=b.index.time).reset_index(drop=True), "parquet"
    ),
    "Parquet: numbers as text": lambda b: as_file(
        dated(b).assign(**{c: b[c].map(repr).to_numpy() for c in COLUMNS}), "parquet"
    ),
}


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=12, deadline=None, suppress_health_check=[
    HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large])
@given(bars=some_bars(), seed=st.integers(0, 99))
def test_every_format_gives_the_same_bars_back_in_any_order(name, bars, seed, tmp_path):
    for frame in (bars, bars.sample(frac=1, random_state=seed)):
        got, notes = read_bars(written(tmp_path, "some.file", FORMATS[name](frame)), BTC)
        exactly(got, bars)
        assert (
            notes["format"] == name.split(":")[0]
            and notes["rows"] == notes["bars"] == len(bars)
            and notes["skipped"] == 0
        )
        assert sum(n for _, n in notes["gaps"]) == hour_number(bars.index[-1]) - hour_number(
            bars.index[0]
        ) + 1 - len(bars)
    assert notes["order"] == "unordered" or len(bars) < 12


@pytest.mark.parametrize("zero", [False, True])
def test_the_history_that_kraken_offers_for_download_is_read(zero, tmp_path):
    "Seven columns without a header; Kraken leaves hours without a trade out, other programs fill them."
    bars = a_market(300)
    if zero: bars.loc[bars.index[::7], "volume"] = 0.0
    got, notes = read_bars(written(tmp_path, "XBTUSD_60.csv", as_ohlcvt(bars)), BTC)
    exactly(got, bars)
    assert notes["format"] == "Kraken OHLCVT CSV"
    assert import_bars(tmp_path / "XBTUSD_60.csv", BTC, "kraken", tmp_path).new == 300


NOT_KRAKEN = {   # what the two last columns of seven may be instead of volume and number of trades
    "an average price and a number": lambda b: (b["close"] * 0.4 + b["low"] * 0.6, range(1, len(b) + 1)),
    "an average price, rounded": lambda b: (b["close"].round(), range(1, len(b) + 1)),
    "the number of trades and a volume": lambda b: (np.arange(1, len(b) + 1), b["volume"].tolist()),
    "the number of trades and a whole volume": lambda b: (np.arange(1, len(b) + 1), [*range(2, len(b) + 2)]),
    "two volumes": lambda b: (b["volume"], (b["volume"] * b["close"]).tolist()),
    "a volume and a number that is not zero with it": lambda b: (
        b["volume"].where(np.arange(len(b)) % 9 > 0, 0.0), [5] * len(b)
    ),
    "a volume and a number that is once missing": lambda b: (b["volume"], ["", *[5] * (len(b) - 1)]),
    "a volume and a negative number": lambda b: (b["volume"], [-1, *[5] * (len(b) - 1)]),
    "a volume without any trade": lambda b: (b["volume"], [0] * len(b)),
}


@pytest.mark.parametrize("last", NOT_KRAKEN)
def test_seven_columns_whose_last_may_be_something_else_are_refused(last, tmp_path):
    bars = a_market(300)
    with pytest.raises(InputError, match="7 columns without a header; write time,open,high,low,close,volume"):
        read_bars(written(tmp_path, "x.csv", as_ohlcvt(bars, *NOT_KRAKEN[last](bars))), BTC)


def test_seven_columns_with_milliseconds_are_not_from_kraken(tmp_path):
    content = re.sub(rb"(?m)^(\d{10}),", rb"\g<1>000,", as_ohlcvt(a_market(300)))
    with pytest.raises(InputError, match="7 columns without a header"):
        read_bars(written(tmp_path, "x.csv", content), BTC)


@settings(max_examples=50, deadline=None, suppress_health_check=[
    HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large])
@given(bars=some_bars())
def test_a_history_of_kraken_is_read_exactly_or_refused(bars, tmp_path):
    file = written(tmp_path, "x.csv", as_ohlcvt(bars))
    try: got, _ = read_bars(file, BTC)
    except InputError as e: assert "7 columns without a header" in str(e)
    else: exactly(got, bars)


@settings(max_examples=30, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(bars=some_bars(), suffix=st.sampled_from(["csv", "parquet"]))
def test_import_and_export_change_no_bit(bars, suffix, tmp_path):
    report = import_bars(written(tmp_path, "in.csv", as_csv(bars)), BTC, "somewhere", tmp_path, replace=True)
    out = export_bars(
        BTC,
        "somewhere",
        tmp_path / f"out.{suffix}",
        tmp_path,
        start=report.first,
        end=pd.Timestamp(report.last) + HOUR,
    )
    got, _ = read_bars(out, BTC)
    exactly(got.loc[got.index.isin(bars.index)], bars)
    (tmp_path / "bars" / "somewhere" / "BTC_USD_1h.parquet").unlink()


@pytest.mark.parametrize("ticker", [t.replace("/USD", "/USDT") for t in TICKERS])
def test_real_binance_files_keep_their_three_true_gaps_and_every_bit(
    ticker, real_bars, client_home, tmp_path, monkeypatch
):
    monkeypatch.delenv("CRYPTOLSTM_EXCHANGE_URL")
    expected = real_bars(ticker, "binance")
    report = import_bars(written(tmp_path, "given.parquet", as_file(expected, "parquet")), ticker, "binance")
    assert report.gaps == TRUE_GAPS and (report.new, report.bars) == (len(expected), 17513)
    hours = 17513 + 7
    # makes no request: no test can reach Binance
    served = market_bars(ticker, hours, end="2023-07-01", exchange="binance")
    assert provenance(served).source == "store" and len(served) == hours
    exactly(served.loc[~served["is_gap"], COLUMNS], expected)
    holes = pd.DatetimeIndex([pd.Timestamp(t) + k * HOUR for t, n in TRUE_GAPS for k in range(n)])
    assert served.index[served["is_gap"]].equals(holes.as_unit("us"))
    assert len(quality_report(served).tables["gaps"]) == 3
    for suffix in ("csv", "parquet"):
        out = export_bars(ticker, "binance", tmp_path / f"out.{suffix}")
        again, notes = read_bars(out, ticker)
        assert notes["gaps"] == TRUE_GAPS and bars_hash(again) == bars_hash(expected)
        assert import_bars(out, ticker, "binance").same == len(expected)


def test_real_klines_as_binance_gives_them_equal_the_recorded_bars(real_bars, tmp_path):
    expected = real_bars("ETH/USDT", "binance")
    # milliseconds, then microseconds as Binance uses since 2025
    content = as_zip(as_klines(expected.iloc[:9000]) + b"\n" + as_klines(expected.iloc[9000:], 10**6))
    got, notes = read_bars(written(tmp_path, "ETHUSDT-1h.zip", content), "ETH/USDT")
    exactly(got, expected)
    assert notes["times"] == "ms and us" and notes["format"] == "Binance Vision klines in zip"


# -- aggregation of shorter bars
# --------------------------------------------------------------------------------------------------


def minutes(n=6 * 60, step=1, start="2020-02-29 22:00", seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = 9000 + np.cumsum(rng.normal(size=n)).round(2)
    opened = np.r_[9000.0, close[:-1]]
    index = pd.date_range(start, periods=n, freq=f"{step}min", tz="UTC", name="timestamp")
    return pd.DataFrame(
        {
            "open": opened,
            "high": np.maximum(opened, close) + 1,
            "low": np.minimum(opened, close) - 1,
            "close": close,
            "volume": rng.integers(0, 1024, n) / 64,
        },
        index=index,
    )


def by_hand(bars):
    "The same aggregation with pandas; volumes are sixty-fourths, so their sums are exact in any order."
    return (
        bars.resample("h")
        .agg({"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"})
        .dropna()
    )


@pytest.mark.parametrize("step", [1, 5, 15, 30])
def test_shorter_bars_become_hours(step, tmp_path):
    bars = minutes(6 * 60 // step, step)
    for frame in (bars, bars[::-1], bars.sample(frac=1, random_state=1)):
        got, notes = read_bars(written(tmp_path, "m.csv", as_csv(frame)))
        same(got, by_hand(bars))
        assert notes["minutes"] == step and notes["partial"] == 0 and notes["cut"] == []


def test_kaggle_minutes_without_a_trade_are_no_fault(tmp_path):
    """Rows of NaN are minutes without a trade; an hour that consists of them has no bar, and the gap counts
    as confirmed."""
    bars = minutes()
    quiet = np.zeros(len(bars), bool)
    quiet[[0, 7, 65]], quiet[120:180] = True, True
    frame = bars.assign(currency=bars["volume"] * bars["close"], weighted=bars["close"])
    frame[quiet] = np.nan
    frame = frame.set_axis(
        ["Open", "High", "Low", "Close", "Volume_(BTC)", "Volume_(Currency)", "Weighted_Price"], axis=1
    )
    frame.insert(0, "Timestamp", frame.index.as_unit("s").asi8)
    file = written(tmp_path, "bitstamp.csv", frame.to_csv(index=False, na_rep="NaN"))
    got, notes = read_bars(file, BTC)
    same(got, by_hand(bars[~quiet]).query("volume > 0"))
    assert notes["format"] == "Kaggle Bitstamp CSV" and (
        notes["empty"],
        notes["untraded"],
        notes["partial"],
    ) == (63, 1, 0)
    assert notes["gaps"] == [("2020-03-01T00:00Z", 1)]


def test_hours_cut_by_the_ends_of_a_file_are_left_out_and_thin_hours_are_counted(tmp_path):
    bars = minutes().iloc[10:-5]
    thin = bars.drop(bars.index[50:80])
    got, notes = read_bars(written(tmp_path, "m.csv", as_csv(thin)))
    same(got, by_hand(thin).iloc[1:-1])
    assert notes["cut"] == ["2020-02-29T22:00Z", "2020-03-01T03:00Z"] and notes["partial"] == 1


@pytest.mark.parametrize("hours", [2, 4, 24, 168])
def test_bars_longer_than_an_hour_are_refused(hours, tmp_path):
    index = pd.date_range("2024-01-01", periods=20, freq=f"{hours}h", tz="UTC", name="timestamp")
    with pytest.raises(InputError, match=f"has bars of {hours} hours; pass hourly bars"):
        read_bars(written(tmp_path, "long.csv", as_csv(minutes(20).set_axis(index))))


@pytest.mark.parametrize("hours", [2, 4, 24])
@pytest.mark.parametrize("longer_first", [True, False])
def test_longer_bars_beside_hourly_ones_are_refused_by_row(hours, longer_first, tmp_path):
    bars = a_market(40 * hours + 60)
    cut = 40 * hours if longer_first else 60
    parts = [bars.iloc[:cut], bars.iloc[cut:]]
    long = 0 if longer_first else 1
    parts[long] = parts[long].iloc[: 6 * hours : hours] if longer_first else parts[long].iloc[::hours][:6]
    hourly = parts[1 - long]
    for frame in (pd.concat(parts), pd.concat(parts)[::-1]):
        with pytest.raises(InputError, match=rf"row \d+ is one of at least four that open {hours} hours"):
            read_bars(written(tmp_path, "x.csv", as_csv(frame)))
        got, notes = read_bars(written(tmp_path, "x.csv", as_csv(frame)), skip_bad=True)
        assert notes["skipped"] >= 6 and got.index.isin(hourly.index).all() and len(hourly) - len(got) <= 1
        # the hours between them are no gaps
        assert sum(n for _, n in notes["doubted"]) == sum(n for _, n in notes["gaps"])


def test_three_longer_bars_or_holes_of_different_lengths_are_gaps(tmp_path):
    bars = a_market(60)
    holed = bars.drop(bars.index[[11, 13, 21, 23, 24, 26, 30, 32]])
    exactly(read_bars(written(tmp_path, "x.csv", as_csv(holed)))[0], holed)


# -- refused rows
# ------------------------------------------------------------------------------------------

FAULTS = {  # the line that replaces line 4 of the file → the error
    "2025-01-01 02:00,twelve,13,11,12,7": "row 4 has 'twelve' as open where a number belongs",
    '2025-01-01 02:00,"1,234.5",13,11,12,7': "row 4 has an open or close outside high and low",
    '2025-01-01 02:00,"1,23.5",13,11,12,7': "row 4 has '1,23.5' as open where a number belongs",
    '2025-01-01 02:00,"1.234,5.6",13,11,12,7': "row 4 has '1.234,5.6' as open where a number belongs",
    "2025-01-01 02:00,0x10,17,11,12,7": "row 4 has '0x10' as open where a number belongs",
    "2025-01-01 02:00,12,13,11,NaN,7": "row 4 has no close",
    "2025-01-01 02:00,,,,,": "row 4 has no open and high and low and close and volume",
    "2025-01-01 02:00,12,13,11,12,": "row 4 has no volume",
    "2025-01-01 02:00,12,inf,11,12,7": "row 4 has no high",
    "2025-01-01 02:00,12,10,11,12,7": "row 4 has a high below its low",
    "2025-01-01 02:00,14,13,11,12,7": "row 4 has an open or close outside high and low",
    "2025-01-01 02:00,12,13,0,12,7": "row 4 has a price that is not positive",
    "2025-01-01 02:00,12,13,-11,12,7": "row 4 has a price that is not positive",
    "2025-01-01 02:00,12,13,11,12,-7": "row 4 has a negative volume",
    "2025-01-01 02:30,12,13,11,12,7": "row 4 opens at 2025-01-01 02:30 UTC, off the hour",
    "2025-01-01 02:00:00.001,12,13,11,12,7": "row 4 opens at",
    "2025-01-01 01:00,12,13,11,12,7": (
        "row 3 gives other values than row 4 for 2025-01-01 01:00 UTC, and 1 more row cannot"
    ),
    "yesterday,12,13,11,12,7": "row 4 has 'yesterday' where a time belongs",
    "1999-01-01 02:00,12,13,11,12,7": (
        "row 4 opens at 1999-01-01 02:00 UTC, which is before 2009 or still to come"
    ),
    "2999-01-01 02:00,12,13,11,12,7": (
        "row 4 opens at 2999-01-01 02:00 UTC, which is before 2009 or still to come"
    ),
    "2025-01-01 02:00,12,13": "row 4 has 3 fields instead of 6",
    "date,open,high,low,close,volume": "row 4 has 'date' where a time belongs",
    "2025-01-01 02:00,12,1e308,11,12,7": "row 4 has a price outside 1e-15 to 1e+15, or a volume above 1e+18",
    "2025-01-01 02:00,1e-320,13,1e-320,12,7": "row 4 has a price outside 1e-15 to 1e+15",
    "2025-01-01 02:00,12,13,11,12,1e300": "or a volume above 1e+18",
    "2025-01-01 02:00,true,13,11,12,7": "row 4 has 'true' as open where a number belongs",
}


@pytest.mark.parametrize("line", FAULTS)
def test_a_bad_row_refuses_the_whole_file_and_is_named(line, tmp_path):
    text = HEAD + "\n".join([*GOOD[:2], line, GOOD[3]]) + "\n"
    with pytest.raises(InputError) as e:
        import_bars(written(tmp_path, "bad.csv", text), BTC, "somewhere", tmp_path)
    assert (
        FAULTS[line] in str(e.value)
        and "nothing was imported" in str(e.value)
        and str(e.value).count("\n") == 0
    )
    assert not bar_path(tmp_path, "somewhere", BTC).exists()


@pytest.mark.parametrize("line", FAULTS)
def test_bad_rows_can_be_left_out_and_are_reported(line, tmp_path):
    text = HEAD + "\n".join([*GOOD[:2], line, GOOD[3]]) + "\n"
    report = import_bars(written(tmp_path, "bad.csv", text), BTC, "somewhere", tmp_path, skip_bad=True)
    twice = "01:00,12" in line  # two rows contradict each other: both are dropped
    assert (
        report.skipped == 1 + twice
        and list(report.bad) == ["3", "4"][not twice :]
        and report.bars == 3 - twice
    )
    assert "bad row" in report_text(report) and json.loads(json.dumps(asdict(report)))["bars"] == report.bars


@pytest.mark.parametrize("kind", ["parquet", "feather", "json"])
def test_true_is_no_price(kind, tmp_path):
    bars = dated(a_market(5)).assign(open=True)
    bars.attrs = {}
    content = bars.to_json(orient="records").encode() if kind == "json" else as_file(bars, kind)
    with pytest.raises(InputError, match="row 1 has '[Tt]rue' as open where a number belongs"):
        read_bars(written(tmp_path, "x", content))


def test_no_cut_of_the_last_line_changes_a_value(tmp_path):
    bars = a_market(20)
    for end in ("\n", "\r\n"):
        content = as_csv(bars, end=end)
        for k in range(len(content) - 119, len(content)):
            with contextlib.suppress(InputError):
                got, _ = read_bars(written(tmp_path, "x.csv", content[:k]))
                exactly(got, bars.iloc[: len(got)])
    file = written(tmp_path, "x.csv", content[:-9])
    with pytest.raises(InputError, match="row 21 ends the file without a line end, so its volume may be"):
        read_bars(file)
    got, notes = read_bars(file, skip_bad=True)
    exactly(got, bars.iloc[:-1])
    assert notes["skipped"] == 1 and "21" in notes["bad"]


def test_a_last_line_whose_values_are_complete_needs_no_line_end(tmp_path):
    bars = a_market(20)
    for content in (as_klines(bars), as_cdd(bars), as_csv(bars).replace(b"\n", b",9\n").replace(
        b"volume,9", b"volume,trades")[:-1]):
        exactly(read_bars(written(tmp_path, "x.csv", content), BTC)[0], bars)


def test_rows_are_counted_as_an_editor_shows_them(tmp_path):
    "The lines above the header, the header, empty lines and Windows line endings count."
    lines = [
        "https://www.CryptoDataDownload.com",
        "",
        "unix,date,symbol,open,high,low,close,Volume BTC,Volume USD",
        "",
        "1735689600,x,BTC/USD,10,12,9,11,5,9",
        "",
        "",
        "1735693200,x,BTC/USD,10,12,9,11,5,9",
        "1735696800,x,BTC/USD,10,8,9,11,5,9",
        "",
    ]
    for end in ("\n", "\r\n"):
        with pytest.raises(InputError, match="row 9 has a high below its low"):
            read_bars(written(tmp_path, "x.csv", end.join(lines)), BTC)
        # rows after a torn one are counted in the same way
        with pytest.raises(InputError, match="row 9 has a high below its low, and 1 more"):
            read_bars(written(tmp_path, "x.csv", end.join([*lines[:9], "1735700400,x", *lines[9:]])), BTC)


def test_rows_of_parquet_and_json_are_counted_from_the_first_bar(tmp_path):
    bars = a_market(5)
    bars.attrs = {}
    bad = bars.assign(low=[*bars["low"][:3], 0.0, bars["low"].iloc[4]])
    for content in (as_file(bad, "parquet"), as_file(dated(bad), "feather"), FORMATS["freqtrade JSON"](bad)):
        with pytest.raises(
            InputError, match="row 4 has a price that is not positive.*the first bar is row 1"
        ):
            read_bars(written(tmp_path, "x", content))


def test_identical_rows_are_dropped_and_counted(tmp_path):
    got, notes = read_bars(
        written(tmp_path, "x.csv", HEAD + "".join(GOOD[k] + "\n" for k in (0, 1, 1, 0, 2, 1)))
    )
    assert len(got) == 3 and notes["repeated"] == 3 and notes["skipped"] == 0


NOT_BARS = {
    "<!DOCTYPE html><html><body>404</body></html>": "is a web page",
    "": "is empty",
    "\n \n": "is empty",
    HEAD: "no bars",
    "nothing here\nto see\n": "no table of bars",
    "date,open,high,low,volume,x\n2025-01-01,1,1,1,1,1\n": (
        "no column for close; found date, open, high, low, volume, x"
    ),
    "date,open,high,low,close\n2025-01-01,1,1,1,1\n": (
        "no column for volume; found date, open, high, low, close"
    ),
    "price,open,high,low,close,volume\n1,1,1,1,1,1\n": "no column for time",
    ",open,high,low,close,volume\n0,1,1,1,1,1\n1,1,1,1,1,1\n": (
        "row 2 opens at 1970-01-01 00:00 UTC, which is before 2009"
    ),
    "date,time,open,high,low,close,volume\n2025-01-01,noon,1,1,1,1,1\n2025-01-02,noon,1,1,1,1,1\n": (
        "has its times in two columns, date and time, and '2025-01-01 noon' is none; write them into one"
        " column as 2025-01-31 13:00"
    ),
    "unix,open,high,low,close,Volume USD\n1735689600,1,1,1,1,1\n": "none of them the volume in BTC",
    "date,symbol,open,high,low,close,volume\n2025-01-01,ETHUSD,1,1,1,1,1\n": (
        "holds bars of ETHUSD, not of BTC/USD"
    ),
    "[]": "JSON without a list of bars",
    '{"Response": "Error"}': "JSON without a list of bars",
    '{"error":["EQuery:Unknown asset pair"]}': "holds an error of Kraken (EQuery:Unknown asset pair)",
    '{"error":[],"result":{"last":1}}': "JSON without a list of bars",
    '{"error":[],"result":{"XETHZUSD":[[1688671200,"1","2","1","2","1","5",9]]}}': (
        "says that its bars are of XETHZUSD, not of BTC/USD"
    ),
    "Price,Close,High,Low,Open,Volume\nTicker,ETH-USD,ETH-USD,ETH-USD,ETH-USD,ETH-USD\nDatetime,,,,,\n"
    "2025-01-01 00:00:00+00:00,1,2,1,2,5\n": "says that its bars are of ETH-USD, not of BTC/USD",
    "[1, 2": "is not JSON",
    '["a", "b"]': "row 1 is no bar",
    '[{"a": 1}]': "no column for time and open",
    "1735689600000,1,2,1,2,5,6,7\n": "8 columns without a header",
    '1735689600000,1,2,1,2,"5\n1735693200000,1,2,1,2,5\n': "row 1 has a quote that does not close; remove it",
    "1735689600000,1,2,1,2,1.5,7\n": "7 columns without a header",
    "1735689600000,1,2,1,2,5,6,7,8,9,1,2\n": "12 columns without a header",
    "1735689600000,1,2,1,2,5,1735689600000,7,8,9,1,2\n": "12 columns without a header",
    "[[1735689600000,1,2,1,2,5,6,7,8,9,1,2]]": "row 1 is no bar",
    '[{"time":1735689600,"open":1,"high":3,"low":1,"close":2,"close":3,"volume":5}]': (
        "row 1 is no bar"
    ),
    "date,open,high,low,close,volume,Volume\n2025-01-01,1,1,1,1,1,2\n": (
        "has two columns for volume; remove the wrong one or rename it"
    ),
    "date,Open,open,high,low,close,volume\n2025-01-01,1,1,1,1,1,2\n": "has two columns for open",
    "date,o,open,high,low,close,volume\n2025-01-01,1,1,1,1,1,2\n": "has two columns for open",
    "date,open,high,low,close,Schluss,volume\n2025-01-01,1,1,1,1,1,2\n": "has two columns for close",
    "date,open,high,low,close,v,volume\n2025-01-01,1,1,1,1,1,2\n": (
        "has v and volume, each of which may be the volume in BTC; remove or rename the wrong one"
    ),
    "date,open,high,low,close,volume,Volume BTC\n2025-01-01,1,1,1,1,1,2\n": "has volume and volume_btc, each",
    "PAR1 and no more": "damaged Parquet",
    "ARROW1 and no more": "damaged Feather",
    "\x1f\x8bno gzip": "cannot be unpacked",
    "PK\x03\x04no zip": "cannot be unpacked",
    "\x89PNG\r\n\x1a\n\x00\x00": "neither text nor",
}


@pytest.mark.parametrize("content", NOT_BARS)
def test_a_file_that_holds_no_bars_is_refused_with_a_sentence(content, tmp_path):
    with pytest.raises(InputError, match="file.csv") as e:
        import_bars(written(tmp_path, "file.csv", content.encode("latin-1")), BTC, "somewhere", tmp_path)
    assert NOT_BARS[content] in str(e.value) and str(e.value).count("\n") == 0


def test_a_zip_of_several_files_a_folder_and_a_missing_file_are_refused(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name in "ab":
            z.writestr(f"{name}.csv", HEAD)
    with pytest.raises(InputError, match="a zip of 2 files"):
        read_bars(written(tmp_path, "x.zip", out.getvalue()))
    with pytest.raises(InputError, match="is a folder"):
        read_bars(tmp_path)
    with pytest.raises(InputError, match="there is no file"):
        read_bars(tmp_path / "none.csv")


@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(name=st.sampled_from(sorted(FORMATS)), cut=st.integers(0, 4000),
       noise=st.binary(max_size=12), at=st.integers(0, 4000))
@example(name="CSV: s", cut=0, noise=b"\xff\xfe", at=60)
@example(name="JSON records", cut=0, noise=b"null,", at=1)
def test_a_damaged_file_gives_bars_or_one_sentence(name, cut, noise, at, tmp_path):
    "Any damaged file is either read or refused; there is no other outcome."
    content = FORMATS[name](a_market(20))
    content = content[:max(1, len(content) - cut)]
    content = content[:at % len(content)] + noise + content[at % len(content):]
    for skip in (False, True):
        try:
            bars, notes = read_bars(written(tmp_path, "x", content), BTC, skip_bad=skip)
            assert len(bars) == notes["bars"] > 0
        except InputError as e:
            assert "\n" not in str(e)


# -- numbers
# --------------------------------------------------------------------------------------------------

UNCLEAR = {  # rows of which every number can be read in two ways → what the error shows
    "2025-01-01 00:00;1,234;1,250;1,200;1,240;500": "whether the comma in 1,234",
    '2025-01-01 00:00,"1,234","1,250","1,200","1,240",500': "whether the comma in 1,234",
    "2025-01-01 00:00;96.123;96.500;96.000;96.200;12": "whether the point in 96.123",
    "2025-01-01 00:00;100;200;100;100;-7.500": "whether the point in -7.500",
    "2025-01-01 00:00;12,5;13,5;11.5;12.5;7": "has numbers with a decimal point and with a decimal comma",
}


@pytest.mark.parametrize("row", UNCLEAR)
def test_numbers_that_can_be_read_in_two_ways_are_refused(row, tmp_path):
    separator = ";" if ";" in row else ","
    file = written(tmp_path, "x.csv", HEAD.replace(",", separator) + row + "\n")
    for skip in (False, True):
        with pytest.raises(InputError, match="write .* a decimal point") as e:
            import_bars(file, BTC, "somewhere", tmp_path, skip_bad=skip)
        assert UNCLEAR[row] in str(e.value) and "\n" not in str(e.value)
    assert not (tmp_path / "bars").exists()


def test_one_number_decides_the_decimal_mark_of_the_whole_file(tmp_path):
    rows = ["2025-01-01 00:00;1,234;1,250;1,200;1,240;500", "2025-01-01 01:00;1,234;1,250;1,200;1,240;{}\n"]
    for volume, price in (("0,5", 1.234), ("0.5", 1234), ("1,000,000", 1234), ("1.000,000", 1.234)):
        text = HEAD.replace(",", ";") + "\n".join(rows).format(volume)
        assert read_bars(written(tmp_path, "x.csv", text))[0]["open"].tolist() == [price, price]


def test_three_decimals_are_decimals_where_commas_separate_fields(tmp_path):
    got, _ = read_bars(written(tmp_path, "x.csv", HEAD + "2025-01-01 00:00,2.123,2.200,2.100,2.150,500\n"))
    assert got["open"].tolist() == [2.123]


def test_a_number_with_the_other_decimal_mark_is_a_bad_row(tmp_path):
    text = as_local(a_market(20), ",").decode().splitlines()
    text[7] = "01.02.2025 05:00;1.5;2.5;1.5;2.5;7"
    with pytest.raises(InputError, match="row 8 has '1.5' as open and '2.5' as high and .* number belongs"):
        read_bars(written(tmp_path, "x.csv", "\n".join([*text, ""])))


# -- vendors
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [(0, 1), (1, 0)])
def test_the_three_header_lines_of_yfinance_are_read(levels, tmp_path):
    "Yahoo gives the volume of a coin in quote currency; a bar has it in base currency."
    bars = a_market(30)
    lines = as_yfinance(bars.assign(volume=bars["volume"] * bars["close"]), "BTC-USD").decode().splitlines()
    lines[:2] = [lines[k] for k in levels]
    got, notes = read_bars(written(tmp_path, "btc.csv", "\n".join([*lines, ""])), BTC)
    exactly(got[COLUMNS[:4]].assign(volume=bars["volume"]), bars)
    np.testing.assert_allclose(got["volume"], bars["volume"], rtol=1e-12)
    assert notes["format"] == "yfinance CSV, volume divided by close" and notes["rows"] == 30
    lines[7] = lines[7].split(",")[0] + ",x,2,1,1,5"
    with pytest.raises(InputError, match="row 8 has 'x' as close"):
        read_bars(written(tmp_path, "btc.csv", "\n".join([*lines, ""])), BTC)


def test_a_file_of_yfinance_with_two_tickers_is_refused(tmp_path):
    file = written(tmp_path, "two.csv", as_yfinance(a_market(5), "BTC-USD", "ETH-USD"))
    with pytest.raises(InputError, match="holds bars of BTC-USD and ETH-USD; pass a file with one ticker"):
        read_bars(file, BTC)


@pytest.mark.parametrize("pair, ticker", [
    ("XXBTZUSD", BTC), ("XETHXXBT", "ETH/BTC"), ("SOLUSD", "SOL/USD"), ("XDGUSD", "DOGE/USD")])
def test_the_pair_of_a_kraken_answer_is_compared_with_the_ticker(pair, ticker, tmp_path):
    file = written(tmp_path, "kraken.json", as_kraken(a_market(9), pair))
    assert import_bars(file, ticker, "kraken", tmp_path).new == 9
    with pytest.raises(InputError, match=f"bars are of {pair}, not of LTC/USD"):
        import_bars(file, "LTC/USD", "kraken", tmp_path)


# -- timestamps
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("day", ["2025-03-09", "2025-11-02"])
def test_local_times_of_both_daylight_saving_days_are_read_bar_by_bar(day, tmp_path):
    index = pd.date_range(pd.Timestamp(day, tz="UTC") - 12 * HOUR, periods=60, freq="h", name="timestamp")
    bars = a_market(60).set_axis(index.as_unit("us"))
    local = bars.index.tz_convert("America/Denver").strftime("%m/%d/%Y %H:%M")
    for frame, times in ((bars, local), (bars[::-1], local[::-1])):
        got, notes = read_bars(written(tmp_path, "local.csv", as_csv(frame, times)), tz="America/Denver")
        exactly(got, bars)
        assert notes["times"].endswith("in America/Denver")


def test_a_local_time_that_does_not_exist_is_a_bad_row(tmp_path):
    text = HEAD + "".join(f"2025-03-09 0{h}:00,10,12,9,11,5\n" for h in range(6))
    with pytest.raises(InputError, match="row 4 has '2025-03-09 02:00' where a time belongs"):
        read_bars(written(tmp_path, "local.csv", text), tz="America/Denver")


def test_day_and_month_are_told_apart_by_what_follows_what(tmp_path):
    for end in ("2025-02-04", "2025-01-31"):
        bars = a_market(60, end=end)
        for day, (mark, clock) in itertools.product(
            ("%m/%d/%Y", "%d/%m/%Y", "%m/%d/%y", "%d/%m/%y", "%y/%m/%d", "%Y/%m/%d"),
            (("/", "%H:%M"), ("-", "%H:%M:%S"), (".", "%H:%M"), (".", "%I:%M %p")),
        ):
            spelling = f"{day.replace('/', mark)} {clock}"
            file = written(tmp_path, "x.csv", as_csv(bars, bars.index.strftime(spelling)))
            exactly(read_bars(file)[0], bars)


def test_day_and_month_that_could_be_swapped_are_refused(tmp_path):
    rows = HEAD + "01/02/2025 00:00,1,1,1,1,1\n01/02/2025 01:00,1,1,1,1,1\n"
    short = rows.replace("01/02/2025", "14/01/15")   # 14 January 2015 or 15 January 2014
    for text in (rows, rows.replace("/", "-"), rows.replace("/", "."), short, short.replace("/", ".")):
        with pytest.raises(InputError, match="day and month cannot be told apart"):
            read_bars(written(tmp_path, "x.csv", text))


def test_one_damaged_day_does_not_decide_what_is_day_and_what_is_month(tmp_path):
    rows = [f"05/06/2025 {h:02}:00,1,1,1,1,1" for h in range(20)]
    for day in ("13/06/2025", "05/07/2025", "06/06/2025"):
        text = HEAD + "\n".join([*rows[:9], rows[9].replace("05/06/2025", day), *rows[10:], ""])
        with pytest.raises(InputError, match="day and month cannot be told apart"):
            read_bars(written(tmp_path, "x.csv", text))


@pytest.mark.parametrize("offset", ["-04", "-0400", "-04:00", "+02", " -04", "Z", " UTC"])
def test_a_time_with_an_offset_is_not_moved_by_the_zone_passed(offset, tmp_path):
    bars = a_market(30)
    zone = re.sub(r"^([+-]\d\d)$", r"\1:00", offset.strip()).replace("Z", "UTC")
    for spelling in ("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S.%f"):
        times = [t + offset for t in bars.index.tz_convert(zone).strftime(spelling)]
        for mixed in (times, [bars.index[0].tz_convert("America/Denver").strftime(spelling), *times[1:]]):
            got, _ = read_bars(written(tmp_path, "x.csv", as_csv(bars, mixed)), tz="America/Denver")
            exactly(got, bars)


def two_times(bars, names, *times):
    return as_csv(bars, [f"{a},{b}" for a, b in zip(*times, strict=True)], HEAD.replace("date", names))


@pytest.mark.parametrize("late", [3_600_000, 3_599_999, 3_599_000])
def test_of_open_and_close_times_the_open_ones_are_taken(late, tmp_path):
    bars = a_market(30)
    opens = seconds(bars, 1000)
    for names, times in {
        "timestamp,open_time": ([t + late for t in opens], opens),
        "Open Time,date": (opens, [f"{pd.Timestamp(t + late, unit='ms')}" for t in opens]),
    }.items():
        exactly(read_bars(written(tmp_path, "x.csv", two_times(bars, names, *times)))[0], bars)


def test_two_time_columns_that_differ_are_refused(tmp_path):
    bars = a_market(30)
    opens = seconds(bars)
    late = [t + 3600 for t in opens]
    once = [*opens[:4], opens[4] + 7200, *opens[5:]]
    for names, times, row in (
        ("timestamp,date", (opens, late), 2),         # neither is called the open time
        ("open_time,timestamp", (late, opens), 2),    # the open time is the later one
        ("unix,date", (opens, [t - 18000 for t in opens]), 2),
        ("unix,date", (once, opens), 6),
        ("timestamp,close_time", (late, late), 2),
    ):
        with pytest.raises(InputError, match=rf"row {row} has 2025.* as \w+ and 2025.* as \w+; remove the"):
            read_bars(written(tmp_path, "x.csv", two_times(bars, names, *times)))


def test_a_second_column_of_times_may_repeat_them_or_be_none(tmp_path):
    bars = a_market(30)
    opens = seconds(bars)
    whole, day = (bars.index.strftime(how) for how in ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d"))
    for second in (whole, day, ["x"] * 30, range(30)):
        exactly(read_bars(written(tmp_path, "x.csv", two_times(bars, "unix,date", opens, second)))[0], bars)


def test_the_bar_in_progress_when_the_file_was_written_is_left_out(tmp_path):
    file = written(tmp_path, "x.csv", HEAD + "\n".join([*GOOD, ""]))
    os.utime(file, (0, pd.Timestamp("2025-01-01 03:30Z").timestamp()))
    got, notes = read_bars(file)
    assert notes["in_progress"] == "2025-01-01T03:00Z" and len(got) == 3
    os.utime(file, (0, pd.Timestamp("2025-01-01 04:00Z").timestamp()))
    assert len(read_bars(file)[0]) == 4


# -- the store
# --------------------------------------------------------------------------------------------------


def test_a_stored_bar_is_not_overwritten_by_a_file_that_differs(tmp_path):
    bars = a_market(30)
    import_bars(written(tmp_path, "a.csv", as_csv(bars)), BTC, "somewhere", tmp_path)
    before = read_store(bar_path(tmp_path, "somewhere", BTC))
    other = bars.iloc[10:].copy()
    other.iloc[5:7, 4] += 1.0
    file = written(tmp_path, "b.csv", as_csv(other))
    with pytest.raises(
        InputError,
        match=(
            "^2 bars of b.csv differ from stored ones, the first at 2025-01-31 09:00: volume is .* pass"
            " replace"
        ),
    ) as e:
        import_bars(file, BTC, "somewhere", tmp_path)
    assert repr(float(bars["volume"].iloc[15])) in str(e.value) and repr(
        float(other["volume"].iloc[5])
    ) in str(e.value)
    after = read_store(bar_path(tmp_path, "somewhere", BTC))
    assert bars_hash(after.bars) == bars_hash(before.bars) and after.origin == before.origin
    report = import_bars(file, BTC, "somewhere", tmp_path, replace=True)
    assert (report.new, report.same, report.replaced) == (0, 18, 2)
    stored = read_store(bar_path(tmp_path, "somewhere", BTC))
    exactly(stored.bars, pd.concat([bars.iloc[:10], other]))
    assert [e["file"] for e in stored.origin["imports"]] == ["a.csv", "b.csv"] and len(
        stored.origin["revised"]
    ) == 2


def test_the_origin_of_imported_bars_is_kept(tmp_path):
    content = as_csv(a_market(30))
    for _ in range(2):  # importing the same file twice counts once
        report = import_bars(written(tmp_path, "a.csv", content), BTC, "somewhere", tmp_path)
    entry, = read_store(bar_path(tmp_path, "somewhere", BTC)).origin["imports"]
    assert entry["sha256"] == report.sha256 == hashlib.sha256(content).hexdigest()
    assert (
        entry["format"] == "CSV"
        and entry["bars"] == report.same == 30
        and pd.Timestamp(entry["imported_at"]).tzinfo is not None
    )


def test_months_imported_one_by_one_leave_what_lies_between_unknown(tmp_path):
    bars = a_market(90)
    for k in (0, 60):
        import_bars(written(tmp_path, "m.csv", as_csv(bars.iloc[k:k + 30])), BTC, "somewhere", tmp_path)
    first = hour_number(bars.index[0])
    assert read_store(bar_path(tmp_path, "somewhere", BTC)).covered == [
        (first, first + 30),
        (first + 60, first + 90),
    ]


def holed_file(folder, bars):
    return written(folder, "holed.csv", as_csv(bars.drop(bars.index[[500, 501, 700]])))


def test_holes_of_a_file_are_gaps_and_nobody_is_asked_for_them(client, exchange, client_home, tmp_path):
    import_bars(holed_file(tmp_path, a_market()), "ETH/USD", market_name("coinbaseexchange", exchange.url))
    bars = client.get_historical_bars("ETH/USD", 1000, end="2025-02-01")
    assert bars["is_gap"].sum() == 3 and provenance(bars).source == "store" and not exchange.asked


def test_open_holes_of_a_file_are_asked_for_and_filled(client, exchange, client_home, tmp_path):
    import_bars(
        holed_file(tmp_path, a_market()),
        "ETH/USD",
        market_name("coinbaseexchange", exchange.url),
        gaps="open",
    )
    bars = client.get_historical_bars("ETH/USD", 1000, end="2025-02-01")
    same(bars, a_market())
    assert not bars["is_gap"].any() and exchange.count("candles") == 2


def test_open_holes_of_an_exchange_out_of_reach_are_said_and_not_made_up(client_home, tmp_path):
    import_bars(
        holed_file(tmp_path, a_market()),
        BTC,
        market_name("bitstamp", os.environ["CRYPTOLSTM_EXCHANGE_URL"]),
        gaps="open",
    )
    with pytest.raises(ExchangeUnreachable, match="bitstamp cannot be reached"):
        market_bars(BTC, 1000, end="2025-02-01", exchange="bitstamp")
    # nothing is missing after the last hole
    assert len(market_bars(BTC, 299, end="2025-02-01", exchange="bitstamp")) == 299


def test_a_later_fetch_goes_on_where_the_file_ends(client_home, tmp_path):
    with Loopback({"ETH/USD": a_market()}, now="2025-02-01") as exchange:
        import_bars(
            written(tmp_path, "old.csv", as_csv(a_market().iloc[:900])),
            "ETH/USD",
            market_name("coinbaseexchange", exchange.url),
        )
        bars = CryptoMarketDataClient("coinbaseexchange", exchange.url).get_historical_bars("ETH/USD", 1000)
    same(bars, a_market())
    assert not bars["is_gap"].any() and exchange.count("candles") <= 2


def spoilt(folder, bars, *lines):
    "A file of bars in which the given lines replace bars (position → line)."
    rows = as_csv(bars).decode().splitlines()
    for at, line in lines: rows[at + 1] = line
    return written(folder, "bad.csv", "\n".join([*rows, ""]))


def test_rows_left_out_are_no_gaps_and_are_asked_for(client, exchange, client_home, tmp_path):
    bars = a_market()
    bad = spoilt(
        tmp_path, bars, *((k, f"{bars.index[k]:%Y-%m-%d %H:%M:%S},12,10,11,12,7") for k in (300, 500, 501))
    )
    import_bars(bad, "ETH/USD", market_name("coinbaseexchange", exchange.url), skip_bad=True)
    path = bar_path(client_home, client.market, "ETH/USD")
    held = read_store(path)
    assert sorted(
        h
        for a, b in missing_spans((hour_number(bars.index[0]), hour_number(bars.index[-1]) + 1), held.covered)
        for h in range(a, b)
    ) == [hour_number(bars.index[k]) for k in (300, 500, 501)]
    exchange.stop()
    offline = CryptoMarketDataClient("coinbaseexchange", exchange.url).get_historical_bars(
        "ETH/USD", 1000, end="2025-02-01"
    )
    assert provenance(offline).dropped == {"high below low": 3}
    assert provenance(offline).unconfirmed.startswith(
        "3 hours"
    )
    assert offline["is_gap"].to_numpy().nonzero()[0].tolist() == [300, 500, 501]
    with Loopback({"ETH/USD": bars}, now="2025-02-01", port=exchange.port):
        whole = CryptoMarketDataClient("coinbaseexchange", exchange.url).get_historical_bars(
            "ETH/USD", 1000, end="2025-02-01"
        )
    same(whole, bars)
    assert (provenance(whole).dropped, provenance(whole).unconfirmed) == (None, None)


def test_a_row_without_a_time_may_have_been_any_of_the_hours_that_are_missing(client_home, tmp_path):
    bars = a_market(50)
    import_bars(
        spoilt(tmp_path, bars.drop(bars.index[40]), (20, "yesterday,12,13,11,12,7")),
        BTC,
        "kraken",
        skip_bad=True,
    )
    held = read_store(bar_path(client_home, "kraken", BTC))
    first = hour_number(bars.index[0])
    assert held.covered == [(first, first + 20), (first + 21, first + 40), (first + 41, first + 50)]
    assert [tuple(s[:2]) for s in held.origin["suspected"]] == [
        (first + 20, first + 21),
        (first + 40, first + 41),
    ]


def test_more_rows_are_left_out_than_are_named(client_home, tmp_path):
    bars = a_market(3000)
    import_bars(
        spoilt(
            tmp_path,
            bars,
            *((k, f"{bars.index[k]:%Y-%m-%d %H:%M:%S},12,10,11,12,7") for k in range(100, 2600)),
        ),
        BTC,
        "kraken",
        skip_bad=True,
    )
    assert sum(b - a for a, b in read_store(bar_path(client_home, "kraken", BTC)).covered) == 500


def test_imported_bars_that_nobody_can_be_asked_about_are_served_with_their_holes(
    client_home, tmp_path, monkeypatch
):
    monkeypatch.delenv("CRYPTOLSTM_EXCHANGE_URL")
    bars = a_market(50)
    import_bars(spoilt(tmp_path, bars, (20, "yesterday,12,13,11,12,7")), BTC, "mine", skip_bad=True)
    got = market_bars(BTC, 50, exchange="mine")
    assert got["is_gap"].to_numpy().nonzero()[0].tolist() == [20] and provenance(got).unconfirmed.startswith(
        "1 hour"
    )
    import_bars(holed_file(tmp_path, a_market()), BTC, "yours", gaps="open")
    assert market_bars(BTC, 1000, exchange="yours")["is_gap"].sum() == 3


def test_an_import_waits_for_the_process_that_has_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "LOCK_WAIT", 0.05)
    path = bar_path(tmp_path, "somewhere", BTC)
    path.parent.mkdir(parents=True)
    with FileLock(path.with_name(f".{path.name}.lock")), pytest.raises(
        OperationError, match="another process is changing"
    ):
        import_bars(written(tmp_path, "a.csv", as_csv(a_market(30))), BTC, "somewhere", tmp_path)
    assert not path.exists()


@pytest.mark.parametrize("exchange", ["../up", "", "a/b", "simulated", "Auto", "x y"])
def test_a_name_that_is_no_exchange_is_refused(exchange, tmp_path):
    with pytest.raises(InputError, match="such as binance"):
        import_bars(written(tmp_path, "a.csv", as_csv(a_market(9))), BTC, exchange, tmp_path)


# -- export
# --------------------------------------------------------------------------------------------------


def test_an_export_is_plain_and_cut_where_asked(tmp_path):
    bars = a_market(30)
    import_bars(written(tmp_path, "a.csv", as_csv(bars)), BTC, "somewhere", tmp_path)
    out = export_bars(
        BTC, "somewhere", tmp_path / "out.csv", tmp_path, start=bars.index[3], end=bars.index[9]
    )
    lines = out.read_text().splitlines()
    assert (
        lines[0] == "timestamp,open,high,low,close,volume"
        and len(lines) == 1 + 6
        and lines[1].startswith(f"{bars.index[3]:%Y-%m-%dT%H:%M:%SZ},")
    )
    frame = pd.read_parquet(export_bars(BTC, "somewhere", tmp_path / "out.parquet", tmp_path))
    exactly(frame, bars)


def test_an_export_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    import_bars(written(tmp_path, "a.csv", as_csv(a_market(30))), BTC, "somewhere", tmp_path)
    old = written(tmp_path, "out.csv", "old")
    for start, name in (("2030-01-01", "out.csv"), (None, "out.xlsx")):
        with pytest.raises(InputError):
            export_bars(BTC, "somewhere", tmp_path / name, tmp_path, start=start)
    with pytest.raises(InputError, match="there is no folder"):
        export_bars(BTC, "somewhere", old / "below" / "out.csv", tmp_path)
    (tmp_path / "taken.csv").mkdir()
    with pytest.raises(OperationError, match="cannot write"):
        export_bars(BTC, "somewhere", tmp_path / "taken.csv", tmp_path)
    assert old.read_text() == "old" and not (tmp_path / "out.xlsx").exists()


# -- metadata in files
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "feather"])
@pytest.mark.parametrize("market", ["kraken", "simulated_mine"])
def test_simulated_bars_in_a_file_do_not_become_a_market(tmp_path, kind, market):
    bars = a_market(50, ticker=BTC)
    assert provenance(bars).simulated
    (
        bars.to_parquet(tmp_path / "sim.parquet")
        if kind == "parquet"
        else dated(bars).to_feather(tmp_path / "sim.feather")
    )
    with pytest.raises(
        InputError, match=rf"sim\.{kind} says that its bars are simulated; pass bars of a real market"
    ):
        import_bars(tmp_path / f"sim.{kind}", BTC, market, tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_a_file_that_names_another_ticker_or_market_is_refused(tmp_path):
    bars = stamp(a_market(50), "ETH/USD", "kraken")
    bars.to_parquet(tmp_path / "real.parquet")
    with pytest.raises(InputError, match="of ETH/USD, not of BTC/USD; pass the ticker it holds"):
        import_bars(tmp_path / "real.parquet", BTC, "kraken", tmp_path)
    with pytest.raises(InputError, match="of kraken, not of bitstamp; pass the exchange it names"):
        import_bars(tmp_path / "real.parquet", "ETH/USD", "bitstamp", tmp_path)
    assert import_bars(tmp_path / "real.parquet", "ETH/USD", "kraken", tmp_path).new == 50
    out = export_bars("ETH/USD", "kraken", tmp_path / "out.parquet", tmp_path)
    with pytest.raises(InputError, match="of kraken, not of bitstamp"):
        import_bars(out, "ETH/USD", "bitstamp", tmp_path)
    assert import_bars(out, "ETH/USD", "kraken", tmp_path).same == 50


def test_files_of_odd_shapes_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match="nested too deeply"):
        read_bars(written(tmp_path, "deep.json", "[" * 200_000))
    bars = a_market(5)
    bars.attrs = {}
    bars.assign(open=[{"x": 1.0}] * 5).to_parquet(tmp_path / "struct.parquet")
    with pytest.raises(
        InputError, match="struct.parquet: column open holds struct<x: double>, not one value a row"
    ):
        read_bars(tmp_path / "struct.parquet")
