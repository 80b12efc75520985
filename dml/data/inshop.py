"""In-Shop Clothes Retrieval of DeepFashion (Liu, Luo, Qiu, Wang, Tang 2016): queries and a gallery of their own."""

import numpy as np

from dml.data.annotations import Count, check_counts, check_images, find_root, listed, read_lines, read_rows
from dml.data.dataset import Records, Source
from dml.words import counted

GET = (
    "Get img.zip and list_eval_partition.txt of the In-shop Clothes Retrieval Benchmark from "
    "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html (its agreement "
    "gives the password) and put them into data.root as Eval/list_eval_partition.txt and img/"
)


def load(*, root: str, train_classes: Count | None = 3997, test_classes: Count | None = 3985,
         train_images: Count | None = 25882, test_images: Count | None = 14218,
         gallery_images: Count | None = 12612) -> Source:  # fmt: skip
    """Read list_eval_partition.txt: image_name item_id evaluation_status. A class is an item.

    Args:
        root: holds Eval/list_eval_partition.txt (or that file, or Info_Files/ with it) and img/ (or Img/img/), or the
            folder "In-shop Clothes Retrieval Benchmark" with them.
        train_classes, test_classes: expected number of items; null does not check one. The queries and the gallery
            are of the same test items.
        train_images, test_images, gallery_images: expected counts; null does not check one. Test are the queries.

    Returns:
        Source whose queries and gallery have the same class names, so that equal labels are equal items.

    Raises:
        ValueError: a file or an image is missing, an item is on both sides, or a count is another.
    """
    folder = find_root(root, "In-shop Clothes Retrieval Benchmark")
    places = [folder / place / "list_eval_partition.txt" for place in ("Eval", "", "Info_Files")]
    file = next((place for place in places if place.is_file()), places[0])
    rows = read_rows(file, (listed, str, str), GET, skip=2)
    announced = "".join(read_lines(file, GET)[:1]).strip()
    if announced != str(len(rows)):
        raise ValueError(
            f"data.root: {file} has {counted(len(rows), 'image')}, but its first line says '{announced}'. {GET}"
        )
    if unknown := sorted({row[2] for row in rows} - {"train", "query", "gallery"}):
        raise ValueError(f"data.root: {file} has the status {unknown[0]}, expected train, query or gallery. {GET}")
    base = folder / "Img" if (folder / "Img" / "img").is_dir() else folder
    check_images([base / row[0] for row in rows], file.name, GET)

    def part(status: str, names: list[str]) -> Records:
        number = {name: label for label, name in enumerate(names)}
        chosen = [row for row in rows if row[2] == status]
        labels = np.array([number[item] for _, item, _ in chosen], dtype=np.int64)
        return Records([base / row[0] for row in chosen], labels, tuple(names))

    train_items = sorted({item for _, item, status in rows if status == "train"})
    test_items = sorted({item for _, item, status in rows if status != "train"})
    source = Source("inshop", part("train", train_items), part("query", test_items), part("gallery", test_items))
    return check_counts(
        source, root, GET, train_classes=train_classes, test_classes=test_classes, gallery_classes=test_classes,
        train_images=train_images, test_images=test_images, gallery_images=gallery_images,
    )  # fmt: skip
