"""How a model learns: the training loop, optimizers, checkpoints, evaluation."""

import utils.early_interrupt  # noqa: F401 - first, since what follows takes a second
