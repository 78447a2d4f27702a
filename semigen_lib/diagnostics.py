"""What is wrong with this training? Small tests, each of which knows one bug by its trace.

Every ``find_*`` function looks at one thing and returns None or one line: the likely bug, a colon,
the evidence. They experiment on copies, and leave the method and torch's generators as they were.
:func:`diagnose` runs them all. Silence proves nothing; a finding is worth reading.

Shown in: book/05_training_loop.ipynb
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from semigen_lib.data import Batch, BatchStream, LabelSplit
from semigen_lib.methods.method import Method
from semigen_lib.runtime import rng_state, set_rng_state
from semigen_lib.training import check_pool

__all__ = [
    "HeadStart",
    "diagnose",
    "find_companions",
    "find_extra_labels",
    "find_frozen_player",
    "find_inverted_targets",
    "find_missing_detach",
    "find_squashed_logits",
    "find_vanishing_gradient",
    "find_wrong_range",
    "head_starts",
]

# With batches of 8 to 64 images healthy games left 0.10 or more, and games that are none 0.04 or
# less; healthy gradients kept 0.48 or more of their size, those of a saturating loss 0.002 or less.
CONTENT = 0.05  # a loss this near 0 is no loss
WEAK = 0.1  # the part of a gradient that is no longer enough


def diagnose(method: Method, split: LabelSplit, stream: BatchStream | None = None) -> list[str]:
    """Run every test that applies and return the findings; an empty list is good news.

    Parameters
    ----------
    method
        Trained or not; its game is tried out from fresh weights.
    split
        What it may know: the images, and no more labels than these.
    stream
        Where batches really come from, anything with ``at(step)``; None is what ``train`` uses.
    """
    config, device = method.config, next(method.parameters()).device
    sizes = {"batch_size": config.batch_size, "labeled_batch_size": config.labeled_batch_size}
    stream = stream or BatchStream(split, **sizes, device=device)
    method = copy.deepcopy(method)
    check_pool(method, split.images)
    pool = split.images.to(device) if method.looks_at_pool else split.images
    method.prepare(pool, split.labels.to(device), 0.0)
    batch = stream.at(0)
    findings = [
        find_wrong_range(torch.cat([batch.images, batch.labeled_images])),
        find_extra_labels(stream, split.n_labeled),
        find_frozen_player(method, batch),
        behind := find_missing_detach(method, batch),
    ]
    if not behind:  # else a term that runs behind its player would pass for a move in the game
        starts = head_starts(method, stream)
        findings += [find_inverted_targets(starts), find_vanishing_gradient(starts)]
    with _copy_of(method) as probe, torch.no_grad():
        read = probe.eval().predict if probe.reads else getattr(probe, "reconstruct", None)
        findings.append(find_squashed_logits(read(batch.images)) if probe.reads else None)
        findings.append(find_companions(read, batch.images) if read else None)
    return [finding for finding in findings if finding]


def find_wrong_range(images: Tensor) -> str | None:
    """Look for images that leave [0, 1], or fill next to nothing of it: scaled twice."""
    low, high = images.min().item(), images.max().item()
    if low >= 0 and 0.05 < high <= 1:
        return None
    return f"wrong input range: expected images that fill [0, 1], got {low:.3g} to {high:.3g}"


def find_extra_labels(stream: BatchStream, n_labeled: int) -> str | None:
    """Count the different labelled images of 100 steps; they must not be augmented."""
    batches = [stream.at(step).labeled_images.cpu().numpy() for step in range(100)]
    n_seen = len({image.tobytes() for batch in batches for image in batch})
    if n_seen <= n_labeled:
        return None
    return f"label leak: expected {n_labeled} labelled images, got {n_seen} in 100 steps"


def find_squashed_logits(class_logits: Tensor) -> str | None:
    """Look for probabilities where logits ``(B, K)`` belong: cross-entropy then has a floor."""
    if class_logits.min() < 0 or (class_logits.sum(1) - 1).abs().max() > 1e-3:
        return None
    floor = math.log(1 + (class_logits.shape[1] - 1) / math.e)
    return f"double softmax: logits are probabilities, so no loss can get below {floor:.4f}"


def find_companions(read: Callable[[Tensor], Tensor], images: Tensor) -> str | None:
    """Ask whether what is read in an image depends on the other images of its batch.

    ``read`` maps images ``(B, C, H, W)`` in [0, 1] to ``(B, ...)``, the way it is used to predict.
    It gets them alone, and then in the company of their negatives.
    """
    alone = read(images)
    moved = (read(torch.cat([images, 1 - images]))[: len(images)] - alone).abs().max().item()
    if moved <= 0.01 * alone.abs().max().item():
        return None
    return f"batch norm in the wrong mode: other images in the batch move outputs by {moved:.2g}"


def find_frozen_player(method: Method, batch: Batch) -> str | None:
    """Look for a player whose objective does not depend on its own weights."""
    with _copy_of(method) as probe:
        for player, terms in probe.updates(batch):
            if not _pull(probe.objective(terms), probe.parameters_of(player)):
                return f"frozen player: no gradient of {', '.join(terms)} reaches the {player}"
    return None


def find_missing_detach(method: Method, batch: Batch) -> str | None:
    """Look for a term that runs backwards through its player into an opponent behind it.

    A term may pass through an opponent to reach its player: that is how generators learn. It has
    no business behind its player, unless the other one minimises the same term.
    """
    with _copy_of(method) as probe:
        inputs: dict[str, list[Tensor]] = {player: [] for player in probe.players}
        owner = {getattr(probe, name): p for p in probe.players for name in probe.players[p]}
        for network in owner:  # remember what it is given
            network.register_forward_pre_hook(
                lambda net, got: inputs[owner[net]].extend(filter(torch.is_tensor, got))
            )
        for player, name, term in _own_terms(probe, batch):
            for other in set(probe.players) - {player}:
                weights = probe.parameters_of(other)
                made = [x for x in inputs[player] if _pull(x.square().sum(), weights)]
                pull = _pull(term, weights)  # 0 if it looks at others of one pass for both
                if pull and _pull(term, made):
                    reach = f"pulls at the {other} behind it, by {pull:.2g}"
                    return f"missing detach: the {player}'s term {name} {reach}"
    return None


class HeadStart(NamedTuple):
    """What became of a follower's term, and of its gradient, while the leader trained alone."""

    leader: str
    follower: str
    term: str
    before: float
    gradient_before: float  # Euclidean norm over the follower's weights
    after: float
    gradient_after: float


def head_starts(method: Method, stream: BatchStream) -> list[HeadStart]:
    """Let each player train alone for 50 steps, from fresh weights, and see what others suffer.

    There is one entry for each term that passes through the leader on its way to a follower.
    """
    found = []
    for leader in method.players if len(method.players) > 1 else ():
        with _copy_of(method) as probe:
            for module in probe.modules():
                getattr(module, "reset_parameters", lambda: None)()
            own = probe.parameters_of(leader)
            optimizer = torch.optim.Adam(own)
            before = _pressures(probe, stream.at(0), leader)
            for step in range(50 if before else 0):
                for player, terms in probe.updates(stream.at(step)):
                    if player == leader:
                        optimizer.zero_grad()
                        probe.objective(terms).backward(inputs=own, retain_graph=True)
                        optimizer.step()
            after = _pressures(probe, stream.at(0), leader, before)
        found += [HeadStart(leader, *key, *before[key], *after[key]) for key in before]
    return found


def find_inverted_targets(starts: Sequence[HeadStart]) -> str | None:
    """Look for a follower who wants what its leader wants: in a game, it would be worse off."""
    for leader, follower, term, _, _, after, _ in starts:
        if 0 <= after < CONTENT:
            story = f"the {leader} alone learnt, and {term} of the {follower} is {after:.4f}"
            return f"inverted targets: {story}: nobody plays against anybody"
    return None


def find_vanishing_gradient(starts: Sequence[HeadStart]) -> str | None:
    """Look for a follower who cannot learn any more once its leader is ahead."""
    for leader, follower, term, _, slope_before, after, slope_after in starts:
        if slope_after < WEAK * slope_before and not 0 <= after < CONTENT:
            story = f"{slope_before:.2g} to {slope_after:.2g} when the {leader} is ahead"
            return f"vanishing gradient: {term} of the {follower} falls from {story}"
    return None


@contextmanager
def _copy_of(method: Method) -> Iterator[Method]:
    """Give a copy in training mode; afterwards torch's generators are as they were."""
    state = rng_state()
    try:
        yield copy.deepcopy(method).train()
    finally:
        set_rng_state(state)


def _own_terms(method: Method, batch: Batch) -> list[tuple[str, str, Tensor]]:
    """List (player, name, term) of the terms that no other player has too."""
    terms = {(name, p): term for p, terms in method.updates(batch) for name, term in terms.items()}
    names = [name for name, _ in terms]
    return [(player, name, t) for (name, player), t in terms.items() if names.count(name) == 1]


def _pressures(method: Method, batch: Batch, leader: str, among: Container | None = None) -> dict:
    """Map (follower, term) to value and gradient, for the terms that pass through the leader."""
    torch.manual_seed(0)  # the same noise before and after
    found = {}
    for player, name, term in _own_terms(method, batch):
        through = player != leader and _pull(term, method.parameters_of(leader)) > 0
        if through if among is None else (player, name) in among:
            found[player, name] = (term.item(), _pull(term, method.parameters_of(player)))
    return found


def _pull(output: Tensor, at: Sequence[Tensor]) -> float:
    """Euclidean norm of the gradient of a scalar; 0 where it depends on none of the tensors."""
    if not at or not output.requires_grad:
        return 0.0
    slopes = torch.autograd.grad(output, at, retain_graph=True, allow_unused=True)
    return math.sqrt(sum(slope.square().sum().item() for slope in slopes if slope is not None))
