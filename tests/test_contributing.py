"""The worked examples of CONTRIBUTING are short and work: they are applied to a copy of the repository, which
then shows the new indicator, rule, baseline and section where a user sees them."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import jupytext
import pytest
from check_generated import copy

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTION = PAGE.split("\n## Worked examples\n")[1].split("\n## ")[0]
EXAMPLES = dict(part.split("\n", 1) for part in SECTION.split("\n### ")[1:])
MOST_LINES = 29


# ---- reading and applying an example ---------------------------------------------------------------------

def diffs(example: str) -> list[tuple[str, str]]:
    "Path and diff of every changed file, in their order."
    found = re.findall(r"^`([^`\n]+)`\n\n```diff\n(.*?)^```$", example, re.S | re.M)
    assert found and len(found) == example.count("```diff") == example.count("```") / 2
    return found


def changed_lines(example: str) -> int:
    return len(re.findall(r"^[+-]", "".join(diff for _, diff in diffs(example)), re.M))


def patched(text: str, diff: str) -> str:
    "The text with all hunks applied; the unchanged and removed lines of a hunk must occur exactly once."
    for hunk in diff.split("@@\n"):
        lines = [line or " " for line in hunk.splitlines()]
        assert {line[0] for line in lines} <= {" ", "+", "-"}, hunk
        before, after = ("".join(f"{line[1:]}\n" for line in lines if line[0] != sign) for sign in "+-")
        assert before and before != after, f"nothing to find or to change in\n{hunk}"
        places = [m.start() for m in re.finditer(rf"^{re.escape(before)}", text, re.M)]
        assert len(places) == 1, f"found {len(places)} times instead of once:\n{before}"
        text = text[:places[0]] + after + text[places[0] + len(before):]
    return text


def apply(example: str, folder: Path) -> None:
    "Edit the files of a copy of the repository; notebooks in the py:percent form of jupytext."
    for path, diff in diffs(example):
        file = folder / path
        if file.suffix != ".ipynb":
            file.write_text(patched(file.read_text(encoding="utf-8"), diff), encoding="utf-8")
            continue
        text = jupytext.writes(jupytext.read(file), "py:percent")
        jupytext.write(jupytext.reads(patched(text, diff), "py:percent"), file)


@pytest.mark.parametrize("anchor", ["a line that is nowhere", "twice"])
def test_an_example_whose_place_is_not_found_exactly_once_is_refused(anchor):
    text = "first\ntwice\nonce\ntwice\nlast\n"
    assert patched(text, " once\n+new\n@@\n-last\n+end\n") == "first\ntwice\nonce\nnew\ntwice\nend\n"
    with pytest.raises(AssertionError, match="times instead of once"): patched(text, f" {anchor}\n+new\n")


def test_a_wrong_place_in_an_example_of_the_page_is_refused(tmp_path):
    copy(tmp_path)
    wrong = EXAMPLES["A rule"].replace("\n {\"up\": up.", "\n {\"up\": down.")
    assert wrong != EXAMPLES["A rule"]
    with pytest.raises(AssertionError, match="found 0 times"): apply(wrong, tmp_path)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_changes_fewer_than_30_lines_and_needs_no_other_example(name, tmp_path):
    assert 0 < changed_lines(EXAMPLES[name]) <= MOST_LINES
    copy(tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    apply(EXAMPLES[name], tmp_path)


def test_the_course_names_for_each_addition_the_notebooks_of_its_example():
    cells = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    rows = [line for line in cells[0]["source"] if "CONTRIBUTING.md" in line]
    assert len(rows) == len(EXAMPLES)
    for row, (name, example) in zip(rows, EXAMPLES.items(), strict=True):
        *notebooks, link = re.findall(r"\]\((.+?)\)", row)
        assert link == f"../CONTRIBUTING.md#{name.lower().replace(' ', '-')}"
        assert {f"nbs/{path}" for path in notebooks} == {p for p, _ in diffs(example) if p.endswith(".ipynb")}


def test_the_table_of_packages_names_every_module():
    section = PAGE.split("\n## Structure\n")[1].split("\n## ")[0]
    table = re.findall(r"^\| (\w+) \| ([\w ·]+) \|", section, re.M)
    named = {package: set(modules.split(" · ")) for package, modules in table if package != "package"}
    found = {p.parent.name: set() for p in (ROOT / "cryptolstm").glob("*/__init__.py")}
    for package in found:
        modules = {p.stem for p in (ROOT / "cryptolstm" / package).glob("*.py")}
        found[package] = modules - {"__init__"}
    assert named == found


# ---- all examples in one copy ----------------------------------------------------------------------------

SHOWN = """
import json
from pathlib import Path
import pandas as pd
import cryptolstm
from cryptolstm import SignalGenerator
from cryptolstm.cli.terminal import build_run
from cryptolstm.data.demo import demo_market
from cryptolstm.features.indicators import INPUTS, features
from cryptolstm.proof.leaks import leak_certificate
from cryptolstm.report.render import page_again
from cryptolstm.research.backtest import backtest
from cryptolstm.research.walkforward import bars_needed
from cryptolstm.strategy.decide import decide

network = {"units": [8], "dropout": [0.1], "recurrent_dropout": [0.1], "dense": [8], "epochs": 1,
           "refit_epochs": 1}
small = {"ticker": "ETH/USD", "hours": 240, "train_hours": 400, "retrain_every": 240, "lookback": 12,
         "exchange": "simulated", "threshold_scale": 0, "network": network}
run = build_run(None, [], small)
bars = demo_market(bars_needed(run), seed=2, ticker="ETH/USD")
table = features(bars)
results = backtest(bars, run)
ups = pd.Series(3.0, bars.index)      # a forecast above every threshold
dropped = build_run(None, ["rules.percent_b=false"], small)
signal = SignalGenerator("ETH/USD", exchange="simulated", config=run).generate_signals(hours=240)
bundle = Path(signal["model_info"]["path"]).with_name("bundle.json")
print(json.dumps({
    "package": cryptolstm.__file__,
    "inputs": list(INPUTS),
    "trained on": json.loads(bundle.read_text())["scaler"]["columns"],
    "flow": table["money_flow"].dropna().describe().to_dict(),
    "certificate": leak_certificate(features, bars, cuts=[8, 27, 30, 700], warmup=500).passed,
    "signal": signal,
    "stretched": decide(ups, table, run)["rule_percent_b"][table["close"] > table["bb_upper"]].tolist(),
    "other": decide(ups, table, run)["rule_percent_b"][table["close"] < table["bb_upper"]].tolist(),
    "days": sorted({day.day_name() for day in results["bars"].index}),
    "crossovers": results["baseline_figures"]["moving-average crossover"]["num_trades"],
    "checks": [c for c in decide(ups, table, dropped) if c.startswith("rule_")],
}, default=float))
open("page.html", "w").write(page_again(results))
"""


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    "A copy of the repository with all examples, exported."
    folder = tmp_path_factory.mktemp("repository")
    copy(folder)
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copytree(ROOT / "params", folder / "params")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for example in EXAMPLES.values(): apply(example, folder)
    in_copy(folder, str(BIN / "nbdev_export"))
    return folder


def in_copy(folder: Path, *command: str) -> str:
    "Run a command in the copy, on its package; its output."
    env = os.environ | {
        "PYTHONPATH": str(folder),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "CRYPTOLSTM_HOME": str(folder / "home"),
    }
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def shown(changed):
    "What a user of the copy sees, from one small backtest and one signal."
    found = json.loads(in_copy(changed, sys.executable, "-c", SHOWN))
    assert Path(found["package"]).is_relative_to(changed)
    return found | {"page": (changed / "page.html").read_text(encoding="utf-8")}


def test_the_indicator_is_a_causal_input_of_the_network_and_part_of_the_signal(changed, shown):
    assert "money_flow" in shown["inputs"] and shown["trained on"] == shown["inputs"]
    assert -1 <= shown["flow"]["min"] < shown["flow"]["max"] <= 1 and shown["flow"]["count"] > 600
    assert shown["certificate"]
    assert -1 <= shown["signal"]["indicators"]["money_flow"] <= 1
    schema = json.loads((changed / "docs" / "signal.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(shown["signal"], schema)


def test_the_rule_confirms_entries_and_can_be_dropped(shown):
    assert shown["stretched"] and not any(shown["stretched"]) and all(shown["other"])
    assert shown["checks"] and "rule_percent_b" not in shown["checks"]
    assert shown["signal"]["rules"]["percent_b"]["bound"] == {"long": "< 1", "short": "> 0"}
    assert "<td>percent_b</td><td>Bollinger %b &lt; 1 (short: &gt; 0)</td>" in shown["page"]


MODULES = [path for example in EXAMPLES.values() for path, _ in diffs(example) if re.search(r"/\d\d_", path)]
SLOW = "nbs/report/09_backtest_page.ipynb"   # gains a row of a table and no example; `shown` uses it


@pytest.mark.parametrize("path", [path for path in MODULES if path != SLOW])
def test_the_changed_notebooks_still_pass_with_their_new_examples(path, changed):
    in_copy(changed, str(BIN / "nbdev_test"), "--path", path, "--n_workers", "0")


def test_the_examples_follow_the_style_rules(changed):
    in_copy(changed, str(BIN / "ruff"), "check", *MODULES)


def test_the_baseline_is_in_the_tables_of_baselines_and_of_skill(shown):
    for section in ("Baselines and ablations", "Forecasts"):
        text = shown["page"].split(f">{section}</h2>")[1].split("<h2")[0]
        assert "<td>moving-average crossover</td>" in text
    assert shown["crossovers"] > 0


def test_the_section_is_on_the_page_with_a_row_for_each_day(shown):
    section = shown["page"].split(">Returns by weekday</h2>")[1].split("<h2")[0]
    assert len(shown["days"]) == 7 and all(f"<td>{day}</td>" in section for day in shown["days"])
