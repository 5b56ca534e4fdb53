"""Markdown tables, and the numbers in them."""

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


def test_numbers_are_shown_in_per_cent_and_an_interval_only_where_there_is_one():
    assert [tables.percent(value) for value in (0.9862, 1.0, 0.00004)] == [
        "98.62",
        "100.00",
        "0.00",
    ]
    assert tables.interval(0.1234, 0.5678, 100, 1) == "12.3 to 56.8"
    assert tables.interval(0.0, 0.0, 100, 2) == "0.00 to 0.00"  # zero is not nothing
    assert tables.interval(None, 0.5, 100, 2) == tables.interval(0.5, None, 100, 2) == ""
