"""Error counts and the watch for values that are not finite, against plain computations."""

import pytest
import torch

from geexp.training.metrics import ErrorCount, NonFiniteWatch, is_finite

CPU = torch.device("cpu")


def test_errors_are_counted_exactly_over_uneven_batches():
    torch.manual_seed(0)
    logits, labels = torch.randn(103, 20), torch.randint(0, 20, (103,))
    count = ErrorCount()
    for batch in torch.arange(103).split(10):
        loss = torch.nn.functional.cross_entropy(logits[batch], labels[batch])
        count.add(logits[batch], labels[batch], loss)
    order = logits.argsort(dim=1, descending=True)
    top1 = sum(int(order[i, 0]) != int(labels[i]) for i in range(103))
    top5 = sum(int(labels[i]) not in order[i, :5].tolist() for i in range(103))
    metrics = count.metrics(CPU)
    assert (metrics["top1_wrong"], metrics["top5_wrong"], metrics["images"]) == (top1, top5, 103)
    assert metrics["top1_error"] == 100 * top1 / 103
    assert metrics["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    count.reset()
    assert count.metrics(CPU) == {}


def test_the_loss_is_summed_in_its_own_precision():
    count = ErrorCount()
    for _ in range(1000):  # a sum in bfloat16 stands still after some hundreds
        count.add(
            torch.zeros(64, 10, dtype=torch.bfloat16), torch.zeros(64, dtype=torch.int64), torch.tensor(2.0).bfloat16()
        )
    assert count.metrics(CPU)["loss"] == 2.0
    assert count.metrics(CPU)["images"] == 64_000


def test_top5_of_three_classes_never_errs():
    count = ErrorCount()
    count.add(torch.eye(3), torch.tensor([0, 1, 0]), torch.tensor(1.0))
    assert (count.metrics(CPU)["top1_wrong"], count.metrics(CPU)["top5_wrong"]) == (1, 0)


def test_confusion_counts_what_the_errors_count():
    errors = ErrorCount(confusion=True)
    labels = torch.randint(7, (50,))
    for some in labels.split(20):
        errors.add(torch.randn(len(some), 7), some, torch.tensor(1.0))
    counts = errors.confusion(CPU, 7)
    assert counts is not None
    assert counts.sum(dim=1).tolist() == labels.bincount(minlength=7).tolist()
    assert counts.sum() - counts.diagonal().sum() == errors.metrics(CPU)["top1_wrong"]
    errors.reset()
    assert errors.confusion(CPU, 7) is None


def test_the_first_step_with_a_loss_that_is_not_finite():
    watch = NonFiniteWatch()
    assert watch.first() == 0
    for step, loss in enumerate((1.0, 2.0, torch.inf, torch.nan), start=1):
        watch.add(torch.tensor(loss), step)
    assert watch.first() == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_statistics_are_finite(dtype):
    network = torch.nn.BatchNorm2d(3).to(dtype)
    assert is_finite(network)
    network.running_var[1] = torch.inf
    assert not is_finite(network)
