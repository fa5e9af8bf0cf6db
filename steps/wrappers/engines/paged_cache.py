"""The memory of keys and values in blocks of some tokens. Sequences that begin alike may have the same blocks."""

import mmap
from collections import Counter
from itertools import groupby

import numpy as np

from .lazy_array import lazy_memory


class BlockPool:
    """The blocks of all layers' keys and values. Memory is taken when a block is first written."""

    def __init__(self, count: int, block_bytes: list[int]) -> None:
        """Make `count` blocks; each cache has its own bytes in one."""
        self._maps = [lazy_memory(count * size) for size in block_bytes]
        self.memories = [
            np.empty((count, size), np.uint8)
            if memory is None
            else np.frombuffer(memory, np.uint8).reshape(count, size)
            for memory, size in zip(self._maps, block_bytes, strict=True)
        ]
        # The last one that was released is taken first, so that few are ever written.
        self._free = [*reversed(range(count))]
        self._uses: Counter[int] = Counter()
        self._written: set[int] = set()

    def take(self) -> int:
        """Return an unused block.

        Raises:
            MemoryError: There is none.
        """
        if not self._free:
            raise MemoryError(f"all {len(self._uses)} blocks of the cache are used")
        number = self._free.pop()
        self._uses[number] = 1
        self._written.add(number)
        return number

    def share(self, numbers: list[int]) -> None:
        """Count one more that has these blocks."""
        self._uses.update(numbers)

    def release(self, numbers: list[int]) -> None:
        """Count one less that has these blocks."""
        for number in numbers:
            self._uses[number] -= 1
            if not self._uses[number]:
                del self._uses[number]
                self._free.append(number)

    def copy(self, number: int) -> int:
        """Return a block with the same keys and values."""
        copied = self.take()
        for memory in self.memories:
            memory[copied] = memory[number]
        return copied

    def shrink(self) -> None:
        """Give back the memory of all unused blocks, where the system takes it."""
        unused = sorted(self._written - self._uses.keys())
        self._written &= self._uses.keys()
        # Neighbors together: only whole pages can be given back.
        for _, run in groupby(enumerate(unused), key=lambda entry: entry[1] - entry[0]):
            numbers = [number for _, number in run]
            for memory, blocks in zip(self._maps, self.memories, strict=True):
                if memory is not None:
                    _give_back(memory, numbers[0] * blocks.shape[1], (numbers[-1] + 1) * blocks.shape[1])


class Blocks:
    """Blocks of the cache that hold the beginning of a sequence. They are released with this object."""

    def __init__(self, pool: BlockPool, numbers: list[int]) -> None:
        self.numbers, self._pool = numbers, pool
        pool.share(numbers)

    def __del__(self) -> None:
        self._pool.release(self.numbers)


def _give_back(memory: mmap.mmap, start: int, end: int) -> None:
    """Give back the whole pages between two bytes."""
    start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end:
        memory.madvise(mmap.MADV_DONTNEED, start, end - start)
