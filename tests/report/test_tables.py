import csv
import io
import math
import re

import pytest
from scipy.stats import t

from dml.report.runs import group_runs, read_runs
from dml.report.tables import as_csv, latex, layout, markdown, mean_and_interval, table2

PAPERS = {"dimension": 64, "backbone": "googlenet", "weights": True, "protocol": {"name": "paper"}}


def recalls(*values):
    return {f"test/recall@{k}": value for k, value in zip((1, 2, 4, 8), values, strict=False)}


@pytest.fixture
def grouped(tmp_path, write_run):
    def group(*by):
        return group_runs(read_runs([tmp_path]), by)

    group.write = write_run
    return group


def test_interval_of_hand_computed_values():
    # Standard deviation 1, three values: t(0.975, 2) = 4.302653, over sqrt(3).
    mean, half = mean_and_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302652729749462 / math.sqrt(3))


def test_one_value_has_no_interval():
    mean, half = mean_and_interval([0.5])
    assert mean == 0.5
    assert math.isnan(half)


def test_a_line_a_method_in_percent(grouped):
    grouped.write("a", "nra", 0, 0.8)
    grouped.write("b", "nra", 1, 0.9)
    grouped.write("c", "lifted", 0, 0.7)
    assert markdown(layout(grouped())).splitlines() == [
        "digits, 2 dimensions; in percent:",
        "",
        "| method | recall@1 | map | runs |",
        "|---|---:|---:|---:|",
        "| nra | 42.5 ± 31.8 | 85.0 ± 63.5 | 2 |",
        "| lifted | 35.0 | 70.0 | 1 |",
        "",
        "- An interval of two runs is wide: half of it is 12.7 times the standard error, and of three runs 4.3 times. "
        "So a third run helps most",
    ]
    assert t.ppf(0.975, [1, 2]).round(1).tolist() == [12.7, 4.3]
    grouped.write("d", "nra", 2, 0.9)
    assert "12.7" not in markdown(layout(grouped()))  # three runs, and one


def test_layout_of_table_1_with_the_papers_values_beneath(grouped):
    for dimension, score in ((512, 0.7), (64, 0.5)):
        for data in ("cub200", "cars196"):
            settings = {**PAPERS, "dimension": dimension, "data": data, "loss": {"alpha": 4.0}}
            grouped.write(f"{data}{dimension}", metrics=recalls(score, 0.8), **settings)
    grouped.write("z", "contrastive", metrics=recalls(0.25, 0.5), **PAPERS, data="cub200")
    table = layout(grouped())
    assert table.spans == [("cars196, 64 / 512 dimensions", 2), ("cub200, 64 / 512 dimensions", 2)]
    assert table.columns == ["recall@1", "recall@2", "recall@1", "recall@2", "runs"]
    assert table.lines == [
        ["nra", "50.0 / 70.0", "80.0 / 80.0", "50.0 / 70.0", "80.0 / 80.0", "1"],
        ["paper", "73.0 / 81.9", "82.5 / 88.8", "57.6 / 64.3", "69.4 / 74.8", ""],
        ["difference", "-23.0 / -11.9", "-2.5 / -8.8", "-7.6 / +5.7", "+10.6 / +5.2", ""],
        ["contrastive", "- / -", "- / -", "25.0 / -", "50.0 / -", "1"],
    ]
    assert table.notes == []
    lines = markdown(table).splitlines()
    assert lines[0] == "cars196, 64 / 512 dimensions; cub200, 64 / 512 dimensions; in percent:"
    assert lines[2] == "| method | cars196 recall@1 | cars196 recall@2 | cub200 recall@1 | cub200 recall@2 | runs |"


def test_of_several_data_sets_the_table_shows_recall(grouped):
    for data in ("cub200", "sop"):
        grouped.write(data, metrics={"test/recall@1": 0.5, "test/map": 0.3}, **PAPERS, data=data)
    assert layout(grouped()).columns == ["recall@1", "recall@1", "runs"]
    assert len(list(csv.DictReader(io.StringIO(as_csv(grouped()))))) == 4


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("nra", {"loss": {"alpha": 3.0}}),  # the paper's table has 4
        ("triplet", {"loss": {"mining": "hard"}}),
        ("nra", {"loss": {"alpha": 4.0}, "dimension": 128}),
        ("nra", {"loss": {"alpha": 4.0}, "data": "inshop"}),
        ("contrastive", {}),
    ],
)
def test_other_settings_do_not_stand_beside_the_papers(grouped, method, settings):
    grouped.write("a", method, metrics=recalls(0.5), **{**PAPERS, "data": "cub200", **settings})
    assert [line[0] for line in layout(grouped()).lines] == [method]


@pytest.mark.parametrize(
    ("settings", "symbol", "reason"),
    [
        ({"leaked": True}, "†", "watched"),
        ({"transform": {"ten_crop": True, "crop_to_box": False}}, "⊞", "ten crops"),
        ({"transform": {"ten_crop": False, "crop_to_box": True}}, "□", "boxes"),
        ({"backbone": "resnet50"}, "‡", "backbone"),
        ({"weights": "random"}, "¶", "scratch"),
        ({"protocol": {"name": "validated"}}, "§", "protocol"),
    ],
)
def test_what_is_not_comparable_is_marked(grouped, settings, symbol, reason):
    grouped.write("a", "npair", metrics=recalls(0.5), **{**PAPERS, "data": "cub200", **settings})
    grouped.write("b", "lifted", metrics=recalls(0.5), **PAPERS, data="cub200")
    table = layout(grouped())
    assert [line[0] for line in table.lines] == [
        f"npair {symbol}",
        "paper",
        "difference",
        "lifted",
        "paper",
        "difference",
    ]
    (note,) = table.notes
    assert note.startswith(symbol) and reason in note
    assert note in markdown(table) and note in latex(table)
    marks = {row["method"]: row["marks"] for row in csv.DictReader(io.StringIO(as_csv(grouped())))}
    assert marks == {"npair": symbol, "lifted": ""}


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "nra", "loss": {"_target_": "dml.losses.nra.Other", "alpha": 4.0}},
        {"method": "nra", "loss": {"_target_": "own.nra.NRALoss", "alpha": 4.0}},  # as rows of before name it
        {"method": "npair", "split": {"_target_": "dml.data.folder.load"}},
    ],
)
def test_a_loss_or_a_folder_of_the_same_name_does_not_stand_beside_the_papers(grouped, settings):
    grouped.write("a", metrics=recalls(0.5), **PAPERS, data="cub200", **settings)
    assert len(layout(grouped()).lines) == 1
    grouped.write("b", "npair", metrics=recalls(0.5), **{**PAPERS, "dimension": 512}, data="cub200")
    assert [line[0] for line in layout(grouped()).lines][-2:] == ["paper", "difference"]


def test_the_best_of_each_column_is_bold_in_latex(grouped):
    both = {"dimension": 64, "data": "birds"}
    grouped.write("a", "nra", metrics=recalls(0.5001, 0.8, 0.9), **both)
    grouped.write("b", "lifted", metrics=recalls(0.4999, 0.7), **both)
    grouped.write("c", "npair", metrics=recalls(0.9, 0.9), **both, leaked=True)
    grouped.write("d", "lifted", metrics=recalls(0.9, 0.9), **{**both, "dimension": 512})
    lines = {line.split(" & ")[0]: line for line in latex(layout(grouped())).splitlines()}
    assert lines["nra"].startswith(r"nra & \textbf{50.0} / - & \textbf{80.0} / - & 90.0 / - & ")
    assert lines["lifted"].startswith(r"lifted & \textbf{50.0} / 90.0 & 70.0 / 90.0 & - / - & ")
    assert all("textbf" not in line for name, line in lines.items() if name not in ("nra", "lifted"))


def test_where_the_paper_has_no_numbers_only_a_leak_is_marked(grouped):
    grouped.write("a", backbone="convnet4", weights="random")
    assert layout(grouped()).notes == []


def test_runs_of_several_versions_of_the_code_are_said(grouped):
    grouped.write("a", code="one")
    grouped.write("b", seed=1, code="two")
    assert layout(grouped()).notes[1:] == ["nra: its runs were made by 2 versions of the code"]


def test_csv_has_the_values_in_full(grouped):
    settings = {**PAPERS, "data": "cub200", "loss": {"alpha": 4.0}}
    grouped.write("a", metrics=recalls(0.5), **settings)
    grouped.write("b", seed=1, metrics=recalls(0.6), **settings)
    (row,) = csv.DictReader(io.StringIO(as_csv(grouped())))
    assert (row["data"], row["method"], row["dimension"], row["metric"]) == ("cub200", "nra", "64", "recall@1")
    assert float(row["mean"]) == pytest.approx(55) and row["runs"] == "2" and row["paper"] == "57.6"
    assert float(row["difference"]) == pytest.approx(-2.6)
    assert float(row["half_interval"]) == pytest.approx(12.706204736 * 5)  # t(0.975, 1) times s / sqrt(2)


def test_latex_has_as_many_cells_in_every_line_and_no_bare_special_character(grouped):
    grouped.write("a", metrics=recalls(0.5, 0.6), **PAPERS, data="cub200", loss={"alpha": 4.0}, leaked=True)
    grouped.write("b", "cross_entropy", metrics=recalls(0.5, 0.6), **{**PAPERS, "dimension": 512}, data="cub200")
    grouped.write("c", "lifted", metrics=recalls(0.5), **PAPERS, data="a_b%c")
    text = latex(layout(grouped()))
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    columns = len(re.search(r"begin{tabular}{(l r*)}".replace(" ", ""), text)[1])
    assert columns == 1 + 1 + 2 + 1
    assert all(line.count(" & ") == columns - 1 and line.endswith(r" \\") for line in body)
    assert r"cross\_entropy" in text and r"a\_b\%c, 64 dimensions" in text and r"nra $^\dagger$" in text
    assert not re.search(r"(?<!\\)[_]", text.replace(r"\usepackage", ""))


def test_table_2_has_our_line_beneath(grouped):
    grouped.write("a", metrics=recalls(0.5), **PAPERS, data="cars196", loss={"alpha": 4.0})
    lines = table2(grouped()).splitlines()
    assert "| Proxy-NCA | 64 | InceptionBN | 49.2 | 73.2 | 73.7 |" in lines
    assert "| N-pair⊞ | 512 | GoogLeNet | - | - | 67.7 |" in lines
    assert lines[-1] == "| nra (this run) | 64 | googlenet | - | 50.0 | - |"


def test_table_2_only_beside_its_data(grouped):
    grouped.write("a")
    assert table2(grouped()) is None


def test_further_searches_are_in_the_csv_alone(grouped):
    metrics = {"test/recall@1": 0.5, "test/qe/recall@1": 0.6, "test/int8-64B/recall@1": 0.4}
    grouped.write("a", metrics=metrics, dimension=64)
    table = layout(grouped())
    assert table.columns == ["recall@1", "runs"] and table.notes == ["table.csv has qe, int8-64B too"]
    names = [row["metric"] for row in csv.DictReader(io.StringIO(as_csv(grouped())))]
    assert names == ["recall@1", "qe/recall@1", "int8-64B/recall@1"]
