"""GPT-2: its configuration, the model, and text from it."""

import utils.early_interrupt  # noqa: F401 - first, since what follows takes a second

# isort: split
from gpt_model.config import GPTConfig
from gpt_model.fast.decoder import FastDecoder
from gpt_model.generation import TextGenerator
from gpt_model.gpt import GPT
from gpt_model.sampling import Sampling

__all__ = ["GPT", "FastDecoder", "GPTConfig", "Sampling", "TextGenerator"]
