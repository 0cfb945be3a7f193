"""Fine-tuning: a model that has learned to write is taught a task."""

import utils.early_interrupt  # noqa: F401 - first, since what follows takes a second
