"""BN-Inception and Caffe's GoogLeNet: counts, shapes, and weights as they were published."""

import pytest
import timm
import torch
from torch import nn

from dml.models.backbones import check_backbone, create_backbone
from dml.models.caffemodel import read_caffemodel
from dml.models.cascade import CascadeEmbedder
from dml.models.googlenet_bvlc import Auxiliary
from dml.models.inception import ConvNorm, Inception, from_caffe


@pytest.mark.parametrize(
    ("name", "weights", "with_classifier"),
    [("bninception", 10_270_240, 11_295_240), ("googlenet_bvlc", 5_973_552, 6_998_552)],
)
def test_as_many_weights_as_published(name, weights, with_classifier):
    with torch.device("meta"):
        for classes, expected in ((0, weights), (1000, with_classifier)):
            assert sum(p.numel() for p in timm.create_model(name, num_classes=classes).parameters()) == expected


@pytest.mark.parametrize("name", ["bninception", "googlenet_bvlc"])
def test_pools_round_up(name):
    # 224: 112 after the first layer, then 56, 28, 14 and 7, where rounding down gives 55, 27, 13 and 6.
    with torch.device("meta"):
        model, x = create_backbone(name=name), torch.zeros(1, 3, 224, 224)
        sides = []
        for _, piece in model.pieces():
            x = piece(x)
            sides.append(x.shape[-1])
    assert sorted(set(sides), reverse=True) == [112, 56, 28, 14, 7]
    assert x.shape == (1, 1024, 7, 7)


def published_bninception():
    """Names and shapes of the published file: flat, without counters, its norms as rows."""
    with torch.device("meta"):
        own = timm.create_model("bninception").state_dict()
    layers = {"1x1": "1x1", "3x3.0": "3x3_reduce", "3x3.1": "3x3", "pool.1": "pool_proj"}
    layers |= {"double_3x3.0": "double_3x3_reduce", "double_3x3.1": "double_3x3_1", "double_3x3.2": "double_3x3_2"}
    stem = {"conv1": "conv1_7x7_s2", "conv2": "conv2_3x3_reduce", "conv3": "conv2_3x3", "fc": "last_linear"}
    found = {}
    for name, value in own.items():
        if name.endswith("num_batches_tracked"):
            continue
        first, *middle, leaf = name.split(".")
        norm = "_bn" if "bn" in middle else ""
        place = ".".join(part for part in middle if part not in ("conv", "bn"))
        theirs = f"inception_{first[-2:]}_{layers[place]}" if place else stem[first]
        shape = (1, *value.shape) if norm else tuple(value.shape)
        found[f"{theirs}{norm}.{leaf}"] = (name, shape)
    return found


def test_names_and_shapes_of_the_published_file_are_the_networks():
    names = published_bninception()
    assert len(names) == 485 - 69  # today's state has a counter for each of 69 norms
    assert {"inception_3a_double_3x3_1.weight", "inception_5b_pool_proj_bn.running_var"} < set(names)
    generator = torch.Generator().manual_seed(0)
    state = {theirs: torch.rand(shape, generator=generator) for theirs, (_, shape) in names.items()}
    with torch.device("meta"):
        network = timm.create_model("bninception")
    taken = from_caffe(state, network, {"fc": "last_linear"})
    for theirs, (ours, _) in names.items():
        expected = state[theirs].flatten() if "_bn." in theirs else state[theirs]
        expected = expected[:, [2, 1, 0]] if ours == "conv1.conv.weight" else expected
        assert torch.equal(taken[ours], expected), ours
    assert len(taken) == len(state)


class Miniature(nn.Module):
    """The first layer and a block of the network, in few channels."""

    def __init__(self):
        super().__init__()
        self.conv1 = ConvNorm(3, 4, 7, 2, norm=True)
        pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvNorm(4, 3, norm=True))
        self.inception3a = Inception([("1x1", ConvNorm(4, 2, norm=True)), ("pool", pooled)])

    def forward(self, x):
        return self.inception3a(self.conv1(x))


def test_images_of_red_green_and_blue_give_what_blue_green_and_red_gave(tmp_path):
    torch.manual_seed(0)
    names = {
        "conv1": "conv1_7x7_s2",
        "inception3a.1x1": "inception_3a_1x1",
        "inception3a.pool.1": "inception_3a_pool_proj",
    }
    theirs, ours = Miniature().eval(), Miniature().eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1), nn.init.uniform_(module.running_var, 100, 200)
    state = {}
    for name, value in theirs.state_dict().items():
        layer, kind, leaf = name.rsplit(".", 2)
        if leaf != "num_batches_tracked":
            state[f"{names[layer]}{'_bn' if kind == 'bn' else ''}.{leaf}"] = value[None] if kind == "bn" else value
    torch.save(state, tmp_path / "published.pth")
    file = torch.load(tmp_path / "published.pth", weights_only=True)
    ours.load_state_dict(from_caffe(file, ours, {"fc": "last_linear"}), strict=False)
    assert torch.equal(ours.conv1.conv.weight, theirs.conv1.conv.weight.flip(1))
    cfg = timm.get_pretrained_cfg("bninception")
    image = torch.randint(0, 256, (2, 3, 16, 16)).double()  # red, green, blue
    with torch.no_grad():
        expected = theirs.double()(image.flip(1) - torch.tensor([104.0, 117, 128]).view(3, 1, 1))
        mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (cfg.mean, cfg.std))
        found = ours.double()((image / 255 - mean) / std)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert (
        from_caffe(ours.state_dict(), ours, {"fc": "last_linear"}).keys() == ours.state_dict().keys()
    )  # not turned again


# A miniature of a .caffemodel, written by hand: fields of protocol buffers are a number, a kind and a value.
def varint(number):
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def sized(field, content):
    return varint(field << 3 | 2) + varint(len(content)) + content


def blob(values, shape, *, old):
    data = sized(5, values.detach().numpy().astype("<f4").tobytes())
    if old:
        return b"".join(varint(i + 1 << 3) + varint(side) for i, side in enumerate(shape)) + data
    return sized(7, sized(1, b"".join(map(varint, shape)))) + data


def caffemodel(layers, *, old):
    name, blobs, layer = (4, 6, 2) if old else (1, 7, 100)
    content = sized(1, b"GoogleNet")
    for title, weight, bias in layers:
        inner = sized(name, title.encode()) + varint(40 << 3 | 5) + b"\0\0\0\0"  # and a field that is not looked at
        inner += sized(blobs, blob(weight, weight.shape, old=old))
        inner += sized(blobs, blob(bias, (1, 1, 1, len(bias)) if old else bias.shape, old=old))
        content += sized(layer, inner)
    return content


@pytest.mark.parametrize("old", [False, True])
def test_a_file_of_caffe_is_read_without_caffe(tmp_path, old):
    layers = [
        ("inception_3a/1x1", torch.rand(200, 3, 1, 1), torch.rand(200)),
        ("loss1/fc", torch.rand(1, 1, 4, 5), torch.rand(4)),
    ]
    (tmp_path / "w.caffemodel").write_bytes(caffemodel(layers, old=old))
    found = read_caffemodel(tmp_path / "w.caffemodel")
    assert list(found) == ["inception_3a/1x1.weight", "inception_3a/1x1.bias", "loss1/fc.weight", "loss1/fc.bias"]
    for name, weight, bias in layers:
        assert torch.equal(found[f"{name}.weight"], weight) and torch.equal(found[f"{name}.bias"].flatten(), bias)
    (tmp_path / "w.caffemodel").write_bytes(caffemodel(layers, old=old)[:-3])
    with pytest.raises(ValueError, match=r"^backbone\.checkpoint_path=.*the file ends early"):
        create_backbone(name="googlenet_bvlc", checkpoint_path=str(tmp_path / "w.caffemodel"))


def test_the_network_of_caffe_takes_its_file_and_a_cascade_its_auxiliary_classifiers(tmp_path):
    torch.manual_seed(0)
    theirs = timm.create_model("googlenet_bvlc", aux_heads=True, num_classes=10).eval()
    layers = []
    parts = {
        "1x1": "1x1",
        "3x3.0": "3x3_reduce",
        "3x3.1": "3x3",
        "5x5.0": "5x5_reduce",
        "5x5.1": "5x5",
        "pool.1": "pool_proj",
    }
    stem = {"conv1": "conv1/7x7_s2", "conv2": "conv2/3x3_reduce", "conv3": "conv2/3x3", "fc": "loss3/classifier"}
    stem |= {f"aux{i}.{kind}": f"loss{i}/{kind}" for i in (1, 2) for kind in ("conv", "fc")}
    for name, module in theirs.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            place = name.removesuffix(".conv") if not name.startswith("aux") else name
            title = stem.get(place) or f"inception_{place[9:11]}/{parts[place[12:]]}"
            weight = module.weight.flip(1) if place == "conv1" else module.weight
            weight = weight if weight.ndim == 4 else weight[None, None]
            layers.append((title, weight.detach(), module.bias.detach()))
    layers.append(("loss1/classifier", torch.rand(1, 1, 10, 1024), torch.rand(10)))
    (tmp_path / "bvlc_googlenet.caffemodel").write_bytes(caffemodel(layers, old=True))
    file = str(tmp_path / "bvlc_googlenet.caffemodel")
    plain = create_backbone(name="googlenet_bvlc", checkpoint_path=file).eval()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in plain.state_dict().items())
    x = torch.rand(1, 3, 224, 224) * 100
    with torch.no_grad():
        assert torch.equal(plain(x), theirs.forward_head(theirs.forward_features(x), pre_logits=True))
        backbone = create_backbone(name="googlenet_bvlc", checkpoint_path=file, aux_heads=True)
        aux = [backbone.aux1, backbone.aux2]
        cascade = CascadeEmbedder(backbone=backbone, dim=384).eval()
        for neck, head in zip(cascade.neck, aux, strict=True):
            maps = torch.rand(1, head.conv.in_channels, 14, 14)
            torch.testing.assert_close(neck(maps), head(maps))
        assert not hasattr(backbone, "aux1") and all(p.requires_grad for p in cascade.parameters())
        assert cascade(torch.zeros(1, 3, 224, 224, dtype=torch.uint8)).shape == (1, 384)
    with pytest.raises(
        ValueError, match=r"^backbone\.aux_heads=true is not possible: aux1 does not fit embedder\.taps"
    ):
        CascadeEmbedder(
            backbone=create_backbone(name="googlenet_bvlc", aux_heads=True),
            dim=384,
            taps=["inception4d", "inception4e"],
        )


def test_local_response_norm_is_caffes():
    x, n = torch.rand(1, 7, 2, 2, dtype=torch.float64) * 100, 5
    norm = create_backbone(name="googlenet_bvlc").norm1
    expected = torch.empty_like(x)
    for c in range(7):
        around = range(max(0, c - n // 2), min(7, c + n // 2 + 1))
        expected[:, c] = x[:, c] / (1 + 1e-4 / n * sum(x[:, i] ** 2 for i in around)) ** 0.75
    torch.testing.assert_close(norm(x), expected)


def test_an_auxiliary_classifier_pools_without_rounding():
    # 14 x 14 maps, 5 x 5 every 3: four places at 0, 3, 6 and 9.
    aux, maps = Auxiliary(2).double(), torch.rand(1, 2, 14, 14, dtype=torch.float64)
    means = torch.zeros(2, 4, 4, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            means[:, i, j] = maps[0, :, 3 * i : 3 * i + 5, 3 * j : 3 * j + 5].mean((1, 2))
    hidden = (torch.einsum("oc,chw->ohw", aux.conv.weight[:, :, 0, 0], means) + aux.conv.bias[:, None, None]).relu()
    torch.testing.assert_close(aux(maps)[0], (aux.fc.weight @ hidden.flatten() + aux.fc.bias).relu())


@pytest.mark.parametrize(
    ("name", "file"), [("bninception", "bn_inception-52deb4733.pth"), ("googlenet_bvlc", "bvlc_googlenet.caffemodel")]
)
def test_where_weights_come_from_is_said_where_nothing_downloads_them(name, file):
    with pytest.raises(
        ValueError, match=rf"^backbone\.pretrained=true .*backbone\.checkpoint_path=FILE: they are {file} "
    ):
        check_backbone(name, pretrained=True, checkpoint_path=None)
