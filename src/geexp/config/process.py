"""The process of a command: text that any terminal accepts, a user name, and caches that can be written. No torch."""

import getpass
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from geexp.config.errors import ConfigError

# The variables that move the folders in which libraries and geexp.data keep files from run to run, and the defaults.
# torch, Hugging Face and geexp use the first; inductor uses the temporary folder anyway.
_FOLDERS = {
    "XDG_CACHE_HOME": "~/.cache",
    "MPLCONFIGDIR": "~/.config/matplotlib",
    "TRITON_CACHE_DIR": "~/.triton/cache",
    "XDG_DATA_HOME": "~/.local/share",
}


class PlainConsole(Console):
    """A console that prints strings as they are: ``[a]`` and ``:b:`` in a user's value are not markup or emoji."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)


def prepare_process() -> str | None:
    """Make this process, and those it starts, independent of the terminal's encoding and of the user's account.

    Returns:
        A message if caches had to be moved.

    Raises:
        ConfigError: if there is no folder for them.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        getpass.getuser()
    except (KeyError, OSError):  # an id without an account, as in docker run --user 54321; importing torch would fail
        os.environ["USER"] = f"uid{os.getuid()}"
    return _move_caches()


def _move_caches() -> str | None:
    has_home = os.path.expanduser("~") != "~"  # not so for an id without an account and without HOME
    defaults = _FOLDERS if has_home else {"HOME": "~"}
    folders = {name: os.path.expanduser(os.environ.get(name) or default) for name, default in defaults.items()}
    unwritable = {name: folder for name, folder in folders.items() if not _is_writable(folder)}
    if not unwritable:
        return None
    try:
        place = Path(tempfile.gettempdir(), f"geexp-{os.getuid()}")
        place.mkdir(mode=0o700, exist_ok=True)
        if place.stat().st_uid != os.getuid():
            place = Path(tempfile.mkdtemp(prefix="geexp-"))
    except OSError as error:
        raise ConfigError(
            f"{', '.join(unwritable.values())}: not writable, and there is no temporary folder for caches ({error}). "
            "Set TMPDIR to a writable folder."
        ) from error
    os.environ |= {name: str(place / name.lower()) for name in unwritable}
    return (
        f"{', '.join(unwritable.values())}: not writable, so caches are in {place}. To keep them elsewhere, set "
        f"{', '.join(unwritable)}."
    )


def _is_writable(folder: str) -> bool:
    """Whether files can be written to a folder, which may not exist yet."""
    if folder.startswith("~"):
        return False
    path = Path(folder).absolute()
    while not os.path.lexists(path):
        path = path.parent
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)
