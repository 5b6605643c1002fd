"""The tail's Triton kernels: their results by Triton's interpreter, and the code that is made for GPUs, without one."""

import importlib.util

import pytest
import torch

from tests.conftest import SOURCES, python
from tests.support.ptx import compiled

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def test_results_by_the_interpreter():
    """A process of its own, because Triton decides at import whether it interprets."""
    options = "-q", "--no-header", "-p", "no:cacheprovider"
    done = python(
        "-m", "pytest", *options, "tests/operators/interpreted_tail.py", cwd=SOURCES.parent, TRITON_INTERPRET="1"
    )
    assert done.returncode == 0, done.stdout[-10_000:]


SWEEPS = ["sum_planes", "join", "split_gradient", "branch_gradient", "branch_and_weight_gradient"]
SMALL = ["normalise", "small_gradients"]
WINDOWS = [
    "gather_windows",
    "join_cells",
    "split_gradient_cells",
    "sum_gathered",
    "branch_gradient_windows",
    "weight_gradient_windows",
]
REST = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def triton_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.parametrize(
    ("arch", "contiguous", "kernel", "weighted"),
    [
        *((90, False, kernel, True) for kernel in SWEEPS),
        (80, False, "branch_and_weight_gradient", True),
        pytest.param(90, False, "sum_planes", False, marks=REST),
        *(pytest.param(90, True, kernel, True, marks=REST) for kernel in SWEEPS),
        *(pytest.param(80, contiguous, kernel, True, marks=REST) for contiguous in (0, 1) for kernel in SWEEPS),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float32, marks=REST)])
def test_a_sweep_over_a_large_map_moves_16_bytes_at_a_time(arch, contiguous, kernel, weighted, dtype):
    code = compiled(kernel, 256, 56, dtype, arch=arch, contiguous=contiguous, weighted=weighted)
    kinds = code.instructions
    # A thread has 16 values of each map. Single ones are of planes and channels.
    maps = {"sum_planes": 1, "join": 2, "split_gradient": 3}.get(kernel, 2)
    each = 16 // (16 // dtype.itemsize)
    assert kinds["ld.global.v4.b32"] >= maps * each
    if kernel != "sum_planes":
        assert kinds["st.global.v4.b32"] >= each
    assert kinds["st.global.b16"] == kinds["ld.global.v2.b32"] == kinds["st.global.v2.b32"] == 0
    assert kinds["ld.global.b16"] <= 4
    assert kinds["st.global.b32"] <= 3
    assert kinds["div"] == kinds["rem"] == 0
    assert code.spilled == 0
    assert code.registers <= {"sum_planes": 112, "branch_and_weight_gradient": 152}.get(kernel, 80)


@pytest.mark.parametrize(
    ("side", "weighted", "extent"),
    [(56, True, 4), pytest.param(56, False, 2, marks=REST), pytest.param(7, True, 8, marks=REST)],
)
@pytest.mark.parametrize("arch", [90, pytest.param(80, marks=REST)])
@pytest.mark.parametrize("kernel", WINDOWS)
def test_so_do_the_sweeps_of_a_finite_extent_in_channels_last(kernel, arch, side, weighted, extent):
    code = compiled(kernel, 14336 // side, side, torch.bfloat16, arch=arch, weighted=weighted, extent=extent)
    kinds = code.instructions
    assert kinds["ld.global.v4.b32"] >= 4
    assert kinds["st.global.v4.b32"] >= (0 if kernel == "sum_gathered" else 1)
    assert kinds["ld.global.b16"] <= 1
    assert kinds["st.global.b16"] == kinds["div"] == kinds["rem"] == 0
    assert code.spilled == 0
    assert code.registers <= 128


@pytest.mark.slow
@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("kernel", SWEEPS + SMALL)
def test_kernels_spill_at_most_a_few_bytes(arch, kernel, contiguous):
    for C, side in ((256, 56), (512, 28), (1024, 14), (2048, 7)):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            code = compiled(kernel, C, side, dtype, arch=arch, contiguous=contiguous)
            assert code.spilled <= 16  # to have more threads at a time
            assert code.registers <= 168


def test_a_batch_of_another_size_compiles_nothing():
    from geexp.operators.tail import global_kernels, window_kernels

    for name in SWEEPS + SMALL + WINDOWS:
        kernel = getattr(window_kernels if name in WINDOWS else global_kernels, name)
        sizes = [parameter for parameter in kernel.params if parameter.name in ("N", "PER")]
        assert all(size.do_not_specialize and not size.is_constexpr for size in sizes)
