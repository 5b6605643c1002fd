"""What the analyses cost against one evaluation pass over the same images: processor time, and memory on top.

    python scripts/measure_analyses.py <a run's folder> [--rounds 4]

Class selectivity is measured over the training images, pruning of the default blocks over the validation images.
"""

import argparse
import threading
import time
from collections.abc import Callable

import psutil
import torch

from geexp.analysis.pruning import importance_pruning
from geexp.analysis.selectivity import class_selectivity
from geexp.analysis.subject import Subject, subject_of
from geexp.backbones import blocks
from geexp.config.schema import AnalyzeConfig
from geexp.report.analyses.pruning import default_blocks


@torch.no_grad()
def evaluation_pass(subject: Subject) -> None:
    for images, labels in subject.batches("plain pass"):
        (subject.model(images).argmax(dim=1) == labels).sum()


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def peak_memory(work: Callable[[], object]) -> float:
    """MB that this process holds at most while ``work`` runs, above what it held before."""
    process, most, over = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not over.wait(0.005):
            most.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    over.set()
    watcher.join()
    return (max(most) - before) / 1e6


def compare(name: str, work: Callable[[], object], plain: Callable[[], object], rounds: int) -> None:
    plain()
    extra = peak_memory(work)
    pairs = [(cpu_seconds(plain), cpu_seconds(work)) for _ in range(rounds)]
    passes, works = zip(*pairs, strict=True)
    print(f"{name}: {min(works):.2f} s, {min(works) / min(passes):.2f} evaluation passes, {extra:.0f} MB on top")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)  # processor time of threads that wait for each other says little
    training, validation = (
        subject_of(options.run, AnalyzeConfig(analysis="selectivity", run=options.run, split=split))
        for split in ("train", "val")
    )
    compare(
        "selectivity",
        lambda: class_selectivity(training.model, training.batches("selectivity"), num_classes=training.num_classes),
        lambda: evaluation_pass(training),
        options.rounds,
    )
    chosen = default_blocks(list(blocks(validation.model)))
    compare(
        f"pruning of {', '.join(chosen)}",
        lambda: importance_pruning(validation.model, validation.batches("pruning"), blocks=chosen),
        lambda: evaluation_pass(validation),
        options.rounds,
    )


if __name__ == "__main__":
    main()
