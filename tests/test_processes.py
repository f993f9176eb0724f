"""The pool of processes that meta-training and the benchmark share."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_dqnlr.processes import Done, NotSent, ProcessDied, Processes


def make_worker():
    return work


def work(job):
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if isinstance(job, list):
        Path(job[0]).write_text(f"{os.getpid()}.")
        time.sleep(600)
    return job * 2


def test_each_job_is_done_once_and_named_by_its_key():
    with Processes(2, make_worker) as pool:
        for key in range(6):
            pool.submit(key, 10 + key)
        done = [pool.receive() for _ in range(6)]
    assert {job.key: job.outcome for job in done} == {k: 20 + 2 * k for k in range(6)}


def test_a_killed_process_names_its_job_and_another_goes_on_with_the_rest():
    with Processes(1, make_worker) as pool:
        pool.submit(7, "die")
        pool.submit(8, 1)
        with pytest.raises(ProcessDied, match="job 7 ended with code -9") as died:
            pool.receive()
        assert (died.value.key, died.value.code) == (7, -signal.SIGKILL)
        pool.add()
        assert pool.receive() == Done(8, 2)


def test_a_job_that_cannot_be_sent_is_told_and_the_next_one_is_done():
    with Processes(1, make_worker) as pool:
        pool.submit(0, lambda: None)
        pool.submit(1, 3)
        with pytest.raises(NotSent):
            pool.receive()
        assert pool.receive() == Done(1, 6)


def test_what_the_processes_need_and_cannot_be_sent_is_told_at_once():
    with pytest.raises(NotSent):
        Processes(1, lambda: work)


def test_closing_waits_for_nobody(tmp_path):
    told = tmp_path / "child"
    with Processes(1, make_worker) as pool:
        pool.submit(0, [str(told)])
        assert _comes_true(told.is_file)
    assert not any(process.is_alive() for process in pool._processes)


PARENT = """
import sys, time
from lightning_dqnlr.processes import Processes
from tests.test_processes import make_worker
if __name__ == "__main__":
    pool = Processes(1, make_worker)
    pool.submit(0, sys.argv[1:])
    time.sleep(600)
"""


def test_the_processes_of_a_killed_parent_end_too(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    told = tmp_path / "child"
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, str(tmp_path / "parent.py"), str(told)]
    with subprocess.Popen(command, env=environment) as parent:
        assert _comes_true(lambda: told.is_file() and told.read_text().endswith("."))
        parent.kill()
    child = int(told.read_text()[:-1])
    ended = _comes_true(lambda: not _is_running(child))
    if not ended:
        os.kill(child, signal.SIGKILL)
    assert ended


def _comes_true(condition):
    for _ in range(1200):
        if condition():
            return True
        time.sleep(0.05)
    return False


def _is_running(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
