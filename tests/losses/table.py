"""All losses, for the tests that take each of them: on any batch, on several processes, with gradient caching."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dml.losses.angular import AngularLoss
from dml.losses.arc_face import ArcFaceLoss
from dml.losses.bier import BIERLoss
from dml.losses.calibration import CalibrationLoss
from dml.losses.circle import CircleLoss
from dml.losses.clustering import ClusteringLoss
from dml.losses.contrastive import ContrastiveLoss
from dml.losses.cos_face import CosFaceLoss
from dml.losses.cross_entropy import CrossEntropyLoss
from dml.losses.fast_ap import FastAPLoss
from dml.losses.generalized_lifted import GeneralizedLiftedLoss
from dml.losses.group import GroupLoss
from dml.losses.hdc import HDCLoss
from dml.losses.hist import HISTLoss
from dml.losses.histogram import HistogramLoss
from dml.losses.htl import HTLLoss
from dml.losses.lifted import LiftedLoss
from dml.losses.margin import MarginLoss
from dml.losses.matryoshka import MatryoshkaLoss
from dml.losses.memory import CrossBatchMemory
from dml.losses.multi_similarity import MultiSimilarityLoss
from dml.losses.multimodal import MultimodalLoss
from dml.losses.nca import NCALoss
from dml.losses.normalized_softmax import NormalizedSoftmaxLoss
from dml.losses.npair import NPairLoss
from dml.losses.npair_angular import NPairAngularLoss
from dml.losses.nra import NRALoss
from dml.losses.nt_xent import NTXentLoss
from dml.losses.pddm import PDDMLoss
from dml.losses.per_group import PerGroupLoss
from dml.losses.proxy_anchor import ProxyAnchorLoss
from dml.losses.proxy_nca import ProxyNCALoss
from dml.losses.ranked_list import RankedListLoss
from dml.losses.recall_at_k import RecallAtKLoss
from dml.losses.roadmap import RoadmapLoss
from dml.losses.s2sd import S2SDLoss
from dml.losses.sigmoid_pairs import SigmoidPairsLoss
from dml.losses.smooth_ap import SmoothAPLoss
from dml.losses.snr import SNRLoss
from dml.losses.soft_triple import SoftTripleLoss
from dml.losses.sum import SumLoss
from dml.losses.sup_ap import SupAPLoss
from dml.losses.sup_con import SupConLoss
from dml.losses.triplet import TripletLoss
from dml.losses.tuplet_margin import TupletMarginLoss
from tests import oracles
from tests.losses import by_anchors, by_clusters, by_groups, by_proxies, by_ranks, by_weights


class Known(NamedTuple):
    """A loss with options, and its oracle, which takes the same."""

    make: Callable[..., nn.Module]
    oracle: Callable[..., Tensor]
    options: dict[str, Any]


# Name, which begins with the loss's file in conf/loss. These take `anchors`, and so does their oracle.
PAIRS = {
    "nra": Known(NRALoss, oracles.nra, {}),
    "nra, alpha 1": Known(NRALoss, oracles.nra, {"alpha": 1.0, "epsilon": 1e-2}),
    "nra, alpha 0.3": Known(NRALoss, oracles.nra, {"alpha": 0.3, "epsilon": 0.1}),
    "triplet": Known(TripletLoss, oracles.triplet, {}),
    "triplet, all": Known(TripletLoss, oracles.triplet, {"mining": "all", "margin": 0.3}),
    "triplet, hard": Known(TripletLoss, oracles.triplet, {"mining": "hard", "margin": 4.0}),
    "contrastive": Known(ContrastiveLoss, oracles.contrastive, {}),
    "contrastive, wide": Known(ContrastiveLoss, oracles.contrastive, {"margin": 5.0}),
    "multi_similarity": Known(MultiSimilarityLoss, by_anchors.multi_similarity, {}),
    "circle": Known(CircleLoss, by_anchors.circle, {}),
    "sup_con": Known(SupConLoss, by_anchors.sup_con, {}),
    "nt_xent": Known(NTXentLoss, by_anchors.nt_xent, {}),
    "nt_xent, sincere": Known(NTXentLoss, by_anchors.nt_xent, {"average": "anchor", "temperature": 0.5}),
    "generalized_lifted": Known(GeneralizedLiftedLoss, by_anchors.generalized_lifted, {}),
    "nca": Known(NCALoss, by_anchors.nca, {}),
    "nca, raw": Known(NCALoss, by_anchors.nca, {"normalize": False}),
    "smooth_ap": Known(SmoothAPLoss, by_ranks.smooth_ap, {"temperature": 0.1}),
    "sup_ap": Known(SupAPLoss, by_ranks.sup_ap, {}),
    "fast_ap": Known(FastAPLoss, by_ranks.fast_ap, {}),
    "recall_at_k": Known(RecallAtKLoss, by_ranks.recall_at_k, {"rank_temperature": 0.1}),
    "tuplet_margin": Known(TupletMarginLoss, by_anchors.tuplet_margin, {}),
    "roadmap": Known(RoadmapLoss, by_ranks.roadmap, {}),
    "calibration": Known(CalibrationLoss, by_anchors.calibration, {}),
    "ranked_list": Known(RankedListLoss, by_anchors.ranked_list, {}),
    "ranked_list, tpami": Known(RankedListLoss, by_anchors.ranked_list, {"form": "tpami"}),
    "histogram": Known(HistogramLoss, by_anchors.histogram, {"bins": 11}),
    "snr": Known(SNRLoss, by_anchors.snr, {}),
    "snr, triplet": Known(SNRLoss, by_anchors.snr, {"form": "triplet"}),
    "angular": Known(AngularLoss, by_anchors.angular, {}),
}
# Pairs of all kinds of the batch, without anchors.
WHOLE = {
    "lifted": Known(LiftedLoss, oracles.lifted, {}),
    "npair": Known(NPairLoss, oracles.npair, {}),
    "npair, lengths": Known(NPairLoss, oracles.npair, {"l2_weight": 0.1}),
    "npair_angular": Known(NPairAngularLoss, by_anchors.npair_angular, {}),
    "clustering": Known(ClusteringLoss, by_clusters.clustering, {}),
}


def matryoshka(*, embedding_dim: int, **options: Any) -> nn.Module:
    """Contrastive loss on the first half of the dimensions, and on all."""
    sizes = sorted({(embedding_dim + 1) // 2, embedding_dim})
    return MatryoshkaLoss(loss=ContrastiveLoss(), embedding_dim=embedding_dim, sizes=sizes, **options)


# Those that own other weights, or know the dimension; their oracles take the loss first.
OWN = {
    "matryoshka": Known(matryoshka, by_weights.matryoshka, {}),
    "sigmoid_pairs": Known(SigmoidPairsLoss, by_weights.sigmoid_pairs, {}),
    "pddm": Known(PDDMLoss, by_weights.pddm, {}),
    "pddm, class": Known(PDDMLoss, by_weights.pddm, {"scope": "class"}),
}


def htl(embedding_dim: int, num_classes: int, **options: Any) -> nn.Module:
    """HTL with a tree."""
    loss, g = HTLLoss(num_classes=num_classes, **options), torch.Generator().manual_seed(0)
    labels = torch.arange(3 * num_classes) % num_classes
    centers = torch.randn(num_classes, embedding_dim, generator=g)
    loss.see_training_set(centers[labels] + 0.3 * torch.randn(len(labels), embedding_dim, generator=g), labels)
    return loss


def sum_of(embedding_dim: int, num_classes: int) -> nn.Module:
    """A pair loss beside one with weights of its own."""
    proxies = ProxyAnchorLoss(embedding_dim=embedding_dim, num_classes=num_classes)
    return SumLoss(losses={"first": SupConLoss(), "second": proxies}, weights={"first": 1.0, "second": 0.3})


def of_sum(loss: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Its oracle."""
    return by_anchors.sup_con(x, labels) + 0.3 * by_proxies.proxy_anchor(loss.losses["second"], x, labels)


# Those that own weights of the classes; their oracles take the loss first.
PROXIES = {
    "cross_entropy": Known(CrossEntropyLoss, by_proxies.cross_entropy, {}),
    "normalized_softmax": Known(NormalizedSoftmaxLoss, by_proxies.normalized_softmax, {}),
    "cos_face": Known(CosFaceLoss, by_proxies.cos_face, {}),
    "arc_face": Known(ArcFaceLoss, by_proxies.arc_face, {}),
    "htl": Known(htl, by_anchors.htl, {}),
    "proxy_nca": Known(ProxyNCALoss, by_proxies.proxy_nca, {}),
    "proxy_nca, pp": Known(ProxyNCALoss, by_proxies.proxy_nca, {"scale": 9.0, "include_positive": True}),
    "proxy_anchor": Known(ProxyAnchorLoss, by_proxies.proxy_anchor, {}),
    "soft_triple": Known(SoftTripleLoss, by_proxies.soft_triple, {"centers_per_class": 2}),
    "margin": Known(MarginLoss, by_proxies.margin, {}),
    "group": Known(GroupLoss, by_proxies.group, {"temperature": 2.0}),
    "multimodal": Known(MultimodalLoss, by_proxies.multimodal, {"proxies_per_class": 2}),
    "hist": Known(HISTLoss, by_proxies.hist, {"hidden": 4}),
    "sum": Known(sum_of, of_sum, {}),
}


def per_group(**options: Any) -> nn.Module:
    """Contrastive loss in every group."""
    return PerGroupLoss(loss=ContrastiveLoss(), **options)


def s2sd(**options: Any) -> nn.Module:
    """S2SD around a contrastive loss; one column cannot be both embedding and features.

    Its target has 16 dimensions: thousands of embeddings in very few are near ties, as no user has them.
    """
    if len(options["groups"]) == 1:
        return per_group(groups=options["groups"])
    return S2SDLoss(**{"loss": ContrastiveLoss(), "targets": (16,), **options})


# Those of columns in groups; their oracles take the loss first.
GROUPED = {
    "hdc": Known(HDCLoss, by_groups.hdc, {"ratios": (0.7, 0.5)}),
    "bier": Known(BIERLoss, by_groups.bier, {}),
    "bier, eta": Known(BIERLoss, by_groups.bier, {"boosting": "eta", "cost": 5.0}),
    "bier, adversarial": Known(BIERLoss, by_groups.bier, {"adversarial": 0.1, "weight_penalty": 0.1, "hidden": 4}),
    "s2sd": Known(s2sd, by_groups.s2sd, {"feature_step": 0, "weight": 1.0, "feature_weight": 1.0}),
    "per_group": Known(per_group, by_groups.per_group, {"divergence": 0.5}),
}


def options_of(name: str, groups: Sequence[int]) -> dict[str, Any]:
    """The options of a loss of this name that groups of these widths allow."""
    options = dict(GROUPED[name].options)
    if "ratios" in options:
        options["ratios"] = options["ratios"][: len(groups)]
    if len(set(groups)) > 1 or len(groups) == 1:
        options |= {key: 0.0 for key in ("divergence", "adversarial") if key in options}
    return options


def build(name: str, embedding_dim: int, num_classes: int) -> nn.Module:
    """A loss of this name."""
    if name in GROUPED:
        half = embedding_dim // 2
        groups = (half, embedding_dim - half) if half else (1,)
        return GROUPED[name].make(groups=groups, **options_of(name, groups))
    if name.startswith("memory"):
        inner = build(name.removeprefix("memory, "), embedding_dim, num_classes)
        return CrossBatchMemory(loss=inner, size=20, start_step=1, embedding_dim=embedding_dim)
    known = (PAIRS | WHOLE | OWN | PROXIES)[name]
    sizes = {"embedding_dim": embedding_dim, "num_classes": num_classes}
    taken = sizes.keys() & inspect.signature(known.make).parameters.keys()
    return known.make(**{key: sizes[key] for key in taken}, **known.options)


EVERY = [*PAIRS, *WHOLE, *OWN, *PROXIES, *GROUPED, "memory, nra"]
