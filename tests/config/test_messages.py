"""Every mistake gets one message that names key, value and way out; exit code 2; no traceback; nothing made."""

import math
import re
import shlex

import pytest
from geexp.config.checks import check_optim, check_schedule
from geexp.config.constraints import check_values

from geexp.config.errors import ConfigError
from geexp.config.schema import OptimConfig, ScheduleConfig

# arguments, what the message must say
MISTAKES = [
    ("ge=thetaa", ["ge=thetaa", "theta or theta_plus"]),
    ("ge.extent=3", ["ge.extent=3", "2, 4, 8, global"]),
    ("ge.extent=gobal", ["ge.extent=gobal", "Did you mean global"]),
    ("extent=16", ["extent=16", "ge.extent=16"]),
    ("ge.extnt=8", ["ge.extnt", "Did you mean extent", "ge.reduction"]),
    ("+ge.extnt=8", ["ge.extnt", "Did you mean extent"]),
    ("modle=resnet50", ["modle", "Did you mean model"]),
    ("+modle=resnet50", ["modle", "Did you mean model"]),
    ("~ge.extnt", ["ge.extnt"]),
    ("model=resnet51", ["model=resnet51", "resnet50"]),
    ("model.name=resnet51", ["model.name=resnet51", "resnet50"]),
    ("ge.stages=[9]", ["ge.stages=[9]", "no stage 9", "2, 3, 4"]),
    ("ge.stages=4", ["ge.stages", "a list such as [4,5]"]),
    ("ge.stages=[]", ["ge=none"]),
    ("placement=stage5", ["resnet8 has no stage 5"]),
    ("ge.pool=max", ["ge.pool=max", "only theta_minus and se pool"]),
    ("ge.implementation=fusd", ["ge.implementation=fusd", "Did you mean fused", "auto, reference, fused"]),
    ("ge.reduction=many", ["ge.reduction", "a whole number"]),
    ("optim.lr=fast", ["optim.lr", "a number"]),
    ("optim.lr=-1", ["optim.lr=-1", "above 0"]),
    ("trainer.max_epochs=1.5", ["trainer.max_epochs", "a whole number"]),
    ("trainer.max_epochs=0", ["trainer.max_epochs=0", "at least 1"]),
    ("trainer.max_epochs=50", ["trainer.max_epochs=50", "5 epochs", "schedule.epochs"]),
    ("schedule=plateau trainer.max_epochs=301", ["trainer.max_epochs=301", "schedule=plateau is over after 300"]),
    ("trainer.devices=3", ["optim.batch_size=64", "3 devices", "nearest that does is 63"]),
    ("trainer.accumulate=64", ["optim.batch_size=64", "one image per device", "trainer.accumulate"]),
    ("trainer.precision=8", ["trainer.precision=8", "bf16-mixed"]),
    ("trainer.limit_val_batches=0", ["trainer.limit_val_batches=0"]),
    ("trainer.compile_mode=fast", ["trainer.compile_mode=fast", "reduce-overhead"]),
    ("trainer.compile_mode=reduce-overhead", ["trainer.compile_mode=reduce-overhead", "trainer.compile=true"]),
    (
        "trainer.compile=true trainer.compile_mode=reduce-overhead trainer.accumulate=2",
        ["trainer.accumulate=2", "Leave one"],
    ),
    ("schedule=fixed100 schedule.milestones=[60,30]", ["schedule.milestones", "rising order"]),
    ("data.mean=[0.1,0.2]", ["data.mean", "data.channels=1"]),
    ("model.stride_in=3x3", ["model.stride_in=3x3", "resnet8"]),
    ("resume=maybe", ["resume=maybe", "auto, true, false"]),
    ("resume=true force=true", ["choose one"]),
    ("resume=true", ["resume=true", "no checkpoint"]),
    ("data=imagenet", ["train and val not found", "data.root", "data/imagenet", "GEEXP_DATA"]),
    ("data=cifar10", ["cifar-10-batches-py not found", "data.download=true"]),
    ("data=fashion_mnist data.root=/nowhere", ["/nowhere", "data.download=true"]),
    ("ge.stages=[4,4]", ["ge.stages=[4, 4]", "twice"]),
    ("ge=se ge.reduction=1000", ["reduction=1000", "number of channels"]),
    ("optim.lr=inf", ["optim.lr=inf", "finite"]),
    ("optim.batch_size=1", ["optim.batch_size=1", "at least 2"]),
    ("schedule.warmup=nan", ["schedule.warmup=nan"]),
    ("schedule=platau", ["schedule=platau", "Did you mean plateau"]),
    ("schedule.warmup_epochs=1", ["schedule.warmup_epochs", "Did you mean warmup"]),
    ("schedule.iterations=100", ["schedule.epochs=5, schedule.iterations=100", "one of the two"]),
    ("schedule=plateau schedule.monitor=loss", ["schedule.monitor=loss", "val/loss"]),
    ("optim.decay_bn_and_bias=true", ["optim.decay_bn_and_bias", "decay_bn"]),
    ("optim.lr_for_batch=0", ["optim.lr_for_batch=0", "at least 1"]),
    ("seed=-1", ["seed=-1", "4294967295"]),
    ("outputs=", ["outputs is empty"]),
    ("data.std=[0.0]", ["data.std=[0.0]", "above 0"]),
    ("data.num_classes=5", ["data.num_classes=5", "10 classes"]),
    ("data.image_size=32", ["data.image_size=32", "28x28"]),
    ("callbacks.progress=1", ["callbacks.progress=1", "_target_"]),
    ("ge.extent=${nope}", ["nope"]),
    ("schedule=fixed100 schedule.factor=nan", ["schedule.factor=nan"]),
    ("schedule=fixed100 schedule.milestones=[-5,200]", ["schedule.milestones", "from 1 on"]),
    ("data.mean=[nan]", ["data.mean=[nan]", "finite"]),
    ("logger=null", ["name of an option"]),
    ("'+callbacks.x={_target_: nowhere.Nothing}'", ["callbacks.x", "nowhere"]),
    ("trainer=cpu trainer.precision=16-mixed", ["trainer.precision=16-mixed", "bf16-mixed"]),
    ("--config-name=foo", ["no configuration 'foo'"]),
    ("ge.extent", ["EQUAL"]),
    ("feed=fast", ["feed=fast", "resident"]),
    ("feed=folder", ["feed=folder", "data=fashion_mnist_mini is no folder of image files", "feed=resident"]),
    ("feed=resident data=imagenet", ["feed=resident", "differ in size", "feed=folder"]),
    ("feed.workers=2", ["feed.workers=2", "feed=resident has no workers"]),
    ("feed=reference feed.workers=-1", ["feed.workers=-1", "at least 0"]),
    ("feed=reference feed.engine=threads", ["feed.engine=threads", "use workers"]),
    ("feed.engine=fibres", ["feed.engine=fibres", "threads, workers"]),
    ("feed.decode=opencv", ["feed.decode=opencv", "torchvision", "pil"]),
    ("feed.on_error=ignore", ["feed.on_error=ignore", "stop, skip"]),
    ("data/augmentation=senet", ["data.augmentation.crop=resized", "feed=resident"]),
    ("data.augmentation.rotation=200", ["rotation=200", "180"]),
    ("data.augmentation.jitter=300", ["jitter=300", "255"]),
    ("data=imagenet recipe=raw", ["recipe=raw", "feed=pack"]),
    ("data=imagenet recipe=jpeg feed=pack", ["feed=pack", "train.npz", "pack-jpeg-max500-q90", "python -m geexp.pack"]),
    ("data=imagenet feed=pack recipe=raw data.recipe.max_side=300", ["max_side", "one of the two"]),
    ("data=imagenet feed=pack data.recipe.quality=90", ["data.recipe.quality=90", "recipe=jpeg"]),
    ("data=imagenet feed=pack recipe=jpeg data.recipe.quality=0", ["data.recipe.quality=0", "1 to 100"]),
    ("data=imagenet data.channels=1 data.mean=[0.5] data.std=[0.5]", ["data.channels=1", "data.channels=3"]),
    ("data=imagenet data.evaluation_crop=null", ["data.evaluation_crop=null", "centre"]),
    ("data=imagenet data/augmentation=pad_crop", ["data.augmentation.crop=pad", "feed=folder"]),
    ("trainer.checkpoint_every_n_steps=0", ["trainer.checkpoint_every_n_steps=0", "at least 1"]),
    ("-m ge.extent=2,3", ["job 1 (ge.extent=3)", "ge.extent=3: not allowed"]),
    ("+sweep=table7", ["sweep=table7", "table6"]),
    ("+sweep=figure6 ge.stages=[5]", ["job 0 (experiment=figure6_baseline +sweep=figure6", "no stage 5"]),
    ("launcher=process", ["launcher=process", "Did you mean processes"]),
    ("launcher.devices_per_job=0", ["launcher.devices_per_job=0", "at least 1"]),
    ("launcher.devices=all", ["launcher.devices=all", "auto"]),
    ("launcher.devices=[0,0]", ["launcher.devices=[0, 0]", "twice"]),
    ("launcher.hang_after=0", ["launcher.hang_after=0", "null"]),
    ("launcher.grace=-1", ["launcher.grace=-1", "at least 0"]),
]


@pytest.mark.parametrize(("arguments", "parts"), MISTAKES, ids=[arguments for arguments, _ in MISTAKES])
def test_train_refuses(forked, tmp_path, arguments, parts):
    (done,) = forked.run(tmp_path, "train", *shlex.split(arguments))
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("geexp.train: ")
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in message


STEPS = {"kind": "steps", "epochs": 100, "milestones": [30, 60]}
COSINE = {"kind": "cosine", "epochs": 5}
PLATEAU = {"kind": "plateau", "epochs": 300}

# settings of a schedule, what the message must say
SCHEDULE_MISTAKES = [
    (STEPS | {"kind": "stairs"}, ["schedule.kind=stairs", "steps, cosine, plateau"]),
    (STEPS | {"iterations": 64_000}, ["schedule.epochs=100, schedule.iterations=64000", "one of the two", "null"]),
    (STEPS | {"epochs": None}, ["schedule.epochs=None, schedule.iterations=None", "one of the two"]),
    (STEPS | {"epochs": 0}, ["schedule.epochs=0", "at least 1"]),
    (STEPS | {"epochs": None, "iterations": 0}, ["schedule.iterations=0", "at least 1"]),
    (STEPS | {"epochs": None, "iterations": 9, "milestones": [0]}, ["schedule.milestones=[0]", "iterations from 1 on"]),
    (STEPS | {"milestones": [30, 30]}, ["schedule.milestones=[30, 30]", "rising order"]),
    (STEPS | {"factor": 0.0}, ["schedule.factor=0.0", "above 0"]),
    (STEPS | {"factor": math.inf}, ["schedule.factor=inf", "finite"]),
    *[(STEPS | {"stretch": wrong}, [f"schedule.stretch={wrong}", "1000"]) for wrong in (0.0, -1.0, math.nan, math.inf)],
    (STEPS | {"warmup": 100.0}, ["schedule.warmup=100.0", "less than schedule.epochs=100"]),
    (STEPS | {"warmup": -1.0}, ["schedule.warmup=-1.0", "at least 0"]),
    (COSINE | {"warmup": 4.0, "stretch": 0.5}, ["schedule.stretch=0.5", "schedule.epochs=2", "a warm-up of 2 fills"]),
    *[
        (STEPS | {"warmup": 1.0, "warmup_factor": wrong}, [f"schedule.warmup_factor={wrong}", "above 0", "null"])
        for wrong in (0.0, -0.1, math.nan, math.inf)
    ],
    (COSINE | {"milestones": [3]}, ["schedule.milestones=[3]", "only schedule.kind=steps"]),
    (PLATEAU | {"milestones": [3]}, ["schedule.milestones=[3]", "only schedule.kind=steps"]),
    (PLATEAU | {"epochs": None, "iterations": 9}, ["schedule.iterations", "after an epoch", "schedule.epochs"]),
    (PLATEAU | {"factor": 1.0}, ["schedule.factor=1.0", "below 1"]),
    (PLATEAU | {"monitor": "val/los"}, ["schedule.monitor=val/los", "Did you mean val/loss"]),
    (PLATEAU | {"patience": -1}, ["schedule.patience=-1", "at least 0"]),
    (PLATEAU | {"reductions": -1}, ["schedule.reductions=-1", "at least 0"]),
    *[(PLATEAU | {"threshold": wrong}, [f"schedule.threshold={wrong}", "below 1"]) for wrong in (-1e-4, 1.0, math.nan)],
]


@pytest.mark.parametrize(("settings", "parts"), SCHEDULE_MISTAKES)
def test_a_schedule_is_refused(settings, parts):
    with pytest.raises(ConfigError) as refused:
        check_schedule(ScheduleConfig(name="own", **settings))
    for part in parts:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        *[(key, value) for key in ("lr", "bias_lr_factor") for value in (0.0, -0.1, math.nan, math.inf)],
        *[("momentum", value) for value in (1.0, -0.1, math.nan)],
        *[("weight_decay", value) for value in (-1e-4, math.nan, math.inf)],
        ("lr_for_batch", 0),
        ("lr_for_batch", -256),
    ],
)
def test_an_optimiser_is_refused(key, wrong):
    with pytest.raises(ConfigError, match=rf"optim\.{key}={re.escape(str(wrong))}: must be "):
        check_optim(OptimConfig(**{key: wrong}))
    with pytest.raises(ConfigError, match=r"optim\.nesterov=true needs optim\.momentum"):
        check_optim(OptimConfig(nesterov=True, momentum=0.0))


@pytest.mark.parametrize("arguments", [["ge.extent=3"], ["-m", "ge.extent=2,3"], ["outputs=/proc/none"]])
def test_a_refused_start_leaves_nothing(run, tmp_path, arguments):
    done = run("train", *arguments)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("yaml", "part"),
    [
        ("variant: theta\nextnt: 4\n", "Did you mean extent"),
        ("variant: thetta\n", "Did you mean theta"),
        ("variant: theta\nextent: [4]\n", "ge.extent"),
        ("variant: theta\n  extent: 4\n", "mapping values are not allowed"),
    ],
)
def test_typos_in_a_yaml_file_are_refused(run, tmp_path, yaml, part):
    (tmp_path / "mine" / "ge").mkdir(parents=True)
    (tmp_path / "mine" / "ge" / "own.yaml").write_text(yaml)
    done = run("train", "--config-dir", "mine", "ge=own")
    assert done.returncode == 2
    assert part in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("entry", "arguments", "part"),
    [
        ("complexity", ["table=7"], "table=7"),
        ("complexity", ["table=1", "image_size=64"], "image_size=64"),
        ("complexity", ["format=xml"], "text, json"),
        ("complexity", ["data=cifar10"], "data"),
        ("evaluate", [], "run=<a run's folder>"),
        ("evaluate", ["run=a", "checkpoint=b"], "give one of the two"),
        ("evaluate", ["run="], "give one of the two"),
        ("complexity", ["-m", "ge=se,theta"], "one thing at a time"),
        ("complexity", ["ge=se", "ge.reduction=1000"], "reduction=1000"),
        ("report", ["runs=nowhere"], "no such folder"),
    ],
)
def test_the_other_entries_refuse(run, entry, arguments, part):
    done = run(entry, *arguments)
    assert done.returncode == 2
    assert part in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("started", ["torchrun", "srun"])
def test_a_sweep_in_several_ranks_is_refused_once(run, tmp_path, started, rank):
    if started == "torchrun":
        ranks = {"TORCHELASTIC_RUN_ID": "none", "RANK": str(rank), "WORLD_SIZE": "2"}
    else:
        ranks = {"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": "2"}
    done = run("train", "-m", "seed=0,1", **ranks)
    assert (done.returncode, done.stdout) == (2, "")
    if rank == 0:
        (line,) = done.stderr.splitlines()
        assert line.startswith("geexp.train: a sweep is started once, with plain python; ")
        assert f"under {started} every process would run all of it" in line
        assert line.endswith(" Say: python -m geexp.train -m seed=0,1")
    else:
        assert done.stderr == ""
    assert not (tmp_path / "outputs").exists()
