"""Our own parts keep the contracts for parts of others, and a part that breaks one is found."""

import numpy as np
import pytest
import torch
from torch import nn

from dml.data import digits
from dml.losses.contrastive import ContrastiveLoss
from dml.losses.nra import NRALoss
from dml.models.backbones import create_backbone
from dml.models.embedder import Embedder
from dml.samplers.groups import GroupSampler
from dml.testing.contracts import (
    BackboneContract,
    EmbedderContract,
    LossContract,
    SamplerContract,
    SourceContract,
)


class TestGroups(SamplerContract):
    def build(self, **given):
        return GroupSampler(classes_per_batch=3, samples_per_class=4, **given)


class TestConvNet(BackboneContract):
    def build(self):
        torch.manual_seed(0)
        return create_backbone(name="convnet")


class TestEmbedder(EmbedderContract):
    def build(self):
        torch.manual_seed(0)
        return Embedder(backbone=create_backbone(name="convnet4"), dim=self.dim)


class TestDigits(SourceContract):
    def build(self):
        return digits.load()


class TestContrastive(LossContract):
    def build(self):
        return ContrastiveLoss()


class TestNRA(LossContract):
    def build(self):
        return NRALoss()


class Unseeded(GroupSampler):
    def _epoch_batches(self):
        self.seed = int(np.random.randint(1000))
        return super()._epoch_batches()


class SameEpoch(GroupSampler):
    def set_epoch(self, epoch):
        pass


class Forgets(GroupSampler):
    def load_state_dict(self, state):
        pass


class Mixes(nn.Module):
    def forward(self, images):
        return images.flatten(1) + images.mean()


class Hides(nn.Module):
    def forward(self, embeddings, labels):
        return embeddings.nan_to_num().square().sum()


def sampler(kind):
    return type(
        "Wrong",
        (SamplerContract,),
        {"build": lambda self, **given: kind(classes_per_batch=3, samples_per_class=4, **given)},
    )


def plain(contract, kind):
    return type("Wrong", (contract,), {"build": lambda self: kind()})


@pytest.mark.parametrize(
    ("contract", "test"),
    [
        (sampler(Unseeded), "batches_depend_on_seed_and_epoch_alone"),
        (sampler(SameEpoch), "epochs_differ_and_can_be_chosen_again"),
        (sampler(Forgets), "a_state_continues_after_its_position"),
        (plain(BackboneContract, Mixes), "an_images_features_do_not_depend_on_the_others"),
        (plain(BackboneContract, nn.Identity), "features_are_one_row_an_image"),
        (plain(LossContract, Hides), "what_is_not_finite_is_not_hidden"),
    ],
)  # fmt: skip
def test_a_part_that_breaks_a_contract_is_found(contract, test):
    with pytest.raises(AssertionError):
        getattr(contract(), f"test_{test}")()
