"""data.on_error=skip: a run with broken images is the run of a tree without them, and says so."""

import json
import shutil

import pytest

from tests.app.conftest import composed, evaluate, train, write_images

SETTINGS = ("data=folder", "data.val_fraction=0.5", "evaluator.ks=[1]", "batch.classes_per_batch=2", "transform=paper",
            "batch.samples_per_class=3", "transform.size=28", "transform.resize=32",
            "transform.interpolation=bilinear", "loader.workers=0")  # fmt: skip
BROKEN = ("class0/3.png", "class1/0.png", "class4/2.png")


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """A tree with three broken images, and the same tree without them."""
    folder = tmp_path_factory.mktemp("trees")
    for name in ("broken", "without"):
        write_images(folder / name / "tree", classes=8, images=5)
    for image in BROKEN:
        (folder / "without" / "tree" / image).unlink()
        file = folder / "broken" / "tree" / image
        file.write_bytes(file.read_bytes()[:-150])
    return folder


def given(trees, name):
    return (*SETTINGS, f"data.root={trees / name / 'tree'}", f"data.cache_dir={trees / 'cache'}")


@pytest.fixture(scope="module")
def skipped(trees, tmp_path_factory):
    return train(tmp_path_factory.mktemp("skipped"), *given(trees, "broken"), "data.on_error=skip")


def stored(run):
    return json.loads((run.folder / "metrics.json").read_text())


def test_it_is_the_run_without_them(trees, skipped, tmp_path, capsys):
    expected, found = stored(train(tmp_path, *given(trees, "without"))), stored(skipped)
    assert found["metrics"] == expected["metrics"]
    assert found["row"].pop("broken_images") == 3 and expected["row"].pop("broken_images") == 0
    assert found["row"] == expected["row"]
    listed = [line.split("\t") for line in (skipped.folder / "bad_images.txt").read_text().splitlines()]
    assert [image for image, _ in listed] == [str(trees / "broken" / "tree" / image) for image in BROKEN]
    assert all("truncated" in reason for _, reason in listed) and not (tmp_path / "bad_images.txt").exists()


def test_workers_and_cache_change_nothing_and_nothing_is_checked_again(trees, skipped, tmp_path, capsys):
    settings = (*given(trees, "broken"), "data.on_error=skip")
    for name, how in (("cache", "data.cache=disk"), ("workers", "loader.workers=2")):
        assert stored(train(tmp_path / name, *settings, how)) == stored(skipped)
    again = evaluate(tmp_path / "again", skipped.folder / "checkpoints" / "best.ckpt")
    assert again.metrics == {name: value for name, value in skipped.metrics.items() if name.startswith("test/")}
    assert json.loads((tmp_path / "again" / "evaluation.json").read_text())["row"]["broken_images"] == 3
    assert (tmp_path / "again" / "bad_images.txt").read_text() == (skipped.folder / "bad_images.txt").read_text()
    said = capsys.readouterr().out
    assert "Checking" not in said and said.count("3 images cannot be decoded and are left out") == 3


def test_no_image_changes_sides_for_those_that_are_broken(trees, tmp_path):
    from dml.app.build import build

    def parts(*settings):
        data = build(composed("train", "logger=none", "data.train_fraction=0.75", *settings)).data
        return [set(part.records.images) for part in (data._train, data._validation)]

    root = tmp_path / "tree"
    shutil.copytree(trees / "broken" / "tree", root)
    for image in (root / "class1").iterdir():  # a whole class
        image.write_bytes(b"")
    whole = parts(*SETTINGS, f"data.root={root}")
    left = parts(*SETTINGS, f"data.root={root}", f"data.cache_dir={tmp_path}", "data.on_error=skip")
    assert all(some <= all_ for some, all_ in zip(left, whole, strict=True))
    assert sum(map(len, whole)) - sum(map(len, left)) == 7


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("data.max_bad=2", r"^3 images cannot be decoded, more than data\.max_bad=2\b.*The first: .*class0/3\.png: "),
        ("data.on_error=ignore", r"^data\.on_error=ignore is not possible: it must be one of raise, skip"),
    ],
)
def test_mistakes_and_too_many_are_one_line(trees, tmp_path, setting, said):
    with pytest.raises(ValueError, match=said) as caught:
        train(tmp_path, *given(trees, "broken"), "data.on_error=skip", setting)
    assert "\n" not in str(caught.value)
