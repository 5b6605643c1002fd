from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.forked import Forked
from tests.support.launched import SMALL, Command, Strings


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """``start("-m", "ge=none,theta", …)``: a command that runs; whatever is left of it at the end is ended."""
    started: list[Command] = []

    def command(*arguments: str, **variables: str) -> Command:
        started.append(Command(tmp_path, *arguments, **variables))
        return started[-1]

    yield command
    for one in started:
        one.clean_up()


@pytest.fixture
def strings(tmp_path: Path) -> Strings:
    folder = tmp_path / "strings"
    folder.mkdir()
    return Strings(folder)


@pytest.fixture(scope="session")
def undisturbed(forked: Forked, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``undisturbed("theta-2")``: the run of that variant on so many devices, trained alone and by hand."""
    trained: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in trained:
            folder = tmp_path_factory.mktemp(name)
            variant, devices = name.split("-")
            arguments = [*SMALL, f"ge={variant}", f"trainer.devices={devices}", "hydra.run.dir=run"]
            ended = forked.run(folder, "train", *arguments, ranks=int(devices) if devices != "1" else None)
            assert [one.returncode for one in ended] == [0] * len(ended), ended[0].stderr
            trained[name] = folder / "run"
        return trained[name]

    return run
