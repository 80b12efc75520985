"""Words that several packages share."""

import pytest

from dml.words import counted


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [(0, "image", "0 images"), (1, "image", "1 image"), (12345, "image", "12,345 images"), (1, "class", "1 class"),
     (2, "training class", "2 training classes"), (3, "box", "3 boxes")],
)  # fmt: skip
def test_a_number_with_its_noun(number, noun, said):
    assert counted(number, noun) == said
