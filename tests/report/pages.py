"""What tests of pages share: a test part of classes with difficult names, and a browser that looks at a file."""

import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from dml.report.findings import Looked
from dml.report.page import Tested
from tests.retrieval import oracle

NAMES = (
    "<b>bold</b>",
    "R&D \"quoted\" 'it'",
    "</script><script>throw Error('in')</script>",
    "Größe 大 \udcff\n",
    "x" * 300,
)


def made(classes=5, images=12, dim=6, noise=1.0, gallery=False, **given) -> Tested:
    """A test part of `classes` x `images`, each image of its class's gray; searched by brute force."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), images)
    x = (4 * rng.normal(size=(classes, dim))[labels] + noise * rng.normal(size=(len(labels), dim))).astype(np.float32)
    own = np.full(len(x), -1) if gallery else np.arange(len(x))
    g = x + 0.1 if gallery else x
    order, distance = oracle.ranking(x, g, None if gallery else own)
    sample = rng.permutation(len(x))
    found_labels = labels.copy() if gallery else labels
    positives = np.full(len(x), images - (not gallery))
    names = [NAMES[c] if c < len(NAMES) else f"class {c}" for c in range(classes)]
    near = order[sample, :8], distance[sample, :8]
    looked = Looked(sample, *near, labels, found_labels, names, own, positives)
    nearest = [oracle.ranks([o], [y], found_labels)[0][0] for o, y in zip(order, labels, strict=True)]
    row = {"method": "nra", "data": NAMES[2], "seed": 0, "loss": {"alpha": 4, "name": NAMES[0]}, "leaked": False}
    defaults = {
        "title": f"nra on {NAMES[0]}, seed 0",
        "metrics": {"test/recall@1": 0.5},
        "row": row,
        "first_rank": np.array(nearest),
        "picture": lambda key, side: Image.new("RGB", (40, 20), (40 * int(labels[key[1]]) % 256,) * 3),
        "curves": {"train/loss": [[1, 2.0], [2, 1.0]], "val/map": [[2, 0.5]], "train/learning_rate": [[1, 0.1]]},
    }
    return Tested(looked=looked, embeddings=x, **{**defaults, **given})


def _browse(page, folder, *options) -> subprocess.CompletedProcess:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium to open the page with")
    # A log to standard error; a profile of its own; time for scripts.
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=2000", *options]
    done = subprocess.run([*command, page.resolve().as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def look_at(page, picture, width=1200) -> list[str]:
    """Open a page in Chromium, take a screenshot, and give what its console said of errors and warnings."""
    done = _browse(page, picture.parent, f"--window-size={width},1600", f"--screenshot={picture}")
    assert picture.is_file(), done.stderr[-2000:]
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def elements(page, folder) -> str:
    """The elements of a page once its scripts have run."""
    return _browse(page, folder, "--window-size=1200,1600", "--dump-dom").stdout
