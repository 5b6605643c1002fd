"""What W&B shows of a run beyond its history: which figures sum it up, and charts at its end."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from geexp.runs.metrics import AP, score_of
from geexp.training.task import Ending

if TYPE_CHECKING:
    from torch import Tensor

# Keys beside the configuration's, to group runs by: the network, and all but the seed. Without dots, which W&B's own
# interface takes for levels.
NETWORK, LABEL = "network", "label"
# Metrics of every epoch, as in history.jsonl.
EPOCH, ERROR, TRAIN_ERROR = "epoch", "val/top1_error", "train/top1_error"
# Figures of the summary that dashboards show; the rest of result.json stands below "result".
BEST, LAST, LAST5, PARAMS, MACS = "best/top1_error", "last/top1_error", "last/top5_error", "params", "macs"
BEST_AP, LAST_AP, LAST_AP50, LOSS = "best/AP", "last/AP", "last/AP50", "train/loss"
# The charts of the end.
CURVES, HISTORY, CONFUSION, CONFUSED = "curves/top1_error", "curves/history", "confusion/matrix", "confusion/pairs"
# A matrix of more classes is no picture, and W&B's tables end at 10,000 rows.
MATRIX_CLASSES, CONFUSED_PAIRS = 100, 200


@dataclass(frozen=True)
class Confusion:
    """Images by class (rows) and by the class they were taken for."""

    counts: "Tensor"
    classes: list[str]

    def charts(self) -> dict[str, Any]:
        """The pairs that are confused most often as a table and, of not too many classes, the whole matrix."""
        import wandb

        pairs = wandb.Table(["class", "taken for", "images", "% of the class"], self.pairs())
        if len(self.classes) > MATRIX_CLASSES:
            return {CONFUSED: pairs}
        columns = ["Actual", "Predicted", "nPredictions"]
        matrix = wandb.plot_table(
            "wandb/confusion_matrix/v1",
            wandb.Table([*columns], self.matrix()),
            fields={column: column for column in columns},
            string_fields={"title": "confusion, last validation"},
        )
        return {CONFUSED: pairs, CONFUSION: matrix}

    def matrix(self) -> list[Iterable[Any]]:
        counts = self.counts.tolist()
        return [
            [actual, predicted, counts[i][j]]
            for i, actual in enumerate(self.classes)
            for j, predicted in enumerate(self.classes)
        ]

    def pairs(self) -> list[Iterable[Any]]:
        """The pairs that are taken for each other most often: class, taken for, images, and their percentage."""
        wrong = self.counts.clone().fill_diagonal_(0)
        most = wrong.flatten().sort(descending=True, stable=True)
        of_class = self.counts.sum(dim=1).tolist()
        rows: list[Iterable[Any]] = []
        for images, index in zip(most.values[:CONFUSED_PAIRS].tolist(), most.indices.tolist(), strict=False):
            actual, predicted = divmod(index, len(self.classes))
            if images:
                rows.append([self.classes[actual], self.classes[predicted], images, 100 * images / of_class[actual]])
        return rows


def define_metrics(run: Any) -> None:
    """The epoch is the axis of every curve, and the summary has the lowest error beside the last one."""
    run.define_metric(EPOCH)
    for name in ("train/*", "val/*", "lr", "seconds"):
        run.define_metric(name, step_metric=EPOCH)
    for name in (ERROR, "val/top5_error"):
        run.define_metric(name, step_metric=EPOCH, summary="min,last")
    run.define_metric(AP.key, step_metric=EPOCH, summary="max,last")


def charts(history: list[dict[str, Any]], ending: Ending | None) -> dict[str, Any]:
    """The curves, from the first epoch on also where a run was resumed, and what the last validation has to show."""
    import wandb

    columns, score = list(history[-1]), score_of(history[-1])
    of_training = score.key.replace("val/", "train/")
    drawn = {"training images, augmented": of_training, "validation images": score.key}
    drawn = {title: key for title, key in drawn.items() if key in columns}
    rows: list[Iterable[Any]] = [[row.get(column) for column in columns] for row in history]
    shown: dict[str, Any] = {
        CURVES: wandb.plot.line_series(
            [row[EPOCH] for row in history],
            [[row.get(key) for row in history] for key in drawn.values()],
            keys=list(drawn),
            title=f"{score.name}, %",
            xname=EPOCH,
        ),
        HISTORY: wandb.Table([*columns], rows),
    }
    return shown if ending is None else shown | ending.charts()


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """``result.json`` without the configuration, which the run has already, and its main figures on top."""
    metrics, complexity = result["metrics"], result["complexity"]
    figures = {
        f"{which}/{name}": metrics[which][f"val/{name}"]
        for which in ("best", "last")
        for name in (("AP", "AP50") if score_of(metrics["last"]) is AP else ("top1_error", "top5_error", "loss"))
    }
    kept = {key: value for key, value in result.items() if key not in ("config", "identity")}
    return figures | {
        "best/epoch": metrics["best"]["epoch"],
        PARAMS: complexity["params"],
        MACS: complexity["macs"],
        "seconds": result["seconds"],
        "result": kept,
    }
