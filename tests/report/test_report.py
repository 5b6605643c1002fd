"""From run folders to tables: what fills which cell, what is set apart or left out, what the statements become."""

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from geexp.analysis.analyse import Analysis, Network, write_analysis
from geexp.config.compose import composed_training
from geexp.config.labels import ge_label
from geexp.report import rows
from geexp.report.claims import INCONCLUSIVE
from geexp.report.comparison import compare_runs, trained
from geexp.report.figures import Figure, draw_figures
from geexp.report.measured import Runs
from geexp.report.page import page
from geexp.report.paper_tables import print_table, write_tables
from geexp.report.report import make_report
from geexp.report.rows import TABLES, Training, curves_of, paper, presets_of, rows_of, trainings
from geexp.report.runs import read_runs
from tests.support.made_runs import paper_identity, training, write_run
from tests.support.made_runs import write_training as finished


def cell(folder: Path, table: int, label: str, column: str = "top1"):
    (made,) = make_report(folder, [str(table)]).tables
    (row,) = (row for row in made.rows if row.label == label)
    return row.cells[column]


# The paper's rows


def test_the_papers_numbers():
    assert [len(rows_of(n)) for n in TABLES] == [5, 6, 6, 7, 5, 5]
    assert {row.label: row.cells[0].printed for row in rows_of(2)}["GE-θ⁺"] == 21.88
    assert [row.cells[0].printed for row in rows_of("detection")] == [27.3, 28.6]
    assert paper()["table5"]["rows"][0]["wrn16_8"]["cifar100"] == 20.43


def test_a_rows_training_is_its_preset_as_hydra_composes_it():
    for one in trainings():
        assert one.config == composed_training(f"experiment={one.preset}"), one.preset


def test_a_detector_starts_from_its_networks_backbone():
    assert [row.training.backbone.preset for row in rows_of("detection")] == ["figure2_baseline", "figure2_theta_e8"]


def test_shared_trainings_know_all_their_presets():
    shared = ["table1_baseline", "table2_baseline", "table6_baseline", "figure2_baseline"]
    assert presets_of(training(6, "ResNet-50")) == shared
    assert presets_of(training(3, "SE")) == ["table3_se"]


def test_rows_need_few_compositions(monkeypatch):
    composed = set()
    monkeypatch.setattr(rows, "composed_training", lambda *words: composed.add(words) or composed_training(*words))
    for one in trainings():
        rows.preset_config(one.preset)
    assert len(composed) < 12


# Cells


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
    reasons = {left.folder.name: left.reason for left in left_out}
    words = {"half": "damaged", "newer": "format 2", "lacking": "'last'", "failed": "diverged: the loss is not finite"}
    assert reasons.keys() == words.keys()
    assert not [name for name, word in words.items() if word not in reasons[name]]


def test_an_unknown_field_of_the_future_is_passed_over_or_differs(tmp_path):
    finished(tmp_path / "field", training(2, "SE"), colour="blue")
    finished(tmp_path / "key", training(2, "SE"), seed=1, but={"optim.sharpness": 0.1})
    found = cell(tmp_path, 2, "SE")
    assert found.measured.n == 1
    assert found.elsewhere[0].differences == {"optim.sharpness": (0.1, None)}


def test_a_folder_without_runs_has_all_tables(tmp_path):
    report = make_report(tmp_path / "nothing", ["1", "2", "3", "4", "5", "6", "detection"])
    assert [len(table.rows) for table in report.tables] == [5, 6, 6, 7, 5, 5, 2]
    assert {cell.measured for table in report.tables for cell in table.cells} == {None}
    assert report.tables[1].rows[0].complexity["gflops"]["computed"] == pytest.approx(7.57, abs=0.005)
    commands = {cell.command for table in report.tables[:-1] for cell in table.cells}
    assert len(commands) == 59
    assert {judgement.verdict for judgement in report.judgements} == {INCONCLUSIVE}


# Files


def test_tables_as_files(tmp_path):
    finished(tmp_path / "runs/a", training(2, "GE-θ⁺"), top1=21.5)
    finished(tmp_path / "runs/b", training(2, "SE"), top1=30.0, but={"schedule.epochs": 5})
    report = make_report(tmp_path / "runs", ["2", "4"])
    names = {path.name for path in write_tables(report, tmp_path / "out")}
    assert names == {f"table{n}.{suffix}" for n in (2, 4) for suffix in ("md", "csv", "tex")}
    markdown = (tmp_path / "out/table2.md").read_text()
    (line,) = (line for line in markdown.splitlines() if line.startswith("| GE-θ⁺"))
    assert [c.strip() for c in line.split("|")[2:5]] == ["21.88", "21.50 (n=1, BN over 256)", "-0.38"]
    assert "- SE, top-1 error, %: 30.00 (n=1, BN over 256); schedule.epochs=5 (paper: 300)" in markdown
    with (tmp_path / "out/table2.csv").open() as file:
        rows = {(r["row"], r["column"], r["protocol"]): r for r in csv.DictReader(file)}
    assert float(rows["GE-θ⁺", "top1", "the paper's"]["mean"]) == 21.5
    assert rows["GE-θ", "top1", "the paper's"]["n"] == "0"
    assert rows["SE", "top1", "schedule.epochs=5 (paper: 300)"]["mean"] == "30.0"
    latex = (tmp_path / "out/table2.tex").read_text()
    assert r"\toprule" in latex
    assert r"GE-$\theta$$^{+}$ & 21.88 & 21.50 (n=1, BN over 256) & -0.38" in latex
    assert latex.isascii()
    console = Console(width=160, record=True)
    print_table(report.tables[1], console)
    assert "138.9  143.09 ≠" in console.export_text()


def test_figures_show_what_is_printed_and_what_was_run(tmp_path):
    figures = {figure.number: figure for figure in draw_figures(Runs([]), tmp_path / "none")}
    assert [path.name for path in figures[2].files] == ["figure2.svg", "figure2.png"]
    assert figures[4].files == ()
    of_figure4 = [of.command for of in curves_of(4).values()]
    assert list(figures[4].missing) == of_figure4
    assert "experiment=figure4_baseline" in of_figure4[0]
    assert [number for number in figures if not figures[number].files] == [3, 4, 5, 6, 7, 8]
    for name, of in curves_of(4).items():
        finished(tmp_path / f"runs/{name}", of)
    finished(tmp_path / "runs/e8", curves_of(2)["theta_e8"], top1=22.4)
    runs, _ = read_runs(tmp_path / "runs")
    figures = {figure.number: figure for figure in draw_figures(Runs(runs), tmp_path / "some")}
    assert figures[4].missing == ()
    assert curves_of(2)["theta_e8"].command not in figures[2].missing
    assert curves_of(2)["theta_e4"].command in figures[2].missing
    assert all(path.stat().st_size > 5_000 for path in (*figures[2].files, *figures[4].files))


def analysed(folder: Path, name: str, of: Training, tables: dict[str, pd.DataFrame]) -> None:
    """What geexp.analyze leaves beside a run."""
    network = Network("it", str(folder), 0, "best.ckpt", 300, "val", 50_000, of.identity)
    tables = {key: table.assign(network="it") for key, table in tables.items()}
    write_analysis(Analysis(name, (network,), {}, tables, {}), folder / "analysis")


def test_figures_of_analyses_take_faithful_runs_and_say_what_they_lack(tmp_path):
    features = pd.DataFrame({"block": "conv4_1", "channel": [0, 1], "selectivity": [0.2, 0.7]})
    blocks = pd.DataFrame({"block": ["conv4_1"], "features": 2, "dead": 0, "mean_selectivity": 0.45})
    selectivity = {"features": features, "blocks": blocks.assign(median_selectivity=0.45)}
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
    assert figures[7].missing[:2] == (training(2, "GE-θ⁻").command, se.command)
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
    rows = {row["network"]: row for row in trained(read_runs(tmp_path)[0]).rows}
    theta, se = rows["ResNet-50 GE-θ"], rows["ResNet-50 SE"]
    assert theta["top-1 error, %"] == "22.50 ± 0.71 (n=2, BN over 256)"
    assert (theta["seeds"], theta["hardware"]) == ("0, 1", "AMD, 2 threads")
    assert (se["seeds"], se["hardware"], se["commit"], se["data"]) == ("0", "8 × H200", "abcdef0123", "imagenet")


# Side by side, and from outside


def test_labels_are_the_papers():
    assert ge_label({"variant": "none"}) == "baseline"
    assert ge_label({"variant": "theta_minus", "extent": 4, "stages": [2, 3, 4, 5], "pool": "max"}) == "GE-θ⁻ (E4, max)"
    assert ge_label({"variant": "se", "reduction": 8}) == "SE (r = 8)"
    assert ge_label({"variant": "theta", "extent": "global", "stages": [4]}) == "GE-θ (stage 4)"


def test_unfinished_runs_are_shown_as_such(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (row,) = compare_runs([tmp_path / "a"])
    assert row.top1_error is None
    assert "not finished" in capsys.readouterr().out


STYLES = {
    "usable": {"marker": "^", "color": "#123456", "linestyle": [0, [3, 1]]},
    "hostile": {"marker": "<b>", "color": "red}</style><script>", "linestyle": "no line"},
    "none": {},
}


@pytest.mark.parametrize("style", STYLES)
def test_a_users_own_variant_is_reported_like_ours(tmp_path, capsys, style):
    """With two reductions, which are two networks; on a backbone and a data set of the user's own."""
    for reduction in (4, 16):
        for seed in (0, 1):
            known = paper_identity(2, 4)
            known["model"]["name"], known["data"]["name"] = "mynet", "mydata"
            ge = {"variant": "fifth", "extent": "global", "stages": [2, 3, 4, 5], "_target_": "my.Gate"}
            known["ge"] = ge | {"reduction": reduction}
            of_ge = known["ge"] | {"label": "GE-five", "order": 100, "style": STYLES[style]}
            config = known | {"ge": of_ge, "model": known["model"] | {"label": "MyNet"}}
            write_run(tmp_path / f"fifth-{reduction}-{seed}", known, 20 + reduction / 4, seed=seed, config=config)
    known = paper_identity(2, 5)
    known["model"]["name"], known["data"]["name"] = "mynet", "mydata"
    write_run(tmp_path / "theta_plus", known, 25.0)
    report = make_report(tmp_path, [])
    assert report.left_out == ()
    assert [run.variant for run in report.runs] == ["theta_plus", *["fifth"] * 4]  # ours first
    labels = [row.label for row in compare_runs([run.folder for run in report.runs])]
    assert sorted(labels)[0].startswith("GE-five (r = 4)")
    assert len(set(labels)) == 5
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    networks = {row["network"] for row in trained(report.runs).rows}
    assert {"MyNet GE-five (r = 4)", "MyNet GE-five"} <= networks
    shown = page(report)
    assert "GE-five (r = 4)" in shown
    assert ("#123456" in shown) == (style == "usable")
    assert "<script>," not in shown
    assert "red}" not in shown.partition("</style>")[0]


@pytest.mark.slow
def test_runs_that_differ_have_labels_that_differ(run, tmp_path):
    one_batch = ["debug=one_batch", "logger=none", "ge=theta"]
    for change in ([], ["optim.lr=0.5"], ["data.augmentation.flip=false"]):
        assert run("train", *one_batch, *change).returncode == 0
    shown = run("report", "tables=none", "figures=none").stdout
    assert "data.augmentation.flip=true optim.lr=0.5" in shown
    assert "data.augmentation.flip=false optim.lr=0.025" in shown
