"""Writing one text: this chapter's ways of doing it, and that of transformers, in the same run.

The prompt has 32 random tokens, 64 are written greedily, and the models have GPT-2's shape and the same random
weights. In float32 all must write the same tokens, or nothing is timed. The ceiling of a way is what memory allows:
the bytes it must read for a token, at the speed of the best plain sum measured in the same run.

What eight bits cost in quality is measured on a trained model: the perplexity of text it has not seen, in each
precision.

Shapes: B batch, T time.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_model.config import GPTConfig
from gpt_model.costs import cache_bytes, decoding_bytes
from gpt_model.fast.decoder import FastDecoder, Precision
from gpt_model.gpt import GPT
from gpt_model.run_directory import load_tokenizer
from utils.hardware import compiler_works
from utils.measuring import Row, interleaved, markdown_table, rate, ratio
from working_with_text_data.text_files import CORPUS

log = logging.getLogger(__name__)

PROMPT_TOKENS = 32
NEW_TOKENS = 64
HELD_OUT_CHARACTERS = 20_000  # at the end of each novel; training keeps away from the last twentieth
THEIRS = "transformers"
PLAIN = "GPT"
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Writers = Mapping[str, Callable[[], Tensor]]


def measure_writing(sizes: tuple[str, ...], rounds: int, device: torch.device, peaks: Row) -> Row:
    """Measure the tokens per second of every way of writing, in every precision.

    Args:
        sizes: names of presets.
        rounds: how often each way is measured.
        device: where.
        peaks: see `measured_peaks`.

    Raises:
        RuntimeError: if a way writes other tokens than the model itself, in float32.
    """
    rows: list[Row] = []
    for size in sizes:
        for precision in ("float32", "bfloat16"):
            log.info("%s in %s", size, precision)
            rows += _measure(size, precision, rounds, device, peaks)
    return {"prompt": PROMPT_TOKENS, "new_tokens": NEW_TOKENS, "rows": rows}


def _measure(size: str, precision: Precision, rounds: int, device: torch.device, peaks: Row) -> list[Row]:
    torch.manual_seed(0)
    model = GPT(GPTConfig.preset(size)).to(device, DTYPES[precision]).eval()
    ids_BT = torch.randint(model.config.vocab_size, (1, PROMPT_TOKENS), device=device)
    decoders = _decoders(model, precision)
    writers: dict[str, Callable[[], Tensor]] = {PLAIN: lambda: greedy(model, ids_BT)}
    writers |= {name: lambda decoder=decoder: greedy(decoder, ids_BT) for name, decoder in decoders.items()}
    writers |= _their_writer(model, ids_BT)
    _check(writers, exact=precision == "float32")
    measured = interleaved(writers, rounds, device)
    baseline = measured.get(THEIRS)
    config = model.config
    dtype = DTYPES[precision]
    held = PROMPT_TOKENS + NEW_TOKENS // 2  # in the cache, on average
    rows: list[Row] = []
    for name, seconds in measured.items():
        read = decoding_bytes(config, 1, held, dtype)
        if name in decoders:
            read = decoders[name].weight_bytes + cache_bytes(config, 1, held, dtype)
        speed = rate(NEW_TOKENS, seconds)
        rows.append(
            {
                "size": size, "way": name, "precision": "int8" if "int8" in name else precision,
                "tokens_per_second": speed, "bytes_per_token": read,
                "ceiling_share": speed["median"] * read / peaks["bytes_per_second"],
                "times_transformers": baseline and ratio(baseline, seconds),
            }
        )  # fmt: skip
    return rows


def _decoders(model: GPT, precision: Precision) -> dict[str, FastDecoder]:
    """Make the fast decoders of a precision; int8, which computes in bfloat16, stands beside that."""
    kinds: list[Precision] = ["float32"] if precision == "float32" else ["bfloat16", "int8"]
    made = {}
    for kind in kinds:
        for compiled in (False, True) if compiler_works(model.token_embedding.weight.device.type) else (False,):
            name = ", ".join(
                ["FastDecoder", *(["int8"] if kind == "int8" else []), *(["compiled"] if compiled else [])]
            )
            made[name] = FastDecoder(model, kind, compile=compiled)
    return made


@torch.inference_mode()
def greedy(model: GPT | FastDecoder, ids_BT: Tensor) -> Tensor:
    """Return the next NEW_TOKENS ids, (NEW_TOKENS,): the prompt is read at once, then one token after the other."""
    cache = model.new_cache(1, PROMPT_TOKENS + NEW_TOKENS)
    written = []
    for _ in range(NEW_TOKENS):
        logits_B1V, _ = model(ids_BT, cache=cache, last_only=True)
        ids_BT = logits_B1V.argmax(dim=-1)
        written.append(ids_BT)
    return torch.cat(written, dim=1)[0]


def _their_writer(model: GPT, ids_BT: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return `generate` of transformers with the same weights; nothing for what is no GPT-2, or where it is missing."""
    if model.config.position != "learned":
        log.warning("position %s is not GPT-2's, so transformers is left out", model.config.position)
        return {}
    try:
        from transformers import GPT2Config, GPT2LMHeadModel  # slow to import, and perhaps not there
    except ImportError:
        log.warning("transformers is not installed, so it is left out")
        return {}
    config = model.config
    shape = {"n_embd": config.d_model, "n_layer": config.n_layers, "n_head": config.n_heads}
    shape |= {"vocab_size": config.vocab_size, "n_positions": config.context_length}
    theirs = GPT2LMHeadModel(GPT2Config(**shape))
    theirs = theirs.to(ids_BT.device, model.token_embedding.weight.dtype).eval()
    with torch.no_grad():
        theirs.transformer.wte.weight.copy_(model.token_embedding.weight)
        theirs.transformer.wpe.weight.copy_(model.position_embedding.weight)
        theirs.transformer.ln_f.load_state_dict(model.final_norm.state_dict())
        for its, mine in zip(theirs.transformer.h, model.blocks, strict=True):
            its.ln_1.load_state_dict(mine.attention_norm.state_dict())
            its.ln_2.load_state_dict(mine.feed_forward_norm.state_dict())
            for a, b in (
                (its.attn.c_attn, mine.attention.qkv), (its.attn.c_proj, mine.attention.out),
                (its.mlp.c_fc, mine.feed_forward.expand), (its.mlp.c_proj, mine.feed_forward.out),
            ):  # fmt: skip
                a.weight.copy_(b.weight.T)  # GPT-2 stores its matrices transposed
                a.bias.copy_(b.bias)

    def write() -> Tensor:
        with torch.inference_mode():
            settings = {
                "max_new_tokens": NEW_TOKENS,
                "min_new_tokens": NEW_TOKENS,
                "do_sample": False,
                "pad_token_id": 0,
            }
            return theirs.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), **settings)[0, PROMPT_TOKENS:]

    return {THEIRS: write}


def _check(writers: Writers, exact: bool) -> None:
    """Let each write once, which also compiles what is to be compiled; if exact, check that the texts are equal."""
    texts = {name: write() for name, write in writers.items()}
    for name, tokens in texts.items():
        if exact and not torch.equal(tokens, texts[PLAIN]):
            raise RuntimeError(f"{name} does not write the tokens that the model writes")


@torch.inference_mode()
def measure_quality(run: Path) -> Row:
    """Measure a trained model's perplexity per token, on text it has not seen, in each precision.

    Args:
        run: a run directory whose model was trained on the repository's corpus.
    """
    model, tokenizer = GPT.from_run(run), load_tokenizer(run)
    text = "".join(path.read_text(encoding="utf-8")[-HELD_OUT_CHARACTERS:] for path in sorted(CORPUS.glob("*.txt")))
    ids = torch.tensor(tokenizer.encode(text))
    T = model.config.context_length
    ids_NT = ids[: (len(ids) - 1) // T * T].view(-1, T)
    targets_NT = ids[1 : ids_NT.numel() + 1].view(-1, T)
    row: Row = {"run": run.name, "tokens": ids_NT.numel()}
    for precision in ("float32", "bfloat16", "int8"):
        decoder = FastDecoder(model, precision)
        losses = [
            F.cross_entropy(decoder(ids_BT)[0].float().flatten(0, 1), targets_BT.flatten(), reduction="sum")
            for ids_BT, targets_BT in zip(ids_NT.split(16), targets_NT.split(16), strict=True)
        ]
        row[precision] = (torch.stack(losses).sum() / ids_NT.numel()).exp().item()
    return row


def writing_table(result: Row) -> str:
    """Show the rows in Markdown."""
    columns = ["size", "precision", "way", "tokens/s:", "times transformers:", "of the memory ceiling:"]
    rows = []
    for row in result["rows"]:
        times = row["times_transformers"]
        speed = f"{row['tokens_per_second']['median']:,.1f}"
        cells = [row["size"], row["precision"], row["way"], speed]
        rows.append([*cells, f"{times['median']:.2f}" if times else "", f"{row['ceiling_share']:.0%}"])
    return markdown_table(columns, rows)
