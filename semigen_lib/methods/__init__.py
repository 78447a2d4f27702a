"""The methods, one file each. A new method is its file and one line of this table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from semigen_lib.methods.autoencoder import Autoencoder
from semigen_lib.methods.cgan import Cgan
from semigen_lib.methods.combined import Combined
from semigen_lib.methods.dpt import Dpt
from semigen_lib.methods.fixmatch import Fixmatch
from semigen_lib.methods.lsgan import Lsgan
from semigen_lib.methods.m2 import M2
from semigen_lib.methods.method import Method
from semigen_lib.methods.propagate import Propagate
from semigen_lib.methods.pseudo_label import PseudoLabel
from semigen_lib.methods.sgan import Sgan
from semigen_lib.methods.ss_aae import SsAae
from semigen_lib.methods.supervised import Supervised
from semigen_lib.methods.vat import Vat
from semigen_lib.models import ImageShape
from semigen_lib.sources import whole_number

__all__ = ["BEST", "METHODS", "best_method", "build_method"]


METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "autoencoder": Autoencoder,
    "lsgan": Lsgan,
    "combined": Combined,
    "sgan": Sgan,
    "m2": M2,
    "ss_aae": SsAae,
    "pseudo_label": PseudoLabel,
    "vat": Vat,
    "fixmatch": Fixmatch,
    "propagate": Propagate,
    "cgan": Cgan,
    "dpt": Dpt,
}


#: The reader that the leaderboard puts first, from each budget of labels on.
BEST: dict[int, str] = {10: "propagate", 20: "propagate", 50: "propagate", 100: "propagate"}


def best_method(n_labeled: int) -> str:
    """Return the name of the method that reads best with so many labels.

    Parameters
    ----------
    n_labeled
        The budget; between two budgets of the leaderboard, the smaller one decides.

    Shown in: book/09_choosing_a_method.ipynb
    """
    return BEST[max((budget for budget in BEST if budget <= n_labeled), default=min(BEST))]


def build_method(
    name: str,
    image_shape: ImageShape,
    n_classes: int,
    settings: Mapping[str, float] | None = None,
) -> Method:
    """Return a method with fresh weights, drawn from torch's generator.

    Parameters
    ----------
    name
        A key of ``METHODS``.
    image_shape
        (C, H, W) of the images.
    n_classes
        K, the number of classes.
    settings
        Fields of the method's config that shall differ from their defaults.

    Raises
    ------
    ValueError
        If the name or a setting is unknown, or a setting has another type than its default.

    Shown in: book/05_training_loop.ipynb
    """
    if name not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {name!r}")
    n_classes = whole_number(n_classes, "n_classes", 1)
    known = [field.name for field in dataclasses.fields(METHODS[name].Config)]
    for setting in settings or {}:
        if setting not in known:
            raise ValueError(f"setting: expected one of {', '.join(known)}, got {setting!r}")
    return METHODS[name](METHODS[name].Config(**(settings or {})), image_shape, n_classes)
