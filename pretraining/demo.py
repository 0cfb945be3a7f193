"""From raw text to a language model in minutes, on this machine: what `make demo` runs.

Each stage is an ordinary script under its `demo` preset; this file only calls them one after the
other and sums up. A stage whose result is there already is not repeated, so that the same command
resumes after an interruption.
"""

import json
import logging
import shlex
import sys
import tempfile
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt_model import GPT, TextGenerator
from gpt_model.run_directory import identity, load_tokenizer, read_config
from pretraining import evaluate, simple
from pretraining.config import Steps
from pretraining.data_folder import TOKENIZER
from pretraining.metrics import finished_metrics
from pretraining.open_run import CONFIG, check_deletable, delete_run
from utils.files import InputError, printable, read_json, write_atomically
from utils.hardware import describe
from utils.locks import alone
from utils.outputs import check_output_folder, check_writable, delete_ours
from utils.ranges import Seed, check_ranges
from working_with_text_data import prepare, train_tokenizer
from working_with_text_data.minbpe import Tokenizer
from working_with_text_data.resumable_folder import OURS
from working_with_text_data.text_files import find_files

log = logging.getLogger(__name__)

# Two novels meet in it, so the text cannot have been learned by heart.
PROMPT = '"My dear Emma," said Mr. Darcy,'
SAMPLE_TOKENS = 48
RESULTS = "results.json"


@dataclass(frozen=True)
class Config:
    """From raw text to a language model, on this machine: tokenizer, training, evaluation, samples.

    Ctrl-C stops and keeps what there is; the same command goes on. Once finished, it shows the results.
    """

    out: Path = Path("runs/demo")
    """The run directory. The tokenizer and the token shards go beside it."""
    fresh: bool = False
    """Delete what an earlier demo made, and start over. Anything else is left as it is."""
    steps: Steps = simple.PRESETS["demo"].steps
    """Optimizer steps. Fewer make a worse model sooner; with more, a finished demo goes on."""
    seed: Seed = 0
    """Decides initial weights and the order of the text."""

    def __post_init__(self) -> None:
        check_ranges(self)


def main(config: Config) -> dict[str, Any] | None:
    """Run what is still to do, print the summary and return it; None if training was interrupted.

    Raises:
        InputError: if a stage cannot be done, another process does it, or what is there was not made by a demo.
    """
    check_writable(config.out)
    tokenizer_file = config.out.with_name(f"{config.out.name}-tokenizer.json")
    data = config.out.with_name(f"{config.out.name}-data")
    with alone(config.out, "training in"):
        if config.fresh:
            check_deletable(config.out)
            check_made_by_a_demo(tokenizer_file, data)
            check_trained_on(config.out, data)
            with alone(data, "making"):
                delete_run(config.out)
                delete_ours(data, OURS)
                tokenizer_file.unlink(missing_ok=True)
        results = stored_results(config)
        if results is None:
            results = _make(config, tokenizer_file, data)
        if results is not None:
            print(summary(results, config.out))
        return results


def _make(config: Config, tokenizer_file: Path, data: Path) -> dict[str, Any] | None:
    """Do the stages that are not done yet; return None if training was interrupted."""
    check_made_by_a_demo(tokenizer_file, data)
    if not tokenizer_file.exists():
        log.info("1/4  learning a tokenizer from Jane Austen's novels")
        train_tokenizer.main(replace(train_tokenizer.PRESETS["demo"], out=tokenizer_file))
    if not data.exists():
        log.info("2/4  turning the novels into tokens")
        prepare.main(replace(prepare.PRESETS["demo"], tokenizer=tokenizer_file, out=data))
    training = replace(
        simple.PRESETS["demo"], data=data, out=config.out, steps=config.steps, seed=config.seed,
        snapshot_every=max(1, config.steps // 4),
    )  # fmt: skip
    log.info("3/4  training")
    if not simple.main(training):
        return None
    log.info("4/4  scoring the held-out text, and writing some")
    results = measure(config.out, data)
    with write_atomically(config.out / RESULTS) as file:
        file.write(json.dumps(results, indent=1).encode())
    return results


def stored_results(config: Config) -> dict[str, Any] | None:
    """Return the results of the demo that is there, if it is finished and they are sound."""
    path = config.out / RESULTS
    if not path.exists():
        return None
    try:
        results = read_json(path)
        summary(results, config.out)  # all that it shows must be there
        finished = (results["steps"], results["seed"]) == (config.steps, config.seed)
    except (InputError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        log.warning("%s is damaged: measuring anew", path)
        return None
    return results if finished else None


def check_made_by_a_demo(tokenizer_file: Path, data: Path) -> None:
    """Check that what has the names of a demo's tokenizer and data was made by one, or is not there.

    The names are ordinary ones, and somebody's own text may go by them: a demo must neither be trained on that nor
    delete it. What a demo makes of the novels is always the same, so that nothing is lost with it.

    Raises:
        InputError: if something else is there.
    """
    check_output_folder(data, OURS, overwrite=True)
    if data.exists():
        if not _holds_the_novels(data):
            raise InputError(f"{data} was not made by a demo: move it, or choose another --out")
        expected = Tokenizer.load(data / TOKENIZER)
    elif tokenizer_file.exists():
        log.info("%s is there: comparing it with the demo's", tokenizer_file)
        with tempfile.TemporaryDirectory() as folder:
            expected = train_tokenizer.main(replace(train_tokenizer.PRESETS["demo"], out=Path(folder) / TOKENIZER))
    if tokenizer_file.exists() and identity(Tokenizer.load(tokenizer_file)) != identity(expected):
        raise InputError(f"{tokenizer_file} was not made by a demo: move it, or choose another --out")


def check_trained_on(run: Path, data: Path) -> None:
    """Check that the run that is there, if any, was trained on data of this name, as a demo's is.

    Raises:
        InputError: if it is somebody's own.
    """
    if (run / CONFIG).exists() and Path(str(read_config(run)["training"].get("data"))).name != data.name:
        raise InputError(f"{run} was not made by a demo: move it, or choose another --out")


def _holds_the_novels(data: Path) -> bool:
    """Return whether shards begin as the demo's do: with the first novel, by a tokenizer of the demo's size."""
    demo = train_tokenizer.PRESETS["demo"]
    if not (data / TOKENIZER).exists():
        return False
    tokenizer = Tokenizer.load(data / TOKENIZER)
    first_words = tokenizer.decode_bytes(evaluate.read_split(data, "train")[1:100])  # what follows <|endoftext|>
    novel = find_files(demo.text)[0].read_bytes()
    return tokenizer.vocab_size == demo.vocab_size and novel.startswith(first_words)


def measure(run: Path, data: Path) -> dict[str, Any]:
    """Return everything the summary shows, from a finished run."""
    tokenizer = load_tokenizer(run)
    training_text, held_out = (_text(tokenizer, data, split) for split in ("train", "val"))
    scored = evaluate.main(evaluate.Config(run=run, data=data))
    metrics = finished_metrics(run)
    speeds = sorted(line["tokens_per_second"] for line in metrics)
    settings = read_config(run)["training"]
    return {
        "bits_per_byte": scored.bits_per_byte,
        "validation_loss": scored.loss,
        "held_out_bytes": len(held_out),
        "training_bytes": len(training_text),
        "compressors": evaluate.compression(held_out, training_text),
        "parameters": GPT.from_run(run).n_parameters,
        "vocab_size": tokenizer.vocab_size,
        "steps": settings["steps"],
        "seed": settings["seed"],
        "precision": settings["precision"],
        "compile": settings["compile"],
        "training_seconds": metrics[-1]["seconds"],
        "tokens_per_second": speeds[len(speeds) // 2],
        "prompt": PROMPT,
        "samples": samples(run),
        "machine": describe(),
    }


def samples(run: Path) -> dict[str, str]:
    """Return the prompt's continuation by each snapshot, by step."""
    tokenizer = load_tokenizer(run)
    continuations = {}
    for path in sorted((run / "snapshots").glob("step_*.safetensors")):
        generator = TextGenerator(GPT.from_run(run, f"snapshots/{path.name}"), tokenizer)
        text = generator.generate(PROMPT, max_new_tokens=SAMPLE_TOKENS, temperature=0.7, top_k=100, seed=1)
        continuations[str(int(path.stem.removeprefix("step_")))] = text
    return continuations


def _text(tokenizer: Any, data: Path, split: str) -> bytes:
    """Return the bytes that a split's tokens spell, without the tokens between documents."""
    tokens = evaluate.read_split(data, split)
    return tokenizer.decode_bytes(tokens[tokens != tokenizer.special_tokens[train_tokenizer.END_OF_TEXT]].tolist())


def one_line(text: str) -> str:
    """Return a text on one line, without the control characters of an untrained model, which a terminal would obey."""
    return "".join(letter if letter.isprintable() else "�" for letter in " ".join(text.split()))


def summary(results: dict[str, Any], run: Path) -> str:
    """Return the results as text for a terminal."""
    lines = ["", f"The same prompt, continued along the way:  {results['prompt']}", ""]
    for step, text in results["samples"].items():
        line = f"step {step:>5}  ... {one_line(text)}"
        lines += textwrap.wrap(line, 110, initial_indent="  ", subsequent_indent=" " * 18)
    rows = [("this model", results["bits_per_byte"], None)]
    rows += [(name, bits["alone"], bits["given_training_text"]) for name, bits in results["compressors"].items()]
    lines += ["", "Bits per byte of text it has never seen (less is better):", ""]
    lines += [f"  {'':12}{'alone':>8}{'given the training text':>26}"]
    for name, by_itself, given in rows:
        if given is None:
            lines.append(f"  {name:12}{'':>8}{by_itself:>26.3f}")
        else:
            lines.append(f"  {name:12}{by_itself:>8.3f}{given:>26.3f}")
    in_venv = Path(sys.prefix) == Path.cwd() / ".venv"
    python = ".venv/bin/python" if in_venv else "python"
    lines += [
        "",
        f"  validation loss   {results['validation_loss']:.3f} nats per token",
        f"  parameters        {results['parameters']:,}",
        f"  trained           {results['steps']:,} steps in {results['training_seconds']:.0f} s, "
        f"{results['tokens_per_second']:,} tokens/s",
        f"  saved             {run}/: model.safetensors, bpe.json, snapshots/, metrics.jsonl, loss.svg, results.json",
        "",
        "Next:",
        f'  {python} -m gpt_model.generate --run {shlex.quote(str(run))} --prompt "Emma was"  # let it write',
        f"  {python} -m pretraining.simple --help  # train on your own text",
        "  make notebook  # see how each part works",
    ]
    return "\n".join(map(printable, lines))


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
