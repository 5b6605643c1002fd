"""Every mistake gets one message that names key, value and way out; exit code 2; no traceback; nothing made."""

import pytest

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
    ("ge.reduction=many", ["ge.reduction", "a whole number"]),
    ("optim.lr=fast", ["optim.lr", "a number"]),
    ("optim.lr=-1", ["optim.lr=-1", "above 0"]),
    ("trainer.max_epochs=1.5", ["trainer.max_epochs", "a whole number"]),
    ("trainer.max_epochs=0", ["trainer.max_epochs=0", "at least 1"]),
    ("trainer.max_epochs=50", ["trainer.max_epochs=50", "schedule.epochs"]),
    ("trainer.devices=2", ["trainer.devices=2", "one device"]),
    ("trainer.precision=8", ["trainer.precision=8", "bf16-mixed"]),
    ("trainer.limit_val_batches=0", ["trainer.limit_val_batches=0"]),
    ("schedule=fixed100 schedule.milestones=[60,30]", ["schedule.milestones", "rising order"]),
    ("data.mean=[0.1,0.2]", ["data.mean", "data.channels=1"]),
    ("model.stride_in=3x3", ["model.stride_in=3x3", "resnet8"]),
    ("resume=maybe", ["resume=maybe", "auto, true, false"]),
    ("resume=true force=true", ["choose one"]),
    ("resume=true", ["resume=true", "no checkpoint"]),
    ("data=imagenet", ["train and val not found", "data.root", "data/imagenet", "GEEXP_DATA"]),
    ("data=cifar10", ["cifar-10-batches-py not found", "data.download=true"]),
    ("data=fashion_mnist data.root=/nowhere", ["/nowhere", "data.download=true"]),
    ("ge.extent", ["EQUAL"]),
]


@pytest.mark.parametrize(("arguments", "parts"), MISTAKES, ids=[arguments for arguments, _ in MISTAKES])
def test_train_refuses(run, tmp_path, arguments, parts):
    done = run("train", *arguments.split())
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    message = done.stderr.strip()
    assert message.startswith("geexp.train: ")
    assert "Traceback" not in message
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message


def test_a_bad_configuration_makes_no_folder(run, tmp_path):
    run("train", "ge.extent=3")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("yaml", "part"),
    [
        ("variant: theta\nextnt: 4\n", "Did you mean extent"),
        ("variant: thetta\n", "Did you mean theta"),
        ("variant: theta\nextent: [4]\n", "ge.extent"),
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
        ("complexity", ["format=xml"], "text, json"),
        ("complexity", ["data=cifar10"], "data"),
        ("evaluate", [], "run=<a run's folder>"),
        ("evaluate", ["run=a", "checkpoint=b"], "give one of the two"),
        ("report", ["runs=nowhere"], "no such folder"),
    ],
)
def test_the_other_entries_refuse(run, entry, arguments, part):
    done = run(entry, *arguments)
    assert done.returncode == 2
    assert part in done.stderr
    assert "Traceback" not in done.stderr
