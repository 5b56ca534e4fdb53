"""Markdown tables, and the numbers in them."""

import pytest

from stages.show import tables


def test_a_table_has_its_header_its_alignment_and_a_line_per_row():
    found = tables.table("a | b | c", "lrc", [["1", "2", "3"], ["", "x", ""]])
    assert found.splitlines() == [
        "| a   |   b |  c  |",
        "| --- | --: | :-: |",
        "| 1   |   2 |  3  |",
        "|     |   x |     |",
    ]
    assert tables.table("long", "l", []) == "| long |\n| ---- |"


@pytest.mark.parametrize(
    ("value", "shown"), [(0.9862, "98.62"), (1.0, "100.00"), (0.5, "50.00"), (0.00004, "0.00")]
)
def test_a_share_in_per_cent_has_two_digits(value, shown):
    assert tables.percent(value) == shown


def test_an_interval_is_scaled_from_low_to_high_and_empty_where_there_is_none():
    assert tables.interval(0.1234, 0.5678, 100, 1) == "12.3 to 56.8"
    assert tables.interval(-0.01, 0.0, 1, 3) == "-0.010 to 0.000"
    assert tables.interval(0.0, 0.0, 100, 2) == "0.00 to 0.00"  # zero is not nothing
    assert tables.interval(None, 0.5, 100, 2) == tables.interval(0.5, None, 100, 2) == ""
