"""Differences between rows: against a slow loop, with known coverage, and what cannot be compared."""

import csv
import io
import random
import statistics

import numpy as np
import pytest
from scipy import stats

from dml.report.__main__ import main
from dml.report.runs import group_runs, read_runs
from dml.report.significance import as_csv, compare, intervals


def sums(values, of_class):
    """[runs, 1, C] of values [runs, Q]."""
    return np.array([[np.bincount(of_class, run)] for run in values])


def slow_interval(ours, theirs, of_class, draws=3000):
    """One query after the other, with random numbers of its own."""
    rng = random.Random(1)
    members = {c: [q for q, d in enumerate(of_class) if d == c] for c in sorted(set(of_class))}
    apart = [
        sum(run[q] for run in ours) / len(ours) - sum(run[q] for run in theirs) / len(theirs)
        for q in range(len(of_class))
    ]
    value = statistics.fmean(apart)
    c = len(members)
    stretch = (c / (c - 1)) ** 0.5 * stats.t.ppf(0.975, c - 1) / stats.norm.ppf(0.975)
    means = [[statistics.fmean(run) for run in side] for side in (ours, theirs)]
    parts = [statistics.variance(side) / len(side) if len(side) > 1 else 0.0 for side in means]
    seeds = min(map(len, means)) > 1
    freedom = sum(parts) ** 2 / sum(p**2 / (len(m) - 1) for p, m in zip(parts, means, strict=True)) if seeds else 1
    found = []
    for _ in range(draws):
        queries = [q for _ in range(c) for q in members[rng.choice(list(members))]]
        drawn = value + stretch * (statistics.fmean(apart[q] for q in queries) - value)
        if seeds:  # Student's t: a normal number over the root of a mean of squares
            drawn += sum(parts) ** 0.5 * rng.gauss(0, 1) / (2 * rng.gammavariate(freedom / 2, 1) / freedom) ** 0.5
        found.append(drawn)
    found.sort()
    return value, found[int(0.025 * draws)], found[int(0.975 * draws)]


@pytest.mark.parametrize("runs", [(1, 1), (3, 2)])
def test_intervals_are_those_of_a_slow_loop(runs):
    rng = np.random.default_rng(0)
    of_class = np.repeat(np.arange(12), rng.integers(1, 6, 12))
    effect = rng.normal(size=12)[of_class]
    ours, theirs = (
        0.2 * effect * s + rng.normal(0.5, 0.1, (r, len(of_class))) for s, r in zip((1, 2), runs, strict=True)
    )
    counts = np.bincount(of_class)[None]
    (found,) = intervals(sums(ours, of_class), sums(theirs, of_class), counts)
    slow = slow_interval(ours.tolist(), theirs.tolist(), of_class.tolist())
    assert found[0] == pytest.approx(slow[0], rel=1e-12)
    assert found[1:] == pytest.approx(slow[1:], abs=0.1 * (found[2] - found[1]))
    again = intervals(sums(ours, of_class), sums(theirs, of_class), counts)
    assert (again == found).all()  # what is drawn is seeded


def covered(classes, runs, trials=400):
    """How often the interval holds the true difference of 0.1, where classes and seeds have effects of their own, and
    how often one of queries that are drawn one by one does."""
    rng = np.random.default_rng(classes + runs)
    of_class = np.repeat(np.arange(classes), 5)
    held, naive = 0, 0
    for _ in range(trials):
        likes = rng.normal(0, 0.2, (2, classes))  # what a method makes of a class
        ours, theirs = (
            value + like[of_class] + rng.normal(0, 0.03, (runs, 1)) + rng.normal(0, 0.1, (runs, 5 * classes))
            for value, like in zip((0.1, 0.0), likes, strict=True)
        )
        (found,) = intervals(sums(ours, of_class), sums(theirs, of_class), np.full((1, classes), 5), draws=400)
        held += found[1] <= 0.1 <= found[2]
        apart = ours.mean(axis=0) - theirs.mean(axis=0)
        naive += abs(apart.mean() - 0.1) <= 1.96 * apart.std() / np.sqrt(len(apart))
    return held / trials, naive / trials


@pytest.mark.parametrize(("classes", "runs", "most"), [(10, 3, 0.99), (60, 3, 0.99), (60, 2, 1)])
def test_intervals_cover_what_is_true(classes, runs, most):
    held, naive = covered(classes, runs)
    assert 0.93 <= held <= most  # of two runs nobody can say much, so the interval is wide
    assert naive < 0.75  # queries are not independent


@pytest.fixture
def write(write_run):
    """A run of 40 queries of 8 classes, of which a share is right at first."""

    def write(name, method, seed, share, labels=None, **row):
        folder = write_run(
            name, method, seed, metrics={"test/recall@1": share, "test/mrr": share, "test/nmi": 0.5}, **row
        )
        rng = np.random.default_rng([seed, int(100 * share)])
        rank = np.where(rng.random(40) < share, 0, rng.integers(1, 9, 40)).astype(np.int32)
        labels = np.repeat(np.arange(8, dtype=np.int32), 5) if labels is None else labels
        np.savez_compressed(folder / "per_query.npz", labels=labels, first_rank=rank)
        return folder

    return write


def test_the_report_says_what_holds(tmp_path, write, capsys):
    for seed in range(3):
        write(f"a{seed}", "nra", seed, 0.9, dimension=64)
        write(f"b{seed}", "lifted", seed, 0.3, dimension=64)
        write(f"c{seed}", "triplet", seed, 0.89, dimension=64)
    main([str(tmp_path), "--against", "nra"])
    out = capsys.readouterr().out
    assert "digits, 64 dimensions; less nra, in percentage points:" in out and "| method | recall@1 | mrr |" in out
    rows = list(csv.DictReader((tmp_path / "significance.csv").open()))
    assert {row["metric"] for row in rows} == {"recall@1", "mrr"} and {row["against"] for row in rows} == {"nra"}
    assert {(row["method"], row["holds"]) for row in rows} == {("lifted", "1"), ("triplet", "0")}
    stored = {m: [np.load(tmp_path / f"{m}{s}" / "per_query.npz")["first_rank"] for s in range(3)] for m in "ab"}
    apart = np.mean([r == 0 for r in stored["b"]]) - np.mean([r == 0 for r in stored["a"]])
    assert float(rows[0]["difference"]) == pytest.approx(100 * apart)
    assert "Which differences hold" in (tmp_path / "report.html").read_text()
    main([str(tmp_path), "--against", "nra"])
    assert rows == list(csv.DictReader((tmp_path / "significance.csv").open()))


def test_rows_are_named_by_what_they_differ_in(tmp_path, write):
    for seed in range(2):
        for mining in ("hard", "all"):
            write(f"{mining}{seed}", "triplet", seed, 0.5, loss={"mining": mining}, dimension=64)
    groups = group_runs(read_runs([tmp_path]), ["loss.mining"])
    (found, _) = compare(groups, "hard")
    assert found.group.label == "triplet, loss.mining=all" and found.runs == (2, 2) and found.seeds
    assert as_csv(compare(groups, "triplet, loss.mining=hard")) == as_csv(compare(groups, "hard"))
    with pytest.raises(ValueError, match="--against triplet names several rows"):
        compare(groups, "triplet")
    with pytest.raises(ValueError, match=r"--against nra is none of the rows: triplet, loss\.mining="):
        compare(groups, "nra")


def test_dimensions_are_compared_where_nothing_else_differs(tmp_path, write):
    for dimension in (64, 512):
        write(str(dimension), "nra", 0, 0.5, dimension=dimension)
    found = compare(group_runs(read_runs([tmp_path])), "64")
    assert [(one.group.dimension, one.seeds) for one in found] == [(512, False)] * 2


def test_what_cannot_be_compared_is_refused(tmp_path, write):
    write("a", "nra", 0, 0.5)
    folder = write("b", "lifted", 0, 0.5, labels=np.repeat(np.arange(4), 10))
    with pytest.raises(SystemExit, match="were not tested on the same images"):
        main([str(tmp_path), "--against", "nra"])
    (folder / "per_query.npz").unlink()
    with pytest.raises(SystemExit, match=r"b/per_query\.npz is not there, and --against needs it"):
        main([str(tmp_path), "--against", "nra"])
    assert not list(tmp_path.glob("table.*"))


def test_differences_are_read_in_full(tmp_path, write):
    write("a", "nra", 0, 0.5)
    write("b", "lifted", 0, 0.5)
    text = as_csv(compare(group_runs(read_runs([tmp_path])), "nra"))
    assert [row["runs"] for row in csv.DictReader(io.StringIO(text))] == ["1", "1"]
