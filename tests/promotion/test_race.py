"""Eight processes score and register at the same time: the best variant ends as champion, registered once."""

import time

import mlflow
import pytest

from steps.promotion import registry
from steps.store.variants import find_variants
from tests.promotion.processes import WORKERS, places
from tests.promotion.store import copied

# Every round starts all processes on new names at once: a few find what most rounds would find.
FEW, MANY = 3, 50


@pytest.mark.parametrize("rounds", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_the_best_wins_every_round_with_a_sqlite_store(built, processes, tmp_path, figure, rounds):
    address = copied(built, tmp_path / "race")
    started = time.perf_counter()
    processes("race", address, tmp_path, rounds)
    seconds = time.perf_counter() - started
    wrong, doubles = verdict(address, rounds)
    figure(f"race: wrong champions {wrong} of {rounds} rounds, duplicates {doubles}, {seconds:.0f} s")
    assert (wrong, doubles) == (0, 0)


def verdict(address: str, rounds: int) -> tuple[int, int]:
    """Count the rounds with a wrong champion or challenger, and the versions that were registered twice."""
    client = mlflow.MlflowClient(address)
    variants = [variant.model_id for variant in find_variants(client, "0")]
    wrong = doubles = 0
    for number in range(rounds):
        known = registry.read(client, f"race-{number}")
        best, second = (variants[places(number).index(WORKERS - place)] for place in (1, 2))
        wrong += (known.champion.model_id, known.challenger.model_id) != (best, second)
        doubles += len(known.versions) - len({version.model_id for version in known.versions})
    return wrong, doubles
