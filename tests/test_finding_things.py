"""The first hour of a new user: the version, what is stored, and hints that lead on."""
import json

import pytest
import typer
from typer.testing import CliRunner

import cryptolstm
from cryptolstm.cli.main import app
from cryptolstm.core.errors import InputError
from cryptolstm.core.machine import git_commit
from cryptolstm.report.render import Report


def invoke(*words: str): return CliRunner().invoke(app, list(words))


def all_commands(group=None, words: tuple = ()) -> list[tuple]:
    "The words of every command, and of every group."
    group = group or typer.main.get_command(app)
    below = [c for name, g in getattr(group, "commands", {}).items() for c in all_commands(g, (*words, name))]
    return [words, *below]


# ---- version, help, ticker -------------------------------------------------------------------------------

def test_the_version_names_the_commit_of_a_checkout(monkeypatch):
    done = invoke("--version")
    assert done.exit_code == 0 and done.stdout.split()[:2] == ["cryptolstm", cryptolstm.__version__]
    assert (git_commit() or "") in done.stdout
    monkeypatch.setattr("cryptolstm.cli.main.git_commit", lambda: None)
    assert invoke("--version").stdout == f"cryptolstm {cryptolstm.__version__}\n"


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_every_command_has_a_short_option_for_its_help(words):
    short, long = invoke(*words, "-h"), invoke(*words, "--help")
    assert short.exit_code == 0 and short.stdout == long.stdout and "Usage" in short.stdout


def test_shell_completion_can_be_installed_and_completes_commands(monkeypatch):
    assert "--install-completion" in invoke("--help").stdout
    places = {"_ROOT_COMPLETE": "complete_bash", "COMP_WORDS": "root data ch", "COMP_CWORD": "2"}
    done = CliRunner().invoke(app, [], env=places, prog_name="root")
    assert done.stdout.split() == ["check"]


BOTH = [("backtest",), ("signal",), ("report",), ("data", "check"), ("data", "price"), ("models", "list")]


@pytest.mark.parametrize("words", BOTH, ids=" ".join)
def test_two_different_tickers_are_a_mistake(words):
    done = invoke(*words, "ETH/USD", "--ticker", "SOL/USD")
    assert isinstance(done.exception, InputError) and done.exception.exit_code == 2
    assert str(done.exception) == "the argument is ETH/USD and --ticker is SOL/USD; pass one ticker"


@pytest.mark.parametrize("ticker", [["bitcoin"], ["--ticker", "bitcoin"], ["bitcoin", "--ticker", "bitcoin"]])
@pytest.mark.parametrize("words", BOTH, ids=" ".join)
def test_a_ticker_may_be_an_argument_or_an_option(words, ticker):
    "The ticker that was passed is the one that is refused."
    done = invoke(*words, *ticker)
    assert isinstance(done.exception, InputError) and "bitcoin" in str(done.exception)


@pytest.mark.parametrize("ticker", [["SOL/USD"], ["--ticker", "SOL/USD"], ["sol-usd", "--ticker", "SOL/USD"]])
def test_the_ticker_reaches_the_report_either_way(ticker, monkeypatch, tmp_path):
    asked = []

    def run_report(ticker, *args, **how):
        asked.append(ticker)
        summary = {"verdict": {"level": "NO SKILL", "sentence": "none"}, "data": {}}
        return Report(tmp_path / "x.html", tmp_path / "x.ipynb", summary)

    monkeypatch.setattr("cryptolstm.report.render.run_report", run_report)
    for words in (["report"], ["backtest", "--report", "--json"]):
        assert invoke(*words, *ticker).exit_code == 0
    assert [t.upper().replace("-", "/") for t in asked] == ["SOL/USD"] * 2


def test_a_report_without_a_ticker_says_what_to_pass():
    done = invoke("report")
    assert isinstance(done.exception, InputError) and "cryptolstm report ETH/USD" in str(done.exception)


def test_a_check_takes_the_ticker_as_option():
    words = ["data", "check", "--exchange", "simulated", "--hours", "300", "--json"]
    assert list(json.loads(invoke(*words, "--ticker", "sol-usd").stdout)) == ["SOL/USD"]
