"""Several processes, as torchrun starts them: each has its share of a batch or a set; one process has it all.

Item ``i`` of a batch, or of a set, belongs to process ``i % processes``. What is random in a training is drawn for the
whole batch on each process, which then keeps its share. So every process has the same random numbers, as one process
alone would have them, and a training does not depend on how many there are.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import ignite.distributed as idist
import torch
import torch.distributed as dist
from monai.utils import evenly_divisible_all_gather
from torch import nn
from torch.utils.data import BatchSampler, Dataset, RandomSampler, Sampler, SequentialSampler, Subset

from .checks import SettingError


def draw_share(draw: Callable[[int], torch.Tensor], count: int) -> torch.Tensor:
    """Draw for a whole batch and keep this process's share; all have shares of one size.

    Args:
        draw: returns random numbers for so many items, (items, ...).
        count: items of this process.

    Returns:
        Shape (count, ...).
    """
    processes = idist.get_world_size()
    return draw(count * processes)[idist.get_rank() :: processes]


def randn_share(like: torch.Tensor) -> torch.Tensor:
    """Draw this process's share of standard normal noise, of the shape (B, ...), type and device of ``like``."""
    return draw_share(
        lambda count: torch.randn(count, *like.shape[1:], dtype=like.dtype, device=like.device), len(like)
    )


def take_share(dataset: Dataset, even: bool = False) -> Subset:
    """Return this process's share of a dataset; the shares of all are the dataset, without overlap.

    Args:
        dataset: of at least as many items as there are processes.
        even: whether all shares are of one length; the dataset's first items then fill up what is missing.

    Raises:
        SettingError: when it has fewer.
    """
    length = len(dataset)  # type: ignore[arg-type]
    if length < idist.get_world_size():
        raise SettingError(f"WORLD_SIZE={idist.get_world_size()}: must be at most {length}, the volumes of a set.")
    end = -(-length // idist.get_world_size()) * idist.get_world_size() if even else length
    return Subset(dataset, [i % length for i in range(idist.get_rank(), end, idist.get_world_size())])


def gather_shares(share: torch.Tensor) -> torch.Tensor:
    """Put the shares of all processes together again.

    Args:
        share: this process's items, shape (items, ...).

    Returns:
        All items in their order, the same on each process, on the device of ``share``.
    """
    processes = idist.get_world_size()
    if processes == 1:
        return share
    shares = evenly_divisible_all_gather(share.to(idist.device()), concat=False)
    whole = share.new_empty(sum(map(len, shares)), *share.shape[1:])
    for rank, part in enumerate(shares):
        whole[rank::processes] = part
    return whole


def average_over_processes(values: Sequence[torch.Tensor]) -> None:
    """Put the mean over all processes in the place of each of some scalars."""
    if idist.get_world_size() > 1:
        means = idist.all_reduce(torch.stack([value.detach().float() for value in values])) / idist.get_world_size()
        for value, mean in zip(values, means, strict=True):  # type: ignore[arg-type]
            value.detach().copy_(mean)


class SharedMemoryAverage:
    """Averages gradients in memory that all processes of a machine see; gloo sends them from one to another by sockets.

    It is a reduce-scatter and an all-gather: each process adds up its share of all gradients, then takes every share.

    Args:
        length: number of learned parameters, which are float32.
    """

    def __init__(self, length: int) -> None:
        self.rank, processes = idist.get_rank(), idist.get_world_size()
        names = [""]
        if self.rank == 0:
            file = os.memfd_create("gradients")
            names = [f"/proc/{os.getpid()}/fd/{file}"]
        dist.broadcast_object_list(names)
        memory = torch.from_file(names[0], shared=True, size=(processes + 1) * length).view(processes + 1, length)
        self.gradients, self.sums = memory[:-1], memory[-1]
        self._wait()
        if self.rank == 0:
            os.close(file)  # the memory lasts while a process maps it

    def __call__(self, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """Average one of the buckets of ``DistributedDataParallel``, whose hook this is."""
        values, processes = bucket.buffer(), len(self.gradients)
        gradients, sums = self.gradients[:, : len(values)], self.sums[: len(values)]
        share = slice(*(len(values) * rank // processes for rank in (self.rank, self.rank + 1)))
        torch.div(values, processes, out=gradients[self.rank])
        self._wait()
        torch.add(gradients[0, share], gradients[1, share], out=sums[share])
        for others in gradients[2:]:
            sums[share].add_(others[share])
        self._wait()
        # Sums that are still read here are safe: they change after the next bucket's first wait.
        values.copy_(sums)
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(values)
        return future

    @staticmethod
    def _wait() -> None:
        """Wait for all processes. A reduction of one number is faster than gloo's barrier."""
        dist.all_reduce(torch.zeros(1))


def wrap_network(network: nn.Module, device: torch.device | str) -> nn.Module:
    """Let each backward pass average a network's gradients over all processes; one process trains it as it is.

    Args:
        network: on ``device``.
        device: this process's own.
    """
    if idist.get_world_size() == 1:
        return network
    # The end of a training destroys the process group, but its threads live as long as the network, which is garbage in
    # a cycle by then. Collect it before the interpreter ends: a thread that releases a tensor during that may abort it.
    atexit.register(gc.collect)
    # gradients are views of the buckets, which DistributedDataParallel would copy back to them otherwise
    wrap = partial(nn.parallel.DistributedDataParallel, network, gradient_as_bucket_view=True)
    kind = torch.device(device).type
    one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(idist.get_world_size())  # torchrun's
    if kind != "cpu" or not one_machine or not hasattr(os, "memfd_create"):
        return wrap(device_ids=[device] if kind == "cuda" else None)
    # one bucket, of up to 2^20 MiB, for processes wait for one another at each
    wrapped = wrap(bucket_cap_mb=2**20)
    learned = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    wrapped.register_comm_hook(SharedMemoryAverage(learned), lambda average, bucket: average(bucket))
    return wrapped


class ShardedBatchSampler(Sampler[list[int]]):
    """This process's share of each batch that a ``DataLoader`` of one process would make: its ``batch_sampler``.

    Args:
        dataset: what to take batches of.
        batch_size: items of a batch of all processes together, a multiple of their number.
        shuffle: whether the order is drawn anew, from torch's random numbers, each time.
        drop_last: whether to leave out a last batch that is not full.
    """

    def __init__(self, dataset: Dataset, batch_size: int, shuffle: bool = False, drop_last: bool = False) -> None:
        order = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)  # type: ignore[arg-type]
        self.batches = BatchSampler(order, batch_size, drop_last)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield batch[idist.get_rank() :: idist.get_world_size()]
