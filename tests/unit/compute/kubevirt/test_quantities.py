from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.compute.kubevirt.quantities import parse_quantity


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("2Gi", 2 * 1024**3),
        ("1.5Gi", 3 * 1024**3 // 2),
        ("512M", 512 * 10**6),
        ("500m", Fraction(1, 2)),
        ("100n", Fraction(1, 10**7)),
        ("1e3", 1000),
        ("1E3", 1000),
        ("1E", 10**18),
        ("25e-1", Fraction(5, 2)),
        ("0.1", Fraction(1, 10)),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("+2", 2),
        ("-2Ki", -2048),
        (3, 3),
        ("0", 0),
    ],
)
def test_a_quantity_is_read_as_kubernetes_reads_it(written, number):
    assert parse_quantity(written) == number


@pytest.mark.parametrize(
    "written",
    [
        "",
        "Gi",
        "1Gb",
        "2M!",
        "1 Gi",
        "1.2.3",
        "--1",
        "1ki",
        "1e",
        "e3",
        "٣",
        "1e999999999",
        "9" * 64,
        1.5,
        True,
        None,
        [],
        {},
    ],
)
def test_refuses_what_is_no_quantity(written):
    with pytest.raises(ValueError, match=r"quantity|range"):
        parse_quantity(written)


@given(st.integers(-(10**9), 10**9), st.sampled_from(["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]))
def test_a_binary_suffix_is_a_power_of_1024(number, suffix):
    assert parse_quantity(f"{number}{suffix}") == number * 1024 ** (
        ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].index(suffix) + 1
    )


@given(st.text(max_size=20))
def test_any_text_is_a_number_or_a_sentence(text):
    try:
        found = parse_quantity(text)
    except ValueError as error:
        found = str(error)
    assert isinstance(found, Fraction) or repr(text) in found
