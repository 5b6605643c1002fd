"""The loss of a classifier."""

import torch
from torch import nn

from geexp.training.classification import Classifier
from geexp.training.metrics import ErrorCount
from tests.support.configuration import train_config


def test_validation_takes_the_convolutions_that_an_evaluation_takes(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    classifier = Classifier(nn.Identity(), train_config())
    classifier.on_validation_start()
    assert not torch.backends.cudnn.benchmark
    classifier.on_validation_end()
    assert torch.backends.cudnn.benchmark


def test_label_smoothing_is_in_the_training_loss_alone():
    """(1 - s) of the probability on the label and s spread over all classes: Szegedy et al. 2016."""
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.0, 1.0, 3.0]])
    labels = torch.tensor([0, 1])
    log_probabilities = logits.log_softmax(1)
    plain = -log_probabilities[range(2), labels].mean()
    smooth = 0.9 * plain - 0.1 * log_probabilities.mean(1).mean()
    classifier = Classifier(nn.Identity(), train_config("optim.label_smoothing=0.1", "trainer.channels_last=false"))
    images = logits[:, :, None, None]
    classifier.model = nn.Flatten()
    torch.testing.assert_close(classifier.training_step((images, labels), 0), smooth)
    classifier.validation_errors = ErrorCount()
    classifier.validation_step((images, labels), 0)
    measured = classifier.validation_errors.metrics(torch.device("cpu"))["loss"]
    torch.testing.assert_close(torch.tensor(measured), plain)
