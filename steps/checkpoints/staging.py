"""Stage the files that go into a logged model: a checkpoint, its prompting, and its precision.

A staged folder is temporary and has hard links to the checkpoint's weights where the file system lets it
(MLflow does not log through symbolic ones), so that nothing is copied needlessly. An export to ONNX is made
once and kept in the cache. The prompting (system prompt and few-shot examples) is written into the chat template:
whoever renders a conversation with this tokenizer, in whichever mode, gets it.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from steps.checkpoints import exported
from steps.checkpoints.cache import cached
from steps.checkpoints.checkpoint import FILES, Checkpoint
from steps.config.schema import BuildConfig, Precision, Prompting
from steps.digests import digest
from steps.errors import StepError
from steps.output import suppress_output
from steps.wrappers import manifest as whole

# What decides over an export, beside the checkpoint and the precision.
EXPORTERS = ("onnxruntime-genai", "onnx", "onnx-ir", "torch", "transformers")
_PRESET = """\
{%%- set given = messages -%%}
{%%- if given and given[0]['role'] == 'system' -%%}
{%%- set opening = [given[0]] -%%}{%%- set given = given[1:] -%%}
{%%- else -%%}
{%%- set opening = %s -%%}
{%%- endif -%%}
{%%- set messages = opening + %s + given -%%}
"""


@contextlib.contextmanager
def staged(checkpoint: Checkpoint, config: BuildConfig) -> Iterator[Path]:
    """A temporary folder with everything that the variant's model needs, in its mode's layout."""
    _check_layout(checkpoint, config)
    exporting = config.mode.name == "onnx" and checkpoint.layout == "huggingface"
    source = _exported(checkpoint, config.precision) if exporting else checkpoint.directory
    with TemporaryDirectory(prefix="phi3-") as temporary:
        folder = _linked(source, Path(temporary) / "checkpoint")
        set_prompting(folder, config.prompting)
        if config.mode.name != "onnx" and config.precision.name == "bf16":
            folder = _narrow(folder, Path(temporary) / "bf16")
        whole.write_manifest(folder)
        yield folder


def set_prompting(folder: Path, prompting: Prompting) -> None:
    """Put the system prompt (unless the conversation has one) and the examples into the chat template."""
    template = _chat_template(folder)
    if prompting.system or prompting.examples:
        system = [{"role": "system", "content": prompting.system}] if prompting.system else []
        turns = [
            {"role": role, "content": getattr(example, role)}
            for example in prompting.examples
            for role in ("user", "assistant")
        ]
        template = _PRESET % (_literal(system), _literal(turns)) + template
    _replace(folder / "chat_template.jinja", template)


def _literal(messages: list[dict[str, str]]) -> str:
    """Messages as a literal of the template language, for which JSON's lists, objects and strings do."""
    # Letters stay as they are: the template language would read JSON's escapes of an emoji as two surrogates.
    return json.dumps(messages, ensure_ascii=False)


def _chat_template(folder: Path) -> str:
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    if not isinstance(template, str):
        raise StepError("The checkpoint has no chat template (chat_template.jinja, or in tokenizer_config.json).")
    return template


def _check_layout(checkpoint: Checkpoint, config: BuildConfig) -> None:
    if checkpoint.layout == "genai" and config.mode.name != "onnx":
        raise StepError(
            f"'{checkpoint.directory}' has ONNX GenAI layout, which is for mode=onnx, got mode={config.mode.name}."
        )
    if checkpoint.layout == "genai" and (kept := exported.precision(checkpoint.directory)) != config.precision.name:
        # What is exported already keeps its numbers, and a variant must not bear another name.
        raise StepError(
            f"The weights of '{checkpoint.directory}' are {kept}, got precision={config.precision.name}. Give "
            f"precision={kept} if the mode has it, or the checkpoint in Hugging Face layout."
        )


def _linked(source: Path, folder: Path) -> Path:
    """A new folder with what a checkpoint may hold, less where its own code would be loaded from."""
    folder.mkdir()
    for pattern in FILES:
        for file in source.glob(pattern):
            _link(file, folder / file.name)
    _drop_remote_code(folder)
    return folder


def _link(file: Path, target: Path) -> None:
    """A hard link to a file, or a copy on another file system."""
    try:
        os.link(file.resolve(), target)
    except OSError:
        shutil.copyfile(file, target)


def _replace(file: Path, text: str) -> None:
    """Write a file of a staged folder; never through the link into the checkpoint."""
    file.unlink(missing_ok=True)
    file.write_text(text, encoding="utf-8")


def _drop_remote_code(folder: Path) -> None:
    """Forget where a checkpoint would have its own code loaded from: transformers has Phi-3's."""
    for name in ("config.json", "tokenizer_config.json"):
        file = folder / name
        if file.is_file() and "auto_map" in (content := json.loads(file.read_text(encoding="utf-8"))):
            del content["auto_map"]
            _replace(file, json.dumps(content, indent=2))


def _narrow(folder: Path, target: Path) -> Path:
    """Save the weights as bf16, so that the model is half as large on disk too."""
    import torch
    from transformers import AutoModelForCausalLM

    with suppress_output():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, trust_remote_code=False)
        model.save_pretrained(target)
    for file in folder.iterdir():
        if not (target / file.name).exists() and not file.match("*.safetensors*"):
            _link(file, target / file.name)
    return target


def _exported(checkpoint: Checkpoint, precision: Precision) -> Path:
    """The checkpoint in ONNX GenAI layout, kept in the cache: variants that differ in other things share an export."""
    made_of = [checkpoint.sha256, _options(precision), [version(package) for package in EXPORTERS], whole.MANIFEST]

    def export(target: Path) -> None:
        with TemporaryDirectory(prefix="phi3-") as temporary:
            _export(_linked(checkpoint.directory, Path(temporary) / "checkpoint"), target, precision)

    return cached(f"onnx-{precision.name}-{digest(made_of)[:16]}", export)


def _export(folder: Path, target: Path, precision: Precision) -> None:
    """Export to ONNX with ONNX Runtime GenAI's model builder."""
    with suppress_output(), TemporaryDirectory(prefix="phi3-") as cache:
        from onnxruntime_genai.models import builder

        arguments = ("", str(folder), str(target), precision.name, "cpu", cache)
        builder.create_model(*arguments, **builder.parse_extra_options(*arguments, _options(precision)))


def _options(precision: Precision) -> list[str]:
    """What the model builder is told; it does not look at one that it does not know."""
    offline = ["hf_remote=false", "hf_token=false"]
    if precision.name != "int4":
        return offline
    return [*offline, f"block_size={precision.block_size}", f"accuracy_level={precision.accuracy_level}"]
