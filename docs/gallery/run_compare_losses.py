"""
Losses, samplers and exact ranks in a loop of your own
======================================================

Losses, samplers, the evaluator and the backbones are plain PyTorch: nothing here needs Hydra or Lightning. This program
computes the features of a pretrained network once, trains a linear layer on them with three losses, and measures each on
classes that it has never seen.
"""

import time

import torch
from torch import nn

from dml.data import emoji
from dml.losses.contrastive import ContrastiveLoss
from dml.losses.nra import NRALoss
from dml.losses.proxy_anchor import ProxyAnchorLoss
from dml.models.backbones import create_backbone
from dml.retrieval.evaluator import Evaluator
from dml.samplers.groups import GroupSampler

# %%
# Images
# ------
#
# The package carries drawings of 853 things by six teams. Half of the things are for training, the others for the test.
source = emoji.load()
print(f"train: {source.train.sizes}")
print(f"test:  {source.test.sizes}")

# %%
# Features
# --------
#
# EfficientNet-Lite0 with ImageNet weights, which the extra ``weights`` installs: no download. The network says how its images
# are scaled.
backbone = create_backbone(name="tf_efficientnet_lite0", pretrained=True).eval()
mean, std = (torch.tensor(backbone.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))


@torch.inference_mode()
def features(images) -> torch.Tensor:
    parts = torch.from_numpy(images).permute(0, 3, 1, 2).split(128)
    return torch.cat([backbone((part / 255 - mean) / std) for part in parts])


start = time.perf_counter()
train, test = features(source.train.images), features(source.test.images)
center, scale = train.mean(dim=0), train.std(dim=0)
train, test = (train - center) / scale, (test - center) / scale
print(f"features {list(train.shape)} and {list(test.shape)} in {time.perf_counter() - start:.0f} s")

# %%
# Training
# --------
#
# A loss is called with embeddings [m, d] and labels [m]. The sampler gives the indices of a batch: 32 classes with 4 images
# each. It never repeats an image while another one of its class waits.
labels, test_labels = torch.from_numpy(source.train.labels), torch.from_numpy(source.test.labels)
evaluate = Evaluator(ks=[1, 8], metrics=["recall", "map@r"])


def trained(loss: nn.Module, steps: int = 400, lr: float = 1e-3) -> nn.Module:
    torch.manual_seed(0)
    head = nn.Linear(train.shape[1], 128)
    optimizer = torch.optim.AdamW([*head.parameters(), *loss.parameters()], lr=lr)
    sampler = GroupSampler(classes_per_batch=32, samples_per_class=4, labels=labels, seed=0)
    done = 0
    while done < steps:
        for batch in sampler:
            noisy = train[batch] + 0.3 * torch.randn(len(batch), train.shape[1])  # a linear layer overfits without it
            optimizer.zero_grad()
            loss(nn.functional.normalize(head(noisy), dim=1), labels[batch]).backward()
            optimizer.step()
            done += 1
            if done == steps:
                break
    return head


losses = {
    "contrastive": ContrastiveLoss(),
    "proxy_anchor": ProxyAnchorLoss(embedding_dim=128, num_classes=source.train.num_classes),
    "nra": NRALoss(),
}
print(f"{'':14s} recall@1  recall@8   map@r")
for name, embeddings in [("no training", test), *((name, trained(loss)(test)) for name, loss in losses.items())]:
    scores = evaluate(embeddings.detach(), test_labels)
    print(f"{name:14s} {scores['recall@1']:8.3f} {scores['recall@8']:9.3f} {scores['map@r']:7.3f}")

# %%
# One seed and one learning rate say little: :doc:`/results` has the comparison with a search of the learning rate, ten seeds
# and intervals.
