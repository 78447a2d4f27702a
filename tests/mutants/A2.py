"""Wrong answers for A2: tests cell, text of the reference, its replacement, a word of the message.

``WEIGHTS`` has the same without a word: what is trained with them is measured, and what is measured
is in book/assignments/bands.json.
"""

ENCODER = "nn.Linear(side * side, hidden), nn.ReLU(), nn.Linear(hidden, latent_dim)"
LOSS = "(images - reconstructions).square().mean()"

MUTANTS = [
    ("make-encoder-tests", "hidden), nn.ReLU(), nn", "hidden), nn", "rectifier is missing"),
    (
        "make-encoder-tests",
        "nn.Linear(hidden, latent_dim)",
        "nn.Linear(hidden, latent_dim), nn.ReLU()",
        "follows the code",
    ),
    (
        "make-encoder-tests",
        "nn.Linear(hidden, latent_dim)",
        "nn.Linear(hidden, latent_dim), nn.Sigmoid()",
        "follows the code",
    ),
    ("make-encoder-tests", ENCODER, "nn.Linear(side * side, latent_dim)", "one linear map"),
    (
        "make-encoder-tests",
        ENCODER,
        "nn.Linear(side * side, latent_dim), nn.ReLU(), nn.Linear(latent_dim, hidden)",
        "swapped",
    ),
    (
        "make-encoder-tests",
        "nn.Linear(side * side, hidden)",
        "nn.Linear(side * side, hidden, bias=False)",
        "weights and biases",
    ),
    ("make-encoder-tests", "hidden), nn.ReLU(), nn", "hidden), nn.Tanh(), nn", "another function"),
    (
        "make-encoder-tests",
        "nn.Linear(hidden, latent_dim)",
        "nn.Linear(hidden, latent_dim + 1)",
        "off by one",
    ),
    ("make-encoder-tests", "nn.Linear(side * side, hidden)", "nn.Linear(side, hidden)", "shapes"),
    ("make-decoder-tests", "        nn.Sigmoid(),\n", "", "sigmoid is missing"),
    ("make-decoder-tests", "        nn.Sigmoid(),\n", "        nn.Tanh(),\n", "tanh"),
    ("make-decoder-tests", "        nn.Sigmoid(),\n", "        nn.Softmax(1),\n", "softmax"),
    ("make-decoder-tests", "        nn.ReLU(),\n", "", "rectifier is missing"),
    ("make-decoder-tests", "        nn.Unflatten(1, (1, side, side)),\n", "", "flat"),
    (
        "make-decoder-tests",
        "nn.Unflatten(1, (1, side, side))",
        "nn.Unflatten(1, (side, side))",
        "channel",
    ),
    (
        "make-decoder-tests",
        "nn.Linear(hidden, side**2)",
        "nn.Linear(hidden, side**2, bias=False)",
        "weights and biases",
    ),
    ("reconstruction-loss-tests", LOSS, "(images - reconstructions).square().sum()", "a sum"),
    (
        "reconstruction-loss-tests",
        LOSS,
        "(images - reconstructions).square().flatten(1).sum(1).mean()",
        "pixels of each",
    ),
    ("reconstruction-loss-tests", LOSS, "(images - reconstructions).abs().mean()", "absolute"),
    (
        "reconstruction-loss-tests",
        LOSS,
        "(images - reconstructions).square().mean().sqrt()",
        "root",
    ),
    ("reconstruction-loss-tests", LOSS, "(images - reconstructions).square().mean() / 2", "1/2"),
    ("reconstruction-loss-tests", LOSS, "-(images - reconstructions).square().mean()", "sign"),
    (
        "reconstruction-loss-tests",
        LOSS,
        "(images - reconstructions).mean().square()",
        "after the mean",
    ),
    (
        "reconstruction-loss-tests",
        LOSS,
        "(images - reconstructions.detach()).square().mean()",
        "detached",
    ),
    (
        "reconstruction-loss-tests",
        LOSS,
        "(images - reconstructions).square().flatten(1).mean(1)",
        "each image",
    ),
    (
        "mean-image-error-tests",
        "mean_image = to_float(train_images)",
        "mean_image = to_float(test_images)",
        "mean of the test images",
    ),
    (
        "mean-image-error-tests",
        "(to_float(test_images) - mean_image)",
        "(to_float(train_images) - mean_image)",
        "error on the training images",
    ),
    (
        "mean-image-error-tests",
        "to_float(train_images).mean(0)",
        "to_float(train_images).mean()",
        "one grey",
    ),
    (
        "mean-image-error-tests",
        "(to_float(test_images) - mean_image).square().mean()",
        "(to_float(test_images) - mean_image).square().sum()",
        "a sum",
    ),
    (
        "mean-image-error-tests",
        "(to_float(test_images) - mean_image).square().mean()",
        "(255 * (to_float(test_images) - mean_image)).square().mean()",
        "255",
    ),
    (
        "mean-image-error-tests",
        "(to_float(test_images) - mean_image).square().mean()",
        "(to_float(test_images) - mean_image).abs().mean()",
        "absolute",
    ),
    (
        "mean-image-error-tests",
        "to_float(train_images).mean(0)",
        "to_float(train_images).median(0).values",
        "median",
    ),
    (
        "mean-image-error-tests",
        "to_float(train_images).mean(0)",
        "to_float(train_images[0])",
        "first training image",
    ),
]

WEIGHTS = [
    ("fit-tests", "        loss.backward()\n", "        (-loss).backward()\n"),
    ("fit-tests", "        optimizer.step()\n", ""),
    ("fit-tests", "        loss.backward()\n", ""),
    (
        "fit-tests",
        "batch = to_float(images[torch.randint(len(images), (64,), generator=generator)])",
        "batch = to_float(images[:1])",
    ),
    ("fit-tests", "lr=2e-3", "lr=2e-6"),
    ("fit-tests", "reconstruct(batch))", "reconstruct(batch.flip(-1)))"),
    ("fit-tests", "reconstruct(batch))", "reconstruct(batch).detach().requires_grad_())"),
]
