"""Wrong answers for A5, an open task: everything is measured, nothing is called.

``WEIGHTS``: tests cell, text of the reference, its replacement; what each is worth is in
book/assignments/bands.json.
"""

MUTANTS = []

WEIGHTS = [
    ("reader-tests", '"propagate", split.image_shape', '"supervised", split.image_shape'),
    ("reader-tests", "    train(reader, fewer, steps=steps // 2, seed=seed)\n", ""),
    (
        "reader-tests",
        "    train(reader, fewer, steps=steps // 2, seed=seed)\n",
        "    train(reader, fewer, steps=5, seed=seed)\n",
    ),
    (
        "reader-tests",
        "labels=split.labels[kept],",
        "labels=torch.where(split.labels[kept] < 0, -1, (split.labels[kept] + 1) % 10),",
    ),
    (
        "reader-tests",
        "        labels=split.labels[kept],\n",
        "        labels=split.labels[: len(kept)],\n",
    ),
    ("conditional-accuracy-tests", "    train(artist, split, steps=steps, seed=seed)\n", ""),
    (
        "conditional-accuracy-tests",
        "    train(artist, split, steps=steps, seed=seed)\n",
        "    train(artist, split, steps=10, seed=seed)\n",
    ),
    ("conditional-accuracy-tests", '"request_weight": 0.2', '"request_weight": 0.0'),
    ("frechet-ratio-tests", '"request_weight": 0.2', '"adversarial_weight": 0.0'),
    ("frechet-ratio-tests", '"learning_rate": 3e-3', '"learning_rate": 3e-6'),
    (
        "frechet-ratio-tests",
        "steps=steps, seed=seed)\n    return artist",
        "steps=20, seed=seed)\n    return artist",
    ),
]
