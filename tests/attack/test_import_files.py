"""Bars are written in many dialects and the files damaged: they are imported exactly, or refused.

What nobody can detect is listed in docs/data.md, under "Undetectable damage"."""
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from test_barfiles import (BTC, FORMATS, as_csv, as_file, as_klines, as_local, as_ohlcvt, as_zip, dated,
                           written)

from cryptolstm.core.bars import COLUMNS, HOUR
from cryptolstm.core.errors import InputError
from cryptolstm.data.barfiles import read_bars
from cryptolstm.data.store import hour_number

DIALECTS = {
    **FORMATS,
    **{
        f"CSV: {day.replace('/', mark)} {clock}": lambda b, how=f"{day} {clock}".replace("/", mark): as_csv(
            b, b.index.strftime(how)
        )
        for mark, clock in (("/", "%H:%M"), ("-", "%H:%M:%S"), (".", "%I:%M %p"))
        for day in ("%m/%d/%Y", "%d/%m/%Y", "%y/%m/%d", "%d/%m/%y")
    },
    "CSV: with an offset of hours": lambda b: as_csv(
        b, b.index.tz_convert("Etc/GMT+4").strftime("%Y-%m-%d %H:%M:%S-04")
    ),
    "CSV: by tabs": lambda b: as_csv(b).replace(b",", b"\t"),
    "CSV: open and close time": lambda b: as_csv(
        b,
        [f"{t + HOUR:%Y-%m-%d %H:%M},{t:%Y-%m-%d %H:%M}" for t in b.index],
        "timestamp,open_time,open,high,low,close,volume\n",
    ),
    "Feather: open time": lambda b: as_file(dated(b).rename(columns={"date": "open_time"}), "feather"),
    "Binance Vision klines in zip: µs": lambda b: as_zip(as_klines(b, 10**6)),
    "Kraken OHLCVT CSV": as_ohlcvt,
    "CSV: decimal comma, no spaces": lambda b: as_local(b, ",", times="%Y-%m-%d %H:%M"),
}


def market(rng) -> pd.DataFrame:
    "Between 30 and 60 bars of a plausible market, from a late hour of a day after the 12th."
    n, digits = rng.integers(30, 61), rng.integers(0, 7)
    walk = 10.0 ** rng.uniform(-3, 5) * np.exp(np.cumsum(rng.normal(0, 0.01, n + 1)))
    body = np.array([walk[:-1], walk[1:]])
    values = [body[0], body.max(axis=0) * 1.003, body.min(axis=0) * 0.997, body[1], rng.gamma(1, 30, n)]
    month = pd.Timestamp(year=rng.integers(2012, 2026), month=rng.integers(1, 13), day=1)
    first = hour_number(month) + 24 * rng.integers(12, 25) + rng.integers(20, 24)
    index = pd.to_datetime(3600 * (first + np.arange(n)), unit="s", utc=True)
    bars = pd.DataFrame(dict(zip(COLUMNS, values, strict=True)), index=index.as_unit("us"))
    return bars.rename_axis("timestamp").round(digits + 5)


# -- damage before the file is written: bars, random numbers → the rows written, and the bars they hold
# ----------------------------------------------------------------------------------------


def changed(column, value):
    def damage(bars, rng):
        rows = bars.copy()
        rows.iloc[rng.integers(len(bars)), COLUMNS.index(column)] = value
        return rows, bars
    return damage


def moved(by):
    def damage(bars, rng):
        times, k = bars.index.to_numpy().copy(), rng.integers(len(bars))
        times[k] = (bars.index[k] + by).to_datetime64()
        return bars.set_axis(pd.DatetimeIndex(times, tz="UTC", name="timestamp")), bars
    return damage


def longer(hours, first):
    "Six bars of several hours before or after the hourly ones."
    def damage(bars, rng):
        index, span = bars.index, hours * HOUR * np.arange(1, 7)
        times = index[0] - span[::-1] if first else index[-1] + span
        extra = bars.iloc[:6].set_axis(pd.DatetimeIndex(times, name="timestamp").as_unit("us"))
        return pd.concat([extra, bars] if first else [bars, extra]), bars
    return damage


def repeated(bars, rng):
    return pd.concat([bars, bars.iloc[[rng.integers(len(bars))]]]), bars


def contradicted(bars, rng):
    row = bars.iloc[[rng.integers(len(bars))]]
    return pd.concat([bars, row.assign(volume=row["volume"] + 1)]), bars


def thinned(bars, rng):
    rows = bars.drop(bars.index[rng.integers(4, len(bars) - 1)])
    return rows, rows


ROWS = {
    "no damage": lambda bars, rng: (bars, bars),
    "rows in any order": lambda bars, rng: (bars.iloc[rng.permutation(len(bars))], bars),
    "a row missing": thinned,
    "a row repeated": repeated,
    "a row contradicted": contradicted,
    "a row half an hour late": moved(HOUR / 2),
    "a row of the year 1999": moved(pd.Timedelta(days=-15000)),
    "a row still to come": moved(pd.Timedelta(days=9000)),
    **{f"bars of {h} hours {'before' if f else 'after'}": longer(h, f) for h in (2, 4, 24) for f in (0, 1)},
    "a price of zero": changed("open", 0.0),
    "a negative price": changed("low", -1.0),
    "a price of 1e308": changed("high", 1e308),
    "a price of 1e-320": changed("low", 1e-320),
    "an infinite price": changed("high", np.inf),
    "no price": changed("close", np.nan),
    "a high below the low": changed("high", 1e-9),
    "a close above the high": changed("close", 1e7),
    "a negative volume": changed("volume", -1.0),
    "no volume": changed("volume", np.nan),
    "an infinite volume": changed("volume", np.inf),
    "a volume of 1e300": changed("volume", 1e300),
}

# -- damage to the bytes of a text: its lines, the separator, random numbers → lines
# ----------------------------------------------------------------------------------------


def field_spans(line: bytes, sep: bytes) -> list[tuple[int, int]]:
    "Where the fields of a line are; separators within quotes do not count."
    at = [k for k, c in enumerate(line) if line[k : k + 1] == sep and line[:k].count(b'"') % 2 == 0]
    return list(zip([0, *(k + 1 for k in at)], [*at, len(line)], strict=True))


def in_a_field(change):
    "Change one field of a line of numbers: `change(field, random numbers)`."
    def damage(lines, sep, rng):
        k = rng.choice([i for i, line in enumerate(lines) if re.search(rb"\d.*\d", line)])
        a, b = rng.choice(field_spans(lines[k], sep))
        return [*lines[:k], lines[k][:a] + change(lines[k][a:b], rng) + lines[k][b:], *lines[k + 1 :]]
    return damage


def garbled(field, rng):
    at = [m.start() for m in re.finditer(rb"\d", field)]
    if not at: return field
    k = rng.choice(at)
    return field[:k] + rng.choice([b"x", b"O", b"#", b"?", b"_"]) + field[k + 1 :]


def two_marks(field, rng):
    mark = re.search(rb"\d[.,](?=\d+\"?$)", field)
    return field if not mark else field[: mark.end()] + field[mark.end() - 1 :]


def in_a_line(change):
    "Change the lines at a random place below the header: `change(lines, place, separator)`."
    def damage(lines, sep, rng):
        return change(lines, int(rng.integers(len(lines) - 25, len(lines) - 2)), sep)
    return damage


def without_separator(lines, k, sep):
    end = field_spans(lines[k], sep)[2][1]
    return [*lines[:k], lines[k][:end] + lines[k][end + 1 :], *lines[k + 1 :]]


def doubled(word):
    "A second column of volumes, all 1."
    def damage(lines, sep, rng):
        heads = [i for i, x in enumerate(lines) if re.search(rb"(?i)open|er.*ffnung|ouv|apert", x)]
        lines = [x.rstrip(b"\r") for x in lines]
        if not heads: return lines
        k = heads[0]
        return [*lines[:k], lines[k] + sep + word, *(x and x + sep + b"1" for x in lines[k + 1 :])]
    return damage


LINES = {
    "a letter in a field": in_a_field(garbled),
    "an empty field": in_a_field(lambda field, rng: b""),
    "a field that is true": in_a_field(lambda field, rng: b"true"),
    "a field with a minus": in_a_field(lambda field, rng: b"-" + field),
    "a field with two marks": in_a_field(two_marks),
    "a field with a quote": in_a_field(lambda field, rng: b'"' + field),
    "a field with NUL": in_a_field(lambda field, rng: field + b"\x00"),
    "a field that is no UTF-8": in_a_field(lambda field, rng: field + b"\xff"),
    "a separator lost": in_a_line(without_separator),
    "a separator too many": in_a_line(lambda x, k, sep: [*x[:k], x[k] + sep + b"1", *x[k + 1 :]]),
    "a line end lost": in_a_line(lambda x, k, sep: [*x[:k], x[k] + x[k + 1], *x[k + 2 :]]),
    "a line end too many": in_a_line(lambda x, k, sep: [*x[:k], x[k][:20], x[k][20:], *x[k + 1 :]]),
    "blank lines": in_a_line(lambda x, k, sep: [*x[:k], b"", b"", *x[k:]]),
    "the header again": in_a_line(lambda x, k, sep: [*x[:k], *[y for y in x[:2] if b"pen" in y], *x[k:]]),
    "a web page at the end": in_a_line(lambda x, k, sep: [*x[:k], b"<html>", b"<h1>502</h1>"]),
    "no header": lambda lines, sep, rng: [x for x in lines if re.search(rb"\d", x[:12])] + [b""],
    "two columns called volume": doubled(b"VOLUME"),
    "a column called v": doubled(b"v"),
}

# -- damage to any bytes: content, random numbers → content
# ----------------------------------------------------------------------------------------

BYTES = {
    "cut anywhere": lambda c, rng: c[: rng.integers(1, len(c))],
    "cut in the last line": lambda c, rng: c[: len(c) - rng.integers(1, 40)],
    "the beginning lost": lambda c, rng: c[rng.integers(1, len(c)) :],
    "NUL for some bytes at the end": lambda c, rng: (k := int(rng.integers(1, 600))) and c[:-k] + bytes(k),
    "nothing but noise": lambda c, rng: rng.bytes(len(c)),
}
FEWER = {"cut anywhere", "cut in the last line", "the beginning lost", "no header", "a web page at the end"}


def is_lines(content: bytes) -> bool:
    return not content.startswith((b"PAR1", b"ARROW", b"\x1f\x8b", b"PK", b"\xff\xfe", b"[", b"{"))


def pairs() -> list[tuple[str, str]]:
    "Every dialect with every damage that fits it."
    bars = market(np.random.default_rng(0))
    lines = {d for d, write in DIALECTS.items() if is_lines(write(bars))}
    return [(d, k) for d in DIALECTS for k in (*ROWS, *BYTES, *LINES) if k not in LINES or d in lines]


def damaged(dialect: str, damage: str, number: int) -> tuple[bytes, pd.DataFrame]:
    "The content of a damaged file, and the bars that it was written from."
    rng = np.random.default_rng(number)
    bars = market(rng)
    rows, held = ROWS.get(damage, ROWS["no damage"])(bars, rng)
    content = DIALECTS[dialect](rows)
    if damage in BYTES: content = BYTES[damage](content, rng)
    if damage in LINES:
        sep = next(s for s in (b"\t", b";", b",") if s in content)
        content = b"\n".join(LINES[damage](content.split(b"\n"), sep, rng))
    return content, held


def unharmed(path, held: pd.DataFrame, fewer: bool, skip_bad: bool) -> bool:
    "Whether a file is refused in one sentence, or gives exactly these bars (or, if `fewer`, some of them)."
    try: got, _ = read_bars(path, BTC, skip_bad=skip_bad)
    except InputError as e: return "\n" not in str(e)
    hours = held.loc[held.index.isin(got.index)]
    return len(hours) == len(got) and (fewer or len(got) == len(held)) and bool((hours == got).all(axis=None))


def attack(examples: int):
    def wrap(test):
        quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
        test = given(pair=st.sampled_from(pairs()), number=st.integers(0, 2**32 - 1))(test)
        how = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=quiet)
        return seed(19)(how(test))
    return wrap


def check(pair, number, tmp_path, tally):
    content, held = damaged(*pair, number)
    path = written(tmp_path, "some.file", content)
    right = all(unharmed(path, held, skip or pair[1] in FEWER, skip) for skip in (False, True))
    tally(f"files: {pair[1]}").count(right)
    assert right, f"{pair} imported wrongly"


@attack(60)
def test_a_damaged_file_is_imported_rightly_or_refused(pair, number, tmp_path, tally):
    check(pair, number, tmp_path, tally)


@pytest.mark.slow
@attack(2500)
def test_many_damaged_files_are_imported_rightly_or_refused(pair, number, tmp_path, tally):
    assert len(DIALECTS) >= 40 and len({*ROWS, *LINES, *BYTES}) >= 30
    check(pair, number, tmp_path, tally)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_file_without_damage_is_imported(dialect, tmp_path):
    for number in range(2):
        content, held = damaged(dialect, "no damage", number)
        got, _ = read_bars(written(tmp_path, "some.file", content), BTC)
        pd.testing.assert_frame_equal(got, held, check_exact=True, check_freq=False)
