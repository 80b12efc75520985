"""The tree of classes of the hierarchical triplet loss (Ge, Huang, Dong and Scott 2018, arXiv:1810.06951), section 3.1.

Its sampler and its loss both need it, and a part may not import another. Numpy on the CPU in one order: the same
embeddings give the same bits on every process.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

_ROWS = 512  # of the matrix of distances between classes at a time


class ClassDistances:
    """Mean squared distances between and within classes, of embeddings brought to length 1.

    They follow from the count, the sum and the squared lengths of each class: no two images are compared.

    Args:
        embeddings: [N, D].
        labels: [N], 0 .. num_classes - 1.
        num_classes: C.

    Attributes:
        spread: [C] mean over the pairs of a class; 0 of a class of one image.
        mean_spread: over the classes of two images or more.
    """

    def __init__(self, embeddings: Tensor, labels: Tensor, num_classes: int) -> None:
        x, y = embeddings.detach().cpu().double(), labels.cpu()
        x = x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)
        counts = torch.bincount(y, minlength=num_classes).double()
        self._means = torch.zeros(num_classes, x.shape[1], dtype=torch.float64).index_add_(0, y, x)
        self._means /= counts.clamp_min(1)[:, None]
        self._squares = torch.zeros(num_classes, dtype=torch.float64).index_add_(0, y, x.square().sum(dim=1))
        self._squares /= counts.clamp_min(1)
        several = counts > 1
        within = 2 * (self._squares - self._means.square().sum(dim=1)) * counts / (counts - 1).clamp_min(1)
        self.spread = torch.where(several, within, 0).clamp_min(0)
        self.mean_spread = float(self.spread[several].mean()) if several.any() else 0.0

    def rows(self) -> Iterator[tuple[slice, np.ndarray]]:
        """The matrix [C, C] of distances between classes, some rows at a time, in float32; infinite on the diagonal."""
        for start in range(0, len(self._means), _ROWS):
            rows = slice(start, min(start + _ROWS, len(self._means)))
            block = self._squares[rows, None] + self._squares - 2 * (self._means[rows] @ self._means.T)
            block[torch.arange(rows.stop - start), torch.arange(start, rows.stop)] = torch.inf
            yield rows, block.clamp_min_(0).float().numpy()


def nearest_classes(distances: ClassDistances, count: int) -> Tensor:
    """The `count` classes nearest to each class [C, count], the nearest first; of equally near ones the first."""
    found = []
    for _, block in distances.rows():
        few = np.sort(np.argpartition(block, min(count, block.shape[1] - 1), axis=1)[:, :count], axis=1)
        order = np.take_along_axis(block, few, axis=1).argsort(axis=1, kind="stable")
        found.append(np.take_along_axis(few, order, axis=1))
    return torch.from_numpy(np.concatenate(found))


def thresholds_of(distances: ClassDistances, depth: int) -> Tensor:
    """The distances d_l = l (4 - d_0) / depth + d_0 below which classes share a node at level l = 0 .. depth."""
    level = torch.arange(depth + 1, dtype=torch.float64)
    return level * (4 - distances.mean_spread) / depth + distances.mean_spread


def tree_of(distances: ClassDistances, thresholds: Tensor) -> Tensor:
    """The node of each class at each level [depth + 1, C]: classes joined by a chain of steps below the threshold.

    That is single linkage, which the minimum spanning tree of the distances holds (Prim's algorithm, O(C^2) time, and
    C^2 numbers of 4 bytes). At the last level all classes share a node.
    """
    count = len(distances.spread)
    matrix = np.empty((count, count), dtype=np.float32)
    for rows, block in distances.rows():
        matrix[rows] = block
    # How far each class that is not in the tree yet is from it, and from which class of it; infinite for those inside.
    away, of = matrix[0].copy(), np.zeros(count, dtype=np.int64)
    inside, edges = np.zeros(count, dtype=bool), []
    inside[0] = True
    for _ in range(count - 1):
        new = int(away.argmin())
        edges.append((float(away[new]), int(of[new]), new))
        inside[new], away[new] = True, np.inf
        closer = np.flatnonzero((matrix[new] < away) & ~inside)
        away[closer], of[closer] = matrix[new, closer], new
    edges.sort()
    nodes, own = [], np.arange(count)
    members = {c: [c] for c in range(count)}
    done = 0
    for level, threshold in enumerate(thresholds.tolist()):
        last = level == len(thresholds) - 1
        while done < len(edges) and (last or edges[done][0] < threshold):
            keep, gone = sorted((own[edges[done][1]], own[edges[done][2]]), key=lambda node: -len(members[int(node)]))
            own[members[int(gone)]] = keep
            members[int(keep)] += members.pop(int(gone))
            done += 1
        nodes.append(own.copy())
    return torch.from_numpy(np.stack(nodes))
