"""The picture of a search."""

import logging

import matplotlib.image

from dml.report.search import Trial, _places, draw_search


def test_values_stand_as_numbers_where_all_are():
    assert _places(["0.001", "0.1"]) == ([0.001, 0.1], [])
    assert _places(["nra", "0.1", "nra"]) == ([0.0, 1.0, 0.0], ["nra", "0.1"])
    assert _places([True, None]) == ([0.0, 1.0], ["True", "None"])


def test_a_search_of_all_kinds_of_values_is_drawn_without_noise(tmp_path, caplog):
    kinds = [("0.001", "nra", 2, "complete"), ("null", "lifted", 3, "pruned"), ("0.1", r"$\\frac$", 4, "fail")]
    trials = [
        Trial(job, {"optimizer.lr": rate, "method": method, "seed": seed}, None if state == "fail" else 0.5, state)
        for job, (rate, method, seed, state) in enumerate(kinds)
    ]
    with caplog.at_level(logging.INFO):
        draw_search(trials, tmp_path / "search.png")
    assert not caplog.records
    assert matplotlib.image.imread(tmp_path / "search.png").std() > 0.05
