"""The chat app, and the engine that serves checkpoints to many people at once."""

import utils.early_interrupt  # noqa: F401 - first, since what follows takes a second
