"""An embedding with its features beside it, in training alone."""

import torch

from dml.models.backbones import create_backbone
from dml.models.with_features import EmbedderWithFeatures
from dml.testing.contracts import EmbedderContract
from tests.models.test_embedder import Pixels


class TestWithFeatures(EmbedderContract):
    dim = 6

    def build(self):
        torch.manual_seed(0)
        return EmbedderWithFeatures(backbone=create_backbone(name="convnet4"), dim=6)


def test_the_embedding_is_a_linear_layer_of_the_features_beside_it():
    model = EmbedderWithFeatures(backbone=Pixels(), dim=4)
    columns = model(torch.rand(3, 3, 2, 2))
    assert model.groups == (4, 12) and columns.shape == (3, 16)
    torch.testing.assert_close(model.join(columns), model.head(columns[:, 4:]))
