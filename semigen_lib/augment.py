"""Random views of images: the same digit, written a little differently.

Every image of a batch gets a warp of its own, as one batched ``grid_sample`` on the device of the
images. There are no flips: a mirrored 2 is no digit, and an upside-down 6 is another one.

Shown in: book/07_learning_from_few_labels.ipynb
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "MILD",
    "STRONG",
    "View",
    "erase",
    "warp",
]


@dataclass(frozen=True)
class View:
    """How far a random view may be from the image it was made of.

    Shown in: book/07_learning_from_few_labels.ipynb
    """

    degrees: float  # rotation, up to this angle to either side, and shear likewise
    scale: float  # each axis is stretched by a factor from 1 - scale to 1 + scale
    shift: float  # along each axis, up to this fraction of the side
    bend: float  # typical size of a smooth displacement field, as a fraction of the side


MILD = View(degrees=15, scale=0.12, shift=0.07, bend=0.02)
STRONG = View(degrees=25, scale=0.2, shift=0.11, bend=0.03)


def warp(images: Tensor, view: View = MILD) -> Tensor:
    """Return one random view of each image.

    Parameters
    ----------
    images
        ``(B, C, H, W)`` float.
    view
        The range of the warps; each image draws its own from torch's generator.

    Returns
    -------
    Tensor
        The same shape and type; what comes in is as the border. Differentiable in the images.

    Source: Simard et al. 2003, "Best Practices for Convolutional Neural Networks", section 2, for
    the smooth displacement field.
    Shown in: book/07_learning_from_few_labels.ipynb
    """
    n, device = len(images), images.device

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(n, device=device) - 1) * limit

    turn, slant = uniform(math.radians(view.degrees)), uniform(math.radians(view.degrees))
    stretch_x, stretch_y = 1 + uniform(view.scale), 1 + uniform(view.scale)
    matrix = torch.stack(
        [
            torch.stack([turn.cos() * stretch_x, slant.tan() - turn.sin()], 1),
            torch.stack([turn.sin(), turn.cos() * stretch_y], 1),
        ],
        1,
    )
    shift = torch.stack([uniform(2 * view.shift), uniform(2 * view.shift)], 1)[:, :, None]
    theta = torch.cat([matrix, shift], 2)
    with torch.autocast(device.type, enabled=False):  # in bfloat16 pixels would miss their places
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    if view.bend:
        knots = torch.rand(n, 2, 5, 5, device=device) * 2 - 1
        field = F.interpolate(
            knots, size=images.shape[2:], mode="bicubic", align_corners=True
        )  # neighbouring pixels move together: a bend, not noise
        grid = grid + 2 * view.bend * math.sqrt(3) * field.permute(0, 2, 3, 1)
    # What comes in from outside is of the border's colour: paper stays paper.
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)


def erase(images: Tensor, size: float = 0.3) -> Tensor:
    """Blank one random square of each image.

    Parameters
    ----------
    images
        ``(B, C, H, W)`` float.
    size
        Side of the square, as a fraction of the side of the image.

    Source: DeVries and Taylor 2017, "Improved Regularization of Convolutional Neural Networks with
    Cutout".
    Shown in: book/07_learning_from_few_labels.ipynb
    """
    n, _, height, width = images.shape
    rows = torch.arange(height, device=images.device) / height
    columns = torch.arange(width, device=images.device) / width
    top = torch.rand(n, 1, device=images.device) * (1 + size) - size
    left = torch.rand(n, 1, device=images.device) * (1 + size) - size
    inside_rows = (rows >= top) & (rows < top + size)
    inside_columns = (columns >= left) & (columns < left + size)
    return images * ~(inside_rows[:, None, :, None] & inside_columns[:, None, None, :])
