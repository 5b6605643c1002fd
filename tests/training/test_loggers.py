"""Which loggers a run has, and what they write."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from geexp.config import extras
from geexp.config.compose import validated
from geexp.config.errors import ConfigError, DivergedError
from geexp.config.schema import LoggerConfig, TrainConfig
from geexp.launching.jobs import require_inputs
from geexp.training.loggers import make_loggers
from geexp.training.run import train
from tests.support.configuration import job, train_config
from tests.support.runs import SETTINGS, trouble


def loggers_of(**group: object) -> LoggerConfig:
    """The logger group as it follows from the content of its files."""
    return validated(TrainConfig, asdict(train_config()) | {"logger": group}).logger


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("csv", ["csv"]),
        ("none", []),
        ("wandb", ["wandb"]),
        ("[csv,tensorboard]", ["csv", "tensorboard"]),
        ("[csv,tensorboard,wandb]", ["csv", "tensorboard", "wandb"]),
    ],
)
def test_one_or_several(choice, names):
    config = train_config(f"logger={choice}", "logger.project=mine", "logger.group=table2").logger
    assert list(config.loggers) == names
    assert all(config.has(name) for name in names)
    assert (config.project, config.group) == ("mine", "table2")


def test_configurations_of_earlier_runs():
    earlier = {"project": "geexp", "entity": None, "group": "table2", "mode": "auto"}
    assert loggers_of(name="none", **earlier).loggers == {}
    assert loggers_of(name="wandb", **earlier) == train_config("logger=wandb", "logger.group=table2").logger
    with pytest.raises(ConfigError, match="Did you mean csv"):
        loggers_of(name="cvs")


def test_arguments_of_a_custom_logger():
    """W&B's keys are W&B's where it is chosen; elsewhere they are arguments, but for the group that a sweep sets."""
    mine = {"_target_": "a.Mine", "project": "me/mine", "tags": {"x": 1}}
    alone = loggers_of(**mine, group="table2", entity=None)
    assert (alone.loggers, alone.group) == ({"Mine": mine}, "table2")
    wandb = {"wandb": {"_target_": "geexp.training.loggers.wandb_logger"}}
    beside = loggers_of(**mine | {"project": "geexp"}, **wandb)
    assert (beside.loggers["Mine"], beside.project) == ({"_target_": "a.Mine", "tags": {"x": 1}}, "geexp")
    named = loggers_of(mine=mine, **wandb)
    assert (named.loggers, named.project) == ({"mine": mine, **wandb}, "geexp")


def test_secrets_are_not_recorded(monkeypatch, tmp_path):
    """Interpolations are resolved when the logger is made."""
    mine = "{_target_: pytorch_lightning.loggers.CSVLogger, save_dir: '${oc.env:FOLDER}', name: 'seed${seed}'}"
    ready = job(tmp_path / "run", *SETTINGS, "seed=3", f"+logger.mine={mine}")
    with pytest.raises(ConfigError, match=r"logger\.mine: .*FOLDER"):
        make_loggers(ready.config, tmp_path, "1234abcd")
    monkeypatch.setenv("FOLDER", str(tmp_path / "secret"))
    (logger,) = make_loggers(ready.config, tmp_path, "1234abcd")
    logger.save()
    assert "${oc.env:FOLDER}" in (tmp_path / "secret/seed3/version_0/hparams.yaml").read_text()
    assert "secret" not in str(asdict(ready.config))


def test_tensorboard_shows_a_resumed_run_as_one(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = [*SETTINGS, "logger=tensorboard"]
    with pytest.raises(DivergedError):
        train(job(tmp_path, *settings, trouble("Poison", step=11)))
    assert train(job(tmp_path, *settings)) is not None
    (folder,) = Path(tmp_path, "tensorboard").iterdir()
    events = accumulator.EventAccumulator(str(folder)).Reload()
    assert [event.value for event in events.Scalars("epoch")] == [1, 2]
    assert yaml.safe_load((folder / "hparams.yaml").read_text())["optim.batch_size"] == 32


def test_tensorboard_is_an_extra(monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "tensorboard", ("no_such_module",))
    with pytest.raises(ConfigError, match=r"logger=tensorboard.*no_such_module.*pip install 'geexp\[tensorboard\]'"):
        require_inputs(train_config("logger=[csv,tensorboard]"))
