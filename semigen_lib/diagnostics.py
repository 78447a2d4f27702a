"""What is wrong with this training? Small tests, each of which knows one bug by its trace.

Every ``find_*`` function looks at one thing and returns None, or one line: the likely bug, a
colon, and the evidence. They experiment on copies and leave method, weights and torch's generators
as they were. :func:`diagnose` runs them all. Silence proves nothing, but a finding is worth reading.

Shown in: book/05_training_loop.ipynb
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from semigen_lib.data import Batch, BatchStream, LabelSplit
from semigen_lib.methods.method import Method
from semigen_lib.runtime import rng_state, set_rng_state

__all__ = [
    "HeadStart",
    "Step",
    "diagnose",
    "find_companions",
    "find_extra_labels",
    "find_frozen_player",
    "find_inverted_targets",
    "find_missing_detach",
    "find_moved_opponent",
    "find_piled_gradients",
    "find_repeated_batch",
    "find_squashed_logits",
    "find_vanishing_gradient",
    "find_wrong_range",
    "head_starts",
]

#: What ``training.training_step`` is; a loop of one's own has to look like it to be diagnosed.
Step = Callable[[Method, Batch, Mapping[str, torch.optim.Optimizer]], object]


def diagnose(
    method: Method,
    split: LabelSplit,
    *,
    stream: BatchStream | None = None,
    step: Step | None = None,
    seed: int = 0,
) -> list[str]:
    """Run every test that applies and return the findings; an empty list is good news.

    Parameters
    ----------
    method
        Trained or not; the game between its players is tried out from fresh weights.
    split
        What the method may know: its images, and no more labels than it has.
    stream
        Where batches really come from: any object whose ``at(step)`` gives a ``Batch``. None is
        the stream that ``train`` would use.
    step
        The training step of a loop of one's own, to be tested as well.
    seed
        Of the batches and of all noise.

    Shown in: book/05_training_loop.ipynb
    """
    config, device = method.config, next(method.parameters()).device
    sizes = {"batch_size": config.batch_size, "labeled_batch_size": config.labeled_batch_size}
    stream = stream or BatchStream(split, **sizes, seed=seed, device=device)
    batch = stream.at(0)
    findings = [
        find_wrong_range(batch.images),
        find_repeated_batch(stream),
        find_extra_labels(stream, split.n_labeled),
        find_frozen_player(method, batch),
        find_missing_detach(method, batch),
    ]
    with _set_aside(method) as probe, torch.no_grad():
        read = probe.eval().predict if probe.reads else getattr(probe, "reconstruct", None)
        findings.append(find_squashed_logits(read(batch.images)) if probe.reads else None)
        findings.append(find_companions(read, batch.images) if read else None)
    starts = head_starts(method, stream)
    findings += [find_inverted_targets(starts), find_vanishing_gradient(starts)]
    if step is not None:
        findings += [find_piled_gradients(step, method, batch)]
        findings += [find_moved_opponent(step, method, batch)]
    return [finding for finding in findings if finding]


def find_wrong_range(images: Tensor) -> str | None:
    """Look for images that are not in [0, 1], or fill almost nothing of it: scaled twice."""
    low, high = images.min().item(), images.max().item()
    if low >= 0 and 0.05 < high <= 1:
        return None
    return f"wrong input range: expected images that fill [0, 1], got {low:.3g} to {high:.3g}"


def find_repeated_batch(stream: BatchStream) -> str | None:
    """Look for a stream that does not move on."""
    if not torch.equal(stream.at(0).images, stream.at(1).images):
        return None
    return "repeated batch: steps 0 and 1 see the very same images in the same order"


def find_extra_labels(stream: BatchStream, n_labeled: int, most_steps: int = 200) -> str | None:
    """Count different labelled images over two rounds of them; images must not be augmented."""
    seen: set[bytes] = set()
    for step in range(most_steps):
        images = stream.at(step).labeled_images.cpu().numpy()
        seen.update(image.tobytes() for image in images)
        if len(seen) > n_labeled:
            counts = f"{len(seen)} different labelled images after {step + 1} steps"
            return f"label leak: {counts}, of which {n_labeled} should have a label"
        if (step + 1) * len(images) >= 2 * n_labeled:
            break
    return None


def find_squashed_logits(class_logits: Tensor) -> str | None:
    """Look for probabilities where logits ``(B, K)`` belong: their loss has a floor above 0."""
    n_classes, total = class_logits.shape[1], class_logits.sum(1)
    if (class_logits < 0).any() or (total - 1).abs().max() > 1e-3:
        return None
    floor = torch.tensor(1 + (n_classes - 1) / torch.e).log().item()
    return f"double softmax: the logits are probabilities; no loss below {floor:.4f} can be reached"


def find_companions(read: Callable[[Tensor], Tensor], images: Tensor) -> str | None:
    """Ask whether what is read in an image depends on the other images of the batch.

    Parameters
    ----------
    read
        Maps ``(B, C, H, W)`` to ``(B, ...)``, as it is used when predicting.
    images
        In [0, 1]. They are read alone, and together with their negatives.
    """
    alone = read(images)
    moved = (read(torch.cat([images, 1 - images]))[: len(images)] - alone).abs().max().item()
    if moved <= 0.01 * alone.abs().max().item():
        return None
    return f"batch norm in the wrong mode: other images in the batch move an output by {moved:.3g}"


def find_frozen_player(method: Method, batch: Batch) -> str | None:
    """Look for a player whose terms do not depend on its own weights."""
    with _set_aside(method) as probe:
        for player, terms in probe.updates(batch):
            if _gradient_norm(probe, player, terms) == 0:
                return f"frozen player: no gradient of {', '.join(terms)} reaches the {player}"
    return None


def find_missing_detach(method: Method, batch: Batch) -> str | None:
    """Look for a term that runs backwards through its player's networks into another player.

    A term may pass through the opponent on its way to the player: that is how a generator learns.
    It has no business behind the player, unless the other one minimises the same term.
    """
    with _set_aside(method) as probe:
        inputs: dict[str, list[Tensor]] = {player: [] for player in probe.players}
        for player, names in probe.players.items():
            for name in names:
                getattr(probe, name).register_forward_pre_hook(
                    lambda _, got, player=player: inputs[player].extend(
                        x for x in got if isinstance(x, Tensor) and x.requires_grad
                    )
                )
        updates = list(probe.updates(batch))
        for player, terms in updates:
            for name, term in _exclusive(updates, player).items():
                slopes = _slopes(term, inputs[player])
                for other in set(probe.players) - {player}:
                    pairs = [(x, s) for x, s in zip(inputs[player], slopes) if s is not None]
                    for x, slope in pairs:
                        norm = _norm(_slopes(x, probe.parameters_of(other), slope))
                        if norm > 0:
                            return (
                                f"missing detach: {player}'s term {name} reaches back into "
                                f"the {other} with a gradient of {norm:.2g}"
                            )
    return None
