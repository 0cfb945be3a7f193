"""The models that there are, and those that are loaded: as many as the memory allows, the least recently used leaves."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from finetuning.instruction.templates import Template
from gpt_model.fast.decoder import FastDecoder
from working_with_text_data.minbpe import Tokenizer

Kind = Literal["tuned", "base", "gpt2"]
Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and all bytes, which are None if nobody knows; from any thread."""


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model before it is loaded."""

    name: str
    """How to ask for it: a run directory's path below the folder of runs, or one of gpt2, gpt2-medium, ..."""
    kind: Kind
    """tuned: answers in a conversation; base: a run that continues text; gpt2: OpenAI's, which continues text too."""
    made: datetime | None
    """When its weights were written, in local time; None for GPT-2."""
    template: str | None
    """The name of the template of a tuned model."""
    nbytes: int
    """Of the weights in memory."""
    context_length: int
    is_here: bool
    """False: it must be downloaded first."""

    @property
    def label(self) -> str:
        """Return a name for people: what it is, and when it was made."""
        raise NotImplementedError


@dataclass(frozen=True)
class Loaded:
    """A model in memory."""

    info: ModelInfo
    model: FastDecoder
    tokenizer: Tokenizer
    template: Template | None
    stop_tokens: tuple[int, ...]
    """Those that end its texts."""


class Models:
    """Finds models and keeps them in memory. All methods may be called from any thread.

    Args:
        runs: a folder; each run directory in it, at any depth, is a model.
        gpt2: whether to offer GPT-2 in its four sizes, downloaded when first asked for.
        memory: bytes of weights to hold at most; None: half of the machine's. One model may always stay.
    """

    def __init__(self, runs: Path, *, gpt2: bool = True, memory: int | None = None) -> None:
        raise NotImplementedError

    def available(self) -> list[ModelInfo]:
        """Return what there is now: tuned models, base models, GPT-2; of each kind the newest first.

        A run directory that cannot be used is left out, with a warning in the log.
        """
        raise NotImplementedError

    def info(self, name: str) -> ModelInfo:
        """Return what is known of a model.

        Raises:
            UnknownModelError: if there is none of that name.
        """
        raise NotImplementedError

    def loaded(self) -> list[str]:
        """Return the names of the models in memory, the least recently used first."""
        raise NotImplementedError

    def load(self, name: str, progress: Progress | None = None) -> Loaded:
        """Return a model, read from the disk or downloaded if need be, which takes its time.

        Raises:
            UnknownModelError: if there is none of that name.
            InputError: if it cannot be read or downloaded.
        """
        raise NotImplementedError
