"""The control of chapter 8: a folder that holds the labelled images of a draw, and no others."""

from pathlib import Path

import labelled_only
import torch

from semigen_lib.data import ImageData, ImageSet, load_images, split_labels


def listed(images: ImageSet) -> list[tuple[int, list[int]]]:
    """Return class and pixels of every image, in an order of their own."""
    pairs = zip(images.labels.tolist(), images.images.flatten(1).tolist(), strict=True)
    return sorted(pairs)


def test_the_folder_holds_the_labelled_images_and_no_others(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pixels, labels = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8), torch.arange(60) % 3
    train, test = (ImageSet(pixels[part], labels[part]) for part in (slice(45), slice(45, 60)))
    data = ImageData("made up", ("0", "1", "2"), train, test)
    labelled_only.write_labelled(data, tmp_path / "only", n_labeled=9, seed=4)
    again = load_images(tmp_path / "only", image_size=8)
    kept = split_labels(data, 9, 4).labeled_index
    assert listed(again.train) == listed(ImageSet(train.images[kept], train.labels[kept]))
    assert listed(again.test) == listed(test)
