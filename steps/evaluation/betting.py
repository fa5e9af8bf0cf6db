"""An anytime-valid test that one variant is worse than another by a margin or more, after any number of rows.

Somebody bets against the claim "our mean is lower than theirs by the margin at most", row by row, and may never bet
more than they have. If the claim is true, no way of betting wins on average, and by Ville's inequality the money ever
grows to 1 / alpha with a probability of alpha at most, however often and whenever one looks. So a variant may be
stopped at any row at which it has.

The bets are those of Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting (Journal of the
Royal Statistical Society B 86, 2024, https://arxiv.org/abs/2010.09686), appendix B.3 (approximate GRAPA): each bet
depends on the rows before it alone. Scores lie within 0 and 1. The rows must come in an order that does not depend on
the scores, and must be independent, as everywhere here.

Of several rivals the money is averaged over all that there could have been: an average of fair games is a fair game,
and to leave rivals out of the sum only makes it smaller. So the chance to stop a variant that is within the margin of
all others is alpha at most, whichever rivals are compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# The largest part of the money that a row can lose.
CAUTION = 0.75


def money(advantages: np.ndarray[Any, Any], margin: float, every: bool = False) -> np.ndarray[Any, Any]:
    """Return the money of the one who bets against a variant, beginning with 1.

    Args:
        advantages: Ours minus theirs for each row along the last axis, in the order in which the rows were asked,
            with its sign set so that more is better. Between -1 and 1.
        margin: By how much the claim allows ours to be worse.
        every: Return it after each row, along the last axis, instead of after the last.
    """
    import numpy as np

    # Within 0 and 1, and large where ours is worse.
    losses = (1 - np.asarray(advantages, dtype=float)) / 2
    claim = (1 + margin) / 2
    wealth = np.ones(losses.shape[:-1])
    total, squares, history = wealth / 2, wealth / 4, []
    for row in range(losses.shape[-1]):
        mean = total / (row + 1)
        edge = mean - claim
        bet = np.clip(edge / (squares / (row + 1) + edge**2), 0, CAUTION / claim)
        loss = losses[..., row]
        wealth = wealth * (1 + bet * (loss - claim))
        total = total + loss
        squares = squares + (loss - total / (row + 2)) ** 2
        if every:
            history.append(wealth)
    return np.stack(history, axis=-1) if every else wealth


def is_beaten(advantages: list[list[float]], margin: float, alpha: float, rivals: int) -> bool:
    """Return True if a variant is shown not to be within the margin of all others.

    Args:
        advantages: Ours minus theirs by row in the order of asking, for each rival that is compared.
        margin: By how much ours may be worse.
        alpha: The chance of a wrong answer that is accepted.
        rivals: How many other variants there are.
    """
    import numpy as np

    return sum(float(money(np.array(rows), margin)) for rows in advantages) >= rivals / alpha
