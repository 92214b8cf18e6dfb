"""The same report with any number of threads and cores: each operation has one thread, and a batch always the
same parts."""
import json
import os
import subprocess
import sys

import pytest

RUN = """
import json, os, sys
cores, parts = int(sys.argv[1]), int(sys.argv[2])
if cores and hasattr(os, "sched_setaffinity"): \
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
from cryptolstm.core.config import RunConfig
from cryptolstm.research.backtest import backtest, summary
from cryptolstm.data.demo import demo_market
from cryptolstm.research.walkforward import bars_needed
run = RunConfig(hours=72, train_hours=150, retrain_every=48, \
network={"epochs": 1, "refit_epochs": 1, "parts": parts})
results = backtest(demo_market(bars_needed(run), seed=4), run)
print(json.dumps([summary(results), results["predictions"]["prediction"].tolist()], \
sort_keys=True, default=str))
"""
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


def report(threads: int | None, cores: int = 0, parts: int = 2) -> list:
    "Figures and forecasts of the specification's network on a few windows, from a separate process."
    env = {k: v for k, v in os.environ.items() if k not in POOLS} | dict.fromkeys(
        POOLS if threads else (), str(threads)
    )
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(cores), str(parts)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_spec_network_gives_the_same_report_on_one_core_and_with_four_threads():
    assert report(threads=1, cores=1) == report(threads=4)


@pytest.mark.slow
def test_no_number_of_threads_or_cores_changes_the_report():
    reports = [report(threads, cores) for threads in (None, 1, 2, 4) for cores in (0, 1, 2)]
    assert all(r == reports[0] for r in reports)


@pytest.mark.slow
def test_the_number_of_parts_may_change_the_last_digits_only():
    two, four = (report(None, parts=parts) for parts in (2, 4))
    assert two[0]["config"] != four[0]["config"]
    assert two[1] == pytest.approx(four[1], abs=1e-2)
