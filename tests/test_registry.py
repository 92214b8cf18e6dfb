"""Model versions: atomic replacement, rollback, pruning; two processes, killed processes, damaged versions;
champion and challenger."""
import json
import os
import signal as signals_of_the_system
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from cryptolstm import SignalGenerator
from cryptolstm.core.errors import InputError, OperationError, TrainingSpanError
from cryptolstm.core.bars import HOUR
from cryptolstm.core.config import RunConfig
from cryptolstm.data.demo import demo_market
from cryptolstm.data.store import bar_path
from cryptolstm.features.indicators import features
from cryptolstm.model.settings import model_config
from cryptolstm.model.bundle import load_bundle
from cryptolstm.model.training import fit
from cryptolstm.model.live_model import LiveModel
from cryptolstm.model.registry import (current_version, line_lock, line_name, prune, read_note, rollback,
                                       save_version, usable_version, use_version, version_folders,
                                       versions, was_used)
from cryptolstm.model.challenge import challenge, paired_test
from cryptolstm.research.compare import compare_models
from cryptolstm.cli.main import app

TINY = {
    "units": [4],
    "dropout": [0.1],
    "recurrent_dropout": [0.1],
    "dense": [4],
    "epochs": 1,
    "refit_epochs": 1,
}
RUN = RunConfig(lookback=12, network=TINY)


@pytest.fixture(scope="module")
def trained():
    bars = demo_market(900, seed=1)
    table = features(bars)
    return fit(bars.iloc[:600], table.iloc[:600], model_config(RUN), hours=500), bars, table


@pytest.fixture
def line(trained, tmp_path):
    "A model line with three versions that were used; the newest is in use."
    return tmp_path, [save_version(trained[0], "line", tmp_path) for _ in range(3)]


def generator(loopback, home, **settings):
    return SignalGenerator(
        "BTC/USD",
        exchange="coinbaseexchange",
        exchange_url=loopback.url,
        home=home,
        config=replace(RUN, **settings),
    )


# -- versions, rollback, prune
# --------------------------------------------------------------------------------------------------

def test_going_back_changes_the_link_and_no_model_and_the_same_command_undoes_it(line):
    root, (first, second, third) = line
    def files():
        return {
            p: p.read_bytes()
            for p in sorted(root.rglob("*.*"))
            if p.is_file() and p.name != "used.json" and not p.is_symlink()
        }
    before = files()
    assert rollback("line", root=root) == {"line": "line", "was": third.name, "now": second.name}
    assert rollback("line", root=root) == {"line": "line", "was": second.name, "now": third.name}
    assert (
        rollback("line", first.name, root)["was"] == third.name
        and rollback("line", root=root)["now"] == third.name
    )
    assert current_version("line", root) == third and files() == before


def test_a_version_that_came_into_use_by_hand_counts_as_used(line, trained):
    root, found = line
    aside = save_version(trained[0], "line", root, use=False)
    assert not was_used(aside) and versions("line", root)["state"].tolist()[-1] == "aside"
    rollback("line", aside.name, root), rollback("line", root=root)
    assert was_used(aside) and versions("line", root)["state"].tolist()[-2:] == ["in use", "kept"]


def test_a_version_that_does_not_exist_is_answered_with_those_that_do(line):
    root, found = line
    # no version begins like the first, all begin like the second
    for wanted in ("1999", "2"):
        with pytest.raises(
            InputError, match=f"version.* of line; pass one of {found[0].name}, {found[1].name}"
        ):
            rollback("line", wanted, root)
    with pytest.raises(InputError, match="there is no model line lime .*; pass one of line"):
        versions("lime", root)
    assert current_version("line", root) == found[2]


def test_rollback_passes_over_what_was_never_in_use_and_refuses_what_is_damaged(line, trained):
    root, found = line
    aside = save_version(trained[0], "line", root, use=False)
    newest = save_version(trained[0], "line", root)
    assert rollback("line", root=root)["now"] == found[2].name and newest.name > aside.name
    for file, content in (("model.onnx", "x"), ("version.json", "{}")):
        (found[1] / file).write_text(content)
        with pytest.raises(OperationError, match=f"version {found[1].name} of line is damaged"):
            rollback("line", found[1].name, root)
    assert current_version("line", root) == found[2]
    with pytest.raises(
        InputError,
        match=f"line has no version that was in use before {found[0].name}; pass one of {found[0].name}, ",
    ):
        rollback("line", found[0].name, root), (found[0] / "used.json").unlink(), rollback("line", root=root)


def test_prune_keeps_the_newest_and_the_one_in_use(line, trained):
    root, found = line
    rollback("line", found[0].name, root)
    (root / "line" / "20200101T000000.000000Z.damaged").mkdir()
    old = root / "line" / ".new-old"
    old.mkdir(), os.utime(old, (1, 1)), (root / "line" / ".new-young").mkdir()
    assert versions("line", root)["state"].tolist() == ["damaged", "in use", "kept", "kept"]
    with line_lock("line", root), pytest.raises(
        OperationError, match="^another process has been training line; try again when it is done"
    ):
        prune("line", 1, root)
    assert prune("line", 1, root) == [found[1].name, "20200101T000000.000000Z.damaged"]
    assert version_folders("line", root) == [found[0], found[2]] and current_version("line", root) == found[0]
    # a new folder may belong to a running process
    assert not old.exists() and (root / "line" / ".new-young").exists()
    for nonsense in (0, -1, True, 1.5):
        with pytest.raises(InputError, match="^keep is .*; pass a whole number from 1$"):
            prune("line", nonsense, root)


def test_the_table_survives_a_version_it_cannot_read(line):
    root, found = line
    (found[0] / "bundle.json").write_text("{")
    (found[1] / "version.json").write_text("[]")
    table = versions("line", root).set_index("version")
    assert table["state"].tolist() == ["damaged", "damaged", "in use"] and table["current"].tolist() == [
        False,
        False,
        True,
    ]
    assert (
        table.loc[found[2].name, "libraries"]["keras"]
        and table["windows"].notna().sum() == 1
        and table.loc[found[2].name, "ticker"] == "BTC/USD"
    )


@pytest.mark.parametrize("how", ["changed", "gone", "empty"])
def test_a_version_whose_note_is_not_as_it_was_written_is_damaged(line, how):
    root, found = line
    path = found[2] / "version.json"
    assert read_note(path.parent)["libraries"]["keras"]
    (
        path.write_text(path.read_text().replace("keras", "kerax"))
        if how == "changed"
        else path.unlink() if how == "gone" else path.write_text("")
    )
    with pytest.raises(OperationError, match="cannot be read"): read_note(path.parent)
    version, said = usable_version("line", load_bundle, root)
    assert version.folder == found[1]
    assert said == [
        f"version {found[2].name} of the model is damaged and was set aside as {found[2].name}.damaged;"
        f" version {found[1].name} is used instead"
    ]


def test_the_commands_answer_in_json_and_with_exit_codes(line, monkeypatch):
    root, found = line
    (root / "home").mkdir()
    (root / "home" / "models").symlink_to(root)
    monkeypatch.setenv("CRYPTOLSTM_HOME", str(root / "home"))
    def run(*words):
        return CliRunner().invoke(app, ["models", *words, "--model", "line"])
    assert [r["state"] for r in json.loads(run("list", "--json").stdout)["versions"]] == [
        "kept",
        "kept",
        "in use",
    ]
    assert found[2].name in run("list").stdout
    assert json.loads(run("rollback", "--json").stdout)["now"] == found[1].name
    assert json.loads(run("rollback", "--json").stdout) == {
        "line": "line",
        "was": found[1].name,
        "now": found[2].name,
    }
    listed = json.loads(run("list", "--json").stdout)
    assert (listed["line"], listed["ticker"], listed["other_lines"]) == (
        "line",
        "BTC/USD",
        [],
    ) and "line  BTC/USD" in run("list").stdout
    assert json.loads(run("prune", "--keep", "2", "--json").stdout)["removed"] == [found[0].name]
    assert isinstance(run("rollback", "nonsense").exception, InputError) and run("prune").exit_code == 2


# -- processes
# --------------------------------------------------------------------------------------------------

SAVER = """
import sys, time
from pathlib import Path
from cryptolstm.model import bundle as model, registry
bundle = model.load_bundle(sys.argv[1])
write = model.write_record
def slow(*args, **more): print("half", flush=True); time.sleep(60)
if sys.argv[3] == "slow": model.write_record = slow
print("ready", flush=True)
for _ in range(int(sys.argv[4])): registry.save_version(bundle, "line", Path(sys.argv[2]))
"""


def saver(folder, root, how, times=1):
    return subprocess.Popen(
        [sys.executable, "-c", SAVER, str(folder), str(root), how, str(times)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_process_killed_while_saving_leaves_the_version_before_in_use(line):
    root, found = line
    process = saver(found[0], root, "slow")
    while process.stdout.readline().strip() != "half": assert process.poll() is None
    process.send_signal(signals_of_the_system.SIGKILL), process.wait()
    # it was killed half-way, with files written
    assert list((root / "line").glob(".new-*/model.keras"))
    assert version_folders("line", root) == found and current_version("line", root) == found[2]
    assert load_bundle(current_version("line", root)) == load_bundle(found[0])


def test_two_processes_that_save_into_one_line_lose_nothing(line):
    root, found = line
    both = [saver(found[0], root, "fast", 4) for _ in range(2)]
    for process in both: assert process.wait(120) == 0
    assert len(version_folders("line", root)) == 3 + 8
    for folder in version_folders("line", root): LiveModel.load(folder)    # all hashes match
    assert current_version("line", root) in version_folders("line", root) and not list(
        (root / "line").glob(".new-*")
    )


TRAINER = """
import json, sys
from cryptolstm import SignalGenerator
from cryptolstm.core.config import RunConfig
run = RunConfig(lookback=12, network=json.loads(sys.argv[2]))
print(json.dumps(SignalGenerator(exchange="simulated", home=sys.argv[1], config=run)\
.generate_signals(hours=120)["model_info"]))
"""


def test_two_processes_that_train_one_line_train_it_once(tmp_path):
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TRAINER, str(tmp_path), json.dumps(TINY)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    infos = [json.loads(p.communicate(timeout=240)[0]) for p in both]
    assert len({i["version"] for i in infos}) == 1 and sorted(i["decision"].split(":")[0] for i in infos) == [
        "reused",
        "trained",
    ]


# -- damage
# --------------------------------------------------------------------------------------------------

def test_a_damaged_version_is_set_aside_the_previous_one_decides_and_the_signal_says_so(loopback, tmp_path):
    loopback.now -= 100 * HOUR
    sg = generator(loopback, tmp_path)
    first = sg.generate_signals(hours=120)["model_info"]["version"]
    loopback.now += 30 * HOUR
    second = sg.generate_signals(hours=120)["model_info"]["version"]
    folder = tmp_path / "models" / sg.line_of(120)
    (folder / second / "model.onnx").write_bytes(b"damaged")
    said = sg.generate_signals(hours=120, retrain_threshold=48)
    assert said["model_info"]["version"] == first and (folder / f"{second}.damaged").is_dir()
    aside = f"version {second} of the model is damaged and was set aside as {second}.damaged; version {first}"
    assert f"{aside} is used instead" in said["warnings"]
    assert not any("damaged" in w for w in sg.generate_signals(hours=120, retrain_threshold=48)["warnings"])


def test_without_a_version_before_it_a_new_one_is_trained(loopback, tmp_path):
    sg = generator(loopback, tmp_path)
    only = sg.generate_signals(hours=120)["model_info"]["version"]
    (tmp_path / "models" / sg.line_of(120) / only / "bundle.json").unlink()
    said = sg.generate_signals(hours=120)
    assert (
        said["model_info"]["decision"] == "trained: there was no model yet"
        and f"version {only} of the model is damaged" in said["warnings"][0]
    )


def test_a_newer_version_that_was_used_answers_where_there_is_no_older_one(line):
    root, found = line
    rollback("line", found[0].name, root)
    (found[0] / "bundle.json").write_text("{")
    version, said = usable_version("line", load_bundle, root)
    assert version.folder == found[1] == current_version("line", root) and said[0].endswith(
        f"version {found[1].name} is used instead"
    )


@pytest.mark.parametrize("how", ["lost", "a file"])
def test_a_lost_link_is_said_and_the_newest_used_version_answers(line, trained, how):
    root, found = line
    save_version(trained[0], "line", root, use=False)
    (root / "line.keras").unlink()
    # a copy that follows links
    if how == "a file": (root / "line.keras").write_bytes((found[2] / "model.keras").read_bytes())
    version, said = usable_version("line", load_bundle, root)
    assert version.folder == found[2] == current_version("line", root)
    assert said == [
        "the link line.keras, of the version in use, was missing or led elsewhere; version"
        f" {found[2].name} is used instead"
    ]
    assert usable_version("line", load_bundle, root)[1] == []


def test_a_later_format_and_a_removed_folder_are_no_damage(line):
    root, found = line
    path = found[2] / "bundle.json"
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | {"format": 5}))
    with pytest.raises(OperationError, match="format 5, this version reads"):
        usable_version("line", load_bundle, root)
    assert found[2].is_dir()
    os.rename(found[2], root / "elsewhere")
    version, said = usable_version("line", load_bundle, root)
    assert version.folder == found[1] and said == [
        f"version {found[2].name} of the model is missing; version {found[1].name} is used instead"
    ]


@pytest.mark.parametrize("where", ["itself", "another line", "an absolute path", "a name that is no version"])
def test_a_link_that_leads_elsewhere_names_no_version_and_nothing_is_renamed(line, trained, where):
    root, found = line
    other = save_version(trained[0], "other", root)
    link = root / "line.keras"
    link.unlink()
    link.symlink_to({"itself": "line.keras", "another line": f"other/{other.name}/model.keras",
                     "an absolute path": found[0] / "model.keras",
                     "a name that is no version": "line/../model.keras"}[where])
    assert current_version("line", root) is None
    version, messages = usable_version("line", load_bundle, root)
    assert version.folder == found[2] and "led elsewhere" in messages[0]
    assert sorted(p.name for p in root.iterdir()) == ["line", "line.keras", "other", "other.keras"]


def test_links_that_killed_processes_left_are_pruned_after_a_day(line):
    root, found = line
    days = 2 * 86_400
    for name, age in ((".line.keras.1.2", days), (".line.keras.3.4", 60), (".other.keras.1.2", days)):
        (left := root / name).symlink_to(f"line/{found[0].name}/model.keras")
        os.utime(left, (time.time() - age,) * 2, follow_symlinks=False)
    prune("line", 3, root)
    assert sorted(p.name for p in root.glob(".*.keras.*")) == [".line.keras.3.4", ".other.keras.1.2"]


def test_addresses_of_one_exchange_share_neither_a_line_nor_a_folder(tmp_path):
    host = "127.0.0.1"
    where = [f"{host}{rest}" for rest in (":8765/api", "/8765/api", ":8765_api", ":8765/api/")]
    where += ["h.x", "h-x", "h_x"]
    markets = ["binance", *(f"binance@{x}" for x in where)]
    assert len({line_name("BTC/USD", market=m) for m in markets}) == len(markets)
    assert len({bar_path(tmp_path, m, "BTC/USD") for m in markets}) == len(markets)
    assert line_name("BTC/USD", market="binance@127.0.0.1:8765") == "btc_usd_binance_127_0_0_1_8765_lstm_v2"
    assert bar_path(tmp_path, "binance@127.0.0.1:8765", "BTC/USD").parent.name == "binance@127.0.0.1_8765"


# -- champion and challenger
# --------------------------------------------------------------------------------------------------

class Wild:
    "A bundle whose forecasts are shifted by +3 σ and -3 σ in turn."
    def __new__(cls, bundle):
        kind = type("Wild", (type(bundle),), {"outputs": lambda self, x, ends: bundle.outputs(x, ends)
                                                 + np.where(np.arange(len(ends)) % 2, 3.0, -3.0)[:, None]})
        return kind(**vars(bundle))


def test_a_worse_version_is_kept_as_challenger_and_not_trained_again_at_every_call(
    loopback, tmp_path, monkeypatch
):
    loopback.now -= 200 * HOUR
    sg = generator(loopback, tmp_path)
    first = sg.generate_signals(hours=400)["model_info"]["version"]
    loopback.now += 60 * HOUR
    train, count = SignalGenerator._train, []
    monkeypatch.setattr(SignalGenerator, "_train", lambda self, *a: count.append(1) or Wild(train(self, *a)))
    said = sg.generate_signals(hours=400)
    info = said["model_info"]
    assert info["version"] == first and "is kept as challenger, since its loss on" in info["decision"]
    challenger = version_folders(sg.line_of(400), tmp_path / "models")[-1]
    assert read_note(challenger)["decision"] == info["challenge"] and info["challenge"]["against"] == first
    assert (
        not info["challenge"]["use"] and info["challenge"]["p_worse"] < 0.05 and info["challenge"]["n"] >= 30
    )
    again = sg.generate_signals(hours=400)["model_info"]
    assert again["version"] == first and "is kept beside it" in again["decision"] and len(count) == 1
    loopback.now += 24 * HOUR
    sg.generate_signals(hours=400)
    # the retraining threshold has passed again
    assert len(count) == 2
    assert versions(sg.line_of(400), tmp_path / "models")["state"].tolist() == [
        "in use",
        "challenger",
        "challenger",
    ]


def test_at_the_usual_rhythm_a_worse_version_is_rejected(loopback, tmp_path, monkeypatch):
    """240 training bars, retrained every day: the bars that moved no weight of either model are enough to
    tell."""
    loopback.now -= 200 * HOUR
    sg = generator(loopback, tmp_path)
    first = sg.generate_signals()["model_info"]["version"]
    loopback.now += 24 * HOUR
    second = sg.generate_signals()["model_info"]
    assert (
        second["version"] != first
        and second["challenge"]["use"]
        and second["challenge"]["n"] == 48
        and second["challenge"]["p_worse"] is not None
    )
    loopback.now += 24 * HOUR
    train = SignalGenerator._train
    monkeypatch.setattr(SignalGenerator, "_train", lambda self, *a: Wild(train(self, *a)))
    third = sg.generate_signals()["model_info"]
    assert (
        third["version"] == second["version"]
        and not third["challenge"]["use"]
        and third["challenge"]["n"] == 48
    )


def test_a_rollback_during_a_retraining_holds(loopback, tmp_path, monkeypatch):
    loopback.now -= 200 * HOUR
    sg, root = generator(loopback, tmp_path), tmp_path / "models"
    first = sg.generate_signals()["model_info"]["version"]
    loopback.now += 24 * HOUR
    sg.generate_signals()
    loopback.now += 24 * HOUR
    train = SignalGenerator._train

    def meanwhile(self, *a):
        done = train(self, *a)
        rollback(sg.line, first, root)
        return done

    monkeypatch.setattr(SignalGenerator, "_train", meanwhile)
    said = sg.generate_signals()
    assert said["model_info"]["version"] == first == current_version(sg.line, root).name
    assert said["model_info"]["decision"].endswith("is kept beside it")
    kept = "another version was put in use while this call trained one, which is kept beside it"
    assert kept in said["warnings"]
    state = versions(sg.line, root)["state"].tolist()
    # 'challenger' if it also lost against the version it was compared with
    assert state[:2] == ["in use", "kept"] and state[2] in ("aside", "challenger")


def test_a_version_takes_the_place_of_the_one_it_was_compared_with_and_of_no_other(line, trained):
    root, found = line
    new = save_version(trained[0], "line", root, use=False)
    assert not use_version("line", new, root, instead_of=found[0]) and not use_version(
        "line", new, root, instead_of=None
    )
    assert current_version("line", root) == found[2] and not was_used(new)
    assert use_version("line", new, root, instead_of=found[2]) and current_version("line", root) == new


def test_a_version_as_good_as_the_one_in_use_takes_over_and_its_numbers_are_kept(loopback, tmp_path):
    loopback.now -= 200 * HOUR
    sg = generator(loopback, tmp_path, seed=1)
    sg.generate_signals(hours=400)
    loopback.now += 60 * HOUR
    info = sg.generate_signals(hours=400)["model_info"]
    folder = current_version(sg.line_of(400), tmp_path / "models")
    assert (
        folder.name == info["version"] and info["decision"].startswith("trained") and info["challenge"]["use"]
    )
    assert (
        read_note(folder)["decision"]
        == info["challenge"]
        == sg.generate_signals(hours=400)["model_info"]["challenge"]
    )


def test_bars_that_moved_a_weight_of_either_model_do_not_count(trained):
    bundle, bars, table = trained
    new = fit(bars.iloc[100:640], table.iloc[100:640], bundle.config)
    judged = challenge(new, bundle, table, bars)
    fitted = bars.index.get_loc(bundle.fitted_until)
    # rows … 638: the last row has no label
    first = 639 - new.training["validation_windows"]
    assert (
        judged["n"] == 638 - max(fitted, first - 1) == new.training["validation_windows"] and fitted < first
    )
    late = replace(bundle, fitted_until=bars.index[620].isoformat())
    assert challenge(new, late, table, bars)["n"] == 18
    assert (
        challenge(new, late, table, bars)["reason"]
        == "18 bars that moved no weight of either model are too few to tell"
    )
    # a record without that date: only bars it has not seen at all
    assert challenge(new, replace(bundle, fitted_until=None), table, bars)["n"] == 39


def test_the_paired_test_is_that_of_statsmodels():
    from statsmodels.tsa.stattools import diebold_mariano_test
    y, a, b = np.random.default_rng(1).standard_normal((3, 300))
    for horizon in (1, 6):
        theirs = diebold_mariano_test(y, a, b, criterion="mse", harvey_adj=True, horizon=horizon)
        ours = paired_test((y - a) ** 2, (y - b) ** 2, horizon)
        assert ours["statistic"] == pytest.approx(float(theirs.statistic), rel=1e-6) and ours[
            "p"
        ] == pytest.approx(float(theirs.pvalue), rel=1e-6)


def test_models_are_compared_only_on_bars_neither_has_seen(trained):
    bundle, bars, table = trained
    later = fit(bars.iloc[100:700], table.iloc[100:700], bundle.config)
    found = compare_models(bundle, later, bars)
    assert found.first == bars.index[700].isoformat() and found.bars == 200
    assert found.forecast["n"] == found.compared == 199
    for start in (bars.index[650], bars.index[699], bars.index[-1] + HOUR):
        with pytest.raises(TrainingSpanError, match="pass bars after both spans"):
            compare_models(bundle, later, bars, start=start)
    mirrored = compare_models(later, bundle, bars)
    assert mirrored.forecast["difference"] == pytest.approx(-found.forecast["difference"])
    assert mirrored.a == found.b
    with pytest.raises(InputError, match="look 1 and 2 bars ahead"):
        compare_models(bundle, replace(later, config=replace(later.config, horizon=2)), bars)
