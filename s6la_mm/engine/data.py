"""A data loader that can start in the middle of an epoch and gives every sample its own random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_dist_info
from torch.utils.data import DataLoader

from .seeding import derive_seed, seed_generators


class SeededDataset:
    """Seeds the random generators before each sample; every other access goes to the data set.

    An augmentation then depends on the seed of the run and the place of the sample in it, not on the number of workers
    or processes. Transforms with generators of their own are not reached.

    Args:
        dataset (Dataset): The data set.
    """

    dataset: Any

    def __init__(self, dataset: Any) -> None:
        object.__setattr__(self, 'dataset', dataset)

    def __getitem__(self, item: int | tuple[int, int]) -> object:
        """The sample of an index, or of an index and a seed."""
        if isinstance(item, tuple):
            item, seed = item
            seed_generators(seed)
        return self.dataset[item]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> object:
        if name == 'dataset' or name.startswith('__'):  # asked for by pickle before there is one
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: object) -> None:
        # Hooks that change the pipeline in the last epochs set it here.
        setattr(self.dataset, name, value)

    def __reduce__(self) -> tuple:
        return SeededDataset, (self.dataset,)


class SeededBatches:
    """A batch sampler that starts at a chosen batch and adds a seed to every index.

    The seed depends on the sample's place in the batch of all processes: one process with a batch of 4 and two with 2
    each augment the same images alike.

    Args:
        batches (Sampler): The batch sampler that is followed.
        seed (int): Seed of the run.
        endless (bool): Go on with the next epoch instead of ending.
    """

    def __init__(self, batches: Any, seed: int, endless: bool) -> None:
        self.batches = batches
        self.seed = seed
        self.endless = endless
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rank, world_size = get_dist_info()
        skip, self.start = self.start, 0
        epoch = self.epoch
        while True:
            number = -1
            for number, batch in enumerate(self.batches):
                if skip:
                    skip -= 1
                    continue
                yield [
                    (index, derive_seed(self.seed, epoch, number, slot * world_size + rank))
                    for slot, index in enumerate(batch)
                ]
            if not self.endless:
                return
            if number < 0:
                raise ValueError('the training data set gives no batch: it has fewer images than a batch, or none')
            epoch += 1
            self.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> object:
        if name == 'batches' or name.startswith('__'):
            raise AttributeError(name)
        return getattr(self.batches, name)

    def set_epoch(self, epoch: int) -> None:
        """Tells the sampler which epoch's order comes next."""
        self.epoch = epoch
        for sampler in (self.batches, getattr(self.batches, 'sampler', None)):
            set_epoch = getattr(sampler, 'set_epoch', None)
            if set_epoch is not None:
                set_epoch(epoch)


class ResumableDataLoader(DataLoader):
    """A ``DataLoader`` with :class:`SeededBatches`, whose workers start with the first batch that is asked for.

    Args:
        loader (DataLoader): What mmengine has built from the config.
        seed (int): Seed of the run.
        endless (bool): Go on with the next epoch instead of ending, for loops that count iterations.
    """

    def __init__(self, loader: DataLoader, seed: int, endless: bool) -> None:
        super().__init__(
            SeededDataset(loader.dataset),
            batch_sampler=SeededBatches(loader.batch_sampler, seed, endless),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
        )

    def seek(self, epoch: int, batch: int) -> None:
        """Lets the next iteration start at a batch of an epoch; the images before it are not read."""
        self.batch_sampler.set_epoch(epoch)
        self.batch_sampler.start = batch

    def __iter__(self) -> Iterator:
        # A generator: mmengine asks for the iterator before it knows where to resume.
        yield from super().__iter__()
