"""Two pages side by side: what differs, with intervals, and never a claim that two pages cannot support."""
import json
import re

import pytest
from conftest import run_bars, small_run
from test_start_up import HEAVY
from test_start_up import run as process
from typer.testing import CliRunner

from cryptolstm.cli.main import app
from cryptolstm.core.errors import InputError
from cryptolstm.proof.trials import Ledger
from cryptolstm.report.diff_page import diff_html, diff_notes, diff_pages, overlap, reading, trial_notes
from cryptolstm.report.diff_rows import (FIGURES, HIT, RETURN, bar_warnings, figure_values, number, printable,
                                         read_page)
from cryptolstm.report.manifest import (canonical_json, embed, make_manifest, make_signal_manifest,
                                        make_universe_manifest, sha256_of, split)
from cryptolstm.report.render import run_report
from cryptolstm.research.backtest import backtest, summary

BLANK = "<html><body></body></html>"
EVIL = "<b>bold</b>\x1b[31m\u202e[red]x[/red]\x07"


def invoke(*words): return CliRunner().invoke(app, ["report", "diff", *map(str, words)])


def written(path, manifest):
    "A page with a manifest whose hashes are right, whatever it holds."
    body = {k: v for k, v in manifest.items() if k != "sha256"} | {"page_sha256": sha256_of(BLANK)}
    path.write_text(embed(BLANK, {**body, "sha256": sha256_of(canonical_json(body))}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def manifests():
    "Manifests of small backtests, by name."
    asked = {
        "usual": {},
        "other settings": {"stop_atr": 1.5, "fee": 0.0005},
        "other hours": {"hours": 120},
        "other ticker": {"ticker": "BTC/USD"},
        "other history": {"lookback": 24},
    }
    runs = {name: small_run(**settings) for name, settings in asked.items()}
    results = {name: backtest(run_bars(run), run) for name, run in runs.items()}
    return {name: json.loads(canonical_json(make_manifest(summary(r), BLANK))) for name, r in results.items()}


@pytest.fixture
def pages(manifests, tmp_path):
    "Files of those pages, by name."
    return {name: written(tmp_path / f"{name}.html", m) for name, m in manifests.items()}


def real(manifest, **data):
    "The manifest as that of a market that is not simulated."
    return {**manifest, "data": {**manifest["data"], "simulated": False, "exchange": "kraken", **data}}


# ---- reports of the command ------------------------------------------------------------------------------

@pytest.mark.slow
def test_two_reports_of_the_command_are_compared_in_terminal_json_and_page(tmp_path, monkeypatch):
    monkeypatch.setenv("CRYPTOLSTM_HOME", str(tmp_path))
    names = ("exchange", "train_hours", "lookback", "threshold_scale", "network")
    asked = {**{name: vars(small_run())[name] for name in names}, "hours": 120}
    a, b = (
        run_report("ETH/USD", overrides={**asked, **more}, out=tmp_path / name, progress=False).html
        for name, more in (("a", {}), ("b", {"stop_atr": 1.5}))
    )
    shown, found = invoke(a, b, "--out", tmp_path / "diff.html"), json.loads(invoke(a, b, "--json").stdout)
    assert shown.exit_code == 0 and re.search(r"^  stop_atr +2\.0 +1\.5 *$", shown.stdout, re.M)
    assert "1 setting differs; " in shown.stdout and str(tmp_path / "diff.html") in shown.stdout
    assert found["ok"] and found["settings"] == {"stop_atr": {"a": 2.0, "b": 1.5}}
    level = split(b.read_text(encoding="utf-8"))[1]["verdict"]["level"]
    assert found["a"]["path"] == str(a) and found["b"]["verdict"] == level
    # both were entered in one ledger, one after the other
    trials = [found["figures"]["number of the trial"][side]["value"] for side in "ab"]
    assert trials == [1, 2] and "A is trial 1 of 1 on these bars and B is trial 2 of 2" in shown.stdout
    page = (tmp_path / "diff.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "<td>stop_atr</td>" in page and page.count("<script>") == 1
    assert found["sentence"] in page and "SIMULATED MARKET" in page


# ---- settings and figures --------------------------------------------------------------------------------

def test_only_settings_that_differ_are_listed_and_the_equal_ones_counted(pages):
    diff = diff_pages(pages["usual"], pages["other settings"])
    rows = [(row.name, row.a, row.b) for row in diff.settings]
    assert rows == [("fee", "0.001", "0.0005"), ("stop_atr", "2.0", "1.5")]
    assert diff.ok and not diff.warnings and diff.equal_settings > 30 and not diff.versions


def test_a_setting_of_the_network_that_one_page_leaves_out_is_a_default(manifests, tmp_path, pages):
    config = manifests["usual"]["config"]
    more = {**manifests["usual"], "config": {**config, "network": {**config["network"], "optimizer": "sgd"}}}
    (row,) = diff_pages(pages["usual"], written(tmp_path / "more.html", more)).settings
    assert (row.name, row.a, row.b) == ("network.optimizer", "default", "sgd")


def test_figures_are_those_of_the_manifests_with_intervals_and_differences(pages, manifests):
    found = diff_pages(pages["usual"], pages["other settings"]).to_dict()["figures"]
    a, b = manifests["usual"], manifests["other settings"]
    hit = a["skill"]["LSTM"]
    assert found["hit rate"]["a"] == {"value": hit["hit"], "low": hit["hit_low"], "high": hit["hit_high"]}
    for name, key in (("net return", "total_return"), ("fees paid", "total_fees"), ("trades", "num_trades")):
        pair = [m["metrics"][key] for m in (a, b)]
        assert [found[name][side]["value"] for side in "ab"] == pair
        assert found[name]["difference"] == pytest.approx(pair[1] - pair[0])
    assert {name for name, row in found.items() if row["difference"] is None} >= {
        "Clark-West p", "Pesaran-Timmermann p", "deflated Sharpe ratio", "trials on these bars"
    }


@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f.label)
def test_every_figure_is_an_entry_of_a_manifest(figure, manifests):
    for place in filter(None, (figure.place, figure.low, figure.high, figure.error)):
        table = manifests["usual"]
        for name in place.split("."): table = table[name]
        assert table is None or isinstance(table, (int, float))


def test_a_page_and_its_copy_differ_in_nothing(pages, manifests, tmp_path):
    diff = diff_pages(pages["usual"], written(tmp_path / "copy.html", manifests["usual"]))
    assert diff.ok and not diff.settings and not diff.versions and not any(r.differs for r in diff.bars)
    assert diff.sentence == "No figure of these pages differs." and not diff.notes
    assert "settings are equal" in invoke(pages["usual"], tmp_path / "copy.html").stdout


# ---- what two pages can show -----------------------------------------------------------------------------

@pytest.mark.parametrize("other, told", [
    ("other hours", "Other hours: A was tested from"),
    ("other ticker", "Another ticker: ETH/USD and BTC/USD"),
    ("other history", "Another simulated market"),
])
def test_pages_that_were_not_tested_on_the_same_bars_are_not_compared(other, told, pages):
    done = invoke(pages["usual"], pages[other])
    found = json.loads(invoke(pages["usual"], pages[other], "--json").stdout)
    assert done.exit_code == 0 and told in done.stdout and "says nothing about the settings" in done.stdout
    assert not found["ok"] and any(told in text for text in found["warnings"])
    assert "no test of the difference" not in done.stdout and "choosing" not in done.stdout


def test_more_history_of_a_real_market_is_a_note_and_revised_bars_are_a_warning(manifests):
    a = real(manifests["usual"])
    longer = real(manifests["usual"], bars=2000, first="2024-01-01T00:00:00+00:00", sha256="0" * 64)
    revised = real(manifests["usual"], sha256="0" * 64)
    assert bar_warnings(a, a) == [] == bar_warnings(a, longer)
    assert any("hashes cannot show" in note for note in diff_notes(a, longer))
    assert bar_warnings(a, revised)[0].startswith("Other prices")
    assert bar_warnings(a, real(manifests["usual"], market="kraken@http://x"))[0].startswith("Another market")


def with_intervals(manifest, hit, net):
    "The manifest with another hit rate and return, each as value, low and high."
    numbers = dict(zip(("hit", "hit_low", "hit_high"), hit, strict=True))
    verdict = {**manifest["verdict"], "numbers": {**manifest["verdict"]["numbers"], **numbers}}
    bounds = {**manifest["uncertainty"], "total_return": {"low": net[1], "high": net[2]}}
    metrics = {**manifest["metrics"], "total_return": net[0]}
    return {**manifest, "verdict": verdict, "uncertainty": bounds, "metrics": metrics}


def test_overlapping_intervals_show_no_better_page_and_separate_ones_are_no_test(manifests):
    m = manifests["usual"]
    low = with_intervals(m, (0.50, 0.48, 0.52), (0.01, -0.1, 0.1))
    near = with_intervals(m, (0.53, 0.51, 0.55), (0.02, -0.1, 0.1))
    far = with_intervals(m, (0.60, 0.58, 0.62), (0.02, -0.1, 0.1))
    assert overlap(low, near, HIT) and not overlap(low, far, HIT) and overlap(far, low, RETURN)
    assert reading(low, near).endswith("these two pages cannot show that one is better.")
    assert "hit rate do not overlap (B is higher)" in reading(low, far)
    assert "this is no test" in reading(low, far)
    assert "hit rate do not overlap (A is higher)" in reading(far, low)
    without = with_intervals(m, (0.6, None, None), (0, None, None))
    assert overlap(low, without, HIT) is None
    assert "no interval on at least one page" in reading(low, without)


def test_hit_rates_of_different_horizons_are_not_compared(manifests):
    m = manifests["usual"]
    assert "different horizons" in reading(m, {**m, "config": {**m["config"], "horizon": 4}})


def test_dependence_costs_versions_and_trials_are_noted(manifests):
    a, b = manifests["usual"], manifests["other settings"]
    notes = " ".join(diff_notes(a, {**b, "versions": {**b["versions"], "numpy": "0.1"}}))
    assert "results are dependent" in notes and "(fee)" in notes
    assert "Versions, commit or CPU differ" in notes and "number of trials is too small" in notes


def entered(run, folder):
    "The manifest of a backtest that is entered in the ledger of a folder."
    result = summary(backtest(run_bars(run), run, ledger=Ledger(folder)))
    return json.loads(canonical_json(make_manifest(result, BLANK)))


def test_pages_of_one_ledger_count_each_other_and_pages_of_two_ledgers_do_not(tmp_path):
    usual, other = small_run(), small_run(stop_atr=1.5)
    a, b = entered(usual, tmp_path / "one"), entered(other, tmp_path / "one")
    (note,) = trial_notes(a, b)
    assert note.startswith("A is trial 1 of 1 on these bars and B is trial 2 of 2")
    assert "different ledgers" in trial_notes(a, entered(other, tmp_path / "two"))[1]


# ---- pages of unknown origin -----------------------------------------------------------------------------

def test_markup_and_control_characters_of_a_manifest_reach_neither_page_nor_terminal(manifests, tmp_path):
    m = manifests["usual"]
    evil = {
        **m,
        "ticker": EVIL,
        "made_at": EVIL,
        "machine": EVIL,
        "git_commit": EVIL,
        "data": {**m["data"], "ticker": EVIL, "exchange": EVIL, "market": EVIL},
        "config": {**m["config"], EVIL: EVIL, "fee": EVIL, "network": {EVIL: [EVIL]}},
        "versions": {**m["versions"], EVIL: EVIL},
        "determinism": {**m["determinism"], "cpu": EVIL, "class": EVIL},
        "verdict": {"level": EVIL, "sentence": EVIL},
    }
    a, b = written(tmp_path / "a.html", m), written(tmp_path / "b.html", evil)
    page = diff_html(diff_pages(a, b))
    assert "<b>" not in page and "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "\x1b" not in page and "\u202e" not in page
    for words in ((a, b), (a, b, "--json")):
        done = invoke(*words)
        assert done.exit_code == 0 and "[red]x[/red]" in done.stdout   # no markup of Rich
        assert not any(not c.isprintable() for c in done.output.replace("\n", ""))
    assert json.loads(invoke(a, b, "--json").stdout)["settings"]["fee"] == {"a": 0.001, "b": printable(EVIL)}


@pytest.mark.parametrize("value", ["x", [], {}, True, 10**400, None], ids=str)
def test_a_figure_that_is_no_number_is_undefined(value, manifests, tmp_path):
    m = manifests["usual"]
    wrong = {**m, "metrics": {**m["metrics"], "total_return": value}, "uncertainty": {"total_return": value},
             "verdict": {"level": "NO SKILL", "numbers": value}, "power": None, "skill": None}
    assert number(wrong, "metrics.total_return") is None
    assert set(figure_values(wrong, HIT).values()) == {None}
    a, b = written(tmp_path / "a.html", m), written(tmp_path / "b.html", wrong)
    found = json.loads(invoke(a, b, "--json").stdout)["figures"]["net return"]
    assert found["b"]["value"] is None is found["difference"]
    assert invoke(a, b).exit_code == 0 and "no interval on at least one page" in invoke(a, b).stdout


def test_a_setting_nested_a_thousand_times_is_one_short_line(manifests, tmp_path):
    m, deep = manifests["usual"], []
    for _ in range(400): deep = [deep]
    b = written(tmp_path / "b.html", {**m, "config": {**m["config"], "fee": deep}})
    (row,) = diff_pages(written(tmp_path / "a.html", m), b).settings
    assert row.name == "fee" and len(row.b) <= 200


# ---- errors ----------------------------------------------------------------------------------------------

CHANGED = "was changed since it was written"


def broken(pages, tmp_path):
    "Name → second page, and what is said of it."
    text = pages["usual"].read_text(encoding="utf-8")
    signal = make_signal_manifest({"signal": 0}, BLANK)
    universe = make_universe_manifest({"tickers": []}, BLANK)
    files = {
        "no page": ("<html></html>", "has no manifest"),
        "another text": (text.replace("<body>", "<body>more"), CHANGED),
        "another figure": (text.replace('"num_trades": ', '"num_trades": 1'), CHANGED),
        "cut off": (text[:-200], "has no manifest"),
        "no JSON": (text.replace('"schema"', "schema"), "not JSON"),
        "an entry less": (text.replace('"made_at"', '"made"'), "cannot be used"),
        "signal": (embed(BLANK, signal), "is the page of a signal"),
        "universe": (embed(BLANK, universe), "the page of several tickers"),
        "volatility": (embed(BLANK, {"kind": "volatility"}), "the page of volatility forecasts"),
        "ranks": (embed(BLANK, {"kind": "ranks"}), "the page of ranks of several tickers"),
    }
    for name, (content, _) in files.items():
        assert content != text
        (tmp_path / f"{name}.htm").write_text(content, encoding="utf-8")
    return {tmp_path / f"{name}.htm": told for name, (_, told) in files.items()}


def test_a_file_that_is_no_unchanged_page_of_a_backtest_is_an_input_error(pages, tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    asked = {
        **broken(pages, tmp_path),
        tmp_path / "binary": "is not a page of text",
        tmp_path: "there is no page",
        tmp_path / "none.html": "there is no page",
    }
    for page, told in asked.items():
        for words in ((pages["usual"], page), (page, pages["usual"])):
            error = invoke(*words).exception
            assert isinstance(error, InputError) and told in str(error) and str(page) in str(error)


def test_the_same_file_twice_is_an_input_error_however_it_is_named(pages, tmp_path):
    (link := tmp_path / "link.html").symlink_to(pages["usual"])
    for other in (pages["usual"], link):
        error = invoke(pages["usual"], other).exception
        assert isinstance(error, InputError) and "are the same file" in str(error)


def test_a_page_is_not_overwritten_and_only_html_is_written(pages, tmp_path):
    a, b = pages["usual"], pages["other settings"]
    before = b.read_bytes()
    asked = {
        b: "is one of the pages",
        tmp_path / "x.pdf": "is no .html",
        tmp_path: "is no .html",
        a / "x.html": "cannot be written",
    }
    for out, told in asked.items():
        error = invoke(a, b, "--out", out).exception
        assert isinstance(error, InputError) and told in str(error)
    assert b.read_bytes() == before and read_page(b)
    assert invoke(a, b, "--out", tmp_path / "new" / "diff.html").exit_code == 0
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["diff.html"]


# ---- the command -----------------------------------------------------------------------------------------

def test_report_names_the_comparison_in_its_help_and_diff_has_its_own():
    assert "report diff A.html B.html" in CliRunner().invoke(app, ["report", "--help"]).stdout
    usage = invoke("--help").stdout
    assert "report diff [OPTIONS] {A} {B}" in usage and "--out" in usage and "--placebo" not in usage


def test_diff_that_does_not_stand_first_is_refused_with_the_right_order(pages):
    done = CliRunner().invoke(app, ["report", "--json", "diff", str(pages["usual"]), "b.html"])
    assert isinstance(done.exception, InputError)
    assert "diff stands directly after report" in str(done.exception)
    assert "'dif' is not a ticker" in str(CliRunner().invoke(app, ["report", "dif"]).exception)


@pytest.mark.parametrize("line, expected", [
    ("report di", ["diff"]),
    ("report diff --", ["--out", "--json", "--help"]),
    ("report --pl", ["--placebo"]),
])
def test_the_shell_completes_diff_and_its_options(line, expected):
    places = {"COMP_WORDS": f"root {line}", "COMP_CWORD": str(line.count(" ") + 1)}
    places["_ROOT_COMPLETE"] = "complete_bash"
    assert CliRunner().invoke(app, [], env=places, prog_name="root").stdout.split() == expected


def test_errors_and_the_comparison_itself_load_no_heavy_library(pages, tmp_path):
    a, b = str(pages["usual"]), str(pages["other settings"])
    for words, told in (([a, a], "are the same file"), ([a, str(tmp_path)], "there is no page")):
        code, _, messages, modules = process(["report", "diff", *words])
        assert code == 2 and told in messages and not modules & HEAVY
    code, text, _, modules = process(["report", "diff", a, b])
    assert code == 0 and "stop_atr" in text and not modules & HEAVY
