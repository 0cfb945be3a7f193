"""Give a trained model a smaller cache, and store it as a run of its own.

python -m gpt_model.convert --run runs/demo --n-kv-groups 2 --out runs/demo-gqa
python -m pretraining.evaluate --run runs/demo-gqa --data runs/demo-data
"""

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save

from gpt_model import run_directory
from gpt_model.config import Number, Width
from gpt_model.gpt import GPT
from gpt_model.smaller_cache import describe, to_gqa, to_mla
from utils.files import InputError, write_atomically
from utils.locks import alone
from utils.outputs import check_writable
from utils.ranges import Share, check_ranges
from working_with_text_data.minbpe import Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """Convert a model with multi-head attention to one with grouped-query or multi-head latent attention.

    One of --n-kv-groups, --latent-dim and --tolerated-error says what it is to become. What that costs each layer
    is printed; pretraining.evaluate says what it costs the model's predictions.
    """

    out: Path
    """The new run directory, for gpt_model.generate and pretraining.evaluate; nothing may be there yet."""
    run: Path | None = None
    """The run directory of the model."""
    pretrained: str | None = None
    """Instead of a run: gpt2, gpt2-medium, gpt2-large, gpt2-xl, or a folder in Hugging Face layout."""
    n_kv_groups: Number | None = None
    """To GQA with this many heads of keys and values; must divide the number of heads."""
    latent_dim: Width | None = None
    """To MLA with a latent of this many numbers."""
    tolerated_error: Share | None = None
    """To MLA, with the smallest latent that moves no layer's key/value projection by more than this share of its
    size. Each layer's own size is printed; a run has one, the largest."""

    def __post_init__(self) -> None:
        check_ranges(self)


def main(config: Config) -> None:
    """Convert, print the report, and write the run.

    Raises:
        InputError: if the model cannot be read or converted, not exactly one target is given, or `out` is taken.
    """
    wanted = {name: getattr(config, name) for name in ("n_kv_groups", "latent_dim", "tolerated_error")}
    given = {name: value for name, value in wanted.items() if value is not None}
    if len(given) != 1:
        raise InputError(f"give one of --n-kv-groups, --latent-dim and --tolerated-error, got {len(given)} of them")
    _check_free(config.out)
    model, tokenizer = run_directory.load(config.run, config.pretrained)
    if "n_kv_groups" in given:
        converted, report = to_gqa(model, given["n_kv_groups"])
    else:
        converted, report = to_mla(model, **given)
    log.info("%s", describe(report))
    if "tolerated_error" in given:
        converted, _ = to_mla(model, converted.config.latent_dim)
    with alone(config.out, "writing"):
        _check_free(config.out)  # still, although converting took a while
        _write(config.out, converted, tokenizer, {"converted_from": str(config.run or config.pretrained), **given})
    log.info("-> %s", config.out)


def _check_free(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} is there already: choose another --out, or delete it")
    check_writable(out)


def _write(out: Path, model: GPT, tokenizer: Tokenizer, training: dict[str, object]) -> None:
    with write_atomically(out / "model.safetensors") as file:
        file.write(save(model.state_dict()))
    tokenizer.save(out / "bpe.json")
    content = {
        "model": dataclasses.asdict(model.config),
        "training": training,
        "tokenizer": run_directory.identity(tokenizer),
    }
    with write_atomically(out / "config.json") as file:  # last: with it, the folder is a run directory
        file.write(json.dumps(content, indent=1).encode())


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
