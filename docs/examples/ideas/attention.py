"A small attention network for the same windows as the LSTM."
import keras
from keras import layers


def build(lookback: int, columns: int, units: int = 16, heads: int = 2) -> keras.Model:
    "Self-attention over the bars of a window, and the mean of what it finds."
    inputs = keras.Input((lookback, columns))
    x = layers.Dense(units)(inputs)
    x = x + layers.Embedding(lookback, units)(keras.ops.arange(lookback))   # the place of a bar in its window
    seen = layers.MultiHeadAttention(heads, units // heads)(x, x)
    x = layers.LayerNormalization()(x + seen)
    x = layers.GlobalAveragePooling1D()(layers.Dense(units, activation="swish")(x))
    return keras.Model(inputs, layers.Dense(1)(x))
