"""An attack on the data client: fetches from a loop-back exchange that answers with scripted faults.

Every fetch ends with bars that are equal to the served ones, or with an error of this package."""
import random
import time
from pathlib import Path

import pytest
from loopback import FAULTS, Answer, Loopback, a_market

from cryptolstm.core.bars import COLUMNS
from cryptolstm.core.errors import CryptolstmError
from cryptolstm.data import exchange as exchanges
from cryptolstm.data.client import CryptoMarketDataClient

ETH = "ETH/USD"
JSON = {"Content-Type": "application/json"}
SECONDS = 110  # the attack ends after this time, whatever it has tried


def other(row: list, rng: random.Random) -> list:
    "Another plausible bar of the same hour, [time, low, high, open, close, volume]."
    kind = rng.randrange(3)
    if kind == 0: return [*row[:5], row[5] * 2 + 1]
    return [row[0], row[1] * 0.9, *row[2:]] if kind == 1 else [*row[:2], row[2] * 1.1, *row[3:]]


def at_random(change):
    "A fault of a page that changes one row, or replaces it by several."
    def spoil(rows: list, rng: random.Random) -> list:
        k = rng.randrange(len(rows))
        return [*rows[:k], *change(rows[k], rng), *rows[k + 1:]]
    return spoil


def cell(*values):
    "A fault that puts one of these values into a random cell."
    def change(row, rng):
        k = rng.randrange(6)
        return [[*row[:k], rng.choice(values), *row[k + 1:]]]
    return at_random(change)


PAGES = {
    "another bar before it": at_random(lambda r, rng: [other(r, rng), r]),
    "another bar behind it": at_random(lambda r, rng: [r, other(r, rng)]),
    "another bar far from it": lambda rows, rng: [other(rng.choice(rows), rng), *rows],
    "another newest bar": lambda rows, rng: [*rows, other(rows[0], rng)],
    "a bar twice": at_random(lambda r, rng: [r, r]),
    "the page twice": lambda rows, rng: rows + rows,
    "true and false": cell(True, False),
    "text and tables": cell("true", "", "1,5", "0x10", [], {}, [1.0], "NaN", "Infinity"),
    # a volume of 0 or a high of 1e18 in the only answer is a bar that nobody can tell from a true one
    "numbers that are none": cell(None, float("nan"), float("inf"), -1.0, 10**400, -1e18),
    "short rows": at_random(lambda r, rng: [r[: rng.randrange(6)]]),
    "a missing bar": at_random(lambda r, rng: []),
    "half a page": lambda rows, rng: rows[: len(rows) // 2],
    "no bars": lambda rows, rng: [],
    "no order": lambda rows, rng: rng.sample(rows, len(rows)),
    "bars of other hours": lambda rows, rng: [[r[0] + 3600 * 5000, *r[1:]] for r in rows],
}
ANSWERS = {
    **FAULTS,
    "a long pause": lambda a: Answer({}, 429, {**JSON, "Retry-After": "86400"}),
    "a short pause": lambda a: Answer({}, 429, {**JSON, "Retry-After": "0.1"}),
    "a byte now and then": lambda a: Answer(a.body, drip=0.1),
    "silence": lambda a: Answer(a.body, delay=0.6),
    "an empty list": lambda a: Answer([]),
    "an empty table": lambda a: Answer({}),
    "true": lambda a: Answer(True),
    "null": lambda a: Answer(None),
    "partial content": lambda a: Answer(a.body[::2] if isinstance(a.body, list) else a.body, 206),
    "not modified": lambda a: Answer(a.body, 304),
}


def script(rng: random.Random) -> tuple:
    "Which answers are spoiled, and how: (path, first, number, fault)."
    kind = rng.choice([*PAGES, *ANSWERS])
    path = "candles" if kind in PAGES else rng.choice(["candles", "candles", "/products", "/time"])
    return path, rng.randrange(3), rng.choice([1, 1, 2, 1000]), kind


def spoiler(scripts: list, rng: random.Random):
    "A fault for `Loopback.faults` that follows the scripts."
    seen = []

    def fault(path, query, answer):
        for place, first, number, kind in scripts:
            if place not in path or (place == "/products" and "candles" in path): continue
            seen.append(place)
            if not first < seen.count(place) <= first + number: continue
            if kind in ANSWERS: return ANSWERS[kind](answer)
            if isinstance(answer.body, list) and answer.body:
                return Answer(PAGES[kind](answer.body, rng))

    return fault


def equal(bars, whole) -> bool:
    "Whether every bar that is no gap is the served one."
    given = bars[~bars["is_gap"]]
    return given.index.isin(whole.index).all() and given[COLUMNS].equals(whole[COLUMNS].loc[given.index])


def attack(seed: int, folder: Path, seconds: float = SECONDS) -> tuple[int, int, int]:
    "The number of fetches that were tried, that ended as they should, and that did not."
    rng, until, tried, wrong = random.Random(seed), time.monotonic() + seconds, 0, []
    whole = a_market(700)
    with Loopback({ETH: whole, "BTC/USD": whole}, now="2025-02-01") as server:
        while time.monotonic() < until:
            tried += 1
            scripts = [script(rng) for _ in range(rng.randint(1, 3))]
            hours, draws = rng.choice([5, 100, 301, 600]), random.Random(rng.random())
            client = CryptoMarketDataClient(exchange_url=server.url, home=folder / str(tried))
            client.exchange.enableRateLimit, client.exchange.timeout = False, 300
            try:
                # under attack, from the store, and again without faults
                for faults in ([spoiler(scripts, draws)], [], []):
                    server.faults[:] = faults
                    assert equal(client.get_historical_bars(ETH, hours), whole), "wrong bars"
            except CryptolstmError: pass
            except Exception as e: wrong.append(f"seed {seed}, try {tried}, {hours} hours, {scripts}: {e!r}")
    print(*wrong, sep="\n")
    return tried, tried - len(wrong), len(wrong)


@pytest.mark.slow
def test_no_answer_of_an_exchange_gives_a_wrong_bar(tmp_path, client_home, monkeypatch, tally):
    for name, seconds in {"BUDGET": 0.5, "FIRST_CONTACT": 0.5, "PAUSE": 0.01}.items():
        monkeypatch.setattr(exchanges, name, seconds)
    tried, survived, wrong = attack(19, tmp_path)
    for k in range(tried): tally("exchanges: spoiled answers").count(k >= wrong)
    assert wrong == 0 and survived == tried > 20
