"""Jobs for tests of `scale`: they leave a line for every time they are done, sleep, and die when told to."""
import json
import os
import sys
import time
from functools import partial
from pathlib import Path

from cryptolstm.core.progress import Progress
from cryptolstm.scale.tasks import Job, Processes, Results, job_key, run_jobs


def noted(data: bytes, progress: Progress) -> bytes:
    "Leave a line with the process, sleep, and return the name in capitals; with `dies` kill the process."
    job = json.loads(data)
    with Path(job["folder"], "log").open("a") as f:
        f.write(f"{job['name']} {os.getpid()}\n")
    if job.get("dies") == "always" or (job.get("dies") == "once" and count(job["folder"], job["name"]) == 1):
        os._exit(9)
    time.sleep(job.get("seconds", 0))
    return job["name"].upper().encode()


def count(folder, name: str) -> int:
    "How often a job was begun."
    log = Path(folder, "log")
    return sum(line.split()[0] == name for line in log.read_text().splitlines()) if log.exists() else 0


def processes_of(folder) -> set[int]:
    "The processes in which jobs were begun."
    return {int(line.split()[1]) for line in Path(folder, "log").read_text().splitlines()}


def job(folder, name: str, cost: float = 1.0, **more) -> Job:
    "A job that leaves its line in a folder."
    data = json.dumps({"folder": str(folder), "name": name, **more}).encode()
    return Job(job_key(data), name, "jobs:noted", partial(bytes, data), cost)


def main() -> None:
    "As a program: `python jobs.py FOLDER N SECONDS` does N jobs in two processes and stores their results."
    folder, n, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    jobs = [job(folder, f"job{k}", seconds=seconds) for k in range(n)]
    done = run_jobs(jobs, Processes(2), Results(folder / "results"))
    print(len([result for result in done.values() if isinstance(result, bytes)]))


if __name__ == "__main__":
    main()
