"""Weight files as other projects write them: loaded whole and told of, or refused in one line."""

import argparse
import logging

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from dml.models.backbones import create_backbone
from dml.models.weights import fingerprint, load_weights, read_weights

NAME = "test_resnet"


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.fixture(scope="module")
def full():
    torch.manual_seed(1)
    return timm.create_model(NAME).state_dict()


@pytest.fixture(scope="module")
def bare(full):
    return {name: value for name, value in full.items() if not name.startswith("fc.")}


def other(bare):
    """Weights of the same names that are not those wanted."""
    return {name: torch.zeros_like(value) for name, value in bare.items()}


HEAD = {"weight": torch.zeros(8, 8), "bias": torch.zeros(8)}
# What the file holds, and what is told of it.
FILES = {
    "whole": (lambda full, bare: full, "left out: fc.weight, fc.bias"),
    "without a classifier": (lambda full, bare: bare, "; images"),
    "37 classes": (lambda full, bare: {**full, "fc.weight": torch.zeros(37, 9)}, "left out: fc.weight"),
    "MoCo v2": (
        lambda full, bare: {
            "epoch": 800,
            "state_dict": {
                **under("module.encoder_k.", other(bare)),
                **under("module.encoder_q.", {**bare, **under("fc.0.", HEAD), **under("fc.2.", HEAD)}),
                "module.queue": torch.zeros(4, 4),
            },
        },
        "(state_dict); prefix module.encoder_q. taken off; left out: fc.0.weight, fc.0.bias, fc.2.weight and",
    ),
    "SimCLR": (
        lambda full, bare: {**bare, **under("projector.0.", HEAD), **under("head.", HEAD)},
        "projector.0.weight",
    ),
    "DINO": (
        lambda full, bare: {
            "student": under("module.backbone.", other(bare)),
            "teacher": {**under("backbone.", bare), **under("head.mlp.0.", HEAD)},
            "dino_loss": {"center": torch.zeros(1, 8)},
        },
        "(teacher); prefix backbone. taken off; left out: head.mlp.0.weight",
    ),
    "DINO in one": (
        lambda full, bare: {"model": {**under("student.backbone.", other(bare)), **under("teacher.backbone.", bare)}},
        "(model); prefix teacher.backbone. taken off; left out: student.backbone.",
    ),
    "averaged": (lambda full, bare: {"state_dict": other(bare), "state_dict_ema": bare}, "(state_dict_ema)"),
    "compiled in DDP": (lambda full, bare: under("module._orig_mod.", full), "prefix module._orig_mod. taken off"),
    "unknown key": (
        lambda full, bare: {"weights_of_mine": full, "args": argparse.Namespace(lr=1)},
        "(weights_of_mine)",
    ),
    "a run of ours": (
        lambda full, bare: {
            "state_dict": {
                **under("embedder.backbone.", bare),
                **under("embedder.head.", HEAD),
                "embedder.mean": torch.zeros(1, 3, 1, 1),
                "loss.weight": torch.zeros(2, 2),
            },
            "dml_config": {"seed": 0},
            "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(3)}}}],
        },
        "prefix embedder.backbone. taken off; left out: embedder.head.weight, embedder.head.bias, embedder.mean and 1",
    ),
    "before 2018": (lambda full, bare: {k: v for k, v in bare.items() if "num_batches" not in k}, "; images"),
}


@pytest.mark.parametrize("kind", FILES)
def test_weights_are_loaded_and_told_of(kind, full, bare, tmp_path, caplog):
    make, said = FILES[kind]
    path = tmp_path / "w.pth"
    torch.save(make(full, bare), path)
    with caplog.at_level(logging.INFO):
        model = create_backbone(name=NAME, checkpoint_path=str(path)).eval()
    assert model.num_classes == 0 and model(torch.rand(2, 3, 64, 64)).shape == (2, model.head_hidden_size)
    assert all(torch.equal(value, bare[name]) for name, value in model.state_dict().items())
    (line,) = caplog.messages
    assert f"{NAME} from {path}" in line and said in line and "mean (0.5, 0.5, 0.5)" in line


@pytest.mark.parametrize("file", ["w.safetensors", "w.bin"])
@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_safetensors_are_known_by_their_content(file, prefix, bare, tmp_path):
    save_file(under(prefix, bare), tmp_path / file)
    model = create_backbone(name=NAME, checkpoint_path=str(tmp_path / file))
    assert all(torch.equal(value, bare[name]) for name, value in model.state_dict().items())


def without_first(bare):
    return dict(list(bare.items())[1:])


UNFIT = {
    "missing": (without_first, r"missing: conv1\.0\.weight$"),
    "left over": (
        lambda bare: {**bare, "embedding.weight": torch.zeros(3)},
        r"not of this network: embedding\.weight$",
    ),
    "wrong shape": (
        lambda bare: {**bare, "conv1.0.weight": torch.zeros(1, 2)},
        r"wrong shape: conv1\.0\.weight has shape \[1, 2\] where the network has \[\d+, 3, 3, 3\]$",
    ),
    "missing below a prefix": (
        lambda bare: under("backbone.", without_first(bare)),
        r"missing: conv1\.0\.weight \(after the prefix backbone\.\)$",
    ),
    "many": (lambda bare: under("a", bare), r"missing: \S+, \S+, \S+ and \d+ more; not of this network: .* more$"),
}


@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.parametrize("device", ["cpu", "meta"])  # the checks before a run build on the meta device
def test_what_does_not_fit_is_named_in_one_line(kind, device, bare, tmp_path):
    change, said = UNFIT[kind]
    torch.save(change(bare), tmp_path / "w.pth")
    begin = rf"^backbone\.checkpoint_path={tmp_path / 'w.pth'} does not hold weights of {NAME}: "
    with pytest.raises(ValueError, match=begin + "(.*)" + said), torch.device(device):
        create_backbone(name=NAME, checkpoint_path=str(tmp_path / "w.pth"))


NO_WEIGHTS = {
    "web page": (b"\n<!DOCTYPE html><html>not found</html>", "is a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of git-lfs"),
    "nothing": (b"", "is empty"),
    "JSON": (b'{"error": "not found"}', "is a text file"),
    "text": (b"no weights", "does not hold weights that can be read: it is truncated, or no file of PyTorch"),
    "gzip": (b"\x1f\x8b\x08\x00", "is a compressed archive"),
}


@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_other_kinds_of_files_are_refused_by_what_they_are(kind, tmp_path):
    content, said = NO_WEIGHTS[kind]
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^backbone\.checkpoint_path={tmp_path / 'w.pth'} {said}[^\n]*(?<!:)$"):
        create_backbone(name=NAME, checkpoint_path=str(tmp_path / "w.pth"))


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_files_are_refused(kind, share, bare, tmp_path):
    path = tmp_path / "w.pth"
    if kind == "safetensors":
        save_file(bare, path)
    else:
        torch.save(bare, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=rf"^backbone\.checkpoint_path={path} .*truncated[^\n]*$"):
        create_backbone(name=NAME, checkpoint_path=str(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (nn.Linear(2, 2), "could run code"),
        ({"a": {"x": torch.ones(1)}, "b": {"x": torch.ones(1)}}, r"several sets of weights \(a, b\)"),
        ({"epoch": 3}, "no named tensors"),
        ([torch.ones(1)], "holds a list"),
    ],
)
def test_files_without_one_set_of_named_tensors_are_refused(content, said, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"^key={tmp_path / 'w.pth'} [^\n]*{said}[^\n]*state_dict\(\)"):
        read_weights(tmp_path / "w.pth", "key")


def test_numpy_archives_and_folders_are_refused(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.ones(2))
    with pytest.raises(ValueError, match="NumPy archive"):
        read_weights(tmp_path / "w.npz", "key")
    with pytest.raises(ValueError, match=rf"^key={tmp_path} is a folder: give the file$"):
        read_weights(tmp_path, "key")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    with pytest.raises(ValueError, match=rf"is a folder: give the file, such as {tmp_path}/checkpoints/best\.ckpt$"):
        read_weights(tmp_path, "key")


@pytest.mark.parametrize("prefix", ["", "teacher.backbone."])
def test_position_embeddings_of_another_image_size_are_resampled_as_timm_does(prefix, tmp_path):
    torch.manual_seed(0)
    state = timm.create_model("test_vit", num_classes=0).state_dict()  # of 160 x 160
    torch.save(under(prefix, state), tmp_path / "w.pth")
    torch.save(state, tmp_path / "plain.pth")
    model = create_backbone(name="test_vit", img_size=96, checkpoint_path=str(tmp_path / "w.pth"))
    assert model.pos_embed.shape[1] < state["pos_embed"].shape[1]
    timms = timm.create_model(
        "test_vit", pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "plain.pth")}, num_classes=0,
        img_size=96,
    )  # fmt: skip
    assert all(torch.equal(value, timms.state_dict()[name]) for name, value in model.state_dict().items())


def test_files_in_the_format_of_a_networks_authors_are_converted(tmp_path):
    # ConvNeXt of its authors: other names for stem and stages, which timm's filter knows.
    torch.manual_seed(0)
    model = timm.create_model("test_convnext", num_classes=0)
    state = {}
    for name, value in model.state_dict().items():
        name = name.replace("stem.", "downsample_layers.0.").replace("head.norm.", "norm.")
        for i in range(4):
            name = name.replace(f"stages.{i}.downsample.", f"downsample_layers.{i}.").replace(
                f"stages.{i}.blocks.", f"stages.{i}."
            )
        name = name.replace(".conv_dw.", ".dwconv.").replace(".mlp.fc1.", ".pwconv1.").replace(".mlp.fc2.", ".pwconv2.")
        state[name] = value
    assert not state.keys() >= model.state_dict().keys()
    torch.save({"model": under("module.", state)}, tmp_path / "w.pth")
    loaded = create_backbone(name="test_convnext", checkpoint_path=str(tmp_path / "w.pth"))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_a_part_of_the_network_itself_is_no_head():
    network = nn.ModuleDict({"head": nn.Linear(2, 2), "body": nn.Linear(2, 2)})
    state = {name: value + 1 for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"not of this network: head\.extra"):
        load_weights(network, {**state, "head.extra": torch.ones(1)})
    assert load_weights(network, {**state, "fc.weight": torch.ones(1)}) == "left out: fc.weight"
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert load_weights(network, {**state, "head.last.weight": torch.ones(1)}, classifiers=["head.last"])


def test_the_fingerprint_is_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    (tmp_path / "b").write_bytes(b"x" * 2_999_999 + b"y")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")
    (tmp_path / "b").write_bytes(b"abc")
    assert fingerprint(tmp_path / "b") == "ba7816bf8f01"
