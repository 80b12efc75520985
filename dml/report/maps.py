"""Embeddings in the plane: by PCA, and by UMAP where it is installed."""

import warnings

import numpy as np

_LEAST = 1000  # of fewer points UMAP takes longer to load (10 s) than the whole test


def pca(x: np.ndarray) -> tuple[np.ndarray, float]:
    """The two directions of most variance [n, 2], and the share of the variance that they hold. [n, 2]: as it is."""
    if x.shape[1] == 2:
        return x, 1.0
    centred = x - x.mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    directions = vectors[:, ::-1][:, :2]
    # A direction has no sign of its own: the largest coordinate is positive, so that two runs give one picture.
    directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])])
    plane = centred @ directions
    if plane.shape[1] == 1:
        plane = np.column_stack([plane, np.zeros(len(plane))])
    return plane, float(values[::-1][:2].sum() / max(values.sum(), 1e-300))


def umap(x: np.ndarray) -> tuple[np.ndarray | None, str]:
    """UMAP's map [n, 2] of embeddings [n, D], seeded; or None, and why there is none."""
    if x.shape[1] <= 2:
        return None, ""
    if len(x) < _LEAST:
        return None, f"UMAP is drawn from {_LEAST:,} images on."
    try:
        from umap import UMAP
    except ImportError:
        return None, "UMAP is not installed (pip install umap-learn), so there is no second map."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own use of numba, and that a seed means one thread
            return UMAP(random_state=0, n_jobs=1).fit_transform(x), ""
    except Exception as error:  # whatever numba may meet: the rest of the page is worth more
        return None, f"UMAP failed: {error!r}"
