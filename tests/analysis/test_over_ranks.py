"""Two processes that share the images get what one gets, also when all images are with one of them."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from geexp import build_model
from geexp.analysis.gates import gate_distribution
from geexp.analysis.observing import largest, smallest, total
from geexp.analysis.receptive_field import effective_receptive_field
from geexp.analysis.selectivity import class_selectivity

CLASSES = 4


def batches():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) ** 2 % 3
    images = torch.randn(30, 3, 16, 16, generator=generator) + labels[:, None, None, None]
    return list(zip(images.split(6), labels.split(6), strict=True))


def analyses(batches):
    torch.manual_seed(1)
    model = build_model("resnet8", ge="theta", extent=2, num_classes=CLASSES)
    selectivity = class_selectivity(model, batches, num_classes=CLASSES, blocks=["conv3_1", "conv4_1"])
    gates = gate_distribution(model, batches, num_classes=CLASSES, bins=10)
    field = pd.DataFrame(effective_receptive_field(model, batches, block="conv3_1"))
    return [selectivity.features, selectivity.blocks, gates.histogram, gates.channels, field]


def as_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    pair = torch.tensor([rank, -rank])
    reduced = [f(pair).tolist() for f in (total, smallest, largest)]
    assert reduced == [[1, -1], [0, -1], [1, 0]]
    assert pair.tolist() == [rank, -rank]
    shared = batches()
    pd.to_pickle(analyses(shared[rank::2]), f"{folder}/shared{rank}")
    pd.to_pickle(analyses(shared if rank == 1 else []), f"{folder}/one_has_all{rank}")
    with pytest.raises(ValueError, match="no images"):
        analyses([])
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        want = analyses(batches())
    finally:
        torch.set_num_threads(threads)
    mp.spawn(as_rank, (str(tmp_path),), nprocs=2)
    for name in ("shared0", "shared1", "one_has_all0", "one_has_all1"):
        for got, expected in zip(pd.read_pickle(tmp_path / name), want, strict=True):
            # Float64 sums in another order; where one rank has all images, there is no other order.
            pd.testing.assert_frame_equal(got, expected, rtol=1e-12, atol=1e-12, check_exact=name.startswith("one"))
    assert not mp.active_children()


def test_one_process_gets_its_own_tensor():
    tensor = torch.ones(2)
    assert total(tensor) is smallest(tensor) is largest(tensor) is tensor
    assert np.array_equal(tensor, [1, 1])
    with pytest.raises(ValueError, match="no images"):
        analyses([])
