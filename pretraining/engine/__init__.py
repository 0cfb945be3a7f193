"""Training in parts: an objective says what is learned, an engine takes the steps, `fit` does the rest.

A task writes its objective and nothing else; see `objective.py` for the smallest one.
"""

from pretraining.engine.engine import Engine, Settings, StepInfo
from pretraining.engine.fit import fit
from pretraining.engine.objective import NextToken, Objective
from pretraining.engine.schedules import Schedule, linear, warmup_cosine, warmup_stable_decay
from pretraining.engine.world import World, join_world

__all__ = [
    "Engine",
    "NextToken",
    "Objective",
    "Schedule",
    "Settings",
    "StepInfo",
    "World",
    "fit",
    "join_world",
    "linear",
    "warmup_cosine",
    "warmup_stable_decay",
]
