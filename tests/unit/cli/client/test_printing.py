"""What the cells of tables show."""

import pytest

from app.cli.client.printing import share, took


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (-0.5, "-50%"),
        (0.0, "0%"),
        (0.994, "99%"),
        (0.995, "99.5%"),
        (0.9994, "99.9%"),
        (0.9995, "over 99.9%"),
        (0.999999, "over 99.9%"),
        (1.0, "100%"),
    ],
)
def test_a_share_is_100_percent_only_if_nothing_is_missing(value, shown):
    assert share(value) == shown


def test_a_warm_claim_took_no_time_that_can_be_shown():
    assert [took(value) for value in (None, 0.0, 0.0004, 2.0)] == ["-", "at once", "0.4ms", "2.0s"]
