"""Which schedules a preload takes: those that CDI takes."""

import pytest

from app.devcluster.cdi.cron_schedule import Schedule
from app.domain.schedules import DESCRIPTORS, check_schedule


@pytest.mark.parametrize(
    "text",
    [
        "0 3 * * *",
        "*/15 * * * *",
        "0  3 * * ?",
        "5,35 0-6/2 1 jan-MAR Mon-fri",
        "30/10 * * * 0",
        "@every 1h30m",
        "CRON_TZ=Europe/Berlin 0 3 * * *",
        "TZ=UTC @daily",
        "CRON_TZ=Etc/GMT+3 @every 90s",
        *DESCRIPTORS,
    ],
)
def test_what_cdi_takes_is_taken_as_it_stands(text):
    assert check_schedule(text) == text
    assert Schedule.parse(text) is not None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is '', which has 0 fields"),
        ("* * * *", "which has 4 fields"),
        ("0 0 3 * * *", "which has 6 fields"),
        ("daily", "which has 1 field"),
        ("@dayly", "it is '@dayly'"),
        ("@every", "it is '@every'"),
        ("@every day", "which names no time"),
        ("60 * * * *", "its minute '60' is not within 0 to 59"),
        ("0 24 * * *", "its hour '24' is not within 0 to 23"),
        ("0 0 0 * *", "its day of the month '0' is not within 1 to 31"),
        ("0 0 1 13 *", "its month '13' is not within 1 to 12"),
        ("0 0 * * 7", "its day of the week '7' is not within 0 to 6"),
        ("0 0 * * fri-mon", "its day of the week 'fri-mon' is not within 0 to 6"),
        ("*/0 * * * *", "its minute '*/0'"),
        (", * * * *", "its minute ','"),
        ("x * * * *", "its minute 'x'"),
        ("CRON_TZ=Europe/Berlin", "has no time zone or nothing after it"),
        ("CRON_TZ=Europe/Berlin 0 3 * *", "which has 4 fields"),
    ],
)
def test_anything_else_is_refused_with_a_sentence_that_says_what_a_schedule_is(text, why):
    with pytest.raises(ValueError, match="must be a schedule in the five fields of cron") as refused:
        check_schedule(text)
    assert why in str(refused.value)
    assert "@daily" in str(refused.value)
