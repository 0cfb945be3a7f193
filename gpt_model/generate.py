"""Continue a prompt with a model you trained.

python -m gpt_model.generate --run runs/demo --prompt "Emma was"
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from gpt_model.generation import TextGenerator
from gpt_model.gpt import GPT
from gpt_model.run_directory import load_tokenizer
from utils.hardware import pick_device


@dataclass(frozen=True)
class Config:
    """Continue a prompt with a model you trained, printing the text as it comes."""

    run: Path
    """The run directory that a trainer wrote."""
    prompt: str = ""
    """What to continue; an empty prompt begins a new document."""
    weights: str = "model.safetensors"
    """Which weights of the run: the last, or an earlier snapshot such as snapshots/step_000100.safetensors."""
    max_new_tokens: int = 200
    """How many tokens to write at most; the text ends earlier at <|endoftext|>."""
    temperature: float = 0.8
    """0 always takes the likeliest token; 1 draws as the model says; more gets wild."""
    top_k: int | None = 200
    """Draw among this many of the likeliest tokens; None for all."""
    seed: int | None = None
    """The same seed writes the same text."""
    device: str = "auto"
    """cpu, cuda or mps; auto takes a GPU if there is one."""


PRESETS = {"demo": Config(run=Path("runs/demo"), prompt="It is a truth universally acknowledged, that")}


def main(config: Config) -> str:
    """Print the prompt and its continuation as it is made; return the continuation.

    Raises:
        InputError: if the run cannot be read, or a sampling parameter is out of range.
    """
    model = GPT.from_run(config.run, config.weights).to(pick_device(config.device))
    generator = TextGenerator(model, load_tokenizer(config.run))
    stream = generator.stream(
        config.prompt,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        seed=config.seed,
    )
    sys.stdout.write(config.prompt)
    text = ""
    for piece in stream:
        text += piece
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return text


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, PRESETS)
