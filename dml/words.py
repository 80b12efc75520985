"""Words of what is said to users that several packages share."""


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: "1 image", "2,000 images", "1 class", "3 classes" (which is `many`)."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
