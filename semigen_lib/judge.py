"""A reader that no method here has trained, to say what samples are worth.

Its features stand for images in the measures of ``semigen_lib.measures``, and its class logits say
which digit a drawing shows. Its weights come with the package: ``book/tools/train_judge.py`` made
them of the 60,000 training images, and ``assets/judge/mnist.json`` says how and how well.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semigen_lib.checkpoint import CheckpointError, load_weights, read_json
from semigen_lib.sources import ASSETS

__all__ = [
    "JUDGE",
    "N_JUDGE_FEATURES",
    "Judge",
    "load_judge",
]

JUDGE = ASSETS / "judge"
N_JUDGE_FEATURES = 64  # few, so that 5,000 images fix all entries of a covariance well


class Judge(nn.Module):
    """Plain 3x3 convolutions with batch norm and max pooling, as in VGG, on 1x28x28 images.

    On purpose it has no layer in common with ``ConvTrunk``, which every method here reads with: a
    drawing that deceives the reader of its own method shall not deceive this one for free.

    Parameters
    ----------
    n_classes
        K, how many classes it reads.
    width
        Channels of the first stage; they double after each pooling.

    Source: Simonyan & Zisserman 2015, "Very Deep Convolutional Networks for Large-Scale Image
    Recognition", section 2.1, for the plan.
    Shown in: book/06_measuring_samples.ipynb
    """

    def __init__(self, n_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        plan = ((1, width), (), (width, 2 * width), (2 * width, 2 * width), ())
        plan += ((2 * width, 4 * width), (4 * width, 4 * width), ())
        stages: list[nn.Module] = []
        for channels in plan:
            if channels:
                stages.append(nn.Conv2d(*channels, 3, padding=1, bias=False))
                stages += [nn.BatchNorm2d(channels[1]), nn.ReLU()]
            else:
                stages.append(nn.MaxPool2d(2))
        stages += [nn.Flatten(), nn.Dropout(0.2)]
        stages.append(nn.Linear(4 * width * 9, N_JUDGE_FEATURES, bias=False))
        stages.append(nn.BatchNorm1d(N_JUDGE_FEATURES))
        self.stages = nn.Sequential(*stages)
        self.class_head = nn.Linear(N_JUDGE_FEATURES, n_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(B, 1, 28, 28)`` in [0, 1] to features ``(B, 64)`` and class_logits ``(B, K)``.

        The features are taken before the last rectifier: half of what it lets through is 0, which
        no Gaussian is.
        """
        features = self.stages(images - 0.5)
        return features, self.class_head(F.relu(features))


def load_judge(folder: Path = JUDGE) -> Judge:
    """Return the frozen judge of MNIST, in evaluation mode, on the CPU.

    Parameters
    ----------
    folder
        Where ``mnist.json`` and ``mnist.safetensors`` are.

    Raises
    ------
    CheckpointError
        If a file is missing, or the weights are not bit for bit those that ``mnist.json`` names.

    Shown in: book/06_measuring_samples.ipynb
    """
    facts = read_json(folder / "mnist.json")
    weights = load_weights(folder / "mnist.safetensors", facts.get("sha256"))
    judge = Judge()
    try:
        judge.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: expected the weights of a Judge, got {reason}") from None
    # This layout of memory is read half as fast again.
    return judge.eval().requires_grad_(False).to(memory_format=torch.channels_last)
