"""Every setting is declared once: defaults, ranges and meanings elsewhere derive from the declaration."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import nbformat
import pytest

from cryptolstm.cli.settings import all_settings, settings_page
from cryptolstm.cli.terminal import build_run
from cryptolstm.core.config import (Display, Entry, Learning, Market, Orders, RunConfig, run_config,
                                    run_from_namespace)
from cryptolstm.core.settings import check_value, declared, parameter_line
from cryptolstm.execution.simulate import simulate
from cryptolstm.core.grid import AXES
from cryptolstm.model.settings import ModelConfig, model_config
from cryptolstm.report.render import report_parameters
from cryptolstm.research.forecasts import TRADING

ROOT = Path(__file__).resolve().parents[1]
RUN, NETWORK = declared(RunConfig), declared(ModelConfig)
ALL = [(declared_in, name) for declared_in in (RUN, NETWORK) for name in declared_in]


def test_the_page_of_settings_is_the_generated_one():
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == settings_page()


def parameters_cell(notebook: str) -> list[str]:
    "The lines of the parameters cell of a report notebook."
    nb = nbformat.read(ROOT / "nbs" / f"{notebook}.ipynb", as_version=4)
    (cell,) = [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]
    return cell.source.splitlines()


# parameters that are no settings of a run, or whose meaning or default is the notebook's
OTHER = {
    "backtest": {"placebo", "fresh"},
    "signal": {"hours", "retrain_threshold", "model", "last", "exchange"},
}


@pytest.mark.parametrize("notebook", OTHER)
def test_the_parameters_of_a_report_notebook_are_the_declared_ones(notebook):
    for line in parameters_cell(notebook):
        name = line.partition(":")[0]
        assert len(line) <= 110
        if name in OTHER[notebook]: continue
        assert line == parameter_line(RUN[name], "ETH/USD" if name == "ticker" else None)


def test_backtest_report_and_papermill_have_the_same_settings_by_default():
    "A parameter file states only what differs from the code, so an empty one changes nothing."
    cell = {}
    exec("\n".join(parameters_cell("backtest")), cell)
    same = {"ticker": "ETH/USD"}
    runs = {
        "backtest": build_run(None, None, same),
        "report": run_config(report_parameters("ETH/USD")),
        "papermill": run_from_namespace(cell, besides=tuple(OTHER["backtest"])),
        **{name: build_run(ROOT / "params" / f"{name}.yaml", None, same) for name in ("default", "eth_usd")},
    }
    assert {name for name, run in runs.items() if run != RunConfig(**same)} == set()
    assert {model_config(run) for run in runs.values()} == {ModelConfig()}


@pytest.mark.parametrize("declared_in, name", ALL, ids=[name for _, name in ALL])
def test_every_setting_has_a_meaning_and_its_default_is_a_value(declared_in, name):
    s = declared_in[name]
    assert s.meaning and not s.meaning.endswith(".") and "|" not in s.meaning
    assert check_value(s, s.default) == s.default
    assert s.low is None or s.low < s.high


def test_simulate_takes_the_settings_of_orders_with_the_two_documented_differences():
    known = inspect.signature(simulate).parameters
    orders = declared(Orders)
    assert set(orders) == set(known) - {"bars", "signal", "atr", "sigma"}
    differences = {
        n: (s.default, known[n].default) for n, s in orders.items() if s.default != known[n].default
    }
    assert differences == {"slippage": (0.0002, 0.0), "stop_atr": (2.0, None)}
    for text in (Orders.__doc__, simulate.__doc__): assert "slippage 0 and no stop" in " ".join(text.split())


def test_what_can_be_varied_in_a_sweep_leaves_the_forecasts_unchanged():
    assert set(AXES) == {name for name, s in RUN.items() if s.axis}
    assert set(AXES) - set(TRADING) == {"threshold_scale"}   # it changes the probability beyond the threshold


def test_the_parts_of_a_run_have_all_its_settings_and_each_only_once():
    names = [f.name for part in (Market, Learning, Entry, Orders) for f in fields(part)]
    assert names == list(RUN) and len(set(names)) == len(names)
    nested = {f"network.{n}" for n in NETWORK if n not in RUN}
    assert set(all_settings()) == {*names, *(f.name for f in fields(Display)), *nested}


def test_no_default_or_range_of_a_setting_stands_in_another_module():
    "Modules name settings, but state no table of their ranges."
    ranges = re.compile(r'^\s+"(\w+)": \(-?[\d.e+-]+, -?[\d.e*+-]+\),$', re.M)
    for path in (ROOT / "cryptolstm").rglob("*.py"):
        assert not {
            n for n in ranges.findall(path.read_text(encoding="utf-8")) if n in RUN or n in NETWORK
        }, path
