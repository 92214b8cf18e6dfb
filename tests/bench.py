"""`make bench`: our code against peer libraries, in one run on one machine.

Compare ratios only: absolute times on a shared machine mean little. Each bench measures both sides
alternately for several rounds and reports the median of the rounds' ratios. Work that depends on threads or
on a fresh TensorFlow runs in a separate process (`python tests/bench.py --worker NAME ARGUMENTS…` prints one
number). `python tests/bench.py train live` runs only the benches named."""
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BENCHES, WORKERS = {}, {}


def bench(goal: float | None, unit: str):
    """Register a bench, a function without arguments that returns {ours, peer, note}. The ratio is ours/peer
    for rates and peer/ours for times."""
    def register(function):
        BENCHES[function.__name__] = (function, goal, unit)
        return function
    return register


def worker(function):
    "Register a function that runs in a separate process and returns one number."
    WORKERS[function.__name__] = function
    return function


def start(name: str, *arguments, threads: int | None = None) -> subprocess.Popen:
    "Start a worker process; `threads` limits TensorFlow and BLAS."
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    if threads:
        env |= {
            k: str(threads)
            for k in (
                "OMP_NUM_THREADS",
                "TF_NUM_INTRAOP_THREADS",
                "TF_NUM_INTEROP_THREADS",
                "OPENBLAS_NUM_THREADS",
            )
        }
    pipes = {k: subprocess.PIPE for k in ("stdin", "stdout", "stderr")}
    return subprocess.Popen(
        [sys.executable, __file__, "--worker", name, *map(str, arguments)], text=True, env=env, **pipes
    )


def number(process: subprocess.Popen) -> float:
    "The number a worker printed; raises with its error text if it failed."
    out, err = process.communicate()
    if process.returncode: raise RuntimeError(f"worker failed: {err[-2000:]}")
    return float(out.split()[-1])


def median_of(rounds: list[tuple[float, float]]) -> dict:
    "Medians of ours and peer, and of their ratios per round."
    ours, peer = zip(*rounds, strict=True)
    return {
        "ours": statistics.median(ours),
        "peer": statistics.median(peer),
        "ratios": [a / b for a, b in rounds],
    }


# ---- the network
# --------------------------------------------------------------------------------------------------

WINDOWS, LOOKBACK = 1024, 60


def some_windows(n: int):
    import numpy as np
    from cryptolstm.features.indicators import INPUTS
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, LOOKBACK, len(INPUTS))).astype("float32"), rng.normal(size=(n, 1)).astype(
        "float32"
    )


def spec_network(fast: bool):
    "The compiled network of the specification, with Keras' LSTM layer or ours."
    import keras
    from cryptolstm.features.indicators import INPUTS
    from cryptolstm.model.settings import ModelConfig
    from cryptolstm.model.network import build_network
    net = build_network(ModelConfig(), len(INPUTS), fast=fast)
    net.compile(optimizer=keras.optimizers.Adam(5e-4, clipvalue=0.5), loss="huber")
    return net


def as_shipped() -> None:
    "Start TensorFlow with its default threads, so that our code can no longer change them."
    import tensorflow as tf
    tf.zeros(1)


@worker
def fit_rate(kind: str, batch: str) -> float:
    """Sequences per second in `fit`, from the start of an epoch to its last batch: best of three, without
    tracing.

    Keras is given the windows as an array, ours as the package feeds it. Keras' wait for tf.data's autotuner
    at the end of an epoch is not counted; it varies, and can take as long as the epoch."""
    if kind == "keras": as_shipped()
    import keras
    import numpy as np
    from cryptolstm.model.network import Batches

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None): self.began = time.perf_counter()
        def on_train_batch_end(self, batch, logs=None): self.ended = time.perf_counter()
    rows, y = (v[:, 0] for v in some_windows(WINDOWS + LOOKBACK - 1))
    ends = np.arange(LOOKBACK - 1, len(rows))
    feed = (
        Batches(rows, ends, y, LOOKBACK, int(batch)).feed()
        if kind == "ours"
        else Batches(rows, ends, y, LOOKBACK, WINDOWS)[0]
    )
    net, clock, best = spec_network(kind == "ours"), Clock(), 0.0
    for k in range(4):
        if kind == "ours":net.fit(feed, epochs=1, verbose=0, callbacks=[clock])
        else: net.fit(*feed, batch_size=int(batch), epochs=1, verbose=0, callbacks=[clock])
        if k: best = max(best, WINDOWS / (clock.ended - clock.began))
    return best


@worker
def gemm_peak() -> float:
    """Floating-point operations per second of a large matrix product: the best of five one-second runs,
    because on a shared machine one second may be half as fast."""
    import tensorflow as tf
    a = tf.random.normal((2048, 2048))
    rates, end = [], time.perf_counter() + 5
    while (began := time.perf_counter()) < end:
        tf.linalg.matmul(a, a).numpy()
        rates.append(2 * 2048**3 / (time.perf_counter() - began))
    return max(rates)


# floating-point operations of one sequence, matrix products only: forward and backward; forward alone
FLOPS, FORWARD = 186.3e6, 62.7e6


def shares(result: dict, flops: float) -> str:
    """Both rates as a share of the machine's peak in one large matrix product on all cores; `flops` per unit
    of the rates."""
    peak = number(start("gemm_peak"))
    ours, peer = (result[side] * flops / peak for side in ("ours", "peer"))
    return f"{ours:.1%} of the matrix-product peak ({peak / 1e9:.0f} GFLOP/s), peer {peer:.1%}"


def train(batch: int) -> dict:
    "All cores on each side: Keras as shipped in one process, ours in one single-threaded process per core."
    cores, rounds = os.cpu_count() or 1, []
    for _ in range(3):
        peer = number(start("fit_rate", "keras", batch))
        ours = sum([number(p) for p in [start("fit_rate", "ours", batch, threads=1) for _ in range(cores)]])
        rounds.append((ours, peer))
    result = median_of(rounds)
    return {**result, "note": shares(result, FLOPS)}


@bench(2.0, "sequences/s")
def train_batch_64(): return train(64)


@bench(2.0, "sequences/s")
def train_batch_256(): return train(256)


@bench(None, "sequences/s")
def train_one_network():
    "One training on all cores, ours against Keras as shipped."
    result = median_of(
        [(number(start("fit_rate", "ours", 64)), number(start("fit_rate", "keras", 64))) for _ in range(3)]
    )
    return {**result, "note": f"one process each, all cores, batches of 64; {shares(result, FLOPS)}"}


@worker
def windows_fed(kind: str) -> float:
    "Shuffled windows per second, in batches of 256 from 30 years of hourly bars, one epoch; no training."
    import keras
    import numpy as np
    from cryptolstm.features.indicators import INPUTS
    from cryptolstm.model.network import Batches
    rng, n = np.random.default_rng(0), 262_800
    x, y = rng.normal(size=(n, len(INPUTS))).astype("float32"), rng.normal(size=n).astype("float32")
    if kind == "ours": fed = Batches(x, np.arange(LOOKBACK - 1, n), y, LOOKBACK, 256, seed=0).feed()
    else:
        fed = keras.utils.timeseries_dataset_from_array(
            x, y[LOOKBACK - 1:], LOOKBACK, batch_size=256, shuffle=True, seed=0
        )
    began = time.perf_counter()
    windows = sum(len(targets) for _, targets in fed)
    assert windows == n - LOOKBACK + 1
    return windows / (time.perf_counter() - began)


@bench(None, "windows/s")
def feeding():
    result = median_of(
        [(number(start("windows_fed", "ours")), number(start("windows_fed", "keras"))) for _ in range(3)]
    )
    seconds = [262_741 / result[side] for side in ("ours", "peer")]
    return {
        **result,
        "note": (
            f"an epoch of 262,800 bars in {seconds[0]:.1f} s; peer: timeseries_dataset_from_array,"
            f" {seconds[1]:.1f} s"
        ),
    }


@worker
def live(kind: str) -> float:
    """Predictions per second: `predict_one` from a year of features, with checks and scaling, against
    `model.predict` of a prepared window."""
    if kind == "keras": as_shipped()
    from cryptolstm.data.demo import demo_market
    from cryptolstm.features.indicators import INPUTS, features
    from cryptolstm.features.windows import fit_scaler
    from cryptolstm.model.settings import ModelConfig
    from cryptolstm.model.onnx_model import write_onnx
    from cryptolstm.model.onnx_network import OnnxNetwork
    from cryptolstm.model.live_model import LiveModel
    net, (x, _) = spec_network(False), some_windows(1)
    with tempfile.TemporaryDirectory() as d:
        write_onnx(net, Path(d) / "model.onnx")
        network = OnnxNetwork(Path(d) / "model.onnx")
    bars = demo_market(8760, seed=1)
    table = features(bars)
    model = LiveModel(
        config=ModelConfig(),
        scaler=fit_scaler(table[INPUTS].iloc[100:5000]),
        networks=(network,),
        calibration={},
        training={},
        trained_from=bars.index[100].isoformat(),
        trained_until=bars.index[5000].isoformat(),
        data_hash="",
    )
    if kind == "ours":
        predict, times = (lambda: model.predict_one(table, bars)), 300
    else:
        predict, times = (lambda: net.predict(x, verbose=0)), 20
    for _ in range(3): predict()
    began = time.perf_counter()
    for _ in range(times): predict()
    return times / (time.perf_counter() - began)


@bench(50.0, "predictions/s")
def one_live_prediction():
    result = median_of([(number(start("live", "ours")), number(start("live", "keras"))) for _ in range(3)])
    return {
        **result,
        "note": (
            "`predict_one` of the newest of 8760 bars; peer: model.predict of a window that is ready;"
            f" {shares(result, FORWARD)}"
        ),
    }


@worker
def steps(kind: str) -> float:
    """Sequences per second of 4 training steps with batches of 256, with and without `keep_memory`; page
    faults and system time (ms) per step and peak memory (MB) go to stderr."""
    import resource
    import cryptolstm.core.machine as machine
    if kind == "glibc": machine.keep_memory = bool
    import numpy as np
    from cryptolstm.model.network import Batches
    count, size = 4, 256
    rows, y = (v[:, 0] for v in some_windows(size + LOOKBACK - 1))
    batch = Batches(rows, np.arange(LOOKBACK - 1, len(rows)), y, LOOKBACK, size)[0]
    net = spec_network(True)
    for _ in range(2): net.train_on_batch(*batch)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(count): net.train_on_batch(*batch)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    kernel = 1000 * (after.ru_stime - before.ru_stime) / count
    faults = (after.ru_minflt - before.ru_minflt) / count
    print(f"{kind} {faults:.0f} {kernel:.1f} {after.ru_maxrss / 1024:.0f}", file=sys.stderr)
    return count * size / seconds


def reported(process: subprocess.Popen) -> tuple[float, list[float]]:
    "The number a worker printed, and the numbers in the last line of its messages."
    out, err = process.communicate()
    if process.returncode: raise RuntimeError(f"worker failed: {err[-2000:]}")
    return float(out.split()[-1]), [float(x) for x in err.splitlines()[-1].split()[1:]]


@bench(None, "sequences/s")
def allocator():
    """Training steps that keep their memory, against those that return it to the kernel (`keep_memory`): both
    at the same time, so that other work on the machine slows both."""
    rounds = []
    for _ in range(3):
        both = [start("steps", kind, threads=1) for kind in ("kept", "glibc")]
        rounds.append([reported(process) for process in both])
    faults, kernel, memory = (
        [statistics.median(pair[side][1][k] for pair in rounds) for side in (0, 1)] for k in range(3)
    )
    return {
        **median_of([(ours[0], peer[0]) for ours, peer in rounds]),
        "note": (
            f"one thread each, side by side; per step {faults[0]:.0f} page faults against {faults[1]:.0f},"
            f" {kernel[0]:.1f} ms of system time against {kernel[1]:.1f}; peak memory {memory[0]:.0f} MB"
            f" against {memory[1]:.0f}"
        ),
    }


# bars of the walk-forward benches; with a longer training span the bench would measure training speed only
TESTED, TRAINED = 720, 720


def walk_case(epochs: str, refit_epochs: str):
    "Bars of the demo market and the run: 720 tested bars, retraining every week."
    from cryptolstm.core.config import RunConfig
    from cryptolstm.data.demo import demo_market
    from cryptolstm.research.walkforward import bars_needed
    run = RunConfig(
        hours=TESTED,
        train_hours=TRAINED,
        retrain_every=168,
        lookback=LOOKBACK,
        network={"epochs": int(epochs), "refit_epochs": int(refit_epochs)},
    )
    return demo_market(bars_needed(run), seed=1), run


@worker
def walk_ours(epochs: str, refit_epochs: str) -> float:
    "Bars per second of `walk_forward`, with compilation and features but without imports."
    from cryptolstm.research.walkforward import walk_forward
    bars, run = walk_case(epochs, refit_epochs)
    began = time.perf_counter()
    assert walk_forward(bars, run).predictions["prediction"].notna().all()
    return TESTED / (time.perf_counter() - began)


@worker
def walk_naive(epochs: str, batch: str) -> float:
    """Bars per second of the naive way on the same windows: a new Keras model for each fold, one `predict`
    for each bar."""
    as_shipped()
    import keras
    import numpy as np
    from cryptolstm.features.indicators import features
    from cryptolstm.features.windows import window_view
    from cryptolstm.model.settings import input_columns, model_config
    from cryptolstm.model.network import Batches, build_network
    from cryptolstm.model.training_data import training_data, training_parts
    from cryptolstm.research.walkforward import schedule
    bars, run = walk_case(epochs, epochs)
    began, said = time.perf_counter(), []
    config, table = model_config(run), features(bars)
    for fold in schedule(len(bars), run):
        past = slice(fold.train_start, fold.test_start)
        data, scaler, _ = training_data(training_parts(bars.iloc[past], table.iloc[past], config), config)
        (x, y), (vx, vy) = (
            Batches(data.x, ends, data.y, config.lookback, len(ends))[0] for ends in (data.train, data.val)
        )
        net = build_network(config, len(input_columns(config)), fast=False)
        net.compile(
            optimizer=keras.optimizers.Adam(config.learning_rate, clipvalue=config.clipvalue), loss="huber"
        )
        # 0 = the batch size ours uses
        size = int(batch) or min(config.batch_size, max(16, len(x) // 8))
        net.fit(x, y, batch_size=size, epochs=config.epochs, validation_data=(vx, vy), verbose=0)
        windows = window_view(scaler.transform(table), config.lookback)
        for row in range(fold.test_start, fold.test_end):
            said.append(net.predict(windows[row - config.lookback + 1][None], verbose=0)[0, 0])
    assert len(said) == TESTED and np.isfinite(said).all()
    return TESTED / (time.perf_counter() - began)


def walk(epochs: int, refit_epochs: int, batch: int) -> dict:
    "Three rounds of each side, alternately; takes some minutes."
    result = median_of(
        [
            (number(start("walk_ours", epochs, refit_epochs)), number(start("walk_naive", epochs, batch)))
            for _ in range(3)
        ]
    )
    windows, folds = TRAINED - 2, -(-TESTED // 168)
    passes = epochs + (folds - 1) * refit_epochs, folds * epochs
    # operations per tested bar
    work = [(p * windows * (0.8 * FLOPS + 0.2 * FORWARD) + TESTED * FORWARD) / TESTED for p in passes]
    peak = number(start("gemm_peak"))
    ours, peer = (result[side] * w / peak for side, w in zip(("ours", "peer"), work, strict=True))
    seconds = [TESTED / result[side] for side in ("ours", "peer")]
    return {
        **result,
        "note": (
            f"{seconds[0]:.0f} s against {seconds[1]:.0f} s; {folds} trainings on {TRAINED} bars, {passes[0]}"
            f" epochs against {passes[1]}, {f'batches of {batch} there' if batch else 'equal batches'};"
            f" {ours:.1%} of the matrix-product peak ({peak / 1e9:.0f} GFLOP/s), peer {peer:.1%}"
        ),
    }


@bench(20.0, "bars/s")
def walk_forward_same_epochs():
    "720 bars, weekly retraining; both sides train 2 epochs per fold with the same batch size."
    return walk(2, 2, 0)


@bench(20.0, "bars/s")
def walk_forward_as_used():
    """The same with each side as it is used: ours continues from the last weights for a tenth of the epochs,
    the naive way starts anew with Keras' default batches of 32."""
    return walk(10, 1, 32)


# ---- market data
# --------------------------------------------------------------------------------------------------

YEARS3 = 26_280   # hourly bars of three years


@worker
def serve(delay: str) -> float:
    """Serve three years of one ticker from a loop-back exchange, each page after `delay` seconds, until stdin
    closes."""
    from cryptolstm.data.demo import demo_market
    from loopback import Loopback
    with Loopback(
        {"ETH/USD": demo_market(YEARS3, end="2025-02-01", ticker="ETH/USD")}, now="2025-02-01"
    ) as server:

        def later(path, query, answer):
            if "candles" in path: answer.delay = float(delay)
            return answer

        if float(delay): server.faults.append(later)
        print(server.url, flush=True)
        sys.stdin.read()
    return 0.0


def bare_pages(url: str) -> float:
    """Pages per second of the server alone: plain requests, as many in parallel as our client makes,
    responses discarded."""
    import http.client
    from concurrent.futures import ThreadPoolExecutor

    from cryptolstm.data.fetch import LINES
    def iso(s):
        return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(s))
    last = 1_738_368_000
    jobs = [
        (max(stop - 300 * 3600, last - YEARS3 * 3600), stop)
        for stop in range(last, last - YEARS3 * 3600, -300 * 3600)
    ]
    def line(k: int) -> None:
        connection = http.client.HTTPConnection(url.split("//")[1])
        for start, stop in jobs[k::LINES]:
            connection.request(
                "GET", f"/products/ETH-USD/candles?granularity=3600&start={iso(start)}&end={iso(stop - 3600)}"
            )
            connection.getresponse().read()
    began = time.perf_counter()
    with ThreadPoolExecutor(LINES) as pool: list(pool.map(line, range(LINES)))
    return len(jobs) / (time.perf_counter() - began)


def our_pages(url: str, limited: bool = False, hours: int = YEARS3) -> float:
    """Pages per second of our client into an empty store; the bars are checked.

    Unless `limited`, its rate limit is off."""
    from cryptolstm.data.client import CryptoMarketDataClient
    with tempfile.TemporaryDirectory() as home:
        client = CryptoMarketDataClient("coinbaseexchange", url, home=Path(home))
        client.exchange.enableRateLimit = limited
        client.exchange.load_markets()
        began = time.perf_counter()
        bars = client.get_historical_bars("ETH/USD", hours)
        took = time.perf_counter() - began
    assert len(bars) == hours and not bars["is_gap"].any()
    return -(-hours // 300) / took


def fetch(delay: float) -> dict:
    "Our client against the bare server, alternately."
    server = start("serve", delay)
    try:
        url = server.stdout.readline().strip()
        bare_pages(url)
        return {
            **median_of([(our_pages(url), bare_pages(url)) for _ in range(5)]),
            "note": (
                "88 pages, two requests at a time on both sides; the server answers after"
                f" {1000 * delay:g} ms"
            ),
        }
    finally:
        server.communicate("")


@bench(0.95, "pages/s")
def fetch_at_50_ms(): return fetch(0.050)


@bench(0.95, "pages/s")
def fetch_at_10_ms(): return fetch(0.010)


@bench(0.95, "pages/s")
def fetch_at_0_ms(): return fetch(0.0)


@bench(0.95, "requests/s")
def fetch_within_the_rate_limit():
    """Our client against the rate that ccxt allows: our work per page must fit into the pauses between
    requests."""
    from cryptolstm.data.exchange import connect
    server = start("serve", 0.050)
    try:
        url = server.stdout.readline().strip()
        allowed = 1000 / connect("coinbaseexchange").rateLimit
        # 60 pages and one request for the time
        rounds = [(our_pages(url, True, 60 * 300) * 61 / 60, allowed) for _ in range(3)]
        return {
            **median_of(rounds),
            "note": f"60 pages; {allowed:g} requests a second are allowed, the server answers after 50 ms",
        }
    finally:
        server.communicate("")


@bench(1.0, "opens/s")
def open_three_years():
    "Opening a store of three years, against the limit of 20 ms."
    from cryptolstm.data.store import BarStore, bar_path, hour_number, read_store, write_store
    from cryptolstm.data.demo import demo_market
    with tempfile.TemporaryDirectory() as d:
        bars = demo_market(YEARS3, end="2025-02-01")
        first, path, rates = hour_number(bars.index[0]), bar_path(Path(d), "coinbaseexchange", "BTC/USD"), []
        write_store(path, BarStore().add(bars, [(first, first + YEARS3)]))
        for _ in range(12):
            began = time.perf_counter()
            assert len(read_store(path).bars) == YEARS3
            rates.append((1 / (time.perf_counter() - began), 50.0))
    return {
        **median_of(rates[2:]),
        "note": (
            f"{1000 / statistics.median(r for r, _ in rates[2:]):.1f} ms, hash checked; peer: the 20 ms"
            " allowed"
        ),
    }


# ---- the simulator
# --------------------------------------------------------------------------------------------------

# an interpreter with vectorbt and backtesting.py, whose pinned versions may conflict with ours
PEERS = os.environ.get("CRYPTOLSTM_PEERS") or sys.executable


def ask_peer(kind: str, folder: str | Path) -> str | None:
    "Output of `tests/peers.py` under the peers' interpreter; None where the peer is not installed."
    done = subprocess.run(
        [PEERS, str(ROOT / "tests" / "peers.py"), kind, str(folder)], capture_output=True, text=True
    )
    if done.returncode == 3: return None
    if done.returncode: raise RuntimeError(f"peer failed: {done.stderr[-2000:]}")
    return done.stdout


def peer_answer(kind: str, folder: str) -> dict | None:
    "Seconds a peer takes on the bars in `folder`, and its results; None where it is not installed."
    import numpy as np
    return None if ask_peer(kind, folder) is None else dict(np.load(Path(folder) / "answer.npz"))


def trading_case(n: int, folder: str):
    """Bars of a random walk, a signal held for a day at a time and the size of its predicted move, also
    written to files."""
    import numpy as np
    import pandas as pd
    g = np.random.default_rng(0)
    close = 100 * np.exp(np.cumsum(0.003 * g.standard_normal(n)))
    open_ = np.r_[100, close[:-1]] * np.exp(0.0003 * g.standard_normal(n))
    rows = {
        "open": open_,
        "high": np.maximum(open_, close) * 1.001,
        "low": np.minimum(open_, close) * 0.999,
        "close": close,
        "volume": np.full(n, 1e9),
    }
    signal = np.repeat(g.integers(-1, 2, n // 24 + 1), 24)[:n]
    move = np.repeat(g.exponential(1, n // 24 + 1), 24)[:n]
    # backtesting.py calls its strategy from the second bar on
    signal[0] = 0
    np.savez(Path(folder) / "case.npz", signal=signal, move=move, scales=np.linspace(0, 2, 1000), **rows)
    return pd.DataFrame(rows, pd.date_range("2000-01-01", periods=n, freq="h", tz="UTC")), signal, move


def timed(function, rounds: int = 5):
    """Result, and the shortest time of several calls after a first one: other load on the machine can only
    add time."""
    function()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        out = function()
        seconds.append(time.perf_counter() - began)
    return out, min(seconds)


FEE, START = 0.0002, 100_000.0


def against(kind: str, n: int, ours, answer, note: str) -> dict:
    """Ours against a peer on the same bars: check that every number of `answer` equals the peer's to 1e-9,
    then time both alternately."""
    import numpy as np
    with tempfile.TemporaryDirectory() as folder:
        case, rounds = trading_case(n, folder), []
        for _ in range(3):
            out, seconds = timed(lambda: ours(*case))
            peer = peer_answer(kind, folder)
            if peer is None: return {**median_of([(n / seconds, float("nan"))]), "note": "peer absent"}
            for name, values in answer(out).items():
                np.testing.assert_allclose(
                    values, peer[name], rtol=1e-9, atol=1e-9, err_msg=f"{kind}: {name}"
                )
            rounds.append((n / seconds, n / float(peer["seconds"])))
    ms = [1000 * n / statistics.median(r) for r in zip(*rounds, strict=True)]
    return {**median_of(rounds), "note": f"{ms[0]:.3g} ms against {ms[1]:.3g} ms; {note}"}


def whole_run(result: dict) -> dict:
    "The results that can be compared with vectorbt: equity at every bar, return, trades, fees."
    return {
        "equity": result["equity"].to_numpy(),
        "returns": [result["final_balance"] / START - 1],
        "trades": [len(result["trades"])],
        "fees": [result["total_fees"]],
    }


class KernelAlone:
    "The kernel on arrays prepared beforehand; the tables are built afterwards, for the comparison."

    def __init__(self, **settings): self.settings, self.ready = settings, None

    def __call__(self, bars, signal, move):
        from cryptolstm.execution import orders, simulate as simulate_module
        if self.ready is None:
            run = simulate_module.simulate(bars.iloc[:30], signal[:30], **self.settings)["settings"]
            data = orders.kernel_inputs(bars, signal, None, None, run)
            self.ready = bars, run, data, simulate_module.result_arrays(len(data.close))
        bars, run, data, room = self.ready
        return bars, run, data, simulate_module.run_kernel(data, run, room)

    def result(self, walked):
        from cryptolstm.execution import simulate as simulate_module
        bars, run, data, found = walked
        return simulate_module.simulation_result(bars, run, data, *found)


@bench(100, "bars/s")
def kernel_vs_vectorbt():
    "The kernel alone against vectorbt's `from_signals` with its equity, 30 years."
    kernel = KernelAlone(fee=FEE)
    return against(
        "kernel",
        262_800,
        kernel,
        lambda out: whole_run(kernel.result(out)),
        "the walk alone, arrays laid out before",
    )


@bench(100, "bars/s")
def simulate_vs_vectorbt():
    "`simulate` with all checks and tables, against the same."
    from cryptolstm.execution.simulate import simulate
    return against(
        "kernel",
        262_800,
        lambda bars, signal, move: simulate(bars, signal, fee=FEE),
        whole_run,
        "checks and tables included",
    )


@bench(20, "bars/s")
def metrics_vs_vectorbt():
    "With all figures, against vectorbt's `stats`."
    from cryptolstm.stats.performance import figures
    from cryptolstm.execution.simulate import simulate
    def ours(bars, signal, move):
        return (result := simulate(bars, signal, fee=FEE), figures(result))[0]
    return against("metrics", 262_800, ours, whole_run, "checks, tables and figures against `stats`")


COINS = dict(initial_balance=1e9, fee=0.0, sizing="fraction", size=0.999, lot=1.0)


@bench(1000, "bars/s")
def kernel_vs_backtesting_py():
    "One year, 99.9 % of equity in whole coins."
    kernel = KernelAlone(**COINS)
    return against(
        "backtesting", 8_760, kernel, lambda out: {"equity": kernel.result(out)["equity"]}, "the walk alone"
    )


@bench(1000, "bars/s")
def simulate_vs_backtesting_py():
    "The same with checks and tables."
    from cryptolstm.execution.simulate import simulate
    def ours(bars, signal, move):
        return simulate(bars, signal, **COINS)
    return against(
        "backtesting", 8_760, ours, lambda r: {"equity": r["equity"]}, "checks and tables included"
    )


@bench(100, "bars/s")
def sweep_vs_vectorbt():
    "1000 thresholds on one year."
    import numpy as np
    from cryptolstm.execution.sweep import sweep
    scales = np.linspace(0, 2, 1000)
    def ours(bars, signal, move):
        return sweep(
            bars, signal, {"threshold_scale": scales}, move=move, threshold=np.ones(len(bars)), fee=FEE
        )
    def answer(t):
        return {"returns": t["total_return"], "trades": t["num_trades"], "fees": t["total_fees"]}
    return against("sweep", 8_760, ours, answer, "1000 × 8760, all scores against total returns")


@bench(None, "ns/bar")
def kernel_vs_reading():
    """The kernel alone against reading its arrays once (a sum over each); a ratio of 1 would mean no cost
    beyond memory."""
    kernel = KernelAlone(fee=FEE)
    with tempfile.TemporaryDirectory() as folder: case = trading_case(262_800, folder)
    (_, _, data, _), walk = timed(lambda: kernel(*case), 9)
    n = len(data.close)
    _, read = timed(lambda: [a.sum() for a in data[:9]], 9)
    return {
        "ours": 1e9 * walk / n,
        "peer": 1e9 * read / n,
        "ratios": [read / walk],
        "note": "walk against one sum over each input array",
    }


# ---- many tickers
# --------------------------------------------------------------------------------------------------

TICKERS = 4


def ticker_jobs(n: int = TICKERS) -> list:
    "The jobs of a quick look at some tickers of the demo market, with the default network."
    from cryptolstm.core.bars import regular_grid
    from cryptolstm.core.config import QUICK, run_config
    from cryptolstm.data.demo import demo_market
    from cryptolstm.research.universe_run import Prepared, run_job
    from cryptolstm.research.walkforward import bars_needed
    runs = [run_config({**QUICK, "ticker": f"T{k}/USD", "exchange": "simulated"}) for k in range(n)]
    bars = [regular_grid(demo_market(bars_needed(r), seed=k, end="2025-01-01")) for k, r in enumerate(runs)]
    return [run_job(Prepared(run, b, {})) for run, b in zip(runs, bars, strict=True)]


def spent() -> tuple[float, float]:
    "CPU time (s) of this process and of all below it, and the largest peak memory (MB) of one below it."
    import resource
    import psutil
    ended = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    below = psutil.Process().children(recursive=True)
    cpu = sum(u.ru_utime + u.ru_stime for u in ended) + sum(sum(p.cpu_times()[:2]) for p in below)
    peaks = [re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{p.pid}/status").read_text()) for p in below]
    return cpu, max((int(kb) for found in peaks for kb in found), default=0) / 1024


@worker
def jobs_done(way: str) -> float:
    "Seconds for the jobs; CPU time (s), peak memory of a process (MB), and a second run (s) go to stderr."
    from contextlib import ExitStack
    from cryptolstm.scale.cluster import OnDask
    from cryptolstm.scale.tasks import Processes, Results, run_jobs
    jobs, ends = ticker_jobs(), []
    with ExitStack() as stack:
        results = Results(stack.enter_context(tempfile.TemporaryDirectory()))
        if way == "dask":
            from distributed import LocalCluster
            cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
            execute = OnDask(stack.enter_context(cluster).scheduler_address)
        else:
            execute = Processes(int(way))
        before, began = spent()[0], time.perf_counter()
        def note(job, result):
            if not isinstance(result, bytes): raise result
            ends.append((time.perf_counter(), *spent()))
        run_jobs(jobs, execute, results, on_done=note)
        again = time.perf_counter()
        run_jobs(jobs, execute, results)
        again = time.perf_counter() - again
    (end, cpu, _), memory = ends[-1], max(peak for *_, peak in ends)
    print(f"{way} {cpu - before:.2f} {memory:.0f} {again:.4f}", file=sys.stderr)
    return end - began


@bench(0.85, "of two cores")
def jobs_on_two_cores():
    "Four tickers in one process and in two: the share of twice the speed that the second core gives."
    rounds = [[reported(start("jobs_done", n)) for n in (1, 2)] for _ in range(2)]
    one, two = ([statistics.median(r[k][0] for r in rounds) for k in (0, 1)])
    cpu, memory, again = (statistics.median(r[1][1][k] for r in rounds) for k in range(3))
    alone = statistics.median(r[0][1][0] for r in rounds)
    return {
        "ours": one / two / 2,
        "peer": 1.0,
        "ratios": [r[0][0] / r[1][0] / 2 for r in rounds],
        "note": (
            f"{one:.0f} s in one process, {two:.0f} s in two; {cpu:.0f} s of CPU against {alone:.0f}; peak"
            f" {memory:.0f} MB a process; a second run of finished jobs {1000 * again:.1f} ms"
        ),
    }


@bench(0.9, "CPU s")
def jobs_on_dask():
    "The same jobs by two workers of a Dask scheduler on this machine, against two processes."
    rounds = [[reported(start("jobs_done", way))[1][0] for way in ("dask", 2)] for _ in range(2)]
    ours, peer = (statistics.median(r[k] for r in rounds) for k in (0, 1))
    note = "scheduler, workers and their start included"
    return {"ours": ours, "peer": peer, "ratios": [b / a for a, b in rounds], "note": note}


# ---- start-up
# --------------------------------------------------------------------------------------------------

def cpu_seconds(code: str) -> float:
    "CPU time of a Python process that runs some code; its exit code does not matter."
    import resource
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(getattr(after, k) - getattr(before, k) for k in ("ru_utime", "ru_stime"))


@bench(None, "CPU s")
def start_up():
    "`--help` and an input error of each command, against the import of pandas alone."
    command = "import sys; from cryptolstm.cli.main import main; sys.argv[1:] = {!r}.split(); main()"
    asked = ("--help", *(f"{c} --set fees=1" for c in ("backtest", "signal", "report BTC/USD")))
    rounds = [
        ([cpu_seconds(command.format(text)) for text in asked], cpu_seconds("import pandas"))
        for _ in range(3)
    ]
    best = [min(times) for times in zip(*(ours for ours, _ in rounds), strict=True)]
    peer = min(p for _, p in rounds)
    notes = ", ".join(f"{text} {seconds:.2f}" for text, seconds in zip(asked, best, strict=True))
    return {"ours": max(best), "peer": peer, "ratios": [peer / max(best)], "note": f"the slowest of {notes}"}


# ---- the table
# --------------------------------------------------------------------------------------------------

def run(names: list[str]) -> dict:
    """Run the benches, print each line as it is measured, and return {name: {ours, peer, unit, ratio, goal,
    note}}."""
    unknown = [n for n in names if n not in BENCHES]
    if unknown: sys.exit(f"there is no bench {unknown[0]}; choose of {', '.join(BENCHES)}")
    table = {}
    print(f"{'bench':<26}{'ours':>14}{'peer':>14}  {'unit':<14}{'ratio':>8}{'goal':>7}  note")
    for name in names or BENCHES:
        function, goal, unit = BENCHES[name]
        got = function()
        ratio = statistics.median(got.pop("ratios"))
        # NaN marks a peer that is not installed
        known = {
            k: None if isinstance(v, float) and v != v else v for k, v in {**got, "ratio": ratio}.items()
        }
        table[name] = {**known, "unit": unit, "goal": goal}
        mark = "" if goal is None or ratio != ratio else "  reached" if ratio >= goal else "  NOT REACHED"
        aim = f"{goal:g}×" if goal else ""
        print(
            f"{name:<26}{got['ours']:>14,.4g}{got['peer']:>14,.4g}  {unit:<14}{ratio:>7.2f}×{aim:>7} "
            f" {got.get('note', '')}{mark}",
            flush=True,
        )
    return table


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        print(WORKERS[sys.argv[2]](*sys.argv[3:]))
        return
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    table = run(sys.argv[1:])
    from cryptolstm.core.files import write_atomic
    print(write_atomic(ROOT / "reports" / "bench.json", json.dumps(table, indent=1)))


if __name__ == "__main__": main()
