"""LoRA: what learns, what it computes, and that checkpoints and exports hold the merged layer."""

import copy
import json

import pytest
import torch

import dml
from dml.app.checks import check_config
from dml.models.backbones import create_backbone
from dml.models.embedder import Embedder
from dml.models.lora import merge_lora, merged_state
from dml.models.weights import read_weights
from tests.app.conftest import composed, train

peft = pytest.importorskip("peft")
TINY = {"name": "vit_tiny_patch16_224", "img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}
VIT = ("backbone.name=vit_tiny_patch16_224", "backbone.pretrained=false", "transform.size=32", "transform.resize=32")
SMALL = ("+backbone.img_size=32", "+backbone.embed_dim=24", "+backbone.depth=2", "+backbone.num_heads=2")
LORA = (*VIT, *SMALL, "+backbone.lora_rank=3")


def with_noise(network):
    """A network whose matrices B are no longer zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
    return network.eval()


def test_it_begins_as_the_network_and_adds_a_product():
    torch.manual_seed(0)
    plain = create_backbone(**TINY).eval()
    torch.manual_seed(0)
    network = create_backbone(**TINY, lora_rank=3, lora_of="*.fc1").eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.allclose(network(images), plain(images), atol=1e-6)
    learning = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert learning == {f"blocks.{i}.mlp.fc1.lora_{m}.default.weight" for i in (0, 1) for m in "AB"}
    state = with_noise(network).state_dict()
    by_hand = copy.deepcopy(plain)
    with torch.no_grad():
        for i in (0, 1):
            a, b = (state[f"blocks.{i}.mlp.fc1.lora_{m}.default.weight"].double() for m in "AB")
            by_hand.blocks[i].mlp.fc1.weight += (b @ a).float()
        expected = by_hand(images)
        assert (expected - plain(images)).abs().max() > 0.1 and torch.allclose(network(images), expected, atol=1e-4)
        # Merged, it is the plain network again, by its names too; so is what its tensors say.
        merged = merged_state(state)
        assert merged.keys() == plain.state_dict().keys()
        merge_lora(network)
        assert network.state_dict().keys() == merged.keys()
        assert all(torch.allclose(value, merged[name], atol=1e-6) for name, value in network.state_dict().items())
        assert torch.allclose(network(images), expected, atol=1e-4)


def test_a_run_is_read_merged(tmp_path):
    run = train(tmp_path, *LORA)
    begun, found = run.checkpoint("best")["state_dict"], json.loads((tmp_path / "metrics.json").read_text())
    assert found["row"]["network"]["backbone"]["lora_rank"] == 3
    groups = run.checkpoint()["optimizer_states"][0]["param_groups"]
    assert sum(len(group["params"]) for group in groups) == 2 * 2 + 2  # of two layers A and B, and the head's
    model = dml.load(tmp_path)
    assert not any("lora" in name for name in model.embedder.state_dict())
    best = tmp_path / "checkpoints" / "best.ckpt"
    state, _ = read_weights(best, "key")
    assert all(torch.equal(value, state[f"embedder.{name}"]) for name, value in model.embedder.state_dict().items())
    # Another run may begin with it, as with any checkpoint.
    again = Embedder(backbone=create_backbone(**TINY), dim=2, checkpoint_path=str(best))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(again.eval()(images), model.embedder(images)) and any("lora_B" in name for name in begun)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("backbone=convnet", "+backbone.lora_rank=2"), r"backbone\.lora_of=\*\.qkv fits no linear layer of convnet"),
        ((*LORA, "+backbone.lora_of=*.kqv"), r"lora_of=\*\.kqv fits no linear layer .*its last: .*blocks\.1\.mlp\.fc2"),
        ((*VIT, *SMALL, "+backbone.lora_rank=0"), r"backbone\.lora_rank=0 is not possible"),
        ((*LORA, "embedder.freeze=backbone"), r"embedder\.freeze=backbone leaves backbone\.lora_rank nothing to learn"),
    ],
)
def test_what_cannot_be(given, said):
    with pytest.raises(ValueError, match=said):
        check_config(composed("train", *given))
