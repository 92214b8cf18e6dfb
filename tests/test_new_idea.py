"`cryptolstm new my_idea` writes files that work as they are, and all of them or none."
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import TINY

from cryptolstm.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
PYTHON = [sys.executable, "-c"]
COMMAND = [*PYTHON, "from cryptolstm.cli.main import main; main()"]
FILES = ["my_idea.ipynb", "my_idea.py", "my_idea.yaml"]
SIMULATED = ["--exchange", "simulated"]
# the process may write no file of more than 1,000 bytes, so that it fails within the notebook
LIMITED = """
import resource, signal, sys
from cryptolstm.cli.main import main
signal.signal(signal.SIGXFSZ, getattr(signal, sys.argv.pop()))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
main()
"""


def process(words: list, folder: Path) -> subprocess.CompletedProcess:
    "Run a program in a folder, as a user would."
    return subprocess.run(
        list(map(str, words)), cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=900,
    )


def names(folder: Path) -> list[str]: return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    "Run a command in an empty folder: exit code, output, messages."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))

    def run(*words: str):
        monkeypatch.setattr(sys, "argv", ["cryptolstm", *words])
        monkeypatch.delitem(sys.modules, "my_idea", raising=False)
        try:
            main()
            code = 0
        except SystemExit as end: code = end.code or 0
        return code, *capsys.readouterr()
    return run


def test_the_files_appear_and_the_module_passes_the_leak_check(command, tmp_path):
    code, said, _ = command("new", "my_idea")
    assert code == 0 and names(tmp_path) == FILES
    assert len((tmp_path / "my_idea.py").read_text().splitlines()) <= 30
    lines = [line.strip() for line in said.splitlines()[1:]]
    page = (ROOT / "docs" / "ideas.md").read_text(encoding="utf-8")
    assert re.search(r"```sh\n(.*?)```", page, re.S)[1].splitlines() == ["cryptolstm new my_idea", *lines]
    code, said, _ = command(*lines[0].split()[1:], *SIMULATED, "--hours", "900")
    assert code == 0 and said.startswith("No leak found")


def test_a_second_call_refuses_and_changes_nothing(command, tmp_path):
    command("new", "my_idea")
    (tmp_path / "my_idea.py").write_text("mine = 1\n")
    before = {file: (tmp_path / file).read_bytes() for file in FILES}
    code, said, error = command("new", "my_idea")
    assert (code, said, error) == (2, "", "error: my_idea.py exists here; pass another name\n")
    assert before == {file: (tmp_path / file).read_bytes() for file in names(tmp_path)}


@pytest.mark.parametrize("name, message", [
    ("my-idea", "is no name of a Python module"), ("1st", "is no name of a Python module"),
    ("../my_idea", "is no name of a Python module"), ("class", "is no name of a Python module"),
    ("idée", "is no name of a Python module"), ("numpy", "numpy is an installed module"),
    ("json", "json is an installed module"), ("_thread", "_thread is an installed module"),
    ("__main__", "__main__ is an installed module"), ("cryptolstm", "cryptolstm is an installed module"),
    ("folder", "folder exists here"), ("dangling", "dangling.yaml exists here"),
])
def test_a_name_that_cannot_be_imported_or_is_taken_is_refused(name, message, command, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling.yaml").symlink_to("nowhere")
    code, said, error = command("new", name)
    assert code == 2 and not said and message in error and error.count("\n") == 1
    assert names(tmp_path) == ["dangling.yaml", "folder"]


def test_a_full_disk_leaves_nothing(tmp_path):
    done = process([*PYTHON, LIMITED, "new", "my_idea", "SIG_IGN"], tmp_path)
    assert done.returncode == 1 and "File too large" in done.stderr and not names(tmp_path)


def test_a_process_killed_half_way_leaves_no_file_of_the_idea_and_the_next_one_writes_all(tmp_path):
    done = process([*PYTHON, LIMITED, "new", "my_idea", "SIG_DFL"], tmp_path)
    assert done.returncode < 0 and all(name.startswith(".new-") for name in names(tmp_path))
    done = process([*COMMAND, "new", "my_idea", "--json"], tmp_path)
    assert sorted(json.loads(done.stdout)["files"]) == FILES and {*FILES} <= {*names(tmp_path)}


def test_the_parameter_file_is_that_of_a_quick_backtest(command, tmp_path):
    command("new", "my_idea")
    small = [f"--set=network.{k}={v}" for k, v in TINY.items()]
    sizes = ["--hours", "120", "--set", "train_hours=400", "--set", "lookback=8"]
    words = ["backtest", "--params", "my_idea.yaml", "--quick", *SIMULATED, *sizes, *small, "--json"]
    code, said, error = command(*words)
    assert code == 0, error
    config, file = json.loads(said)["config"], yaml.safe_load((tmp_path / "my_idea.yaml").read_text())
    assert config["forecaster"] == "my_idea:build" and len(config["source"]) == 16
    assert {k: config[k] for k in file if k != "hours"} == {k: v for k, v in file.items() if k != "hours"}


def test_the_notebook_runs_from_top_to_bottom_and_ends_with_a_verdict(tmp_path):
    process([*COMMAND, "new", "my_idea"], tmp_path)
    sizes = {"hours": 120, "train_hours": 400, "lookback": 8, "network": TINY}
    small = ["-y", json.dumps(sizes)]
    done = process([sys.executable, "-m", "papermill", "my_idea.ipynb", "out.ipynb", *small], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    shown = {c.source.partition("(")[0]: str(c.outputs) for c in cells if c.cell_type == "code"}
    assert "distance" in shown["own_features"] and "no leak found" in shown["check_features"]
    verdict = shown["result = run_backtest"]
    assert "Pesaran-" in verdict and "buy & hold" in verdict and "LEAK" not in verdict
