"""A process that trades is killed at every point of its work. The loop-back venue is the judge: its orders
are those of an undisturbed run, the journal agrees with its money and coins, and nothing is left unknown."""
import random

import pandas as pd
import pytest
from trading import TICKERS, Nursery, broker_of, market
from trading_figures import record
from venue import Venue

from cryptolstm.trading.journal import Journal, order_states
from cryptolstm.trading.reconcile import differences

PERSONALITIES = ("coinbaseexchange", "kraken", "coinbase")
START = pd.Timestamp("2025-01-20 00:00:10", tz="UTC")


def hour(k): return START + pd.Timedelta(hours=k)


def trade(personality, folder, hours, kills):
    """Trade some hours; `kills` has a list of ways to kill the process for each hour.

    Returns the venue's orders, the points of each hour, and what is wrong at the end."""
    frames, points, held = {t: market(t) for t in TICKERS}, [], {"USD": 10_000, "BTC": 1}
    with Venue(personality, frames, START, balances=held, speed=1) as venue, Nursery() as n:
        done = 0
        for k in range(hours):
            venue.now = hour(k)
            for kill in kills.get(k, []):
                status, _ = n.step(folder=str(folder), url=venue.url, venue=personality, **kill)
                assert status in (-9, 0)
                done += status == -9
            status, said = n.step(folder=str(folder), url=venue.url, venue=personality)
            assert status == 0 and not any(row.get("error") for row in said["rows"]), said
            points.append(said["points"])
        def clock(): return int(venue.now.timestamp() * 1000)
        with Journal("account", folder / "trading.sqlite", clock) as journal:
            wrong = [str(d) for d in differences(journal, broker_of(personality, venue.url), TICKERS)]
            wrong += [s.order.id for s in order_states(journal) if s.uncertain]
        placed = [(o.ticker, o.side, o.stop is not None, o.at // 3_600_000, float(o.quantity))
                  for o in venue.orders]
        return sorted(placed), points, wrong, done


def same_orders(got, expected):
    "Whether two lists hold the same orders: quantities may differ by the second in which a price was taken."
    return [o[:4] for o in got] == [o[:4] for o in expected] and all(
        a[4] == pytest.approx(b[4], rel=2e-3) for a, b in zip(got, expected, strict=True)
    )


def drawn(points, count, seed):
    "Ways to kill a process: some in each hour, first at points with a name, then at any point or time."
    rng, kills = random.Random(seed), {k: [] for k in range(len(points))}
    named = sorted({name for names in points for name in names})
    for name in rng.sample(named, min(count // 2, len(named))):
        kills[rng.choice([k for k, names in enumerate(points) if name in names])].append({"at": name})
    for _ in range(count - sum(map(len, kills.values()))):
        # early points, since a process that starts again has less to do
        k, soon = rng.randrange(len(points)), int(len(points[0]) * rng.random() ** 3)
        kills[k].append({"at": soon} if rng.random() < 0.7 else {"kill_after": rng.uniform(0, 0.4)})
    return kills


def check_kills(personality, folder, hours, count, seed=0):
    (folder / "calm").mkdir(), (folder / "killed").mkdir()
    calm, points, wrong, _ = trade(personality, folder / "calm", hours, {})
    assert not wrong and len(calm) > 4
    killed, _, wrong, done = trade(personality, folder / "killed", hours, drawn(points, count, seed))
    same = same_orders(killed, calm)
    record(f"kills at {personality}", hours=hours, tickers=len(TICKERS), kills=done, orders=len(killed),
           doubled=max(len(killed) - len(calm), 0), lost=max(len(calm) - len(killed), 0),
           **{"ledger - venue": "; ".join(wrong) or "0.00"})
    assert not wrong and same
    return done


def test_a_killed_process_leaves_the_orders_of_an_undisturbed_one(tmp_path):
    assert check_kills("kraken", tmp_path, hours=4, count=12) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("personality", PERSONALITIES)
def test_hundreds_of_kills_at_every_point_change_nothing(personality, tmp_path):
    assert check_kills(personality, tmp_path, hours=24, count=150, seed=1) > 100
