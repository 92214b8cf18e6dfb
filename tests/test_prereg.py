"A test is specified before its bars are opened, and a later run says whether it is that test."
import json
import sqlite3
from dataclasses import asdict, replace

import pandas as pd
import pytest
from conftest import small_run
from typer.testing import CliRunner

from cryptolstm.cli.main import app
from cryptolstm.core.errors import InputError, OperationError
from cryptolstm.core.files import code_hash
from cryptolstm.data.demo import demo_market
from cryptolstm.data.store import BarStore, bar_path, hour_number, write_store
from cryptolstm.proof.prereg import PACKAGE, preregister, with_preregistration
from cryptolstm.proof.trials import FixedLedger, Ledger, Standing, Trial
from cryptolstm.report.manifest import SCHEMA as MANIFEST
from cryptolstm.research.backtest import backtest

RUN = small_run(hours=48, exchange="kraken", end="2031-03-03")
SIMULATED = small_run(hours=48, end="2025-02-01", seed=4)


def trial(run=RUN, until="2031-03-03", code=None, **more) -> Trial:
    "The trial of a run on its bars."
    end = pd.Timestamp(until, tz="UTC")
    span = {"first": (end - pd.Timedelta(hours=run.hours)).isoformat(), "until": end.isoformat()}
    facts = {"data_hash": until, "sharpe": .01, "n": run.hours, "skew": 0.0, "kurtosis": 3.0, "hit": .5}
    code = code or code_hash(PACKAGE)
    return Trial(run.ticker, "kraken", **span, **{**facts, **more}, config=asdict(run), code=code)


def sentence(book: Ledger, one: Trial) -> str:
    return with_preregistration(book.enter(one), book, one).sentence()


def test_the_same_run_is_unchanged_and_each_later_one_another_look(tmp_path):
    book = Ledger(tmp_path)
    made = preregister(RUN, "reversal pays", book)
    assert (made.id, made.hypothesis, made.hours, made.closed, made.stored) == (1, "reversal pays", 48, 0, 0)
    assert "none of its bars existed yet" in made.sentence()
    first, second = (sentence(book, trial()) for _ in range(2))
    assert first.endswith(f"pre-registered on {made.at[:10]} as 1, unchanged; look 1")
    assert second.endswith(f"pre-registered on {made.at[:10]} as 1, unchanged; look 2")
    assert "pre-registered" not in sentence(book, trial(until="2031-03-05"))
    assert "pre-registered" not in sentence(book, trial(replace(RUN, ticker="BTC/USD")))


def test_every_difference_is_named(tmp_path):
    book = Ledger(tmp_path)
    preregister(RUN, "reversal pays", book)
    other = replace(RUN, fee=.002, network={**RUN.network, "epochs": 7}, rules={"macd": False})
    text = sentence(book, trial(other, code="0" * 64))
    named = ("fee is 0.002 instead of 0.001", "network.epochs is 7", "rules.macd is False", "code changed")
    assert all(difference in text for difference in named)
    assert "unchanged" not in text and "look 1" in text
    shifted = sentence(book, trial(replace(RUN, hours=72)))
    assert "hours is 72 instead of 48" in shifted and "tested from 2031-02-28 00:00" in shifted
    assert "look 2" in shifted
    # the newest bars, which are those of the registered end
    assert "unchanged; look 3" in sentence(book, trial(replace(RUN, end=None)))


def test_a_span_that_was_tested_is_refused(tmp_path):
    book = Ledger(tmp_path)
    book.enter(trial(until="2031-03-02T12:00"))
    with pytest.raises(InputError, match="were tested before by 1 trial .* after 2031-03-02 12:00"):
        preregister(RUN, "reversal pays", book)
    assert book.registrations("ETH/USD", ("2000-01-01", "2040-01-01"), "kraken") == []
    assert preregister(replace(RUN, end="2031-03-05"), "reversal pays", book).id == 1
    assert preregister(replace(RUN, ticker="BTC/USD"), "reversal pays", book).id == 2


def test_bars_that_existed_are_said_to_have_existed(tmp_path):
    bars = demo_market(100, end="2025-02-01", seed=1)
    span = (hour_number(bars.index[0]), hour_number(bars.index[-1]) + 1)
    write_store(bar_path(tmp_path, "kraken", "ETH/USD"), BarStore(bars, [span]))
    made = preregister(replace(RUN, end="2025-02-01"), "reversal pays", Ledger(tmp_path), tmp_path)
    assert (made.closed, made.stored) == (48, 48)
    assert "the bars existed already" in made.sentence()
    assert "nothing proves they were not looked at" in made.sentence()
    one = trial(replace(RUN, end="2025-02-01"), until="2025-02-01")
    assert "unchanged, but its bars existed already; look 1" in sentence(Ledger(tmp_path), one)


def test_a_registration_cannot_be_altered_unnoticed(tmp_path):
    book = Ledger(tmp_path)
    preregister(RUN, "reversal pays", book)
    db = sqlite3.connect(book.path)
    db.execute("update preregistrations set hypothesis = 'momentum pays'")
    db.commit(); db.close()
    with pytest.raises(OperationError, match="1 of its rows differ"): book.trials_of("ETH/USD")


def test_a_backtest_says_that_it_was_registered(tmp_path):
    book = Ledger(tmp_path)
    made = preregister(SIMULATED, "the demo market is a random walk", book)
    assert made.closed == 48   # a simulated market can be computed at any time
    bars = demo_market(700, end="2025-02-01", seed=4, ticker="ETH/USD")
    search = backtest(bars, SIMULATED, ledger=book)["search"]
    assert search["sentence"].endswith("as 1, unchanged, but its bars existed already; look 1")
    assert search["preregistration"] in search["sentence"]
    known = MANIFEST["properties"]["search"]["properties"]
    assert known["preregistration"]["type"] == "string"
    again = backtest(bars, SIMULATED, ledger=FixedLedger(Standing(1, 1, 0.0, preregistration="as it was")))
    assert again["search"]["sentence"].endswith("; as it was")


def test_the_command_prints_the_frozen_facts(tmp_path, monkeypatch):
    monkeypatch.setenv("CRYPTOLSTM_HOME", str(tmp_path / "home"))
    file = tmp_path / "run.yaml"
    file.write_text("ticker: ETH/USD\nhours: 48\nend: 2031-03-03\nfee: 0.002\nexchange: kraken\n")
    command = ["prereg", str(file), "--hypothesis", "reversal pays"]
    table = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    facts = json.loads(table.stdout)
    assert facts["id"] == 1 and facts["first"] == "2031-03-01T00:00:00+00:00" and facts["market"] == "kraken"
    assert facts["code"] == code_hash(PACKAGE) and facts["config"]["fee"] == .002 and len(facts["hash"]) == 64
    text = CliRunner().invoke(app, command, catch_exceptions=False).stdout
    for fact in ("reversal pays", "2031-03-01 00:00", "fee=0.002", "none of its bars existed yet"):
        assert fact in text
    for wrong, words in {
        ("prereg", str(file)): "--hypothesis",
        ("prereg", str(tmp_path / "no.yaml"), "--hypothesis", "x"): "no.yaml",
        ("prereg", "smoke", "--hypothesis", "x"): "end",
    }.items():
        error = CliRunner().invoke(app, list(wrong)).exception
        assert isinstance(error, InputError) and words in str(error)
