"""The package as a wheel, without the checkout: notebooks and parameters are found from any folder."""
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel of a copy of the files that git tracks."
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode: pytest.skip("not a checkout of git")
    for name in listed.stdout.split("\0")[:-1]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "-w", out, copy], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(out.glob("*.whl"))


@pytest.fixture
def installed(wheel, tmp_path):
    "`installed(words)` runs Python with the unpacked wheel, in a folder that was empty."
    site, here = tmp_path / "site", tmp_path / "here"
    here.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    places = {"PYTHONPATH": str(site), "CRYPTOLSTM_HOME": str(tmp_path / "home")}
    environment = {k: v for k, v in os.environ.items() if k != "CRYPTOLSTM_REPORTS"} | places

    def run(*words):
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    run.site, run.here = site, here
    return run


def test_the_wheel_has_notebooks_and_parameters_and_nothing_else_of_the_checkout(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    project = {p.relative_to(ROOT).as_posix() for p in (ROOT / "params").glob("*.yaml")}
    project |= {"nbs/backtest.ipynb", "nbs/signal.ipynb"}
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "cryptolstm").rglob("*.py")}
    expected = modules | {f"cryptolstm/project/{name}" for name in project}
    assert {name for name in names if ".dist-info/" not in name} == expected
    for name in project:
        assert zipfile.ZipFile(wheel).read(f"cryptolstm/project/{name}") == (ROOT / name).read_bytes()


def test_an_installed_package_finds_its_notebooks_and_parameters_from_an_empty_folder(installed):
    code = ("import papermill; from cryptolstm.report.render import *\n"
            "print(project_folder(), reports_folder(), report_parameters('ETH/USD')['network'],\n"
            "      'ticker' in papermill.inspect_notebook(f'{project_folder()}/nbs/signal.ipynb'), sep='|')")
    project, reports, network, signal = installed("-c", code).strip().split("|")
    assert (project, reports) == (str(installed.site / "cryptolstm/project"), str(installed.here / "reports"))
    assert network == "{'epochs': 12, 'refit_epochs': 2}" and signal == "True"


@pytest.mark.slow
def test_an_installed_package_writes_and_verifies_a_report_in_an_empty_folder(installed):
    command = ["-c", "from cryptolstm.cli.main import main; main()"]
    installed(*command, "report", "ETH/USD", "--exchange", "simulated", "--params", "smoke")
    page = installed.here / "reports" / "eth_usd" / "backtest.html"
    assert "SIMULATED" in page.read_text(encoding="utf-8")
    installed(*command, "verify", page)
