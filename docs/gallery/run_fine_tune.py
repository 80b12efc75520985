"""
Fine-tune a pretrained network, before and after
================================================

This is what ``python train.py`` does, from a program: EfficientNet-Lite0 with ImageNet weights is fine-tuned with the NRA loss
on drawings of things, and then searches among drawings of other things. The picture at the end is that of the README.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from hydra import compose, initialize_config_dir

import dml
from dml.app.run import run_train
from dml.data import emoji
from dml.models.backbones import create_backbone
from dml.retrieval.search import Search

# %%
# Train
# -----
#
# The config is composed as on the command line, and the run does all that a run does: it chooses the checkpoint by validation
# classes, tests once, and leaves its files in a folder, ``outputs/DATE/TIME``.
root = Path(dml.__file__).parents[1]
with initialize_config_dir(str(root / "conf"), version_base="1.3"):
    config = compose("train", ["logger=none", "progress_bar=false"])
metrics = run_train(config)
folder = max(Path("outputs").glob("*/*"))  # the run that came last
for name, value in metrics.items():
    print(f"{name:18s} {value:.4f}")

# %%
# Before
# ------
#
# The pretrained network as it is: its features, scaled to length 1.
test = emoji.load().test
backbone = create_backbone(name="tf_efficientnet_lite0", pretrained=True).eval()
mean, std = (torch.tensor(backbone.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
with torch.inference_mode():
    pixels = torch.from_numpy(test.images).permute(0, 3, 1, 2).split(128)
    before = torch.cat([backbone((part / 255 - mean) / std) for part in pixels])
before = torch.nn.functional.normalize(before, dim=1).numpy()

# %%
# After
# -----
#
# :func:`dml.load` reads the network of a run, with the reading of images that belongs to it.
model = dml.load(folder)
after = model.embed(test.images).numpy()

# %%
# Neighbours
# ----------
#
# Six queries, drawn at random, and the five nearest images of each. No image is its own neighbour.
queries = np.random.default_rng(7).choice(len(test), 6, replace=False)
found = [Search(embeddings)(embeddings[queries], 5, queries)[0] for embeddings in (before, after)]

figure, axes = plt.subplots(6, 12, figsize=(12, 6.4), layout="constrained", width_ratios=[1] * 6 + [0.35] + [1] * 5)
for ax in axes.flat:
    ax.axis("off")
for line, query in enumerate(queries):
    axes[line, 0].imshow(test.images[query])
    for place, index in [*enumerate(found[0][line], 1), *enumerate(found[1][line], 7)]:
        ax = axes[line, place]
        ax.axis("on")
        ax.set(xticks=[], yticks=[])
        ax.imshow(test.images[index])
        ax.spines[:].set(color="#2ea043" if test.labels[index] == test.labels[query] else "#cf222e", linewidth=3)
axes[0, 0].set_title("query")
axes[0, 3].set_title("before training")
axes[0, 9].set_title("after")
if len(sys.argv) > 1:  # python docs/gallery/run_fine_tune.py PICTURE.png
    figure.savefig(sys.argv[1], dpi=110)
plt.show()

# %%
# Share of the 2,349 test images whose nearest neighbour shows the same thing:
for name, embeddings in (("before", before), ("after", after)):
    nearest = Search(embeddings)(embeddings, 1, np.arange(len(embeddings)))[0][:, 0]
    print(f"{name:7s} {np.mean(test.labels[nearest] == test.labels):.3f}")
