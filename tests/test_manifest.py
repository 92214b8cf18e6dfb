"Page, bars and numbers belong together, and a change to any of them is found."
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL
from typer.testing import CliRunner

from cryptolstm.cli.main import app
from cryptolstm.core.errors import InputError
from cryptolstm.core.machine import OTHER_KIND, cpu_kind
from cryptolstm.core.bars import bars_hash, regular_grid
from cryptolstm.core.config import RunConfig
from cryptolstm.data.store import BarStore, bar_path, hour_number, read_store, write_store
from cryptolstm.data.demo import demo_market
from cryptolstm.proof.trials import Standing
from cryptolstm.proof.verdict import Level
from cryptolstm.proof.provenance import data_notes
from cryptolstm.research.walkforward import bars_needed
from cryptolstm.research.certificate import certificate
from cryptolstm.research.backtest import backtest, summary
from cryptolstm.report.manifest import TABLES, canonical_json, embed, make_manifest, sha256_of, split
from cryptolstm.report.render import run_report
from cryptolstm.report.verify import (SAME, agree, compare_results, compare_tables, standing_note, tolerance,
                                      verify)

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
SMOKE = {"network": SMALL}
WISH = {
    "hours": 240,
    "train_hours": 400,
    "retrain_every": 240,
    "lookback": 12,
    "threshold_scale": 0.0,
    **SMOKE,
}


@pytest.fixture(scope="module")
def stored_home(tmp_path_factory):
    "A data folder with bars of a market that exists only as a file."
    home = tmp_path_factory.mktemp("home")
    bars = demo_market(bars_needed(RunConfig(**WISH)), seed=6, end="2025-03-01", ticker="ETH/USD")[
        ["open", "high", "low", "close", "volume"]
    ]
    first = hour_number(bars.index[0])
    write_store(
        bar_path(home, "bitstamp_file", "ETH/USD"), BarStore().add(bars, [(first, first + len(bars))])
    )
    return home


@pytest.fixture(scope="module")
def page(stored_home, tmp_path_factory):
    "A report of those bars, run through papermill as by a user."
    old = os.environ["CRYPTOLSTM_HOME"]
    os.environ["CRYPTOLSTM_HOME"] = str(stored_home)
    try:
        return run_report(
            "ETH/USD",
            overrides={"exchange": "bitstamp_file", **WISH},
            out=tmp_path_factory.mktemp("reports"),
            progress=False,
        ).html
    finally:
        os.environ["CRYPTOLSTM_HOME"] = old


def wrong(result: dict) -> list[str]: return [f["what"] for f in result["findings"] if not f["ok"]]


def test_a_fresh_page_is_verified_in_full_in_any_display_zone(page, stored_home, monkeypatch):
    monkeypatch.setenv("CRYPTOLSTM_DISPLAY_ZONE", "Asia/Tokyo")
    result = verify(page, home=stored_home)
    asked = ["page", "manifest", "notebook", "bars", "data", "verdict", "metrics", *TABLES, "text"]
    assert result["ok"] and [f["what"] for f in result["findings"]] == asked
    assert {
        "skill",
        "against",
        "baseline_returns",
        "power",
        "uncertainty",
        "search",
        "fan",
        "certificate",
    } == set(TABLES)
    manifest = split(page.read_text(encoding="utf-8"))[1]
    assert (
        manifest["baseline_returns"]["buy & hold"] != 0
        and manifest["certificate"]["passed"]
        and manifest["search"]["trial"] == 1
    )
    assert (
        manifest["versions"]["cryptolstm"]
        and not manifest["data"]["simulated"]
        and "" not in manifest["baseline_returns"]
    )
    text = manifest["determinism"]["statement"]
    assert manifest["determinism"] == {
        "class": "bit-equal",
        "statement": text,
        "backend": "tensorflow",
        "cpu": cpu_kind(),
        "other_cpu": OTHER_KIND,
        "parts": 2,
    }
    assert text.endswith("the same kind of CPU and library versions, whatever the number of threads")
    assert len(result["notes"]) == 1 and result["notes"][0].endswith("pictures were not compared")


def test_a_page_of_another_kind_of_cpu_may_differ_by_a_thousandth(page, stored_home, tmp_path):
    """Both kinds of CPU are named. A larger difference counts, and on the same kind of CPU one above 1e-9
    does."""
    text, manifest = split(page.read_text(encoding="utf-8"))
    old = manifest["baseline_returns"]
    near, far = (
        {**old, "buy & hold": old["buy & hold"] * (1 + share)} for share in (OTHER_KIND / 2, OTHER_KIND * 2)
    )
    other = rehashed(
        text, manifest, baseline_returns=near, determinism={**manifest["determinism"], "cpu": "another CPU"}
    )
    (tmp_path / "backtest.html").write_text(other, encoding="utf-8")
    result = verify(tmp_path / "backtest.html", home=stored_home)
    assert result["ok"], wrong(result)
    assert any("another CPU" in note and cpu_kind() in note for note in result["notes"])
    assert "1 of them within 0.1%" in next(
        f["text"] for f in result["findings"] if f["what"] == "baseline_returns"
    )
    assert [
        compare_tables("", old, new, rel)["ok"]
        for new, rel in ((near, OTHER_KIND), (far, OTHER_KIND), (near, SAME))
    ] == [True, False, False]
    assert [tolerance(m) for m in (split(other)[1], manifest, {})] == [OTHER_KIND, SAME, SAME]


def rehashed(page: str, manifest: dict, **changes) -> str:
    "A page as a forger would write it, with matching hashes."
    body = {k: v for k, v in {**manifest, **changes, "page_sha256": sha256_of(page)}.items() if k != "sha256"}
    return embed(page, {**body, "sha256": sha256_of(canonical_json(body))})


def test_a_forged_page_whose_hashes_fit_is_found_by_the_second_run(page, stored_home, tmp_path):
    """Changed text, a certificate and a search that never ran, data settings: the quick check cannot detect
    them, the full one does."""
    text, manifest = split(page.read_text(encoding="utf-8"))
    level = manifest["verdict"]["level"]
    lie = text.replace(level, "CANDIDATE").replace(Level(level).opening, Level.CANDIDATE.opening)
    forged = rehashed(
        lie,
        manifest,
        certificate=None,
        search={**manifest["search"], "sentence": "This is the only one"},
        data={**manifest["data"], "gaps": 99},
    )
    (tmp_path / "backtest.html").write_text(forged, encoding="utf-8")
    assert verify(tmp_path / "backtest.html", quick=True, home=stored_home)["ok"]
    full = verify(tmp_path / "backtest.html", home=stored_home)
    assert wrong(full) == ["data", "search", "certificate", "text"]
    texts = {f["what"]: f["text"] for f in full["findings"]}
    assert (
        texts["certificate"] == "the page has none"
        and "CANDIDATE" in texts["text"]
        and level in texts["text"]
    )
    assert any("the notebook backtest.ipynb is not beside the page" in note for note in full["notes"])


def test_the_notebook_beside_a_page_is_the_one_it_was_made_from(page, stored_home, tmp_path):
    (tmp_path / "backtest.html").write_bytes(page.read_bytes())
    other = page.with_suffix(".ipynb").read_text(encoding="utf-8").replace("results", "result", 1)
    (tmp_path / "backtest.ipynb").write_text(other, encoding="utf-8")
    assert wrong(verify(tmp_path / "backtest.html", quick=True, home=stored_home)) == ["notebook"]


def test_a_check_leaves_a_damaged_store_where_it_is(page, stored_home, tmp_path):
    good, bad = (bar_path(home, "bitstamp_file", "ETH/USD") for home in (stored_home, tmp_path))
    bad.parent.mkdir(parents=True)
    bad.write_bytes(good.read_bytes()[:-7])
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    found = verify(page, quick=True, home=tmp_path)
    assert (
        wrong(found) == ["bars"]
        and "nothing was changed" in {f["what"]: f["text"] for f in found["findings"]}["bars"]
    )
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_what_the_ledger_here_knows_better_than_the_page_is_noted():
    here = Standing(40, 41, .1)
    def claims(trial, trials, entered=True):
        return {"trial": trial, "trials": trials, "entered": entered}
    assert (
        standing_note(claims(40, 41), here) == []
        and "does not know this run" in standing_note(claims(1, 1), None)[0]
    )
    assert standing_note(claims(1, 1), here) == [
        "the page counts it as trial 1 of 1; in the ledger here it is now 40 of 41"
    ]
    assert "(not entered)" in standing_note(claims(40, 41, False), here)[0]


def test_a_changed_digit_anywhere_in_the_page_is_found(page, stored_home, tmp_path):
    text = page.read_text(encoding="utf-8")
    digits = [m.start() for m in re.finditer(r"\d", split(text)[0])]
    for k in (digits[5], digits[len(digits) // 2], digits[-1]):
        changed = text[:k] + str((int(text[k]) + 1) % 10) + text[k + 1:]
        (tmp_path / "x.html").write_text(changed, encoding="utf-8")
        assert wrong(verify(tmp_path / "x.html", quick=True, home=stored_home)) == ["page"]


def test_a_changed_digit_in_the_manifest_is_found(page, stored_home, tmp_path):
    text = page.read_text(encoding="utf-8")
    value = re.search(r'"total_return": -?(0\.\d+)', text[text.index('"metrics"'):]).group(1)
    (tmp_path / "x.html").write_text(
        text.replace(value, value[:-1] + str((int(value[-1]) + 1) % 10)), encoding="utf-8"
    )
    assert "manifest" in wrong(verify(tmp_path / "x.html", quick=True, home=stored_home))


def test_one_altered_stored_bar_is_found(page, stored_home, tmp_path):
    path = bar_path(stored_home, "bitstamp_file", "ETH/USD")
    store = read_store(path)
    bars = store.bars.copy()
    bars.iloc[700, bars.columns.get_loc("volume")] *= 1 + 1e-12
    write_store(bar_path(tmp_path, "bitstamp_file", "ETH/USD"), BarStore().add(bars, store.covered))
    for quick in (True, False): assert "bars" in wrong(verify(page, quick=quick, home=tmp_path))
    assert "not stored here" in verify(page, quick=True, home=tmp_path / "empty")["findings"][3]["text"]


def test_the_command_says_what_does_not_hold_and_ends_with_1(page, stored_home, tmp_path):
    text = page.read_text(encoding="utf-8")
    forged = tmp_path / "forged.html"
    forged.write_text(text.replace("<h1", "<h1 class=x", 1), encoding="utf-8")
    env = {**os.environ, "CRYPTOLSTM_HOME": str(stored_home)}
    codes = {}
    for name, words in {
        "fresh": [str(page), "--quick"],
        "forged": [str(forged), "--quick", "--json"],
        "none": [str(tmp_path / "no.html")],
    }.items():
        done = subprocess.run(
            [BIN / "cryptolstm", "verify", *words],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        codes[name] = done.returncode
        if name == "forged":
            assert [f["ok"] for f in json.loads(done.stdout)["findings"]] == [False, True, True]
        if name == "none": assert "there is no page" in done.stderr and "Traceback" not in done.stderr
    assert codes == {"fresh": 0, "forged": 1, "none": 2}


def test_a_page_without_its_bars_or_notebook_cannot_be_checked(page, stored_home, tmp_path, monkeypatch):
    "The command ends with 3, as long as nothing that can be checked differs."
    alone = tmp_path / "alone.html"
    alone.write_bytes(page.read_bytes())
    forged = tmp_path / "forged.html"
    forged.write_text(page.read_text(encoding="utf-8").replace("<h1", "<h1 class=x", 1), encoding="utf-8")
    empty = tmp_path / "empty"
    for path, home, quick, outcome, code in (
        (page, stored_home, True, "holds", 0),
        (page, empty, True, "cannot be checked", 3),
        (page, empty, False, "cannot be checked", 3),
        (alone, stored_home, True, "cannot be checked", 3),
        (forged, empty, True, "does not hold", 1),
    ):
        monkeypatch.setenv("CRYPTOLSTM_HOME", str(home))
        words = ["verify", str(path), *(["--quick"] if quick else [])]
        done = CliRunner().invoke(app, [*words, "--json"])
        assert (json.loads(done.stdout)["outcome"], done.exit_code) == (outcome, code), path
        assert CliRunner().invoke(app, words).exit_code == code


def test_other_results_are_named_with_their_first_difference():
    run = RunConfig(exchange="simulated", **{**WISH, "hours": 96})
    bars = regular_grid(demo_market(bars_needed(run), seed=1))
    result = summary(backtest(bars, run))
    manifest = json.loads(json.dumps(make_manifest(result, "<body></body>")))
    assert all(f["ok"] for f in compare_results(manifest, result))
    dear = summary(backtest(bars, RunConfig(exchange="simulated", **{**WISH, "hours": 96, "fee": .002})))
    found = {f["what"]: f for f in compare_results(manifest, dear)}
    assert (
        not found["baseline_returns"]["ok"]
        and found["baseline_returns"]["text"].startswith("buy & hold was ")
        and found["skill"]["ok"]
    )
    assert manifest["data"]["sha256"] == bars_hash(bars)


def test_a_leak_makes_the_verdict_and_says_where(monkeypatch):
    "The run's certificate fails, so the verdict is LEAK whatever the returns."
    run = RunConfig(exchange="simulated", **{**WISH, "hours": 96})
    bars = regular_grid(demo_market(bars_needed(run), seed=1))
    def early(b):
        return b[["close"]].assign(peek=b["close"].shift(-1))
    monkeypatch.setattr(
        "cryptolstm.research.backtest.certificate", lambda bars, **how: certificate(bars, features=early)
    )
    result = backtest(bars, run, certify=True)
    assert result["verdict"].level == "LEAK"
    assert "the leak certificate failed at peek" in result["verdict"].sentence
    assert summary(result)["certificate"]["passed"] is False


def test_what_is_no_page_is_refused(tmp_path):
    for content, message in ((b"<html></html>", "has no manifest"), (b"\xff\xfe\x00", "not a page of text")):
        (tmp_path / "x.html").write_bytes(content)
        with pytest.raises(InputError, match=message): verify(tmp_path / "x.html")
    with pytest.raises(InputError, match="no </body>"): embed("text", {})
    assert (
        agree(1.0, 1 + 1e-10)
        and not agree(1.0, 1 + 1e-8)
        and not agree(None, 0.0)
        and agree(None, None)
        and not agree(True, 1.0 + 1e-3)
    )


def test_a_run_that_the_clock_ended_says_so_and_promises_no_repetition():
    "In the notes that terminal, page and program show, in the summary, and in the manifest."
    network = {
        **SMOKE["network"],
        "epochs": 100_000,
        "patience": 100_000,
        "refit_epochs": 1,
        "max_train_seconds": 0.3,
    }
    run = RunConfig(**{**WISH, "network": network, "retrain_every": 120})
    results = backtest(demo_market(bars_needed(run), seed=6, ticker="ETH/USD"), run)
    ended = (results["folds"]["stopped"] == "time limit").sum()
    assert (
        ended >= 1
        and f"{ended} of 2 trainings did not end by themselves (time limit: {ended})" in " ".join(
            data_notes(results["data"])
        )
    )
    result = summary(results)
    assert (
        result["determinism"]["class"] == "none"
        and make_manifest(result, "<body></body>")["determinism"] == result["determinism"]
    )
    whole = summary(
        backtest(demo_market(bars_needed(RunConfig(**WISH)), seed=6, ticker="ETH/USD"), RunConfig(**WISH))
    )
    assert whole["determinism"]["class"] == "bit-equal" and "ended" not in whole["data"]
