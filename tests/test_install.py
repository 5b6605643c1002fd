"""The package as it is installed elsewhere: the wheel in fresh environments, with torch alone and with everything."""

import os
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
OPERATOR = (
    "import geexp, torch; "
    "x = torch.rand(2, 16, 8, 8); "
    "print([tuple(geexp.GatherExcite(16, variant=v, extent=4)(x).shape) for v in ('theta_minus', 'theta', 'se')])"
)


def run(*command: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "GEEXP_"))}
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), ".", cwd=ROOT)
    (path,) = out.glob("*.whl")
    return path


def fresh_environment(folder: Path, packages: set[str] | None) -> str:
    """A virtual environment that shares the installed files of some packages, or of all; returns its Python."""
    run(sys.executable, "-m", "venv", str(folder), cwd=folder.parent)
    site = next(folder.glob("lib/python*/site-packages"))
    ours = Path(sysconfig.get_paths()["purelib"])
    if packages is None:
        (site / "shared.pth").write_text(f"{ours}\n")
    else:
        for name in packages:
            for top in {file.parts[0] for file in distribution(name).files or () if file.parts[0] not in ("..", "bin")}:
                if not (site / top).exists() and (ours / top).exists():
                    (site / top).symlink_to(ours / top)
    return str(folder / "bin" / "python")


def closure(name: str) -> set[str]:
    """A distribution and all that it requires here."""
    found, waiting = set(), [name]
    while waiting:
        name = waiting.pop()
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            needed = map(Requirement, requires)
            waiting += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def install(python: str, wheel: Path, folder: Path) -> None:
    options = ("--quiet", "--no-deps", "--no-index", "--ignore-installed")
    run(python, "-m", "pip", "install", *options, str(wheel), cwd=folder)


@pytest.mark.slow
def test_the_operators_need_torch_alone(wheel, tmp_path):
    python = fresh_environment(tmp_path / "torch-alone", closure("torch"))
    install(python, wheel, tmp_path)
    assert run(python, "-c", OPERATOR, cwd=tmp_path).stdout.count("(2, 16, 8, 8)") == 3
    assert "No module named" in run(python, "-c", "import hydra", cwd=tmp_path, code=1).stderr


@pytest.mark.slow
def test_the_wheel_trains(wheel, tmp_path):
    python = fresh_environment(tmp_path / "everything", None)
    install(python, wheel, tmp_path)
    where = run(python, "-c", "import geexp; print(geexp.__file__)", cwd=tmp_path).stdout
    assert str(tmp_path) in where
    command = ("-m", "geexp.train", "model=resnet50", "ge=theta", "ge.extent=8", "trainer.max_epochs=1")
    limits = ("trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer=cpu")
    assert "top-1 error" in run(python, *command, *limits, cwd=tmp_path).stdout
