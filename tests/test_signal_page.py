"The page of a signal: the decision and its reasons, a record on unseen bars only, and no promise of returns."
import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import pandas as pd
import pytest
from test_decide import SCHEMA
from test_reports_and_cli import SMOKE
from typer.testing import CliRunner

from cryptolstm import SignalGenerator
from cryptolstm.core.errors import InputError, TrainingSpanError
from cryptolstm.core.bars import HOUR
from cryptolstm.core.config import RunConfig
from cryptolstm.strategy.answer import signal_dict
from cryptolstm.strategy.decide import decide
from cryptolstm.strategy.signal import past_decisions
from cryptolstm.report.manifest import OPEN, split
from cryptolstm.report.signal_page import (SIGNAL_FIELDS, decision_figure, record_table, record_text,
                                           headline)
from cryptolstm.cli.main import app
from cryptolstm.cli.signal import print_signal

ROOT = Path(__file__).parents[1]
TINY = {
    "units": [4],
    "dropout": [0.1],
    "recurrent_dropout": [0.1],
    "dense": [4],
    "epochs": 1,
    "refit_epochs": 1,
}
RUN = RunConfig(lookback=12, network=TINY, threshold_scale=0.01, horizon=3)


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    "A model trained 30 hours before the bar it decides on, with a horizon of three hours."
    home = tmp_path_factory.mktemp("home")
    def end(hours):
        return (pd.Timestamp("2025-03-01", tz="UTC") + hours * HOUR).isoformat()
    def at(hours):
        return SignalGenerator(exchange="simulated", home=home, config=replace(RUN, end=end(hours)))
    at(0).generate_signals(hours=120)
    return at(29).decide_now(hours=120, retrain_threshold=48)


def test_the_record_holds_bars_the_model_had_not_seen_and_no_other(decided):
    past, bars = decided.before(1000), decided.bars
    assert (
        past.index[0] == pd.Timestamp(decided.model.trained_until) + HOUR
        and past.index[-1] == bars.index[-2]
        and len(past) == 29
    )
    assert decided.before(5).equals(past.iloc[-5:]) and past["version"].unique().tolist() == [
        decided.history[0].folder.name
    ]
    with pytest.raises(TrainingSpanError):
        decided.model.predict(decided.table, bars, start=bars.index.get_loc(past.index[0]) - 1)
    newest = past_decisions(
        decided.history, decided.table.loc[: past.index[0]], bars.loc[: past.index[0]], decided.run
    )
    assert not len(newest) and "There are none yet" in record_text(newest, decided.model.trained_until)


def test_a_line_that_is_trained_every_day_has_a_record_of_more_than_a_day(tmp_path):
    "Each bar is predicted by the version that was newest then, with that version's probability."
    start = pd.Timestamp("2025-03-01", tz="UTC")
    def at(hours):
        return SignalGenerator(
            exchange="simulated", home=tmp_path, config=replace(RUN, end=(start + hours * HOUR).isoformat())
        )
    for day in range(3): now = at(24 * day).decide_now(hours=120)
    past, versions = now.before(48), [v.folder.name for v in now.history]
    assert len(versions) == 3 and now.signal["model_info"]["version"] == versions[0]
    # the newest version was trained just now
    assert len(past) == 48 and list(past["version"].unique()) == versions[1:][::-1]
    for version in now.history:
        span = past.index[past["version"] == version.folder.name]
        if not len(span): continue
        version.model.check_out_of_sample(span)
        predictions = version.model.predict(now.table, now.bars, start=now.bars.index.get_loc(span[0]))
        assert (predictions.loc[span] == past.loc[span, "prediction"]).all()
    page = record_table(now, 48).markup
    assert "48 decisions by 2 versions of this model" in page and all(
        name.split(".")[0] in page for name in versions[1:]
    )
    assert now.signal["monitor"]["skill"]["versions"] == 2


@pytest.mark.parametrize("entry,meaning", [
    ("threshold", "is smaller than usual price fluctuations"),
    ("cost", "does not pay the costs of a round trip")])
def test_the_caption_of_the_fan_says_what_the_fan_is(decided, entry, meaning):
    assert meaning in decision_figure(
        replace(decided, signal={**decided.signal, "entry": entry})
    ).markup


def test_what_came_is_what_the_bars_say_and_the_last_hours_are_not_known_yet(decided):
    past, close = decided.before(1000), decided.bars["close"]
    observed = close.shift(-3).loc[past.index] - close.loc[past.index]
    pd.testing.assert_series_equal(past["observed"], observed, check_names=False, check_freq=False, rtol=1e-9)
    assert past["observed"].isna().sum() == 2 and past["right"].isna().tolist()[-2:] == [True, True]
    right = ((observed > 0) == (past["difference"] > 0)).iloc[:-2]
    assert (past["right"].iloc[:-2].astype(bool) == right).all()
    page = record_table(decided, 1000).markup
    assert page.count("not yet known") == 2 and page.count("<td>yes</td>") == right.sum()
    assert (
        f"the right direction in {right.sum()} of 27 " in page
        and "So few bars are no evidence for or against skill." in page
    )


def test_past_decisions_are_those_a_signal_would_have_shown(decided):
    "Each past bar is treated as the newest one, with the same model."
    past = decided.before(6)
    for row in (0, 3):
        upto = decided.bars.index.get_loc(past.index[row]) + 1
        then = decided.model.predict(decided.table.iloc[:upto], decided.bars.iloc[:upto], start=upto - 1)
        assert then.iloc[0] == past["prediction"].iloc[row]


def test_a_box_of_any_signal_shows_it_without_the_colour_of_success(decided):
    for signal, word, kind in ((1, "LONG", "act"), (-1, "SHORT", "act"), (0, "HOLD", "calm")):
        top = headline(replace(decided, signal={**decided.signal, "signal": signal})).markup
        assert f">{word}</span></h1>" in top and f'class="first {kind}"' in top and "first good" not in top
    hostile = replace(decided, signal={**decided.signal, "warnings": ["<script>alert(1)</script>"]})
    assert "<script>" not in headline(hostile).markup


@pytest.mark.parametrize("loss,loses", [(0.44, True), (0.42, True), (0.40, False)])
def test_a_model_that_loses_to_no_move_in_validation_says_so_first_everywhere(decided, loss, loses, capsys):
    figures = {"n": 24, "loss": loss, "loss_of_zero": 0.42, "variance": 0.0, "hit": 0.5, "ic": 0.0}
    note = {"validation": figures}
    history = [decided.history[0]._replace(note={**decided.history[0].note, **note}), *decided.history[1:]]
    last = decide(pd.Series(0.1, decided.bars.index[-1:]), decided.table, RUN).iloc[-1]
    s = signal_dict(decided.run, decided.bars, decided.table, last, history, "trained")
    sentence = (
        "the model lost to a forecast of no move on its own 24 validation bars: its loss was"
        f" {loss:.4f}, that of no move 0.4200"
    )
    assert (s["warnings"][0] == sentence) == loses
    print_signal(s)
    printed = capsys.readouterr().out
    assert (printed.splitlines()[1] == f"NO SKILL IN VALIDATION: {sentence}.") == loses
    assert printed.count("lost to a forecast of no move") == loses
    page = headline(replace(decided, signal=s, history=history)).markup
    assert ('<p class="note warn"><b>NO SKILL IN VALIDATION</b>' in page) == loses
    assert page.count("lost to a forecast of no move") == loses


def test_the_notebook_takes_what_a_signal_depends_on():
    cells = json.loads((ROOT / "nbs" / "signal.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    parameters = next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", []))
    assert {line.split(":")[0] for line in parameters.splitlines()} == {
        *SIGNAL_FIELDS,
        "model",
        "retrain_threshold",
        "last",
    }
    assert not any(re.search(r"^\s*(def|class|for|if) |lambda", text, re.M) for text in code)
    defaults = {k: v for k, v in vars(RunConfig()).items() if k in SIGNAL_FIELDS} | {
        "ticker": "ETH/USD",
        "hours": 240,
        **dict.fromkeys(("end", "exchange_url", "features", "forecaster", "decide"), ""),
    }
    space: dict = {}
    exec(parameters, space)
    assert {k: space[k] for k in SIGNAL_FIELDS} == defaults


def test_the_page_of_a_signal(loopback, tmp_path, monkeypatch):
    ask = ["signal", "--ticker", "ETH/USD", "--exchange-url", loopback.url, *SMOKE, "--json"]
    monkeypatch.chdir(ROOT)
    for name, value in (("CRYPTOLSTM_HOME", tmp_path), ("CRYPTOLSTM_REPORTS", tmp_path / "out")):
        monkeypatch.setenv(name, str(value))
    done = CliRunner().invoke(app, [*ask, "--report"])
    assert done.exit_code == 0, done.stderr
    signal = json.loads(done.stdout)
    path, newest = Path(signal["report"]), tmp_path / "out" / "eth_usd" / "signal.html"
    jsonschema.Draft202012Validator(SCHEMA).validate(signal)
    page = path.read_text(encoding="utf-8")
    assert path.parent.parent == newest.parent and newest.read_text(encoding="utf-8") == page
    assert path.with_suffix(".ipynb").is_file() and page.count("<figure>") == 1
    assert (
        {1: "LONG", -1: "SHORT", 0: "HOLD"}[signal["signal"]] in page
        and "There are none yet" in page
        and "SIMULATED" not in page
    )
    assert (
        "The model is underpowered" in page
        and f"coinbaseexchange at {loopback.url}" in page
        and f'="{loopback.url}' not in page
    )
    assert "decide_now" not in page.split(OPEN)[0]
    blocks = re.findall(r"<script([^>]*)>", page)
    assert blocks == ["", ' type="application/json" id="manifest"']
    assert (
        json.loads(page.split(OPEN)[1].split("</script>")[0])["signal"]["predicted_price"]
        == signal["predicted_price"]
    )
    with pytest.raises(InputError, match="only the pages of backtests can be verified"): split(page)
    again = CliRunner().invoke(app, ask)
    assert (
        json.loads(again.stdout)["predicted_price"] == signal["predicted_price"]
    ), "the page and the command show one decision"
    refused = CliRunner().invoke(app, ["verify", str(path)]).exception
    assert refused.exit_code == 2 and str(refused).startswith("this is the page of a signal")
