"""The fused tail of a block without its compiler, or with a broken one."""

import pytest
import torch

from geexp.operators.tail import compiled


def run_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    for sweeps in (compiled._forward, compiled._backward):
        monkeypatch.setattr(sweeps, "compiled", sweeps.function)


def break_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("No working C++ compiler found")

    for name in ("_forward", "_backward"):
        monkeypatch.setattr(compiled, name, compiled.Compiled(getattr(compiled, name).function))
    monkeypatch.setattr(torch, "compile", broken)
