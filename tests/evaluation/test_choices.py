"""Choice questions: rows with `choices` are scored by the likelihood of each, as lm-evaluation-harness does."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest

from steps import build, command_line
from steps.errors import StepError
from steps.evaluation import kept_answers, likelihoods, prompt_set, ruler, scorecard, scores, scoring
from steps.evaluation.asking import Asker
from steps.evaluation.journal import Journal
from steps.evaluation.metric_loading import FIDELITY
from steps.modes.wrapper import score_tokens
from steps.promotion import smoke
from steps.promotion.candidates import to_candidate
from steps.store.names import more_is_better
from steps.store.variants import find_variants
from tests.modes.test_seam import echo  # noqa: F401  a fixture
from tests.support import make_row, write_prompt_set

LONG = "a town that nobody knows by its name"
CAPITALS = ["Madrid", "Rome", "Paris", "Málaga", LONG]
COUNTRIES = {"Spain": "Madrid", "Italy": "Rome", "France": "Paris", "Peru": LONG, "Norway": "Málaga"}
ROWS = [
    make_row(f"{place} {country}", text.format(country), capital, choices=CAPITALS[:: 1 - 2 * (place % 2)])
    for country, capital in COUNTRIES.items()
    for place, text in enumerate(("What is the capital of {}?", "Which city is the capital of {}?", "{}: its capital?"))
]
ROWS.append(make_row("two", "Is it Paris or Rome?", ["Paris", "Rome", "either"], choices=["Rome", "Paris", "none"]))
ONLY = "evaluate.metrics=[choice_match,choice_match_norm]"
WITH_PERPLEXITY = "evaluate.metrics=[choice_match,choice_match_norm,perplexity]"


@pytest.fixture
def chosen_rows(tmp_path):
    """Return the override of a prompt set with choices, and its digest."""
    return write_prompt_set(tmp_path / "choices.jsonl", ROWS)


@pytest.fixture(scope="module")
def harness(checkpoint):
    """Compute lm-evaluation-harness's acc, acc_norm and acc_bytes, and perplexity, from transformers' own logits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.directory)
    model = AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=torch.float32).eval()

    def loglikelihood(context, continuation):
        whole = tokenizer(context + continuation, add_special_tokens=False, return_tensors="pt").input_ids
        length = len(tokenizer(context, add_special_tokens=False).input_ids)
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(input_ids=whole).logits[0, :-1], dim=-1)
        return float(logprobs.gather(1, whole[0, 1:, None])[length - 1 :].sum())

    def perplexity(row):
        context = _context(tokenizer, row)
        targets = row["target"] if isinstance(row["target"], list) else [row["target"]]
        length = len(tokenizer(context, add_special_tokens=False).input_ids)
        tokens = [len(tokenizer(context + target, add_special_tokens=False).input_ids) - length for target in targets]
        return min(
            np.exp(-loglikelihood(context, target) / count) for target, count in zip(targets, tokens, strict=True)
        )

    def encode_pair(context, continuation):
        """As lm-evaluation-harness does, move the spaces that a context ends with."""
        spaces = len(context) - len(context.rstrip())
        return (context[:-spaces], context[-spaces:] + continuation) if spaces else (context, continuation)

    def process_results(row):
        context = _context(tokenizer, row)
        choices, targets = row["choices"], row["target"] if isinstance(row["target"], list) else [row["target"]]
        gold = [choices.index(target) for target in targets if target in choices]
        lls = np.array([loglikelihood(*encode_pair(context, choice)) for choice in choices])
        lengths = [np.array([1.0 for _ in choices]), np.array([float(len(choice)) for choice in choices])]
        lengths.append(np.array([float(len(choice.encode("utf-8"))) for choice in choices]))
        return lls, [1.0 if np.argmax(lls / length) in gold else 0.0 for length in lengths]

    return SimpleNamespace(process_results=process_results, perplexity=perplexity)


def _context(tokenizer, row):
    messages = [{"role": "user", "content": row["prompt"]}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def _check_against(harness, variants, sha256, rows):
    expected = [harness.process_results(row) for row in ROWS]
    for variant in variants:
        sums = likelihoods.table(likelihoods.read(variant, sha256), rows, "choices")
        for ours, (theirs, _) in zip(sums, expected, strict=True):
            assert [one[0] for one in ours] == pytest.approx(theirs, abs=1e-3)
        card = scorecard.read(variant, sha256)
        assert card.scores["choice_match"] == [results[0] for _, results in expected]
        assert card.scores["choice_match_norm"] == [results[1] for _, results in expected]
        means = [sum(results[place] for _, results in expected) / len(ROWS) for place in range(3)]
        logged = [card.metrics[f"choice_match/{name}"] for name in ("mean", "norm", "norm_bytes")]
        assert logged == pytest.approx(means)
        perplexities = [harness.perplexity(row) for row in ROWS]
        assert card.scores["perplexity"] == pytest.approx(perplexities, rel=1e-2)
        assert card.metrics["perplexity/mean"] == pytest.approx(np.mean(perplexities), rel=1e-2)
        assert card.metrics["choice_match/ci_low"] < means[0] < card.metrics["choice_match/ci_high"]
    # The rows tell the two definitions apart.
    assert len({tuple(results[place] for _, results in expected) for place in range(2)}) == 2


@pytest.mark.slow
def test_choice_match_is_what_lm_evaluation_harness_computes(store, evaluate, chosen_rows, harness):
    override, sha256 = chosen_rows
    evaluate(override, WITH_PERPLEXITY, f"run_id={store.greedy.run_id}")
    rows = prompt_set.load(command_line.compose("evaluate", [override]).prompt_set)
    _check_against(harness, [store.greedy], sha256, rows)
    # Served, it need not repeat answers that it did not generate.
    sample = smoke._sample(store.greedy, rows, scorecard.read(store.greedy, sha256), 8)
    assert len(sample) == 8
    assert {answer for _, answer in sample} == {None}


@pytest.mark.slow
def test_every_mode_scores_texts_alike(checkpoint, evaluate, chosen_rows, harness):
    for mode in ("pyfunc", "transformers"):
        build.build(command_line.compose("build", [f"mode={mode}", "check=false"]), checkpoint)
    override, sha256 = chosen_rows
    assert evaluate(override, WITH_PERPLEXITY.replace("]", ",fidelity]")).returncode == 0
    rows = prompt_set.load(command_line.compose("evaluate", [override]).prompt_set)
    variants = find_variants(mlflow.MlflowClient(), "0")
    _check_against(harness, variants, sha256, rows)
    reference, other = (scorecard.read(variant, sha256) for variant in sorted(variants, key=lambda one: one.name))
    assert set(reference.scores["fidelity/kl"]) == {0.0}
    assert max(other.scores["fidelity/kl"]) < 1e-6
    assert set(other.scores["fidelity/flips"]) == {0.0}


@pytest.mark.slow
def test_scores_that_are_interrupted_continue_and_are_the_same_to_the_byte(store, evaluate, tmp_path, monkeypatch):
    override, sha256 = write_prompt_set(tmp_path / "choices.jsonl", ROWS[:6])
    words = [override, ONLY, f"run_id={store.greedy.run_id}"]
    monkeypatch.setattr(likelihoods, "BATCH", 4)
    counts, score = [], Asker.score

    def counting(self, pairs, whole_vocabulary=False):
        counts.append(len(pairs))
        if len(counts) == 3:
            raise KeyboardInterrupt
        return score(self, pairs, whole_vocabulary)

    monkeypatch.setattr(Asker, "score", counting)
    assert evaluate(*words).returncode == 130
    assert evaluate(*words).returncode == 0
    assert sum(counts) == 6 * len(CAPITALS) + 4
    resumed = store.scorecard_bytes(store.greedy, sha256)
    assert evaluate(*words).returncode == 0  # asked again, because the run is named
    assert sum(counts) == 2 * 6 * len(CAPITALS) + 4
    assert store.scorecard_bytes(store.greedy, sha256) == resumed


@pytest.mark.slow
def test_nothing_is_generated_unless_a_metric_reads_it_and_kept_likelihoods_need_no_model(
    store, evaluate, tmp_path, monkeypatch
):
    override, sha256 = write_prompt_set(tmp_path / "choices.jsonl", ROWS[:4])
    run = f"run_id={store.sampled.run_id}"
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "answer_rows", None)
        evaluate(override, run, "evaluate.metrics=[choice_match]")
        before = scorecard.parts_of(store.sampled, sha256)
        patch.setattr(scoring, "loaded", None)
        assert "from its kept answers" in evaluate(override, run, ONLY).stdout
    parts = scorecard.parts_of(store.sampled, sha256)
    assert parts["choice_match"] == before["choice_match"]
    assert "choice_match_norm" in parts
    chosen = scorecard.read(store.sampled, sha256)
    assert chosen.answers[:2] == ["Madrid"] * 2  # the most likely choice
    assert not any(chosen.errors)
    assert not scorecard.is_generated(store.sampled, sha256)

    evaluate(override, run, "evaluate.metrics=[exact_match,choice_match]")
    assert scorecard.is_generated(store.sampled, sha256)
    assert scorecard.read(store.sampled, sha256).scores["choice_match"] == chosen.scores["choice_match"]


def test_chosen_answers_that_a_killed_evaluation_kept_are_not_taken_for_generated_ones(store, evaluate, tmp_path):
    override, _ = write_prompt_set(tmp_path / "choices.jsonl", ROWS[:2])
    evaluate(override, ONLY, f"run_id={store.greedy.run_id}")
    rows = prompt_set.load(command_line.compose("evaluate", [override]).prompt_set)
    rulers = [ruler.make(command_line.compose("evaluate", [metrics])) for metrics in (ONLY, "evaluate.metrics=[chrf]")]
    with contextlib.closing(Journal(tmp_path / "journal.sqlite", {})) as entries:
        kept = kept_answers.keep(store.greedy, rows, rulers[0], entries)
        assert not kept.is_generated
        # Killed while it logs: the mark is gone, the journal is there.
        unmarked = replace(store.greedy, tags={})
        assert kept_answers.keep(unmarked, rows, rulers[0], entries) == kept
        assert kept_answers.keep(unmarked, rows, rulers[1], entries) is None


@pytest.mark.parametrize(
    ("code", "changed"), [("LIKELIHOOD_CODE", ["choice_match", "perplexity"]), ("FIDELITY_CODE", list(FIDELITY))]
)
def test_another_way_to_score_texts_is_another_ruler(monkeypatch, tmp_path, code, changed):
    config = command_line.compose("evaluate", ["evaluate.metrics=[exact_match,choice_match,perplexity,fidelity]"])
    before = ruler.make(config).digests
    (tmp_path / "other.py").write_text("")
    monkeypatch.setattr(ruler, code, tmp_path / "other.py")
    after = ruler.make(config).digests
    assert [name for name in before if before[name] != after[name]] == changed


def test_rows_without_choices_are_reported_by_line(tmp_path):
    override, _ = write_prompt_set(tmp_path / "choices.jsonl", [ROWS[0], make_row("plain")])
    config = command_line.compose("evaluate", [override, ONLY])
    with pytest.raises(StepError) as refusal:
        scores.check_rows(prompt_set.load(config.prompt_set), ruler.make(config).metrics)
    place = "choices: line 2 (id 'plain')"
    sentences = [f"{place}: the metric {name} needs choices." for name in ("choice_match", "choice_match_norm")]
    assert list(refusal.value.faults) == sentences


@pytest.mark.slow
def test_an_answer_beyond_the_context_is_a_rows_error_and_has_no_perplexity(store, evaluate, tmp_path):
    endless = "word " * 3000
    rows = [*ROWS[:2], make_row("long", target=endless, choices=["Madrid", endless])]
    override, sha256 = write_prompt_set(tmp_path / "choices.jsonl", rows)
    words = [override, WITH_PERPLEXITY, f"run_id={store.greedy.run_id}"]
    assert evaluate(*words).returncode == 3
    card = scorecard.read(store.greedy, sha256)
    assert card.scores["choice_match"] == [1.0, 1.0, 0.0]
    assert "tokens, the context" in card.errors[2]
    # Where less is better, 0 would be the best score.
    perplexities = card.scores["perplexity"]
    assert perplexities[2] is None
    assert card.metrics["perplexity/mean"] == pytest.approx(np.mean(perplexities[:2]))
    policy = command_line.compose("register", []).promotion
    mine = prompt_set.load(command_line.compose("evaluate", [override]).prompt_set)
    assert to_candidate(store.greedy, mine, policy).metrics["perplexity/mean"] == pytest.approx(
        np.mean(perplexities[:2])
    )
    refused = evaluate(*words, "evaluate.max_errors=0")
    assert refused.returncode == 1
    assert "the answers of 1 rows cannot be scored, more than evaluate.max_errors=0: row 'long'" in refused.stderr


def test_a_model_that_an_earlier_version_built_has_to_be_built_again():
    model = SimpleNamespace(unwrap_python_model=object)
    with pytest.raises(StepError, match=r"its model was built before models could score given texts: build it again\."):
        score_tokens(model, [([1], [2])], False)


@pytest.mark.slow
def test_a_mode_that_cannot_score_texts_is_scored_without(echo, checkpoint, evaluate, chosen_rows):  # noqa: F811
    build.build(command_line.compose("build", ["mode=echo"]), checkpoint)
    override, sha256 = chosen_rows
    done = evaluate(override, "evaluate.metrics=[answer_match,choice_match]")
    assert (
        "is scored without choice_match: mode=echo cannot score given texts, which choice_match needs." in done.stdout
    )
    (variant,) = find_variants(mlflow.MlflowClient(), "0")
    assert set(scorecard.read(variant, sha256).scores) == {"answer_match"}
    refused = evaluate(override, ONLY)
    assert refused.returncode == 1
    assert "name another metric first in evaluate.metrics or prompt_set.metrics" in refused.stderr


@pytest.mark.parametrize(
    ("key", "is_better"),
    [
        *(("perplexity/mean", False), ("perplexity/ci_low", False), ("fidelity/kl/mean", False)),
        *(("fidelity/flips/ci_high", False), ("fidelity/first_divergence/mean", True)),
        *(("choice_match/mean", True), ("choice_match/norm", True), ("choice_match/norm_bytes", True)),
        *(("size/bytes", False), ("speed/tokens_per_second", True), ("answer_match/ci_low", True)),
    ],
)
def test_each_metric_says_which_way_it_is_better(key, is_better):
    assert more_is_better(key) is is_better
