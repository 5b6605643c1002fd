"""Processor time of the analyses of a trained network, relative to one evaluation pass over the same images.

    python scripts/benchmarks/analyses.py <a run's folder>

Class selectivity is measured over the training images, pruning of the default blocks over the validation images.
"""

import torch

import measuring
from geexp.analysis.loaded_run import LoadedRun, load_run
from geexp.analysis.pruning import default_blocks, importance_pruning
from geexp.analysis.selectivity import class_selectivity
from geexp.config.schema import AnalyzeConfig
from measuring import Row

_PASS = "evaluation pass"


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("run")
    options = parser.parse_args()
    clock = measuring.clock_for("cpu")
    train, val = (
        load_run(options.run, AnalyzeConfig(analysis="selectivity", run=options.run, split=split))
        for split in ("train", "val")
    )

    def selectivity() -> object:
        return class_selectivity(train.model, train.batches("selectivity"), num_classes=train.num_classes)

    def pruning() -> object:
        return importance_pruning(val.model, val.batches("pruning"), blocks=default_blocks(val.model))

    rows = []
    for analysis, run in ((selectivity, train), (pruning, val)):
        works = {_PASS: lambda run=run: evaluate(run), "analysis": analysis}
        for name, seconds in measuring.interleaved(works, clock, rounds=options.rounds).items():
            rows.append(Row(analysis.__name__, name, {"processor": seconds}))
    measuring.report("Analyses", rows, against={"/ pass": [_PASS]}, remarks=__doc__, options=options)


@torch.no_grad()
def evaluate(run: LoadedRun) -> None:
    for images, labels in run.batches(_PASS):
        (run.model(images).argmax(dim=1) == labels).sum()


if __name__ == "__main__":
    main()
