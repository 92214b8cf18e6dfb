"""What all commands share: the ticker as argument or as --ticker, addresses without credentials, and shell
completion."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from loopback import Loopback, a_market
from typer.testing import CliRunner

from cryptolstm.cli.main import app
from cryptolstm.core.config import RunConfig, read_params, run_config
from cryptolstm.core.errors import InputError

ETH = "ETH/USD"
SECRET = "planted-secret"
# positional arguments that a command needs before its ticker
BEFORE = {
    "data import": ["bars.csv"], "data export": ["bars.csv"], "models compare": ["a", "b"],
    "models rollback": ["v"],
}
NEEDED = {"data import": ["--exchange", "x"], "models prune": ["--keep", "3"]}


def commands(group=None, names: tuple = ()) -> dict:
    "Every command of the program by its name."
    found = {}
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"): found |= commands(command, (*names, name))
        else: found[" ".join((*names, name))] = command
    return found


def options(command) -> set:
    return {o for p in command.params for o in p.opts}


WITH_TICKER = [name for name, command in commands().items() if "--ticker" in options(command)]
WITH_URL = [name for name, command in commands().items() if "--exchange-url" in options(command)]


def invoke(name: str, *words):
    return CliRunner().invoke(app, [*name.split(), *BEFORE.get(name, []), *NEEDED.get(name, []), *words])


def test_the_commands_that_take_a_ticker():
    metavars = {n for n, c in commands().items() for p in c.params
                if p.param_type_name == "argument" and p.name in ("pair", "tickers")}
    assert metavars == set(WITH_TICKER) and len(WITH_TICKER) == 20
    assert {"signal", "backtest", "report", "data fetch", "data check", "data price"} < metavars


@pytest.mark.parametrize("name", WITH_TICKER)
def test_two_different_tickers_are_one_error(name, client_home):
    done = invoke(name, ETH, "--ticker", "BTC/USD")
    assert isinstance(done.exception, InputError) and done.exception.exit_code == 2
    assert ETH in str(done.exception) and "--ticker is BTC/USD; pass one" in str(done.exception)


@pytest.mark.parametrize("words", [
    (ETH,), ("--ticker", ETH), ("eth-usd", "--ticker", ETH), ("--ticker", ETH, "--ticker", "BTC/USD"),
])
def test_a_fetch_takes_both_forms(client_home, words):
    asked = {ETH, "BTC/USD"} if "BTC/USD" in words else {ETH}
    frames = {t: a_market(60, ticker=t) for t in (ETH, "BTC/USD")}
    with Loopback(frames, now="2025-02-01") as exchange:
        done = invoke("data fetch", *words, "--hours", "50", "--exchange-url", exchange.url)
        assert done.exit_code == 0, done.output
        assert {t for t in frames if exchange.count(t.replace("/", "-") + "/candles")} == asked
        checked = invoke("data check", *words, "--hours", "50", "--exchange-url", exchange.url, "--stored")
    assert checked.exit_code == 0 and all(t in checked.output for t in asked)


def test_a_rollback_takes_the_ticker_alone(client_home):
    for words in (["rollback", ETH], ["rollback", "--ticker", ETH], ["rollback", "v", ETH]):
        done = CliRunner().invoke(app, ["models", *words])
        assert isinstance(done.exception, InputError) and "ETH" in str(done.exception).upper()


def test_an_import_without_a_ticker_says_where_to_pass_it(client_home, tmp_path):
    done = invoke("data import")
    assert isinstance(done.exception, InputError)
    assert "pass it after the file or as --ticker" in str(done.exception)


def outputs(*folders: Path) -> list[bytes]:
    return [p.read_bytes() for folder in folders for p in folder.rglob("*") if p.is_file()]


@pytest.mark.parametrize("name", WITH_URL)
@pytest.mark.parametrize("variable", [True, False])
def test_no_output_has_the_secret_of_an_address(name, variable, client_home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = f"http://me:{SECRET}@127.0.0.1:9"
    if variable: monkeypatch.setenv("CRYPTOLSTM_EXCHANGE_URL", address)
    done = invoke(name, *(() if variable else ("--exchange-url", address)))
    assert isinstance(done.exception, InputError) and done.exception.exit_code == 2
    assert "put user name and password into ~/.netrc" in str(done.exception)
    for text in (str(done.exception).encode(), done.output.encode(), *outputs(tmp_path)):
        assert SECRET.encode() not in text


@pytest.mark.parametrize("text", [
    f"exchange_url: http://me:{SECRET}@127.0.0.1:9", f"exchange_url: 'https://x.example/?apikey={SECRET}'",
    f"exchange_url: [http://me:{SECRET}@x]", f"exchange_url: {{http: '//me:{SECRET}@x'}}",
])
def test_a_parameter_file_with_a_secret_is_refused_and_not_repeated(text, client_home, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    asked = [
        lambda: run_config(read_params(file)),
        lambda: CliRunner().invoke(app, ["signal", "--params", str(file)], catch_exceptions=False),
        lambda: CliRunner().invoke(app, ["report", ETH, "--params", str(file)], catch_exceptions=False),
        lambda: CliRunner().invoke(
            app, ["backtest", "--set", text.replace(": ", "=", 1)], catch_exceptions=False
        ),
    ]
    for ask in asked:
        with pytest.raises(InputError, match="~/.netrc") as e: ask()
        assert SECRET not in str(e.value)
    assert not client_home.exists() or not any(SECRET.encode() in b for b in outputs(client_home))


def test_papermill_refuses_a_secret_before_it_starts(client_home, tmp_path):
    from cryptolstm.report.render import run_report

    with pytest.raises(InputError, match="~/.netrc") as e:
        run_report(ETH, overrides={"exchange_url": f"http://me:{SECRET}@127.0.0.1:9"}, out=tmp_path / "out")
    assert SECRET not in str(e.value) and not outputs(tmp_path)
    assert "exchange_url" in RunConfig.__dataclass_fields__


@pytest.mark.parametrize(("shell", "words"), [
    ("bash", {"COMP_WORDS": "cryptolstm data fe", "COMP_CWORD": "2"}),
    ("zsh", {"_TYPER_COMPLETE_ARGS": "cryptolstm data fe"}),
    ("fish", {"_TYPER_COMPLETE_ARGS": "cryptolstm data fe", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
])
def test_the_shell_completes_commands(shell, words, tmp_path):
    program = "from cryptolstm.cli.main import main; import sys; sys.argv[0] = 'cryptolstm'; main()"
    def run(*arguments, **more):
        return subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "HOME": str(tmp_path), **more},
        ).stdout

    assert "fetch" in run(_CRYPTOLSTM_COMPLETE=f"complete_{shell}", **words)
