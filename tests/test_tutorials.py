"""The tutorials and the notebook to explore run offline from top to bottom, show what their text says, and
leave the data of the user alone."""
import re
from pathlib import Path

import nbformat
import papermill
import pytest
from nbclient import NotebookClient

from cryptolstm.features.indicators import FEATURES
from cryptolstm.proof.verdict import Level
from cryptolstm.report.backtest_page import SECTIONS

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
EXPLORE = ROOT / "nbs" / "explore.ipynb"
ANSI = re.compile(r"\x1b\[[\d;]*m")


def text_of(cell) -> str:
    "What a cell printed and returned, as plain text."
    outputs = (o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.get("outputs", ()))
    return ANSI.sub("", "".join(outputs))


class Shown:
    "An executed notebook: the text that a cell shows, found by a part of its source."

    def __init__(self, nb): self.cells = [c for c in nb.cells if c.cell_type == "code"]

    def __call__(self, source: str) -> str:
        (cell,) = (c for c in self.cells if source in c.source)
        return text_of(cell)

    def pictures(self) -> int:
        html = (o.get("data", {}).get("text/html", "") for c in self.cells for o in c.outputs)
        return sum('<svg class="plot"' in page for page in html)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "Execute a notebook in a folder and with a data folder of its own; the data folder must stay empty."
    def executed(path: Path, untouched: bool = True) -> Shown:
        folder, home = tmp_path_factory.mktemp(path.stem), tmp_path_factory.mktemp("home")
        nb = nbformat.read(path, as_version=4)
        with pytest.MonkeyPatch.context() as place:
            place.setenv("CRYPTOLSTM_HOME", str(home))
            NotebookClient(nb, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
        assert not untouched or not list(home.iterdir())
        return Shown(nb)
    return executed


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_a_tutorial_is_small_and_stored_with_its_outputs(path):
    nb = nbformat.read(path, as_version=4)
    assert path.stat().st_size < 60_000 and nb.cells[0].source.startswith("# ")
    kinds = {o.output_type for c in nb.cells if c.cell_type == "code" for o in c.outputs}
    assert {"stream", "execute_result"} <= kinds and "error" not in kinds
    assert str(Path.home()) not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_every_link_of_a_tutorial_leads_to_a_file(path):
    text = "".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (path.parent / target).is_file(), target


def test_bars_of_a_file_are_imported_checked_and_tested(run):
    shown = run(ROOT / "docs/tutorials/own_csv.ipynb")
    assert "row 902 has a high below its low; nothing was imported" in shown("except InputError")
    assert "'rows': 2497" in shown("skip_bad=True") and "'skipped': 1" in shown("skip_bad=True")
    assert "2 gaps (4 of 2,500 hours missing)" in shown("quality_report(bars)")
    assert shown("print(results)").startswith("ETH/USD: ") and "buy & hold" in shown("print(results)")
    assert shown('results["data"]["exchange"]') == "('my_file', False, 4)"
    assert shown('print(results["search"]').strip() == "This is trial 1 on these bars"


def test_an_indicator_that_leaks_is_caught_and_one_that_does_not_passes(run):
    shown = run(ROOT / "docs/tutorials/own_indicator.ipynb")
    assert shown("mymodule:make --exchange").startswith("No leak found")
    for name, column in (("standardised", "money_flow_z"), ("smoothed", "money_flow_smooth")):
        found = shown(f"mymodule:{name}")
        assert found.startswith(f"LEAK: {column} (") and "exit code 1" in found
    rows = shown("skill_row(")
    hits = {name: float(re.search(rf"^{name} +1499.0 +([\d.]+)", rows, re.M)[1])
            for name in ("package", "package and yours", "yours alone")}
    assert hits["yours alone"] < .53 < hits["package"]
    assert abs(hits["package"] - hits["package and yours"]) < .02


def test_every_part_of_a_report_is_shown_and_a_changed_page_is_found(run):
    shown = run(ROOT / "docs/tutorials/reading_a_report.ipynb")
    for name in ("Performance", "Forecasts", "Trades", "Leak certificate", "Data quality", "Settings"):
        assert name in SECTIONS and repr(name) in shown("re.findall"), name
    assert shown('result["verdict"]["level"]').splitlines()[0] in [level.value for level in Level]
    assert "buy & hold" in shown('result["baseline_returns"]') and "LSTM" in shown('result["skill"]).T')
    assert sum(family in shown('result["importance"]') for family in FEATURES) >= 4
    assert "This is trial 1 on these bars" in shown("detectable")
    assert "No leak found" in shown('result["certificate"]')
    assert "SIMULATED MARKET" in shown('result["quality"]') and "(True, True)" in shown('result["quality"]')
    assert "'page': True" in shown("checked = verify") and "False" not in shown("checked = verify")
    assert "'page': False" in shown("improved") and "'bars': True" in shown("improved")


def test_the_notebook_to_explore_trains_and_shows_its_errors(run):
    shown = run(EXPLORE)
    assert shown.pictures() == 3
    ratio = float(shown("error / error of no move").rpartition("= ")[2])
    assert 0.9 < ratio < 1.5   # the demo market has nothing to forecast
    assert "'n': 479" in shown("skill_row(") and "val_loss_of_zero" in shown("walk_forward(bars")


def test_the_notebook_to_explore_has_typed_parameters_and_no_definitions():
    known = papermill.inspect_notebook(str(EXPLORE))
    assert {"ticker", "hours", "exchange", "network"} <= set(known)
    assert all(p["inferred_type_name"] != "None" for p in known.values())
    assert known["exchange"]["default"] == '"simulated"'   # works offline
    code = [c.source for c in nbformat.read(EXPLORE, as_version=4).cells if c.cell_type == "code"]
    assert not re.search(r"^(def|class) |lambda", "\n".join(code), re.M)
