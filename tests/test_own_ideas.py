"""Features, forecasters, rules and decisions of the user run through backtest, page, verify, signal and paper
trading like those of the package; leaks and broken contracts are refused by name."""
import importlib.util
import json
import os
import py_compile
import re
import shutil
import sys
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import TINY
from loopback import Loopback

from cryptolstm import SignalGenerator
from cryptolstm.cli.main import main
from cryptolstm.cli.terminal import build_run
from cryptolstm.core.bars import regular_grid
from cryptolstm.core.config import RunConfig
from cryptolstm.core.errors import CryptolstmError, InputError, OperationError
from cryptolstm.core.files import config_hash
from cryptolstm.core.user_code import UserCodeError, load_code, source_hash
from cryptolstm.features.indicators import INPUTS, features
from cryptolstm.features.own_features import own_features
from cryptolstm.model.own_model import UserForecaster, load_user_model, save_user_model
from cryptolstm.model.registry import lines
from cryptolstm.model.settings import ModelConfig, model_config
from cryptolstm.proof.trials import Ledger
from cryptolstm.report.manifest import canonical_json, embed, sha256_of, split
from cryptolstm.report.render import run_report
from cryptolstm.research.backtest import run_backtest, summary
from cryptolstm.research.baselines import RULES_ALONE, without_forecaster, without_rules
from cryptolstm.research.forecasts import forecast_key
from cryptolstm.research.replay import run_line
from cryptolstm.research.walkforward import bars_needed, pooled_walk_forward
from cryptolstm.strategy.answer import signal_reason
from cryptolstm.strategy.decide import decide
from cryptolstm.strategy.threshold import model_exceedance

SHIPPED = Path(__file__).resolve().parents[1] / "docs" / "examples" / "ideas"
IDEAS = {
    "reversion": {"features": "reversion:make", "decide": "reversion:decide"},
    "linear": {"forecaster": "linear:build", "forecaster_args": {"components": 4}},
    "attention": {"forecaster": "attention:build", "forecaster_args": {"units": 4}},
}
MARK = "\n\nfrom pathlib import Path\n\nPath('imported').touch()\n"   # shows that a module was executed
SMALL = {
    "hours": 48, "train_hours": 250, "retrain_every": 48, "lookback": 12, "threshold_scale": 0,
    "network": TINY, "exchange": "coinbaseexchange",
}


def forget():
    "Forget the current folder and its modules, as a new process would."
    here = str(Path.cwd().resolve())
    sys.path[:] = [folder for folder in sys.path if not folder.startswith(here)]
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(here): del sys.modules[name]


@pytest.fixture(scope="module")
def market():
    "The exchange of the recorded candles."
    with Loopback() as exchange: yield exchange


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A working folder with the examples and an empty home."
    shutil.copytree(SHIPPED, tmp_path / "ideas")
    monkeypatch.chdir(tmp_path / "ideas")
    monkeypatch.setenv("CRYPTOLSTM_HOME", str(tmp_path / "home"))
    yield tmp_path
    forget()


@pytest.fixture(scope="module")
def bars(market):
    "Recorded candles, as many as a run needs."
    from loopback import candles_of

    table = candles_of("ETH/USD").iloc[-bars_needed(RunConfig(**SMALL)):]
    return regular_grid(table)


def settings(market, **more) -> dict:
    return {"ticker": "ETH/USD", "exchange_url": market.url, **SMALL, **more}


def typed(capsys, monkeypatch, *words) -> tuple[int, str, str]:
    "Exit code, output and messages of a command."
    monkeypatch.setattr(sys, "argv", ["cryptolstm", *words])
    capsys.readouterr()
    try: main()
    except SystemExit as end: code = end.code or 0
    else: code = 0
    return code, *capsys.readouterr()


def numbers(told: dict) -> dict:
    "What a run found, without where it was counted."
    told = json.loads(json.dumps(told, default=str))
    return {k: told[k] for k in ("total_return", "skill", "against", "baseline_returns", "funnel", "config")}


# -- the examples, from everywhere
# --------------------------------------------------------------------------------------------------

class Made:
    "An example, with the page that papermill made of it and what its notebook found."

    def __init__(self, name, folder, market):
        self.name, self.folder, self.settings = name, folder, settings(market, **IDEAS[name])
        self.home, self.report = folder / "home", None


@pytest.fixture(scope="module", params=IDEAS)
def made(request, market, tmp_path_factory):
    folder, before = tmp_path_factory.mktemp(request.param), Path.cwd()
    made = Made(request.param, folder, market)
    for file in SHIPPED.glob("*.py"): (folder / file.name).write_text(file.read_text() + MARK)
    old = os.environ["CRYPTOLSTM_HOME"]
    os.chdir(folder)
    os.environ["CRYPTOLSTM_HOME"] = str(made.home)
    try:
        given = {k: v for k, v in made.settings.items() if k != "ticker"}
        made.report = run_report("ETH/USD", overrides=given, out=folder / "reports", progress=False)
        yield made
    finally:
        forget()
        os.chdir(before)
        os.environ["CRYPTOLSTM_HOME"] = old


@pytest.mark.parametrize("name", IDEAS)
def test_an_example_is_a_file_of_at_most_40_lines(name):
    assert len((SHIPPED / f"{name}.py").read_text().splitlines()) <= 40


def test_a_file_of_yaml_papermill_and_python_give_the_same_numbers(made, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(made.folder)
    known = numbers(made.report.summary)
    Path("idea.yaml").write_text(yaml.safe_dump(made.settings))
    filed = build_run(Path("idea.yaml"), [], {})
    objects = {
        k: getattr(import_module(v.partition(":")[0]), v.partition(":")[2])
        for k, v in IDEAS[made.name].items() if isinstance(v, str)
    }
    assert callable(next(iter(objects.values())))
    coded = RunConfig(**made.settings | objects)
    assert filed == coded == RunConfig(**made.settings)
    for run, home in ((filed, made.home), (coded, tmp_path)):   # stored forecasts, and trained again
        told = summary(run_backtest(run, home, certify=False, ledger=Ledger(tmp_path)))
        assert numbers(told) == known


def test_a_page_and_the_ledger_say_which_code_in_which_files_was_tested(made):
    page, run = made.report.html.read_text(), RunConfig(**made.settings)
    names, files = [v for v in IDEAS[made.name].values() if isinstance(v, str)], source_hash(run.code)
    assert all(name in page for name in names) and files == run.source and files in page
    (entered,) = Ledger(made.home).trials_of("ETH/USD", market="coinbaseexchange").itertuples()
    config = json.loads(entered.config)
    assert {k: config[k] for k in IDEAS[made.name]} == IDEAS[made.name] and config["source"] == files
    told = made.report.summary
    assert told["certificate"]["passed"] and told["config"]["source"] == files


def test_the_network_of_this_package_is_a_row_and_a_baseline_beside_a_forecaster_of_the_user(made):
    told, name = made.report.summary, IDEAS[made.name].get("forecaster", "LSTM")
    assert list(told["skill"])[1] == name and "LSTM" in told["skill"]
    traded = {without_forecaster(name), without_rules(name)}
    if name != "LSTM": traded |= {"LSTM with the rules", "LSTM without the rules"}
    assert traded <= set(told["baseline_returns"])
    assert (RULES_ALONE in told["baseline_returns"]) == (name == "LSTM")
    page = made.report.html.read_text()
    assert ("favours the network" in page) == (name == "LSTM")


def test_the_funnel_of_a_page_ends_at_its_signals(made):
    stages = [row["bars left"] for row in made.report.summary["funnel"].values()]
    run = RunConfig(**made.settings)
    signals = run_backtest(run, made.home, certify=False, ledger=Ledger(made.home / "other"))["signals"]
    assert stages[-1] == (signals["signal"] != 0).sum()


def test_verify_runs_code_of_the_author_only_when_it_is_named(made, capsys, monkeypatch):
    page, names = str(made.report.html), RunConfig(**made.settings).code
    forget()
    Path("imported").unlink(missing_ok=True)
    code, text, _ = typed(capsys, monkeypatch, "verify", page)
    assert code == 3 and all(f"--code {name}" in " ".join(text.split()) for name in names)
    if len(names) > 1: assert typed(capsys, monkeypatch, "verify", page, "--code", names[0])[0] == 3
    assert typed(capsys, monkeypatch, "verify", page, "--quick")[0] == 0
    assert not Path("imported").exists()
    asked = [word for name in names for word in ("--code", name)]
    code, text, _ = typed(capsys, monkeypatch, "verify", page, *asked)
    assert code == 0, text
    assert Path("imported").exists()
    file = Path(f"{made.name}.py")
    before = file.read_text()
    file.write_text(before + "# changed\n")
    code, text, _ = typed(capsys, monkeypatch, "verify", page, *asked)
    file.write_text(before)
    assert code == 1 and "are not those the page was made with" in " ".join(text.split())


def test_a_page_that_names_a_command_of_the_machine_runs_nothing(made, capsys, monkeypatch):
    page, manifest = split(made.report.html.read_text(encoding="utf-8"))
    evil = {"forecaster": "os:system", "forecaster_args": {"command": f"touch {made.folder}/hit"}}
    body = {**manifest, "config": {**manifest["config"], **evil}}
    body = {k: v for k, v in body.items() if k != "sha256"}
    Path("evil.html").write_text(embed(page, {**body, "sha256": sha256_of(canonical_json(body))}))
    for words in ([], ["--quick"], ["--code", "linear:build"]):
        code, _, _ = typed(capsys, monkeypatch, "verify", "evil.html", *words)
        assert code == (0 if words == ["--quick"] else 3) or code == 3
    assert not Path("hit").exists()


def test_another_file_is_another_trial_with_other_forecasts(made, bars):
    run, file = RunConfig(**made.settings), Path(f"{made.name}.py")
    before = file.read_text()
    file.write_text(before + "# changed\n")
    other = RunConfig(**made.settings)
    file.write_text(before)
    assert config_hash(asdict(run)) != config_hash(asdict(other)) and run.source != other.source
    file.write_text(before + "# changed\n")
    changed = forecast_key(bars, other)
    told = rf"the files of .*{made.name}:\w+.* are not those of these settings"
    with pytest.raises(InputError, match=told): replace(run, hours=60)
    file.write_text(before)
    assert changed != forecast_key(bars, run)


def test_a_signal_is_trained_once_repeats_a_backtest_decision_and_not_after_the_file_changed(
    made, bars, tmp_path
):
    run, file = RunConfig(**made.settings), Path(f"{made.name}.py")
    generator = SignalGenerator(config=run, home=tmp_path)
    first = generator.decide_now(300)
    again = generator.decide_now(300)
    assert first.signal["model_info"]["decision"].startswith("trained")
    assert again.signal["model_info"]["decision"].startswith("reused")
    assert [first.signal[k] for k in ("signal", "predicted_price")] == [
        again.signal[k] for k in ("signal", "predicted_price")
    ]
    assert len(first.before()) == len(again.before()) == 0   # no bar is later than the training
    version, last, rows = first.history[0], first.bars.index[-1:], first.table
    forecast = version.model.predict(rows, first.bars, start=len(rows) - 1)
    exceed = model_exceedance(version.model, version.note, forecast, rows, first.bars, run)
    row = decide(forecast, rows, run, exceed=exceed).loc[last]
    assert row["signal"].iloc[0] == first.signal["signal"] and forecast.notna().all()
    if run.decide: assert run.decide in signal_reason(first.signal) and first.signal["rules"] == {}
    before, known = file.read_text(), set(lines(tmp_path / "models"))
    file.write_text(before + "# changed\n")
    try:
        with pytest.raises(InputError, match="are not those of these settings"): generator.decide_now(300)
        new = SignalGenerator(config=RunConfig(**made.settings), home=tmp_path).decide_now(300)
        assert new.signal["model_info"]["decision"].startswith("trained")
        assert len({*lines(tmp_path / "models")} - known) == 1
    finally: file.write_text(before)


def test_a_step_of_paper_trading_and_an_account_that_can_be_stopped_without_the_file(
    made, capsys, monkeypatch, tmp_path
):
    monkeypatch.setenv("CRYPTOLSTM_HOME", str(tmp_path))
    monkeypatch.setenv("CRYPTOLSTM_REPORTS", str(tmp_path / "reports"))
    Path("idea.yaml").write_text(yaml.safe_dump(made.settings))
    words = ("trade", "ETH/USD", "--once", "--guard", "deadline=50", "--params", "idea.yaml", "--json")
    code, text, messages = typed(capsys, monkeypatch, *words)
    assert code == 0, messages
    row = json.loads(text)
    asked = SignalGenerator(config=RunConfig(**made.settings), home=tmp_path).generate_signals(250, 48)
    assert row["signal"] == asked["signal"] and "error" not in row
    url = ("--exchange-url", made.settings["exchange_url"])
    code, text, messages = typed(capsys, monkeypatch, "trade", "parity", "--json", *url)
    assert code == 0 and json.loads(text)["parity"][0]["share"] == 1.0, messages
    file = Path(f"{made.name}.py")
    file.rename("gone.txt")
    try:
        for words in (("status",), ("stop", "--flatten"), ("history",)):
            code, _, messages = typed(capsys, monkeypatch, "trade", *words, "--json")
            assert code == 0, messages
        code, _, messages = typed(capsys, monkeypatch, "trade", "parity", "--json")
        assert code == 2 and f"there is no module {made.name}" in messages
    finally: Path("gone.txt").rename(file)


# -- leaks
# --------------------------------------------------------------------------------------------------

TOMORROW = "def make(bars): return bars['close'].pct_change().shift(-1).fillna(0.0).rename('tomorrow')\n"
WHOLE = """
def make(bars):
    close = bars["close"].ffill().bfill()
    return ((close - close.mean()) / close.std()).rename("whole")
"""
LEAKS = {
    "a regressor that standardises the rows it predicts": ("""
from sklearn.linear_model import Ridge
class Scaled(Ridge):
    def predict(self, X): return super().predict((X - X.mean()) / (X.std() + 1e-6))
""", {"forecaster": "leaky:Scaled"}, "leaky:Scaled uses the future"),
    "a network that normalises over its batch": ("""
import keras
class Always(keras.layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None): return super().call(inputs, training=True)
def build(lookback, columns):
    inputs = keras.Input((lookback, columns))
    x = Always()(keras.layers.Dense(4)(keras.layers.Flatten()(inputs)))
    return keras.Model(inputs, keras.layers.Dense(1)(x))
""", {"forecaster": "leaky:build"}, "leaky:build uses the future"),
    "a decision that knows the mean of all forecasts": ("""
def decide(forecasts, features):
    p = forecasts["prediction"]
    return (p > p.mean()).astype(int)
""", {"forecaster": "linear:build", "decide": "leaky:decide"}, "leaky:decide uses the future"),
    "a rule that knows the quantile of all bars": ("""
from cryptolstm.strategy.rules import Rule
RULES = {"calm": Rule("sigma / its quantile", lambda t: t["sigma"] / t["sigma"].quantile(0.5), ("<", "<"), 1,
                      lambda bound: bound)}
""", {"forecaster": "linear:build", "rules": "leaky:RULES"}, "the rule calm of leaky:RULES uses the future"),
}


@pytest.mark.parametrize("source,column", [(TOMORROW, "tomorrow"), (WHOLE, "whole")])
def test_a_feature_that_uses_the_future_is_refused_by_name_before_anything_is_trained(
    source, column, here, market
):
    Path("leaky.py").write_text(source)
    run = RunConfig(**settings(market, features="leaky:make"))
    told = rf"leaky:make uses the future: column {column}.*; nothing was trained"
    with pytest.raises(OperationError, match=told): run_backtest(run, here / "home")
    with pytest.raises(OperationError, match=told):
        SignalGenerator(config=run, home=here / "home").generate_signals(300)
    assert not (here / "home" / "forecasts").exists() and not lines(here / "home" / "models")
    assert len(Ledger(here / "home").trials_of("ETH/USD", market="coinbaseexchange")) == 0


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_is_refused_by_name(leak, here, market, bars):
    source, given, told = LEAKS[leak]
    Path("leaky.py").write_text(source)
    with pytest.raises(UserCodeError, match=re.escape(told)):
        run_line(bars, RunConfig(**settings(market, **given)))


# -- contracts
# --------------------------------------------------------------------------------------------------

FEATURES = {
    "return bars.iloc[5:]['close'].rename('x')": "rows that are not those of the",
    "return bars['close'].rename('x').shift(1, freq='h')": "rows that are not those of the",
    "return bars['close'].mul(float('nan')).rename('x')": "x is missing on 100% of the bars",
    "return (bars['close'] / 0).rename('x')": "x is infinite at",
    "return bars['close'].astype(str).rename('x')": "return numbers",
    "return bars['close'].rename('rsi')": "rsi is a column of this package; rename it",
    "return 3": "returned int; return a DataFrame",
    "raise KeyError('volumes')": r"raised KeyError \('volumes'\) in line 2 of broken.py",
}


@pytest.mark.parametrize("line", FEATURES)
def test_a_feature_function_that_breaks_its_contract_is_one_sentence_with_its_name(line, here, bars):
    Path("broken.py").write_text(f"def make(bars):\n    {line}\n")
    with pytest.raises(UserCodeError, match=rf"^broken:make.*{FEATURES[line]}") as error:
        own_features(bars, "broken:make")
    assert "\n" not in str(error.value)


REGRESSOR = "class Model:\n    def fit(self, X, y): return self\n    def predict(self, X): return {}\n"
FORECASTERS = {
    REGRESSOR.format("X.to_numpy()"): "broken:Model predicted an array of shape",
    REGRESSOR.format("[float('nan')] * len(X)"): "broken:Model predicted a number that is not finite",
    REGRESSOR.format("[0.0]"): "broken:Model predicted an array of shape (1,)",
    REGRESSOR.format("X['none']"): "broken:Model raised KeyError ('none') in line 3 of broken.py",
    REGRESSOR.format("0").replace("return self", "raise ValueError('too hot')"):
        "broken:Model raised ValueError (too hot) in line 2 of broken.py",
    "class Model: pass\n": "return an object with fit and predict",
    "def Model(): return 1 / 0\n": "broken:Model raised ZeroDivisionError",
    "Other = 1\n": "broken has no Model",
    "def Model(:\n": "broken raised SyntaxError",
    "": "broken has no Model",
    REGRESSOR.format("3").replace("X, y", "table, bars").replace("X", "table, bars, start=0"):
        "broken:Model: predict must return a Series with one forecast for each row from start on",
}


@pytest.mark.parametrize("source", FORECASTERS)
def test_a_forecaster_that_breaks_its_contract_is_one_sentence_with_its_name(source, here, market, bars):
    Path("broken.py").write_text(source)
    with pytest.raises(InputError, match=re.escape(FORECASTERS[source])) as error:
        run_line(bars, RunConfig(**settings(market, forecaster="broken:Model")))
    assert "\n" not in str(error.value)


def test_unknown_modules_arguments_and_signals_are_one_sentence(here, market, bars):
    with pytest.raises(InputError, match="^there is no module nowhere here"):
        RunConfig(**settings(market, forecaster="nowhere:Model"))
    run = RunConfig(**settings(market, forecaster="linear:build", forecaster_args={"alfa": 1}))
    with pytest.raises(InputError, match="unknown argument of linear:build.*alfa.*did you mean alpha"):
        run_line(bars, run)
    Path("broken.py").write_text("def decide(forecasts, features): return forecasts['direction'] * 0 + 2\n")
    with pytest.raises(UserCodeError, match="^broken:decide returned 2; return -1, 0 or 1"):
        run_line(bars, RunConfig(**settings(market, forecaster="linear:build", decide="broken:decide")))
    Path("broken.py").write_text("RULES = {'a': 3}\n")
    with pytest.raises(UserCodeError, match="^broken:RULES is no table of rules"):
        run_line(bars, RunConfig(**settings(market, rules="broken:RULES")))


@pytest.mark.parametrize("source,given,line", [
    ("def make(bars):\n    raise KeyError('volumes')\n", {"features": "broken:make"}, "line 2, in make"),
    ("def make(:\n", {"features": "broken:make"}, "SyntaxError"),
    (REGRESSOR.format("1 / 0"), {"forecaster": "broken:Model"}, "line 3, in predict"),
])
def test_a_command_prints_a_sentence_then_the_traceback_of_the_users_file_and_ends_with_2(
    source, given, line, here, market, capsys, monkeypatch
):
    Path("broken.py").write_text(source)
    Path("idea.yaml").write_text(yaml.safe_dump(settings(market, **given)))
    for command in (["backtest", "ETH/USD"], ["signal", "ETH/USD", "--hours", "300"]):
        code, text, messages = typed(capsys, monkeypatch, *command, "--params", "idea.yaml")
        told = [row for row in messages.splitlines() if row.startswith("error: ")]
        assert code == 2 and len(told) == 1 and "broken" in told[0] and text == ""
        assert line in messages.partition(told[0])[2] and "site-packages" not in messages


def test_a_report_prints_the_traceback_of_the_users_file_too(here, market, capsys, monkeypatch):
    Path("broken.py").write_text("def make(bars):\n    raise KeyError('volumes')\n")
    Path("idea.yaml").write_text(yaml.safe_dump(settings(market, features="broken:make")))
    code, _, messages = typed(capsys, monkeypatch, "report", "ETH/USD", "--params", "idea.yaml")
    assert code == 2 and "broken:make raised KeyError" in messages and "line 2, in make" in messages


# -- the other parts
# --------------------------------------------------------------------------------------------------

FADE = """
class Fitted:
    def __init__(self, share): self.share, self.odd = share, lambda: None   # cannot be pickled
    def predict(self, table, bars, start=0):
        return (-self.share * table["log_return_z"]).iloc[start:]

class Fade:
    def __init__(self, share=0.5): self.share = share
    def fit(self, table, bars): return Fitted(self.share)
"""


def test_a_full_forecaster_runs_through_backtest_and_signal(here, market, bars):
    Path("fade.py").write_text(FADE)
    given = {"forecaster": "fade:Fade", "forecaster_args": {"share": 0.25}}
    run = RunConfig(**settings(market, **given))
    result = run_backtest(run, here / "home")
    assert result["certificate"].passed and "LSTM" in result["skill"].index
    forecast, table = result["predictions"]["prediction"], result["features"]
    assert np.allclose(forecast, -0.25 * table["log_return_z"], atol=1e-6)
    first, again = (
        SignalGenerator(config=run, home=here / "home").generate_signals(300) for _ in range(2)
    )
    assert first["predicted_price"] == again["predicted_price"] != first["current_price"]
    assert again["model_info"]["decision"].startswith("reused")


def test_columns_of_the_user_alone_are_the_inputs_with_instead_and_beside_ours_with_add(here, market, bars):
    own = [f"distance_{n}" for n in (24, 72, 168)]
    for mode, columns in (("instead", own), ("add", [*INPUTS, *own])):
        given = {"features": "reversion:make", "features_mode": mode, "forecaster": "linear:build"}
        walk = run_line(bars, RunConfig(**settings(market, **given, forecaster_args={"components": 2}))).walk
        assert list(walk.last.scaler.columns) == columns and walk.predictions["prediction"].notna().any()


def test_a_pool_a_fan_and_a_network_of_the_user_work_with_columns_of_the_user(here, market, bars):
    from loopback import candles_of

    other = regular_grid(candles_of("BTC/USD").loc[bars.index[0]: bars.index[-1]])
    pool = {"features": "reversion:make", "pool": ["BTC/USD", "ETH/USD"]}
    network = {"forecaster": "attention:build", "forecaster_args": {"units": 4}}
    for given in (network, {"forecaster": "linear:build", "network": {**TINY, "seeds": [0, 1]}}):
        run = RunConfig(**settings(market, **pool, **given))
        walks = pooled_walk_forward({"BTC/USD": other, "ETH/USD": bars}, run)
        assert all(w.predictions["prediction"].notna().all() for w in walks.values())
        assert "distance_24" in walks["ETH/USD"].last.scaler.columns
        assert "own" in walks["ETH/USD"].importance


def test_settings_without_code_name_no_files_and_keep_the_hash_of_their_model(market):
    run = RunConfig(**settings(market))
    config = model_config(run)
    assert run.source is None and run.code == [] and config.source is None and config.forecaster is None


def test_features_of_the_user_do_not_change_those_of_the_package(here, bars):
    from cryptolstm.features.own_features import feature_table

    table = feature_table(bars, RunConfig(features="reversion:make"))
    pd.testing.assert_frame_equal(table[list(features(bars))], features(bars), check_exact=True)


def test_errors_of_the_package_inside_code_of_the_user_keep_their_kind(here, bars):
    Path("picky.py").write_text(
        "from cryptolstm.core.errors import OperationError\ndef make(bars): raise OperationError('no')\n"
    )
    with pytest.raises(CryptolstmError) as error: own_features(bars, "picky:make")
    assert type(error.value) is OperationError


# -- models and compilations that were put there by others
# --------------------------------------------------------------------------------------------------

def test_a_named_model_whose_network_changed_is_refused_and_stays_whole(here, market):
    run = RunConfig(**settings(market, **IDEAS["attention"], end="2025-04-01T00:00Z"))
    SignalGenerator(model="mine", config=run).generate_signals(hours=100)
    file = Path("attention.py")
    file.write_text(file.read_text().replace("x + seen", "x - seen"))
    with pytest.raises(InputError, match="the files of attention:build are not those of these settings"):
        SignalGenerator(model="mine", config=replace(run, source=None)).generate_signals(hours=100)
    assert not list((here / "home" / "models").rglob("*.damaged"))
    shutil.copy(SHIPPED / "attention.py", file)
    again = SignalGenerator(model="mine", config=run).generate_signals(hours=100)
    assert again["model_info"]["decision"].startswith("reused")


@pytest.mark.parametrize("source", ["", "0" * 16])
def test_a_stored_model_that_names_a_command_of_the_machine_runs_nothing(source, here, bars):
    ridge = "sklearn.linear_model:Ridge"
    config = ModelConfig(lookback=12, forecaster=ridge, source=source_hash([ridge]))
    folder = save_user_model(UserForecaster(config).fit(features(bars), bars), here / "version")
    table = json.loads((folder / "bundle.json").read_text())
    hashes = table.pop("hashes")
    told = {"forecaster": "subprocess:run", "forecaster_args": json.dumps({"args": ["touch", "run"]})}
    table["config"] |= told | {"source": source or source_hash(["subprocess:run"])}
    text = json.dumps(table | {"hashes": hashes | {"bundle.json": config_hash(table)}})
    (folder / "bundle.json").write_text(text)
    with pytest.raises(CryptolstmError, match="is no estimator|are not those"): load_user_model(folder)
    assert not Path("run").exists()


def test_a_compilation_beside_the_file_is_not_what_runs(here):
    Path("idea.py").write_text("def make(bars): return 'other'\n")
    cache = importlib.util.cache_from_source("idea.py")
    py_compile.compile("idea.py", cache, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    Path("idea.py").write_text("def make(bars): return 'read'\n")
    assert load_code("idea:make")(None) == "read"
