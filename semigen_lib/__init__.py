"""semigen_lib: semi-supervised learning for image generation, in a library small enough to read.

The chapters of *Few Labels, Many Images* show each idea in full and then import it from here:

``data``        images, label splits that cannot leak, batches
``models``      encoder, decoder (= generator), discriminator
``losses``      every term of every objective, as pure functions of network outputs
``methods``     one file per method: where models and losses meet
``training``    the loop, which knows nothing of any method
``evaluation``  what a trained method is worth
``plotting``    the figures of the book

Importing the package imports none of them, so ``import semigen_lib`` costs nothing.
"""

import os

# Threads that wait for each other must not spin for long: with busy neighbours on two cores, that
# made a training step eight times slower. To sleep at once costs too: waking up is as long as a
# small operation. OpenMP reads this when torch is first imported; GNU's spins so many times.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.1.0"
