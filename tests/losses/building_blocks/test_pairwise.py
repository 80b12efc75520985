"""The code for large batches: proposals by rounded products, decided and mended by differences, block by block."""

import pytest
import torch

from dml.losses.building_blocks import distances, pairwise
from dml.losses.building_blocks import extremes as mining
from dml.losses.building_blocks.extremes import extremes
from dml.losses.building_blocks.pairwise import distance_to, root, row_blocks
from dml.losses.building_blocks.rowwise import rowwise, sum_over_rows


@pytest.fixture(autouse=True)
def large(monkeypatch):
    """Batches of these tests count as large, and a block holds a few rows."""
    monkeypatch.setattr(pairwise, "_SMALL", -1)
    monkeypatch.setattr(mining, "_DENSE", 0)
    monkeypatch.setattr(pairwise, "_BLOCK", {"cpu": 2000})
    monkeypatch.setattr(distances, "_WIDTH", 40)


def by_loops(x, labels):
    """Extremes by float64 distances; the lower index of equals."""
    d = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist").tolist()
    classes, found = labels.tolist(), []
    for i, row in enumerate(d):
        others = [j for j in range(len(row)) if j != i]
        positives = [j for j in others if classes[j] == classes[i]]
        negatives = [j for j in others if classes[j] != classes[i]]
        if positives and negatives:
            # min and max return the first of equals.
            far, near = (max(positives, key=row.__getitem__), min(negatives, key=row.__getitem__))
            found.append((i, max(others, key=row.__getitem__), near, far, min(others, key=row.__getitem__)))
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 5).T


KINDS = {
    "normal": lambda x, centres: x,
    "far_from_the_origin": lambda x, centres: x + 1000,
    "on_a_grid": lambda x, centres: (2 * x).round(),
    "tight_classes": lambda x, centres: centres + 1e-3 * x,
    "classes_at_the_edge_of_rounding": lambda x, centres: centres + 1e-6 * x,
    "every_image_twice": lambda x, centres: torch.cat([x[::2], x[::2]])[: len(x)],
    "tiny": lambda x, centres: 1e-15 * x,
    "huge": lambda x, centres: 1e15 * x,
    "vanishing": lambda x, centres: 1e-22 * x,
    "overflowing": lambda x, centres: 1e19 * x,
    "collapsed": lambda x, centres: x * 0 + 3,
}


@pytest.mark.parametrize("dense", [0, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_extremes_are_those_of_exact_distances(monkeypatch, kind, dtype, dense):
    monkeypatch.setattr(mining, "_DENSE", dense)
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        m, classes = 90 + 38 * seed, (5, 40, 60)[seed]  # with and without whole chunks of columns
        labels = torch.randint(classes, (m,), generator=g)
        x = torch.randn(m, 24, generator=g)
        x = KINDS[kind](x, torch.randn(classes, 24, generator=g)[labels]).to(dtype)
        wanted = by_loops(x, labels)
        assert torch.equal(torch.vstack(extremes(x, labels)), wanted)
        assert torch.equal(torch.vstack(extremes(x, labels, of_classes_only=True)), wanted[[0, 2, 3]])


@pytest.mark.parametrize("dense", [0, 512])
def test_a_row_in_question_is_decided_and_not_computed_whole(monkeypatch, dense):
    monkeypatch.setattr(mining, "_DENSE", dense)

    def whole(*_, **__):
        raise AssertionError

    monkeypatch.setattr(mining, "_exactly", whole)
    x = torch.randn(200, 24, generator=torch.Generator().manual_seed(0))
    x[100:] = x[:100]  # each distance comes twice
    labels = torch.arange(200) % 100 // 4
    assert torch.equal(torch.vstack(extremes(x, labels)), by_loops(x, labels))


@pytest.mark.parametrize("dense", [0, 512])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_extremes_of_broken_embeddings_keep_all_valid_anchors(monkeypatch, value, dense):
    monkeypatch.setattr(mining, "_DENSE", dense)
    x = torch.randn(60, 8)
    x[7, 3] = value
    assert torch.equal(extremes(x, torch.arange(60) // 3)[0], torch.arange(60))


def test_distances_to_with_gradient():
    x = torch.randn(30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[4] = x[9]
    first, second = torch.tensor([0, 4, 7, 0, 4, 7]), torch.tensor([1, 9, 0, 1, 2, 7])  # twice, at 0, to itself
    weight = torch.tensor([1.0, 5, 2, -3, 4, 0.5], dtype=torch.float64)
    ours, plain = (x.clone().requires_grad_() for _ in range(2))
    (distance_to(ours, first[:3], second.view(2, 3)) * weight.view(2, 3)).sum().backward()
    (torch.linalg.vector_norm(plain[first] - plain[second], dim=1) * weight)[[0, 2, 3, 4]].sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-13, atol=1e-13)


def dense(x):
    return (x[:, None] - x[None, :]).square().sum(dim=2)


def lopsided(rows, squared, tilt):
    """A term that differs between the rows of a pair, with an infinite slope of the root at 0."""
    return (root(squared) * tilt[None, :] + tilt[rows, None] * squared).sum(dim=1).tanh()


@pytest.mark.parametrize("kind", ["normal", "far_from_the_origin", "tight_classes", "every_image_twice", "collapsed"])
def test_rowwise_is_the_dense_form(kind):
    g = torch.Generator().manual_seed(2)
    labels = torch.randint(20, (150,), generator=g)
    x = KINDS[kind](torch.randn(150, 16, generator=g), torch.randn(20, 16, generator=g)[labels]).double()
    tilt = 1e-3 * torch.randn(150, generator=g, dtype=torch.float64)
    upstream = torch.randn(150, generator=g, dtype=torch.float64)
    leaves = [(x.clone().requires_grad_(), tilt.clone().requires_grad_()) for _ in range(2)]
    ours = rowwise(leaves[0][0], lopsided, leaves[0][1])
    whole = lopsided(torch.arange(150), dense(leaves[1][0]), leaves[1][1])
    torch.testing.assert_close(ours, whole, rtol=1e-9, atol=1e-12)
    for values in (ours, whole):
        (values * upstream).sum().backward()
    for a, b in zip(*leaves, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-11 * b.grad.abs().max().item() + 1e-14)


@pytest.mark.parametrize("waiting", [0, 2**26])
@pytest.mark.parametrize("kind", ["normal", "far_from_the_origin", "tight_classes", "collapsed"])
def test_sum_over_rows_in_float32(kind, waiting, monkeypatch):
    monkeypatch.setattr(distances, "_WAITING", waiting)  # whether the weights of a pair wait for each other
    g = torch.Generator().manual_seed(3)
    labels = torch.randint(20, (150,), generator=g)
    x = KINDS[kind](torch.randn(150, 16, generator=g), torch.randn(20, 16, generator=g)[labels])

    def terms(rows, squared):
        tilt = torch.linspace(0, 1, 150, dtype=squared.dtype)[rows, None]
        return (tilt * (5 - root(squared)).clamp_min(0).square()).sum(dim=1)

    ours, whole = x.clone().requires_grad_(), x.double().requires_grad_()
    value, expected = sum_over_rows(ours, terms), terms(torch.arange(150), dense(whole)).sum()
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=0)
    (3 * value).backward()
    (3 * expected).backward()
    assert (ours.grad - whole.grad).norm() <= 1e-4 * whole.grad.norm() + 1e-6


def test_no_block_is_larger_than_said():
    seen = []

    def terms(rows, squared):
        seen.append((rows.tolist(), squared.shape))
        return squared.sum(dim=1)

    x = torch.randn(150, 4)
    with torch.no_grad():
        sum_over_rows(x, terms)
    assert [row for rows, _ in seen for row in rows] == list(range(150))
    assert all(shape[0] * shape[1] <= 2000 and shape[1] == 150 for _, shape in seen)
    assert [len(rows) for rows in row_blocks(x, torch.arange(30))] == [13, 13, 4]
    assert not list(row_blocks(x, torch.arange(0)))


def test_the_gradient_of_near_pairs_is_as_exact_as_their_distance():
    # Coordinates around 0 whose mean is far away: moved to it they would lose the digits that tell them apart.
    x = torch.cat([torch.zeros(60, 8), torch.full((60, 8), 2.0)])
    x[:4] = 1e-6 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    x[60:] += torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    x[4:60] += torch.randn(56, 8, generator=torch.Generator().manual_seed(2))

    def terms(rows, squared):
        return torch.where((rows[:, None] < 4) & (torch.arange(120) < 4), 1e12 * squared, 0).sum(dim=1)

    ours, whole = x.clone().requires_grad_(), x.double().requires_grad_()
    sum_over_rows(ours, terms).backward()
    terms(torch.arange(120), dense(whole)).sum().backward()
    assert (ours.grad - whole.grad)[:4].norm() <= 1e-5 * whole.grad[:4].norm()


def test_backward_under_autocast_and_forward_without_gradient():
    x = torch.randn(150, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    tilt = torch.linspace(0, 1, 150)
    expected = torch.autograd.grad(rowwise(x, lopsided, tilt).sum(), x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(torch.autograd.grad(rowwise(x, lopsided, tilt).sum(), x)[0], expected)
    value = sum_over_rows(x, lambda rows, squared: squared.sum(dim=1))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            without = sum_over_rows(x, lambda rows, squared: squared.sum(dim=1))
        assert not without.requires_grad and without == value.detach()
