"""Fidelity: how far variants are from the least quantised one, on its own answers."""

import mlflow
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr

from steps import build, command_line
from steps.errors import StepError
from steps.evaluation import fidelity, prompt_set, ruler, scorecard
from steps.evaluation.asking import Asker
from steps.promotion.candidates import to_candidate
from steps.promotion.missing_scorecard import quality_metrics
from steps.promotion.rank import faults_of
from steps.store.names import metric_key
from steps.store.variants import find_variants
from tests.support import make_row, make_variant, write_prompt_set

ROWS = [
    make_row("spain"),
    make_row("italy", "What is the capital of Italy?", "Rome"),
    make_row("thanks", "Which city is the capital of France? Thank you.", "Paris"),
]
METRICS = "evaluate.metrics=[exact_match,fidelity]"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Keep no distributions of another test."""
    monkeypatch.setattr(fidelity, "cache_directory", lambda: tmp_path / "cache")


def _by_name():
    return {variant.name: variant for variant in find_variants(mlflow.MlflowClient(), "0")}


def _build(checkpoint, *overrides):
    build.build(command_line.compose("build", ["mode=onnx", "check=false", *overrides]), checkpoint)


@pytest.mark.slow
def test_a_variant_is_compared_with_the_least_quantised_one(checkpoint, evaluate, tmp_path):
    override, sha256 = write_prompt_set(tmp_path / "fidelity.jsonl", ROWS)
    _build(checkpoint, "precision=int4")
    assert evaluate(override, METRICS).returncode == 0
    alone = scorecard.read(_by_name()["onnx-int4-chat"], sha256)
    assert [alone.scores[name] for name in ("fidelity/kl", "fidelity/flips")] == [[0.0] * 3] * 2

    (file,) = list((tmp_path / "cache").rglob("*.npz"))[:1]
    file.write_bytes(file.read_bytes()[:-100])
    damaged = evaluate(override, METRICS, f"run_id={_by_name()['onnx-int4-chat'].run_id}")
    assert damaged.returncode == 1
    assert "in the cache was damaged (BadZipFile) and is removed: evaluate again to make it anew." in damaged.stderr

    # A better reference: its own fidelity is exactly 0, and the other is compared anew, with its kept answers.
    _build(checkpoint)
    done = evaluate(override, METRICS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("from its kept answers") == 1
    cards = {name: scorecard.read(variant, sha256) for name, variant in _by_name().items()}
    exact, rough = cards["onnx-fp32-chat"], cards["onnx-int4-chat"]
    assert rough.answers == alone.answers
    for name in ("fidelity/kl", "fidelity/flips"):
        assert exact.scores[name] == [0.0] * 3
        assert exact.metrics[f"{name}/mean"] == 0
    assert (exact.metrics["fidelity/kl/ci_low"], exact.metrics["fidelity/kl/ci_high"]) == (0, 0)
    assert min(exact.scores["fidelity/first_divergence"]) > 1
    assert min(rough.scores["fidelity/kl"]) > 0
    low, mean, high = (rough.metrics[f"fidelity/kl/{key}"] for key in ("ci_low", "mean", "ci_high"))
    assert 0 <= low < mean < high
    assert "already scored" in evaluate(override, METRICS).stdout
    _check_limits(override)


def _check_limits(override):
    rows = prompt_set.load(command_line.compose("evaluate", [override]).prompt_set)
    limits = ["++promotion.limits={fidelity/kl: {max: 1e-12}, fidelity/flips: {max: 0.5}}"]
    policy = command_line.compose("register", limits).promotion
    policy.metric, policy.prefer = "exact_match", []
    faults = {name: faults_of(to_candidate(one, rows, policy), policy) for name, one in _by_name().items()}
    assert faults["onnx-fp32-chat"] == []
    assert "fidelity/kl" in faults["onnx-int4-chat"][0]
    assert "is above 1e-12" in faults["onnx-int4-chat"][0]


@pytest.mark.slow
def test_an_interrupted_comparison_continues_and_is_the_same_to_the_byte(store, evaluate, tmp_path, monkeypatch):
    override, sha256 = write_prompt_set(tmp_path / "fidelity.jsonl", ROWS)
    words = [override, METRICS, f"run_id={store.sampled.run_id}"]
    monkeypatch.setattr(fidelity, "BATCH", 2)
    counts, score = [], Asker.score

    def counting(self, pairs, whole_vocabulary=False):
        counts.append(len(pairs))
        if len(counts) in (2, 5):
            raise KeyboardInterrupt
        return score(self, pairs, whole_vocabulary)

    monkeypatch.setattr(Asker, "score", counting)
    # It dies in the reference, in the variant, and then it is done.
    assert [evaluate(*words).returncode for _ in range(3)] == [130, 130, 0]
    assert counts == [2, 1, 1, 2, 1, 1]
    resumed = store.scorecard_bytes(store.sampled, sha256)
    assert evaluate(*words).returncode == 0
    assert counts[6:] == [2, 1]  # the reference is in the cache
    assert store.scorecard_bytes(store.sampled, sha256) == resumed
    # The reference is the greedy variant of the same weights.
    assert scorecard.read(store.sampled, sha256).scores["fidelity/kl"] == [0.0] * 3


def test_kl_flips_and_first_divergence_are_those_of_the_definitions():
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 7, 50))
    logits[1, :4] = logits[0, :4] + 0.01 * random.normal(size=(4, 50))
    logits[1, :4, 0] = logits[0, :4, 0] = 9
    theirs, ours = (log_softmax(each, axis=1).astype(np.float32) for each in logits)
    values = fidelity.compare(theirs, ours)
    expected = rel_entr(np.exp(theirs.astype(float)), np.exp(ours.astype(float))).sum(axis=1).mean()
    assert values["fidelity/kl"] == pytest.approx(expected, rel=1e-6)
    assert values["fidelity/flips"] == np.mean(theirs.argmax(axis=1) != ours.argmax(axis=1)) > 0
    assert values["fidelity/first_divergence"] == 4
    assert list(fidelity.compare(theirs, theirs).values()) == [0, 0, 7]
    with pytest.raises(ValueError, match="the reference has 50 tokens, the variant 49"):
        fidelity.compare(theirs, ours[:, 1:])


def _references(*variants, run_id=None):
    chosen = fidelity.references(None, variants, run_id)
    return {variant.name: chosen[variant.model_id].name for variant in variants if variant.model_id in chosen}


def _variant(name, checkpoint="c", **fields):
    return make_variant(name=name, model_id=name, tags={"phi3.checkpoint_sha256": checkpoint}, **fields)


def test_the_reference_is_the_least_quantised_greedy_variant_of_the_checkpoint_and_prompting(monkeypatch):
    monkeypatch.setattr(fidelity.integrity, "missing", lambda _, variant: ["lost"] if variant.name == "a-lost" else [])
    variants = [
        *(_variant("int4", precision="int4"), _variant("int8", precision="int8")),
        *(_variant("fp32"), _variant("fp32-torch", mode="pyfunc"), _variant("a-lost"), _variant("a-t1", temperature=1)),
        _variant("brief", precision="int4", overrides=["prompting=brief"]),
        _variant("other", checkpoint="d", precision="int8"),
        _variant("other-t1", checkpoint="e", temperature=1),
    ]
    least = dict.fromkeys(["int4", "int8", "fp32", "fp32-torch", "a-lost", "a-t1"], "fp32")
    assert _references(*variants) == least | {"brief": "brief", "other": "other"}
    measure = ruler.make(command_line.compose("evaluate", [METRICS]))
    sentence = "no greedy variant of its checkpoint and prompting can be its reference"
    assert measure.left_out(variants[-1]) == {fidelity.FIDELITY: sentence}
    assert measure.metrics_of(variants[-1]) == ("exact_match",)


def test_a_named_reference_is_that_of_all_and_must_be_greedy(monkeypatch):
    named = {"r": _variant("fp32"), "s": _variant("t1", temperature=1)}
    monkeypatch.setattr(fidelity, "variant_of_run", lambda _, run_id: named[run_id])
    assert _references(_variant("a"), _variant("b", checkpoint="d"), run_id="r") == {"a": "fp32", "b": "fp32"}
    with pytest.raises(StepError, match=r"evaluate\.reference must be the run of a greedy variant .* got t1\."):
        _references(_variant("a"), run_id="s")


def test_a_limit_of_fidelity_is_computed_by_the_metric_fidelity():
    policy = command_line.compose("register", ["++promotion.limits={fidelity/kl: {max: 0.1}}"]).promotion
    assert metric_key("fidelity/kl") == "fidelity/kl/mean"
    assert quality_metrics(policy) == ("answer_match", "fidelity")
