"""Omniglot (Lake, Salakhutdinov, Tenenbaum 2015): handwritten characters, black on white, alphabets split."""

from pathlib import Path
from zipfile import BadZipFile

from dml.data.annotations import Count, check_counts, find_root
from dml.data.dataset import Source
from dml.data.folder import read_tree

FOLDERS = ("images_background", "images_evaluation")
GET = (
    "Get images_background.zip and images_evaluation.zip from https://github.com/brendenlake/omniglot (folder python) "
    "or run: python -m dml.data.prepare omniglot root=DIR; any other tree of characters is data=folder"
)


def load(*, root: str, download: bool = True, train_classes: Count | None = 964, test_classes: Count | None = 659,
         train_images: Count | None = 19280, test_images: Count | None = 13180) -> Source:  # fmt: skip
    """The background alphabets train, the evaluation alphabets test; a class is ALPHABET/character.

    Args:
        root: holds images_background/ and images_evaluation/, or omniglot-py/ (as torchvision calls it) with both.
        download: let torchvision download what is missing into ROOT/omniglot-py; nothing is, where both are there.
        train_classes, test_classes, train_images, test_images: expected counts; null does not check one.

    Raises:
        ValueError: a folder is missing and cannot be downloaded, an alphabet is on both sides, or a count is another.
    """
    folder = find_root(root, "omniglot-py")
    missing = [name for name in FOLDERS if not (folder / name).is_dir()]
    if missing and download:
        folder = Path(root).expanduser() / "omniglot-py"
        _download(folder, root)
    elif missing:
        raise ValueError(f"data.root={root} has no folder {' and no '.join(missing)}. {GET}")
    train, test = (read_tree(folder / name, "data.root", class_depth=2) for name in FOLDERS)
    return check_counts(
        Source("omniglot", train, test), root, GET,
        train_classes=train_classes, test_classes=test_classes, train_images=train_images, test_images=test_images,
    )  # fmt: skip


def _download(folder: Path, root: str) -> None:
    """Download and unpack what is missing in `folder`, from where torchvision's Omniglot comes and as it is checked."""
    from torchvision.datasets import Omniglot
    from torchvision.datasets.utils import download_and_extract_archive

    for name in FOLDERS:
        if (folder / name).is_dir():
            continue
        url = f"{Omniglot.download_url_prefix}/{name}.zip"
        try:
            download_and_extract_archive(url, str(folder), filename=f"{name}.zip", md5=Omniglot.zips_md5[name])
        except (RuntimeError, OSError, BadZipFile) as error:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()  # nothing of ours stays in what may be another tree of the user's
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"data.root={root} has no folder {name}, and it could not be downloaded ({reason}). {GET}"
            ) from error
