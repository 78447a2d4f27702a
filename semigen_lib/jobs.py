"""Independent work side by side: in processes of this machine, or on the workers of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = [
    "JobsError",
    "run_jobs",
]

Item = TypeVar("Item")
Result = TypeVar("Result")


class JobsError(RuntimeError):
    """Workers that died; what they were working on is not known to be finished."""


def run_jobs(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    jobs: int = 2,
    scheduler: str | None = None,
) -> Iterator[Result]:
    """Call ``work`` once for each item, and yield what it returns as soon as it does.

    Parameters
    ----------
    work
        A function of a module, which other processes can import. What it raises ends everything:
        where one item's defect must not cost the others, it returns it instead.
    items
        Picklable.
    jobs
        How many processes; 1 is this one.
    scheduler
        Address of a Dask scheduler, whose workers are used instead.

    Raises
    ------
    ValueError
        If there is no scheduler at that address.
    JobsError
        If a worker was killed.

    Shown in: book/running.md
    """
    from joblib import Parallel, delayed

    with _workers(jobs, scheduler):
        try:
            # One at a time, or joblib would hold back quick results until it has several.
            parallel = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")
            yield from parallel(delayed(work)(item) for item in items)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise JobsError(f"workers: expected them to stay alive, got {reason}") from error


@contextmanager
def _workers(jobs: int, scheduler: str | None) -> Iterator[None]:
    """Let joblib use processes of this machine, or the workers of a Dask cluster."""
    from joblib import parallel_config

    if scheduler is None:
        with parallel_config(backend="loky", n_jobs=jobs):
            yield
        return
    try:
        from dask.distributed import Client
    except ImportError:
        raise ValueError(
            "scheduler: expected dask[distributed] to be installed, got no such package"
        ) from None
    try:
        client = Client(scheduler, timeout="10s")
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"scheduler: expected a Dask scheduler at {scheduler}, got {reason}"
        ) from None
    with client, parallel_config(backend="dask", n_jobs=-1):
        yield
