"""Make a folder of printed letters: other images of 28 x 28 pixels, to see what is only MNIST's.

Run ``python book/tools/make_letters.py letters`` and then ``semigen train --data ./letters ...``.
The letters are A to J, a class to a letter, large or small, in the faces of type that come with
matplotlib. Each image has a face, a size, a slant, a turn, a shift, a weight of ink and some noise
of its own. With the same versions of matplotlib, NumPy and Pillow the same folder comes out.
``--picture FILE`` also puts ten images of each letter into one, a row for each.

Chapter 9 shows what methods made of them.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

LETTERS = "ABCDEFGHIJ"
FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmtt10"),
)
SIDE, FINE = 28, 4  # pixels of an image, and how much finer it is drawn
N_TRAIN, N_TEST = 10_000, 2_000


def draw_letter(letter: str, chance: random.Random) -> Image.Image:
    """Return one image of a letter, white on black."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    size = SIDE * FINE
    font = ImageFont.truetype(folder / f"{chance.choice(FACES)}.ttf", chance.randint(68, 92))
    text = letter if chance.random() < 0.5 else letter.lower()
    image = Image.new("L", (size, size))
    left, top, right, bottom = font.getbbox(text)
    corner = ((size - left - right) / 2, (size - top - bottom) / 2)
    ImageDraw.Draw(image).text(corner, text, fill=255, font=font)
    if chance.random() < 0.3:
        image = image.filter(ImageFilter.MaxFilter(5))  # more ink
    turn, slant = math.radians(chance.uniform(-12, 12)), chance.uniform(-0.25, 0.25)
    a, b = math.cos(turn), math.sin(turn) + slant
    c, d = -math.sin(turn), math.cos(turn)
    middle = size / 2
    shift_x, shift_y = (middle + FINE * chance.uniform(-2, 2) for _ in range(2))
    rows = (a, b, shift_x - (a + b) * middle, c, d, shift_y - (c + d) * middle)
    image = image.transform((size, size), Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def make_letters(folder: Path, n_train: int = N_TRAIN, n_test: int = N_TEST, seed: int = 0) -> None:
    """Fill a new folder: a sub-folder per letter, and the same again in ``test``."""
    chance, noise = random.Random(seed), np.random.default_rng(seed)
    for part, count in ((folder, n_train), (folder / "test", n_test)):
        for letter in LETTERS:
            (part / letter).mkdir(parents=True)
        for number in range(count):
            letter = LETTERS[number % len(LETTERS)]
            pixels = np.asarray(draw_letter(letter, chance), np.float64)
            pixels = np.clip(pixels + noise.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(part / letter / f"{number:05}.png")


def picture(folder: Path, columns: int = 10) -> Image.Image:
    """Return the first images of each letter, a row for each."""
    grid = Image.new("L", (columns * SIDE, len(LETTERS) * SIDE))
    for row, letter in enumerate(LETTERS):
        for column, path in enumerate(sorted((folder / letter).iterdir())[:columns]):
            grid.paste(Image.open(path), (column * SIDE, row * SIDE))
    return grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder that is not there yet")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="a PNG of some of them")
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"folder: expected one that is not there yet, got {options.folder}")
    make_letters(options.folder)
    if options.picture:
        picture(options.folder).save(options.picture)


if __name__ == "__main__":
    main()
