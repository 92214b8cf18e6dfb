"""Every setting is declared once: defaults, ranges and meanings elsewhere derive from the declaration."""

import inspect
import os
import re
import shutil
import subprocess
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

from cryptolstm.cli.settings import all_settings, settings_page
from cryptolstm.cli.terminal import build_run
from cryptolstm.core.errors import InputError
from cryptolstm.core.config import (Display, Entry, Learning, Market, Orders, RunConfig, run_config,
                                    run_from_namespace)
from cryptolstm.core.settings import check_value, declared, parameter_line
from cryptolstm.execution.simulate import SERIES, simulate
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
    assert set(orders) == set(known) - set(SERIES)
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


# ---------------------------------------------------------------- hostile parameters
BOMB = "a: &a [x, x]\n" + "\n".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefghi")
)
REFUSED = {
    "an alias bomb": (BOMB, "line 2: the alias *a"),
    "an alias in a field": ("network: &n {epochs: 3}\nrules: *n\n", "line 2: the alias *n"),
    "deep lists": ("rules:\n  " + "[" * 5000 + "]" * 5000, "line 2: more than 8 levels"),
    "deep tables": ("rules: " + "{a: " * 5000 + "1" + "}" * 5000 + "\n", "line 1: more than 8 levels"),
    "an octal number": ("ticker: BTC/USD\nhours: 0720\n", "line 2: 0720 is an octal"),
    "a sexagesimal number": ("fee: 0.001\nhours: 12:00\n", "line 2: 12:00 is an octal or sexagesimal"),
    "a key twice": ("hours: 720\nfee: 0\nhours: 48\n", "line 3: hours stands twice"),
    "a nested key twice": ("network:\n  epochs: 1\n  epochs: 2\n", "line 3: epochs stands twice"),
    "a merged table": ("network:\n  <<: {epochs: 1}\n", "line 2: the key <<"),
    "an object": ("hours: 720\nticker: !!python/name:os.system\n", "line 2: could not determine"),
    "a table as key": ("? {a: 1}\n: 2\n", "line 1: a key that is no word"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_parameter_file_is_refused_with_file_and_line(name, tmp_path):
    text, message = REFUSED[name]
    (file := tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError) as refused: build_run(file, None, {})
    assert str(refused.value).startswith(f"{file}: {message}"), refused.value
    assert len(str(refused.value)) < len(str(file)) + 300


LONG = "x" * 100_000
HUGE = {"text": LONG, "list": [LONG] * 100, "table": {"a": LONG}, "number": int("9" * 4000)}


@pytest.mark.parametrize("name", [*RUN, *(f"network.{name}" for name in NETWORK if name not in RUN)])
@pytest.mark.parametrize("value", HUGE.values(), ids=HUGE)
def test_a_message_repeats_at_most_200_characters_of_a_value(name, value):
    outer, dot, inner = name.partition(".")
    try: run = run_config({outer: {inner: value} if dot else value})
    except InputError as e: assert len(str(e)) < 1000, str(e)[:2000]
    else:
        with pytest.raises(InputError) as refused:
            model_config(run)
            raise InputError(f"{name} takes it")
        assert len(str(refused.value)) < 1000


def test_a_message_repeats_at_most_200_characters_of_a_command_line():
    for argument in (LONG, f"{LONG}=1", f"hours={LONG}", f"network.{LONG}=1", f"{LONG}.a=1", f"rules={LONG}",
                     f"network={{{LONG}: 1}}", f"end={LONG}"):
        with pytest.raises(InputError) as refused: build_run(None, [argument], {})
        assert len(str(refused.value)) < 1500, argument[:50]


def test_make_report_passes_any_text_to_the_program(tmp_path):
    "A stand-in for the program prints what it gets; the recipe is the real one."
    program = tmp_path / ".venv/bin/cryptolstm"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\nfor x; do echo \"<$x>\"; done\n")
    program.chmod(0o755)
    (tmp_path / ".venv/.runtime").touch()
    for name in ("Makefile", "settings.ini", "setup.py", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, tmp_path)
        os.utime(tmp_path / name, (0, 0))
    (program.parent / "python").touch()
    os.utime(program.parent / "python", (0, 0))
    hostile = ["x'; touch pwned; '", "$(shell touch pwned)", "`touch pwned`", '"; touch pwned; "']
    for text in (*hostile, "--help", "a b", "#x", "$$HOME"):
        ticker, params = ["<-->", f"<{text}>"], ["<--params>", f"<{text}>", "<-->", "<ETH/USD>"]
        for given, more, words in (
            ([f"TICKER={text}"], {}, ticker),
            ([], {"TICKER": text}, ticker),
            ([f"PARAMS={text}"], {}, params),
        ):
            env = {**os.environ, "MAKEFLAGS": "", **more}
            command = ["make", "-s", "report", *given]
            done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
            assert done.stdout.splitlines() == ["<report>", *words], (text, done.stderr)
    assert not (tmp_path / "pwned").exists()
