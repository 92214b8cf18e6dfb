"""The ONNX file predicts what Keras predicts, or it is not stored; using it requires no TensorFlow."""
import json
import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptolstm.core.errors import OperationError, TrainingSpanError
from cryptolstm.core.config import RunConfig
from cryptolstm.data.demo import demo_market
from cryptolstm.features.indicators import features
from cryptolstm.model import bundle as model
from cryptolstm.model.settings import ACTIVATIONS, ModelConfig, model_config
from cryptolstm.model.network import build_network
from cryptolstm.model.onnx_model import write_onnx
from cryptolstm.model.onnx_network import OnnxNetwork
from cryptolstm.model.bundle import load_bundle, save_bundle
from cryptolstm.model.training import fit
from cryptolstm.model.live_model import LiveModel
from cryptolstm.strategy.upkeep import stored_model
from cryptolstm.strategy.signal import SignalGenerator

TINY = {
    "units": [8],
    "dropout": [0.1],
    "recurrent_dropout": [0.1],
    "dense": [8],
    "epochs": 2,
    "refit_epochs": 1,
}
RUN = RunConfig(lookback=12, network=TINY)


@pytest.fixture(scope="module")
def market():
    bars = demo_market(1300, seed=1)
    return bars, features(bars)


def trained(market, **changes):
    bars, table = market
    return fit(bars.iloc[:1200], table.iloc[:1200], replace(model_config(RUN), **changes))


def wild(net, seed):
    "A network as if after training: all weights changed, every normalisation with different statistics."
    rng = np.random.default_rng(seed)
    positive = {id(v) for layer in net.layers for v in layer.weights if "variance" in v.path}
    for v in net.weights:
        v.assign(
            rng.uniform(0.3, 3.0, v.shape)
            if id(v) in positive
            else v.numpy() + rng.normal(scale=0.2, size=v.shape)
        )
    return net


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(2, 9),
       st.lists(st.integers(1, 6), max_size=2), st.sampled_from(["swish", "linear"]),
       st.booleans(), st.integers(0, 99))
def test_every_architecture_says_the_same_in_both(
    tmp_path_factory, units, lookback, dense, activation, fast, seed
):
    some = (0.1,) * len(units)
    config = ModelConfig(
        lookback=lookback,
        units=tuple(units),
        dropout=some,
        recurrent_dropout=some,
        dense=tuple(dense),
        activation=activation,
    )
    net = wild(build_network(config, 5, fast=fast), seed)
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    # random weights give outputs of any size
    write_onnx(net, file, tolerance=1e-4)
    windows = np.random.default_rng(seed).normal(size=(9, lookback, 5)).astype("float32")
    np.testing.assert_allclose(
        OnnxNetwork(file).predict(windows), net.predict(windows, verbose=0)[:, 0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("changes", [
    {}, {"seeds": (1, 2)}, {"target": "price"}, {"target": "volatility", "horizon": 24}, {"horizon": 72},
], ids=str)
def test_a_live_model_is_its_bundle(market, tmp_path, changes):
    bars, table = market
    bundle = trained(market, **changes)
    live = LiveModel.load(save_bundle(bundle, tmp_path))
    # a millionth of the network's output, in units of the prediction
    unit = 1.0
    if bundle.price_scale is not None:
        unit = 1.1 * bundle.price_scale["scale"] / (bars["close"] * table["sigma"]).iloc[-100:].min()
    np.testing.assert_allclose(
        live.predict(table, bars, start=1200),
        bundle.predict(table, bars, start=1200),
        rtol=0,
        atol=1e-6 * unit,
    )
    assert abs(live.predict_one(table, bars) - bundle.predict(table, bars, start=1299).iloc[0]) <= 1e-6 * unit
    said = bundle.predict(table, bars, start=1200)
    np.testing.assert_array_equal(live.confidence(said), bundle.confidence(said))
    for call in (
        lambda: live.predict_one(table.iloc[:1200], bars.iloc[:1200]),
        lambda: live.check_out_of_sample(bars.index[1199:]),
    ):
        with pytest.raises(TrainingSpanError, match="training span"):
            call()
    assert (live.ticker, live.trained_until, live.scaler) == (
        bundle.ticker,
        bundle.trained_until,
        bundle.scaler,
    )


def test_the_confidence_of_a_calibrated_model_is_kept(market, tmp_path):
    bundle = replace(trained(market), calibration={"slope": 0.2, "intercept": 0.05, "n": 600})
    live = LiveModel.load(save_bundle(bundle, tmp_path))
    said = bundle.predict(market[1], market[0], start=1200)
    assert live.confidence(said).between(0.5, 1).all() and live.confidence(said).equals(
        bundle.confidence(said)
    )


def test_a_file_that_differs_from_keras_is_not_kept(market, tmp_path, monkeypatch):
    bundle = trained(market, seeds=(1, 2))
    strict = {"model_2": 0.0}
    monkeypatch.setattr(
        model,
        "write_onnx",
        lambda net, file, predict: write_onnx(net, file, strict.get(file.stem, 1e-6), predict),
    )
    save_bundle(bundle, tmp_path)
    assert "differs from Keras" in json.loads((tmp_path / "bundle.json").read_text())["onnx"]["refused"]
    # the file of the accepted member has been removed, too
    assert not list(tmp_path.glob("*.onnx")) and LiveModel.load(tmp_path) is None
    assert load_bundle(tmp_path) == bundle and stored_model(tmp_path) == bundle


def test_a_difference_counts_as_a_share_where_the_numbers_are_large(tmp_path):
    """A step of float32 at 12 is already a millionth.

    The output's bias shifts all predictions; a small offset is then added to Keras' predictions."""
    net = build_network(model_config(RUN), 5)
    for size, off, kept in ((0.0, 3e-6, False), (12.0, 3e-6, True), (12.0, 3e-5, False)):
        net.layers[-1].bias.assign([size])
        def write(off=off):
            return write_onnx(
                    net, tmp_path / "model.onnx",
                    predict=lambda windows: net.predict(windows, verbose=0).astype("float64") + off,
                )
        if kept: assert write() < 1e-6
        else:
            with pytest.raises(OperationError, match="differs from Keras"): write()


def test_many_windows_are_computed_in_batches(market, tmp_path, monkeypatch):
    "All windows at once would copy the same bars sixty times. The predictions equal those of one batch."
    live = LiveModel.load(save_bundle(trained(market, predict_batch=100), tmp_path))
    sizes, predict = [], OnnxNetwork.predict
    monkeypatch.setattr(
        OnnxNetwork, "predict", lambda self, windows: sizes.append(len(windows)) or predict(self, windows)
    )
    said = live.predict(*market[::-1], in_sample=True)
    assert max(sizes) == 100 and sum(sizes) == said.notna().sum() > 1000
    np.testing.assert_allclose(
        replace(live, config=replace(live.config, predict_batch=10_000)).predict(
            *market[::-1], in_sample=True
        ),
        said,
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", sorted({*ACTIVATIONS} - {"squareplus"}))
def test_each_activation_says_the_same_as_keras(tmp_path, name):
    """Random weights, outputs of the size of a prediction: every activation that can be chosen, except the
    one that only Keras computes."""
    config = ModelConfig(
        lookback=6, units=(8,), dropout=(0.1,), recurrent_dropout=(0.1,), dense=(8, 4), activation=name
    )
    keras.utils.set_random_seed(1)
    net = wild(build_network(config, 5), 1)
    windows = np.random.default_rng(2).normal(scale=2.0, size=(400, 6, 5)).astype("float32")
    said = net.predict(windows, verbose=0)[:, 0]
    # predictions are in units of σ: here at most 0.5
    size = 2 * np.abs(said).max()
    net.layers[-1].set_weights([w / size for w in net.layers[-1].get_weights()])
    assert write_onnx(net, tmp_path / "model.onnx") <= 1e-6
    np.testing.assert_allclose(
        OnnxNetwork(tmp_path / "model.onnx").predict(windows),
        net.predict(windows, verbose=0)[:, 0],
        rtol=0,
        atol=1e-6,
    )
    assert np.ptp(said) > 1e-3 * size


def test_a_layer_that_onnx_cannot_express_is_kept_for_keras_only(market, tmp_path):
    bundle = trained(market, activation="squareplus")
    assert (
        "cannot be written as ONNX"
        in json.loads((save_bundle(bundle, tmp_path) / "bundle.json").read_text())["onnx"]["refused"]
    )
    assert LiveModel.load(tmp_path) is None and load_bundle(tmp_path) == bundle


def test_an_onnx_file_of_another_model_is_noticed(market, tmp_path):
    a, b = save_bundle(trained(market), tmp_path / "a"), save_bundle(trained(market, seed=5), tmp_path / "b")
    (a / "model.onnx").write_bytes((b / "model.onnx").read_bytes())
    with pytest.raises(OperationError, match="model.onnx is not as it was written"): LiveModel.load(a)


def test_the_file_uses_the_lstm_operator_of_onnx(market, tmp_path):
    import onnx
    save_bundle(trained(market), tmp_path)
    assert {n.op_type for n in onnx.load(tmp_path / "model.onnx").graph.node} <= {
        "Transpose",
        "LSTM",
        "Squeeze",
        "Gemm",
        "Sigmoid",
        "Mul",
    }
    assert (
        onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
        .get_inputs()[0]
        .shape[1]
        == 12
    )


REUSED = """
import json, sys
from cryptolstm import SignalGenerator
from cryptolstm.core.config import RunConfig
signal = SignalGenerator(exchange="simulated", home=sys.argv[1], \
config=RunConfig(lookback=12, network=json.loads(sys.argv[2]))).generate_signals(hours=120)
heavy = sorted({m.split(".")[0] for m in sys.modules} & {"tensorflow", "keras", "jax", "torch", "sklearn"})
print(json.dumps([signal["model_info"]["decision"], signal["predicted_price"], heavy]))
"""


def in_a_process_of_its_own(home, network):
    out = subprocess.run(
        [sys.executable, "-c", REUSED, str(home), json.dumps(network)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return json.loads(out.strip().splitlines()[-1])


def test_a_reused_signal_imports_no_tensorflow_and_says_what_the_first_one_said(tmp_path):
    first = SignalGenerator(exchange="simulated", home=tmp_path, config=RUN).generate_signals(hours=120)
    decision, price, heavy = in_a_process_of_its_own(tmp_path, TINY)
    assert decision.startswith("reused") and price == first["predicted_price"] and heavy == []


def test_a_model_without_onnx_is_reused_with_keras_and_says_why(tmp_path):
    network = {**TINY, "activation": "squareplus"}
    make = SignalGenerator(exchange="simulated", home=tmp_path, config=replace(RUN, network=network))
    first, second = (make.generate_signals(hours=120) for _ in range(2))
    for signal in (first, second):
        assert "squareplus" in signal["model_info"]["onnx"]["refused"]
        assert [w for w in signal["warnings"] if "by Keras, not by onnxruntime" in w and "squareplus" in w]
    decision, price, heavy = in_a_process_of_its_own(tmp_path, network)
    assert (
        decision.startswith("reused")
        and abs(price - first["predicted_price"]) < 1e-6 * price
        and "keras" in heavy
    )
