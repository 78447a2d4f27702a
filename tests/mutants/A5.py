"""Wrong answers for A5, an open task: everything is measured and nothing called.

``WEIGHTS``: tests cell, text of the reference, its replacement; what each reaches is in
book/assignments/bands.json.
"""

TRAIN_READER = "    train(reader, fewer, steps=steps // 2, seed=seed)\n"
TRAIN_ARTIST = "    train(artist, split, steps=steps, seed=seed)\n"
LABELS = "        labels=split.labels[kept],\n"

MUTANTS = []

WEIGHTS = [
    ("reader-tests", TRAIN_READER, ""),
    ("reader-tests", TRAIN_READER, "    train(reader, fewer, steps=5, seed=seed)\n"),
    ("reader-tests", '"propagate", split.image_shape', '"supervised", split.image_shape'),
    ("reader-tests", LABELS, "        labels=split.labels[kept - 1],\n"),
    ("reader-tests", LABELS, LABELS.replace(",\n", ".clamp(max=4),\n")),
    ("conditional-accuracy-tests", TRAIN_ARTIST, ""),
    ("conditional-accuracy-tests", TRAIN_ARTIST, TRAIN_ARTIST.replace("steps=steps", "steps=10")),
    ("conditional-accuracy-tests", '"request_weight": 0.2', '"request_weight": 0.0'),
    ("frechet-ratio-tests", TRAIN_ARTIST, TRAIN_ARTIST.replace("steps=steps", "steps=20")),
    ("frechet-ratio-tests", '"learning_rate": 3e-3', '"learning_rate": 3e-6'),
]
