"""Tables and figures of this benchmark, from its stored results alone."""

from pathlib import Path
from typing import Any

from utils.figures import BLUE, GREEN, INK, ORANGE, PURPLE
from utils.measuring import Row, draw_each, markdown_table, read_results, show_each

TITLES = {"gpt2": "GPT-2", "cl100k_base": "GPT-4"}
PARTS = ("encoding", "batch", "steps", "training")
CONTENDER_COLORS = {"ours": BLUE, "ours, as array": GREEN, "tiktoken": ORANGE, "tokenizers": PURPLE}


# -- tables ------------------------------------------------------------------------------------------------


def tables(results: Path) -> str:
    """Return all tables, in Markdown."""
    made = {"encoding": encoding_table, "batch": batch_table, "steps": steps_table, "training": training_table}
    return "\n\n".join(show_each(results, made).values())


def load(results: Path) -> dict[str, Row]:
    """Read the parts that have been measured."""
    return read_results(results, PARTS)


def encoding_table(result: Row) -> str:
    """Show speed, memory and compression of each tokenizer on each text."""
    columns = ["text", "ids of", "tokenizer", "encode, cold:", "warm:", "decode:", "memory:", "bytes per token:"]
    rows = []
    for row in result["rows"]:
        cells = [f"{row['text']} ({row['bytes'] / 1e6:.1f} MB)", TITLES[row["encoding"]], row["tokenizer"]]
        for state in ("cold", "warm", "decode"):
            cells.append(f"{_millions(row[f'{state}_tokens_per_second'])} ({row[f'{state}_of_tiktoken']:.2f})")
        rows.append([*cells, f"{row['memory_mb']['median']:.0f} MB", f"{row['bytes_per_token']:.2f}"])
    return markdown_table(columns, rows)


def batch_table(result: Row) -> str:
    """Show several processes or threads."""
    rows = []
    for row in result["rows"]:
        cells = [row["tokenizer"], str(row["workers"])]
        for state in ("cold", "warm"):
            cells += [_seconds(row[f"{state}_seconds"]), f"{row[f'{state}_speedup']:.2f}"]
        rows.append(cells)
    return markdown_table(["tokenizer", "workers:", "cold, s:", "times one:", "warm, s:", "times one:"], rows)


def steps_table(result: Row) -> str:
    """Show the way from the textbook to here."""
    rows = [
        [row["what"], row["step"], _seconds(row["seconds"]), f"{row['times_the_textbook']:,.0f}"]
        for row in result["rows"]
    ]
    return markdown_table(["", "step", "seconds:", "times the textbook:"], rows)


def training_table(result: Row) -> str:
    """Show training beside Hugging Face's trainer, and counting with two processes."""
    versus, counting = result["versus"], result["counting"]
    size = f"{versus['bytes'] / 1e6:.0f} MB to {versus['vocab_size']:,} tokens, one thread"
    names = ("ours", "tokenizers")
    trained = [[name, _seconds(versus[name]), f"{versus[f'{name}_memory_mb']:.0f} MB"] for name in names]
    counted = [["one process", _seconds(counting["one"])], ["two processes", _seconds(counting["two"])]]
    return "\n\n".join(
        [
            markdown_table([size, "seconds:", "memory:"], trained),
            markdown_table([f"counting {counting['pieces']:,} pieces", "seconds:"], counted),
        ]
    )


def _millions(spread: Row) -> str:
    return _with_deviation(spread, 1e-6, " M/s")


def _seconds(spread: Row) -> str:
    return _with_deviation(spread, 1, "")


def _with_deviation(spread: Row, scale: float, unit: str) -> str:
    mean = spread["mean"] * scale
    digits = 2 if mean >= 0.1 else 4
    deviation = "" if spread["sd"] is None else f" ± {spread['sd'] * scale:.{digits}f}"
    return f"{mean:.{digits}f}{deviation}{unit}"


# -- figures -----------------------------------------------------------------------------------------------


def draw_all(results: Path, figures: Path) -> None:
    """Write one SVG for each part that has been measured, `batch` excepted."""
    plots = {
        "encoding": (plot_encoding, {"columns": 2, "figsize": (10, 3.8), "sharey": True}),
        "steps": (plot_steps, {"columns": 2, "figsize": (10, 2.8)}),
        "training": (plot_training, {"columns": 2, "figsize": (10, 3.4)}),
    }
    draw_each(results, figures, plots)


def plot_encoding(axes: Any, result: Row) -> None:
    """Plot tokens per second of each contender, cold and warm, on each text, with GPT-2's and GPT-4's ids.

    Args:
        axes: two, side by side, that share their y axis.
        result: of the part `encoding`.
    """
    for axis, encoding in zip(axes, TITLES, strict=True):
        rows = [row for row in result["rows"] if row["encoding"] == encoding and row["tokenizer"] != "textbook"]
        texts = list(dict.fromkeys(row["text"] for row in rows))
        for offset, (name, color) in enumerate(CONTENDER_COLORS.items()):
            for row in rows:
                if row["tokenizer"] != name:
                    continue
                x = texts.index(row["text"]) + (offset - 1.5) * 0.2
                for state, alpha in (("warm", 0.45), ("cold", 1.0)):
                    speed = row[f"{state}_tokens_per_second"]
                    axis.bar(x, speed["mean"] / 1e6, 0.18, color=color, alpha=alpha)
        axis.set_xticks(range(len(texts)), texts)
        axis.set_title(f"{TITLES[encoding]}'s ids")
        axis.grid(visible=False, axis="x")
    axes[0].set_ylabel("million tokens per second")
    for name, color in CONTENDER_COLORS.items():
        axes[1].bar(0, 0, color=color, label=name)
    axes[1].legend(title="full: cold, pale: warm", loc="upper left", bbox_to_anchor=(1, 1))


def plot_steps(axes: Any, result: Row) -> None:
    """Plot how many times as fast each optimisation makes encoding, on the first of two axes, and training."""
    for axis, what in zip(axes, ("encoding", "training"), strict=True):
        rows = [row for row in result["rows"] if row["what"] == what]
        names, times = [row["step"] for row in rows], [row["times_the_textbook"] for row in rows]
        axis.barh(names, times, color=BLUE if what == "encoding" else ORANGE)
        for y, value in enumerate(times):
            axis.text(value * 1.1, y, f"{value:,.0f}", va="center", color=INK)
        axis.set(xscale="log", xlabel="times as fast as the textbook", title=what, xlim=(0.7, max(times) * 4))
        axis.grid(visible=False, axis="y")
        axis.invert_yaxis()


def plot_training(axes: Any, result: Row) -> None:
    """Plot training time against the size of the text and of the vocabulary, on log axes, with the fitted power."""
    from matplotlib.ticker import LogLocator, NullLocator

    for axis, key, label in zip(axes, ("by_size", "by_vocab"), ("bytes of text", "vocabulary"), strict=True):
        growth = result[key]
        medians = [spread["median"] for spread in growth["seconds"]]
        deviations = [spread["sd"] or 0 for spread in growth["seconds"]]
        axis.errorbar(growth["x"], medians, yerr=deviations, fmt="o", color=BLUE)
        middle = len(medians) // 2
        fitted = [medians[middle] * (x / growth["x"][middle]) ** growth["exponent"] for x in growth["x"]]
        axis.plot(growth["x"], fitted, "--", color=ORANGE, label=f"time ~ {label} ^ {growth['exponent']:.2f}")
        axis.set(xscale="log", yscale="log", xlabel=label)
        axis.set_xticks(growth["x"], [f"{x / 1e6:.0f} M" if key == "by_size" else f"{x:,}" for x in growth["x"]])
        axis.tick_params(axis="x", labelsize=8)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())
        axis.legend(loc="upper left")
    axes[0].set_ylabel("seconds to train")
