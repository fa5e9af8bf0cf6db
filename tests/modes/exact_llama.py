"""llama.cpp with keys and values in 32 bits, so that its logits can be held against those of transformers.

By itself it keeps 16 bits, which is faster, and changes the logits of random weights by a few hundredths.
"""

import contextlib

import pytest

from steps.modes import get_mode

NEEDS_LLAMA_CPP = (
    pytest.mark.service,
    pytest.mark.skipif(bool(get_mode("llama_cpp").lacking), reason="pip install llama-cpp-python gguf"),
)


@contextlib.contextmanager
def exact_llama():
    """Have every context that is made in the block compute exactly."""
    import llama_cpp

    original = llama_cpp.llama_context_default_params

    def exact():
        settings = original()
        settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        return settings

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp, "llama_context_default_params", exact)
        yield
