"""From run folders to tables: what fills which cell, what is set apart or left out, what the statements become."""

import csv
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from geexp.analysis.analyse import Analysis, Network, write_analysis
from geexp.report.analysed_figures import command_for
from geexp.report.claims import CANNOT_TELL, CONTRADICTS, SUPPORTS, claims, judge, judge_all
from geexp.report.figures import Figure, draw_figures
from geexp.report.measured import Runs
from geexp.report.report import make_report
from geexp.report.rows import TABLES, Training, curves_of, rows_of
from geexp.report.runs import read_runs
from geexp.report.table_files import print_table, write_tables
from geexp.report.trained import trained
from geexp.runs.identity import identity


def finished(
    folder: Path, training: Training, *, seed: int = 0, top1: float = 22.0, top5: float = 6.0, **more: Any
) -> Path:
    """The folder of a run of one of the paper's trainings; ``more`` replaces dotted keys of its identity."""
    known = identity(training.config) | {"seed": seed}
    for key, value in more.pop("but", {}).items():
        group, name = key.split(".")
        known[group] = known[group] | {name: value}
    errors = {"val/top1_error": top1, "val/top5_error": 6.0}
    last = {"epoch": 300, "time": more.pop("time", 0.0), **errors}
    result = {
        "format": 1, "status": "completed", "identity": known, "metrics": {"last": last, "best": last},
        "epochs": 300, "seconds": 1.0, "complexity": {"params": 1, "macs": 1}, **more,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    rows = [{"epoch": e, "train/top1_error": 50 - e, "val/top1_error": 40 - e} for e in (1, 2, 3)]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def training(table: int, label: str) -> Training:
    (row,) = (row for row in rows_of(table) if row.label == label)
    return row.cells[0].training


def cell(folder: Path, table: int, label: str, column: str = "top1"):
    (made,) = make_report(folder, [str(table)]).tables
    (row,) = (row for row in made.rows if row.label == label)
    return next(cell for cell in row.cells if cell.column == column)


# Cells


def test_two_seeds_are_mean_and_spread_beside_the_paper(tmp_path):
    for seed, error in ((0, 22.1), (1, 22.3)):
        finished(tmp_path / str(seed), training(2, "GE-θ"), seed=seed, top1=error)
    found = cell(tmp_path, 2, "GE-θ")
    assert str(found.measured) == "22.20 ± 0.14 (n=2)"
    assert found.printed == 22.00
    assert found.difference == pytest.approx(0.2)


def test_one_run_fills_rows_of_several_tables(tmp_path):
    finished(tmp_path / "somewhere/else", training(2, "ResNet-50 (Baseline)"), top1=23.4)
    for table, label in ((1, "ResNet-50 (Baseline)"), (2, "ResNet-50 (Baseline)"), (6, "ResNet-50")):
        assert cell(tmp_path, table, label).measured.mean == 23.4
    assert cell(tmp_path, 3, "ResNet-101 (Baseline)").measured is None
    assert cell(tmp_path, 2, "GE-θ").measured is None


def test_another_protocol_is_set_apart_and_says_what_differs(tmp_path):
    finished(tmp_path / "short", training(2, "GE-θ"), top1=30.0, but={"schedule.epochs": 5, "trainer.max_epochs": 5})
    found = cell(tmp_path, 2, "GE-θ")
    assert found.measured is None
    (other,) = found.elsewhere
    assert other.measured.mean == 30.0
    assert other.differences == {"schedule.epochs": (5, 300), "trainer.max_epochs": (5, 300)}


def test_how_the_batch_was_cut_and_rounded_is_no_other_protocol(tmp_path):
    how = {"optim.batchnorm_batch": 32, "optim.accumulate": 2, "trainer.precision": "bf16-mixed"}
    finished(tmp_path / "eight", training(2, "GE-θ"), but=how)
    assert cell(tmp_path, 2, "GE-θ").measured.n == 1


def test_the_same_seed_twice_is_one_sample(tmp_path):
    finished(tmp_path / "old", training(2, "GE-θ"), top1=25.0, time=1.0)
    finished(tmp_path / "new", training(2, "GE-θ"), top1=22.0, time=2.0, but={"trainer.precision": "bf16-mixed"})
    assert cell(tmp_path, 2, "GE-θ").measured.values == [22.0]


def test_every_cell_has_its_own_training():
    """Of Table 5's thirty, too; and a run that fills a cell fills no other network's."""
    cells = {(t, r.label, c.column): c for t in TABLES for r in rows_of(t) for c in r.cells}
    assert len(cells) == 2 * (5 + 6 + 6 + 7 + 5) + 30
    assert len({str(sorted(c.training.identity.items())) for c in cells.values()}) == 54


# What is left out


def test_what_is_no_finished_run_is_left_out_with_the_reason(tmp_path):
    good = finished(tmp_path / "good", training(2, "SE"))
    half = finished(tmp_path / "half", training(2, "SE"), seed=1)
    half.joinpath("result.json").write_text((half / "result.json").read_text()[:200])
    finished(tmp_path / "newer", training(2, "SE"), seed=2, format=2)
    finished(tmp_path / "lacking", training(2, "SE"), seed=3, metrics={})
    failed = tmp_path / "failed"
    failed.mkdir()
    status = {"state": "diverged", "reason": "the loss is not finite", "host": "x", "heartbeat": 0}
    (failed / "status.json").write_text(json.dumps(status))
    (tmp_path / "no run at all").mkdir()
    runs, left_out = read_runs(tmp_path)
    assert [run.folder for run in runs] == [good]
    assert {left.folder.name: left.reason for left in left_out} == {
        "half": "result.json is cut short or damaged; training again with the same command replaces it",
        "newer": "result.json has format 2, and this version reads 1",
        "lacking": "result.json lacks what a result has: 'last'",
        "failed": "diverged: the loss is not finite",
    }


def test_an_unknown_field_of_the_future_is_passed_over_or_differs(tmp_path):
    finished(tmp_path / "field", training(2, "SE"), colour="blue")
    finished(tmp_path / "key", training(2, "SE"), seed=1, but={"optim.sharpness": 0.1})
    found = cell(tmp_path, 2, "SE")
    assert found.measured.n == 1
    assert found.elsewhere[0].differences == {"optim.sharpness": (0.1, None)}


def test_a_folder_without_runs_has_all_tables(tmp_path):
    report = make_report(tmp_path / "nothing", ["1", "2", "3", "4", "5", "6", "detection"])
    assert [len(table.rows) for table in report.tables] == [5, 6, 6, 7, 5, 5, 2]
    assert {row.cells[0].printed for row in report.tables[-1].rows} == {27.3, 28.6}
    assert {c.measured for table in report.tables for row in table.rows for c in row.cells} == {None}
    assert report.tables[1].rows[0].complexity["gflops"]["computed"] == pytest.approx(7.57, abs=0.005)
    commands = {c.command for table in report.tables[:-1] for row in table.rows for c in row.cells}
    assert len(commands) == 59
    assert {judgement.verdict for judgement in report.judgements} == {CANNOT_TELL}


# Statements


def runs_with(tmp_path: Path, errors: dict[str, list[float]], table: int = 6) -> Runs:
    for label, values in errors.items():
        for seed, error in enumerate(values):
            finished(tmp_path / f"{label}{seed}", training(table, label), seed=seed, top1=error)
    return Runs(read_runs(tmp_path)[0])


MAX, AVG = [23.1, 23.2, 23.0], [22.8, 22.9, 22.85]


@pytest.mark.parametrize(
    ("global_max", "global_avg", "verdict"),
    [
        ([23.6, 23.7, 23.65], [22.1, 22.2, 22.15], SUPPORTS),
        ([22.1, 22.2, 22.15], [23.6, 23.7, 23.65], CONTRADICTS),
        ([22.1, 23.2, 22.6], [22.2, 23.0, 22.5], CANNOT_TELL),
        ([23.6], [22.1], CANNOT_TELL),
    ],
)
def test_a_statement_is_as_good_as_its_weakest_comparison(tmp_path, global_max, global_avg, verdict):
    errors = {"(E4, max)": MAX, "(E4, avg)": AVG, "(global, max)": global_max, "(global, avg)": global_avg}
    (claim,) = (claim for claim in claims() if claim.where == "Table 6")
    judged = judge(claim, "", runs_with(tmp_path, errors).faithful)
    assert judged.verdict == verdict
    assert (judged.p is None) == (len(global_max) == 1)


@pytest.mark.parametrize(
    ("other", "verdict"),
    [([22.15, 22.18, 22.2], SUPPORTS), ([23.4, 23.5, 23.45], CONTRADICTS), ([22.0, 22.6, 22.3], CANNOT_TELL)],
)
def test_equal_means_within_the_margin(tmp_path, other, verdict):
    runs = runs_with(tmp_path, {"GE-θ⁻": [22.14, 22.16, 22.15], "ResNet-101": other}, table=2)
    (claim,) = (claim for claim in claims() if claim.equal)
    assert judge(claim, "", runs.faithful).verdict == verdict


def test_without_its_runs_a_statement_names_them(tmp_path):
    (claim,) = (claim for claim in claims() if claim.where == "Table 6")
    judged = judge(claim, "", Runs([]).faithful)
    assert (judged.verdict, judged.p) == (CANNOT_TELL, None)
    assert judged.reason == "not run: table6_e4_avg, table6_e4_max, table6_global_avg and 1 more"


def test_other_settings_are_judged_by_themselves(tmp_path):
    """A small network on a small set can say whether GE-θ⁺ is the best there, and no more than that."""
    errors = {"ResNet-50 (Baseline)": 20.0, "SE": 19.0, "GE-θ⁻": 19.5, "GE-θ": 18.0, "GE-θ⁺": 15.0}
    for label, error in errors.items():
        for seed in range(3):
            of = training(2, label)
            but = {"schedule.epochs": 5, "trainer.max_epochs": 5}
            finished(tmp_path / f"{label}{seed}", of, seed=seed, top1=error + seed / 10, but=but)
    runs, _ = read_runs(tmp_path)
    judged = {(j.claim.where, j.setting): j for j in judge_all(Runs(runs), runs)}
    elsewhere = "resnet50, imagenet, plateau"
    assert judged["Table 2", "the paper's protocol"].verdict == CANNOT_TELL
    found = [j for j in judge_all(Runs(runs), runs) if j.setting == elsewhere and "best" in j.claim.text]
    assert {j.verdict for j in found} == {SUPPORTS}


# Files


def test_tables_as_files(tmp_path):
    finished(tmp_path / "runs/a", training(2, "GE-θ⁺"), top1=21.5)
    finished(tmp_path / "runs/b", training(2, "SE"), top1=30.0, but={"schedule.epochs": 5})
    report = make_report(tmp_path / "runs", ["2", "4"])
    names = {path.name for path in write_tables(report, tmp_path / "out")}
    assert names == {f"table{n}.{suffix}" for n in (2, 4) for suffix in ("md", "csv", "tex")}
    markdown = (tmp_path / "out/table2.md").read_text()
    (line,) = (line for line in markdown.splitlines() if line.startswith("| GE-θ⁺"))
    assert [c.strip() for c in line.split("|")[2:5]] == ["21.88", "21.50 (n=1)", "-0.38"]
    assert "- SE, top-1 error, %: 30.00 (n=1); schedule.epochs=5 (paper: 300)" in markdown
    with (tmp_path / "out/table2.csv").open() as file:
        rows = {(r["row"], r["column"], r["protocol"]): r for r in csv.DictReader(file)}
    assert float(rows["GE-θ⁺", "top1", "the paper's"]["mean"]) == 21.5
    assert rows["GE-θ", "top1", "the paper's"]["n"] == "0"
    assert rows["SE", "top1", "schedule.epochs=5 (paper: 300)"]["mean"] == "30.0"
    latex = (tmp_path / "out/table2.tex").read_text()
    assert r"\toprule" in latex
    assert r"GE-$\theta$$^{+}$ & 21.88 & 21.50 (n=1) & -0.38" in latex
    assert latex.isascii()
    console = Console(width=160, record=True)
    print_table(report.tables[1], console)
    assert "138.9  143.09 ≠" in console.export_text()


def test_figures_show_what_is_printed_and_what_was_run(tmp_path):
    figures = {figure.number: figure for figure in draw_figures(Runs([]), tmp_path / "none")}
    assert [path.name for path in figures[2].files] == ["figure2.svg", "figure2.png"]
    assert figures[4].files == ()
    of_figure4 = [command_for(of) for of in curves_of(4).values()]
    assert list(figures[4].missing) == of_figure4
    assert "experiment=figure4_baseline" in of_figure4[0]
    assert [number for number in figures if not figures[number].files] == [3, 4, 5, 6, 7, 8]
    for name, of in curves_of(4).items():
        finished(tmp_path / f"runs/{name}", of)
    finished(tmp_path / "runs/e8", curves_of(2)["theta_e8"], top1=22.4)
    runs, _ = read_runs(tmp_path / "runs")
    figures = {figure.number: figure for figure in draw_figures(Runs(runs), tmp_path / "some")}
    assert figures[4].missing == ()
    assert command_for(curves_of(2)["theta_e8"]) not in figures[2].missing
    assert command_for(curves_of(2)["theta_e4"]) in figures[2].missing
    assert all(path.stat().st_size > 5_000 for path in (*figures[2].files, *figures[4].files))


def analysed(folder: Path, name: str, of: Training, tables: dict[str, pd.DataFrame]) -> None:
    """What geexp.analyze leaves beside a run."""
    network = Network("it", str(folder), 0, "best.ckpt", 300, "val", 50_000, of.identity)
    tables = {key: table.assign(network="it") for key, table in tables.items()}
    write_analysis(Analysis(name, (network,), {}, tables, {}), folder / "analysis")


def test_figures_of_analyses_take_faithful_runs_and_say_what_they_lack(tmp_path):
    features = pd.DataFrame({"block": "conv4_1", "channel": [0, 1], "selectivity": [0.2, 0.7]})
    of_block = {
        "block": ["conv4_1"],
        "features": [2],
        "dead": [0],
        "mean_selectivity": [0.45],
        "median_selectivity": [0.45],
    }
    selectivity = {"features": features, "blocks": pd.DataFrame(of_block)}
    rows = {"block": "conv5_1", "order": "ascending", "ratio": [0.0, 1.0], "top1_accuracy": [78.0, 40.0]}
    theta, baseline, se = (training(2, label) for label in ("GE-θ", "ResNet-50 (Baseline)", "SE"))
    analysed(finished(tmp_path / "theta", theta), "selectivity", theta, selectivity)
    finished(tmp_path / "baseline", baseline)
    short = finished(tmp_path / "short", se, but={"trainer.max_epochs": 90})
    analysed(short, "pruning", se, {"curves": pd.DataFrame(rows)})

    def drawn() -> dict[int, Figure]:
        runs, _ = read_runs(tmp_path)
        return {figure.number: figure for figure in draw_figures(Runs(runs), tmp_path / "out", [3, 5, 7, 8])}

    figures = drawn()
    assert [path.name for path in figures[3].files] == ["figure3.svg", "figure3.png"]
    assert figures[3].missing == (f"python -m geexp.analyze analysis=selectivity run={tmp_path / 'baseline'}",)
    assert figures[7].files == ()
    assert figures[7].missing[:2] == (command_for(training(2, "GE-θ⁻")), command_for(se))
    # Of SE there is only a run of 90 epochs, and so none for the figure.
    assert figures[8].files == ()
    analysed(finished(tmp_path / "se", se), "pruning", se, {"curves": pd.DataFrame(rows)})
    assert len(drawn()[8].files) == 2
    (tmp_path / "se/analysis/pruning_curves.csv").unlink()
    assert drawn()[8].files == ()


def test_what_was_trained_is_a_row_a_training_with_its_seeds(tmp_path):
    for seed, error in ((0, 22.0), (1, 23.0)):
        finished(tmp_path / str(seed), training(2, "GE-θ"), seed=seed, top1=error, processor="AMD", threads=2)
    finished(tmp_path / "se", training(2, "SE"), gpu="H200", devices={"count": 8}, commit="abcdef0123456")
    rows = trained(read_runs(tmp_path)[0]).set_index("network")
    assert rows.loc["ResNet-50 GE-θ", "top-1 error, %"] == "22.50 ± 0.71 (n=2)"
    assert rows.loc["ResNet-50 GE-θ", ["seeds", "hardware"]].to_list() == ["0, 1", "AMD, 2 threads"]
    assert rows.loc["ResNet-50 SE", ["seeds", "hardware", "commit"]].to_list() == ["0", "8 × H200", "abcdef0123"]
    assert rows.loc["ResNet-50 SE", "data"] == "imagenet"
