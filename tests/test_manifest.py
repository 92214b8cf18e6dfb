"Page, bars and numbers belong together, and a change to any of them is found."
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
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
from cryptolstm.report.manifest import (CLOSE, OPEN, TABLES, canonical_json, embed, make_manifest, sha256_of,
                                        split)
from cryptolstm.report.render import page_again, run_report, shipped_notebook
from cryptolstm.report.verify import (SAME, agree, bars_again, check_standing, check_text, compare_pages,
                                      compare_results, compare_tables, rerun, tolerance, verify)

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
    asked = ["page", "manifest", "notebook", "bars", "data", "verdict", "metrics", *TABLES]
    asked += ["equity_sparkline", "intervals", "text"]
    assert result["ok"] and [f["what"] for f in result["findings"]] == asked
    assert {
        "skill",
        "against",
        "baseline_returns",
        "power",
        "uncertainty",
        "search",
        "fan",
        "importance",
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
    (trusted,) = result["notes"]
    assert trusted.endswith("made_at, git_commit, machine, versions, source")


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


def test_a_page_that_contradicts_the_ledger_here_does_not_hold():
    "The ledger may have counted on since; it never counts back, and a number never changes."
    here = Standing(40, 45, .1)
    def claims(trial, trials, entered=True):
        return check_standing({"trial": trial, "trials": trials, "entered": entered}, here)
    assert claims(40, 45) == ([], []) and claims(40, 41)[0] == []
    assert claims(40, 41)[1] == [
        "the page counts it as trial 40 of 41; in the ledger here it is now 40 of 45"
    ]
    for trial, trials, entered in ((1, 1, True), (40, 99, True), (40, 39, True), (40, 45, False)):
        [contradiction], notes = claims(trial, trials, entered)
        assert (
            contradiction["ok"] is False and "in the ledger here it is now 40 of 45" in contradiction["text"]
        )
    assert "does not know this run" in check_standing({"trial": 1, "trials": 1}, None)[1][0]


@pytest.fixture(scope="module")
def again(page, stored_home):
    "The page as a second run writes it."
    manifest = split(page.read_text(encoding="utf-8"))[1]
    return page_again(rerun(manifest, bars_again(manifest, stored_home)))


HIDDEN = '<p style="font-size:3em">CANDIDATE</p>'
FORGERIES = {
    "markup in an id": lambda p: p.replace(' id="verdict"', f' id="verdict {HIDDEN}"', 1),
    "a drawing of words": lambda p: p.replace("<h2", '<svg class="plot"><text>CANDIDATE</text></svg><h2', 1),
    "markup in a drawing": lambda p: p.replace("<h2", f'<svg class="plot">{HIDDEN}</svg><h2', 1),
    "a value of a chart": lambda p: re.sub(r'("close":\[)[\d.]+', r"\g<1>1.0", p, count=1),
    "another policy": lambda p: p.replace("default-src &#39;none&#39;", "default-src *", 1),
    "markup in an address": lambda p: p.replace("<h2", f'<img src="<svg ">{HIDDEN}</svg>"><h2', 1),
    "markup in a picture": lambda p: p.replace("<h2", f"<svg>{HIDDEN}</svg><h2", 1),
    "a style": lambda p: p.replace("</style>", ".lead {display: none}</style>", 1),
    "a script": lambda p: p.replace("<script>", "<script>alert(1);", 1),
    "a comment": lambda p: p.replace("<h2", "<!-- <h2", 1),
    "a hidden attribute": lambda p: p.replace("<h2", "<h2 hidden", 1),
    "a cell without output": lambda p: p.replace("<h2", '<div class="cell code_cell">\n</div><h2', 1),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_no_markup_can_hide_from_the_comparison(page, again, name):
    "Also not from the one with a tolerance, for pages of another kind of CPU."
    honest = split(page.read_text(encoding="utf-8"))[0]
    forged = FORGERIES[name](honest)
    assert forged != honest
    for how in ((SAME, True), (OTHER_KIND, True), (OTHER_KIND, False)):
        assert compare_pages(honest, again, *how)["ok"] and not compare_pages(forged, again, *how)["ok"]


def test_a_page_of_many_open_tags_is_compared_at_once(again):
    for piece in ("<svg", "<", "<svg>", '<p a="', "data:image/png;base64,", "<!--"):
        for drawings in (True, False):
            assert not compare_pages(piece * 20_000, again, OTHER_KIND, drawings)["ok"]


@pytest.mark.parametrize("end", ["</SCRIPT>", "</script >", "<!--<script>"])
def test_nothing_can_end_the_manifest_block_early(page, end):
    "A browser ends the block where a search for `</script>` does not."
    text, manifest = split(page.read_text(encoding="utf-8"))
    forged = rehashed(text, {**manifest, "machine": f"{end}{HIDDEN}"})
    assert check_text(forged)[0][0]["ok"]                       # escaped, it is only a text
    bare = forged.replace(end.replace("<", r"\u003c"), end)
    assert bare != forged and [f["ok"] for f in check_text(bare)[0]] == [False, True]


def test_a_manifest_with_an_entry_twice_is_not_as_it_was_written(page):
    text = page.read_text(encoding="utf-8").replace('"schema": 2', '"schema": 2, "schema": 2', 1)
    assert [f["ok"] for f in check_text(text)[0]] == [False, True]


def test_entries_that_contradict_each_other_are_found(page):
    text, manifest = split(page.read_text(encoding="utf-8"))
    data = manifest["data"]
    for changes in (
        {"ticker": "BTC/USD"},
        {"data": {**data, "ticker": "BTC/USD"}},
        {"data": {**data, "exchange": "kraken"}},
        {"seeds": {"run": 1, "market": None}},
    ):
        assert [f["ok"] for f in check_text(rehashed(text, manifest, **changes))[0]] == [True, False], changes


def test_notes_that_a_second_run_derives_are_not_taken_from_the_page(page, stored_home, tmp_path):
    "Neither an invented warning passes nor a changed kind of market."
    text, manifest = split(page.read_text(encoding="utf-8"))
    (tmp_path / "backtest.ipynb").write_bytes(page.with_suffix(".ipynb").read_bytes())
    data = {**manifest["data"], "revised": "Revised by the exchange after they were first fetched: 9 values"}
    (tmp_path / "backtest.html").write_text(rehashed(text, manifest, data=data), encoding="utf-8")
    result = verify(tmp_path / "backtest.html", home=stored_home)
    assert wrong(result) == ["data"] and result["outcome"] == "does not hold"
    assert any(note.startswith("taken from the page") and "made_at" in note for note in result["notes"])


def test_only_the_notebook_of_this_package_is_run(page, stored_home, tmp_path, monkeypatch):
    "Neither one in the current folder nor one that the page names; another source cannot be checked here."
    shutil.copytree(ROOT / "params", tmp_path / "params")
    (tmp_path / "nbs").mkdir()
    evil = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("open('ran', 'w').close()")])
    for name in ("backtest.ipynb", "evil.ipynb"): nbformat.write(evil, tmp_path / "nbs" / name)
    monkeypatch.chdir(tmp_path)
    manifest = split(page.read_text(encoding="utf-8"))[1]
    for name in ("evil", "../evil", str(tmp_path / "nbs" / "evil")):
        with pytest.raises(InputError, match="has no report notebook"): shipped_notebook(name)
    assert shipped_notebook("backtest") == ROOT / "nbs" / "backtest.ipynb"
    other = {**manifest["notebook"], "source": "0" * 64}
    (tmp_path / "backtest.ipynb").write_bytes(page.with_suffix(".ipynb").read_bytes())
    changed = rehashed(split(page.read_text(encoding="utf-8"))[0], manifest, notebook=other)
    (tmp_path / "backtest.html").write_text(changed, encoding="utf-8")
    result = verify(tmp_path / "backtest.html", home=stored_home)
    assert result["outcome"] == "cannot be checked" and not (tmp_path / "ran").exists()
    assert "made from another backtest.ipynb" in result["findings"][-1]["text"]


def places(table, path=()):
    "Paths of all entries of a nested table, lists included."
    inner = table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


HOSTILE = [None, [], {}, "", "x" * 300, "../../x", "\ud800", -1, 10**30, 1e308, float("nan"), True, [[[]]]]


def test_no_manifest_ends_in_a_traceback(page, stored_home, tmp_path):
    "One sentence, or a finding; for every entry of the manifest and every kind of nonsense."
    text, manifest = "<html><body></body></html>", split(page.read_text(encoding="utf-8"))[1]
    target, tried = tmp_path / "backtest.html", 0
    for path in [p for p in places(manifest) if p[0] not in TABLES or p[0] == "search"]:
        for value in HOSTILE:
            changed = json.loads(json.dumps(manifest))
            part = changed
            for key in path[:-1]: part = part[key]
            part[path[-1]] = value
            block = json.dumps(changed).replace("<", r"\u003c")
            target.write_text(text.replace("</body>", f"{OPEN}{block}{CLOSE}</body>"), encoding="utf-8")
            try: verify(target, quick=True, home=stored_home)
            except InputError as e: assert len(str(e)) < 400
            tried += 1
    assert tried > 1000
    for block in ("[" * 100_000, "{}", "[]", "1", '"x"', "{" * 9):
        target.write_text(text.replace("</body>", f"{OPEN}{block}{CLOSE}</body>"), encoding="utf-8")
        with pytest.raises(InputError): verify(target, quick=True, home=stored_home)


def test_a_changed_digit_anywhere_in_the_page_is_found(page, stored_home, tmp_path):
    text = page.read_text(encoding="utf-8")
    digits = [m.start() for m in re.finditer(r"\d", text[:text.index('id="manifest-table"')])]
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
