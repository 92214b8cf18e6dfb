"""The README is true: every command in it runs, and the numbers it reports are re-derived."""
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from loopback import Loopback

from cryptolstm.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S) for line in block.splitlines() if line.strip()]
TABLE = [c for row in re.findall(r"^\| `.*?\|(.*)\|$", TEXT, re.M) for c in re.findall(r"`(cryptolstm [^`]+)`", row)]
COMMANDS = sorted({c.removeprefix(".venv/bin/") for c in BLOCKS if not c.startswith("make ")})
SMOKE = ["--params", "params/smoke.yaml", "--set", "train_hours=300", "--set", "retrain_every=5000"]  # the same command, a tiny network
PAPERMILL = "-p train_hours 300 -p retrain_every 5000 -p lookback 12".split()
NETWORK = "network: {units: [8], dropout: [0.1], recurrent_dropout: [0.1], dense: [8], epochs: 1, refit_epochs: 1}"


def run(command: list[str], exchange_url: str, home: Path, **env: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "CRYPTOLSTM_HOME": str(home), "CRYPTOLSTM_EXCHANGE_URL": exchange_url, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **env}
    for name in ("MAKELEVEL", "MAKEFLAGS"): environment.pop(name, None)  # the tests themselves are run by make
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


def test_the_readme_names_both_make_targets_and_many_commands():
    assert [c for c in BLOCKS if c.startswith("make ")] == ["make report", "make test"]   # the first is run in test_reports_and_cli
    assert len(COMMANDS) >= 6 and len(TABLE) >= 9 and {c.split()[0] for c in COMMANDS} == {"cryptolstm", "papermill"}


def smaller(line: str, folder: Path) -> list[str]:
    "The words of a command with a tiny network added."
    words = shlex.split(line)
    if words[0] == "papermill": words[2:3] = [str(folder / "out.ipynb")]; words += [*PAPERMILL, "-y", NETWORK]
    elif words[1] == "signal": words += ["--params", "params/smoke.yaml"]
    elif words[1] == "backtest": words += SMOKE
    return words


@pytest.mark.parametrize("line", [c for c in COMMANDS if c.startswith("papermill ")])
def test_papermill_as_the_readme_types_it_writes_the_notebook(line, loopback, tmp_path):
    done = run(smaller(line, tmp_path), loopback.url, tmp_path)
    assert done.returncode == 0 and (tmp_path / "out.ipynb").is_file(), done.stderr[-2000:]


HERE = sorted({*TABLE, *COMMANDS} - {c for c in COMMANDS if c.startswith("papermill ")})
SIMILAR = [c for c in HERE if c.startswith("cryptolstm backtest") and c not in COMMANDS][1:]   # other numbers for the same options: nightly


@pytest.mark.parametrize("line", [pytest.param(c, marks=pytest.mark.slow) if c in SIMILAR else c for c in HERE])
def test_every_command_of_the_readme_runs(line, loopback, tmp_path, monkeypatch, capsys):
    "By the entry point of the command, in this process, which has the libraries already; also those that replace the first design's commands."
    monkeypatch.chdir(ROOT)
    places = {"HOME": tmp_path, "EXCHANGE_URL": loopback.url, "REPORTS": tmp_path / "reports"}
    for name, value in places.items(): monkeypatch.setenv(f"CRYPTOLSTM_{name}", str(value))
    monkeypatch.setattr(sys, "argv", smaller(line, tmp_path))
    with pytest.raises(SystemExit) as end: main()
    out, err = capsys.readouterr()
    assert end.value.code == 0 and out.strip(), err[-2000:]


def test_the_readme_says_what_writes_the_page_and_what_papermill_prints():
    assert "The page is written by `make report`, `cryptolstm report` and `cryptolstm backtest --report`" in TEXT
    assert "beneath a Python traceback of its" in TEXT   # shown by test_a_misspelt_papermill_parameter_does_not_run_the_default_ticker


def test_make_test_is_what_ci_runs():
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("exec make test")
    plan = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(step in plan for step in ("check_generated", "ruff", "nbdev_test", "pytest"))


def test_the_python_example_runs(loopback, tmp_path):
    small = "lookback=12, train_hours=300, network=dict(units=[8], dropout=[0.1], recurrent_dropout=[0.1], dense=[8], epochs=1, refit_epochs=1))"
    code = re.search(r"```python\n(.*?)```", TEXT, re.S).group(1).replace("lookback=60)", small)
    assert small in code
    done = run([sys.executable, "-c", code], loopback.url, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


def test_everything_the_readme_points_to_is_there():
    assert "@@" not in TEXT
    targets = set(re.findall(r"\]\(([^)#]+)\)", TEXT))
    for target in targets: assert (ROOT / target).is_file(), target
    assert "nbs/index.ipynb" in targets


def test_the_course_leads_through_every_notebook_once():
    nbs = ROOT / "nbs"
    cells = json.loads((nbs / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    links = re.findall(r"\]\(([^)#]+)\)", "\n".join("".join(c["source"]) for c in cells))
    assert sorted(links) == sorted(str(p.relative_to(nbs)) for p in nbs.rglob("*.ipynb") if p.name != "index.ipynb" and ".ipynb_checkpoints" not in p.parts)


FOUND = TEXT[TEXT.index("**What it honestly found**"):TEXT.index("## Two commands")]
HITS = re.search(r"was right ([\d.]+) % of the time.*it is right ([\d.]+) % and ([\d.]+) % of the time", FOUND, re.S).groups()


@pytest.mark.slow
@pytest.mark.parametrize("end, hit", zip(("2025-04-30T23:00Z", "2025-04-30T22:00Z", "2025-05-01T00:00Z"), HITS, strict=True))
def test_what_the_readme_found_is_found_again(end, hit, tmp_path, real_bars):
    real_bars("ETH/USD")
    with Loopback(now="2025-05-01 00:30") as exchange:
        done = run(["cryptolstm", "backtest", "--params", "params/eth_usd.yaml", "--end", end, "--json"], exchange.url, tmp_path)
    result = json.loads(done.stdout)
    assert f"**{result['verdict']['level']}**" in FOUND
    numbers = result["verdict"]["numbers"]
    assert ("it did not trade" in FOUND) == (numbers["trades"] == 0)
    assert abs(100 * numbers["hit"] - float(hit)) < 5   # on another processor two runs differ as those of neighbouring hours do: a standard deviation of 2.6
    if end != "2025-04-30T23:00Z": return
    held = float(re.search(r"buy & hold returned (−?[\d.]+) %", FOUND)[1].replace("−", "-"))
    seen = float(re.search(r"hit rates above ([\d.]+) %", FOUND)[1])
    assert abs(100 * numbers["buy_and_hold_return"] - held) < 0.06 and abs(100 * numbers["min_detectable_hit"] - seen) < 0.06
