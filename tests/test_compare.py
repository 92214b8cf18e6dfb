"""Two models compared: on bars neither was trained on, with every cost and order setting of the run, and with
intervals of the stated coverage."""
import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY
from typer.testing import CliRunner

from cryptolstm.core.errors import InputError
from cryptolstm.core.bars import HOUR, stamp
from cryptolstm.core.config import RunConfig
from cryptolstm.data.demo import demo_market
from cryptolstm.features.indicators import features
from cryptolstm.execution import simulate
from cryptolstm.execution.simulate import order_settings
from cryptolstm.model.settings import model_config
from cryptolstm.model.training import fit
from cryptolstm.model.registry import line_name, save_version
from cryptolstm.research import compare, replay
from cryptolstm.research.compare import block_bootstrap, compare_models
from cryptolstm.cli.main import app

RUN = RunConfig(lookback=12, network=TINY)
ALL = RunConfig(
    initial_balance=5000,
    fee=0.002,
    slippage=0.001,
    slippage_range=0.1,
    borrow_rate=0.01,
    stop_atr=1.5,
    stop_percent=0.05,
    take_profit_atr=3,
    take_profit_percent=0.2,
    trailing_atr=2,
    sizing="fraction",
    size=0.5,
    sizing_volatility="trailing",
    exit="opposite",
    min_hold=2,
    max_hold=9,
    lot=0.001,
    min_notional=10,
    max_volume_share=0.5,
    max_leverage=2,
    maker_fee=0.0005,
)


@pytest.fixture(scope="module")
def two():
    "Two models of one market, and bars neither has seen."
    bars = demo_market(1000, seed=1)
    return [
        fit(bars.iloc[:600], features(bars).iloc[:600], replace(model_config(RUN), seed=seed), hours=500)
        for seed in (0, 1)
    ], bars


def test_whoever_trades_a_run_trades_every_setting_of_it(two, monkeypatch):
    """The settings are the parameters of `simulate`, so a new one is passed on everywhere; the leak
    certificate calls `replay.trade` itself."""
    (a, b), bars = two
    table, given = features(bars), []
    assert {k for k, v in order_settings(ALL).items() if v == getattr(RunConfig(), k)} == set() and len(
        order_settings(ALL)
    ) == 21

    def spy(*args, **settings):
        given.append({k: v for k, v in settings.items() if k not in simulate.SERIES})
        return simulate.simulate(*args, **settings)

    for module in (compare, replay): monkeypatch.setattr(module, "simulate", spy)
    compare_models(a, b, bars, ALL)
    replay.trade(bars, np.zeros(len(bars)), ALL, table["atr"], table["sigma"])
    assert len(given) == 3 and all(g == order_settings(ALL) for g in given)
    replay.trade(bars, np.zeros(len(bars)), ALL)
    assert given[-1] == {k: order_settings(ALL)[k] for k in replay.COSTS}


def test_models_are_asked_about_the_bars_and_the_question_they_were_made_for(two):
    (a, b), bars = two
    for changed, text in (
        (
            {"ticker": "ETH/USD"},
            "a model was trained on bars of BTC/USD, and these are of ETH/USD; pass bars of BTC/USD",
        ),
        (
            {"exchange": "kraken"},
            "a model was trained on bars from simulated, and these are from kraken; pass bars from simulated",
        ),
        (
            {"market": "simulated@127.0.0.1:1"},
            "a model was trained on bars from simulated, and these are from simulated@127.0.0.1:1",
        ),
    ):
        other = stamp(bars, **{"ticker": "BTC/USD", "exchange": "simulated", **changed})
        with pytest.raises(InputError) as refused: compare_models(a, b, other)
        assert str(refused.value).startswith(text)
    volatile = replace(b, config=replace(b.config, target="volatility"))
    for pair in ((a, volatile), (volatile, a)):
        with pytest.raises(InputError, match="^a model forecasts volatility, not the direction of the price"):
            compare_models(*pair, bars)
    found = compare_models(a, b, bars)
    assert (found.ticker, found.market) == ("BTC/USD", "simulated")


@pytest.mark.parametrize("n", [
    168, pytest.param(480, marks=pytest.mark.slow), pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["heavy tails", "clusters"])
def test_the_interval_holds_the_truth_as_often_as_it_says(n, kind):
    """Returns of a strategy: heavy tails; for one that trades now and then also volatility regimes of a day
    and hours without a position."""
    rng, hits, times = np.random.default_rng(3), 0, 400

    def returns():
        x = rng.standard_t(3, n)
        if kind == "heavy tails": return x
        return (
            x
            * np.exp(np.repeat(rng.standard_normal(n // 24 + 1), 24)[:n] * 0.7)
            * np.repeat(rng.random(n // 6 + 1) < 0.3, 6)[:n]
        )

    for seed in range(times):
        low, high = block_bootstrap(returns(), draws=300, seed=seed)
        hits += low < 0 < high
    assert 0.92 <= hits / times <= 0.995


def test_below_a_week_there_is_no_interval():
    assert np.isnan(block_bootstrap(np.ones(167))).all() and block_bootstrap(np.ones(168)) == pytest.approx(
        (168, 168)
    )


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CRYPTOLSTM_HOME", str(tmp_path))
    return tmp_path


def command(*words):
    done = CliRunner().invoke(app, ["models", "compare", *words])
    if isinstance(done.exception, InputError): raise done.exception
    return done


def test_the_command_takes_ticker_and_market_from_the_models(home):
    "Two named model lines of ETH on the demo market, without options for ticker and market."
    bars = demo_market(1500, end="2024-11-15", seed=1, ticker="ETH/USD")
    for seed, name in ((0, "eth1"), (1, "eth2")):
        save_version(fit(bars, features(bars), replace(model_config(RUN), seed=seed), hours=1400), name)
    found = json.loads(command("eth1", "eth2", "--json").stdout)
    assert (found["ticker"], found["market"], found["versions"]["simulated"]) == (
        "ETH/USD",
        "simulated",
        True,
    )
    text = command("eth1", "eth2", "--hours", "100").stdout
    assert text.splitlines()[0] == "ETH/USD on simulated" and "too few bars for an interval" in text
    with pytest.raises(InputError, match="trained on bars of ETH/USD, and these are of BTC/USD"):
        command("eth1", "eth2", "--ticker", "BTC/USD")
    with pytest.raises(
        InputError,
        match=(
            "^the models were trained on bars from simulated, and these would be from kraken@127.0.0.1:9;"
            " pass"
        ),
    ):
        command("eth1", "eth2", "--exchange", "kraken")


def test_models_of_a_real_market_are_not_compared_on_the_demo_market(home, loopback, monkeypatch):
    monkeypatch.setenv("CRYPTOLSTM_EXCHANGE_URL", loopback.url)
    from cryptolstm import SignalGenerator
    loopback.now -= 100 * HOUR
    for name, seed in (("one", 0), ("two", 1)):
        SignalGenerator("ETH/USD", model=name, config=replace(RUN, seed=seed)).generate_signals(hours=120)
    loopback.now += 100 * HOUR
    with pytest.raises(
        InputError,
        match="^the models were trained on bars from coinbaseexchange@.*, and these would be from simulated",
    ):
        command("one", "two", "--exchange", "simulated")
    found = json.loads(command("one", "two", "--json").stdout)
    assert (
        found["ticker"] == "ETH/USD"
        and found["market"] == f"coinbaseexchange@{loopback.url.split('//')[1]}"
        and 95 <= found["bars"] <= 101
    )
    assert line_name("ETH/USD", "one") == "one"
