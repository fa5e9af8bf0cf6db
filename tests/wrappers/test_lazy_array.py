"""The cache of the ONNX engine takes memory for what is written, also where each head writes a little."""

import mmap
from pathlib import Path

import numpy as np
import pytest

from steps.wrappers.engines.lazy_array import lazy_array


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not hasattr(mmap, "MADV_NOHUGEPAGE"), reason="no such pages here")
def test_the_first_tokens_of_every_head_take_little_memory():
    before = resident()
    array = lazy_array((2, 2, 4, 8, 4096, 64), np.dtype(np.float32))
    array[:, :, :, :, :16] = 1
    assert array.nbytes == 2**27
    assert resident() - before < 2**24
    assert array[1, 1, 3, 7, 15, 63] == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_an_array_is_an_array(dtype):
    assert lazy_array((2, 2, 0, 8, 0, 64), np.dtype(dtype)).size == 0
    array = lazy_array((2, 3), np.dtype(dtype))
    assert (array.shape, array.dtype, array.sum()) == ((2, 3), dtype, 0)
    assert np.may_share_memory(array[:, 1:], array)
    assert not np.may_share_memory(lazy_array((2, 3), np.dtype(dtype)), array)
