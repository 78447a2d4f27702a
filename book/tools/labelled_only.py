"""Write the labelled images of one draw into a folder, and nothing else to learn from.

Run ``python book/tools/labelled_only.py FOLDER --seed 0`` and then the control of chapter 8:

    semigen train --data FOLDER --method cgan --labels 100 --seed 0 --steps 3500 --out RUN
    python book/tools/measure_drawing.py RUN --out book/results/drawing_control.csv

The folder holds the images that ``--data mnist`` with the same seed leaves their labels, a
sub-folder for each digit, and the standard test images in ``test``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from semigen_lib.data import ImageData, ImageSet, load_images, split_labels


def write_images(images: ImageSet, names: tuple[str, ...], folder: Path) -> None:
    """Write ``(N, 1, H, W)`` uint8 images as PNG files, a sub-folder for each class."""
    for name in names:
        (folder / name).mkdir(parents=True)
    pairs = zip(images.images[:, 0].numpy(), images.labels.tolist(), strict=True)
    for number, (pixels, label) in enumerate(pairs):
        Image.fromarray(pixels).save(folder / names[label] / f"{number:05}.png")


def write_labelled(data: ImageData, folder: Path, n_labeled: int, seed: int) -> None:
    """Fill a new folder with the images that keep their label, and with those of the test set."""
    split = split_labels(data, n_labeled, seed)
    chosen = split.labeled_index
    labelled = ImageSet(split.images[chosen], split.labels[chosen])
    write_images(labelled, data.class_names, folder)
    write_images(data.test, data.class_names, folder / "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder that is not there yet")
    parser.add_argument("--labels", type=int, default=100, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which draw (default: %(default)s)")
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"folder: expected one that is not there yet, got {options.folder}")
    write_labelled(load_images("mnist"), options.folder, options.labels, options.seed)


if __name__ == "__main__":
    main()
