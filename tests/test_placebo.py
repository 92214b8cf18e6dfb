"""A placebo run has the real bars' numbers without their signal, is repeatable, and the real result is ranked
among placebo runs."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL, small_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cryptolstm.core.config import RunConfig
from cryptolstm.core.errors import InputError
from cryptolstm.core.bars import provenance, regular_grid, stamp
from cryptolstm.data.demo import demo_market, planted_market, planted_state
from cryptolstm.features.indicators import features
from cryptolstm.features.targets import target
from cryptolstm.stats.overfit import best_of
from cryptolstm.proof.trials import Ledger
from cryptolstm.research.walkforward import walk_forward
from cryptolstm.research.backtest import backtest, summary
from cryptolstm.research.placebo import (KINDS, LABELS, MARKET, ORDER, backtest_with_placebo, block_order,
                                         permuted_labels, placebo, placebo_figures, placebo_market,
                                         placebo_seeds, placebo_sentence, ranked, reordered_market,
                                         whole_moves)
from cryptolstm.cli.main import app

RUN = small_run(hours=120, retrain_every=60)
BARS = demo_market(900, seed=4, ticker="ETH/USD")


def moves(bars: pd.DataFrame) -> pd.DataFrame:
    "Move, shape and volume of each bar that can be shuffled."
    log = np.log(bars[["open", "high", "low", "close"]])
    table = log.sub(log["close"], axis=0).assign(move=log["close"].diff(), volume=bars["volume"])
    return (
        table[whole_moves(bars)]
        .round(9)
        .sort_values(["volume", "move"], ignore_index=True)
        .drop(columns="close")
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(holes=st.sets(st.integers(1, 298), max_size=40), seed=st.integers(0, 10**6), mean=st.floats(1, 400))
def test_a_reordered_market_has_the_same_moves_shapes_and_volumes_each_once(holes, seed, mean):
    bars = regular_grid(BARS.iloc[:300].drop(BARS.index[sorted(holes)]))
    n = int(whole_moves(bars).sum())
    order = block_order(n, mean, np.random.default_rng(seed))
    assert sorted(order) == list(range(n))
    # checked inside: high and low contain open and close, nothing is negative
    other = reordered_market(bars, order)
    assert other["is_gap"].equals(bars["is_gap"]) and other["close"].isna().equals(bars["close"].isna())
    pd.testing.assert_frame_equal(moves(other), moves(bars), rtol=1e-6, atol=1e-8)


def test_what_one_bar_says_of_the_next_is_gone_at_the_seams_and_only_there():
    bars = planted_market(6000, r2=0.10, seed=1)
    def lean(b):
        return np.log(b["close"]).diff().shift(-1).corr(planted_state(b), "spearman")
    def shuffled(mean):
        return reordered_market(bars, block_order(5999, mean, np.random.default_rng(0)))
    assert lean(bars) > .25 and abs(lean(shuffled(1))) < .04, "each bar by itself: nothing is left"
    assert (
        0.15 < lean(shuffled(48)) < lean(bars) + 0.03
    ), "in blocks of two days an effect of an hour is still there"


def test_permuted_labels_are_the_training_labels_on_other_bars():
    table, part = features(BARS), slice(100, 700)
    bars, known = BARS.iloc[part], table.iloc[part]
    permuted = permuted_labels(3)(bars, known)
    pd.testing.assert_frame_equal(permuted, permuted_labels(3)(bars, known))
    true, false = (target(b, known["sigma"]).dropna() for b in (bars, permuted))
    assert (
        true.index.equals(false.index)
        and abs(true.corr(false)) < 0.15
        and not permuted["close"].equals(bars["close"])
    )
    # those of the first bar, which has no previous σ, stay
    np.testing.assert_allclose(np.sort(false)[5:-5], np.sort(true)[5:-5], atol=.1)
    maker = permuted_labels(3)
    assert not maker(bars, known)["close"].equals(
        maker(bars, known)["close"]
    ), "the next training of a run has another permutation"


def test_a_network_taught_permuted_labels_is_another_one_and_is_tested_on_the_real_bars():
    seen = []
    def spy(bars, table): seen.append(bars.index[[0, -1]]); return permuted_labels(0)(bars, table)
    honest, fooled = walk_forward(BARS, RUN), walk_forward(BARS, RUN, label_bars=spy)
    assert len(seen) == len(honest.folds) == 2
    assert all(
        last < start for (_, last), start in zip(seen, honest.folds["tested_from"], strict=True)
    ), "no tested bar is permuted"
    assert honest.predictions["realised"].equals(fooled.predictions["realised"])
    assert not honest.predictions["prediction"].equals(fooled.predictions["prediction"])


def test_placebo_markets_are_stamped_as_invented_and_as_wild_as_the_bars():
    real = stamp(BARS, "ETH/USD", "kraken", revised=["x"])
    def sd(b):
        return np.log(b["close"]).diff().std()
    for kind in (ORDER, MARKET):
        other = placebo_market(regular_grid(real), kind, 5)
        assert (
            provenance(other).simulated
            and provenance(other).revised is None
            and provenance(other).ticker == "ETH/USD"
            and other.index.equals(real.index)
        )
        assert not other["close"].equals(real["close"])
    assert sd(placebo_market(regular_grid(real), ORDER, 5)) == pytest.approx(sd(real), rel=1e-3)
    # months differ, but their mean square agrees
    drawn = [sd(placebo_market(regular_grid(real), MARKET, seed)) for seed in range(30)]
    assert np.sqrt(np.mean(np.square(drawn))) == pytest.approx(sd(real), rel=.25)


def test_the_rank_counts_the_real_run_as_one():
    rng = np.random.default_rng(0)
    p = np.array([ranked(x[0], list(x[1:]))["p"] for x in rng.standard_normal((4000, 10))])
    assert sorted(set(p.round(6))) == [pytest.approx(k / 10) for k in range(1, 11)]
    assert (p <= .1).mean() == pytest.approx(.1, abs=.02), "the level holds"


def test_what_a_kind_leaves_is_said_and_a_return_without_a_trade_is_not_ranked():
    """Blocks keep the dependence between hours, so a hit rate reached there need not be luck; and every run
    without a trade reaches 0.00%."""
    skill = pd.DataFrame({"hit": [.58], "ic": [.2]}, ["LSTM"])
    none = {"trades": BARS.iloc[:0], "sharpe_ratio": float("nan"), "total_return": 0.0}
    idle = placebo_figures({"config": RunConfig(), "skill": skill, **none})
    assert idle == {"hit": .58, "ic": .2, "sharpe_ratio": None, "total_return": None}
    sentence = placebo_sentence({kind: {name: ranked(x, [x]) for name, x in idle.items()} for kind in KINDS})
    assert (
        sentence
        == "Placebo runs: direction right 58.0%, reached by 1 of 1 (permuted labels), "
        "1 of 1 (permuted blocks of returns, which keep the dependence within a block), 1 of 1 (demo market)"
    )


@pytest.mark.slow
def test_placebos_are_reproducible_ranked_and_no_trial(tmp_path, monkeypatch):
    monkeypatch.setenv("CRYPTOLSTM_HOME", str(tmp_path))
    results = backtest(BARS, RUN)
    found = placebo(results, 3)
    assert [r["kind"] for r in found["runs"]] == list(KINDS) and [
        r["seed"] for r in found["runs"]
    ] == placebo_seeds(RUN, 3)
    assert placebo(results, 1)["runs"] == found["runs"][:1], "reproducible, and more runs keep those of fewer"
    assert placebo({**results, "config": replace(RUN, seed=1)}, 1)["runs"] != found["runs"][:1]
    assert found["kinds"][LABELS]["hit"]["seen"] == results["skill"].loc["LSTM", "hit"]
    assert (
        json.loads(json.dumps(found, allow_nan=False)) == found
        and summary({**results, "placebo": found})["placebo"] == found
    )
    assert not Ledger().path.exists()


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "3"])
def test_an_odd_number_of_placebos_is_refused(n):
    with pytest.raises(InputError, match="pass"): placebo({}, n)


SETTINGS = {
    **{f"network.{k}": v for k, v in SMALL.items()},
    "train_hours": 300,
    "lookback": 12,
    "retrain_every": 240,
}
COMMAND = [
    "backtest",
    "--exchange",
    "simulated",
    "--ticker",
    "ETH/USD",
    "--hours",
    "96",
    *(part for k, v in SETTINGS.items() for part in ("--set", f"{k}={v}")),
]


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    "The printed summary of a run with one placebo, and its home."
    home = tmp_path_factory.mktemp("home")
    results = backtest_with_placebo(
        replace(RUN, hours=96, retrain_every=96, train_hours=300), 1, home, certify=False
    )
    return json.loads(json.dumps(summary(results), allow_nan=False, default=str)), home


def test_a_run_with_placebo_is_ranked_and_enters_one_trial(printed):
    found, home = printed
    assert found["placebo"]["n"] == 1 and list(found["placebo"]["kinds"]) == [LABELS] and found["fan"] is None
    assert found["placebo"]["kinds"][LABELS]["hit"]["p"] in (.5, 1.0)
    assert len(Ledger(home).trials_of("ETH/USD", market="simulated:0")) == 1


@pytest.mark.slow
def test_the_command_prints_where_its_result_stands(tmp_path):
    done = CliRunner().invoke(app, [*COMMAND, "--placebo", "1"], env={"CRYPTOLSTM_HOME": str(tmp_path)})
    assert done.exit_code == 0 and "Placebo runs: direction right" in done.stdout


@pytest.mark.parametrize("odd, says", [
    (["--placebo", "-1"], "whole number"), (["--placebo", "2", "--grid", "stop_atr=1:4:3"], "--grid")])
def test_a_nonsensical_placebo_is_refused_before_anything_is_run(odd, says):
    refused = CliRunner().invoke(app, [*COMMAND, *odd])
    assert isinstance(refused.exception, InputError) and says in str(refused.exception)
    assert CliRunner().invoke(app, [*COMMAND, "--placebo", "1.5"]).exit_code == 2


def test_what_backtests_print_is_compared_across_tickers(printed, tmp_path):
    found, files = printed[0], []
    for ticker in ("ETH/USD", "BTC/USD", "SOL/USD"):
        (file := tmp_path / f"{ticker[:3]}.json").write_text(json.dumps({**found, "ticker": ticker}))
        files.append(str(file))
    done = CliRunner().invoke(app, ["compare-tickers", *files, "--json"])
    table = json.loads(done.stdout)
    assert (
        table["tickers"] == 3
        and table["zero_skill"] == best_of(3, 96)
        and [r["ticker"] for r in table["rows"]] == ["ETH/USD", "BTC/USD", "SOL/USD"]
    )
    skill = found["skill"]["LSTM"]
    p = max(skill["cw_p"], skill["cw_mean_p"], skill["pt_p"])
    assert all(
        r["p"] == pytest.approx(p)
        and r["p_holm"] == pytest.approx(min(3 * p, 1))
        and r["p_bh"] == pytest.approx(p)
        for r in table["rows"]
    )
    assert "Of 3 tickers" in CliRunner().invoke(app, ["compare-tickers", *files]).stdout
    (broken := tmp_path / "broken.json").write_text("{")
    for wrong, says in (
        (str(broken), "is not JSON"),
        (str(tmp_path / "none.json"), "there is no file"),
        (files[0], "comes twice"),
    ):
        assert says in str(CliRunner().invoke(app, ["compare-tickers", *files, wrong]).exception)


@pytest.mark.slow
def test_a_report_shows_where_its_result_stands(tmp_path, monkeypatch):
    from cryptolstm.report.manifest import split
    from cryptolstm.report.render import run_report
    monkeypatch.setenv("CRYPTOLSTM_HOME", str(tmp_path))
    run = {
        "exchange": "simulated",
        "hours": 96,
        "train_hours": 300,
        "lookback": 12,
        "retrain_every": 240,
        "network": {**SMALL, "seeds": [0, 1]},
    }
    done = run_report("ETH/USD", None, run, out=tmp_path, placebo=3)
    page, manifest = split(done.html.read_text(encoding="utf-8"))
    assert (
        "Placebo runs: direction right" in page
        and page.count("<figure>") == 7
        and "they disagree on the" in page
    )
    assert manifest["placebo"]["n"] == 3 and done.summary["fan"]["disagree"] > 0
