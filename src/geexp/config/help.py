"""``--help``: what a command does, its groups with their options, and its configuration.

Hydra's own help reads every group anew for each of its options, which takes a second of processor time.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from geexp.registry import config_directory

# Groups that no defaults list names, since they are chosen on the command line alone (+sweep=…).
_ADDED = ("sweep",)
_FOOTER = "Set a key with key=value. All keys and their defaults: --cfg job. Hydra's own flags: --hydra-help"


def help_text(name: str, arguments: Sequence[str]) -> str:
    """The help of ``python -m geexp.<name>``, for the choices that the other ``arguments`` make."""
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--config-dir", "-cd", type=Path)
    known, rest = flags.parse_known_args(list(arguments))
    overrides = [word for word in rest if not word.startswith("-")]
    folders = [config_directory()]
    if known.config_dir is not None:
        folders.append(known.config_dir.absolute())
        overrides.append(f"hydra.searchpath=['file://{folders[-1]}']")
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        whole = compose(name, overrides=overrides, return_hydra_config=True)
    chosen = {group for group in whole.hydra.runtime.choices if not group.startswith("hydra")}
    if "experiment" in chosen:
        chosen |= {*_ADDED, *(f"data/{folder.name}" for folder in (folders[0] / "data").iterdir() if folder.is_dir())}
    lines = [f"{group}: {', '.join(_options(folders, group))}" for group in sorted(chosen)]
    settings = OmegaConf.to_yaml(OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"]))
    groups = ["Groups, with their options (group=option):", *lines, ""] if lines else []
    return "\n".join([whole.hydra.help.header, *groups, "Configuration:", "", settings, _FOOTER])


def _options(folders: Sequence[Path], group: str) -> list[str]:
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
