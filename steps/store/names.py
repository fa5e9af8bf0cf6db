"""The names of everything that this project writes to MLflow, and how a metric is read.

Tags begin with `phi3.`. A metric that is measured on a prompt set has one value for each prompt set on a LoggedModel;
MLflow's digest of the dataset tells them apart.
"""

from dataclasses import dataclass

# Tags of a variant: its run and its LoggedModel.
FINGERPRINT = "phi3.fingerprint"
CHECKPOINT_SHA256 = "phi3.checkpoint_sha256"
MANIFEST_SHA256 = "phi3.manifest_sha256"
# On the LoggedModel of a variant that shares its weights: the run that has them. A self-contained one has no such tag.
WEIGHTS_RUN = "phi3.weights_run"
# On the run of shared weights: which set of files it has; which of them was seen to be changed.
WEIGHTS_SHA256 = "phi3.weights_sha256"
DAMAGED = "phi3.damaged"
PROMPT_SET_SHA256 = "phi3.prompt_set_sha256"
# The process that works on a run.
PROCESS = "phi3.process"
# Tags with one value for each prompt set (`of_prompt_set`): a complete scorecard; its report; on an evaluation's run,
# the scorecards and reports that it compares.
SCORECARD = "phi3.scorecard"
# The same for a variant that was stopped early: how many rows were asked. It has no scorecard then.
PARTIAL = "phi3.partial"
REPORT = "phi3.report"
COMPARED = "phi3.compared"
# On an experiment, with the name of a prompt set: the digest of the set that has this name.
SET = "phi3.set."
# On a variant's run: what the last promotion made of it.
STANDING = "phi3.standing"
# On a variant's run: when the build ended, in milliseconds. An evaluation reopens the run.
ENDED = "phi3.ended"
# MLflow's tag of a description.
NOTE = "mlflow.note.content"
# A tag of each trace: the prompt set of its row.
TRACE_PROMPT_SET = "phi3.prompt_set"

# Tags of a registered version.
MODEL_ID = "phi3.model_id"
VARIANT = "phi3.variant"
SMOKE = "phi3.smoke"
REJECTED = "phi3.rejected"
REASON = "phi3.reason"
SCORES = "phi3.scores"
VERDICT = "phi3.verdict"
# The best score that a champion had on the prompt set, when this version became champion.
REFERENCE = "phi3.reference"
# Each time that a version becomes champion adds a tag: this and the UTC time.
CHAMPION_SINCE = "phi3.champion."

# Tags of a register run.
ACTION = "phi3.action"
PROMOTED = "phi3.promoted"
CHAMPION_VERSION = "phi3.champion_version"
# Set on a rollback run that was killed: the id of the run that finished its report.
FINISHED_BY = "phi3.told_by"

# Aliases of the registered model.
CHAMPION = "champion"
CHALLENGER = "challenger"


def of_prompt_set(tag: str, prompt_set_sha256: str) -> str:
    """Return the name of a tag for one prompt set, whatever the set is called."""
    return f"{tag}.{prompt_set_sha256[:16]}"


@dataclass(frozen=True)
class Metric:
    """How a metric is shown, and which way it is better.

    Attributes:
        key: Its name in MLflow.
        label: The heading of its column.
        digits: Decimals shown.
        more_is_better: Whether a higher value is better.
        unit: What one unit of the label is in units of the metric.
    """

    key: str
    label: str
    digits: int = 0
    more_is_better: bool = False
    unit: float = 1

    def show(self, value: float | None) -> str:
        """Return a value as people read it in a table."""
        return "-" if value is None else f"{value / self.unit:.{self.digits}f}"


TOKENS_PER_SECOND = Metric("speed/tokens_per_second", "tokens/s", more_is_better=True)
PEAK_MEMORY = Metric("memory/peak_mb", "peak MB")
BYTES = Metric("size/bytes", "MB", digits=1, unit=1e6)
CONTRACT_PASSED = Metric("contract/passed", "contract", more_is_better=True)
CONTRACT_TOTAL = Metric("contract/total", "contract checks")
CONTRACT_RATE = Metric("contract/rate", "contract", digits=2, more_is_better=True)
ERRORS = Metric("answers/errors", "errors")
TRUNCATED = Metric("answers/truncated", "truncated")
SKIPPED = Metric("answers/skipped", "skipped")
# Tokens of all prompts of a prompt set, and those that the engine had computed before, for another row.
PROMPT_TOKENS, REUSED_TOKENS = "answers/prompt_tokens", "answers/reused_prompt_tokens"
# What a variant costs, in the order of the tables.
COSTS = (
    CONTRACT_PASSED,
    CONTRACT_TOTAL,
    TOKENS_PER_SECOND,
    Metric("speed/batch_tokens_per_second", "batch tokens/s", more_is_better=True),
    Metric("speed/time_to_first_token_ms", "first token ms", digits=1),
    Metric("speed/latency_p50_ms", "latency p50 ms"),
    Metric("speed/latency_p95_ms", "latency p95 ms"),
    Metric("speed/load_seconds", "load s", digits=2),
    Metric("speed/bandwidth_fraction", "bandwidth", digits=2, more_is_better=True),
    PEAK_MEMORY,
    BYTES,
    ERRORS,
    TRUNCATED,
    SKIPPED,
)
# The names that a policy may use for the metrics that it is usually about.
POLICY_NAMES = {
    "throughput": "speed/batch_tokens_per_second",
    "latency": "speed/latency_p95_ms",
    "memory": PEAK_MEMORY.key,
    "bytes": BYTES.key,
    "contract": CONTRACT_RATE.key,
}
# How values are shown in sentences.
SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
UNITS = {"_ms": "ms", "_mb": "MB", "tokens_per_second": "tokens/s", "_seconds": "s"}
# Metrics of rows that are better when lower.
LESS_IS_BETTER = ("perplexity", "fidelity/kl", "fidelity/flips")
# Metrics of rows that are no shares: the highest that was seen is the highest that their intervals assume.
UNBOUNDED = ("perplexity", "fidelity/kl", "fidelity/first_divergence")
# What `evaluate.speed` measures. With BYTES, these are never 0: MLflow stores a NaN on a model as 0.
TIMED = ("speed/", "memory/")
MEASURED = (*TIMED, "size/")


def metric_key(name: str) -> str:
    """Return a metric's full key: `answer_match` is `answer_match/mean`, `latency` is `speed/latency_p95_ms`."""
    is_complete = "/" in name and name not in (*LESS_IS_BETTER, *UNBOUNDED)
    return POLICY_NAMES.get(name, name if is_complete else f"{name}/mean")


def with_unit(key: str, value: float) -> str:
    """Return a metric's value as people read it in a sentence: 0.905 MB, 3.5 ms, 2405 tokens/s."""
    if key == BYTES.key:
        return next((f"{value / size:.3g} {unit}" for size, unit in SIZES if value >= size), f"{value:g}")
    unit = next((unit for ending, unit in UNITS.items() if key.endswith(ending)), "")
    return f"{value:.{0 if value >= 100 else 1}f} {unit}" if unit else f"{value:g}"


def row_metric(name: str) -> str:
    """Return the name under which a scorecard keeps the scores of a metric's rows."""
    return metric_key(name).removesuffix("/mean")


def more_is_better(key: str) -> bool:
    """Return True if a higher value is better: scores, rates, tokens per second."""
    endings = ("/mean", "/ci_low", "/ci_high", "/norm", "/norm_bytes", "tokens_per_second", "/bandwidth_fraction")
    return key.endswith((*endings, "/rate", "/passed")) and not less_is_better(key.rpartition("/")[0])


def less_is_better(metric: str) -> bool:
    """Return True if rows with a lower value of a metric are better. A row without one counts in no mean of it."""
    return metric in LESS_IS_BETTER


def is_timed(name: str) -> bool:
    """Return True if a metric is measured by `evaluate.speed`."""
    return metric_key(name).startswith(TIMED)


def is_known(name: str) -> bool:
    """Return True if a metric is one that `evaluate.speed` measures on every variant."""
    return is_timed(name) and metric_key(name) in {cost.key for cost in COSTS}
