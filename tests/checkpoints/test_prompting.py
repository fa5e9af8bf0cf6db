"""Prompting is refused at build unless the checkpoint's chat template renders it."""

import json
import shutil

import pytest

from steps import command_line
from steps.checkpoints.checkpoint import Checkpoint, resolve
from steps.checkpoints.prompting import write_prompting
from steps.config.schema import Example, FolderModel, Prompting
from steps.errors import StepError
from steps.modes import get_mode
from steps.wrappers.tokenizer import ChatTokenizer
from tests.wrappers import checkpoints
from tests.wrappers.checkpoints import TEMPLATES

PLAIN, BRIEF = Prompting("plain", "", []), Prompting("brief", "Be brief.", [])
SHOTS = Prompting("few_shot", "", [Example("a?", "b")])
BOTH = Prompting("both", "Be brief.", [Example("a?", "b")])
USER = {"role": "user", "content": "hi"}
NO_SYSTEM = {"phi3_first", "phi4_reasoning"}


def _render(folder, prompting):
    write_prompting(folder, prompting)
    return ChatTokenizer(folder).render([USER])


@pytest.mark.parametrize("prompting", [BRIEF, SHOTS, BOTH], ids=lambda prompting: prompting.name)
@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - NO_SYSTEM - {"gemma"}))
def test_prompting_equals_the_same_messages_in_the_conversation(name, prompting, tmp_path):
    plain = checkpoints.write(tmp_path / "plain", template=TEMPLATES[name])
    system = [{"role": "system", "content": prompting.system}] if prompting.system else []
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}] if prompting.examples else []
    expected = ChatTokenizer(plain).render([*system, *turns, USER])
    assert _render(checkpoints.write(tmp_path / "preset", template=TEMPLATES[name]), prompting) == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_plain_prompting_changes_nothing(name, tmp_path):
    folder = checkpoints.write(tmp_path, template=TEMPLATES[name])
    expected = ChatTokenizer(folder).render([USER])
    assert _render(folder, PLAIN) == expected
    assert (folder / "chat_template.jinja").read_text(encoding="utf-8") == TEMPLATES[name]


@pytest.mark.parametrize("start", [" \n", "\n\n", "  a", "  {% if true %}a{% endif %}", "\ufeff"])
def test_start_of_a_template_is_kept(start, tmp_path):
    template = start + "{% for m in messages %}{{ m.content }};{% endfor %}"
    folder = checkpoints.write(tmp_path, template=template)
    plain = ChatTokenizer(folder).render([{"role": "system", "content": "Be brief."}, USER])
    assert _render(folder, BRIEF) == plain


REFUSED = {
    "no system role": ("phi3_first", BRIEF, "leaves out a message of role 'system'. prompting.system would be lost;"),
    "a fixed system message": ("phi4_reasoning", BOTH, "prompting.system and prompting.examples would be lost"),
    "a template that refuses it": ("gemma", BRIEF, "a conversation of system, user: System role not supported. prompt"),
    "no assistant role": ("{{ messages[-1].content }}", SHOTS, "leaves out a message of role 'user'. prompting.examp"),
    "no user role": ("fixed", PLAIN, "leaves out a message of role 'user'. A chat needs it."),
    "refused altogether": (
        "{{ raise_exception('no') }}",
        PLAIN,
        "refuses a conversation of user: no. A chat needs it.",
    ),
    "a syntax error": ("{% for %}", PLAIN, "cannot be used: the chat template cannot be read: Expected"),
    "no template": (None, PLAIN, "cannot be used: it has no chat template"),
}


@pytest.mark.parametrize(("template", "prompting", "words"), REFUSED.values(), ids=REFUSED)
def test_prompting_that_the_template_does_not_render_is_refused(template, prompting, words, tmp_path):
    folder = checkpoints.write(tmp_path / "checkpoint", template=TEMPLATES.get(template, template))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(StepError) as refusal:
        write_prompting(folder, prompting)
    assert words in str(refusal.value)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_broken_tokenizer_is_refused_in_one_sentence(tmp_path):
    folder = checkpoints.write(tmp_path, template=TEMPLATES["phi3"])
    (folder / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(StepError, match="The checkpoint's tokenizer cannot be used: "):
        write_prompting(folder, PLAIN)


BROKEN = {
    "tokenizer without a model": ("tokenizer.json", "{}", "tokenizer cannot be used: "),
    "template that is no text": (
        "chat_template.jinja",
        "\udcff",
        "tokenizer cannot be used: 'utf-8' codec can't decode",
    ),
    "templates without names": (
        "tokenizer_config.json",
        '{"chat_template": ["a"]}',
        "must be an object with name and te",
    ),
    "token without content": (
        "tokenizer_config.json",
        '{"added_tokens_decoder": {"3": {}}}',
        "used: KeyError: content.",
    ),
}


@pytest.mark.parametrize(("name", "content", "words"), BROKEN.values(), ids=BROKEN)
def test_broken_tokenizer_is_refused_before_an_export(tmp_path, name, content, words):
    template = None if "chat_template" in content else TEMPLATES["phi3"]
    folder = checkpoints.write(tmp_path, template=template)
    (folder / name).write_text(content, errors="surrogateescape")
    checkpoint, config = Checkpoint(folder, "huggingface", None, {}), command_line.compose("build", ["mode=onnx"])
    with pytest.raises(StepError) as refusal, get_mode("onnx").stage(checkpoint, config):
        pass
    assert words in str(refusal.value)


@pytest.mark.parametrize("mode", ["pyfunc", "onnx", "transformers"])
def test_build_refuses_a_system_prompt_that_would_be_lost(checkpoint, tmp_path, typed, mode):
    source = shutil.copytree(checkpoint.directory, tmp_path / "source")
    (source / "phi3_manifest.json").unlink()
    (source / "chat_template.jinja").write_text(TEMPLATES["phi3_first"])
    assert resolve(FolderModel(name="local", path=str(source)))
    built = typed("build", f"mode={mode}", "model=local", f"model.path={source}", "prompting=brief")
    assert built.returncode == 1
    assert "leaves out a message of role 'system'" in built.stderr + built.stdout
    assert "Traceback" not in built.stderr


def test_named_templates_of_a_configuration_are_staged(tmp_path):
    named = [{"name": "tool_use", "template": "B"}, {"name": "default", "template": TEMPLATES["phi3"]}]
    folder = checkpoints.write(tmp_path, chat_template=named)
    assert "Be brief." in _render(folder, BRIEF)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["chat_template"] == named
    assert checkpoints.rendered(checkpoints.reference(folder), [USER]) == ChatTokenizer(folder).render([USER])
