"""Every job of a multirun is composed and checked before the first one starts."""

import sys
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from geexp.config.errors import ConfigError, UserError
from geexp.config.ranks import rank, world_size
from geexp.config.schema import TrainConfig
from geexp.config.validation import validated


class CheckEveryJob(Callback):
    """Hydra itself composes all jobs first, but neither types nor values are checked until a job's turn comes."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if world_size() > 1:
            if rank() == 0:
                print(
                    "geexp.train: a sweep is started once, with plain python; under torchrun every process would run "
                    "it. For jobs on several devices start torchrun once per job.",
                    file=sys.stderr,
                )
            sys.exit(ConfigError.exit_code)
        if not config.hydra.sweeper._target_.endswith("BasicSweeper"):
            return  # a sweeper that searches does not know its jobs beforehand
        loader = GlobalHydra.instance().config_loader()
        parameters = OmegaConf.to_container(config.hydra.sweeper.get("params") or OmegaConf.create({}))
        assert isinstance(parameters, dict)
        arguments = [f"{key!s}={value!s}" for key, value in parameters.items()] + list(config.hydra.overrides.task)
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
        (jobs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
        for number, job in enumerate(jobs):
            composed = loader.load_sweep_config(config, list(job))
            task = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
            try:
                validated(TrainConfig, task)
            except UserError as error:
                print(f"geexp.train: job {number} ({' '.join(job)}): {error}", file=sys.stderr)
                sys.exit(error.exit_code)  # Hydra turns exceptions of callbacks into warnings
