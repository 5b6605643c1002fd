"""What the analyses of a trained network cost in processor time, against one evaluation pass over the same images.

    python scripts/benchmarks/analyses.py <a run's folder>

Class selectivity is measured over the training images, pruning of the default blocks over the validation images.
"""

import torch

import measuring
from geexp.analysis.pruning import importance_pruning
from geexp.analysis.selectivity import class_selectivity
from geexp.analysis.subject import Subject, subject_of
from geexp.backbones import blocks
from geexp.config.schema import AnalyzeConfig
from geexp.report.analyses.pruning import default_blocks
from measuring import Row

_PASS = "evaluation pass"


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("run")
    options = parser.parse_args()
    clock = measuring.clock_for("cpu")
    train, val = (
        subject_of(options.run, AnalyzeConfig(analysis="selectivity", run=options.run, split=split))
        for split in ("train", "val")
    )

    def selectivity() -> object:
        return class_selectivity(train.model, train.batches("selectivity"), num_classes=train.num_classes)

    def pruning() -> object:
        return importance_pruning(val.model, val.batches("pruning"), blocks=default_blocks(list(blocks(val.model))))

    rows = []
    for analysis, subject in ((selectivity, train), (pruning, val)):
        works = {_PASS: lambda subject=subject: evaluate(subject), "analysis": analysis}
        for name, seconds in measuring.interleaved(works, clock, rounds=options.rounds).items():
            rows.append(Row(analysis.__name__, name, {"processor": seconds}))
    measuring.report("Analyses", rows, against={"/ pass": [_PASS]}, remarks=__doc__, options=options)


@torch.no_grad()
def evaluate(subject: Subject) -> None:
    for images, labels in subject.batches(_PASS):
        (subject.model(images).argmax(dim=1) == labels).sum()


if __name__ == "__main__":
    main()
