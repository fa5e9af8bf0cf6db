"""Choose between the choices of a row by their likelihoods, as lm-evaluation-harness does."""

from collections.abc import Callable

# What the log-probability of a choice is divided by.
LENGTHS: dict[str, Callable[[str], int]] = {
    "whole": lambda _: 1,
    "norm": len,
    "norm_bytes": lambda choice: len(choice.encode()),
}


def score_by(length: str) -> Callable[..., float]:
    """Return the function that scores a row by the choice that is most likely for its length."""

    def score(_prediction: str, accepted: list[str], choices: list[str], logprobs: list[float]) -> float:
        values = [logprob / LENGTHS[length](choice) for choice, logprob in zip(choices, logprobs, strict=True)]
        return float(choices[values.index(max(values))] in accepted)

    return score
