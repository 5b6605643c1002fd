"""The parts of timm's blocks that we re-state still make up timm's blocks."""

import pytest
import timm
import torch
from torch import nn

from geexp.backbones import timm_private

TIMM = f"timm {timm.__version__} changed its residual blocks: compare backbones/timm_private.py with them"


@pytest.mark.parametrize("kind", timm_private.ENDS, ids=lambda kind: kind.__name__)
def test_blocks_are_what_we_restate(kind):
    torch.manual_seed(0)
    planes = 32 // kind.expansion
    block = kind(32, planes, norm_layer=nn.BatchNorm2d).eval()
    expected = {*timm_private.ENDS[kind], "se", "downsample"}
    if kind in timm_private.BRANCHES:
        expected |= {"drop_path", "drop_block", "aa"}
    assert expected <= set(dir(block)), TIMM
    x = torch.randn(2, 32, 6, 6)
    seen = []
    norm = getattr(block, timm_private.ENDS[kind][0])
    norm.register_forward_hook(lambda _m, inputs, output: seen.extend((inputs[0], output.clone())))
    with torch.no_grad():
        want = block(x)
        before, after = seen
        if kind in timm_private.BRANCHES:
            assert torch.equal(timm_private.branch(block, x), before), TIMM
        halves = timm_private.shortcut_and_join(block)
        assert halves is not None
        shortcut, join = halves
        assert torch.equal(join(after.clone(), shortcut(x)), want), TIMM
