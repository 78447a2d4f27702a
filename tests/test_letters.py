"""Other images than MNIST's: the folder of printed letters that chapter 9 trains on."""

from pathlib import Path

import make_letters as letters
import numpy as np
from PIL import Image

from semigen_lib.data import load_images

PICTURE = Path(letters.__file__).parents[1] / "results" / "letters.png"


def test_the_letters_of_the_chapter_come_out_again(tmp_path: Path) -> None:
    """Faces are drawn by other versions of Pillow a little differently, so not to the bit."""
    letters.make_letters(tmp_path / "letters", n_train=100, n_test=20)
    again, shown = (
        np.asarray(image, np.float64)
        for image in (letters.picture(tmp_path / "letters"), Image.open(PICTURE))
    )
    assert again.shape == shown.shape == (280, 280)
    assert np.abs(again - shown).mean() < 4
    data = load_images(tmp_path / "letters")
    assert data.class_names == tuple(letters.LETTERS) and data.train.images.shape[1:] == (1, 28, 28)
    assert data.train.labels.bincount().tolist() == [10] * 10, "as many of each"
    assert data.test.labels.bincount().tolist() == [2] * 10
