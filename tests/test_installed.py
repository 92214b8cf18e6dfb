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
def checkout(tmp_path_factory):
    "A copy of the files that git tracks."
    copy = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode: pytest.skip("not a checkout of git")
    for name in filter(lambda name: (ROOT / name).is_file(), listed.stdout.split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    "The wheel of that copy."
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "-w", out, checkout], capture_output=True, text=True, timeout=300)
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


def test_the_wheel_has_notebooks_and_parameters_and_nothing_else_of_the_checkout(checkout, wheel):
    packed = zipfile.ZipFile(wheel)
    nbs, modules = checkout / "nbs", (checkout / "cryptolstm").rglob("*.py")
    assets = (checkout / "cryptolstm" / "report" / "assets").iterdir()
    names = ("backtest", "signal", "universe", "universe_rank", "volatility")
    pages = (nbs / f"{page}.ipynb" for page in names)
    project = [*(checkout / "params").glob("*.yaml"), *pages]
    expected = {f"cryptolstm/project/{p.relative_to(checkout)}": p.read_bytes() for p in project}
    expected |= {str(p.relative_to(checkout)): p.read_bytes() for p in (*modules, *assets)}
    assert {n: packed.read(n) for n in packed.namelist() if ".dist-info/" not in n} == expected
    assert checkout / "params" / "eth_usd.yaml" in project


def test_an_installed_package_finds_its_notebooks_and_parameters_from_an_empty_folder(installed):
    code = ("import papermill; from cryptolstm.research.runs import *\n"
            "from cryptolstm.report.render import *\n"
            "print(project_folder(), reports_folder(), report_parameters('ETH/USD'),\n"
            "      'ticker' in papermill.inspect_notebook(f'{project_folder()}/nbs/signal.ipynb'), sep='|')")
    project, reports, values, signal = installed("-c", code).strip().split("|")
    assert (project, reports) == (str(installed.site / "cryptolstm/project"), str(installed.here / "reports"))
    assert values == "{'ticker': 'ETH/USD'}" and signal == "True"


@pytest.mark.slow
def test_an_installed_package_writes_and_verifies_a_report_in_an_empty_folder(installed):
    command = ["-c", "from cryptolstm.cli.main import main; main()"]
    installed(*command, "report", "ETH/USD", "--exchange", "simulated", "--params", "smoke")
    page = installed.here / "reports" / "eth_usd" / "backtest.html"
    assert "SIMULATED" in page.read_text(encoding="utf-8")
    installed(*command, "verify", page)
