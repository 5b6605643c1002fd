"""Every mistake gets one message that names key, value and way out; exit code 2; no traceback; nothing made."""

import math
import re
import shlex

import pytest

from geexp.config.compose import composed_training
from geexp.config.errors import ConfigError

# Wrong command lines, and what the message must contain: errors that composing the configuration finds …
WRONG_VALUES = [
    ("ge.extent=3", ["ge.extent=3", "2, 4, 8, global"]),
    ("+modle=resnet50", ["modle", "Did you mean model"]),
    ("model.name=resnet51", ["model.name=resnet51", "resnet50"]),
    ("ge.stages=[9]", ["ge.stages=[9]", "no stage 9", "2, 3, 4"]),
    ("ge.stages=4", ["ge.stages", "a list such as [4,5]"]),
    ("placement=stage5", ["resnet8 has no stage 5"]),
    ("ge.pool=max", ["ge.pool=max", "only theta_minus and se use pooling"]),
    ("ge.border=padded", ["ge.border=padded", "only theta_minus and se use pooling"]),
    ("optim.label_smoothing=1", ["optim.label_smoothing=1"]),
    ("data.augmentation.least_area=0", ["data.augmentation.least_area=0"]),
    ("model.shortcut=C", ["model.shortcut=C", "A, B"]),
    ("ge.implementation=fusd", ["ge.implementation=fusd", "Did you mean fused", "auto, reference, fused"]),
    ("ge.reduction=many", ["ge.reduction", "a whole number"]),
    ("trainer.max_epochs=50", ["trainer.max_epochs=50", "5 epochs", "schedule.epochs"]),
    ("schedule=plateau trainer.max_epochs=301", ["trainer.max_epochs=301", "schedule=plateau ends after 300"]),
    ("trainer.accumulate=64", ["optim.batch_size=64", "one image per device", "trainer.accumulate"]),
    ("trainer.limit_val_batches=0", ["trainer.limit_val_batches=0"]),
    ("trainer.compile_mode=reduce-overhead", ["trainer.compile_mode=reduce-overhead", "trainer.compile=true"]),
    (
        "trainer.compile=true trainer.compile_mode=reduce-overhead trainer.accumulate=2",
        ["trainer.accumulate=2", "Leave one"],
    ),
    ("schedule=fixed100 schedule.milestones=[60,30]", ["schedule.milestones", "increasing order"]),
    ("data.mean=[0.1,0.2]", ["data.mean", "data.channels=1"]),
    ("data=imagenet data.channels=1 data.mean=[0.5] data.std=[0.5]", ["data.channels=1", "data.channels=3"]),
    ("model.stride_in=3x3", ["model.stride_in=3x3", "resnet8"]),
    ("resume=true force=true", ["choose one"]),
    ("ge.stages=[4,4]", ["ge.stages=[4, 4]", "twice"]),
    ("schedule=plateau schedule.monitor=loss", ["schedule.monitor=loss", "val/loss"]),
    ("outputs=", ["outputs is empty"]),
    ("data.std=[0.0]", ["data.std=[0.0]", "above 0"]),
    ("model=resnet50 model.name=resnet101", ["model.name=resnet101", "model=resnet101"]),
    ("callbacks.progress=1", ["callbacks.progress=1", "_target_"]),
    ("ge.extent=${nope}", ["nope"]),
    ("feed=folder", ["feed=folder", "data=fashion_mnist_mini is not a folder of image files", "feed=resident"]),
    ("feed=resident data=imagenet", ["feed=resident", "differ in size", "feed=folder"]),
    ("feed.workers=2", ["feed.workers=2", "feed=resident has no workers"]),
    ("feed=reference feed.engine=threads", ["feed.engine=threads", "use workers"]),
    ("data/augmentation=senet", ["data.augmentation.crop=resized", "feed=resident"]),
    ("data=imagenet recipe=raw", ["recipe=raw", "feed=pack"]),
    ("data=imagenet feed=pack recipe=raw data.recipe.max_side=300", ["max_side", "short_side"]),
    ("data=imagenet feed=pack data.recipe.quality=90", ["data.recipe.quality=90", "recipe=jpeg"]),
    ("data=imagenet feed=pack recipe=jpeg data.recipe.quality=0", ["data.recipe.quality=0", "1 to 100"]),
    ("data=imagenet data.evaluation_crop=null", ["data.evaluation_crop=null", "centre"]),
    ("launcher.devices=all", ["launcher.devices=all", "auto"]),
    ("launcher.devices=[0,0]", ["launcher.devices=[0, 0]", "twice"]),
    ("schedule=fixed100 schedule.kind=stairs", ["schedule.kind=stairs", "steps, cosine, plateau"]),
    ("schedule=fixed100 schedule.kind=null", ["schedule.kind=None", "schedule._target_=None"]),
    (
        "schedule=fixed100 schedule.epochs=null",
        ["schedule.epochs=None", "schedule.iterations=None", "one of the two"],
    ),
    ("schedule=preact_cifar schedule.milestones=[0]", ["schedule.milestones=[0]", "iterations in increasing order"]),
    ("schedule=fixed100 schedule.warmup=100", ["schedule.warmup=100.0", "less than schedule.epochs=100"]),
    ("schedule.milestones=[3]", ["schedule.milestones=[3]", "only schedule.kind=steps"]),
    ("schedule=plateau schedule.epochs=null schedule.iterations=9", ["schedule.iterations", "schedule.epochs"]),
    ("schedule=plateau schedule.factor=1.0", ["schedule.factor=1.0", "below 1"]),
    ("optim.nesterov=true optim.momentum=0", ["optim.nesterov=true needs optim.momentum"]),
    ("logger=wandb logger.project=runs/train-cls", ["logger.project=runs/train-cls", "128", "/"]),
    (f"logger=wandb logger.project={'x' * 129}", ["logger.project=xxx", "128"]),
    ("logger=wandb logger.entity=me:you", ["logger.entity=me:you", ":"]),
    (f"logger=wandb logger.group={'x' * 129}", ["logger.group=xxx", "128"]),
    ("logger=wandb logger.mode=of", ["logger.mode=of", "offline"]),
]
# … and those of Hydra, of a sweep, and of what a training finds as it starts.
WRONG_COMMANDS = [
    ("ge=thetaa", ["ge=thetaa", "theta or theta_plus"]),
    ("extent=16", ["extent=16", "ge.extent=16"]),
    ("ge.extnt=8", ["ge.extnt", "Did you mean extent", "ge.reduction"]),
    ("~ge.extnt", ["ge.extnt"]),
    ("resume=true", ["resume=true", "no checkpoint"]),
    ("data=imagenet", ["train and val not found", "data.root", "data/imagenet", "GEEXP_DATA"]),
    ("data=cifar10", ["cifar-10-batches-py not found", "data.download=true"]),
    ("ge=se ge.reduction=1000", ["reduction=1000", "number of channels"]),
    ("data.num_classes=5", ["data.num_classes=5", "10 classes"]),
    ("data.image_size=32", ["data.image_size=32", "28x28"]),
    ("logger=null", ["name of an option"]),
    ("logger=[csv,tensorbord]", ["logger=tensorbord", "tensorboard"]),
    ("'+callbacks.x={_target_: nowhere.Nothing}'", ["callbacks.x", "nowhere"]),
    ("'+logger.x={_target_: pytorch_lightning.Callback}'", ["logger.x", "not a pytorch_lightning Logger"]),
    ("'+logger.x={_target_: pytorch_lightning.loggers.CSVLogger, nam: x}'", ["logger.x", "nam"]),
    ("trainer=cpu trainer.precision=16-mixed", ["trainer.precision=16-mixed", "bf16-mixed"]),
    ("--config-name=foo", ["no configuration 'foo'"]),
    ("ge.extent", ["ge.extent", "ge.extent=<value>"]),
    ("data=imagenet recipe=jpeg feed=pack", ["feed=pack", "train.npz", "pack-jpeg-max500-q90", "python -m geexp.pack"]),
    ("backbone_checkpoint=run/epoch=89.ckpt", ["backbone_checkpoint", """'backbone_checkpoint="run/epoch=89.ckpt"'"""]),
    ("-m ge=none,theta 'data.root=/a(1)'", ["""'data.root="/a(1)"'"""]),
    ("'seed=3\r'", ["seed=3", "carriage return"]),
    ("'logger.group=a,b'", ["logger.group=a,b", "add -m", """'logger.group="a,b"'"""]),
    ("dry_run=true logger.group=a,b", ["logger.group=a,b", "add -m", """'logger.group="a,b"'"""]),
    ("data.root=${oc.env:NOPE}/x", ["data.root", "NOPE"]),
    ("-m ge.extent=2,3", ["job 1 (ge.extent=3)", "ge.extent=3: not allowed"]),
    ("+sweep=table7", ["sweep=table7", "table6"]),
    ("-m hydra/sweeper=optun", ["hydra/sweeper=optun", "geexp[optuna]"]),
    ("outputs=/proc/none", ["/proc/none"]),
]


@pytest.mark.parametrize(("overrides", "parts"), WRONG_VALUES, ids=[overrides for overrides, _ in WRONG_VALUES])
def test_a_wrong_value(overrides, parts):
    with pytest.raises(ConfigError) as refused:
        composed_training(*shlex.split(overrides))
    for part in parts:
        assert part in str(refused.value)


@pytest.mark.parametrize(("arguments", "parts"), WRONG_COMMANDS, ids=[arguments for arguments, _ in WRONG_COMMANDS])
def test_a_wrong_command(forked, tmp_path, arguments, parts):
    (done,) = forked.run(tmp_path, "train", *shlex.split(arguments))
    assert done.returncode == (1 if arguments.startswith("outputs") else 2), done.stderr
    assert done.stdout == ""
    message = done.stderr.splitlines()[-1]
    assert message.startswith("geexp.train: ")
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in message


NUMBERS = {
    "schedule.stretch": (0.0, -1.0, math.nan, math.inf),
    "schedule.warmup": (-1.0, math.nan),
    "schedule.warmup_factor": (0.0, math.inf),
    "schedule.factor": (0.0, math.nan, math.inf),
    "schedule.threshold": (-1e-4, 1.0, math.nan),
    "schedule.patience": (-1,),
    "optim.lr": (0.0, -0.1, math.nan, math.inf),
    "optim.momentum": (1.0, -0.1, math.nan),
    "optim.weight_decay": (-1e-4, math.inf),
    "optim.lr_for_batch": (0,),
    "model.bn_momentum": (0.0, 1.5),
    "seed": (-1, 2**32),
}


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_out_of_its_range(key):
    for wrong in NUMBERS[key]:
        with pytest.raises(ConfigError, match=rf"{re.escape(f'{key}={wrong}')}: must be (at least|above|from) "):
            composed_training(f"{key}={wrong}")


@pytest.mark.parametrize(
    ("yaml", "part"),
    [
        ("variant: theta\nextnt: 4\n", "Did you mean extent"),
        ("variant: thetta\n", "Did you mean theta"),
        ("variant: theta\nreduction: [4]\n", "ge.reduction"),
        ("variant: theta\n  extent: 4\n", "mapping values are not allowed"),
    ],
)
def test_typos_in_a_yaml_file_are_refused(forked, tmp_path, yaml, part):
    (tmp_path / "mine" / "ge").mkdir(parents=True)
    (tmp_path / "mine" / "ge" / "own.yaml").write_text(yaml)
    (done,) = forked.run(tmp_path, "train", "--config-dir", "mine", "ge=own")
    assert done.returncode == 2
    assert part in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("entry", "arguments", "part"),
    [
        ("train", ["dry_run=true", "seed=1,2"], "-m"),
        ("status", ["seed=-1"], "geexp.status: job 0 (seed=-1): seed=-1: "),
        ("plan", ["hardware=gpus"], "geexp.plan: hardware=gpus: "),
        ("plan", ["hardware=a100x8", "hardware.tflops=0"], "geexp.plan: hardware.tflops=0.0: "),
        ("plan", ["hardware.gpus=3"], "geexp.plan: hardware.gpus: "),
        ("complexity", ["table=7"], "table=7"),
        ("complexity", ["table=1", "image_size=64"], "image_size=64"),
        ("complexity", ["format=xml"], "text, json"),
        ("complexity", ["data=cifar10"], "data"),
        ("evaluate", ["run="], "run=<a run's folder>"),
        ("evaluate", ["run=a", "checkpoint=b"], "set either run="),
        ("complexity", ["-m", "ge=se,theta"], "does not support sweeps"),
        ("complexity", ["ge=se", "ge.reduction=1000"], "reduction=1000"),
        ("report.__main__", ["runs=nowhere"], "no such folder"),
    ],
)
def test_other_commands_and_entries_refuse_in_one_line(forked, tmp_path, entry, arguments, part):
    (done,) = forked.run(tmp_path, entry, *arguments)
    assert done.returncode == 2
    assert part in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("started", ["torchrun", "srun"])
def test_a_sweep_in_several_ranks_is_refused_once(forked, tmp_path, started, rank):
    if started == "torchrun":
        ranks = {"TORCHELASTIC_RUN_ID": "none", "RANK": str(rank), "WORLD_SIZE": "2"}
    else:
        ranks = {"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": "2"}
    (done,) = forked.run(tmp_path, "train", "-m", "seed=0,1", **ranks)
    assert (done.returncode, done.stdout) == (2, "")
    if rank == 0:
        (line,) = done.stderr.splitlines()
        assert line.startswith("geexp.train: start a sweep with plain python; ")
        assert f"under {started} every process would run all of it" in line
        assert line.endswith("python -m geexp.train -m seed=0,1")
    else:
        assert done.stderr == ""
    assert not (tmp_path / "outputs").exists()
