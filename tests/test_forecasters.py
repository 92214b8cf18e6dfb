"""The contract of `stats.learners.Forecaster`, checked for every forecaster of the package and for planted
ones that break it."""
from dataclasses import dataclass, replace

import numpy as np
import pytest

from cryptolstm.core.bars import HOUR
from cryptolstm.core.errors import InputError, TooFewRows, TrainingSpanError
from cryptolstm.data.demo import demo_market
from cryptolstm.features.indicators import INPUTS, features
from cryptolstm.features.targets import target
from cryptolstm.model.settings import ModelConfig
from cryptolstm.model.training import LSTM
from cryptolstm.model.volatility import HAR
from cryptolstm.stats.learners import LEARNERS, Learner, TrainingSpan, fold_forecast

HORIZON, END, LAST = 6, 1000, 1040   # bars ahead, first tested row, last row forecast in the checks
CONFIG = ModelConfig(
    lookback=12, horizon=HORIZON, units=(8,), dropout=(0.1,), recurrent_dropout=(0.1,), dense=(8,), epochs=2
)


def returns(table, bars): return target(bars, table["sigma"], HORIZON)


FORECASTERS = {
    "LSTM": LSTM(CONFIG),
    "LSTM for volatility": LSTM(replace(CONFIG, target="volatility")),
    "HAR": HAR(HORIZON),
    **{name: Learner(make, INPUTS, returns, HORIZON) for name, make in LEARNERS.items()},
}
every_forecaster = pytest.mark.parametrize("forecaster", FORECASTERS.values(), ids=FORECASTERS.keys())


@pytest.fixture(scope="module")
def bars(): return demo_market(1200, seed=5)


def fitted(forecaster, bars, end=END, start=0):
    past = bars.iloc[start:end]
    return forecaster.fit(features(bars).iloc[start:end], past)


def forecasts(fit, bars, start=END): return fit.predict(features(bars), bars, start=start)


def altered(bars, first):
    "The same bars with other prices and volumes from row `first` on."
    other = bars.copy()
    other.iloc[first:, :4] *= np.linspace(1.5, 3, len(bars) - first)[:, None]
    other.iloc[first:, 4] *= 7
    return other


def check_future(forecaster, bars):
    "Rows after a forecast change it neither when they are altered nor when they are removed."
    fit = fitted(forecaster, bars)
    values = forecasts(fit, bars)
    for cut in (END, LAST):
        same = forecasts(fit, altered(bars, cut + 1)).loc[:bars.index[cut]]
        np.testing.assert_array_equal(same, values.loc[:bars.index[cut]])
        # a product of matrices may be added up in another order for another number of rows
        short = forecasts(fit, bars.iloc[:cut + 1])
        np.testing.assert_allclose(short, values.loc[:bars.index[cut]], rtol=1e-9, atol=1e-12)
    assert values.notna().all() and values.nunique() > 1


def check_outcomes(forecaster, bars, in_altered_market=None):
    "Outcomes after the end of the training change no forecast."
    one = fitted(forecaster, bars)
    two = fitted(in_altered_market or forecaster, altered(bars, END))
    np.testing.assert_array_equal(forecasts(one, bars), forecasts(two, bars))


def check_span(forecaster, bars):
    """The reported span is the bars used: without the others the forecasts are the same, and
    without its first or last bar the span is another."""
    # 30 rows whose outcome or features are unknown, so that the span ends before the bars do
    past, table = bars.iloc[:END], features(bars).iloc[:END].copy()
    table.iloc[-30:] = np.nan
    fit = forecaster.fit(table, past)
    first, last, outcome = bars.index.get_indexer([fit.span.first, fit.span.last, fit.span.outcome])
    assert 0 <= first < last and outcome == last + HORIZON and last == END - 31
    inside = forecaster.fit(table.iloc[first:outcome + 1], past.iloc[first:outcome + 1])
    assert inside.span == fit.span
    np.testing.assert_allclose(forecasts(inside, bars), forecasts(fit, bars), rtol=1e-9, atol=1e-12)
    shorter = forecaster.fit(table.iloc[first + 1:outcome + 1], past.iloc[first + 1:outcome + 1])
    assert shorter.span.first > fit.span.first
    shorter = forecaster.fit(table.iloc[first:outcome], past.iloc[first:outcome])
    assert shorter.span.outcome < fit.span.outcome
    with pytest.raises(TrainingSpanError, match="training span"): forecasts(fit, bars, start=outcome)


def check_seed(forecaster, bars):
    "Two fits are equal bit for bit."
    a, b = (forecasts(fitted(forecaster, bars), bars) for _ in range(2))
    np.testing.assert_array_equal(a, b)


def check_unknown(forecaster, bars):
    "A row without known features has no forecast."
    table = features(bars).copy()
    table.iloc[LAST] = np.nan
    values = fitted(forecaster, bars).predict(table, bars, start=END)
    assert np.isnan(values.iloc[LAST - END]) and values.iloc[:LAST - END].notna().all()


def check_too_few(forecaster, bars):
    "Too few rows are one sentence, and NaN in a walk-forward."
    table = features(bars)
    with pytest.raises(TooFewRows, match="too few|pass at least"):
        forecaster.fit(table.iloc[:62], bars.iloc[:62])
    assert fold_forecast(forecaster, table, bars, slice(0, 62), slice(62, 70)).isna().all()
    with pytest.raises((InputError, KeyError)):   # another error is not taken for too few rows
        fold_forecast(forecaster, table[["close"]], bars, slice(0, END), slice(END, END + 8))


def check_interface(forecaster, bars):
    "Only what `fit` returns can predict, one forecast per row from the start on."
    assert not hasattr(forecaster, "predict")
    fit = fitted(forecaster, bars)
    values = forecasts(fit, bars)
    assert isinstance(fit.span, TrainingSpan) and values.index.equals(bars.index[END:])


CHECKS = (
    check_future, check_outcomes, check_span, check_seed, check_unknown, check_too_few, check_interface
)


@every_forecaster
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_every_forecaster_obeys_the_contract(forecaster, check, bars): check(forecaster, bars)


# ---------------------------------------------------------------- planted violations
@dataclass(frozen=True)
class Planted:
    "The ridge regression, and a violation."
    violation: str = ""

    def fit(self, table, bars):
        if self.violation == "unseeded":
            table = table + 1e-3 * np.random.default_rng().standard_normal(table.shape)
        return PlantedFit(FORECASTERS["ridge"].fit(table, bars), self.violation)


@dataclass(frozen=True)
class PlantedFit:
    fit: object
    violation: str

    @property
    def span(self):
        first = self.fit.span.first + (HOUR if self.violation == "short span" else 0 * HOUR)
        return replace(self.fit.span, first=first)

    def predict(self, table, bars, start=0):
        if self.violation == "peeks": table = table.shift(-1).ffill()
        values = self.fit.predict(table, bars, start)
        return values.fillna(0) if self.violation == "fills" else values


@pytest.mark.parametrize("check, violation", [
    (check_future, "peeks"), (check_span, "short span"), (check_seed, "unseeded"), (check_unknown, "fills")
])
def test_a_forecaster_that_breaks_the_contract_is_found(check, violation, bars):
    check(Planted(), bars)
    with pytest.raises(AssertionError): check(Planted(violation), bars)


@pytest.mark.parametrize("horizon, leaks", [(HORIZON, False), (1, True)])
def test_outcomes_of_the_whole_market_leak_only_with_an_understated_horizon(horizon, leaks, bars):
    "`Learner` leaves out the last rows itself, even if its outcomes are known beyond the bars it gets."
    one, two = (
        Learner(LEARNERS["ridge"], INPUTS, lambda t, b, y=returns(features(m), m): y.loc[t.index], horizon)
        for m in (bars, altered(bars, END))
    )
    if not leaks: return check_outcomes(one, bars, two)
    with pytest.raises(AssertionError): check_outcomes(one, bars, two)
