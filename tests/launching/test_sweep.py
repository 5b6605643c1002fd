"""Sweeps of real jobs, of one process and of several: each trains its own configuration, and no fault loses more than
the steps since a checkpoint.
"""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGSTOP, SIGTERM, SIGUSR1

import psutil
import pytest

from geexp.runs.run import Run
from tests.support.forked import torchrun_environments
from tests.support.launched import SMALL, Command, finished, runs, send
from tests.support.processes import until
from tests.support.runs import same_end
from tests.support.wandb_files import logged

# Seconds in which everything ends that was told to; others work on this machine, too.
SOON = 45


def ends_as(undisturbed: Callable[[str], Path], again: Command, *names: str) -> None:
    """The same command, given once more, comes to the same end as if nothing had happened."""
    assert again.end() == 0, again.stderr
    assert again.has_left_nothing()
    assert set(finished(again.folder)) == set(names)
    for name in names:
        same_end(runs(again.folder)[name], undisturbed(name))


def test_ranks_that_were_told_different_things_train_nothing(forked, tmp_path):
    """By hand: a launcher gives one command to all of them."""
    ranks = [
        forked.start(tmp_path, "train", *SMALL, "trainer.devices=2", f"optim.lr={lr}", "hydra.run.dir=run", **variables)
        for lr, variables in zip((0.1, 0.2), torchrun_environments(2), strict=True)
    ]
    (first,) = ranks[0].end()
    ranks[1].end(patience=0)  # it would say it too, some seconds later
    assert first.returncode == 2
    *_, message = first.stderr.splitlines()
    assert message.startswith("geexp.train: the 2 ranks of this run were started with different configurations")
    assert "optim.lr: 0.1, 0.2." in message
    assert not (tmp_path / "run/history.jsonl").exists()


def test_ctrl_c_while_jobs_still_start(start):
    sweep = start("-m", "ge=theta,none", "trainer.devices=2", "launcher.devices=2", *SMALL)
    until(lambda: len(sweep.trainings()) == 2)
    sweep.process.send_signal(SIGINT)
    assert sweep.end(SOON) == 130
    assert sweep.has_left_nothing()
    assert sweep.stderr.count(": starts on ") == 1  # the other one never
    assert "ge=theta: not started" in sweep.stderr
    assert "Traceback" not in sweep.stderr


@pytest.mark.slow
def test_every_job_is_trained_as_if_alone_with_as_many_processes_as_devices(start, undisturbed):
    sweep = start("-m", "ge=none,theta,se", "trainer.devices=2,1", "launcher.devices=2", *SMALL)
    at_once = []
    while sweep.process.poll() is None:
        at_once.append(_ranks(sweep.trainings()))
        time.sleep(0.05)
    ends_as(undisturbed, sweep, *(f"{ge}-{devices}" for ge in ("none", "theta", "se") for devices in (1, 2)))
    assert max(at_once) == 2
    # The longest first, which are those of one process.
    started = re.findall(r"trainer.devices=(\d): starts on (.*?):", sweep.stderr)
    assert [devices for devices, _ in started] == ["1"] * 3 + ["2"] * 3
    assert [on for devices, on in started if devices == "2"] == ["0, 1"] * 3
    assert [on for _, on in started[:2]] == ["0", "1"]


def _ranks(trainings: list[psutil.Process]) -> int:
    """Those that are no children of another: one that is about to become git still has its parent's name."""
    pids, count = {process.pid for process in trainings}, 0
    for process in trainings:
        with suppress(psutil.NoSuchProcess):
            count += process.ppid() not in pids
    return count


@pytest.mark.slow
def test_failed_jobs_leave_the_others_alone_and_go_on(start, strings, undisturbed):
    command = ["-m", "ge=none,theta", "trainer.devices=1,2", "launcher.devices=3", *SMALL, strings.argument]
    strings.tell("none-2-0")
    strings.tell("theta-2-0", do="raise")
    sweep = start(*command)
    send(strings.where("none-2-1"))
    assert sweep.end() == 1
    assert sweep.has_left_nothing()
    strings.release()
    before = finished(sweep.folder)
    assert set(before) == {"none-1", "theta-1"}
    for name in before:
        same_end(runs(sweep.folder)[name], undisturbed(name))

    report = sweep.stderr[sweep.stderr.rindex("geexp.train: ") :]
    assert report.startswith("geexp.train: 2 of 4 jobs are not done; the same command retries them, and resumes from")
    assert "  ge=theta trainer.devices=2: failed after epoch 1: made to fail (exit code 1)" in report
    killed = r"rank 1, process \d+, was killed by signal 9 \(exit code 137\)"
    assert re.search(f"  ge=none trainer.devices=2: failed after epoch 1: {killed}", report)
    for name in ("none-2", "theta-2"):
        assert f"log: {runs(sweep.folder)[name] / 'console.log'}" in report
    assert "trainer.devices=1" not in report
    assert "Traceback" not in sweep.stderr
    assert "baseline" in sweep.stdout  # the table has the jobs that are finished
    assert sweep.stdout.count("not finished") == 2

    again = start(*command)
    ends_as(undisturbed, again, "none-1", "none-2", "theta-1", "theta-2")
    after = finished(sweep.folder)
    assert {name: after[name] for name in before} == before  # not trained again
    assert again.stderr.count(": starts on ") == 2
    assert "resumes after epoch 1 (killed, or its machine went down)" in again.stderr
    assert "again after epoch 1 (made to fail)" in again.stderr


# SIGHUP: its terminal is closed
STOPS = [(SIGINT, 130), (SIGTERM, 75), (SIGUSR1, 75), (SIGHUP, -SIGHUP), (SIGKILL, -SIGKILL)]


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), STOPS, ids=[signum.name for signum, _ in STOPS])
def test_a_sweep_that_is_stopped_or_killed_leaves_nothing_and_goes_on(start, strings, undisturbed, signum, code):
    command = ["-m", "trainer.devices=1,2", "launcher.devices=3", "ge=theta", *SMALL, strings.argument]
    strings.tell("theta-1-0", "theta-2-0")
    sweep = start(*command)
    strings.where("theta-1-0", "theta-2-0")
    sweep.process.send_signal(signum)
    if code > 0:
        logs = [run / "console.log" for run in runs(sweep.folder).values()]
        until(lambda: all("stopping after this step" in log.read_text() for log in logs))
    else:
        assert sweep.end(SOON) == code
    strings.release()
    assert sweep.end(SOON) == code
    assert sweep.has_left_nothing(0 if code > 0 else SOON)
    assert "Traceback" not in sweep.stderr
    assert not finished(sweep.folder)
    for run in runs(sweep.folder).values():  # neither was killed
        assert Run(run).status.state == ("interrupted" if signum == SIGINT else "preempted")
    ends_as(undisturbed, start(*command), "theta-1", "theta-2")


@pytest.mark.slow
def test_a_second_ctrl_c_kills_at_once(start, strings):
    strings.tell("theta-1-0", "theta-2-0")
    sweep = start("-m", "trainer.devices=1,2", "launcher.devices=3", "ge=theta", *SMALL, strings.argument)
    strings.where("theta-1-0", "theta-2-0")
    sweep.process.send_signal(SIGINT)
    until(lambda: "Ctrl-C: 2 running jobs write their checkpoints" in sweep.stderr)
    assert sweep.process.poll() is None
    sweep.process.send_signal(SIGINT)
    assert sweep.end(SOON) == 130
    assert sweep.has_left_nothing()
    assert [Run(run).status.state for run in runs(sweep.folder).values()] == ["lost", "lost"]


@pytest.mark.slow
def test_jobs_that_do_not_stop_are_killed_when_their_time_is_over(start, strings):
    strings.tell("theta-2-0")
    sweep = start("-m", "trainer.devices=2", "ge=theta", "launcher.grace=3", *SMALL, strings.argument)
    strings.where("theta-2-0")
    sweep.process.send_signal(SIGTERM)
    assert sweep.end(SOON) == 75
    assert sweep.has_left_nothing()


@pytest.mark.slow
def test_what_hangs_is_killed_and_a_killed_agent_is_told(start, strings, undisturbed):
    """A rank that stands still holds up its job, but no other; ranks without their agent end."""
    command = ["-m", "ge=none,theta", "trainer.devices=1,2", "launcher.devices=3", "launcher.hang_after=1"]
    command += [*SMALL, strings.argument]
    strings.tell("none-1-0", "none-2-1", "theta-2-0")
    sweep = start(*command)
    send(strings.where("none-1-0"), SIGSTOP)
    strings.where("none-2-1")
    ((rank,), agents) = strings.where("none-2-0"), sweep.agents()
    (agent,) = [agent for agent in agents if rank in [child.pid for child in agent.children()]]
    agent.kill()
    until(lambda: "ge=none trainer.devices=2: failed" in sweep.stderr)
    send(strings.where("theta-2-1"), SIGSTOP)
    strings.release()
    assert sweep.end() == 1
    assert sweep.has_left_nothing()
    report = sweep.stderr[sweep.stderr.rindex("geexp.train: ") :]
    hung = "failed after epoch 1: killed, after 1 minutes without a step or batch (launcher.hang_after)"
    assert f"ge=none trainer.devices=1: {hung}" in report
    assert f"ge=theta trainer.devices=2: {hung}" in report
    killed = "failed after epoch 1: the main process was killed by signal 9"
    assert f"ge=none trainer.devices=2: {killed}" in report
    assert sweep.stderr.count(": starts on ") == 4
    assert set(finished(sweep.folder)) == {"theta-1"}
    ends_as(undisturbed, start(*command), "none-1", "none-2", "theta-1", "theta-2")


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["job", "sweep"])
def test_processes_that_read_images_end_with_their_job(start, strings, killed):
    strings.tell("theta-1-0")
    command = ["-m", "ge=none,theta", "launcher.devices=2", "feed=reference", "feed.workers=2", *SMALL]
    sweep = start(*command, strings.argument)
    (job,) = strings.where("theta-1-0")
    assert len(psutil.Process(job).children(recursive=True)) >= 2
    send([job if killed == "job" else sweep.process.pid])
    strings.release()
    assert sweep.end() == (1 if killed == "job" else -SIGKILL)
    assert sweep.has_left_nothing(SOON if killed == "sweep" else 0)
    if killed == "job":
        assert "ge=theta: failed after epoch 1: the main process was killed by signal 9" in sweep.stderr
        assert set(finished(sweep.folder)) == {"none-1"}


@pytest.mark.slow
def test_exit_code_0_is_no_proof(start, strings, undisturbed):
    strings.tell("none-1-0", do="exit")
    strings.tell("theta-1-0", do=f"foreign {undisturbed('none-1')}")
    command = ["-m", "ge=none,theta,se", "launcher.devices=2", *SMALL, strings.argument]
    sweep = start(*command)
    assert sweep.end() == 1
    report = sweep.stderr[sweep.stderr.rindex("geexp.train: ") :]
    assert report.startswith("geexp.train: 2 of 3 jobs are not done")
    assert "ge=none: failed after epoch 1: ended with exit code 0, but without a result" in report
    assert re.search(
        r"ge=theta: failed.*: .*holds a run with another configuration: .*ge.variant=theta \(in the folder", report
    )
    assert "ge=se" not in report
    assert "Traceback" not in sweep.stderr
    assert "se-1" in finished(sweep.folder)


@pytest.mark.slow
def test_two_sweeps_at_once_share_a_row(start, strings, undisturbed):
    """Both begin it, and one of them is first; the other one waits, and finds it done."""
    strings.tell("theta-1-0")
    first = start("-m", "ge=none,theta", "launcher.devices=2", *SMALL, strings.argument)
    second = start("-m", "ge=theta,se", "launcher.devices=2", *SMALL, strings.argument)
    strings.where("none-1-0", "theta-1-0", "se-1-0")
    third = start("-m", "ge=theta", *SMALL, strings.argument)
    until(lambda: "waits for it" in third.stderr)
    assert not third.trainings()
    until(lambda: len(finished(first.folder)) == 2)
    strings.release()
    for sweep in (first, second, third):
        assert sweep.end() == 0, sweep.stderr
        assert sweep.has_left_nothing()
    assert all("ge=theta: done" in sweep.stderr for sweep in (first, second))
    assert "theta-global: done" in third.stderr
    assert ["being trained by" in sweep.stderr for sweep in (first, second)].count(True) == 1
    for name in ("none-1", "theta-1", "se-1"):
        same_end(runs(first.folder)[name], undisturbed(name))
        assert (runs(first.folder)[name] / "train.log").read_text().count("training into") == 1


@pytest.mark.slow
def test_at_wandb_a_job_is_one_run_of_its_sweeps_group_however_often_it_is_started(start, strings):
    group = ["+sweep=demo", "launcher=processes", "launcher.devices=3", "hydra.sweeper.params.ge='none,theta'"]
    command = [*group, *SMALL, "logger=wandb", strings.argument, "trainer.devices=1,2"]
    variables = {"NETRC": str(strings.folder / "none")}
    strings.tell("none-1-0", "theta-1-0", "none-2-0", "theta-2-0")
    sweep = start(*command, **variables)
    until(lambda: len(list(strings.folder.glob("*.at"))) >= 2)
    sweep.process.send_signal(SIGTERM)
    strings.release()
    assert sweep.end(SOON) == 75
    assert sweep.has_left_nothing()
    again = start(*command, **variables)
    assert again.end() == 0, again.stderr
    assert again.has_left_nothing()
    found = {name: logged(run) for name, run in runs(sweep.folder).items()}
    assert set(found) == {"none-1", "theta-1", "none-2", "theta-2"}
    for name, starts in found.items():
        assert {(one.id, one.name, one.group) for one in starts} == {(starts[0].id, starts[0].name, "demo")}
        assert ("ge=theta" in starts[0].name) == name.startswith("theta")
    assert max(len(starts) for starts in found.values()) == 2
    assert len({starts[0].id for starts in found.values()}) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "code", "state"), [(SIGINT, 130, "interrupted"), (SIGTERM, 75, "preempted")], ids=["SIGINT", "SIGTERM"]
)
def test_a_single_run_starts_its_ranks_and_stops_and_goes_on(start, strings, undisturbed, signum, code, state):
    command = ["ge=theta", "trainer.devices=2", *SMALL, strings.argument]
    strings.tell("theta-2-0")
    one = start(*command)
    strings.where("theta-2-0")
    one.process.send_signal(signum)
    strings.release()
    assert one.end(SOON) == code
    assert one.has_left_nothing()
    assert Run(runs(one.folder)["theta-2"]).status.state == state
    assert "Resume with: python -m geexp.train ge=theta trainer.devices=2 " in one.stderr
    assert "Traceback" not in one.stderr
    assert not one.stdout
    again = start(*command)
    ends_as(undisturbed, again, "theta-2")
    assert len(again.stdout.splitlines()) == 1
    assert again.stdout.startswith("top-1 error ")


@pytest.mark.slow
def test_a_single_run_whose_rank_fails_and_that_is_interrupted_twice_and_killed(start, strings, undisturbed):
    """One after the other: nothing is left behind, and in the end it is as if nothing had happened."""
    command = ["ge=theta", "trainer.devices=2", *SMALL, strings.argument]
    strings.tell("theta-2-1", do="raise")
    failed = start(*command)
    assert failed.end() == 1
    assert failed.has_left_nothing()
    assert "RuntimeError: made to fail" in failed.stderr

    strings.forget()
    strings.tell("theta-2-0")
    interrupted = start(*command)
    strings.where("theta-2-0", "theta-2-1")
    interrupted.process.send_signal(SIGINT)
    until(lambda: "press Ctrl-C again to stop immediately" in interrupted.stderr)
    interrupted.process.send_signal(SIGINT)
    assert interrupted.end(SOON) == 130
    assert interrupted.has_left_nothing()

    strings.forget()
    strings.tell("theta-2-1")
    killed = start(*command)
    strings.where("theta-2-0", "theta-2-1")
    killed.process.kill()
    assert killed.end() == -SIGKILL
    strings.release()
    assert killed.has_left_nothing(SOON)
    assert Run(runs(killed.folder)["theta-2"]).status.state == "preempted"
    ends_as(undisturbed, start(*command), "theta-2")


@pytest.mark.slow
def test_all_ranks_of_a_single_run_share_a_folder_that_is_named_by_the_time(start, tmp_path):
    one = start("trainer.devices=2", *SMALL, "hydra.run.dir='outputs/${now:%H-%M-%S.%f}'")
    assert one.end() == 0, one.stderr
    assert len(list((tmp_path / "outputs").iterdir())) == 1
