"""The paper's numbers, as typed a second time from its Table I."""

import pytest

from dml.report.paper import read

# Data set, K, then Triplet, Lifted, N-Pair, NRA as 64 / 512.
TABLE1 = """
cub200 1   46.3 / 51.6   45.7 / 55.7   51.8 / 56.4   57.6 / 64.3
cub200 2   58.6 / 63.5   58.0 / 67.4   63.8 / 69.1   69.4 / 74.8
cub200 4   70.9 / 74.2   70.0 / 77.7   74.9 / 79.1   78.8 / 83.4
cub200 8   80.2 / 83.9   79.4 / 85.5   83.8 / 86.6   87.3 / 89.9
cars196 1  56.5 / 58.4   48.8 / 50.7   63.3 / 68.3   73.0 / 81.9
cars196 2  69.2 / 71.4   62.3 / 63.9   74.4 / 78.8   82.5 / 88.8
cars196 4  78.7 / 80.2   72.8 / 73.7   82.8 / 86.1   89.1 / 92.8
cars196 8  86.8 / 88.0   82.3 / 83.5   89.4 / 91.1   93.0 / 95.4
sop 1      57.2 / 59.8   61.6 / 63.8   63.6 / 65.4   71.9 / 75.6
sop 10     76.1 / 78.4   79.9 / 81.4   81.5 / 83.8   86.3 / 88.8
sop 100    89.4 / 91.0   91.5 / 92.7   92.6 / 94.0   94.3 / 95.7
"""


@pytest.mark.parametrize("line", TABLE1.strip().splitlines())
def test_table_1(line):
    data, k, *values = line.replace("/", " ").split()
    recall = read("table1")["recall"][data]
    i = recall["ks"].index(int(k))
    found = [recall[m][d][i] for m in ("triplet", "lifted", "npair", "nra") for d in ("64", "512")]
    assert found == [float(value) for value in values]


def test_table_2_is_whole():
    table = read("table2")
    assert len(table["rows"]) == 17 and all(len(row["recall@1"]) == 3 for row in table["rows"])
    # The paper contradicts itself in one place only, and the source says so.
    one, two = read("table1")["recall"]["cars196"]["nra"]["512"][0], table["rows"][-1]["recall@1"][1]
    assert (one, two) == (81.9, 82.1) and "82.1" in table["source"]


def test_every_file_names_its_source():
    assert all("1909.09427" in read(name)["source"] for name in ("table1", "table2", "figure3"))
