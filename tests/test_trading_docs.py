"""docs/trading.md and its examples say what the program does: its session is typed again, its tables are
compared with the code, systemd checks the unit, and the steps of the Dockerfile run as far as they can
without docker."""
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from loopback import Loopback
from test_readme import blocks, command_of

from cryptolstm.core.settings import settings_table
from cryptolstm.trading.broker import LIVE_VENUES
from cryptolstm.trading.guards import Guards
from cryptolstm.trading.journal import FINAL, UNCERTAIN
from cryptolstm.trading.venues import VENUES

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "trading.md").read_text(encoding="utf-8")
EXAMPLES = ROOT / "docs" / "examples"
PROGRAM = "from cryptolstm.cli.main import main; main()"


def rows(heading: str) -> list[list[str]]:
    "Cells of the first table of a section."
    table = re.search(r"^\|.*?\|$\n\n", PAGE.split(f" {heading}\n")[1], re.S | re.M)[0].strip().splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table[2:]]


# ---- the page --------------------------------------------------------------------------------------------

def test_the_table_of_guards_is_the_declared_one():
    assert settings_table(Guards).strip() in PAGE


def test_the_table_of_exchanges_is_that_of_the_code():
    shown = {re.search(r"`(\w+)`", row[0])[1]: (row[1], row[3]) for row in rows("Exchanges")}
    assert shown == {name: (v.resent, "yes" if v.has_dead_man else "no") for name, v in VENUES.items()}
    assert LIVE_VENUES == tuple(VENUES)


def test_the_table_of_states_names_every_state_of_an_order():
    assert {row[0] for row in rows("After a crash")} == {*FINAL, *UNCERTAIN, "intended", "accepted", "open"}


def test_the_page_names_no_guard_and_no_option_that_does_not_exist():
    guards = re.findall(r"--guard (\w+)=", PAGE)
    assert guards and set(guards) <= set(vars(Guards()))
    known = {o for words in (["trade", "BTC/USD"], ["trade-all"], ["trade", "status"])
             for p in command_of(words).params for o in p.opts}
    assert set(re.findall(r"`(--[a-z-]+)", PAGE)) <= known


def shape(text: str) -> list[list[str]]:
    "The columns of each line, numbers masked; of a row of a table only the first and the number of columns."
    masked = re.sub(r"[\d,.+-]*\d", "#", text)
    lines = [re.split(r"  +", line.strip()) for line in masked.splitlines() if line.strip()]
    return [[cells[0], str(len(cells))] if cells[0] == "BTC/USD" else cells for cells in lines]


def test_the_session_of_the_page_runs_as_shown(tmp_path):
    "With a small network, whose decision may differ, half a minute after the close of a bar."
    (session,) = blocks(PAGE, "console")
    parts = re.split(r"^\$ (.*)\n", session, flags=re.M)[1:]
    assert len(parts) > 8
    with Loopback(now="2025-05-01 00:00:30") as exchange:
        places = {"HOME": tmp_path, "EXCHANGE_URL": exchange.url, "REPORTS": tmp_path / "reports"}
        env = os.environ | {f"CRYPTOLSTM_{name}": str(value) for name, value in places.items()}
        for line, shown in zip(parts[::2], parts[1::2], strict=True):
            words = shlex.split(line)[1:] + (["--params", "smoke"] if "--once" in line else [])
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, *words], cwd=ROOT, env=env, capture_output=True, text=True
            )
            told = done.stdout or done.stderr   # the acts of a person say what they did on stderr
            assert done.returncode == 0 and shape(told) == shape(shown), (line, told)
    page = (tmp_path / "reports" / "trading" / "index.html").read_text(encoding="utf-8")
    assert "paper-btc_usd" in page
    logged = (tmp_path / "logs" / "trading-paper-btc_usd.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in logged] == ["begin", "step"]


def test_the_backup_of_the_page_is_a_complete_journal(tmp_path, monkeypatch):
    program = shutil.which("sqlite3")
    if program is None: pytest.skip("the program sqlite3 is not installed")
    from cryptolstm.trading.journal import Journal, acts, add_act
    (line,) = [x for x in re.findall(r"^sqlite3 .*$", PAGE, re.M)]
    with Journal("a", tmp_path / "trading.sqlite") as journal:
        journal.begin({})
        add_act(journal, "stop", {})
        words = shlex.split(line.replace("~/.local/share/cryptolstm", str(tmp_path)))
        words[2] = words[2].replace("/backup/", f"{tmp_path}/copy-")
        subprocess.run([program, *words[1:]], check=True)
        with Journal("a", tmp_path / "copy-trading.sqlite") as copy:
            assert acts(copy) == acts(journal) != []


# ---- systemd ---------------------------------------------------------------------------------------------

UNIT = EXAMPLES / "cryptolstm-trade.service"


def settings(text: str) -> dict[str, list[str]]:
    "Key → values of a unit."
    found = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", text, re.M): found.setdefault(key, []).append(value)
    return found


def test_the_unit_starts_a_command_that_exists_and_gives_it_time_to_end():
    unit = settings(UNIT.read_text())
    program, *words = shlex.split(unit["ExecStart"][0])
    known = {o for p in command_of(words[1:] and words).params for o in p.opts}
    assert program.endswith("/cryptolstm") and {w for w in words if w.startswith("--")} <= known
    assert unit["KillSignal"] == ["SIGTERM"] and unit["Restart"] == ["on-failure"] and unit["TimeoutStopSec"]
    assert unit["EnvironmentFile"] and not re.search(r"(KEY|SECRET)=", "".join(unit["Environment"]))
    assert unit["RestartPreventExitStatus"] == ["2"]


def test_systemd_accepts_the_unit_and_finds_it_confined(tmp_path):
    program = shutil.which("systemd-analyze")
    if program is None: pytest.skip("systemd-analyze is not installed")
    text = UNIT.read_text().replace("/opt/cryptolstm/bin/cryptolstm", sys.executable)
    (unit := tmp_path / UNIT.name).write_text(text)
    done = subprocess.run([program, "verify", unit], capture_output=True, text=True)
    assert done.returncode == 0 and UNIT.name not in done.stderr, done.stderr
    level = [program, "security", "--offline=true", "--threshold=20", unit]   # 2.0 of 10
    done = subprocess.run(level, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-300:]
    unit.write_text(re.sub("^(Protect|System).*", "", text, flags=re.M))
    assert subprocess.run(level, capture_output=True).returncode != 0


# ---- docker ----------------------------------------------------------------------------------------------

def stages(text: str) -> list[list[tuple[str, str]]]:
    "Instructions of each stage of a Dockerfile."
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    out: list = []
    for word, rest in (line.split(maxsplit=1) for line in lines):
        if word == "FROM": out.append([])
        out[-1].append((word, rest))
    return out


BUILD, IMAGE = stages((EXAMPLES / "Dockerfile").read_text())
ONE = {word: rest for word, rest in IMAGE}


def test_the_image_is_slim_and_runs_as_a_user_with_its_data_in_a_volume():
    assert all(re.match(r"python:3\.1[1-3]-slim", stage[0][1]) for stage in (BUILD, IMAGE))
    words = [word for word, _ in IMAGE]
    assert ONE["USER"] == "trader" and words.index("USER") > max(k for k, w in enumerate(words) if w == "RUN")
    env = dict(pair.split("=") for pair in ONE["ENV"].split())
    assert env["CRYPTOLSTM_HOME"] == ONE["VOLUME"] == ONE["WORKDIR"] and ONE["STOPSIGNAL"] == "SIGTERM"
    assert env["CRYPTOLSTM_REPORTS"].startswith(ONE["VOLUME"])
    assert not re.search("KEY|SECRET", str([BUILD, IMAGE]))


def test_the_image_starts_a_command_that_exists():
    assert json.loads(ONE["ENTRYPOINT"]) == ["cryptolstm"]
    words = json.loads(ONE["CMD"])
    known = {o for p in command_of(words).params for o in p.opts}
    assert {w for w in words if w.startswith("--")} <= known


FILES = sorted(path for path in EXAMPLES.iterdir() if path.is_file())

@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_files_that_an_example_names_exist(path):
    named = re.findall(r"docs/[\w/-]+(?:\.\w+)?|constraints\.txt", path.read_text())
    fewest = 0 if path.suffix == ".py" else 2   # a program names itself
    assert len(set(named)) > fewest and all((ROOT / name).is_file() for name in named), named


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    "A folder with the wheel that the first stage makes from the files it copies."
    folder = tmp_path_factory.mktemp("image")
    (folder / "src").mkdir()
    for word, rest in BUILD:
        if word == "COPY":
            *sources, target = rest.split()
            for name in sources:
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                copy(ROOT / name, folder / "src" / target / (name if copy is shutil.copy else ""), **(
                    {"dirs_exist_ok": True, "ignore": shutil.ignore_patterns("__pycache__")}
                    if copy is shutil.copytree else {}
                ))
        elif word == "RUN":   # pip's build isolation would need the registry
            line = rest.replace("/wheels", str(folder / "wheels")).replace(
                "pip wheel", f"{sys.executable} -m pip wheel -q --no-build-isolation"
            )
            subprocess.run(line, shell=True, check=True, cwd=folder / "src")
    return folder


def test_the_copied_files_are_enough_to_build_the_wheel_with_the_extras_it_is_installed_with(image):
    (wheel,) = (image / "wheels").glob("*.whl")
    (install,) = [rest for word, rest in IMAGE if word == "RUN" and "pip install" in rest]
    (extras,) = re.findall(r'-c /tmp/constraints.txt "\$\(echo /wheels/\*\.whl\)\[([\w,]+)\]"$', install)
    packed = zipfile.ZipFile(wheel)
    (metadata,) = [packed.read(n).decode() for n in packed.namelist() if n.endswith("/METADATA")]
    assert set(extras.split(",")) <= set(re.findall("^Provides-Extra: (.*)$", metadata, re.M)) >= {"keyring"}
    assert "cryptolstm/project/nbs/backtest.ipynb" in packed.namelist()


@pytest.mark.slow
def test_the_container_trades_tells_its_health_and_ends_when_told(image, tmp_path):
    "The entry point and the health check of the image, with the installed wheel and a small network."
    (wheel,) = (image / "wheels").glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, tmp_path / "site"], check=True)
    (tmp_path / "bin").mkdir()
    (program := tmp_path / "bin" / "cryptolstm").write_text(f"#!{sys.executable}\n{PROGRAM}\n")
    program.chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    data = tmp_path / "data"
    data.mkdir()
    with Loopback(now="2025-05-01 00:00:30") as exchange:
        env = os.environ | {
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(tmp_path / "site"),
            "CRYPTOLSTM_EXCHANGE_URL": exchange.url,
            **dict(pair.replace(ONE["VOLUME"], str(data)).split("=") for pair in ONE["ENV"].split()),
        }

        def health():
            check = ONE["HEALTHCHECK"].split("CMD ", 1)[1]
            return subprocess.run(check, shell=True, cwd=data, env=env, capture_output=True, text=True)
        assert health().returncode != 0
        words = [*json.loads(ONE["ENTRYPOINT"]), *json.loads(ONE["CMD"]), "--params", "smoke"]
        with (tmp_path / "err").open("w") as err, subprocess.Popen(
            words, cwd=data, env=env, stdout=subprocess.PIPE, stderr=err, text=True
        ) as process:
            try:
                table = [process.stdout.readline() for _ in range(3)]
                assert [row.split()[0] for row in table] == ["ticker", "BTC/USD", "ETH/USD"], (
                    (tmp_path / "err").read_text()[-2000:]
                )
                assert (done := health()).returncode == 0, done.stderr
                process.send_signal(getattr(signal, ONE["STOPSIGNAL"]))
                assert process.wait(60) == 0
            finally: process.kill()
        assert health().returncode != 0
    assert (data / "reports" / "trading" / "index.html").is_file()
