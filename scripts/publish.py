"""Publish finished runs in outputs/published/evidence: records, networks, analyses, tables, and blocks of the READMEs.

    python scripts/publish.py outputs/evidence --root /data   # publish all finished runs; --root: the CIFAR archives
    python scripts/publish.py                                 # only generate tables, pictures and READMEs again

Run it again after further runs: it replaces what changed. Records are copied unedited but for the folders of the data
and the outputs, which become ``/data`` and ``outputs/evidence``. The five networks with seed 0 on CIFAR-100 are
published with their weights after the last epoch, their SHA-256 in ``SHA256SUMS``, and analyses (about 20 minutes).
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from geexp.analysis.analyse import FOLDER
from geexp.report.claims import CONTRADICTED, INCONCLUSIVE, NOT_RUN, SUPPORTED, judge_all
from geexp.report.comparison import hardware
from geexp.report.differences import Comparison, compare
from geexp.report.measured import Runs
from geexp.report.runs import FinishedRun, read_runs
from geexp.report.tables import Table, to_markdown
from geexp.runs.run import Result, Run, find_runs
from geexp.runs.run_files import HISTORY, LAST, RESULT
from geexp.training.checkpoints import INFO, load_checkpoint

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "outputs/published/evidence"
BEGIN, END = "<!-- evidence, by scripts/publish.py -->", "<!-- end of evidence -->"
HEADING = [
    "## Evidence: Table 5 in miniature",
    "",
    "The paper's CIFAR recipe at half its length; an error is that of the last epoch. `make evidence DATA=/data`",
    "trains the networks, `python scripts/publish.py outputs/evidence --root /data` publishes them. In `evidence`,",
    "`trained.md` has command, hardware and commit of each run, `claims.md` the tests of the paper's claims, and",
    "`differences.md` says how the columns are computed.",
    "",
]
TESTS = "Differences are tested in pairs by seed, claims unpaired (Welch); corrected by Holm's method."
SUMS = "SHA256SUMS"
PAGE = "report.html"  # not published: 5 MB, made in a second
# Networks that are published, by the folder of their GE operator, and the data set that they were trained on.
NETWORKS, NETWORKS_OF = ("none", "se-global", "theta-minus-global", "theta-global", "theta-plus-global"), "cifar100"
LARGEST = 2_000_000  # bytes of a network
ANALYSES = ("selectivity", "pruning", "receptive_field", "gates")
# An absolute path at the start of a JSON string or after an equals sign, other than the data's published place.
MACHINE_PATH = re.compile(r"""(?<=["'=])/(?!data\b)\w[^"'\s]*""")


def publish_runs(source: Path, target: Path, *, networks_of: str = NETWORKS_OF) -> None:
    """Copy the finished runs below ``source`` to ``<data>/<model>/<ge>/seed<n>`` in ``target``.

    Raises:
        ValueError: if two runs have the same place, a record still names a path of this machine, or a checkpoint is too
            large or not of the last epoch.
    """
    places: dict[Path, Path] = {}
    for run in find_runs(source):
        if run.result is None:
            print(f"not finished: {run.folder}", file=sys.stderr)
            continue
        data, model, ge = run.folder.absolute().parts[-5:-2]
        place = target / data / model / ge / f"seed{run.result.seed}"
        if place in places:
            raise ValueError(
                f"{run.folder} and {places[place]} both belong in {place}; publish them from other folders"
            )
        places[place] = run.folder
        has_network = run.result.seed == 0 and run.result.leaves["data.name"] == networks_of and ge in NETWORKS
        publish_run(run, run.result, place, with_network=has_network)


def publish_run(run: Run, result: Result, place: Path, *, with_network: bool) -> None:
    for name in (RESULT, HISTORY):
        write_if_changed(place / name, cleaned((run.folder / name).read_text(encoding="utf-8"), result).encode())
    if with_network and write_if_changed(place / "checkpoints" / LAST, reduced(run, result)):
        shutil.rmtree(place / FOLDER, ignore_errors=True)  # the analyses are of other weights


def cleaned(text: str, result: Result) -> str:
    """A record without the paths of this machine.

    Raises:
        ValueError: if another one is left.
    """
    folders = {str(result.config.get("outputs")): "outputs/evidence", str(result.config["data"].get("root")): "/data"}
    for folder in sorted(folders, key=len, reverse=True):
        if folder.startswith("/"):
            text = text.replace(folder, folders[folder])
    if left := MACHINE_PATH.search(text):
        raise ValueError(f"{result.command}: its records name a path of this machine, {left.group()}")
    return text


def reduced(run: Run, result: Result) -> bytes:
    """The last checkpoint with nothing but weights and configuration, which is all that an evaluation needs."""
    checkpoint = load_checkpoint(run.checkpoint(LAST))
    if checkpoint.info.epoch != result.epochs:
        raise ValueError(f"{checkpoint.path} is of epoch {checkpoint.info.epoch}, not of the last, {result.epochs}")
    info = json.loads(cleaned(json.dumps(checkpoint.content[INFO]), result))
    file = BytesIO()
    torch.save({INFO: info, "state_dict": checkpoint.weights}, file)
    if file.tell() > LARGEST:
        raise ValueError(f"{checkpoint.path}: its weights take {file.tell():,} bytes, more than {LARGEST:,}")
    return file.getvalue()


def write_if_changed(path: Path, content: bytes) -> bool:
    if path.is_file() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return True


def write_sums(target: Path) -> None:
    """``SHA256SUMS`` of the networks, for ``sha256sum --check``."""
    files = sorted(target.rglob(LAST))
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(target)}\n" for file in files]
    if lines:
        (target / SUMS).write_text("".join(lines))


def analyse(target: Path, root: Path) -> None:
    """The analyses of each published network with a GE operator, compared with the baseline's."""
    for checkpoint in sorted(target.rglob(LAST)):
        run = checkpoint.parents[1]
        baseline = run.parents[1] / "none" / run.name
        for analysis in ANALYSES if run != baseline else ():
            record = run / FOLDER / f"{analysis}.json"
            if record.is_file():
                continue
            folders = {"run": run} | ({} if analysis == "gates" else {"against": baseline})  # which has no gates
            where = [f"{key}={folder.relative_to(ROOT)}" for key, folder in folders.items()]
            command = ["geexp.analyze", f"analysis={analysis}", *where, "which=last", f"root={root}"]
            print(*command, file=sys.stderr)
            subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            text = record.read_text(encoding="utf-8").replace(f"root={root}", "root=/data")
            record.write_text(text, encoding="utf-8")


# Generated from the records


def generate(folder: Path, out: Path) -> None:
    """The report on published runs, less its page."""
    command = ["geexp.report", f"runs={folder}", f"out={out}", "tables=none", "figures=none"]
    subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL)
    (out / PAGE).unlink()


def published_folders() -> set[Path]:
    """The folders of published runs."""
    return {path.parent for path in EVIDENCE.parent.glob("*/trained.md")}


def generate_in_place(folder: Path) -> None:
    """Replace all files at the top of a published folder but ``SHA256SUMS`` by those generated from its runs."""
    with TemporaryDirectory() as out:
        generate(folder, Path(out))
        for old in folder.iterdir():
            if old.is_file() and old.name != SUMS:
                old.unlink()
        for new in Path(out).iterdir():
            shutil.copyfile(new, folder / new.name)


def quoted_in(text: str, folder: Path, *, brief: bool) -> str:
    """The text with the results of a published folder between its markers: nothing as long as there are none.

    Raises:
        ValueError: if there are results and no markers.
    """
    lines = quotation(folder, brief=brief) if folder.is_dir() else []
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        if lines:
            raise ValueError(f"the text lacks the lines {BEGIN} and {END}")
        return text
    return "\n".join([before + BEGIN, *lines, END + after])


def quotation(folder: Path, *, brief: bool) -> list[str]:
    """Markdown: table, verdicts and hardware of each setting; ``brief``: of the main one, with its picture."""
    runs, _ = read_runs(folder)
    comparisons = sorted(compare(runs), key=main_first)
    if not brief:
        parts = [[f"### {one.setting}", "", *section(one, runs, one.table)] for one in comparisons]
        return [*HEADING, *(line for part in parts for line in part), *commands(folder)]
    if not comparisons:
        return []
    main = comparisons[0]
    alt = f"Error by epoch, mean and spread over seeds: {main.setting}"
    picture = f"outputs/published/{folder.name}/{main.picture}.png"
    return [f"![{alt}]({picture})", "", *section(main, runs, main.brief), *([TESTS, ""] if main.repeated else [])]


def main_first(comparison: Comparison) -> tuple[int, bool]:
    runs = sum(len(network.runs) for network in comparison.networks)
    return -runs, NETWORKS_OF not in comparison.setting


def section(comparison: Comparison, runs: Sequence[FinishedRun], table: Table[Any]) -> list[str]:
    own = [run for network in comparison.networks for run in network.runs]
    hours = sum(run.result.seconds for run in own) / 3600
    times = [datetime.fromtimestamp(run.result.metrics["last"]["time"], UTC) for run in own]
    days = dict.fromkeys(f"{time:%Y-%m-%d}" for time in (min(times), max(times)))
    machines = ", ".join(sorted({hardware(run) for run in own}))
    about = f"{len(own)} runs, {hours:.1f} hours of training in all, {machines}, {' to '.join(days)}."
    return [to_markdown(table), *sentences(comparison, runs), about, ""]


def sentences(comparison: Comparison, runs: Sequence[FinishedRun]) -> list[str]:
    """A line for each verdict, with the paper's claims that have it."""
    words = {SUPPORTED: "hold here", CONTRADICTED: "do not hold here", INCONCLUSIVE: "cannot be told from these runs"}
    ours = [one for one in judge_all(Runs(runs), runs) if one.setting == comparison.setting]
    judged = [one for one in ours if not one.reason.startswith(NOT_RUN)]
    found = {word: [one.claim.text for one in judged if one.verdict == verdict] for verdict, word in words.items()}
    return [f"Of the paper's claims, these {word}: {'; '.join(texts)}.\n" for word, texts in found.items() if texts]


def commands(folder: Path) -> list[str]:
    """How to evaluate the published networks."""
    if not (folder / SUMS).is_file():
        return []
    lines = (folder / SUMS).read_text().splitlines()
    first = Path(lines[0].split()[1]).parents[1]
    return [
        f"{len(lines)} networks are published with their weights after the last epoch; `sha256sum --check {SUMS}`",
        "verifies them, and this command evaluates one, with the CIFAR archives in `/data`:",
        "",
        "```",
        f"python -m geexp.evaluate run=outputs/published/{folder.name}/{first} which=last root=/data",
        "```",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="?", type=Path, help="the folder of the runs; without it nothing is copied")
    parser.add_argument("--root", type=Path, help="the folder of the CIFAR archives, for the analyses")
    options: Any = parser.parse_args()
    if options.runs is not None:
        if not list(find_runs(options.runs)):
            parser.error(f"{options.runs}: no run is in this folder; give the outputs= of the trainings")
        publish_runs(options.runs, EVIDENCE)
        write_sums(EVIDENCE)
    if options.root is not None:
        if not options.root.is_dir():
            parser.error(f"--root {options.root}: no such folder; the CIFAR archives are expected in it")
        analyse(EVIDENCE, options.root)
    for folder in published_folders() | ({EVIDENCE} if EVIDENCE.is_dir() else set()):
        generate_in_place(folder)
    for readme, brief in ((ROOT / "README.md", True), (EVIDENCE.parent / "README.md", False)):
        text = readme.read_text(encoding="utf-8")
        readme.write_text(quoted_in(text, EVIDENCE, brief=brief), encoding="utf-8")


if __name__ == "__main__":
    main()
