"""
How the NRA loss works
======================

The NRA loss (Schall, Barthel, Hezel, Jung 2019) does not compare distances. It turns the distances of a batch into
ranks, the ranks into similarities, and looks at two images of each anchor: its farthest positive and its nearest negative.
This page draws the three steps on a small batch.
"""

# %%
# Distances
# ---------
#
# Two classes with six images each, in the plane. One positive (of the anchor's class) has strayed to the other class.
import matplotlib.pyplot as plt
import torch

from dml.losses.nra import NRALoss

generator = torch.Generator().manual_seed(3)
embeddings = torch.cat(
    [torch.randn(6, 2, generator=generator) * 0.5, torch.randn(6, 2, generator=generator) * 0.5 + 2.0]
)
embeddings[5] = torch.tensor([1.6, 1.2])
labels = torch.tensor([0] * 6 + [1] * 6)
anchor = 0
distances = (embeddings - embeddings[anchor]).norm(dim=1)
others = torch.arange(12) != anchor

# %%
# Ranks
# -----
#
# A rank is a distance, scaled by the nearest and the farthest image of the batch (eq. 8 of the paper). The nearest image has
# rank 0, the farthest one has rank 1.
nearest, farthest = distances[others].min(), distances[others].max()
ranks = (distances - nearest) / (farthest - nearest)

# %%
# Similarities
# ------------
#
# The transfer function (eq. 10) bends ranks: with alpha above 1, ranks near 0 and near 1 are pressed together, and those in
# the middle are pulled apart. A similarity is 1 minus the transferred rank.
alpha = 4.0


def transfer(r: torch.Tensor, alpha: float) -> torch.Tensor:
    return torch.where(r < 0.5, 0.5 * (2 * r) ** alpha, 1 - 0.5 * (2 - 2 * r) ** alpha)


similarities = 1 - transfer(ranks, alpha)
positives = others & (labels == labels[anchor])
negatives = labels != labels[anchor]
worst_positive = int(torch.where(positives, ranks, -1).argmax())
nearest_negative = int(torch.where(negatives, ranks, 2).argmin())

figure, axes = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
colours = ["#1f77b4" if same else "#d62728" for same in labels == labels[anchor]]
axes[0].scatter(*embeddings.T, c=colours, s=70)
axes[0].scatter(*embeddings[anchor], c="black", s=140, marker="*", zorder=3)
for index, name in ((worst_positive, "farthest positive"), (nearest_negative, "nearest negative")):
    axes[0].plot(*torch.stack([embeddings[anchor], embeddings[index]]).T, color=colours[index], linestyle=":")
    place = (8, 8) if index == nearest_negative else (8, -14)
    axes[0].annotate(name, embeddings[index].tolist(), xytext=place, textcoords="offset points")
axes[0].set(title="1  Distances from the anchor (star)", aspect="equal", xticks=[], yticks=[])

order = distances.argsort()[1:]
axes[1].bar(range(len(order)), ranks[order] + 0.03, bottom=-0.03, color=[colours[i] for i in order])
axes[1].set(
    title="2  Ranks: distances scaled to 0 .. 1",
    xlabel="images, the nearest first",
    ylabel="rank",
    xticks=[],
    ylim=(-0.03, 1.05),
)

curve = torch.linspace(0, 1, 201)
axes[2].plot(curve, 1 - transfer(curve, alpha), color="gray")
axes[2].scatter(ranks[others], similarities[others], c=[c for c, o in zip(colours, others) if o], s=70, zorder=3)
for index, name in ((worst_positive, "farthest positive"), (nearest_negative, "nearest negative")):
    axes[2].annotate(name, (float(ranks[index]), float(similarities[index])), xytext=(8, 8), textcoords="offset points")
axes[2].set(title=f"3  Similarities, alpha = {alpha:g}", xlabel="rank", ylabel="similarity", ylim=(-0.05, 1.15))

# %%
# The loss
# --------
#
# The loss of an anchor wants a high similarity of its farthest positive and a low one of its nearest negative (eq. 12). Its
# mean over all anchors is what :class:`dml.losses.nra.NRALoss` computes.
embeddings.requires_grad_()
loss = NRALoss(alpha=alpha)(embeddings, labels)
loss.backward()
print(f"loss of this batch: {loss.item():.3f}")

# %%
# The gradient shows what moves: an arrow is the step that gradient descent takes from each point.
figure, axes = plt.subplots(figsize=(5.5, 4.6), layout="constrained")
points, step = embeddings.detach(), -embeddings.grad
axes.scatter(*points.T, c=colours, s=60)
axes.quiver(*points.T, *step.T, angles="xy", width=0.006)
axes.set(title="Steps that the loss asks for", aspect="equal", xticks=[], yticks=[])

# %%
# What alpha does
# ---------------
#
# ``loss.alpha`` is the one key of this loss that is worth a sweep: ``python train.py -m loss.alpha=1,2,3,4,5,6``.
figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
inside = torch.linspace(0, 0.999, 400)
for value in (1, 2, 4, 8):
    w = transfer(inside, value)
    axes[0].plot(inside, w, label=f"alpha = {value}")
    axes[1].plot(inside, -torch.log(1 - w), label=f"alpha = {value}")
axes[0].set(title="transfer function", xlabel="rank", ylabel="w(rank)")
axes[1].set(title="loss of a positive", xlabel="rank", ylabel="- log(1 - w)", ylim=(0, 5))
axes[0].legend()
plt.show()
