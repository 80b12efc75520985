"""trainer.precision=bf16-mixed: the backbone's products in bfloat16, embeddings, loss and metrics in float32."""

import pytest
import torch

from dml.losses.contrastive import ContrastiveLoss
from dml.losses.cross_entropy import CrossEntropyLoss
from dml.losses.lifted import LiftedLoss
from dml.losses.npair import NPairLoss
from dml.losses.nra import NRALoss
from dml.losses.triplet import TripletLoss
from dml.models.backbones import create_backbone
from dml.models.embedder import Embedder
from tests.engine.conftest import Scores, make_data, make_learner, make_trainer

LOSSES = {
    "nra": NRALoss,
    "hard_triplet": lambda: TripletLoss(mining="hard"),
    "all_triplet": lambda: TripletLoss(mining="all"),
    "contrastive": ContrastiveLoss,
    "lifted": LiftedLoss,
    "npair": NPairLoss,
    "cross_entropy": lambda: CrossEntropyLoss(embedding_dim=3, num_classes=4),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_validates_and_tests(tmp_path, name):
    dtypes = []

    class Looked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loss = LOSSES[name]()

        def forward(self, embeddings, labels):
            value = self.loss(embeddings, labels)
            dtypes.extend((embeddings.dtype, value.dtype))
            return value

    torch.manual_seed(0)
    backbone = create_backbone(name="resnet10t")
    backbone.register_forward_hook(lambda module, given, features: dtypes.append(features.dtype))
    learner = make_learner(embedder=Embedder(backbone=backbone, dim=3), loss=Looked(), evaluator=Scores())
    before = learner.embedder.head.weight.detach().clone()
    trainer = make_trainer(tmp_path, 2, precision="bf16-mixed")
    trainer.fit(learner, make_data())
    trainer.test(learner, make_data(), verbose=False)
    assert dtypes[:3] == [torch.bfloat16, torch.float32, torch.float32]
    assert not torch.equal(before, learner.embedder.head.weight)
    assert all(parameter.dtype == torch.float32 for parameter in learner.parameters())
    assert [call[0].dtype for call in learner.evaluator.calls] == [torch.float32] * 2


def test_embeddings_are_finer_than_bfloat16():
    torch.manual_seed(0)
    embedder = Embedder(backbone=create_backbone(name="convnet"), dim=2).eval()
    images = torch.randint(0, 256, (64, 3, 28, 28), dtype=torch.uint8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = embedder(images)
    assert embeddings.dtype == torch.float32
    assert len(embeddings.unique()) == 128 > len(embeddings.bfloat16().unique())
