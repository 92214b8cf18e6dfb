"Pages of volatility forecasts and of ranks hold as they were written, and no change to them stays unnoticed."
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
from loopback import Loopback, candles_of
from typer.testing import CliRunner

from cryptolstm.cli.main import app
from cryptolstm.core.bars import HOUR
from cryptolstm.core.errors import InputError
from cryptolstm.data.store import BarStore, read_store, write_store
from cryptolstm.proof.trials import Standing
from cryptolstm.report.manifest import (
    CLOSE,
    MOST_PLACEBOS,
    MOST_TICKERS,
    OPEN,
    canonical_json,
    embed,
    read_manifest,
    sha256_of,
    split,
)
from cryptolstm.report.site import index_page, report_entries
from cryptolstm.report.verify import PageKind, verify
from cryptolstm.report.verify_kinds import (
    KINDS,
    RANKS,
    STATED,
    VOLATILITY,
    compare_runs,
    run_again,
    run_bars,
    run_consistent,
    verify_page,
)

FOUR = ["ETH/USD", "BTC/USD", "SOL/USD", "ADA/USD"]
SIX = ["AAA/USD", "BTC/USD", "CCC/USD", "DDD/USD", "EEE/USD", "FFF/USD"]
DEMO = ["--exchange", "simulated", "--end", "2025-02-01"]
ONE = ["volatility", "ETH/USD", *DEMO, "--hours", "480", "--placebos", "1",
       *(w for s in ("train_hours=1250", "seeds=[1, 2]", "seed=4") for w in ("--set", s))]
MANY = ["volatility", *FOUR, "--hours", "480", "--placebos", "1", "--set", "train_hours=1300"]
RANK = ["rank", *SIX, *DEMO, "--hours", "240",
        *(w for s in ("train_hours=1200", "trees=3", "boosted=1") for w in ("--set", s))]


def run(*words: str):
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Data and reports of runs: one ticker and ranks of the demo market, and four tickers of an exchange."
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch, Loopback({t: candles_of(t) for t in FOUR}) as exchange:
        patch.setenv("CRYPTOLSTM_HOME", str(folder / "home"))
        for name, words in {
            "one": ONE,
            "many": [*MANY, "--exchange", "coinbaseexchange", "--exchange-url", exchange.url],
            "ranks": RANK,
        }.items():
            patch.setenv("CRYPTOLSTM_REPORTS", str(folder / name))
            run(*words, "--report")
        # typed as printed, while the exchange is there
        patch.setenv("CRYPTOLSTM_REPORTS", str(folder / "again"))
        for name in ("one", "many"): run(*shlex.split(manifest_of(folder, name)["command"])[1:])
    return folder


def page_of(folder, name: str):
    return next((folder / name).glob("*/*.html"))


def manifest_of(folder, name: str) -> dict:
    return read_manifest(page_of(folder, name).read_text(encoding="utf-8"))


def wrong(result: dict) -> dict: return {f["what"]: f["text"] for f in result["findings"] if not f["ok"]}


def rehashed(page: str, manifest: dict, **changes) -> str:
    "A page as a forger would write it, with matching hashes."
    body = {k: v for k, v in {**manifest, **changes, "page_sha256": sha256_of(page)}.items() if k != "sha256"}
    return embed(page, {**body, "sha256": sha256_of(canonical_json(body))})


def parts(path) -> tuple[str, dict]: return split(path.read_text(encoding="utf-8"), KINDS)


@pytest.fixture(scope="module")
def repeated(folder):
    "Kind of run with its second run at hand, and its manifest, page and bars."
    out = {}
    for name, kind in {"one": VOLATILITY, "ranks": RANKS}.items():
        text, manifest = parts(page_of(folder, name))
        bars = run_bars(manifest, folder / "home")[1]
        result = kind.repeat(manifest, bars)
        out[name] = (replace(kind, repeat=lambda *_, result=result: result), manifest, text, bars)
    return out


def kinds_of(repeated, name: str) -> dict:
    "The kinds of pages, one of them with the second run at hand."
    kind, manifest, *_ = repeated[name]
    own = {manifest["kind"]: PageKind(partial(run_consistent, kind), run_bars, partial(run_again, kind))}
    return {**KINDS, **own}


# ---- what holds


@pytest.mark.parametrize("name", ["one", "many", "ranks"])
def test_a_fresh_page_holds_and_nothing_is_entered_in_the_ledger(folder, repeated, name):
    ledger = {p: p.read_bytes() for p in (folder / "home").glob("trials.*")}
    page, home = page_of(folder, name), folder / "home"
    at_hand = verify(page, home=home, kinds=kinds_of(repeated, name)) if name == "ranks" else None
    result = at_hand or verify_page(page, home=home)
    assert result["outcome"] == "holds" and not wrong(result)
    named = [f["what"] for f in result["findings"]]
    manifest = manifest_of(folder, name)
    tables = [k for k, v in manifest.items() if k not in STATED and isinstance(v, dict | list)]
    assert named[:6] == ["page", "manifest", "notebook", "bars", "data", "figures"] and named[-1] == "text"
    assert sorted(named[6:-1]) == sorted(tables) and {"verdict", "placebos", "certificate"} <= set(tables)
    (trusted,) = result["notes"]
    assert trusted.startswith("taken from the page") and ("fetched_at" in trusted) == (name == "many")
    assert ledger == {p: p.read_bytes() for p in (folder / "home").glob("trials.*")}


@pytest.mark.parametrize("name", ["one", "many"])
def test_the_printed_command_makes_the_page_again(folder, name):
    "Seeds as a list, the address of the exchange and the number of placebo runs are part of it."
    first, text = manifest_of(folder, name), page_of(folder, name).read_text(encoding="utf-8")
    pages = [read_manifest(p.read_text(encoding="utf-8")) for p in (folder / "again").glob("*/*/*.html")]
    again = next(m for m in pages if m["tickers"] == first["tickers"])
    same = ("verdict", "errors", "newest", "placebos", "coverage", "command")
    assert {k: again[k] for k in same} == {k: first[k] for k in same}
    assert (first["trial"]["reruns"], again["trial"]["reruns"]) == (0, 1)
    assert "cryptolstm verify FILE" in text and "Make it again" in text
    part = "--set 'seeds=[1, 2]'" if name == "one" else "--set exchange_url=http://127.0.0.1:"
    assert part in first["command"] and "--placebos 1" in first["command"]


@pytest.mark.slow
def test_the_printed_command_of_ranks_makes_the_page_again(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("CRYPTOLSTM_HOME", str(folder / "home"))
    first = manifest_of(folder, "ranks")
    run(*shlex.split(first["command"])[1:], "--out", str(tmp_path))
    again = manifest_of(tmp_path, "universe_rank/..")
    same = ("verdict", "table", "placebos", "newest", "data", "command")
    assert {k: again[k] for k in same} == {k: first[k] for k in same}
    assert {s["reruns"] for s in again["trials"].values()} == {1}


def test_a_page_counted_otherwise_than_in_the_ledger_here_does_not_hold(folder, tmp_path):
    text, manifest = parts(page_of(folder, "one"))
    trial = {**manifest["trial"], "number": 1, "trials": 1}
    standing = Standing(**trial).sentence()
    forged = rehashed(text.replace(manifest["standing"], standing), manifest, trial=trial, standing=standing)
    (tmp_path / "volatility.html").write_text(forged, encoding="utf-8")
    found = wrong(verify_page(tmp_path / "volatility.html", home=folder / "home"))
    assert list(found) == ["ledger"] and "in the ledger here it is now" in found["ledger"]


# ---- what is found


def altered(value):
    "The table with its first number changed; None if there is none."
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            if (other := altered(part)) is not None:
                copy = dict(value) if isinstance(value, dict) else list(value)
                copy[key] = other
                return copy
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value * (1 + 1e-6) + 1e-6 if number else None


@pytest.mark.parametrize("name", ["one", "ranks"])
def test_a_changed_figure_is_named_whatever_table_it_is_in(folder, repeated, name):
    kind, manifest, text, bars = repeated[name]
    changes = {k: other for k, v in manifest.items() if k not in STATED and (other := altered(v)) is not None}
    assert len(changes) >= 9
    now = kind.manifest(kind.repeat())
    for key, value in (*changes.items(), ("command", "curl x | sh"), ("certificate", None)):
        expected = key if isinstance(manifest[key], dict | list) else "figures"
        found = {f["what"]: f["text"] for f in compare_runs({**manifest, key: value}, now) if not f["ok"]}
        assert list(found) == [expected] and (key == "certificate" or " was " in found[expected]), key
    for forged in (
        text.replace(manifest["verdict"]["level"], "CONFIRMED", 1),
        re.sub(r"(\d\.)(\d)(\d\d)</td>", lambda m: f"{m[1]}{(int(m[2]) + 1) % 10}{m[3]}</td>", text, count=1),
        text.replace("<h2", "<h2 hidden", 1),
    ):
        assert forged != text
        found, _ = run_again(kind, manifest, forged, bars, folder / "home")
        assert [f["what"] for f in found if not f["ok"]] == ["text"]


def test_a_changed_page_manifest_or_notebook_is_named(folder, tmp_path):
    page, home = page_of(folder, "one"), folder / "home"
    text = page.read_text(encoding="utf-8")
    changed = tmp_path / page.name
    (beside := changed.with_suffix(".ipynb")).write_bytes(page.with_suffix(".ipynb").read_bytes())
    for what, forged in (
        ("page", text.replace("<h1", "<h1 class=x", 1)),
        ("manifest", text.replace('"reruns": 0', '"reruns": 3', 1)),
        ("manifest", rehashed(*parts(page), tickers=["BTC/USD"])),
        ("manifest", rehashed(*parts(page), standing="This is the only trial")),
    ):
        changed.write_text(forged, encoding="utf-8")
        result = verify_page(changed, True, home)
        assert (list(wrong(result)), result["outcome"]) == ([what], "does not hold")
    changed.write_text(text, encoding="utf-8")
    beside.write_text("{}", encoding="utf-8")
    assert list(wrong(verify_page(changed, True, home))) == ["notebook"]


def test_one_changed_bar_is_named_and_a_missing_store_cannot_be_checked(folder, tmp_path, monkeypatch):
    page = page_of(folder, "many")
    market = next((folder / "home/bars").iterdir()).name
    shutil.copytree(folder / "home/bars", tmp_path / "bars")
    path = tmp_path / "bars" / market / "SOL_USD_1h.parquet"
    store = read_store(path)
    bars = store.bars.copy()
    bars.iloc[-100, bars.columns.get_loc("volume")] *= 1 + 1e-12
    write_store(path, BarStore().add(bars, store.covered))
    for quick in (True, False):
        result = verify_page(page, quick, tmp_path)
        assert result["outcome"] == "does not hold"
        assert wrong(result)["bars"] == "the bars of SOL/USD are not those of the page"
    assert "not computed again" in wrong(result)["metrics"]
    path.unlink()
    result = verify_page(page, home=tmp_path)
    assert result["outcome"] == "cannot be checked"
    assert wrong(result)["bars"].startswith("SOL/USD: the bars of the page are not stored here")
    for home, quick, code in ((folder / "home", True, 0), (tmp_path, True, 3), (tmp_path, False, 3)):
        monkeypatch.setenv("CRYPTOLSTM_HOME", str(home))
        done = CliRunner().invoke(app, ["verify", str(page), *(["--quick"] if quick else [])])
        assert done.exit_code == code and "verdict" in done.output


def test_ranks_of_models_that_were_fitted_elsewhere_cannot_be_repeated(folder, tmp_path):
    text, manifest = parts(page_of(folder, "ranks"))
    known = {k: v for k, v in manifest.items() if k != "command"}
    (tmp_path / "universe_rank.html").write_text(rehashed(text, known, frozen_on="binance"), encoding="utf-8")
    result = verify_page(tmp_path / "universe_rank.html", home=folder / "home")
    assert result["outcome"] == "cannot be checked" and "bars of binance" in wrong(result)["figures"]


# ---- pages of unknown origin


HOSTILE = [None, [], {}, "", "x" * 300, "../../x", "\ud800", -1, 10**30, 1e308, float("nan"), True, [[[]]]]
COMPARED = {"errors", "against_trailing", "against_har", "coverage", "certificate", "folds", "table",
            "placebo_test", "monthly", "members", "fits", "versions", "newest"}   # never used as they stand


def places(table, path=()):
    "Paths of the entries of a nested table; of a list or table of many only the first two."
    inner = table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    many = path and path[0] in ("placebos", "data", "trials", "tickers")
    for k, (key, value) in enumerate(inner):
        if many and len(path) == 1 and k > 1: return
        yield (*path, key)
        if key not in COMPARED: yield from places(value, (*path, key))


@pytest.mark.parametrize("name", ["one", "ranks"])
def test_no_manifest_ends_in_a_traceback(folder, tmp_path, name):
    text, manifest = "<html><body></body></html>", manifest_of(folder, name)
    target, tried = tmp_path / "page.html", 0
    for number, path in enumerate(places(manifest)):
        for value in HOSTILE[number % 7 :: 7]:   # each entry with some of them
            changed = json.loads(json.dumps(manifest))
            part = changed
            for key in path[:-1]: part = part[key]
            part[path[-1]] = value
            block = json.dumps(changed).replace("<", r"\u003c")
            target.write_text(text.replace("</body>", f"{OPEN}{block}{CLOSE}</body>"), encoding="utf-8")
            try: verify_page(target, quick=True, home=folder / "home")
            except InputError as e: assert len(str(e)) < 400
            tried += 1
    assert tried > 70


def without_end(manifest: dict, name: str) -> dict[str, dict]:
    "Name → changes of a manifest that ask for too much."
    settings, stamps = ("settings" if name == "one" else "config"), manifest["data"]
    first = next(iter(stamps.values()))
    many = {f"{'ABCDEFGHIJ'[k % 10]}{k}/USD": first for k in range(MOST_TICKERS + 1)}
    long = {t: {**s, "bars": 10**6} for t, s in many.items() if t != "A0/USD"}
    def with_settings(**changes): return {settings: {**manifest[settings], **changes}}
    own = {
        "one": {
            "placebos": {"placebos": [0.0] * (MOST_PLACEBOS + 1)},
            "hours": with_settings(hours=10**9),
            "seeds": with_settings(seeds=list(range(10**5))),
            "folds": {"placebos": [0.0] * 900, **with_settings(hours=200_000, retrain_every=24)},
        },
        "ranks": {
            "placebos": with_settings(placebos=10**9),
            "trees": with_settings(trees=10_000, placebos=10_000, train_hours=200_000),
            "few tickers": {"tickers": manifest["tickers"][:1], "data": dict([next(iter(stamps.items()))])},
            "a long panel": {"data": stamps | {"AAA/USD": {**first, "first": "1700-01-01T00:00:00+00:00"}}},
        },
    }
    return {
        "tickers": {"tickers": list(many), "data": many},
        "bars": {"tickers": list(long), "data": long},
        "another folder": {"data": {**stamps, next(iter(stamps)): {**first, "market": ".."}}},
        "another notebook": {"notebook": {**manifest["notebook"], "name": "backtest"}},
        "a setting": with_settings(lookback=9),
        "nested tables": {"verdict": {"level": "LEAK", "x": json.loads("[" * 99 + "]" * 99)}},
        **own[name],
    }


@pytest.mark.parametrize("name", ["one", "ranks"])
def test_a_page_that_asks_for_too_much_is_refused_in_one_sentence(folder, tmp_path, name):
    text, manifest = parts(page_of(folder, name))
    target = tmp_path / "page.html"
    for what, changes in without_end(manifest, name).items():
        target.write_text(rehashed(text, manifest, **changes), encoding="utf-8")
        with pytest.raises(InputError) as error: verify_page(target, home=tmp_path)
        assert len(str(error.value)) < 400 and "\n" not in str(error.value), what


def test_a_quick_check_loads_nothing_heavy(folder):
    code = (
        "import sys; from pathlib import Path; from cryptolstm.report.verify_kinds import verify_page\n"
        "assert verify_page(sys.argv[1], True, Path(sys.argv[2]))['outcome'] == 'holds'\n"
        "assert not {'keras', 'sklearn', 'arch', 'matplotlib'} & sys.modules.keys()"
    )
    words = [sys.executable, "-c", code, str(page_of(folder, "ranks")), str(folder / "home")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- other commands


def test_the_list_of_reports_names_these_pages_with_their_verdict(folder):
    entries = {name: report_entries(folder / name) for name in ("one", "many", "ranks")}
    named = [[x.ticker for x in found] for found in entries.values()]
    assert named == [["ETH/USD"], ["4 tickers"], ["6 tickers"]]
    for name, (entry,) in entries.items():
        assert entry.verdict == manifest_of(folder, name)["verdict"]["level"] and None not in entry.span
        assert entry.simulated == (name != "many")
        index = index_page([entry], folder / name)
        assert entry.verdict in index and entry.path.stem in index
        listed = json.loads(run("reports", "list", "--out", str(folder / name), "--json").stdout)["reports"]
        assert [(row["page"], row["verdict"]) for row in listed] == [(str(entry.path), entry.verdict)]
    ((entry,), _, _) = entries.values()
    assert entry.span[1] - entry.span[0] == 480 * HOUR


@pytest.mark.parametrize("name", ["one", "ranks"])
def test_a_comparison_of_two_pages_says_in_one_sentence_what_they_are(folder, name):
    page = page_of(folder, name)
    done = CliRunner().invoke(app, ["report", "diff", str(page), str(page_of(folder, "many"))])
    assert isinstance(done.exception, InputError)
    assert "only the pages of backtests can be compared" in str(done.exception)
    with pytest.raises(InputError, match="cryptolstm verify checks it"): verify(page)
