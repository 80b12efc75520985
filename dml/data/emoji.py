"""853 things drawn as emoji by six teams, 96 x 96 pixels: real pictures that come along and need no download.

Like Stanford Online Products in shape: many classes, five or six images of each, unseen classes in test. They are
drawings, not photographs. Sources and licences stand in packaged/emoji_licences.md.
"""

import io
import zipfile
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from dml.data.annotations import check_counts
from dml.data.dataset import Records, Source

PACKAGED = Path(__file__).parent / "packaged"

# What a person could not tell apart from another class, or what is not one thing: all pictures were looked at.
LEFT_OUT = {
    # The mirror image of another class; training mirrors images at random.
    "last-quarter-moon": "first-quarter-moon",
    "last-quarter-moon-face": "first-quarter-moon-face",
    "magnifying-glass-tilted-right": "magnifying-glass-tilted-left",
    "right-facing-fist": "left-facing-fist",
    "waning-crescent-moon": "waxing-crescent-moon",
    "waning-gibbous-moon": "waxing-gibbous-moon",
    # The same drawing as another class, or one that differs in a detail of a few pixels.
    "black-nib": "fountain-pen",
    "dotted-six-pointed-star": "star-of-david",
    "frowning-face-with-open-mouth": "anguished-face",
    "grinning-face-with-big-eyes": "grinning-face",
    "heart-suit": "red-heart",
    "hourglass-not-done": "hourglass",
    "hushed-face": "face-with-open-mouth",
    "kissing-face-with-closed-eyes": "kissing-face-with-smiling-eyes",
    "left-speech-bubble": "speech-balloon",
    "open-file-folder": "file-folder",
    "person-pouting": "person-frowning",
    "raised-back-of-hand": "raised-hand",
    "slightly-frowning-face": "frowning-face",
    "smiling-face": "smiling-face-with-smiling-eyes",
    "sun-behind-large-cloud": "sun-behind-cloud",
    "sun-behind-small-cloud": "sun-behind-cloud",
    "tear-off-calendar": "calendar",
    "umbrella-on-ground": "beach-with-umbrella",
    # Two things under one name: the insect and the game.
    "cricket": "cricket",
}


def load() -> Source:
    """Read the packaged pictures; half of the classes train, the other half test.

    packaged/emoji_test_classes.txt lists the test classes. They were chosen once: the half of the names whose SHA-256
    is larger, so that neither the alphabet nor a team decides.

    Returns:
        Source of images in memory, [N, 96, 96, 3] uint8: 131 MB.

    Raises:
        ValueError: the packaged files are not whole.
    """
    train, test = _read(PACKAGED)
    return check_counts(
        Source("emoji", train, test), str(PACKAGED / "emoji.zip"), "It is a part of the package: install it again.",
        train_images=2338, train_classes=426, test_images=2349, test_classes=427,
    )  # fmt: skip


@lru_cache(maxsize=1)  # the jobs of a sweep share what takes two seconds to decode
def _read(folder: Path) -> tuple[Records, Records]:
    """Training and test part."""
    file = folder / "emoji.zip"
    test_names = set((folder / "emoji_test_classes.txt").read_text(encoding="utf-8").split())
    members: dict[str, list[str]] = {}
    with zipfile.ZipFile(file) as archive:
        for member in sorted(archive.namelist()):
            path = PurePosixPath(member)
            if path.suffix == ".png" and path.parent.name not in LEFT_OUT:
                members.setdefault(path.parent.name, []).append(member)

        def read(names: list[str]) -> Records:
            images = [_pixels(archive.read(member)) for name in names for member in members[name]]
            labels = np.repeat(np.arange(len(names)), [len(members[name]) for name in names])
            return Records(np.stack(images), labels.astype(np.int64), tuple(names))

        if unknown := test_names - members.keys():
            raise ValueError(f"data: {file} has no {sorted(unknown)[0]}, a test class: install the package again")
        return read(sorted(members.keys() - test_names)), read(sorted(test_names))


def _pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
