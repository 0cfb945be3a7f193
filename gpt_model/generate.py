"""Continue a prompt with a model you trained, or with OpenAI's.

python -m gpt_model.generate --run runs/demo --prompt "Emma was"
python -m gpt_model.generate --pretrained gpt2 --prompt "Emma was" --top-p 0.9
"""

from dataclasses import dataclass
from pathlib import Path

from gpt_model import run_directory
from gpt_model.fast.decoder import FastDecoder, Precision
from gpt_model.generation import TextGenerator
from gpt_model.sampling import Sampling, Temperature
from utils.command_line import show
from utils.hardware import pick_device
from utils.ranges import Count


@dataclass(frozen=True)
class Task:
    """Which model continues what, and where."""

    run: Path | None = None
    """The run directory that a trainer wrote."""
    pretrained: str | None = None
    """Instead of a run: gpt2, gpt2-medium, gpt2-large, gpt2-xl, or a folder in Hugging Face layout."""
    weights: str = "model.safetensors"
    """Which weights of the run: the last, or an earlier snapshot such as snapshots/step_000100.safetensors."""
    prompt: str = ""
    """What to continue; an empty prompt begins a new document."""
    precision: Precision = "float32"
    """What it computes in: float32; bfloat16, half the bytes; int8, weights in eight bits. Fewer bytes are faster."""
    device: str = "auto"
    """cpu, cuda or mps; auto takes a GPU if there is one."""


@dataclass(frozen=True)
class Config(Sampling, Task):
    """Continue a prompt, printing the text as it comes."""

    temperature: Temperature = 0.8
    """0 always takes the likeliest token; 1 draws as the model says; more gets wild."""
    top_k: Count | None = 200
    """Draw among this many of the likeliest tokens; None for all."""


PRESETS = {"demo": Config(run=Path("runs/demo"), prompt="It is a truth universally acknowledged, that")}


def load(task: Task) -> TextGenerator:
    """Return a generator with the model that was asked for.

    Raises:
        InputError: if not exactly one model is named, it cannot be read, or there is no such device.
    """
    device = pick_device(task.device)
    model, tokenizer = run_directory.load(task.run, task.pretrained, task.weights)
    return TextGenerator(FastDecoder(model.to(device), task.precision), tokenizer)


def main(config: Config) -> str:
    """Print the prompt and its continuation as it is made; return the continuation.

    Raises:
        InputError: if the model cannot be read, or a sampling parameter is out of range.
    """
    stream = load(config).stream(config.prompt, config)
    show(config.prompt)
    text = ""
    for piece in stream:
        text += piece
        show(piece)
    show("\n")
    return text


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config, PRESETS)
