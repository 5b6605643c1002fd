"""The states of runs, and what a plan, a dry run and the status make of them."""

from dataclasses import replace

import pytest
from rich.console import Console

from geexp.config.errors import ConfigError
from geexp.data.record import stored_record
from geexp.launching.jobs import shell
from geexp.launching.live_table import status
from geexp.launching.plan import (
    DONE,
    FAILED,
    NEW,
    RUNNING,
    UNFINISHED,
    in_words,
    labels,
    plan,
    progress_of,
    require_all_data,
    summary,
)
from geexp.runs.lock import run_lock
from tests.support.photos import write_classes
from tests.support.sweep_jobs import finish, leave, reach, sweep_job, sweep_jobs


def test_the_five_states_of_a_run(tmp_path):
    new, done, stopped, failed, lost, running = sweep_jobs(tmp_path, *(f"seed={n}" for n in range(6)))
    finish(done)
    leave(stopped, "preempted", "SIGTERM")
    leave(failed, "diverged", "the training loss is not finite")
    leave(lost, "running")
    for one, state, told in (
        (new, NEW, "not started"),
        (done, DONE, "done"),
        (stopped, UNFINISHED, "stopped: SIGTERM"),
        (failed, FAILED, "failed: the training loss is not finite"),
        (lost, UNFINISHED, "stopped: killed, or its machine went down"),
    ):
        assert (progress_of(one).state, str(progress_of(one))) == (state, told)
    with run_lock(running.folder):
        assert progress_of(running).state == RUNNING
    assert progress_of(running).state == NEW


def test_a_result_of_another_configuration_is_refused_unless_by_force(tmp_path):
    one, other = sweep_jobs(tmp_path, "seed=1", "seed=2")
    finish(one)
    with pytest.raises(ConfigError, match="seed=2"):
        progress_of(replace(other, folder=one.folder))
    forced = replace(other, folder=one.folder, config=replace(other.config, force=True))
    (planned,) = plan([forced])
    assert planned.to_train
    assert in_words(planned) == "new: force=true"


def test_the_time_left_follows_from_the_last_epochs(tmp_path):
    by_epochs, by_iterations = sweep_jobs(
        tmp_path, "schedule.epochs=10", "schedule.epochs=null schedule.iterations=1000"
    )
    for one in (by_epochs, by_iterations):
        with run_lock(one.folder):
            assert progress_of(one).eta is None
            reach(one, 1, 30, seconds=1000)
            for epoch in (2, 3, 4):
                reach(one, epoch, 30 - epoch, seconds=50)
            progress = progress_of(one)
            assert progress.eta == pytest.approx(6 * 50)
            assert (progress.epoch, progress.error, progress.best) == (4, 26, 26)
            assert progress.epochs == (10 if one is by_epochs else None)


def test_the_same_training_twice_is_one(tmp_path):
    rows = plan(sweep_jobs(tmp_path, "ge=theta", "ge=none", "ge=none ge.extent=4"))
    assert [row.to_train for row in rows] == [True, True, False]
    assert in_words(rows[2]) == f"the same as {rows[1].label}"
    assert summary(rows) == "3 rows, 2 distinct trainings: 2 to train"


def test_what_happens_to_each_row_and_how_far_it_has_come(tmp_path):
    jobs = sweep_jobs(tmp_path, *(f"seed={n}" for n in range(4)))
    finish(jobs[0], command="python -m geexp.train experiment=table2_baseline +sweep=table2")
    leave(jobs[1], "interrupted", "Ctrl-C")
    reach(jobs[1], 1, 50)
    leave(jobs[2], "failed", "no space left")
    rows = plan(jobs)
    assert [in_words(row) for row in rows] == [
        "done, as table2_baseline",
        "resumes after epoch 1 (Ctrl-C)",
        "again (no space left)",
        "new",
    ]
    assert summary(rows) == "4 trainings: 1 done, 3 to train (1 to resume, 1 failed before)"
    console = Console(width=200, record=True)
    status(jobs, console)
    text = console.export_text()
    for fact in ("seed=0", "done", "14.50 %", "stopped", "failed: no space left", "not started", "1 of 4 done"):
        assert fact in text


def test_labels_are_what_sets_jobs_apart(tmp_path):
    common = "experiment=demo trainer=cpu"
    assert labels(sweep_jobs(tmp_path, f"{common} ge=se", f"{common} ge=none seed=3")) == ["ge=se", "ge=none seed=3"]
    two = sweep_jobs(tmp_path, "experiment=table1_stage2", "experiment=table1_all")
    assert labels(two) == ["table1_stage2", "table1_all"]
    assert labels(sweep_jobs(tmp_path, common)) == ["resnet8 theta-global"]


def test_commands_can_be_typed(tmp_path):
    one = sweep_job(tmp_path, "ge.stages=[3,4]", "seed=1")
    assert shell(one.command()) == "python -m geexp.train 'ge.stages=[3,4]' seed=1 hydra.mode=RUN"
    nodes = sweep_job(tmp_path, "trainer.nodes=2", "trainer.devices=4", "optim.batch_size=64")
    start = "torchrun --nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-id=<job> "
    start += "--rdzv-endpoint=<first node>:29500 -m geexp.train trainer.nodes=2"
    assert shell(nodes.command()).startswith(start)


def test_missing_data_name_their_row(tmp_path):
    rows = plan(sweep_jobs(tmp_path, "seed=1", f"data=imagenet data.root={tmp_path}"))
    with pytest.raises(ConfigError, match=r"^data=imagenet data\.root=\S+: data=imagenet: train and val not found"):
        require_all_data(rows)


def test_runs_on_other_data_are_refused_before_anything_starts(tmp_path):
    """Finished, stopped, and two jobs of a sweep that would share a folder; a run that starts over is not."""
    for root, classes in (("flowers", ["daisy", "rose"]), ("cars", ["bmw", "vw"]), ("roses", ["daisy", "rose"])):
        for split in ("train", "val"):
            write_classes(tmp_path / root / split, classes, 1)
    options = "data=imagenet data.num_classes=2"
    on = {root: f"{options} data.root={tmp_path / root}" for root in ("flowers", "cars", "roses")}
    finished, stopped = sweep_jobs(tmp_path / "outputs", on["flowers"], f"{on['flowers']} seed=1")
    finish(finished)
    leave(stopped, "preempted")
    for job in (finished, stopped):
        stored_record(job.config.data, job.config.feed).write(job.folder)
    require_all_data(plan(sweep_jobs(tmp_path / "outputs", on["roses"], f"{on['roses']} seed=1")))
    for words in (on["cars"], f"{on['cars']} seed=1"):
        with pytest.raises(ConfigError, match=r"^data\.root=\S+cars.*: classes bmw, vw instead of daisy, rose"):
            require_all_data(plan(sweep_jobs(tmp_path / "outputs", f"{on['roses']} seed=2", words)))
    require_all_data(plan(sweep_jobs(tmp_path / "outputs", f"{on['cars']} force=true")))

    require_all_data(plan(sweep_jobs(tmp_path / "new", on["flowers"], on["roses"], f"{on['cars']} data.name=cars")))
    with pytest.raises(ConfigError, match=r"data\.root=\S+/cars and data\.root=\S+/flowers are different.*data\.name="):
        require_all_data(plan(sweep_jobs(tmp_path / "new", on["flowers"], on["cars"])))


@pytest.mark.parametrize("words", [["hydra.run.dir=here"], ["-m"]])
def test_a_dry_run_makes_no_folder(run, tmp_path, words):
    """Of a single run in a folder of its own, and of a sweep."""
    (tmp_path / "mine/ge").mkdir(parents=True)
    (tmp_path / "mine/ge/own.yaml").write_text("defaults: [theta]\n")
    before = sorted(tmp_path.rglob("*"))
    done = run("train", *words, "ge=own", "dry_run=true", "--config-dir", "mine")
    assert (done.returncode, done.stderr) == (0, "")
    command = done.stdout.splitlines()[-1]
    assert command.startswith(f"python -m geexp.train --config-dir={tmp_path}/mine ")
    assert ("hydra.run.dir=" in command) == ("-m" not in words)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_that_a_file_asks_for(run, tmp_path):
    """Of a single run; the printed command trains."""
    (tmp_path / "mine/debug").mkdir(parents=True)
    (tmp_path / "mine/debug/dry.yaml").write_text("# @package _global_\ndry_run: true\n")
    done = run("train", "--config-dir=mine", "debug=dry", "seed=3")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 training: 1 to train" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("/mine debug=dry seed=3 dry_run=false hydra.mode=RUN")
    assert not list(tmp_path.rglob("status.json"))


def test_a_printed_command_can_be_asked_about(run, tmp_path):
    """The command of one row of a sweep, in a folder of its own."""
    row = ["+sweep=figure4", "experiment=figure4_theta", "data.root=/nowhere", "hydra.run.dir=here", "hydra.mode=RUN"]
    for entry, more, fact in (("train", ["dry_run=true"], "1 training: 1 to train"), ("status", [], "0 of 1 done")):
        done = run(entry, *row, *more)
        assert (done.returncode, done.stderr) == (0, "")
        assert fact in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_status_of_a_sweep(run, tmp_path):
    done = run("status", "-m", "seed=3,4")
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 of 2 done" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_cfg_of_a_sweep_lists_its_jobs_on_standard_error(run, tmp_path):
    done = run("train", "+sweep=figure4", "data.root=/nowhere", "--cfg", "job")
    assert done.returncode == 0
    assert "model:" in done.stdout
    assert "experiment=figure4_theta" in done.stderr
    assert list(tmp_path.iterdir()) == []
