from datetime import UTC, datetime

import pytest

from app.devcluster.cdi.cron_schedule import Schedule

START = datetime(2030, 1, 1, 10, 7, 30, tzinfo=UTC)  # a Tuesday


@pytest.mark.parametrize(
    ("text", "following"),
    [
        ("* * * * *", (1, 1, 10, 8)),
        ("*/15 * * * *", (1, 1, 10, 15)),
        ("7 10 * * *", (1, 2, 10, 7)),
        ("30 2,14 * * *", (1, 1, 14, 30)),
        ("0 0 1 * *", (2, 1, 0, 0)),
        ("0 0 * * mon", (1, 7, 0, 0)),
        ("0 0 15 * fri", (1, 4, 0, 0)),
        ("0 12 * feb-mar *", (2, 1, 12, 0)),
        ("5/20 9-11 * * *", (1, 1, 10, 25)),
        ("@hourly", (1, 1, 11, 0)),
        ("@daily", (1, 2, 0, 0)),
        ("@weekly", (1, 6, 0, 0)),
        ("CRON_TZ=Asia/Tokyo 0 20 * * *", (1, 1, 11, 0)),
        ("TZ=Europe/Berlin 30 11 * * *", (1, 1, 10, 30)),
        ("CRON_TZ=America/New_York @daily", (1, 2, 5, 0)),
    ],
)
def test_the_next_moment_of_an_expression(text, following):
    month, day, hour, minute = following

    assert Schedule.parse(text).next(START) == datetime(2030, month, day, hour, minute, tzinfo=UTC)


def test_every_counts_from_the_last_time():
    assert Schedule.parse("@every 1m30s").next(START) == datetime(2030, 1, 1, 10, 9, 0, tzinfo=UTC)


def test_a_day_that_never_comes_has_no_next():
    assert Schedule.parse("0 0 30 2 *").next(START) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "* * * *",
        "60 * * * *",
        "* 24 * * *",
        "*/0 * * * *",
        "x * * * *",
        "5-1 * * * *",
        "@never",
        "@every x",
        "TZ=Nowhere/Land @daily",
    ],
)
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(ValueError, match=r".+"):
        Schedule.parse(text)
