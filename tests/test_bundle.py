"""A saved model is the model: other process, damaged file, no code in data, versions swapped whole."""
import json
import subprocess
import sys

import numpy as np
import pytest

from cryptolstm.core import OperationError, RunConfig
from cryptolstm.features import features
from cryptolstm.model import fit, load_bundle, model_config, save_bundle
from cryptolstm.registry import current_version, save_version
from cryptolstm.simulate import demo_market

TINY = {"units": [8], "dropout": [0.1], "recurrent_dropout": [0.1], "dense": [8], "epochs": 2}


@pytest.fixture(scope="module")
def trained():
    bars = demo_market(1400, seed=4)
    table = features(bars)
    return fit(bars.iloc[:1300], table.iloc[:1300], model_config(RunConfig(lookback=12, network=TINY))), bars, table


def test_another_process_predicts_the_same(trained, tmp_path):
    bundle, bars, table = trained
    save_bundle(bundle, tmp_path / "m")
    code = ("import sys; from cryptolstm.model import load_bundle; from cryptolstm.features import features; from cryptolstm.simulate import demo_market\n"
            "b = demo_market(1400, seed=4); p = load_bundle(sys.argv[1]).predict(features(b), b, start=1300)\nprint(','.join(repr(float(x)) for x in p))")
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], capture_output=True, text=True, check=True).stdout
    theirs = np.array([float(x) for x in out.strip().splitlines()[-1].split(",")])
    np.testing.assert_allclose(theirs, bundle.predict(table, bars, start=1300).to_numpy(), rtol=0, atol=1e-6)


def test_one_bar_alone_predicts_as_it_does_among_hundreds(trained):
    bundle, bars, table = trained
    many = bundle.predict(table, bars, start=900)
    for row in (900, 1111, 1399):
        assert bundle.predict(table.iloc[:row + 1], bars.iloc[:row + 1], start=row).iloc[0] == many.iloc[row - 900]


def test_the_bundle_is_json_and_keras_only(trained, tmp_path):
    save_bundle(trained[0], tmp_path / "m")
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["bundle.json", "model.keras"]
    table = json.loads((tmp_path / "m" / "bundle.json").read_text())
    assert {"config", "scaler", "trained_from", "trained_until", "data_hash"} <= set(table) and table["config"]["seed"] == 0


@pytest.mark.parametrize("name", ["model.keras", "bundle.json"])
def test_a_damaged_file_is_one_sentence(trained, tmp_path, name):
    save_bundle(trained[0], tmp_path / "m")
    path = tmp_path / "m" / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OperationError, match="cannot be read"):
        load_bundle(tmp_path / "m")


def test_a_version_that_dies_half_way_is_never_in_use(trained, tmp_path, monkeypatch):
    first = save_version(trained[0], "line", tmp_path)

    def dies(bundle, folder):
        (folder := __import__("pathlib").Path(folder)).joinpath("model.keras").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cryptolstm.registry.save_bundle", dies)
    with pytest.raises(OperationError, match="No space left"):
        save_version(trained[0], "line", tmp_path)
    assert current_version("line", tmp_path) == first
    assert load_bundle(first) == trained[0]
