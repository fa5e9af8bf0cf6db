"""Chat templates are rendered to the letter as transformers renders them, or refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.wrappers.chat_template import ChatTemplate, TemplateRefusal
from steps.wrappers.tokenizer import ChatTokenizer
from tests.wrappers import checkpoints
from tests.wrappers.checkpoints import TEMPLATES

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": " What is 1 < 2 & 'é'? "}
ASSISTANT = {"role": "assistant", "content": "<b>True</b>\n"}
CONVERSATIONS = [[USER], [SYSTEM, USER], [USER, ASSISTANT, USER], [SYSTEM, USER, ASSISTANT, USER]]


def _ours(tokenizer, messages):
    """Return the text of a conversation, or None if the template refuses it."""
    try:
        return tokenizer.render(messages)
    except TemplateRefusal:
        return None


def _theirs(tokenizer, messages):
    try:
        return checkpoints.rendered(tokenizer, messages)
    except Exception:
        return None


CONTENT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=40) | st.sampled_from(
    ["<think>a</think>b", "{{ 1 }}", "\r\n", "  a  ", "\"<&>'"],
)


@pytest.mark.parametrize("name", TEMPLATES)
def test_random_conversations_are_rendered_as_transformers_does(name, tmp_path):
    folder = checkpoints.write(tmp_path, template=TEMPLATES[name])
    ours, theirs = ChatTokenizer(folder), checkpoints.reference(folder)
    rendered = []

    @settings(max_examples=120, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), CONTENT), min_size=1, max_size=5))
    def check(turns):
        messages = [{"role": role, "content": content} for role, content in turns]
        expected = _theirs(theirs, messages)
        assert _ours(ours, messages) == expected
        rendered.append(expected is not None)
        if expected is not None:
            ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            assert ours.encode_chat(messages) == ids

    check()
    assert any(rendered)


LANGUAGE = {
    "tojson does not escape": "{{ messages | tojson }}",
    "tojson with arguments": "{{ messages | tojson(indent=2, sort_keys=true, ensure_ascii=true) }}",
    "tojson with separators": "{{ {'b': 1, 'a': [1, 2]} | tojson(separators=(',', ':')) }}",
    "tojson by position": "{{ {'a': 'é'} | tojson(true, 4) }}",
    "nothing is escaped": "{{ messages[0].content }}",
    "strftime_now": "{{ strftime_now('%Y') }}",
    "break and continue": "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "generation without white space": "a\n  {%- generation -%}  {{ messages[0].role }}  {%- endgeneration -%}\nb",
    "generation is a scope": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "generation in macros": "{% macro f(m) %}{% generation %}{{ m }}{% endgeneration %}{% endmacro %}{{ f(messages) }}",
    "blocks are trimmed": "a\n  {% if true %}\nb\n  {% endif %}\nc\n\n",
    "one newline at the end": "a\n",
    "two newlines at the end": "a\n\n",
    "windows newlines": "a\r\n{% if true %}\r\nb{{ '\r\n' }}{% endif %}\r\n",
    "a byte order mark": "\ufeff{{ messages[0].content }}",
    "tools": "{{ tools is none }} {{ tools is defined }} {{ documents is none }} {{ custom_tools is defined }}",
    "a token without a value": "{{ sep_token is defined }}[{{ sep_token }}]{{ cls_token is defined }}",
    "tokens": "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ image_token }}",
    "no such field": "{{ messages[0].tool_calls }}[{{ messages[0]['name'] }}]{{ messages[0].name is defined }}",
    "namespace": "{% set ns = namespace(a=1) %}{% for m in messages %}{% set ns.a = ns.a + 1 %}{% endfor %}{{ ns.a }}",
    "python's methods": "{{ messages[0].content.strip().split('1')[0].upper() }}{{ messages[0].items() | list }}",
    "a list cannot be changed": "{{ messages.append(1) }}",
    "attributes of Python are hidden": "{{ ''.__class__ }}",
    "an undefined value": "{{ nothing.at.all }}",
    "a fault of the template": "{{ messages[0].content + 1 }}",
    "a huge range": "{{ range(1000000) | length }}",
    "nothing at all": "",
}


@pytest.mark.parametrize("source", LANGUAGE.values(), ids=LANGUAGE)
def test_template_language_is_that_of_transformers(source, tmp_path):
    folder = checkpoints.write(tmp_path, template=source, image_token="<s>")
    ours, theirs = ChatTokenizer(folder), checkpoints.reference(folder)
    for messages in CONVERSATIONS:
        assert _ours(ours, messages) == _theirs(theirs, messages)


A, B = "A{{ bos_token }}\n", "B"
NAMED = [{"name": "tool_use", "template": B}, {"name": "default", "template": A}]
SOURCES = {
    "in the configuration": ({"chat_template": A}, {}),
    "a list": ({"chat_template": NAMED}, {}),
    "named templates": ({"chat_template": {"default": A, "rag": B}}, {}),
    "a file": ({}, {"chat_template.jinja": A}),
    "a file before the configuration": ({"chat_template": B}, {"chat_template.jinja": A}),
    "a file with others": ({}, {"chat_template.jinja": A, "additional_chat_templates/tool_use.jinja": B}),
    "a file without characters": ({"chat_template": A}, {"chat_template.jinja": ""}),
}


@pytest.mark.parametrize(("config", "files"), SOURCES.values(), ids=SOURCES)
def test_template_is_found_where_transformers_finds_it(config, files, tmp_path):
    folder = checkpoints.write(tmp_path, **config)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    assert ChatTokenizer(folder).render([USER]) == checkpoints.rendered(checkpoints.reference(folder), [USER])


TOKEN = {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False, "rstrip": False}
TOKENS = {
    "null": {"bos_token": None, "pad_token": None},
    "objects": {"bos_token": TOKEN, "eos_token": TOKEN | {"content": "</s>"}},
    "all of them": {"sep_token": "<|end|>", "cls_token": "<s>", "mask_token": "<|user|>"},
    "of the model": {"image_token": "<|end|>", "extra_special_tokens": {"audio_token": "<|user|>"}},
    "a switch that is no token": {"add_bos_token": True, "add_eos_token": False},
}
NAMES = ["bos", "eos", "unk", "sep", "pad", "cls", "mask", "image", "audio", "add_bos", "add_eos"]
SHOW = "".join(f"{{{{ {name}_token is defined }}}} {{{{ {name}_token }}}}," for name in NAMES)


@pytest.mark.parametrize("config", TOKENS.values(), ids=TOKENS)
def test_named_tokens_are_those_of_transformers(config, tmp_path):
    folder = checkpoints.write(tmp_path, template=SHOW, **config)
    assert ChatTokenizer(folder).render([USER]) == checkpoints.rendered(checkpoints.reference(folder), [USER])


def test_special_tokens_map_comes_first_in_the_older_layout(tmp_path):
    folder = checkpoints.write(tmp_path, template=SHOW)
    content = {"bos_token": TOKEN | {"content": "<|user|>"}, "eos_token": "</s>"}
    del content["bos_token"]["__type"]
    (folder / "special_tokens_map.json").write_text(json.dumps(content))
    rendered = ChatTokenizer(folder).render([USER])
    assert rendered.startswith("True <|user|>,True </s>,")
    assert rendered == checkpoints.rendered(checkpoints.reference(folder), [USER])


def test_padding_of_the_tokenizer_names_its_token(tmp_path):
    tokenizer = checkpoints.byte_level()
    tokenizer.enable_padding(pad_id=2, pad_token="</s>")
    folder = checkpoints.write(tmp_path, tokenizer, SHOW)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTokenizer(folder).render([USER]) == checkpoints.rendered(checkpoints.reference(folder), [USER])


REFUSALS = {
    "by its own words": (TEMPLATES["gemma"], [SYSTEM, USER], "System role not supported"),
    "by the order of roles": (TEMPLATES["llama2"], [USER, USER], "Conversation roles must alternate user/assistant"),
    "with a content": ("{{ raise_exception('No ' + messages[0].content) }}", [USER], "No …"),
    "because of a content": (
        "{% if 'é' in messages[0].content %}{{ raise_exception('Bad: ' + messages[0].content) }}{% endif %}",
        [USER],
        "Bad: …",
    ),
    "with a long message": ("{{ raise_exception('long ' * 1000) }}", [USER], ("long " * 60)),
    "by an error of Python": ("{{ 1 + messages[0].content }}", [USER], "it raises TypeError"),
    "by an undefined value": ("{{ messages[5].content }}", [USER], "list object has no element 5"),
}


@pytest.mark.parametrize(("source", "messages", "expected"), REFUSALS.values(), ids=REFUSALS)
def test_refusal_has_the_words_of_the_template_but_no_content(source, messages, expected):
    with pytest.raises(TemplateRefusal) as refusal:
        ChatTemplate(source, {"bos_token": "<s>"}).render(messages)
    assert str(refusal.value).startswith(expected)
    assert len(str(refusal.value)) <= 300
    assert USER["content"] not in str(refusal.value)


LEFT_OUT = {
    "no system role": ("phi3_first", "system user", 0),
    "a fixed system message": ("phi4_reasoning", "system user", 0),
    "rendered": ("phi3", "system user assistant user", None),
    "only the last system message": ("deepseek", "system system user", 0),
    "system later": ("deepseek", "user assistant system user", None),
    "refused altogether": ("gemma", "system user", None),
    "in the last user message": ("mistral", "system user assistant user", None),
    "a message of the assistant": ("phi3_first", "user assistant user", None),
    "trimmed": ("llama3", "system user", None),
    "in the middle": ("phi3_first", "user assistant system user", 2),
}


@pytest.mark.parametrize(("name", "roles", "expected"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_message_that_the_template_leaves_out_is_found(name, roles, expected):
    template = ChatTemplate(TEMPLATES[name], {"bos_token": "<s>", "eos_token": "</s>"})
    assert template.unrendered(roles.split()) == expected


@pytest.mark.parametrize(
    "filter", ["upper", "title", "trim", "tojson", "escape", "reverse | reverse", "replace('a', 'b')"]
)
def test_message_that_the_template_changes_is_not_left_out(filter):
    template = ChatTemplate(f"{{% for m in messages %}}{{{{ m.content | {filter} }}}}{{% endfor %}}", {})
    assert template.unrendered(["system", "user"]) is None


def test_long_conversation_is_searched_in_one_pass():
    roles = ["user", "assistant"] * 5000 + ["user"]
    template = ChatTemplate("{% for m in messages %}{% if not loop.last %}{{ m.content }}{% endif %}{% endfor %}", {})
    assert template.unrendered(roles) == len(roles) - 1


NO_TEMPLATE = {
    "none": ({}, {}, "it has no chat template"),
    "no default": ({"chat_template": NAMED[:1]}, {}, "it has chat templates named tool_use, but none named default"),
    "a broken one": ({}, {"chat_template.jinja": "a\n{% if %}"}, "the chat template cannot be read: Expected an exp"),
}


@pytest.mark.parametrize(("config", "files", "words"), NO_TEMPLATE.values(), ids=NO_TEMPLATE)
def test_unusable_template_is_named(config, files, words, tmp_path):
    folder = checkpoints.write(tmp_path, **config)
    for name, content in files.items():
        (folder / name).write_text(content)
    tokenizer = ChatTokenizer(folder)
    with pytest.raises(ValueError, match=words):
        tokenizer.render([USER])
    assert tokenizer.control_token_in("<|end|>") == "<|end|>"
