"""Words of what is said to users that several packages share."""


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 image", "2,000 images", "1 class", "3 classes"."""
    plural = f"{noun}es" if noun.endswith(("s", "x")) else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"
