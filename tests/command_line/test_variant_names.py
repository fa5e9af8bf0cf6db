"""Names that tell variants apart, and the variants that main is narrowed to."""

import pytest

from steps import command_line
from steps.command_line import variant_name
from steps.errors import StepError
from steps.main import plan

NAMES = {
    "onnx-int4-chat": ["mode=onnx", "precision=int4"],
    "pyfunc-fp32-chat-brief": ["prompting=brief"],
    "pyfunc-fp32-chat-t1": ["generation=sampled", "generation.temperature=1"],
    "pyfunc-fp32-chat-t1-p1": ["generation.temperature=1"],
    "pyfunc-fp32-chat-max64": ["generation.max_tokens=64"],
    "pyfunc-fp32-chat-k5": ["generation.top_k=5"],
    "pyfunc-fp32-chat-cpu": ["mode.device=cpu"],
    "pyfunc-fp32-chat-batch4": ["mode.max_batch_size=4"],
    "onnx-int4-prompt-block64": ["mode=onnx", "precision=int4", "precision.block_size=64", "interface=prompt"],
    "pyfunc-fp32-chat-seed3": ["model.seed=3"],
    "pyfunc-fp32-chat-formal": ["prompting.name=formal", "prompting.system=Be formal."],
    "phi3_mini_4k-onnx-fp32-chat": ["mode=onnx", "model=phi3_mini_4k"],
}


@pytest.mark.parametrize(("name", "overrides"), NAMES.items(), ids=NAMES)
def test_a_name_says_what_differs_from_the_shipped_options(name, overrides):
    assert variant_name(command_line.compose("build", overrides)) == name


def test_another_system_prompt_is_another_name():
    texts = (["prompting=plain"], ["prompting.system=A"], ["prompting.system=B"], ["prompting=brief"])
    texts += (["prompting=brief", "prompting.system=A"],)
    names = [variant_name(command_line.compose("build", overrides)) for overrides in texts]
    assert len(set(names)) == len(names)
    assert names[0] == "pyfunc-fp32-chat"
    assert all("plain" not in name for name in names)
    assert names[1].startswith("pyfunc-fp32-chat-prompt-")
    assert names[4].startswith("pyfunc-fp32-chat-brief-")


ALL = [variant_name(command_line.compose("build", point)) for point in plan([])[1]]
NARROWED = {
    "a mode": (["mode=onnx"], [name for name in ALL if name.startswith("onnx")]),
    "two modes": (["mode=onnx,transformers"], [name for name in ALL if name.startswith(("onnx", "transformers"))]),
    "a precision": (["precision=int4"], [name for name in ALL if "int4" in name]),
    "a mode and a precision": (["mode=onnx", "precision=fp32"], ["onnx-fp32-chat"]),
    "a prompting": (["prompting=brief"], ["pyfunc-fp32-chat-brief"]),
    "names": (["variants=onnx-int4-chat,pyfunc-fp32-chat"], ["onnx-int4-chat", "pyfunc-fp32-chat"]),
    "names in a list": (["variants=[onnx-int4-chat, pyfunc-fp32-chat]"], ["onnx-int4-chat", "pyfunc-fp32-chat"]),
    "a preset": (["variants=quick"], ["pyfunc-fp32-chat", "onnx-int4-chat"]),
    "a preset and a name in it": (["variants=quick,onnx-int4-chat"], ["pyfunc-fp32-chat", "onnx-int4-chat"]),
    "a preset with a setting": (
        ["variants=quick", "generation.max_tokens=8"],
        ["pyfunc-fp32-chat-max8", "onnx-int4-chat-max8"],
    ),
    "a choice that none has": (
        ["variants=quick", "prompting=few_shot"],
        ["pyfunc-fp32-chat-few_shot", "onnx-int4-chat-few_shot"],
    ),
}


@pytest.mark.parametrize(("overrides", "names"), NARROWED.values(), ids=NARROWED)
def test_main_builds_the_variants_that_are_asked_for(overrides, names):
    _, overrides = command_line.parse(overrides)
    assert [variant_name(command_line.compose("build", point)) for point in plan(overrides)[1]] == names


def test_an_unknown_variant_is_refused_with_the_nearest_name():
    with pytest.raises(StepError, match=r"Unknown variant 'onnx-int4'\. Did you mean 'onnx-int4-chat'\?"):
        plan(command_line.parse(["variants=onnx-int4"])[1])
