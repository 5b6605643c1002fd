"""Words of a command line: flags in any place, values that Hydra's grammar refuses, and ``~`` in paths."""

import os
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from geexp.config.arguments import flags_first, quoted_override, refused_override
from geexp.config.class_folders import folder_name
from geexp.config.compose import composed_training, validated
from geexp.config.errors import ConfigError
from geexp.config.schema import AnalyzeConfig, DetectConfig, EvaluateConfig, ExportConfig, ReportConfig

REFUSED = [
    "run/epoch=89.ckpt",
    "~/x",
    "/data/新卷/imagenet",
    "/data/run(1)",
    "run(1)",
    "/data/{a}",
    "/data/a[1]",
    "[a] b",
    "a#1 ü",
    'it\'s "new"',
    "ends with (\\",
    "a!b;c&d",
    "${oc.env:HOME}/ü",
]


@pytest.mark.parametrize("value", REFUSED)
def test_the_word_that_a_message_suggests_sets_the_refused_value(value):
    message = str(refused_override(f"+logger.group={value}", sweep=False))
    (word,) = shlex.split(message.rpartition("for the shell: ")[2])
    parsed = OverridesParser.create().parse_override(word)
    assert (parsed.key_or_group, parsed.value()) == ("logger.group", value)
    assert message.startswith(f"+logger.group={value}: ")


def test_each_value_of_a_sweep_is_quoted():
    message = str(refused_override("outputs=a=1,b", sweep=True))
    (word,) = shlex.split(message.rpartition("for the shell: ")[2])
    assert word == 'outputs="a=1",b'


@pytest.mark.parametrize("word", ["ge.stages=[4,é]", "é=3", "outputs=/a${b", '+x={a: "b}', "outputs=choice(a,é)"])
def test_no_word_is_suggested_where_it_is_not_clear(word):
    message = str(refused_override(word, sweep=False))
    assert message.startswith(f"{word}: ")
    assert "Quote the parts" in message


@pytest.mark.parametrize("value", ["/plain/path", "/a b", " x ", "5", "null", "a,b", 'ends with "\\', "新"])
def test_a_quoted_override_sets_the_string(value):
    assert OverridesParser.create().parse_override(quoted_override("key", value)).value() == value


@pytest.mark.parametrize(
    ("typed", "flags"),
    [
        ("model=resnet8 -m seed=1,2", 1),
        ("seed=1,2 --config-dir=mine", 1),
        ("a=1 --config-dir mine b=2 -m", 3),
        ("a=1 b=2 --cfg job", 2),
        ("~a -c job +b=1", 2),
    ],
)
def test_flags_go_first_and_nothing_else_moves(typed, flags):
    words, arranged = typed.split(), flags_first(typed.split())
    is_flag = [word in ("-m", "--cfg", "-c", "job", "mine") or word.startswith("--config-dir") for word in words]
    assert arranged[:flags] == [word for word, first in zip(words, is_flag, strict=True) if first]
    assert arranged[flags:] == [word for word, first in zip(words, is_flag, strict=True) if not first]


def test_a_home_folder_is_expanded_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("GEEXP_DATA", "~/data")
    train = composed_training("outputs='~/o'", "data=imagenet", "feed=pack", "feed.pack='~/p'")
    assert (train.outputs, train.data.root, train.feed.pack) == (
        "/home/ada/o",
        "/home/ada/data/imagenet",
        "/home/ada/p",
    )
    detector = ["model=resnet50", "ge=none", "data=coco2014", "detector=c4", "schedule=coco_faster_rcnn", "optim=coco"]
    assert composed_training(*detector, "backbone_checkpoint='~/b'").backbone_checkpoint == "/home/ada/b"
    started = composed_training("weights='~/w'", "resume_from='~/r'")
    assert (started.weights, started.resume_from) == ("/home/ada/w", "/home/ada/r")
    for schema, given in (
        (EvaluateConfig, {"run": "~/x", "root": "~/x"}),
        (EvaluateConfig, {"checkpoint": "~/x"}),
        (AnalyzeConfig, {"run": "~/x", "against": "~/x", "root": "~/x", "out": "~/x"}),
        (DetectConfig, {"run": "~/x", "images": "~/x", "root": "~/x", "out": "~/x"}),
        (ReportConfig, {"runs": "~/x", "out": "~/x"}),
        (ExportConfig, {"run": "~/x", "root": "~/x", "out": "~/x"}),
    ):
        more = {"analysis": "selectivity"} if schema is AnalyzeConfig else {}
        config = validated(schema, given | more)
        assert {getattr(config, key) for key in given} == {"/home/ada/x"}
    with pytest.raises(ConfigError, match=r"out=~nobody-here/x: .*whole path"):
        validated(ReportConfig, {"out": "~nobody-here/x"})
    assert flags_first(["hydra.run.dir='~/x'", "a=~", "--config-dir=~/mine"]) == [
        "--config-dir=/home/ada/mine",
        "hydra.run.dir='/home/ada/x'",
        "a=~",
    ]


def test_folders_that_hydra_makes_are_in_the_home_folder(forked, tmp_path):
    (tmp_path / "home/mine/ge").mkdir(parents=True)
    (tmp_path / "home/mine/ge/own.yaml").write_text("defaults: [theta]\n")
    arguments = ["ge=own", "-m", "seed=1,2", "--config-dir=~/mine", "dry_run=true", "outputs='~/runs'"]
    (done,) = forked.run(tmp_path, "train", *arguments, HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{tmp_path}/home/runs/") == 2
    assert f"--config-dir={tmp_path}/home/mine" in done.stdout
    assert not list(tmp_path.glob("~*"))


def test_a_name_that_is_not_utf8_becomes_text():
    assert folder_name(os.fsdecode(b"/photos/caf\xe9")) == r"caf\xe9"
