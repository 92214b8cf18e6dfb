"""What tells people and programs how trading goes: notifications through real apprise, metrics as Prometheus
asks for them, keys from a real keyring. None of it can stop trading, and none of it shows a secret."""
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import psutil
import pytest
from trading import account_of, broker_of, decided_by, market, runner_of
from venue import Venue

from cryptolstm.core.errors import InputError
from cryptolstm.trading.guards import Guards
from cryptolstm.trading.journal import add_act
from cryptolstm.trading.metrics import served_metrics
from cryptolstm.trading.notify import notifier
from cryptolstm.trading.runner import end_run, run_account, step
from cryptolstm.trading.status import account_status
from cryptolstm.trading.venues import read_keys

START = pd.Timestamp("2025-01-20 00:00:10", tz="UTC")
SECRET = "a-token-that-nobody-may-see"


@pytest.fixture
def log():
    "Events that trading logs."
    lines, handler = [], logging.Handler()
    handler.emit = lambda record: lines.append(json.loads(record.getMessage()))
    logger = logging.getLogger("cryptolstm.trading")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)


@pytest.fixture
def inbox():
    "An HTTP server that keeps what is posted; `status` is what it answers."
    class Inbox(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.found.append((body["title"], body["message"]))
            self.send_response(server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *words): pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), Inbox)
    server.found, server.status, server.port = [], 200, server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def desk(tmp_path):
    "A paper account of two tickers with made-up decisions; `desk(signal)` makes its runner and its clock."
    pytest.importorskip("apprise", reason="the extra notify is not installed")

    def make(signal):
        hour = [START.value // 10**6]
        runner = runner_of(
            tmp_path, None, account_of(venue=None), decided_by(lambda: hour[0], signal), clock=lambda: hour[0]
        )
        runner.begin()

        def hours(n):
            for _ in range(n):
                hour[0] += 3_600_000
                step(runner)
        return runner, hours
    return make


# ---- notifications -----------------------------------------------------------------------------------------

def test_orders_and_alarms_reach_a_service_once(desk, inbox, tmp_path):
    runner, hours = desk(lambda ticker, bar: int(bar % 6 < 3))
    runner.on_step = notifier("account", tmp_path, addresses=f"json://127.0.0.1:{inbox.port}/{SECRET}")
    hours(7)
    assert inbox.found and {title for title, _ in inbox.found} == {"cryptolstm account"}
    lines = "\n".join(text for _, text in inbox.found).splitlines()
    assert any("flat at" in x and "long from the next open on" in x for x in lines)
    assert any("long at" in x and "flat from the next open on" in x for x in lines)
    assert len(lines) == len(set(lines))
    add_act(runner.journal, "stop", {"flatten": False})
    before = len(inbox.found)
    hours(3)
    told = [text for _, text in inbox.found[before:]]
    assert sum("BTC/USD: alarm: a person stopped the account" in text for text in told) == 1


def test_a_restart_repeats_no_alarm_and_an_alarm_that_comes_back_is_told(desk, inbox, tmp_path):
    runner, hours = desk(lambda ticker, bar: 0)

    def again(): runner.on_step = notifier("account", tmp_path, addresses=f"json://127.0.0.1:{inbox.port}")
    for acts, expected in ((["stop"], 1), ([], 1), (["resume"], 1), (["stop"], 2)):
        for act in acts: add_act(runner.journal, act, {"flatten": False})
        again()
        hours(1)
        assert len(inbox.found) == expected


@pytest.mark.parametrize("fault", ["an error", "nobody listens"])
def test_a_service_that_fails_is_logged_and_tried_again(fault, desk, inbox, tmp_path, log, capfd):
    runner, hours = desk(lambda ticker, bar: 0)
    inbox.status, port = 500, inbox.port
    if fault == "nobody listens":
        with socket.create_server(("127.0.0.1", 0)) as s: port = s.getsockname()[1]
    runner.on_step = notifier("account", tmp_path, addresses=f"json://me:{SECRET}@127.0.0.1:{port}/{SECRET}")
    add_act(runner.journal, "stop", {"flatten": False})
    hours(2)
    failed = [x for x in log if x["event"] == "notification"]
    assert [x["services"] for x in failed] == [["JSON"], ["JSON"]]
    assert sum(x["event"] == "step" for x in log) == 4
    assert SECRET not in json.dumps(log) + "".join(capfd.readouterr())
    kept = [p for p in tmp_path.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
    assert kept == []
    if fault == "an error":
        inbox.status = 200
        hours(2)
        assert len(inbox.found) == 3   # two failures, one success, nothing after it


def test_an_error_is_told_when_it_lasts(desk, inbox, tmp_path):
    now = [0]
    notify = notifier("account", tmp_path, addresses=f"json://127.0.0.1:{inbox.port}")
    notify.clock = lambda: now[0]
    for now[0] in (0, 15_000, 179_000, 181_000, 200_000):
        notify([{"ticker": "BTC/USD", "bar": None, "error": f"no answer within {now[0]} s"}])
    assert [text for _, text in inbox.found] == ["BTC/USD: error: no answer within 181000 s"]


def test_a_damaged_memory_of_messages_stops_nothing(desk, inbox, tmp_path, log):
    row = {"ticker": "BTC/USD", "bar": None, "error": "no answer"}
    for text in ("{", '{"BTC/USD": 5}', "[]"):
        (tmp_path / "notified-account.json").write_text(text)
        notifier("account", tmp_path, 0.0, f"json://127.0.0.1:{inbox.port}")([row])
    assert sum(x["event"] == "notification" for x in log) == 3


@pytest.mark.parametrize("addresses", ["nonsense", "json://127.0.0.1 nonsense://x"])
def test_an_unknown_address_is_refused_and_not_shown(addresses, tmp_path, capfd):
    pytest.importorskip("apprise", reason="the extra notify is not installed")
    with pytest.raises(InputError, match="CRYPTOLSTM_NOTIFY") as refused:
        notifier("account", tmp_path, addresses=addresses)
    assert "nonsense" not in str(refused.value) + "".join(capfd.readouterr())


# ---- metrics -----------------------------------------------------------------------------------------------

def scraped(port):
    "Metrics as Prometheus reads them: name and ticker → value."
    from prometheus_client.parser import text_string_to_metric_families
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    assert {s.labels["account"] for s in samples} == {"account"}
    return {(s.name.removeprefix("cryptolstm_"), s.labels.get("ticker")): s.value for s in samples}


@pytest.fixture
def port():
    pytest.importorskip("prometheus_client", reason="the extra metrics is not installed")
    with socket.create_server(("127.0.0.1", 0)) as s: return s.getsockname()[1]


def test_metrics_say_what_the_status_says_and_only_to_this_machine(desk, port):
    runner, hours = desk(lambda ticker, bar: 1)
    with served_metrics("account", port) as metrics:
        runner.on_step = lambda rows: metrics.update(account_status(runner.journal), rows)
        hours(4)
        add_act(runner.journal, "stop", {"flatten": False})
        hours(1)
        time.sleep(0.3)
        found, status = scraped(port), account_status(runner.journal)
        listening = [c.laddr for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN"]
    assert {a.ip for a in listening if a.port == port} == {"127.0.0.1"}
    assert found["account_equity", None] == pytest.approx(status["equity"])
    assert found["account_alarms", None] == len(status["alarms"]) > 0
    for t in status["tickers"]:
        name = t["ticker"]
        assert found["equity", name] == pytest.approx(t["equity"])
        assert found["position", name] == t["side"] == 1
        assert found["alarms", name] == 1 and 0.3 <= found["step_age_seconds", name] < 10
        assert ("parity", name) not in found   # of live accounts
    with pytest.raises(OSError): scraped(port)


def test_the_parity_of_a_live_account_is_a_metric(tmp_path, port):
    frames = {"BTC/USD": market("BTC/USD")}
    with Venue("kraken", frames, START, balances={"USD": 10_000}, speed=1) as venue:
        runner = runner_of(tmp_path, broker_of("kraken", venue.url), account_of(tickers=("BTC/USD",)))
        runner.begin()
        with served_metrics("account", port) as metrics:
            runner.on_step = lambda rows: metrics.update(account_status(runner.journal), rows)
            step(runner)
            assert scraped(port)["parity", "BTC/USD"] == 1.0


# ---- the extras --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("extra, missing, code", [
    ("notify", "apprise", "from pathlib import Path; from cryptolstm.trading.notify import notifier;"
                          " notifier('a', Path('.'), addresses='json://127.0.0.1')"),
    ("metrics", "prometheus_client", "from cryptolstm.trading.metrics import served_metrics;"
                                     " served_metrics('a', 9100).__enter__()"),
])
def test_without_its_extra_a_feature_says_what_to_install(extra, missing, code):
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['{missing}'] = None; {code}"], cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True,
    )
    assert done.stderr.splitlines()[-1].endswith(f"pip install 'cryptolstm[{extra}]'"), done.stderr


def test_keys_come_from_the_keyring_unless_the_environment_has_them(monkeypatch):
    keyring = pytest.importorskip("keyring", reason="the extra keyring is not installed")
    from keyring.backend import KeyringBackend

    class InMemory(KeyringBackend):
        priority = 1
        stored = {("cryptolstm", "kraken key"): "k", ("cryptolstm", "kraken secret"): "s"}
        def get_password(self, service, username): return self.stored.get((service, username))
        def set_password(self, *_): raise NotImplementedError
    before = keyring.get_keyring()
    for name in ("KEY", "SECRET"): monkeypatch.delenv(f"CRYPTOLSTM_KRAKEN_{name}", raising=False)
    keyring.set_keyring(InMemory())
    try:
        keys = read_keys("kraken")
        assert (keys.key, keys.secret) == ("k", "s")
        monkeypatch.setenv("CRYPTOLSTM_KRAKEN_KEY", "other")
        assert (read_keys("kraken").key, read_keys("kraken").secret) == ("other", "s")
        from keyring.backends.fail import Keyring
        keyring.set_keyring(Keyring())   # a machine without a password store
        with pytest.raises(InputError, match="no secret of kraken; set CRYPTOLSTM_KRAKEN_SECRET"):
            read_keys("kraken")
    finally: keyring.set_keyring(before)


# ---- the dead man's switch ---------------------------------------------------------------------------------

def test_an_orderly_end_leaves_the_stop_losses_where_they_are(tmp_path):
    guards = Guards(dead_man=2, price_guard=0.02, deadline=50)
    with Venue("kraken", {"BTC/USD": market("BTC/USD")}, START, balances={"USD": 10_000}) as venue:
        broker = broker_of("kraken", venue.url)

        def wait(seconds): venue.move_to(venue.now + pd.Timedelta(seconds=max(seconds, 0.001)))
        account = account_of(tickers=("BTC/USD",), guards=guards)
        runner = runner_of(tmp_path, broker, account, decided_by(broker.clock, lambda *_: 1), wait=wait)
        runner.begin()
        step(runner)
        stopped = threading.Event()
        runner.rest = lambda seconds: (wait(seconds), stopped.set())
        run_account(runner, stopped)
        assert len(broker.open_orders("BTC/USD")) == 1 and venue.cash("BTC") > 0
        venue.move_to(venue.now + pd.Timedelta(minutes=10))
        assert len(broker.open_orders("BTC/USD")) == 1
        end_run(runner, flatten=True)
        assert broker.open_orders("BTC/USD") == [] and venue.cash("BTC") == 0
