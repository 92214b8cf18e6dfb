"""Jobs are done once, wherever they are done, and a process that dies takes nothing else with it."""
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from jobs import count, job, processes_of

from cryptolstm.core.errors import InputError, OperationError
from cryptolstm.scale import tasks
from cryptolstm.scale.cluster import OnDask
from cryptolstm.scale.tasks import Processes, Replaced, Results, in_this_process, run_jobs

PROGRAM = Path(__file__).with_name("jobs.py")


@pytest.fixture(scope="module")
def cluster():
    "A real Dask scheduler with two workers on this machine."
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture(params=["here", "processes", "dask"])
def execute(request):
    if request.param == "here":
        return in_this_process
    if request.param == "processes":
        return Processes(2)
    return OnDask(request.getfixturevalue("cluster").scheduler_address)


def waited(condition, seconds: float = 20) -> None:
    "Wait until a condition holds."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def begun(jobs, execute, folder: Path, done: dict) -> threading.Thread:
    "Do jobs in a thread, which puts their results into `done`; return once the first has begun."
    thread = threading.Thread(
        target=lambda: done.update(run_jobs(jobs, execute, Results(folder / "results")))
    )
    thread.start()
    waited(lambda: (folder / "log").exists())
    return thread


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc").exists() else True


def test_every_way_gives_the_same_results_and_repeats_none(execute, tmp_path):
    jobs = [job(tmp_path, name) for name in "abcd"]
    results = Results(tmp_path / "results")
    done = run_jobs(jobs, execute, results)
    assert [done[j.key] for j in jobs] == [b"A", b"B", b"C", b"D"]
    assert run_jobs([*jobs, job(tmp_path, "e")], execute, results) == {
        **done,
        job(tmp_path, "e").key: b"E",
    }
    assert [count(tmp_path, name) for name in "abcde"] == [1] * 5
    run_jobs(jobs, execute, results, fresh=True)
    assert [count(tmp_path, name) for name in "abcde"] == [2, 2, 2, 2, 1]


def test_equal_jobs_are_done_once(execute, tmp_path):
    run_jobs([job(tmp_path, "a"), job(tmp_path, "a")], execute, Results(tmp_path / "results"))
    assert count(tmp_path, "a") == 1


@pytest.mark.parametrize("way", ["processes", "dask"])
def test_a_poison_job_fails_alone_after_one_more_attempt(way, request, tmp_path):
    dask = way == "dask" and request.getfixturevalue("cluster")
    execute = OnDask(dask.scheduler_address) if dask else Processes(2)
    jobs = [job(tmp_path, "poison", dies="always"), *(job(tmp_path, name) for name in "abcd")]
    done = run_jobs(jobs, execute, Results(tmp_path / "results"))
    failed = {k: r for k, r in done.items() if not isinstance(r, bytes)}
    assert list(failed) == [jobs[0].key]
    assert "exit code 9" in str(failed[jobs[0].key])
    assert count(tmp_path, "poison") == 2
    assert [count(tmp_path, name) for name in "abcd"] == [1] * 4
    assert not dask or len(dask.scheduler.workers) == 2


def test_a_failed_job_is_tried_again_by_the_next_run(tmp_path):
    results, jobs = Results(tmp_path / "results"), [job(tmp_path, "a", dies="once")]
    assert isinstance(run_jobs(jobs, Processes(1, retries=0), results)[jobs[0].key], OperationError)
    assert run_jobs(jobs, Processes(1, retries=0), results)[jobs[0].key] == b"A"


def test_a_killed_process_is_replaced_and_its_job_is_done(tmp_path):
    jobs, done = [job(tmp_path, name, seconds=1) for name in "ab"], {}
    thread = begun(jobs, Processes(2), tmp_path, done)
    waited(lambda: count(tmp_path, "a") == 1)
    os.kill(int((tmp_path / "log").read_text().split()[1]), signal.SIGKILL)
    thread.join(30)
    assert sorted(done.values()) == [b"A", b"B"]
    assert count(tmp_path, "a") + count(tmp_path, "b") == 3


def test_a_killed_dask_worker_does_not_lose_its_job(tmp_path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        jobs, done = [job(tmp_path, name, seconds=1.5) for name in "abcd"], {}
        execute = OnDask(cluster.scheduler_address)
        thread = begun(jobs, execute, tmp_path, done)
        worker = next(iter(cluster.workers.values()))
        os.kill(worker.process.process.pid, signal.SIGKILL)
        thread.join(60)
    assert sorted(done.values()) == [b"A", b"B", b"C", b"D"]
    assert sum(count(tmp_path, name) for name in "abcd") > 4  # one of them was begun again


def test_a_killed_driver_leaves_no_process_and_the_next_one_repeats_no_finished_job(tmp_path):
    command = [sys.executable, str(PROGRAM), str(tmp_path), "6", "0.4"]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE)
    results = Results(tmp_path / "results")
    waited(lambda: len(list(results.folder.glob("[!.]*"))) >= 2 if results.folder.exists() else False)
    driver.kill()
    driver.wait()
    waited(lambda: not any(map(alive, processes_of(tmp_path))))
    keys = {f"job{k}": job(tmp_path, f"job{k}", seconds=0.4).key for k in range(6)}
    finished = {name for name, key in keys.items() if results.get(key)}
    before = {name: count(tmp_path, name) for name in finished}
    assert 2 <= len(finished) < 6
    assert subprocess.run(command, stdout=subprocess.PIPE, timeout=60).stdout == b"6\n"
    assert {name: count(tmp_path, name) for name in finished} == before


def test_ctrl_c_keeps_what_is_finished_and_ends_the_processes(tmp_path):
    command = [sys.executable, str(PROGRAM), str(tmp_path), "6", "0.5"]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    results = tmp_path / "results"
    waited(lambda: len(list(results.glob("[!.]*"))) >= 2 if results.exists() else False)
    driver.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in driver.communicate(timeout=30)[1]
    waited(lambda: not any(map(alive, processes_of(tmp_path))))
    assert 2 <= len(list(results.glob("[!.]*"))) < 6


def test_the_longest_jobs_begin_first(tmp_path):
    run_jobs([job(tmp_path, name, cost) for name, cost in (("a", 1), ("b", 3), ("c", 2))], in_this_process,
             Results(tmp_path / "results"))
    assert [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()] == ["b", "c", "a"]


def test_a_damaged_result_is_made_again(tmp_path):
    results, jobs = Results(tmp_path / "results"), [job(tmp_path, "a")]
    run_jobs(jobs, in_this_process, results)
    results.place(jobs[0].key).write_bytes(b"x" * 40)
    assert run_jobs(jobs, in_this_process, results)[jobs[0].key] == b"A"
    assert count(tmp_path, "a") == 2


def test_what_a_job_prints_does_not_spoil_its_answer(capfd):
    from cryptolstm.scale.tasks import Child, Job

    with Child() as child:
        assert child.run(Job("", "loud", "test_jobs:loud", lambda: b"x")) == b"x"
    assert "loud" in capfd.readouterr().err


def loud(data: bytes, progress) -> bytes:
    print("loud")
    os.system("echo loud")
    return data


def test_a_process_that_cannot_be_started_is_an_error_and_no_wait_without_end(tmp_path, monkeypatch):
    def none():
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(tasks, "Child", none)
    jobs = [job(tmp_path, name) for name in "ab"]
    done = run_jobs(jobs, Processes(2), Results(tmp_path / "results"))
    assert all("no process could be started" in str(result) for result in done.values()) and len(done) == 2


def test_workers_that_join_later_get_jobs_while_the_first_one_works(tmp_path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        jobs, done = [job(tmp_path, name, seconds=8) for name in "ab"], {}
        execute = OnDask(cluster.scheduler_address)
        thread = begun(jobs, execute, tmp_path, done)
        cluster.scale(2)
        waited(lambda: count(tmp_path, "a") + count(tmp_path, "b") == 2, 7.5)
        thread.join(60)
    assert sorted(done.values()) == [b"A", b"B"]


def test_a_scheduler_that_is_gone_is_one_sentence_and_finished_jobs_are_kept(tmp_path):
    from distributed import LocalCluster

    cluster = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0")
    execute, results = OnDask(cluster.scheduler_address), Results(tmp_path / "results")
    jobs = [job(tmp_path, "a", cost=2), job(tmp_path, "b", seconds=60)]
    thread = threading.Thread(target=lambda: (waited(lambda: count(tmp_path, "b") == 1), cluster.close()))
    thread.start()
    try:
        done = run_jobs(jobs, execute, results)
    except OperationError as e:
        assert "is gone; finished jobs are kept" in str(e)
    else:
        assert "the cluster lost the job" in str(done[jobs[1].key])
    thread.join()
    assert results.get(jobs[0].key) == b"A"


def test_a_process_with_old_code_is_replaced(tmp_path, monkeypatch):
    "A worker that was started before the code was changed does the job with the new code."
    (module := tmp_path / "changing.py").write_text(OLD)
    monkeypatch.syspath_prepend(str(tmp_path))
    work = tasks.Job("", "new", "changing:work", lambda: str(module).encode())
    with Replaced() as child:
        assert child.run(work) == b"old"
        module.write_text(OLD.replace('b"old"', 'b"new, changed"'))
        assert child.run(work) == b"new, changed"


OLD = """
from pathlib import Path
from cryptolstm.scale.tasks import Outdated
SIZE = Path(__file__).stat().st_size
def work(data, progress):
    if Path(__file__).stat().st_size != SIZE: raise Outdated
    return b"old"
"""


@pytest.mark.parametrize("workers", [0, True, 1.5, 1000])
def test_a_wrong_number_of_workers_is_one_sentence(workers):
    with pytest.raises(InputError, match="pass a whole number from 1 to 256"):
        Processes(workers)
