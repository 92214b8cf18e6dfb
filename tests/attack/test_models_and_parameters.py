"""Stored models and parameter files damaged at random, with hashes made again: they are read as they were, or
refused in one sentence."""
import json
import random

import pytest
from test_bundle import sealed

from cryptolstm.cli.terminal import build_run
from cryptolstm.core.config import RunConfig
from cryptolstm.core.errors import InputError, OperationError
from cryptolstm.data.demo import demo_market
from cryptolstm.features.indicators import features
from cryptolstm.model.bundle import load_bundle, save_bundle
from cryptolstm.model.live_model import LiveModel
from cryptolstm.model.settings import model_config
from cryptolstm.model.training import fit

TINY = {"units": [4], "dropout": [.1], "recurrent_dropout": [.1], "dense": [4], "epochs": 1}
# values of the wrong kind or size
ODD = (None, True, -1, 0, 1e308, 10**9, 2**70, "", "x" * 10_000, [], [[]], {}, {"a": 1}, [1] * 1000)
PARAMETERS = """ticker: ETH/USD
hours: 720
fee: 0.001
network:
  units: [32, 16]
  dropout: [0.1, 0.1]
  recurrent_dropout: [0.1, 0.1]
  epochs: 3
rules: {macd: false, adx: 30}
end: 2025-03-01
"""


@pytest.fixture(scope="module")
def bundle():
    bars = demo_market(700, seed=1)
    return fit(bars, features(bars), model_config(RunConfig(lookback=12, network=TINY)), hours=500)


def odd_value(table: dict, rng: random.Random) -> None:
    "Change a random entry of a table, at any depth."
    at, key = table, rng.choice(sorted(table))
    while isinstance(at[key], dict) and at[key] and rng.random() < .7:
        at = at[key]
        key = rng.choice(sorted(at))
    if rng.random() < .2: del at[key]
    else: at[key] = rng.choice(ODD)


def one_sentence(e: Exception) -> bool: return len(str(e)) < 2000 and "\n" not in str(e)


@pytest.mark.slow
def test_a_damaged_model_is_read_as_it_was_or_refused(bundle, tmp_path, tally):
    rng, whole = random.Random(19), save_bundle(bundle, tmp_path / "m")
    kept, wrong = {p.name: p.read_bytes() for p in whole.iterdir()}, []
    for k in range(300):
        for name, content in kept.items(): (whole / name).write_bytes(content)
        table = json.loads(kept["bundle.json"])
        kind = rng.choice(["record", "keras", "onnx"])
        if kind == "record":
            for _ in range(rng.randint(1, 3)): odd_value(table, rng)
        else:
            content, at = bytearray(kept[f"model.{kind}"]), rng.randrange(len(kept[f"model.{kind}"]))
            content[at:at + rng.randint(1, 64)] = rng.randbytes(rng.randint(0, 64))
            (whole / f"model.{kind}").write_bytes(content)
        sealed(whole, table)
        for load in (load_bundle, LiveModel.load):
            try: load(whole)
            except OperationError as e: answer = "" if one_sentence(e) else str(e)
            except Exception as e: answer = repr(e)
            else: answer = ""
            tally(f"models: {kind}").count(not answer)
            if answer: wrong.append((k, kind, load.__qualname__, answer[:300]))
    assert not wrong, wrong


@pytest.mark.slow
def test_a_damaged_parameter_file_is_read_or_refused_in_one_sentence(tmp_path, tally):
    rng, file, wrong = random.Random(19), tmp_path / "x.yaml", []
    pieces = [*"\n :-[]{}0#|>%@`~'\"\t\0\u2028", "&a ", "*a", "!!python/name:os.system ", "<<: ", "- ", "? "]
    pieces += ["07", "1:30", ".inf", ".nan"]
    for k in range(3000):
        text = PARAMETERS
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(text) + 1)
            cut = rng.choice([0, 0, 1, 5, 40])
            text = text[:at] + rng.choice(pieces) * rng.choice([1, 1, 2, 300]) + text[at + cut:]
        file.write_text(text, encoding="utf-8")
        try: build_run(file, None, {})
        except InputError as e: answer = "" if one_sentence(e) else str(e)
        except Exception as e: answer = repr(e)
        else: answer = ""
        tally("parameters").count(not answer)
        if answer: wrong.append((k, answer[:300], text[:400]))
    assert not wrong, wrong
