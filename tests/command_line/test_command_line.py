"""The command line: overrides arrive as typed, and what is wrong with them is reported at once."""

import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from steps import command_line
from steps.errors import StepError, unknown
from steps.modes import MODES

ARRIVES = {
    "as mlflow run declares it": (["mode=onnx"], ["mode=onnx"]),
    "as mlflow run passes on an undeclared parameter": (
        ["--generation.temperature", "0.2"],
        ["generation.temperature=0.2"],
    ),
    "with an equals sign": (["--generation.top_k=5"], ["generation.top_k=5"]),
    "a negative value": (["--generation.top_k", "-5"], ["generation.top_k=-5"]),
    "a sweep": (["mode=pyfunc,onnx"], ["mode=pyfunc,onnx"]),
    "free text": (["prompting.system=Answer briefly, please."], ["prompting.system='Answer briefly, please.'"]),
    "a limit named by the user": (["promotion.limits.chrf.min=0.5"], ["++promotion.limits.chrf.min=0.5"]),
    "a flag that a sweep makes needless": (["--multirun", "mode=onnx"], ["mode=onnx"]),
}


@pytest.mark.parametrize(("arguments", "overrides"), ARRIVES.values(), ids=ARRIVES)
def test_arguments_become_overrides(arguments, overrides):
    assert command_line.parse(arguments) == ([], overrides)


VARIANTS = {
    "as conf/main.yaml has them": (
        "[[mode=onnx, precision=int4], [mode=pyfunc]]",
        [["mode=onnx", "precision=int4"], ["mode=pyfunc"]],
    ),
    "without spaces": ("[[mode=onnx],[mode=pyfunc]]", [["mode=onnx"], ["mode=pyfunc"]]),
    "in quotes": ("""[["mode=onnx"], ['mode=pyfunc']]""", [["mode=onnx"], ["mode=pyfunc"]]),
    "a variant of defaults": ("[[]]", [[]]),
    "free text": (
        """[["prompting.system=Be brief, please: it's ${x}"]]""",
        [["prompting.system=Be brief, please: it's ${x}"]],
    ),
}


@pytest.mark.parametrize("key", ["variants", "+variants", "--variants"])
@pytest.mark.parametrize(("text", "variants"), VARIANTS.values(), ids=VARIANTS)
def test_variants_are_typed_as_in_their_file(key, text, variants):
    _, overrides = command_line.parse([f"{key}={text}"])
    (job,) = command_line.expand(overrides)
    assert command_line.compose("main", [override.lstrip("+") for override in job]).variants == variants


@pytest.mark.parametrize(
    "text", ["", "null", "mode=onnx", "[mode=onnx]", "[[mode=onnx]", "[[1]]", "[[a: b]]", "{a: b}"]
)
def test_other_variants_are_refused_with_an_example(text):
    with pytest.raises(StepError) as refusal:
        command_line.parse([f"variants={text}"])
    assert str(refusal.value) == (
        "variants must be names such as onnx-int4-chat,pyfunc-fp32-chat, or a list of lists of overrides such as "
        f"[[mode=onnx], [mode=pyfunc]], got '{text}'."
    )


GLOBS = {
    "all options": ("mode=glob(*)", [f"mode={name}" for name in sorted(MODES)]),
    "some": ("mode=glob([o*,p*])", ["mode=onnx", "mode=openvino", "mode=pyfunc"]),
    "all but one": ("mode=glob(*,exclude=p*)", ["mode=llama_cpp", "mode=onnx", "mode=openvino", "mode=transformers"]),
    "one": ("mode=glob(t*)", ["mode=transformers"]),
}


@pytest.mark.parametrize(("override", "points"), GLOBS.values(), ids=GLOBS)
def test_a_glob_names_options_of_a_group(override, points):
    assert command_line.expand([override]) == [[point] for point in points]


NO_POINTS = (
    *("mode=choice()", "mode=glob(x*)", "mod=glob(*)"),
    *("generation.temperature=glob(*)", "generation.top_k=range(0,0)"),
)


@pytest.mark.parametrize("override", [*NO_POINTS, "generation.temperature=interval(0,1)"])
def test_a_sweep_without_points_is_refused(override):
    with pytest.raises(StepError, match=f"^'{re.escape(override)}' (has no value|cannot be swept): "):
        command_line.expand([override])


FLAGS = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--shell-completion", "-sc")


@pytest.mark.parametrize("arguments", [*([flag, "x"] for flag in FLAGS), ["--config-dir=x"]], ids=str)
def test_a_flag_of_hydra_that_is_not_supported_is_called_one(arguments):
    flag = arguments[0].partition("=")[0]
    with pytest.raises(StepError, match=f"^{flag} is a flag of Hydra that is not supported"):
        command_line.parse(arguments)


def test_hydra_flags_are_passed_on():
    assert command_line.parse(["--cfg=job", "-r", "--run"]) == (["--cfg", "job"], [])
    assert command_line.parse(["--cfg", "job", "mode=onnx"]) == (["--cfg", "job"], ["mode=onnx"])


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\r\n"), max_size=40))
@pytest.mark.parametrize("point", [0, 1])
def test_free_text_arrives_literally(point, text):
    """Commas, quotes, backslashes, shell syntax and interpolation: alone, and together with a sweep."""
    _, overrides = command_line.parse(["mode=pyfunc,onnx", "--prompting.system", text])
    config = command_line.compose("build", command_line.expand(overrides)[point])
    assert config.prompting.system == text


@pytest.mark.parametrize(
    "text", ["$(touch marker)", "`id`", "a; b", "${oc.env:HOME}", "\\${oc.env:HOME}", "it's \\'", "x\\", "{a: [b}"]
)
def test_free_text_is_never_executed_or_resolved(text):
    (job,) = command_line.expand(command_line.parse([f"prompting.system={text}"])[1])
    assert command_line.compose("build", job).prompting.system == text


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "an open ${ brace", "two\nlines", "3", "é: [", ""])
def test_free_text_is_written_to_yaml_literally(text):
    config = command_line.compose("build", [])
    config.prompting.system = text
    content = yaml.safe_load(command_line.to_yaml(config))
    assert content["prompting"] == {"name": "plain", "system": text, "examples": []}
    assert content["generation"]["temperature"] == 0.0


REFUSED = {
    "typo in a key": (
        "build",
        ["generation.temprature=0.2"],
        ["Unknown key 'generation.temprature'. Did you mean 'generation.temperature'? Available: generation."],
    ),
    "a key of another mode": (
        "build",
        ["mode=transformers", "mode.execution_provider=cuda"],
        ["mode.execution_provider is not a key of mode=transformers, it is a key of mode=onnx."],
    ),
    "a key of another mode in a sweep": (
        "build",
        ["mode=pyfunc,onnx", "mode.device=cpu"],
        ["mode.device is not a key of mode=onnx, it is a key of mode=pyfunc."],
    ),
    "a key of another model source": (
        "build",
        ["model.path=/models/phi-3"],
        ["model.path is not a key of the default model, it is a key of model=local."],
    ),
    "a key of another precision": (
        "build",
        ["mode=onnx", "precision.block_size=64"],
        ["precision.block_size is not a key of the default precision, it is a key of precision=int4, precision=int4_"],
    ),
    "a key of a precision that the mode does not read": (
        "build",
        ["mode=pyfunc", "precision=int8", "precision.block_size=64", "precision.is_symmetric=false"],
        [
            "precision.block_size is for mode=onnx, got 64 with mode=pyfunc: leave it out.",
            "precision.is_symmetric is for mode=onnx, got False with mode=pyfunc: leave it out.",
        ],
    ),
    "the name of a mode": ("build", ["mode.name=onnx"], ["mode.name must be one of pyfunc, got 'onnx'."]),
    "limit that is no number": (
        "register",
        ["++promotion.limits.chrf.min=x"],
        ["promotion.limits.chrf must be numbers, got 'x'."],
    ),
    "typo in a group": ("build", ["mod=onnx"], ["Unknown key 'mod'. Did you mean 'mode'?"]),
    "unknown mode": (
        "build",
        ["mode=onx"],
        ["Unknown mode 'onx'. Did you mean 'onnx'? Available: llama_cpp, onnx, openvino, pyfunc"],
    ),
    "unknown model": ("build", ["model=minature"], ["Unknown model 'minature'. Did you mean 'miniature'?"]),
    "unknown prompt set": ("evaluate", ["prompt_set=fact"], ["Unknown prompt_set 'fact'. Did you mean 'facts'?"]),
    "not a number": ("build", ["generation.temperature=warm"], ["generation.temperature: Value 'warm' of type 'str'"]),
    "out of range": (
        "build",
        ["generation.temperature=3"],
        ["generation.temperature must be at least 0 and at most 2, got 3.0."],
    ),
    "no number at all": ("build", ["generation.temperature=nan"], ["must be at least 0 and at most 2, got nan."]),
    "open end": ("build", ["generation.top_p=0"], ["generation.top_p must be above 0 and at most 1, got 0.0."]),
    "int4 where it is not offered": (
        "build",
        ["mode=pyfunc", "precision=int4"],
        [
            "precision=int4 is not offered by mode=pyfunc, which has fp32, bf16, int8. "
            "Modes that have int4: onnx, openvino, llama_cpp."
        ],
    ),
    "one point of a sweep": (
        "build",
        ["mode=onnx,transformers", "precision=int4"],
        ["precision=int4 is not offered by mode=transformers"],
    ),
    "interface": ("build", ["interface=cat"], ["interface must be one of chat, prompt, got 'cat'."]),
    "a folder that is not given": ("build", ["model=local"], ["model.path is needed: give -P model.path=…"]),
    "limit without a bound": (
        "register",
        ["++promotion.limits.chrf={}"],
        ["promotion.limits.chrf must have min, max or both, got neither."],
    ),
    "limits the wrong way round": (
        "register",
        ["++promotion.limits.chrf={min: 1, max: 0}"],
        ["promotion.limits.chrf.min must be at most its max 0, got 1."],
    ),
    "name of the registered model": (
        "register",
        ["registered_model=a/b"],
        ["without '/', ':', '?', quotes and line breaks, got 'a/b'."],
    ),
    "a registered model that could be a prompt": (
        "main",
        ["registered_model=phi3.prompting.plain"],
        ["registered_model must not begin with 'phi3.prompting.', which is for prompts, got 'phi3.prompting.plain'."],
    ),
    "names that MLflow does not take": (
        "build",
        ["prompting.name='a b'", "model.name=a.b"],
        [
            "prompting.name must be at most 100 letters from a to z, digits, '_' and '-', got 'a b'.",
            "model.name must be at most 100 letters from a to z, digits, '_' and '-', got 'a.b'.",
        ],
    ),
    "run of a variant in main": (
        "main",
        ["run_id=abc"],
        ["run_id is a key of evaluate; main scores all its variants."],
    ),
    "source of a prompt set": (
        "evaluate",
        ["prompt_set.source=csv", "prompt_set.over_context=cut"],
        ["prompt_set.source must be one of jsonl, datasets", "prompt_set.over_context must be one of refuse, skip"],
    ),
    "a dataset that is not given": (
        "register",
        ["prompt_set=dataset"],
        ["prompt_set.path is needed: give -P prompt_set.path=…"],
    ),
    "repeats and errors": (
        "evaluate",
        ["evaluate.repeats=0", "evaluate.max_errors=-1"],
        ["evaluate.repeats must be at least 1", "evaluate.max_errors must be at least 0"],
    ),
    "no variant": ("main", ["variants=[]"], ["variants must name at least one variant, such as [[mode=onnx]"]),
    "half a judge": ("evaluate", ["evaluate.judge.model=m"], ["evaluate.judge.address is needed for a judge"]),
    "no metric": ("evaluate", ["evaluate.metrics=[]"], ["evaluate.metrics must name at least one metric"]),
    "all at once": (
        "build",
        ["generation.top_k=-1", "generation.top_p=2", "interface=x"],
        ["generation.top_k must be", "generation.top_p must be", "interface must be"],
    ),
}


@pytest.mark.parametrize(("step_name", "overrides", "sentences"), REFUSED.values(), ids=REFUSED)
def test_every_fault_is_one_sentence(step_name, overrides, sentences):
    with pytest.raises(StepError) as refusal:
        command_line.check(step_name, command_line.expand(overrides))
    for sentence in sentences:
        assert any(sentence in fault for fault in refusal.value.faults), refusal.value.faults
    assert len(refusal.value.faults) == len(sentences)


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("mode=${oc.env:HOME}", "mode must be a plain value, got '${oc.env:HOME}'"),
        ("mode", "Expected key=value, got 'mode'."),
    ],
)
def test_an_argument_that_is_no_override_is_refused(argument, sentence):
    with pytest.raises(StepError) as refusal:
        command_line.parse([argument])
    assert sentence in str(refusal.value)


def test_an_unreadable_value_is_quoted_in_the_error():
    with pytest.raises(StepError, match="'mode=a;b' cannot be read"):
        command_line.expand(["mode=a;b"])


def test_a_later_override_replaces_an_earlier_one():
    assert command_line.expand(["mode=pyfunc", "mode=onnx"]) == [["mode=onnx"]]


def test_a_sweep_has_a_job_for_every_point():
    points = command_line.expand(["mode=pyfunc,onnx", "generation.temperature=choice(0,0.7)"])
    assert len(points) == 4
    assert ["mode=onnx", "generation.temperature=0.7"] in points


def test_an_unknown_name_is_answered_with_the_nearest_and_the_list():
    assert unknown("mode", "onx", ["pyfunc", "onnx"]) == (
        "Unknown mode 'onx'. Did you mean 'onnx'? Available: onnx, pyfunc."
    )
    assert unknown("mode", "zzz", []) == "Unknown mode 'zzz'. Available: none."


def test_faults_are_printed_without_a_traceback_and_exit_with_1(step):
    done = step("build", "mode=onx", "generation.top_q=1")
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: Unknown ") for line in lines)


def test_hydra_full_error_shows_the_traceback(step):
    done = step("build", "mode=onx", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
