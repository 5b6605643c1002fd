"""outputs/published: everything in it is what its records give, and what scripts/publish.py publishes."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
from scripts import publish
from scripts.publish import BEGIN, END, EVIDENCE, PAGE, SUMS

from geexp.report.rows import rows_of
from geexp.runs.run import Run
from tests.support.made_runs import write_training
from tests.support.runs import SETTINGS

PUBLISHED = EVIDENCE.parent
FOLDERS = sorted(publish.published_folders())
RECORDS = ("result.json", "history.jsonl")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_everything_published_is_what_its_runs_give(folder, run, tmp_path):
    done = run("report", f"runs={folder}", f"out={tmp_path}", "tables=none", "figures=none")
    assert done.returncode == 0, done.stderr
    generated = {path.name for path in tmp_path.iterdir()} - {PAGE}
    assert generated == {path.name for path in folder.iterdir() if path.is_file()} - {SUMS}
    for name in generated:
        if name.endswith((".md", ".csv")):
            assert (tmp_path / name).read_text() == (folder / name).read_text(), "run python scripts/publish.py"
        else:
            assert (tmp_path / name).stat().st_size > 10_000
    for row in (folder / "differences.csv").read_text().splitlines()[1:]:
        assert row.split('"')[1] in (tmp_path / PAGE).read_text()  # its setting


@pytest.mark.parametrize(("readme", "brief"), [(publish.ROOT / "README.md", True), (PUBLISHED / "README.md", False)])
def test_the_readmes_quote_the_evidence(readme, brief):
    text = readme.read_text(encoding="utf-8")
    assert publish.quoted_in(text, EVIDENCE, brief=brief) == text, "run python scripts/publish.py"


def test_published_networks_are_those_of_their_sums():
    listed = {}
    for sums in PUBLISHED.glob(f"*/{SUMS}"):
        for line in sums.read_text().splitlines():
            digest, name = line.split()
            listed[sums.parent / name] = digest
    assert listed.keys() == set(PUBLISHED.rglob("*.ckpt"))
    for file, digest in listed.items():
        assert hashlib.sha256(file.read_bytes()).hexdigest() == digest, file


@pytest.mark.real_cifar
@pytest.mark.parametrize("network", sorted(PUBLISHED.rglob("*.ckpt")), ids=lambda path: path.parts[-4])
def test_published_networks_give_the_published_error(network, run):
    folder = network.parents[1]
    done = run("evaluate", f"run={folder}", "which=last", f"root={os.environ['GEEXP_DATA']}", "format=json")
    assert done.returncode == 0, done.stderr
    measured, published = json.loads(done.stdout)["measured"], Run(folder).read_result().metrics["last"]
    assert measured["val/images"] == published["val/images"] == 10_000
    error = "val/top1_error"  # equal on the same kind of processor; elsewhere bfloat16 may round differently
    assert measured[error] == pytest.approx(published[error], abs=0.1)


def test_published_records_name_no_path_of_a_machine():
    files = [path for name in (*RECORDS, "analysis/*.json") for path in PUBLISHED.rglob(name)]
    assert len(files) > 30
    for path in files:
        assert not publish.MACHINE_PATH.search(path.read_text(encoding="utf-8")), path


# Publishing


def test_networks_are_published_with_weights_that_evaluate_as_recorded(forked, tmp_path):
    outputs = tmp_path / "runs"
    (done,) = forked.run(tmp_path, "train", *SETTINGS, "schedule.epochs=1", f"outputs={outputs}")
    assert done.returncode == 0, done.stderr
    (checkpoint,) = outputs.rglob("last.ckpt")
    target = tmp_path / "published"
    publish.publish_runs(outputs, target, networks_of="fashion_mnist_mini")
    publish.write_sums(target)
    (network,) = target.rglob("*.ckpt")
    assert network.parents[1].relative_to(target).parts[2:] == ("none", "seed0")
    assert network.stat().st_size < 0.6 * checkpoint.stat().st_size
    assert str(tmp_path).encode() not in network.read_bytes()
    assert "outputs/evidence" in (network.parents[1] / "result.json").read_text()
    assert (target / SUMS).read_text().split()[1] == str(network.relative_to(target))
    (done,) = forked.run(tmp_path, "evaluate", f"run={network.parents[1]}", "which=last")
    assert "\nidentical to the record" in done.stdout, done.stderr
    before = network.stat().st_mtime_ns
    publish.publish_runs(outputs, target, networks_of="fashion_mnist_mini")
    assert network.stat().st_mtime_ns == before  # so that its analyses are kept


@pytest.fixture
def evidence(tmp_path) -> Path:
    """Fifteen finished runs, as a sweep leaves them, and one of another machine's data."""
    errors = {"Baseline": 34.0, "SE": 33.9, "GE-θ⁻": 34.1, "GE-θ": 36.0, "GE-θ⁺": 33.0}
    rows = {row.label: row.cells[1].training for row in rows_of(5)}
    for label, error in errors.items():
        for seed in range(3):
            training = rows[label]
            place = tmp_path / "runs" / training.folder.replace("outputs/", "").replace("seed0", f"seed{seed}")
            config = {"outputs": str(tmp_path / "runs"), "data": {"root": "/mnt/cifar"}, "ge": {}, "model": {}}
            write_training(
                place, training, seed=seed, top1=error + 0.1 * (-seed) ** seed, config=config, epochs=30,
                command=f"python -m geexp.train ge=se data.root=/mnt/cifar outputs={tmp_path / 'runs'}",
                but={"schedule.iterations": 32_000},
            )  # fmt: skip
    return tmp_path / "runs"


def test_a_sweep_is_published_as_tables_sentences_and_quotations(evidence, tmp_path):
    target = tmp_path / "published"
    publish.publish_runs(evidence, target, networks_of="none")
    record = (target / "cifar100/resnet110/se-global/seed1/result.json").read_text()
    assert "data.root=/data outputs=outputs/evidence" in record
    assert "/mnt" not in record
    publish.generate_in_place(target)
    assert {"claims.md", "differences.md", "differences.csv", "trained.md"} < {path.name for path in target.iterdir()}
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    brief, full = (publish.quoted_in(text, target, brief=brief) for brief in (True, False))
    assert publish.quoted_in(brief, target, brief=True) == brief
    (picture,) = re.findall(r"\]\(outputs/published/(published/.*\.png)\)", brief)
    assert (tmp_path / picture).is_file()
    for quoted in (brief, full):
        assert quoted.startswith(f"before\n{BEGIN}\n")
        assert quoted.endswith(f"\n{END}\nafter\n")
        assert "| GE-θ⁺ | " in quoted
        assert re.search("claims, these hold here: .*GE-θ⁺ is better than the baseline", quoted)
        assert re.search("do not hold here: .*GE-θ is better than GE-θ⁻", quoted)
        assert re.search("cannot be told from these runs: .*SE is better than the baseline", quoted)
        assert "15 runs, 30.8 hours of training in all, AMD EPYC, 2 threads, 2023-11-14." in quoted
    assert "| memory, GiB |" in full
    with pytest.raises(ValueError, match="lacks the lines"):
        publish.quoted_in("no marks", target, brief=True)
    assert publish.quoted_in("no marks", tmp_path / "nothing", brief=True) == "no marks"


def test_a_path_that_is_left_and_two_runs_for_one_place_are_refused(evidence, tmp_path):
    record, *others = sorted(evidence.rglob("result.json"))
    text = record.read_text()
    record.write_text(text.replace("ge=se", "callbacks.file=/home/me/mine.py"))
    with pytest.raises(ValueError, match=r"/home/me/mine\.py"):
        publish.publish_runs(evidence, tmp_path / "published", networks_of="none")
    record.write_text(text)
    for other in others:
        other.unlink()
    twin = record.parent.with_name(record.parent.name + "0")
    twin.mkdir()
    for name in RECORDS:
        (twin / name).write_text((record.parent / name).read_text())
    with pytest.raises(ValueError, match="both belong in"):
        publish.publish_runs(evidence, tmp_path / "published", networks_of="none")


@pytest.mark.parametrize("arguments", [["missing"], ["--root", "missing"]])
def test_a_folder_that_is_missing_is_named(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["publish.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        publish.main()
    assert stopped.value.code == 2
    assert "missing: " in capsys.readouterr().err
