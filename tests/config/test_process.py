"""Any terminal and any account: what is printed arrives as text, and no name or home folder is needed."""

import getpass
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.tree import Tree

import geexp
from geexp.config import process
from geexp.config.errors import ConfigError
from geexp.training.loggers import make_loggers
from tests.conftest import environment
from tests.support.configuration import train_config

NOBODY = 54321


def test_rich_prints_square_brackets_and_colons_as_they_are():
    text, printed = "[a] b[/c] :x: [red]", io.StringIO()
    table, tree = Table(text, title=text), Tree(text)
    table.add_row(text)
    tree.add(text)
    console = process.PlainConsole(file=printed, width=100)
    for item in (table, tree, text):
        console.print(item)
    assert printed.getvalue().count(text) == 6
    package = Path(geexp.__file__).parent
    own = re.compile(r"\bConsole\(")
    assert [path for path in package.rglob("*.py") if own.search(path.read_text(encoding="utf-8"))] == []


def test_an_account_without_a_name_or_a_writable_home(monkeypatch, tmp_path):
    home, temporary = str(tmp_path / "home"), str(tmp_path / "tmp")
    os.mkdir(temporary)
    for variable in (*process._FOLDERS, "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.setenv(variable, "")  # restored afterwards
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    monkeypatch.setattr(process.tempfile, "gettempdir", lambda: temporary)
    assert process.prepare_process() is None
    assert os.environ.keys().isdisjoint({"XDG_CACHE_HOME", "TRITON_CACHE_DIR"})

    monkeypatch.setattr(process.os, "access", lambda path, mode: str(path) != str(tmp_path))  # home is not there yet
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    message = process.prepare_process()
    assert message is not None
    assert f"{home}/.cache" in message
    assert "XDG_CACHE_HOME" in message
    assert getpass.getuser() == f"uid{os.getuid()}"
    assert all(os.environ[variable].startswith(f"{temporary}/geexp-") for variable in process._FOLDERS)
    assert process.prepare_process() is None  # nor in a child process

    monkeypatch.delenv("HOME")
    assert "HOME" in (process.prepare_process() or "")
    assert os.path.expanduser("~/x").startswith(f"{temporary}/geexp-")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(process.tempfile, "gettempdir", lambda: f"{tmp_path}/nowhere")
    with pytest.raises(ConfigError, match="TMPDIR"):
        process.prepare_process()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root, and setpriv")
def test_a_sweep_by_a_user_without_a_name_on_a_latin_1_terminal(tmp_path):
    """Also with square brackets in a value, and in a folder whose name is not UTF-8."""
    os.chown(tmp_path, NOBODY, NOBODY)
    outputs = os.fsdecode(b"caf\xe9")
    variables = environment(HOME="/", TMPDIR=str(tmp_path), PYTHONIOENCODING="latin-1")
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        variables.pop(name, None)
    # The user may read everything, since the tests' own Python may be in root's home, but write nothing of others.
    read = [f"--{kind}=-all,+dac_read_search" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *read, sys.executable]
    training = [
        "-m",
        "geexp.train",
        "-m",
        "launcher=inline",
        "logger.group='[ablation] a[/v2]'",
        f"outputs='{outputs}'",
        "trainer=cpu",
    ]
    training += ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1"]
    done = subprocess.run(
        [*command, *training],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        encoding="latin-1",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert r"GE-\u03b8" in done.stdout
    assert done.stderr.startswith("geexp.train: /.cache, ")
    (record,) = tmp_path.glob(f"{outputs}/**/result.json")
    assert json.loads(record.read_text(encoding="utf-8"))["config"]["outputs"] == outputs
    assert "group: [ablation] a[/v2]\n" in (record.parent / "config_tree.txt").read_text(encoding="utf-8")
    assert r"caf\udce9" in (record.parent / "train.log").read_text(encoding="utf-8")


def test_wandb_is_refused_in_a_folder_whose_name_is_not_utf8(tmp_path):
    with pytest.raises(ConfigError, match=r"logger=wandb: .*UTF-8"):
        make_loggers(train_config("logger=wandb"), tmp_path / os.fsdecode(b"caf\xe9"), "id")
