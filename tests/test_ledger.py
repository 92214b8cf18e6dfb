"Every evaluation is stored once: with several processes, damaged files and overlapping spans."
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import time
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptolstm.core.config import RunConfig
from cryptolstm.core.errors import OperationError
from cryptolstm.proof.trials import ALONE, FixedLedger, Ledger, Standing, Trial, market_of
from cryptolstm.research.backtest import run_backtest

DAY = 24
CONTEXT = multiprocessing.get_context("spawn")


def trial(first: int = 0, hours: int = DAY, fee: float = .001, **more) -> Trial:
    "A trial on this many hours, starting at an hour of 2025."
    def stamp(h):
        return f"2025-01-{1 + h // 24:02d}T{h % 24:02d}:00:00+00:00"
    base = dict(
        ticker="ETH/USD",
        market="kraken",
        first=stamp(first),
        until=stamp(first + hours),
        data_hash=f"bars {first} {hours}",
        config={"fee": fee},
        sharpe=fee,
        n=hours,
        skew=0.0,
        kurtosis=3.0,
        hit=0.5,
    )
    return Trial(**{**base, **more})


FIRST_SCHEMA = """create table trials (
  id integer primary key, at text not null, ticker text not null, market text not null, \
first integer not null, until integer not null,
  data_hash text not null, config_hash text not null, config text not null, \
sharpe real, n integer not null, skew real, kurtosis real, hit real,
  verdict text, reruns integer not null default 0, last_run text not null, \
unique (ticker, market, first, until, data_hash, config_hash))"""


def old_ledger(folder) -> Ledger:
    "A ledger in the first version's schema: one trial, no column for returns."
    book, t = Ledger(folder), trial()
    db = sqlite3.connect(book.path)
    db.execute(FIRST_SCHEMA)
    db.execute(
        "insert into trials (at, ticker, market, first, until, data_hash, config_hash, config, sharpe, n,"
        " last_run) values ('', ?, ?, 482136, 482160, ?, ?, '{}', .001, 24, '')",
        (t.ticker, t.market, t.data_hash, t.config_hash),
    )
    db.execute("pragma user_version = 1")
    db.commit(); db.close()
    return book


def work(folder: str, who: int, n: int) -> None:
    "Enter trials of this process alone, and some that every process enters."
    for k in range(n):
        Ledger(folder).enter(trial(fee=1 + who + k / 1000))
        Ledger(folder).enter(trial(fee=k / 1000))


def test_two_processes_at_once_lose_and_double_nothing(tmp_path):
    crowd = [CONTEXT.Process(target=work, args=(str(tmp_path), who, 20)) for who in range(2)]
    for p in crowd: p.start()
    for p in crowd: p.join()
    assert [p.exitcode for p in crowd] == [0, 0]
    found = Ledger(tmp_path).trials_of("ETH/USD")
    assert len(found) == 60 and found["reruns"].sum() == 20 and not found["config_hash"].duplicated().any()
    assert sqlite3.connect(Ledger(tmp_path).path).execute("pragma journal_mode").fetchone() == ("wal",)


def test_a_writer_that_dies_in_the_middle_leaves_no_half_trial(tmp_path):
    book = Ledger(tmp_path)
    book.enter(trial())
    with pytest.raises(KeyboardInterrupt), book._open(write=True) as db:
        db.execute("update trials set reruns = 99")
        raise KeyboardInterrupt
    assert book.trials_of("ETH/USD")["reruns"].tolist() == [0] and book.enter(trial()).reruns == 1


def test_a_writer_waits_for_another_and_then_says_what_is_wrong(tmp_path, monkeypatch):
    book = Ledger(tmp_path)
    book.enter(trial())
    other = sqlite3.connect(book.path, isolation_level=None)
    other.execute("begin immediate")
    monkeypatch.setattr("cryptolstm.proof.trials.BUSY_SECONDS", .1)
    with pytest.raises(OperationError, match="locked.*; move the file away or free it"):
        book.enter(trial(fee=0.002))
    other.execute("rollback")
    assert book.enter(trial(fee=.002)).number == 2


@settings(deadline=None, max_examples=25)
@given(spans=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 100)),
                      min_size=1, max_size=8, unique=True))
def test_trials_count_together_exactly_when_they_share_an_hour(tmp_path_factory, spans):
    book = Ledger(tmp_path_factory.mktemp("book"))
    def own(first, hours): return trial(first, hours, fee=first + hours / 1000)
    for k, (first, hours) in enumerate(spans):
        seen = book.enter(own(first, hours))
        shared = sum(a < first + hours and first < a + h for a, h in spans[:k + 1])
        assert (seen.number, seen.trials, seen.reruns) == (shared, shared, 0)
    for first, hours in spans:
        again = book.enter(own(first, hours))
        assert (
            again.reruns == 1
            and again.trials == sum(a < first + hours and first < a + h for a, h in spans) >= again.number
        )


def test_a_rerun_needs_equal_returns(tmp_path):
    "A changed code, or a training that does not repeat itself, is another trial; the first result is kept."
    book, rng = Ledger(tmp_path), np.random.default_rng(0)
    one, two = rng.normal(0, .01, (2, DAY))
    assert book.enter(trial(returns=one, code="a")).trials == 1
    assert book.enter(trial(returns=one + 1e-9, code="b")).reruns == 1
    other = book.enter(trial(returns=two, code="b", sharpe=.5))
    assert (other.number, other.trials, other.reruns) == (2, 2, 0)
    assert book.enter(trial(returns=two, code="b")).reruns == 1 and book.enter(trial(returns=one)).number == 1
    assert book.trials_of("ETH/USD")["sharpe"].tolist() == [.001, .5]
    for code, reruns in (("a", 0), ("a", 1), ("b", 0)):   # without returns, the code decides
        assert book.enter(trial(fee=.002, code=code)).reruns == reruns
    book.conclude(trial(returns=two), "NO SKILL")
    assert book.trials_of("ETH/USD")["verdict"].eq("NO SKILL").tolist() == [False, True, False, False]


def test_a_window_that_moves_along_is_one_trial(tmp_path):
    book = Ledger(tmp_path)
    for day in range(20):
        returns = np.random.default_rng(day).normal(size=240)
        seen = book.enter(trial(first=day, hours=10 * DAY, returns=returns))
        assert (seen.number, seen.trials) == (1, 1)
    assert book.enter(trial(first=3, hours=10 * DAY, fee=.002)).number == 2


def test_bars_under_another_name_are_recognised(tmp_path):
    book = Ledger(tmp_path)
    book.enter(trial())
    names = {"ticker": "ETH/USDT"}, {"market": "mine"}, {"ticker": "X/Y", "market": "file"}
    for k, name in enumerate(names):
        assert book.enter(trial(**name)).number == k + 2


def test_what_was_not_traded_counts_as_a_trial_without_a_ratio(tmp_path):
    book = Ledger(tmp_path)
    for k, ratio in enumerate((0.01, None, 0.03)):
        standing = book.enter(trial(fee=k / 1000, sharpe=ratio, skew=None, kurtosis=float("nan")))
    assert standing.trials == 3 and standing.variance == pytest.approx(.0002)
    assert Ledger(tmp_path / "other").enter(trial(sharpe=None)).variance == 0.0


def test_another_ticker_and_another_invented_market_are_apart(tmp_path):
    book = Ledger(tmp_path)
    others = (
        {},
        {"ticker": "BTC/USD"},
        {"market": "simulated:1"},
        {"market": "simulated:2"},
        {"market": "other"},
    )
    entered = [book.enter(trial(data_hash=f"bars of {k}", **m)) for k, m in enumerate(others)]
    assert [s.number for s in entered] == [1, 1, 1, 1, 2]
    assert [s.other_tickers for s in entered] == [0, 1, 0, 0, 1]
    assert entered[1].sentence() == "This is trial 1 on these bars; 1 other ticker on these hours"
    assert (
        market_of(
            {"exchange": "simulated", "simulated": True, "seed": 1, "planted_r2": 0.1, "planted_sign": -1}
        )
        == "simulated:1:0.1:-1"
    )


def test_a_missing_ledger_is_empty_and_reading_makes_none(tmp_path):
    assert Ledger(tmp_path).trials_of("ETH/USD").empty and not (tmp_path / "trials.sqlite").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OperationError, match="cannot be used"): Ledger(tmp_path / "file").enter(trial())


def test_a_fixed_standing_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("CRYPTOLSTM_HOME", str(tmp_path))
    assert FixedLedger(Standing(3, 9, 0.1)).enter(trial()) == Standing(3, 9, 0.1) and not list(
        tmp_path.iterdir()
    )
    assert Standing(3, 9, .1).sentence() == "This is trial 3 of 9 on these bars"


def test_an_old_ledger_keeps_its_trials_and_gains_a_place_for_returns(tmp_path):
    book = old_ledger(tmp_path)
    assert len(book.trials_of("ETH/USD")) == 1 and book.overfitting(trial()) is None
    again = book.enter(trial(returns=np.zeros(DAY)))
    assert (again.number, again.reruns) == (1, 1) and book.enter(trial(fee=.002)).number == 2
    db = sqlite3.connect(book.path)
    assert db.execute("pragma user_version").fetchone() == (4,) and db.execute(
        "select returns is not null from trials order by id"
    ).fetchall() == [(1,), (0,)]


def test_two_processes_that_meet_an_old_ledger_bring_it_up_to_date_once(tmp_path):
    old_ledger(tmp_path)
    crowd = [CONTEXT.Process(target=work, args=(str(tmp_path), who, 3)) for who in range(2)]
    for p in crowd: p.start()
    for p in crowd: p.join()
    # the old trial is one of those that both processes enter
    assert [p.exitcode for p in crowd] == [0, 0] and len(Ledger(tmp_path).trials_of("ETH/USD")) == 9


def test_trials_on_exactly_the_same_hours_are_judged_together(tmp_path):
    book, rng = Ledger(tmp_path), np.random.default_rng(0)
    hours, good = 240, .004
    tries = [
        trial(hours=hours, fee=k / 1000, returns=rng.normal(good * (k == 3), 0.01, hours)) for k in range(12)
    ]
    for k, t in enumerate(tries):
        book.enter(t)
        assert (book.overfitting(t) is None) == (k < 9)
    # an hour later: counted, but its returns cover other hours
    book.enter(trial(first=1, hours=hours, fee=5, returns=np.zeros(hours)))
    book.enter(trial(hours=hours, fee=6, market="simulated:1", returns=np.zeros(hours)))
    among = book.overfitting(tries[0])
    assert among["different"] == 12 and among["pbo"] < .2 and among["spa"] < .05 and 0 <= among["pbo_sd"] < .5
    assert (
        FixedLedger(Standing(1, 1, 0.0), among).overfitting(tries[0]) == among
        and ALONE.overfitting(tries[0]) is None
    )


def test_looking_where_a_trial_stands_writes_nothing(tmp_path):
    book = Ledger(tmp_path)
    assert book.standing_of(trial()) is None and not book.path.exists()
    book.enter(trial()); book.enter(trial(fee=.002))
    assert (
        book.standing_of(trial()) == Standing(1, 2, pytest.approx(5e-7), 0, 2, different=2)
        and book.standing_of(trial(fee=0.003)) is None
    )
    assert book.trials_of("ETH/USD")["reruns"].tolist() == [0, 0]


# -- damaged files

def filled(folder) -> Ledger:
    "A ledger of twelve trials: most with returns, some with a verdict, one run again."
    book = Ledger(folder)
    for k in range(12):
        returns = None if k % 4 == 3 else np.random.default_rng(k).normal(0, .01, DAY)
        book.enter(trial(fee=k / 1000, returns=returns))
        if k % 2: book.conclude(trial(fee=k / 1000, returns=returns), "NO SKILL")
    book.enter(trial(fee=.003, returns=np.zeros(DAY)))
    return book


def flip(rng, path) -> None:
    "Change one to forty bytes, anywhere or in the header."
    content = bytearray(path.read_bytes())
    size = len(content) if rng.random() < .8 else 100
    for _ in range(rng.choice([1, 1, 4, 40])): content[rng.randrange(size)] ^= rng.randrange(1, 256)
    path.write_bytes(content)


def truncate(rng, path) -> None: os.truncate(path, rng.choice([0, rng.randrange(path.stat().st_size)]))


STATEMENTS = (
    "delete from trials where id = {k}",
    "delete from trials",
    "delete from trials where id > {k}",
    "delete from entries where id = {k}",
    "delete from entries where id > {k}",
    "drop table trials",
    "drop table entries",
    "update trials set data_hash = 'other' where id = {k}",
    "update trials set ticker = 'BTC/USD' where id = {k}",
    "update trials set market = 'simulated:1' where id = {k}",
    "update trials set first = first + 1000, until = until + 1000 where id = {k}",
    "update trials set sharpe = 9 where id = {k}",
    "update trials set verdict = 'CANDIDATE' where id = {k}",
    "update trials set returns = x'00' where id = {k}",
    "update trials set id = 99 where id = {k}",
    "update trials set reruns = 7 where id = {k}",
    "update entries set digest = 'x' where id = {k}",
    "pragma user_version = 0",
    "pragma user_version = 2",
    "pragma user_version = 3",
)


def edit(rng, path) -> None:
    "What a person could do with the sqlite3 program."
    db = sqlite3.connect(path)
    db.execute(rng.choice(STATEMENTS).format(k=rng.randrange(1, 12)))
    db.commit(); db.close()


def lose_the_journal(rng, path) -> None: path.with_name("trials.sqlite-wal").unlink()


def flip_the_journal(rng, path) -> None: flip(rng, path.with_name("trials.sqlite-wal"))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    "Folders of a ledger: one closed, one as a killed process leaves it, its last writes in the journal."
    closed, killed = (tmp_path_factory.mktemp(name) for name in ("closed", "killed"))
    filled(closed / "home")
    book = Ledger(killed / "work")
    book.enter(trial(fee=0))
    reader = sqlite3.connect(book.path)   # holds the journal open
    reader.execute("select count(*) from trials").fetchone()
    for k in range(1, 12): book.enter(trial(fee=k / 1000))
    shutil.copytree(killed / "work", killed / "home")
    reader.close()
    return {"closed": closed / "home", "killed": killed / "home"}


@pytest.mark.parametrize("seed", range(150))
def test_a_damaged_ledger_counts_right_or_is_refused_in_one_sentence(seed, pristine, tmp_path):
    rng = random.Random(seed)
    damage = rng.choice([flip, flip, truncate, edit, edit, lose_the_journal, flip_the_journal])
    state = "killed" if damage in (lose_the_journal, flip_the_journal) else "closed"
    book = Ledger(shutil.copytree(pristine[state], tmp_path / "home"))
    damage(rng, book.path)
    ways = (
        lambda: len(book.trials_of("ETH/USD")),
        lambda: book.standing_of(trial(fee=.005)).trials,
        lambda: book.enter(trial(fee=.077)).trials - 1,
    )
    for way in ways:
        try: count = way()
        except OperationError as e:
            assert str(book.path) in str(e) and "\n" not in str(e) and ". " not in str(e)
        else: assert count == 12


def test_a_removed_ledger_is_missed(tmp_path):
    book = filled(tmp_path)
    book.path.unlink()
    for way in (lambda: book.trials_of("ETH/USD"), lambda: book.enter(trial())):
        with pytest.raises(OperationError, match="19 entries were written"): way()
    book.head.unlink()   # a new beginning, on purpose
    assert book.enter(trial()).number == 1


def test_the_content_of_a_damaged_ledger_is_not_upgraded(tmp_path):
    book = old_ledger(tmp_path)
    content = bytearray(book.path.read_bytes())
    content[-300:] = bytes(300)
    book.path.write_bytes(content)
    with pytest.raises(OperationError, match="trials.sqlite"): book.trials_of("ETH/USD")


def endless(folder: str, who: int) -> None:
    "Enter trials until killed, and print the number of each one that was entered."
    for k in range(10_000):
        Ledger(folder).enter(trial(fee=who + k / 10_000))
        with open(f"{folder}/entered.{who}", "a") as f: f.write(f"{k}\n")


def test_killed_writers_lose_nothing_that_was_entered(tmp_path):
    "130 processes killed at random; each entered trial is counted, and the ledger is never refused."
    rng, context, known, kills = random.Random(0), multiprocessing.get_context("fork"), 0, 130
    for who in range(kills):
        writer = context.Process(target=endless, args=(str(tmp_path), who))
        writer.start()
        time.sleep(rng.uniform(.01, .12))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        if (done := tmp_path / f"entered.{who}").exists(): known += len(done.read_text().splitlines())
    found = len(Ledger(tmp_path).trials_of("ETH/USD"))
    assert 0 < known <= found <= known + kills


def test_a_ledger_of_a_later_version_stops_a_run_before_it_is_trained(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path)
    ledger.check()
    assert ledger.empty   # a check makes no file
    with closing(sqlite3.connect(ledger.path)) as db: db.execute("pragma user_version = 99")
    monkeypatch.setattr("cryptolstm.research.backtest.forecasts", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(OperationError, match="has schema 99 and this version knows"):
        run_backtest(RunConfig(exchange="simulated"), home=tmp_path)
