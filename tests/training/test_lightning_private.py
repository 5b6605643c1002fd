"""Lightning's internals that we rely on: each test fails, and names the use, when an update moves one."""

import inspect
import warnings
from contextlib import suppress

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.strategies import DDPStrategy
from torch.distributed import distributed_c10d
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from geexp.training.lightning_private import (
    ddp_strategy,
    leave_process_group,
    was_interrupted,
    without_sigterm_broadcast,
)


def test_the_words_in_front_of_the_progress_bar():
    parameters = getattr(RichProgressBar, "_get_train_description", None)
    message = "RichProgressBar._get_train_description(current_epoch) has moved: mend DescribedProgressBar"
    assert parameters is not None, message
    assert list(inspect.signature(parameters).parameters) == ["self", "current_epoch"], message
    assert "_get_train_description" in inspect.getsource(RichProgressBar.on_train_epoch_start), message


class Network(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Interrupting(Network):
    def training_step(self, batch, batch_idx):
        raise KeyboardInterrupt


def fit(network: pl.LightningModule, loader: DataLoader) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    with suppress(SystemExit):
        trainer.fit(network, loader)
    return trainer


def test_an_interrupted_trainer_says_so():
    loader = DataLoader(TensorDataset(torch.ones(2, 1)))
    message = "Lightning no longer turns Ctrl-C into SystemExit with trainer.interrupted: mend was_interrupted"
    assert was_interrupted(fit(Interrupting(), loader)), message
    assert not was_interrupted(fit(Network(), loader)), message


def test_samplers_get_the_epoch():
    """Without it, every epoch would have the same order, in silence: see geexp.data's resumable feeds."""

    class Sampler(torch.utils.data.SequentialSampler):
        epochs: list[int] = []  # noqa: RUF012

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    images = TensorDataset(torch.ones(2, 1))
    fit(Network(), DataLoader(images, sampler=Sampler(images)))
    assert Sampler.epochs == [0, 1, 2], "Lightning no longer calls set_epoch on loader.sampler"


def test_no_step_asks_for_sigterm():
    message = "Lightning's broadcast of SIGTERM in every step has moved: mend without_sigterm_broadcast"
    assert "self._broadcast_sigterm_tensor()" in inspect.getsource(_TrainingEpochLoop.advance), message
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    without_sigterm_broadcast(trainer)
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()  # without a process group


def test_ddp_is_built_where_backward_passes_run():
    message = "Lightning no longer builds DDP in _setup_model(model): mend ddp_strategy"
    assert "self._setup_model(self.model)" in inspect.getsource(DDPStrategy.configure_ddp), message


def test_a_rank_that_leaves_alone_does_not_wait_for_the_others(monkeypatch):
    done: list[str] = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(dist, "destroy_process_group", lambda: done.append("destroyed"))
    monkeypatch.setattr(distributed_c10d, "_abort_process_group", lambda: done.append("aborted"))
    leave_process_group(together=False)
    leave_process_group(together=True)
    assert done == ["aborted", "destroyed"]


def test_ddp_leaves_the_statistics_of_bn_alone_without_a_warning():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            network = DistributedDataParallel(torch.nn.BatchNorm2d(2), **ddp_strategy()._ddp_kwargs)
        assert not network.will_sync_module_buffers(), "torch has renamed DDP's option: mend ddp_strategy"
    finally:
        dist.destroy_process_group()
