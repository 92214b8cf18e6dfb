"""Saved models: other processes, damaged files, no code in the data, atomic replacement of versions."""
import hashlib
import json
import random
import re
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pandas as pd
import pytest

from cryptolstm.core.errors import OperationError, TrainingSpanError
from cryptolstm.core.files import config_hash
from cryptolstm.core.config import RunConfig
from cryptolstm.data.demo import demo_market
from cryptolstm.features.indicators import features
from cryptolstm.features.windows import window_view
from cryptolstm.model.settings import model_config
from cryptolstm.model.bundle import load_bundle, save_bundle
from cryptolstm.model.training import fit
from cryptolstm.model.live_model import LiveModel
from cryptolstm.model.registry import current_version, save_version
from cryptolstm.model.challenge import differs

TINY = {"units": [8], "dropout": [0.1], "recurrent_dropout": [0.1], "dense": [8], "epochs": 2}


@pytest.fixture(scope="module")
def trained():
    bars = demo_market(1400, seed=4)
    table = features(bars)
    return (
        fit(bars.iloc[:1300], table.iloc[:1300], model_config(RunConfig(lookback=12, network=TINY))),
        bars,
        table,
    )


def test_another_process_predicts_the_same(trained, tmp_path):
    bundle, bars, table = trained
    save_bundle(bundle, tmp_path / "m")
    code = (
        "import sys; from cryptolstm.model.bundle import load_bundle; from cryptolstm.features.indicators"
        " import features; from cryptolstm.data.demo import demo_market\nb = demo_market(1400, seed=4); p ="
        " load_bundle(sys.argv[1]).predict(features(b), b, start=1300)\nprint(','.join(repr(float(x)) for x"
        " in p))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m")], capture_output=True, text=True, check=True
    ).stdout
    theirs = np.array([float(x) for x in out.strip().splitlines()[-1].split(",")])
    np.testing.assert_allclose(theirs, bundle.predict(table, bars, start=1300).to_numpy(), rtol=0, atol=1e-6)


def test_one_bar_alone_predicts_as_it_does_among_hundreds(trained):
    bundle, bars, table = trained
    many = bundle.predict(table, bars, start=900, in_sample=True)
    for row in (900, 1111, 1399):
        assert (
            bundle.predict(table.iloc[: row + 1], bars.iloc[: row + 1], start=row, in_sample=True).iloc[0]
            == many.iloc[row - 900]
        )


def test_predict_itself_refuses_bars_of_the_training_span(trained):
    bundle, bars, table = trained
    assert bundle.trained_until == bars.index[1299].isoformat()
    for start in (0, 700, 1299):
        with pytest.raises(TrainingSpanError, match="training span .* evaluate on bars after it"):
            bundle.predict(table, bars, start=start)
    # its windows reach back into the training span, its bars do not
    assert len(bundle.predict(table, bars, start=1300)) == 100
    assert len(bundle.predict(table, bars, start=700, in_sample=True)) == 700
    assert bundle.predict(table, bars, start=len(bars)).empty            # no bar requested, none refused


def test_the_bundle_is_json_keras_and_onnx_only(trained, tmp_path):
    save_bundle(trained[0], tmp_path / "m")
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["bundle.json", "model.keras", "model.onnx"]
    table = json.loads((tmp_path / "m" / "bundle.json").read_text())
    assert (
        set(table["hashes"]) == {"bundle.json", "model.keras", "model.onnx"}
        and 0 <= table["onnx"]["difference"] <= 1e-6
    )
    assert {"config", "scaler", "trained_from", "trained_until", "data_hash"} <= set(table) and table[
        "config"
    ]["seed"] == 0


def test_the_keras_file_opens_where_this_package_is_not(trained, tmp_path):
    """The file contains Keras' own layers: a process that imports nothing of ours reads it and predicts the
    bundle's numbers."""
    bundle, bars, table = trained
    save_bundle(bundle, tmp_path / "m")
    windows = window_view(bundle.scaler.transform(table), bundle.config.lookback)[
        1300 - bundle.config.lookback + 1 :
    ]
    np.save(tmp_path / "windows.npy", windows)
    code = ("import sys, numpy as np, keras\nnet = keras.models.load_model(sys.argv[1], safe_mode=True)\n"
            "assert not any(m.startswith('cryptolstm') for m in sys.modules)\n"
            "np.save(sys.argv[3], net.predict(np.load(sys.argv[2]), verbose=0)[:, 0])")
    files = [str(tmp_path / name) for name in ("m/model.keras", "windows.npy", "out.npy")]
    subprocess.run([sys.executable, "-I", "-c", code, *files], check=True, capture_output=True)
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npy"), bundle.predict(table, bars, start=1300), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("name", ["model.keras", "model.onnx", "bundle.json"])
@pytest.mark.parametrize("load", [load_bundle, LiveModel.load])
def test_a_damaged_file_is_one_sentence(trained, tmp_path, name, load):
    save_bundle(trained[0], tmp_path / "m")
    path = tmp_path / "m" / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OperationError, match="cannot be read"): load(tmp_path / "m")
    path.unlink()
    with pytest.raises(OperationError, match="cannot be read"): load(tmp_path / "m")


SENTENCE = "^the model in .* cannot be read .*; remove the folder to train anew$"


def flips(whole: bytes):
    """Copies of the archive with eight bytes flipped: in the middle, at random places and along its
    directory; length and name stay the same."""
    for at in [
        len(whole) // 2,
        *random.Random(0).sample(range(200, len(whole) - 8), 10),
        *range(len(whole) - 250, len(whole) - 30, 20),
    ]:
        yield whole[:at] + bytes(b ^ 0xFF for b in whole[at : at + 8]) + whole[at + 8 :]


def test_flipped_bytes_in_the_middle_of_the_network_are_one_sentence(trained, tmp_path):
    path = save_bundle(trained[0], tmp_path / "m") / "model.keras"
    whole = path.read_bytes()
    for damaged in flips(whole):
        path.write_bytes(damaged)
        with pytest.raises(OperationError, match=SENTENCE): load_bundle(tmp_path / "m")
    path.write_bytes(whole)
    assert load_bundle(tmp_path / "m") == trained[0]


def sealed(folder, table=None):
    "Make all hashes of a stored model again, as somebody who changed its files on purpose would."
    table = table or json.loads((folder / "bundle.json").read_text())
    table.pop("hashes", None)
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("model*")}
    hashes = files | {"bundle.json": config_hash(table)}
    (folder / "bundle.json").write_text(json.dumps(table | {"hashes": hashes}))


def test_with_hashes_made_again_flipped_bytes_are_one_sentence_or_harmless(trained, tmp_path):
    "The archive's own checks must find the damage, and each failure is one sentence."
    folder = save_bundle(trained[0], tmp_path / "m")
    whole, refused = (folder / "model.keras").read_bytes(), 0
    for damaged in flips(whole):
        (folder / "model.keras").write_bytes(damaged)
        sealed(folder)
        try:
            same = all(
                (a == b).all() for a, b in zip(load_bundle(folder).weights, trained[0].weights, strict=True)
            )
        except OperationError as e: refused += bool(re.match(SENTENCE, str(e)))
        else:
            # a time stamp, or a part that is not read
            assert same
    assert refused >= 11


HOSTILE = {
    "no hashes": lambda table: {**table, "hashes": {}},
    "a format without hashes": lambda table: {**table, "format": 1},
    "a billion networks": lambda table: {**table, "training": {**table["training"], "members": 10**9}},
    "no network": lambda table: {**table, "training": {**table["training"], "members": 0}},
    "a layer of 20,000 units": lambda table: {**table, "config": {**table["config"], "units": [20_000]}},
    "three layers of 4,096 units": lambda table: {
        **table,
        "config": {
            **table["config"],
            "units": [4096] * 3,
            **dict.fromkeys(("dropout", "recurrent_dropout"), [.1] * 3),
        },
    },
    "another network": lambda table: {**table, "config": {**table["config"], "units": [16]}},
}


@pytest.mark.parametrize("how", HOSTILE)
@pytest.mark.parametrize("load", [load_bundle, LiveModel.load])
def test_a_record_that_asks_for_too_much_is_one_sentence(trained, tmp_path, how, load):
    folder = save_bundle(trained[0], tmp_path / "m")
    table = HOSTILE[how](json.loads((folder / "bundle.json").read_text()))
    if how == "no hashes": (folder / "bundle.json").write_text(json.dumps(table))
    else: sealed(folder, table)
    if (how, load) == ("another network", LiveModel.load): return   # the file alone says what it computes
    with pytest.raises(OperationError, match=SENTENCE): load(folder)


def test_a_record_nested_a_hundred_thousand_levels_deep_is_one_sentence(trained, tmp_path):
    folder = save_bundle(trained[0], tmp_path / "m")
    (folder / "bundle.json").write_text("[" * 100_000)
    for load in (load_bundle, LiveModel.load):
        with pytest.raises(OperationError, match=SENTENCE): load(folder)


def test_of_a_hostile_keras_file_only_the_weights_are_read(trained, tmp_path):
    "A layer of any class can stand in the file: it is not built."
    folder = save_bundle(trained[0], tmp_path / "m")
    path, parts = folder / "model.keras", {}
    with zipfile.ZipFile(path) as whole:
        for name in whole.namelist(): parts[name] = whole.read(name)
    layer = {"module": "keras.utils", "class_name": "TorchModuleWrapper", "config": {"module": "x"}}
    parts["config.json"] = json.dumps(layer).encode()
    with zipfile.ZipFile(path, "w") as whole:
        for name, content in parts.items(): whole.writestr(name, content)
    sealed(folder)
    assert load_bundle(folder) == trained[0]


def test_a_file_that_unpacks_to_more_than_its_network_is_refused_before_it_is_read(trained, tmp_path):
    folder = save_bundle(trained[0], tmp_path / "m")
    (weights := folder / "weights.h5").touch()
    with h5py.File(weights, "w") as tables:
        tables.create_dataset("zeros", (20_000, 20_000), "f4", compression="gzip", fillvalue=0)
    with zipfile.ZipFile(folder / "model.keras", "w") as whole: whole.write(weights, "model.weights.h5")
    weights.unlink()
    sealed(folder)
    with pytest.raises(OperationError, match="larger than its network"): load_bundle(folder)


def test_another_number_in_the_record_is_noticed(trained, tmp_path):
    path = save_bundle(trained[0], tmp_path / "m") / "bundle.json"
    table = json.loads(path.read_text())
    table["scaler"]["center"][0] += 1
    path.write_text(json.dumps(table))
    with pytest.raises(OperationError, match="bundle.json is not as it was written"):
        load_bundle(tmp_path / "m")


def as_format_2(folder):
    "Rewrite the record in the format from before ONNX files, training length and end of the training rows."
    table = json.loads((folder / "bundle.json").read_text())
    for name in ("hours", "fitted_until", "price_scale", "onnx", "intervals"): del table[name]
    for name in ("seeds", "target", "activation", "loss", "plateau_factor", "max_train_seconds"):
        del table["config"][name]
    for name in ("members", "by_member", "stopped"): del table["training"][name]
    (folder / "model.onnx").unlink()
    sealed(folder, table | {"format": 2})


def test_a_model_of_an_earlier_version_predicts_but_is_not_continued(trained, tmp_path):
    bundle, bars, table = trained
    folder = save_bundle(bundle, tmp_path / "m")
    as_format_2(folder)
    old = load_bundle(folder)
    pd.testing.assert_series_equal(
        old.predict(table, bars, start=1300), bundle.predict(table, bars, start=1300)
    )
    # it had no ONNX file, so Keras predicts
    assert LiveModel.load(folder) is None
    assert (
        differs(old, bundle.config, "BTC/USD", "simulated", hours=240)
        == "hours was not said, asked for is 240"
    )
    again = fit(bars.iloc[100:1400], table.iloc[100:1400], bundle.config, warm_start=old).training
    assert (
        not again["warm_started"]
        and "does not say where its training rows end" in again["warm_start_refused"]
    )


def test_a_later_format_is_one_sentence(trained, tmp_path):
    path = save_bundle(trained[0], tmp_path / "m") / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 5}))
    with pytest.raises(OperationError, match="format 5, this version reads 2 to 4"):
        load_bundle(tmp_path / "m")


def test_a_version_kept_aside_is_whole_and_not_in_use(trained, tmp_path):
    assert current_version("line", tmp_path) is None
    aside = save_version(trained[0], "line", tmp_path, use=False)
    assert current_version("line", tmp_path) is None and load_bundle(aside) == trained[0]
    used = save_version(trained[0], "line", tmp_path)
    save_version(trained[0], "line", tmp_path, use=False)
    assert current_version("line", tmp_path) == used


def test_a_version_that_dies_half_way_is_never_in_use(trained, tmp_path, monkeypatch):
    first = save_version(trained[0], "line", tmp_path)

    def dies(bundle, folder):
        (folder := __import__("pathlib").Path(folder)).joinpath("model.keras").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cryptolstm.model.bundle.save_bundle", dies)
    with pytest.raises(OperationError, match="No space left"):
        save_version(trained[0], "line", tmp_path)
    assert current_version("line", tmp_path) == first
    assert load_bundle(first) == trained[0]
