"""Small models for tests of serving, in memory and as run directories."""

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from chat_ui.engine import Loaded, ModelInfo
from finetuning.classification.classifier import GPTClassifier
from gpt_model import GPT
from gpt_model.run_directory import identity
from tests.gpt_model.models import decided
from working_with_text_data.minbpe import RegexTokenizer


@functools.cache
def tokenizer() -> RegexTokenizer:
    """263 tokens: bytes, a few merges, and the special tokens of both templates."""
    made = RegexTokenizer()
    made.train("it was a truth universally acknowledged " * 3, 260)
    made.add_special_tokens("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return made


def model(seed: int = 0, **config: Any) -> GPT:
    """In float64, so that its choices hang on no rounding."""
    return decided(seed, vocab_size=tokenizer().vocab_size, **config)


def loaded(seed: int = 0, template: str | None = None, *, precise: bool = True, **config: Any) -> Loaded:
    gpt = model(seed, **config) if precise else model(seed, **config).float()
    info = ModelInfo("small", "base", datetime(2026, 1, 1), template, gpt.config, Path("small"))
    return Loaded.of(info, gpt, tokenizer())


def write_run(folder: Path, seed: int = 0, template: str | None = None, **config: Any) -> Path:
    """Write a run directory as trainers do."""
    folder.mkdir(parents=True, exist_ok=True)
    gpt = model(seed, **config)
    content = {"model": asdict(gpt.config), "training": {}, "tokenizer": identity(tokenizer())}
    content |= {} if template is None else {"template": template}
    (folder / "config.json").write_text(json.dumps(content))
    tokenizer().save(folder / "bpe.json")
    save_file({name: x.float().contiguous() for name, x in gpt.state_dict().items()}, folder / "model.safetensors")
    return folder


def write_classifier(folder: Path, classes: Sequence[str] = ("bad", "good")) -> Path:
    """Write the run directory of an untrained classifier."""
    run = write_run(folder)
    classifier = GPTClassifier(model(), len(classes))
    save_file({name: x.float().contiguous() for name, x in classifier.state_dict().items()}, run / "model.safetensors")
    content = json.loads((run / "config.json").read_bytes())
    content["classifier"] = {"classes": list(classes), "pool": "last", "most_tokens": 32, "cut": "head"}
    (run / "config.json").write_text(json.dumps(content))
    return run
