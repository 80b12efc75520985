import math

import pytest

from dml.report.runs import group_runs, read_runs
from dml.report.tables import mean_and_interval, method_table


def test_interval_of_hand_computed_values():
    # Standard deviation 1, three values: t(0.975, 2) = 4.302653, over sqrt(3).
    mean, half = mean_and_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302652729749462 / math.sqrt(3))


def test_one_value_has_no_interval():
    mean, half = mean_and_interval([0.5])
    assert mean == 0.5
    assert math.isnan(half)


def test_table_has_a_line_a_method_in_percent(tmp_path, write_run):
    write_run("a", "nra", 0, 0.8)
    write_run("b", "nra", 1, 0.9)
    write_run("c", "lifted", 0, 0.7)
    lines = method_table(group_runs(read_runs([tmp_path])), ["test/map"]).splitlines()
    assert lines[0] == "| method | map | seeds |"
    assert lines[2] == "| nra | 85.0 ± 63.5 | 2 |"
    assert lines[3] == "| lifted | 70.0 | 1 |"
