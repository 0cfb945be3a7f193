"""Settings of a training run that takes a second or two."""

from pathlib import Path

from pretraining.config import Config


def tiny(data: Path, out: Path, **changes: object) -> Config:
    """A tiny run, with some settings changed."""
    settings = {
        "context_length": 32, "d_model": 32, "n_layers": 2, "n_heads": 2, "steps": 12, "batch_size": 4,
        "precision": "float32", "compile": "off", "device": "cpu", "eval_every": 5, "eval_blocks": 8,
        "checkpoint_every": 4,
    }  # fmt: skip
    return Config(data=data, out=out, **{**settings, **changes})
