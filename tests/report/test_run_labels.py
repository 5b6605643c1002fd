"""What a run is called: by the paper's rows that it fills, or by what it trains."""

from dataclasses import replace

import pytest

from geexp.config.composing import composed_training
from geexp.report.run_labels import network_label, run_name, run_tags


@pytest.mark.parametrize(
    ("typed", "name", "tags"),
    [
        ("experiment=table2_theta", "Table 1: GE-θ (all), seed 0", "table1 table2 figure2 theta imagenet"),
        (
            "experiment=table2_theta logger.group=table2",
            "Table 2: GE-θ, seed 0",
            "table1 table2 figure2 theta imagenet",
        ),
        # Typed by hand, cut among devices in another way, and again with another seed, it is the same row.
        (
            "model=resnet50 ge=theta data=imagenet schedule=plateau optim=paper trainer.devices=2 seed=3",
            "Table 1: GE-θ (all), seed 3",
            "table1 table2 figure2 theta imagenet",
        ),
        (
            "experiment=table2_theta optim.lr=0.2",
            "ResNet-50 GE-θ, imagenet, plateau, optim.lr=0.2, seed 0",
            "theta imagenet",
        ),
        (
            "experiment=table2_theta scale=imagenet100",
            "ResNet-50 GE-θ, imagenet-imagenet100, plateau, seed 0",
            "theta imagenet-imagenet100",
        ),
        ("experiment=table6_e4_max", "Table 6: (E4, max), seed 0", "table6 theta_minus imagenet"),
        ("experiment=table5_wrn16_8_cifar100_se", "Table 5: SE, WRN-16-8, cifar100, seed 0", "table5 se cifar100"),
        ("experiment=figure4_theta", "Figure 4: GE-θ, seed 0", "figure4 theta imagenet"),
        (
            "experiment=coco_theta_e8 data.root=/data/coco trainer.devices=8",
            "COCO: GE-θ (E8), seed 0",
            "coco theta coco2014",
        ),
        (
            "experiment=coco_baseline backbone_checkpoint=resnet50.pth",
            "ResNet-50 baseline, coco2014, coco_faster_rcnn, seed 0",
            "none coco2014",
        ),
        (
            "ge=theta_minus ge.extent=4 ge.pool=max debug=one_batch",
            "ResNet-8 GE-θ⁻ (E4, max), fashion_mnist_mini, demo, debug=one_batch, seed 0",
            "theta_minus fashion_mnist_mini",
        ),
    ],
)
def test_names_and_tags(typed, name, tags):
    config = composed_training(*typed.split())
    assert run_name(config, typed.split()) == name
    assert run_tags(config) == tags.split()


def test_networks():
    config = composed_training("experiment=table4_theta_e8")
    assert network_label(config) == "ShuffleNet GE-θ (E8)"
    assert run_tags(replace(config, seed=7))[0] == "table4"
