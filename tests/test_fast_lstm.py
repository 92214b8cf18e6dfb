"""The faster LSTM loop computes what Keras' layer computes: outputs, gradients, training, files."""
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from cryptolstm.model.fast_lstm import FastLSTM, can_hurry
from hypothesis import example, given, settings
from hypothesis import strategies as st
from keras import layers

# relative to the largest element; the same formulas, with another order of summation
TIGHT = {"float64": 1e-12, "float32": 1e-6}


def pair(units, shape, seed, parts=2, **options):
    "The same layer twice, Keras' and ours, and an input."
    plain, ours = layers.LSTM(units, seed=seed, **options), FastLSTM(units, seed=seed, parts=parts, **options)
    plain.build(shape)
    ours.build(shape)
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=w.shape, scale=0.3).astype(plain.compute_dtype) for w in plain.get_weights()]
    plain.set_weights(weights)
    ours.set_weights(weights)
    return plain, ours, tf.constant(rng.normal(size=shape).astype(plain.compute_dtype))


def outputs_and_gradients(layer, x, training, **given_states):
    with tf.GradientTape() as tape:
        tape.watch([x, *given_states.get("initial_state", [])])
        y = tf.nest.flatten(layer(x, training=training, **given_states))
        loss = tf.add_n([tf.reduce_sum(tf.sin(3 * v)) for v in y])
    sources = [x, *given_states.get("initial_state", []), *(v.value for v in layer.trainable_variables)]
    return [*y, *tape.gradient(loss, sources)]


def worst(a, b):
    """Largest difference; in single precision relative to the largest element of all tensors, because the few
    terms of a small gradient may cancel to little more than rounding errors."""
    sizes = [1e-3 + float(tf.reduce_max(tf.abs(p))) for p in a]
    return max(
        float(tf.reduce_max(tf.abs(p - q))) / (max(sizes) if p.dtype == tf.float32 else size)
        for p, q, size in zip(a, b, sizes, strict=True)
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 7), st.integers(1, 17),
       st.sampled_from([0.0, 0.2, 0.7]),
       st.booleans(), st.booleans(), st.integers(0, 99), st.sampled_from(["float64", "float32"]))
@example(3, 3, 1, 1, 0.7, True, True, 3, "float32")   # one unit whose gradient cancels
def test_outputs_and_gradients_are_those_of_keras_for_every_shape(
    batch, steps, inputs, units, dropout, sequences, training, seed, dtype
):
    plain, ours, x = pair(
        units,
        (batch, steps, inputs),
        seed,
        recurrent_dropout=dropout,
        return_sequences=sequences,
        dtype=dtype,
    )
    assert (
        worst(outputs_and_gradients(plain, x, training), outputs_and_gradients(ours, x, training))
        < TIGHT[dtype]
    )


def test_the_first_layer_of_the_spec_has_the_gradients_of_keras():
    """64 windows of 60 steps and 23 columns, 256 units, the specification's dropout: relative to the largest
    element of each gradient, without an absolute tolerance."""
    plain, ours, x = pair(256, (64, 60, 23), 1, recurrent_dropout=0.2, return_sequences=True, dtype="float32")
    # weights of the size that Keras initialises
    for layer in (plain, ours): layer.set_weights([w / 4 for w in layer.get_weights()])
    a, b = (mean_square(layer, x) for layer in (plain, ours))
    assert (
        max(float(tf.reduce_max(tf.abs(p - q)) / tf.reduce_max(tf.abs(p))) for p, q in zip(a, b, strict=True))
        < TIGHT["float32"]
    )


def mean_square(layer, x):
    "Output, and gradients of a mean-square loss, as in a training."
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
        loss = tf.reduce_mean(tf.square(y))
    return [y, *tape.gradient(loss, [x, *(v.value for v in layer.trainable_variables)])]


def test_on_a_gpu_only_a_layer_without_recurrent_dropout_goes_to_keras(monkeypatch):
    """The cuDNN kernel is available to a layer whose recurrent dropout is 0, but not to predictions of a
    layer that trains with it."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["GPU:0"])
    with_it, without = (FastLSTM(4, recurrent_dropout=p) for p in (0.2, 0.0))
    assert can_hurry(with_it, None) and not can_hurry(without, None)


def test_states_given_and_returned_have_the_gradients_of_keras():
    plain, ours, x = pair(5, (3, 7, 2), 1, recurrent_dropout=0.3, return_state=True, dtype="float64")
    rng = np.random.default_rng(2)
    states = [tf.constant(rng.normal(size=(3, 5))) for _ in range(2)]
    assert (
        worst(*(outputs_and_gradients(layer, x, True, initial_state=states) for layer in (plain, ours)))
        < TIGHT["float64"]
    )


def test_a_masked_sequence_is_left_to_keras():
    plain, ours, x = pair(5, (3, 7, 2), 1, recurrent_dropout=0.3)
    mask = tf.constant(np.random.default_rng(0).random((3, 7)) < 0.7)
    a, b = (layer(x, mask=mask, training=True) for layer in (plain, ours))
    np.testing.assert_array_equal(a, b)


def test_a_step_without_its_dropout_mask_would_be_noticed():
    "Shows that the comparison can fail: another seed draws other masks."
    plain, ours, x = pair(5, (3, 7, 2), 1, recurrent_dropout=0.5)
    ours.cell.seed_generator.state.assign(ours.cell.seed_generator.state + 1)
    assert worst(outputs_and_gradients(plain, x, True), outputs_and_gradients(ours, x, True)) > 1e-2


def network(layer):
    keras.utils.set_random_seed(5)
    net = keras.Sequential(
        [
            keras.Input((12, 3)),
            layer(16, return_sequences=True, recurrent_dropout=0.2),
            layers.BatchNormalization(),
            layer(8, recurrent_dropout=0.1),
            layers.Dense(1),
        ]
    )
    net.compile(optimizer=keras.optimizers.Adam(5e-4, clipvalue=0.5), loss="huber")
    return net


def test_training_takes_the_same_path():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(256, 12, 3)).astype("float32"), rng.normal(size=(256, 1)).astype("float32")
    weights, losses = {}, {}
    for layer in (layers.LSTM, FastLSTM):
        net = network(layer)
        losses[layer] = net.fit(x, y, batch_size=64, epochs=3, shuffle=False, verbose=0).history["loss"]
        weights[layer] = net.get_weights()
    np.testing.assert_allclose(losses[layers.LSTM], losses[FastLSTM], rtol=1e-5)
    for a, b in zip(*weights.values(), strict=True): np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_other_precisions_train(policy):
    old = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(policy)
        history = network(FastLSTM).fit(np.ones((8, 12, 3)), np.ones((8, 1)), epochs=1, verbose=0).history
    finally: keras.config.set_dtype_policy(old)
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_batch_in_parts_is_the_whole_batch(parts):
    "Up to rounding, for full batches and for those with fewer sequences than parts."
    for batch in (64, 7, 2, 1):
        _, whole, x = pair(
            16, (batch, 12, 5), 1, recurrent_dropout=0.2, return_sequences=True, dtype="float64", parts=1
        )
        _, divided, _ = pair(
            16, (batch, 12, 5), 1, recurrent_dropout=0.2, return_sequences=True, dtype="float64", parts=parts
        )
        assert (
            worst(outputs_and_gradients(whole, x, True), outputs_and_gradients(divided, x, True))
            < TIGHT["float64"]
        )


def test_a_part_is_computed_as_a_batch_of_its_own():
    "Equal shapes in, equal bits out: so it does not matter which part runs first, or on which thread."
    _, whole, x = pair(256, (64, 12, 23), 1, dtype="float32", return_sequences=True, parts=2)
    _, alone, _ = pair(256, (64, 12, 23), 1, dtype="float32", return_sequences=True, parts=1)
    np.testing.assert_array_equal(whole(x), tf.concat([alone(x[:32]), alone(x[32:])], 0))


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")),
                    reason="the numbers of a GPU are not promised")
@pytest.mark.parametrize("before, threads, fixed", [
    ("", 1, True),                                                          # not configured
    ("tf.config.threading.set_intra_op_parallelism_threads(7)", 7, False),  # configured by the user
    # too late: TensorFlow's default stays
    ("tf.zeros(1)", 0, False),
])
def test_each_operation_has_one_thread_unless_somebody_has_chosen(before, threads, fixed):
    code = "\n".join(
        [
            "import tensorflow as tf",
            before,
            "from cryptolstm.model.fast_lstm import threads_fixed",
            "print('threads', tf.config.threading.get_intra_op_parallelism_threads(), threads_fixed())",
        ]
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("TF_NUM_")}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout.split()[-3:] == ["threads", str(threads), str(fixed)], out.stderr
