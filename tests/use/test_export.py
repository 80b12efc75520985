"""dml export: files that give the run's embeddings without dml, and the truth about those that do not."""

import copy
import json
import logging
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from dml.retrieval.evaluator import Evaluator
from dml.use.export import _batches, compare, source_of
from dml.use.formats import Written, _write_timm
from dml.use.missing import optional
from tests.use.conftest import refused, run


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    run("export", finished.folder, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def pixels(model, tree):
    return torch.stack([model.read(tree / f"class{c}" / f"{i}.png") for c in range(4, 8) for i in range(5)])


def session(file):
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("batch", [1, 7])
def test_files_of_float32_give_the_embeddings_of_the_run(exported, model, pixels, batch):
    expected, images = model(pixels[:batch]), pixels[:batch].contiguous()
    (found,) = session(exported / "model.onnx").run(None, {"images": images.numpy()})
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(torch.export.load(exported / "model.pt2").module()(images), expected, atol=1e-5)


def test_the_five_lines_embed_with_plain_timm(exported, model, tree, tmp_path, monkeypatch):
    lines = (exported / "use.py").read_text()
    assert lines.count("\n") == 5 and "dml" not in lines
    (tmp_path / "x.jpg").write_bytes((tree / "class5" / "2.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    names = {}
    with torch.no_grad():
        exec(lines.replace("local-dir:.", f"local-dir:{exported}"), names)
    assert torch.allclose(names["embedding"], model.embed([tree / "class5" / "2.png"]), atol=1e-4)


def test_the_report_says_what_each_file_is_worth(exported, model, pixels):
    report = json.loads((exported / "export.json").read_text())
    files = {file["file"]: file for file in report["files"]}
    assert list(files) == ["model.safetensors", "model.pt2", "model.onnx", "model_float16.onnx", "model_int8.onnx"]
    # 22 images of classes of 5, 5, 6 and 6
    assert report["test"]["ranks"] == 2 * (5 * 4 + 6 * 5) and report["model"] == model.fingerprint
    assert files["model_int8.onnx"]["megabytes"] < files["model_float16.onnx"]["megabytes"]
    assert files["model_float16.onnx"]["megabytes"] < files["model.onnx"]["megabytes"]
    for name in ("model.safetensors", "model.pt2", "model.onnx"):
        assert files[name]["ranks_that_differ"] == 0 and files[name]["largest_difference"] < 1e-5
        assert files[name]["recall@1"] == report["run"]["recall@1"]
    for name in ("model_float16.onnx", "model_int8.onnx"):
        assert 1e-6 < files[name]["largest_difference"] < 0.5
    assert {path.name for path in exported.iterdir()} == {*files, "config.json", "use.py", "export.json"}
    assert logging.getLogger().level == logging.WARNING  # exporters were quieted for a while only


def test_differences_are_counted_and_a_wrong_file_is_refused(model):
    source = source_of(model, {})
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(22, 2, generator=rng)

    def noisy(images):
        if len(images) == 1:
            return noise[:1]
        return model(images) + 0.5 * noise[: len(images)]

    (file,) = compare(model, source, [Written("x", noisy, False)])["files"]
    images = torch.stack([model.read(image) for image in source.test.images])
    clean, changed = (torch.nn.functional.normalize(x) for x in (model(images), model(images) + 0.5 * noise))

    def ranks(x):
        distances, labels = torch.cdist(x.double(), x.double()), source.test.labels
        for i in range(len(x)):
            order = [j for j in distances[i].argsort(stable=True).tolist() if j != i]
            yield [rank for rank, j in enumerate(order) if labels[j] == labels[i]]

    differ = sum(
        a != b for one, other in zip(ranks(clean), ranks(changed), strict=True) for a, b in zip(one, other, strict=True)
    )
    assert file["ranks_that_differ"] == differ > 0
    evaluator = Evaluator(ks=[1], metrics=["recall"])
    assert file["recall@1"] == evaluator(changed, source.test.labels)["recall@1"]
    with pytest.raises(ValueError, match="x gives other embeddings than the run, by up to"):
        compare(model, source, [Written("x", noisy, True)])


def test_what_plain_timm_cannot_make_is_refused(model, tmp_path):
    for key, value, said in (
        ("pool", "gem", r"pool=gem and embedder\.head=linear"),
        ("head", "mlp", "pool=null and .*=mlp"),
    ):
        other = copy.copy(model)
        other.config = {**model.config, "embedder": {**model.config["embedder"], key: value}}
        with pytest.raises(ValueError, match=rf"^timm has no network with embedder\.{said}: leave safetensors out"):
            _write_timm(other, True, tmp_path)


def test_mistakes_are_one_line_and_leave_nothing(finished, exported, tmp_path):
    out = ("--out", tmp_path / "x")
    assert "is there already" in refused("export", finished.folder, "--out", exported)
    assert "--only tflite is not possible: there is safetensors" in refused(
        "export", finished.folder, "--only", "tflite"
    )
    assert "x=1 is no setting of the data" in refused("export", finished.folder, "x=1", *out)
    said = refused("export", finished.folder, "data.root=/no/where", *out)
    assert "data.root=/no/where is not a folder" in said and "data.root=DIR says where it is" in said
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_missing_is_named_with_what_installs_it():
    with pytest.raises(ValueError, match=r"^ONNX needs the package nosuch: pip install 'dml\[onnx\]'$"):
        optional("nosuch.part", "onnx", "ONNX")
    assert optional("numpy", "onnx", "ONNX") is np


def test_a_sample_of_classes_or_other_images_will_do(finished, tree, tmp_path, capsys):
    command = ("export", finished.folder, "--only", "safetensors", "--out")
    run(*command, tmp_path / "some", "--sample", 9)
    assert "11 images of 22, of classes drawn at random" in capsys.readouterr().out
    test = json.loads((tmp_path / "some" / "export.json").read_text())["test"]
    assert (test["images"], test["ranks"], test["of"]) == (11, 5 * 4 + 6 * 5, 22)
    moved = tmp_path / "moved"
    moved.mkdir()
    for c in (0, 1):
        (moved / f"c{c}").symlink_to(tree / f"class{c}")
    run(*command, tmp_path / "other", "data=folder", f"data.root={moved}")
    test = json.loads((tmp_path / "other" / "export.json").read_text())["test"]
    assert (test["data"], test["images"], test["ranks"]) == ("moved", 10, 40)
    said = refused("export", finished.folder, "--out", tmp_path / "no", "data=folder", f"data.root={moved}")
    assert "int8 takes its scales from training images" in said and not (tmp_path / "no").exists()


def test_ranks_are_those_of_other_groups_where_the_data_has_groups(model, finished):
    source = source_of(model, {})
    groups = np.random.default_rng(0).integers(0, 2, len(source.test)).astype(str)
    source = replace(source, test=replace(source.test, groups=groups))
    (file,) = compare(model, source, [Written("x", model.learner, True)])["files"]
    embeddings = torch.cat([model(images) for images in _batches(model, source.test, range(len(groups)))])
    found = Evaluator(ks=[1], metrics=["recall"])(embeddings, source.test.labels, groups=groups)
    assert file["recall@1"] == found["recall@1"] and file["ranks_that_differ"] == 0
