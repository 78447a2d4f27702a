"""Write the committed index files of MNIST: ``python book/tools/make_splits.py [FOLDER]``.

Each file holds one line per seed, "seed: index index ...", in increasing order of the index. They
are the output of the documented ranking (``semigen_lib.data.rank_images``), kept so that nobody's
split depends on code that may change; ``tests/test_data.py`` proves that the two still agree.
"""

import hashlib
import sys
from pathlib import Path

import torch

from semigen_lib.data import (
    COMMITTED_SEEDS,
    COMMITTED_SIZES,
    SPLITS,
    ImageData,
    load_images,
    rank_images,
)


def split_files(data: ImageData) -> dict[str, str]:
    """Return the text of every index file and of SHA256SUMS, by file name."""
    labels, n_classes = data.train.labels, data.n_classes
    ranks = {seed: rank_images(data.name, labels, n_classes, seed) for seed in COMMITTED_SEEDS}
    files = {}
    for size in COMMITTED_SIZES:
        lines = []
        for seed, classes in ranks.items():
            chosen = torch.cat([rank[: size // n_classes] for rank in classes]).sort().values
            lines.append(f"{seed}: {' '.join(map(str, chosen.tolist()))}\n")
        files[f"{data.name}_{size}.txt"] = "".join(lines)
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    files["SHA256SUMS"] = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    return files


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else SPLITS
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in split_files(load_images("mnist")).items():
        (folder / name).write_bytes(text.encode())


if __name__ == "__main__":
    main()
