"""The cloud: a GPU workspace, training jobs, serving, and more than one machine."""

import utils.early_interrupt  # noqa: F401 - first, since what follows takes a second
