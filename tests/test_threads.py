"""The same report with any number of threads and cores: each operation has one thread, and a batch always the
same parts."""
import json
import os
import subprocess
import sys

import pytest

RUN = """
import json, os, sys
cores, settings = int(sys.argv[1]), json.loads(sys.argv[2])
if cores and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
from cryptolstm import RunConfig, demo_market
from cryptolstm.research.backtest import backtest, summary
from cryptolstm.research.walkforward import bars_needed
run = RunConfig(hours=72, retrain_every=48, **settings)
results = backtest(demo_market(bars_needed(run), seed=4), run)
predictions = results["predictions"]["prediction"].tolist()
print(json.dumps([summary(results), predictions], sort_keys=True, default=str))
"""
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


def report(threads: int | None, cores: int = 0, train_hours: int = 150, **network) -> list:
    "Figures and forecasts of the specification's network on a few windows, from a separate process."
    pools = dict.fromkeys(POOLS if threads else (), str(threads))
    env = {k: v for k, v in os.environ.items() if k not in POOLS} | pools
    settings = {"train_hours": train_hours, "network": {"epochs": 1, "refit_epochs": 1, **network}}
    command = [sys.executable, "-c", RUN, str(cores), json.dumps(settings)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_spec_network_gives_the_same_report_on_one_core_and_with_four_threads():
    assert report(threads=1, cores=1) == report(threads=4)


@pytest.mark.slow
def test_no_number_of_threads_or_cores_changes_the_report():
    reports = [report(threads, cores) for threads in (None, 1, 2, 4) for cores in (0, 1, 2)]
    assert all(r == reports[0] for r in reports)


@pytest.mark.slow
def test_full_batches_of_256_windows_give_the_same_report():
    reports = [report(threads, train_hours=2800) for threads in (1, 2, 4)]
    assert all(r == reports[0] for r in reports)


@pytest.mark.slow
def test_another_number_of_parts_rounds_differently():
    two, four = (report(None, parts=parts) for parts in (2, 4))
    assert two[1] == pytest.approx(four[1], abs=1e-4)
