"""The network for volatility has the interface of a forecaster, does not see the future, and can be repeated;
a stored model forecasts without TensorFlow what Keras forecasts."""
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cryptolstm.cli.main import app
from cryptolstm.core.bars import stamp
from cryptolstm.core.errors import InputError, OperationError, TooFewRows, TrainingSpanError
from cryptolstm.data.demo import demo_market
from cryptolstm.features.panel import panel
from cryptolstm.features.variance import log_realised_variance, seasonal_profile, variance_table
from cryptolstm.model.record import read_table, write_table
from cryptolstm.model.registry import (current_version, read_version, rollback, usable_version,
                                       version_folders)
from cryptolstm.model.volatility import PooledRidge
from cryptolstm.model.volatility_network import (FittedBlend, VolatilityLSTM, VolatilityNetwork, WindowData,
                                                 channels, relative_features, ridge_and_lstm,
                                                 train_member)
from cryptolstm.model.volatility_store import (current_volatility_model, load_volatility, store_volatility,
                                               train_volatility)
from cryptolstm.strategy.upkeep import stored_model

SMALL = VolatilityNetwork(units=4, batch=64, epochs=2)
LAST, HOURS = 1800, 2000   # training hours, and all
TICKERS = ("BTC/USD", "ETH/USD", "SOL/USD")


def until(bars, hours):
    return {t: b.iloc[:hours] for t, b in bars.items()}


@pytest.fixture(scope="module")
def universe():
    return {t: demo_market(HOURS, seed=k, ticker=t) for k, t in enumerate(TICKERS)}


@pytest.fixture(scope="module")
def fitted(universe):
    return VolatilityLSTM(24, (1, 2), SMALL).fit(None, until(universe, LAST))


@pytest.fixture(scope="module")
def blend(universe, fitted):
    return FittedBlend((PooledRidge(24).fit(None, until(universe, LAST)), fitted))


# -- interface

def test_forecasts_have_the_hours_and_tickers_of_the_bars(universe, fitted):
    forecasts = fitted.predict(None, universe, start=LAST)
    assert list(forecasts.columns) == list(TICKERS) and len(forecasts) == HOURS - LAST
    assert np.isfinite(forecasts).all().all()
    daily = np.exp(forecasts / 2)
    assert (daily > 0.005).all().all() and (daily < 0.2).all().all()   # of 2% to 3%


def test_a_panel_and_a_table_computed_before_give_the_same_forecasts(universe, fitted):
    p = panel(universe)
    table = variance_table(p, 24, seasonal_profile(p.rows(slice(0, LAST))))
    expected = fitted.predict(None, universe, start=LAST)
    assert fitted.predict(table, p, start=LAST).equals(expected)
    again = VolatilityLSTM(24, (1, 2), SMALL).fit(table.rows(slice(0, LAST)), p.rows(slice(0, LAST)))
    assert again.predict(None, universe, start=LAST).equals(expected)


def test_the_bars_of_one_ticker_give_a_series():
    bars = demo_market(2200, seed=3)
    fitted = VolatilityLSTM(6, (1,), SMALL).fit(None, bars.iloc[:2100])
    forecast = fitted.predict(None, bars, start=2100)
    assert forecast.index.equals(bars.index[2100:]) and np.isfinite(forecast).all()


def test_bars_of_the_training_span_are_not_forecast(universe, fitted, blend):
    for model in (fitted, blend):
        assert model.span.outcome == universe["BTC/USD"].index[LAST - 1]
        with pytest.raises(TrainingSpanError): model.predict(None, universe, start=LAST - 1)


def test_hours_without_features_have_no_forecast():
    bars = {t: demo_market(HOURS, seed=k, ticker=t) for k, t in enumerate(TICKERS)}
    fitted = VolatilityLSTM(24, (1,), replace(SMALL, epochs=0)).fit(None, until(bars, 1500))
    late = {**bars, "SOL/USD": bars["SOL/USD"].iloc[1000:]}   # 720 hours later it has features
    forecasts = fitted.predict(None, late, start=1500)
    assert forecasts["SOL/USD"].iloc[:220].isna().all() and forecasts["SOL/USD"].iloc[221:].notna().all()
    assert forecasts["BTC/USD"].notna().all()


def test_too_few_rows_and_unknown_tickers_are_refused(universe, fitted):
    with pytest.raises(TooFewRows, match="too few for a volatility network"):
        VolatilityLSTM(24, (1,), SMALL).fit(None, until(universe, 800))
    with pytest.raises(InputError, match="not on ADA/USD"):
        fitted.predict(None, {"ADA/USD": universe["BTC/USD"]}, start=LAST)
    p = panel(universe)
    narrow = variance_table(p, 24, fitted.season).only(["ETH/USD"])
    with pytest.raises(InputError, match="all of them for its market"):
        fitted.predict(narrow, p.only(["ETH/USD"]), start=LAST)


# -- causality and repeatability

def test_forecasts_do_not_change_when_later_bars_are_missing_or_different(universe, blend):
    whole = blend.predict(None, universe, start=LAST)
    short = blend.predict(None, until(universe, LAST + 50), start=LAST)
    assert short.equals(whole.iloc[:50])
    wild = {t: b.copy() for t, b in universe.items()}
    for b in wild.values():
        b.iloc[LAST + 50:, :4] *= np.linspace(1.2, 3, HOURS - LAST - 50)[:, None]
        b.iloc[LAST + 50:, 4] *= 9
    altered = blend.predict(None, wild, start=LAST)
    assert altered.iloc[:50].equals(whole.iloc[:50])
    assert not altered.iloc[51].equals(whole.iloc[51])


def test_a_training_does_not_see_bars_after_its_own(universe, fitted):
    other = {t: b.copy() for t, b in universe.items()}
    for b in other.values(): b.iloc[LAST:, :4] *= 2
    p = panel(other)
    again = VolatilityLSTM(24, (1, 2), SMALL).fit(None, p.rows(slice(0, LAST)))
    assert again.levels == fitted.levels
    for a, b in zip(again.members, fitted.members, strict=True):
        assert all((x == y).all() for x, y in zip(a.weights, b.weights, strict=True))


def test_a_forecast_does_not_depend_on_how_many_are_requested(universe, fitted):
    whole = fitted.predict(None, universe, start=LAST)
    assert fitted.predict(None, universe, start=HOURS - 1).equals(whole.iloc[-1:])


def test_a_training_repeats_bit_for_bit_in_another_process(universe, fitted):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_volatility_network as t;"
        " bars = {k: t.demo_market(t.HOURS, seed=n, ticker=k) for n, k in enumerate(t.TICKERS)};"
        " model = t.VolatilityLSTM(24, (2,), t.SMALL).fit(None, t.until(bars, t.LAST));"
        " print(*[float(w).hex() for a in model.members[0].weights for w in a.ravel()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200
    )
    assert done.stdout.split() == [float(w).hex() for a in fitted.members[1].weights for w in a.ravel()]


def test_seeds_differ_and_their_forecast_is_their_mean(universe, fitted):
    alone = [
        VolatilityLSTM(24, (s,), SMALL).fit(None, until(universe, LAST)).predict(None, universe, start=LAST)
        for s in (1, 2)
    ]
    assert np.abs(alone[0] - alone[1]).max().max() > 1e-3
    mean = (alone[0] + alone[1]) / 2
    np.testing.assert_allclose(fitted.predict(None, universe, start=LAST), mean, atol=1e-12)


def test_a_diverged_training_is_reported_and_leaves_the_next_one_as_it_was(universe, fitted):
    p = panel(until(universe, LAST))
    table = variance_table(p, 24, fitted.season)
    side = fitted.scaling.apply(relative_features(table, fitted.columns))
    outcomes = log_realised_variance(p, 24)
    learn = np.isfinite(outcomes) & np.isfinite(table.columns["g720"])
    data = WindowData(channels(table, p, SMALL.width), side, *np.nonzero(learn))
    target = (outcomes - table.columns["g168"] - np.log(24))[learn].astype("float32")
    for wrong in (np.nan, np.inf):
        with pytest.raises(OperationError, match="diverged in step 1; lower learning_rate"):
            train_member(data, np.full_like(target, wrong), SMALL, seed=1)
    trained = train_member(data, target, SMALL, seed=1)
    assert all((a == b).all() for a, b in zip(trained.weights, fitted.members[0].weights, strict=True))


# -- the level

def test_an_untrained_network_forecasts_the_level_of_the_last_week(universe):
    settings = VolatilityLSTM(24, (1,), replace(SMALL, epochs=0))
    fitted = settings.fit(None, until(universe, LAST))
    table = variance_table(panel(universe), 24, fitted.season)
    expected = table.columns["g168"][LAST:] + np.log(24) + fitted.levels[0]
    np.testing.assert_allclose(fitted.predict(None, universe, start=LAST), expected, rtol=0, atol=1e-12)


def test_forecasts_have_the_level_of_the_outcomes_in_the_training_rows(universe, fitted):
    # with a span that ends before them, the training bars themselves are forecast
    before = replace(fitted.span, outcome=universe["BTC/USD"].index[0])
    inside = replace(fitted, span=before).predict(None, until(universe, LAST), start=1)
    outcomes = log_realised_variance(panel(until(universe, LAST)), 24)[1:]
    ratio = np.nanmean(np.exp(outcomes - inside.to_numpy()))
    assert abs(ratio - 1) < 0.01


def test_the_blend_is_the_mean_of_the_logs(universe, blend):
    ridge, lstm = (m.predict(None, universe, start=LAST) for m in blend.members)
    assert blend.predict(None, universe, start=LAST).equals((ridge + lstm) / 2)
    once = ridge_and_lstm(24, (1, 2), SMALL).fit(None, until(universe, LAST))
    assert once.predict(None, universe, start=LAST).equals((ridge + lstm) / 2)


# -- start-up

def test_the_module_does_not_load_tensorflow():
    code = (
        "import sys, cryptolstm.model.volatility_network\n"
        "assert not {'tensorflow', 'keras', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# -- storage

@pytest.fixture(scope="module")
def model(universe):
    return train_volatility(until(universe, LAST + 1), 24, VolatilityLSTM(24, (1, 2), SMALL))


@pytest.fixture
def line(model, tmp_path):
    "A models folder with two versions of one line; the second is in use."
    return tmp_path, [store_volatility(model, "calm", tmp_path).folder for _ in range(2)]


def test_a_stored_model_forecasts_what_keras_forecasts(universe, model, line):
    root, (_, second) = line
    version, repairs = usable_version("calm", load_volatility, root)
    assert version.folder == second and repairs == []
    stored = version.model
    for name in ("tickers", "horizon", "span", "market", "hours", "data_hash", "code", "trained_at"):
        assert getattr(stored, name) == getattr(model, name)
    assert stored.difference < 1e-6
    forecasts = stored.predict(None, universe, start=LAST)
    np.testing.assert_allclose(forecasts, model.predict(None, universe, start=LAST), rtol=0, atol=2e-6)
    with pytest.raises(TrainingSpanError): stored.predict(None, universe, start=LAST - 1)


def test_a_stored_model_forecasts_without_tensorflow(universe, model, line):
    root, (_, second) = line
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from cryptolstm.data.demo import demo_market\n"
        "from cryptolstm.model.volatility_store import load_volatility\n"
        f"bars = {{k: demo_market({HOURS}, seed=n, ticker=k) for n, k in enumerate({TICKERS!r})}}\n"
        f"print(*load_volatility({str(second)!r}).predict(None, bars, start={HOURS - 1}).iloc[0])\n"
        "assert not {'tensorflow', 'keras', 'torch', 'onnx'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    expected = model.predict(None, universe, start=HOURS - 1).iloc[0]
    np.testing.assert_allclose([float(x) for x in done.stdout.split()], expected, rtol=0, atol=2e-6)


def test_a_ridge_is_stored_without_networks(universe, tmp_path):
    alone = train_volatility(until(universe, LAST + 1), 24, None)
    version = store_volatility(alone, "ridge", tmp_path)
    assert sorted(p.name for p in version.folder.iterdir()) == ["bundle.json", "used.json", "version.json"]
    assert current_version("ridge", tmp_path) == version.folder
    assert version.model.predict(None, universe, start=LAST).equals(alone.predict(None, universe, start=LAST))


def test_a_network_that_onnx_does_not_reproduce_is_not_stored(model, tmp_path):
    wild = [np.full_like(w, np.nan) for w in model.lstm.members[0].weights]
    broken = replace(model.lstm.members[0], weights=wild)
    wrong = replace(model, lstm=replace(model.lstm, members=(model.lstm.members[0], broken)))
    with pytest.raises(OperationError, match="differs from Keras by nan"):
        store_volatility(wrong, "calm", tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [] and version_folders("calm", tmp_path) == []


@pytest.mark.parametrize("file", ["model.onnx", "model_2.onnx", "bundle.json", "version.json"])
@pytest.mark.parametrize("how", ["other", "missing", "short"])
def test_a_damaged_file_is_reported_in_one_sentence_and_the_version_before_serves(line, file, how):
    root, (first, second) = line
    path = second / file
    content = path.read_bytes()
    if how == "missing": path.unlink()
    else: path.write_bytes(content[:-20] if how == "short" else content.replace(b"0", b"1", 1))
    with pytest.raises(OperationError) as error: read_version(second, load_volatility)
    assert "\n" not in str(error.value) and str(second) in str(error.value)
    version, repairs = usable_version("calm", load_volatility, root)
    assert version.folder == first and "is damaged and was set aside" in repairs[0]


@pytest.mark.parametrize("change", [
    {"lstm": {"levels": [0.1]}},
    {"lstm": {"settings": {"horizon": 24, "seeds": [1, 2], "network": {"units": 4, "steps": 12}}}},
    {"lstm": {"settings": {"horizon": 24, "seeds": [1, 2], "network": {"spin": 1}}}},
    {"training": {"members": 7}},
    {"ridge": None},
])
def test_a_record_that_does_not_fit_its_networks_is_refused(line, change):
    folder = line[1][1]
    table, _ = read_table(folder, "volatility")
    for k, v in change.items(): table[k] = {**table[k], **v} if isinstance(v, dict) else v
    write_table(table, folder)
    with pytest.raises(OperationError, match="cannot be read"): load_volatility(folder)


def test_versions_are_listed_rolled_back_and_pruned_by_the_usual_commands(line, monkeypatch):
    root, (first, second) = line
    (root / "home").mkdir()
    (root / "home" / "models").symlink_to(root)
    monkeypatch.setenv("CRYPTOLSTM_HOME", str(root / "home"))
    def answer(*words):
        done = CliRunner().invoke(app, ["models", *words, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)
    listed = answer("list", "--model", "calm")
    assert listed["ticker"] == ", ".join(TICKERS)
    assert [(v["version"], v["state"]) for v in listed["versions"]] == [
        (first.name, "kept"), (second.name, "in use")
    ]
    assert answer("list")["lines"][0]["current"] == second.name
    assert answer("rollback", "--model", "calm")["now"] == first.name
    assert usable_version("calm", load_volatility, root)[0].folder == first
    assert (root / "calm.json").resolve() == first / "bundle.json"
    assert answer("rollback", second.name, "--model", "calm")["now"] == second.name
    assert answer("prune", "--keep", "1", "--model", "calm")["removed"] == [first.name]
    assert version_folders("calm", root) == [second]


def test_a_damaged_version_is_not_rolled_back_to(line):
    root, (first, second) = line
    (first / "model.onnx").write_bytes(b"x")
    with pytest.raises(OperationError, match=f"version {first.name} of calm is damaged"):
        rollback("calm", first.name, root)
    assert current_version("calm", root) == second


def test_a_model_of_another_kind_is_no_damage(line, tmp_path):
    root, (_, second) = line
    with pytest.raises(OperationError, match="forecasts volatility, not returns; pass the name of another"):
        usable_version("calm", stored_model, root)
    assert second.is_dir()
    table, _ = read_table(second, "volatility")
    del table["kind"]
    write_table(table, second)
    with pytest.raises(OperationError, match="forecasts returns, not volatility"):
        usable_version("calm", load_volatility, root)
    assert second.is_dir() and current_version("calm", root) == second


# -- the current model

def current(universe, hours, home, **more):
    settings = {"network": SMALL, "seeds": (1,), "home": home, **more}
    return current_volatility_model(until(universe, hours), 24, **settings)


def test_a_model_is_reused_until_it_is_too_old(universe, tmp_path):
    first = current(universe, LAST, tmp_path)
    assert first.trained and first.reason == "there was no model yet"
    assert np.isfinite(first.model.predict(None, until(universe, LAST), start=LAST - 1)).all().all()
    second = current(universe, HOURS, tmp_path, retrain_threshold=300)
    assert not second.trained and second.version.folder == first.version.folder
    third = current(universe, HOURS, tmp_path, retrain_threshold=150)
    assert third.trained and third.reason == "its training span ended 201 h ago, the threshold is 150 h"
    past = current(universe, LAST, tmp_path)   # an hour that the newer model has seen
    assert not past.trained and past.version.folder == first.version.folder
    before = current(universe, LAST - 50, tmp_path)
    assert before.trained and before.reason == "the stored model has seen bars from the newest one on"
    assert current(universe, HOURS, tmp_path).version.folder == third.version.folder


def test_another_request_has_another_line(universe, tmp_path):
    lines = {
        current(universe, LAST, tmp_path, **more).version.folder.parent.name
        for more in ({}, {"network": None}, {"seeds": (2,)}, {"network": replace(SMALL, units=5)})
    }
    two = current_volatility_model(
        {t: universe[t].iloc[:LAST] for t in TICKERS[:2]}, 24, SMALL, (1,), home=tmp_path
    )
    assert len(lines | {two.version.folder.parent.name}) == 5
    with pytest.raises(InputError, match="kraken and simulated; pass those of one market"):
        other = {**universe, "ETH/USD": stamp(universe["ETH/USD"], "ETH/USD", "kraken")}
        current_volatility_model(other, 24, home=tmp_path)


def test_other_code_and_a_damaged_model_lead_to_a_training(universe, tmp_path):
    first = current(universe, LAST, tmp_path, network=None)
    line, root = first.version.folder.parent.name, tmp_path / "models"
    store_volatility(replace(first.model, code="0" * 16), line, root)
    second = current(universe, LAST, tmp_path, network=None)
    assert second.trained and "code of the features" in second.reason
    for folder in version_folders(line, root): (folder / "bundle.json").write_text("{}")
    third = current(universe, LAST, tmp_path, network=None)
    assert third.trained and third.reason == "there was no model yet" and len(third.repairs) == 3


@pytest.mark.slow
def test_two_processes_that_want_one_model_train_it_once(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path; import test_volatility_network as t\n"
        "bars = {k: t.demo_market(t.HOURS, seed=n, ticker=k) for n, k in enumerate(t.TICKERS)}\n"
        "print(t.current(bars, t.HOURS, Path(sys.argv[1])).trained)"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert sorted(p.communicate(timeout=300)[0].strip() for p in both) == ["False", "True"]
