"""How a metric's value is shown."""

import pytest

from steps.store.names import with_unit


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("size/bytes", 905066.0, "905 kB"),
        ("size/bytes", 2489100.0, "2.49 MB"),
        ("size/bytes", 7.6e9, "7.6 GB"),
        ("size/bytes", 12.0, "12"),
        ("speed/latency_p95_ms", 3.4735, "3.5 ms"),
        ("speed/latency_p95_ms", 1234.5, "1234 ms"),
        ("speed/batch_tokens_per_second", 2405.3, "2405 tokens/s"),
        ("memory/peak_mb", 412.7, "413 MB"),
        ("speed/load_seconds", 2.25, "2.2 s"),
        ("contract/rate", 0.974, "0.974"),
        ("wordiness/mean", 12.5, "12.5"),
    ],
)
def test_a_value_has_its_unit(key, value, shown):
    assert with_unit(key, value) == shown
