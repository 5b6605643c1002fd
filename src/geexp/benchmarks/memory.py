"""Bytes that a piece of work keeps for its backward pass, and holds at its highest."""

import os
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def saved_bytes(forward: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """What autograd keeps of a forward pass: every storage once, parameters not, which are there anyway."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself it would keep its graph alive, and the graph it, for ever

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()  # must live on: a storage that is freed leaves its address to the next
    there = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    del result
    return sum(size for address, size in kept.items() if address not in there)


def peak_bytes(work: Callable[[], object], device: str) -> int:
    """What torch's allocator gives out at most during the work, above what it had given out before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it complains of GPUs that are not there
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        work()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    now = highest = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return highest
