"""GPT-2: its configuration, the model, and text from it."""

from gpt_model.config import GPTConfig
from gpt_model.generation import TextGenerator
from gpt_model.gpt import GPT

__all__ = ["GPT", "GPTConfig", "TextGenerator"]
