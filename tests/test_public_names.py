"The names that `cryptolstm` itself offers, whatever was imported before."
import subprocess
import sys

import cryptolstm
import pytest

BOTH_ORDERS = """
import cryptolstm
from cryptolstm import demo_market, features
bars = demo_market(300, seed=1)
first = features(bars)
from cryptolstm.features.indicators import features as function
assert function(bars).equals(first) and cryptolstm.features(bars).equals(first)
from cryptolstm import features as again
assert again(bars).equals(first)
"""


@pytest.mark.parametrize("name", cryptolstm.__all__)
def test_every_public_name_is_there_and_can_be_called(name):
    assert callable(getattr(cryptolstm, name)) and name in dir(cryptolstm)


def test_features_can_be_called_before_and_after_its_modules_are_imported():
    done = subprocess.run([sys.executable, "-c", BOTH_ORDERS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'backtest_everything'"):
        _ = cryptolstm.backtest_everything


def test_simulate_needs_no_model_and_pays_the_fee_twice_for_a_round_trip():
    bars = cryptolstm.demo_market(200, seed=1)
    signal = (bars["close"] * 0).astype(int)
    signal.iloc[50:60] = 1
    result = cryptolstm.simulate(bars, signal, fee=0.001)
    assert len(result["trades"]) == 1 and result["trades"]["fees"].iloc[0] > 0
