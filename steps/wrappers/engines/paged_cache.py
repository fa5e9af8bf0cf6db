"""The memory of keys and values in blocks of some tokens. Sequences that begin alike may have the same blocks."""

import mmap
from collections import Counter
from itertools import groupby

import numpy as np


class BlockPool:
    """The blocks of all layers' keys and values. Memory is taken when a block is first written."""

    def __init__(self, count: int, block_bytes: list[int]) -> None:
        """Make `count` blocks; each cache has its own bytes in one."""
        self._maps = [_memory(count * size) for size in block_bytes]
        self.memories = [np.frombuffer(memory, dtype=np.uint8).reshape(count, -1) for memory in self._maps]
        # The last one that was released is taken first, so that few are ever written.
        self._free = [*reversed(range(count))]
        self._uses: Counter[int] = Counter()
        self._written: set[int] = set()

    def take(self) -> int:
        """Return a block that nobody has."""
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
        """Give back the memory of all blocks that nobody has."""
        unused = sorted(self._written - self._uses.keys())
        self._written &= self._uses.keys()
        # Neighbors together: only whole pages can be given back.
        for _, run in groupby(enumerate(unused), key=lambda entry: entry[1] - entry[0]):
            numbers = [number for _, number in run]
            for memory, blocks in zip(self._maps, self.memories, strict=True):
                _give_back(memory, numbers[0] * blocks.shape[1], (numbers[-1] + 1) * blocks.shape[1])


class Blocks:
    """Blocks of the cache that hold the beginning of a sequence; free again when nobody has this object."""

    def __init__(self, pool: BlockPool, numbers: list[int]) -> None:
        self.numbers, self._pool = numbers, pool
        pool.share(numbers)

    def __del__(self) -> None:
        self._pool.release(self.numbers)


def _memory(size: int) -> mmap.mmap:
    """Return zeros that take memory when they are written."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)


def _give_back(memory: mmap.mmap, start: int, end: int) -> None:
    """Give back the whole pages between two bytes, where the system takes them."""
    start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end and hasattr(mmap, "MADV_DONTNEED"):
        memory.madvise(mmap.MADV_DONTNEED, start, end - start)
