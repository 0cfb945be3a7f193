"""The page about an evaluation: tables, figures and a few answers, from the stored numbers."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetuning.instruction.scoring.answers import Answered
from finetuning.pages import Page, shortened
from utils.figures import figure

LONGEST_SHOWN = 200  # characters of a text
EXAMPLES = 12
NOTES = {
    "perplexity of the reference": "how surprised the model is by the right answer, per token; lower is better, and it "
    "can be compared between models with the same vocabulary only",
    "BLEU-4": "stretches of words shared with the reference, of 100",
    "ROUGE-L": "the longest common subsequence of words, of 100",
    "chrF": "stretches of letters shared with the reference, of 100",
    "exact match": "answers with the words of a short reference, in percent",
    "demands met": "of length, format, language and words that the instruction asks for, in percent, where it does",
    "toxic answers": "in percent, by a classifier that knows words, not meanings",
    "words": "of an answer, on average",
}
DRAWN = ("perplexity of the reference", "chrF", "exact match")


def write_report(folder: Path, result: dict[str, Any], answered: Sequence[Answered]) -> None:
    """Write report.md, report.html and their figures.

    Args:
        folder: where.
        result: what `evaluate` stores.
        answered: the questions with all answers.
    """
    systems = result["systems"]
    page = Page(f"Answers of {Path(result['run']).name}")
    page.paragraph(
        f"{result['n_questions']:,} held-out questions of {result['data']}, template {result['template']}, greedy "
        f"answers of at most {result['max_new_tokens']} tokens, on {result['machine'].get('cpu')}. In brackets: 95% "
        "intervals from the bootstrap over questions."
    )
    page.heading("Over all questions")
    whole = [row for row in result["measures"] if row["category"] == "all"]
    columns = [*systems, *(["difference"] if len(systems) > 1 else [])]
    page.table(
        ["measure", "answers", *columns],
        [[row["measure"], f"{row['n']:,}", *(bracketed(row[column]) for column in columns)] for row in whole],
    )
    page.table(["measure", "what it says"], [[row["measure"], NOTES[row["measure"]]] for row in whole], is_text=True)
    _stereotypes(page, result)
    if "judge" in result:
        _judge(page, result["judge"])
    page.heading("By category")
    categories = list(dict.fromkeys(row["category"] for row in result["measures"] if row["category"] != "all"))
    for measure in DRAWN:
        rows = [row for row in result["measures"] if row["measure"] == measure and row["category"] in categories]
        rows = [row for row in rows if row["n"]]
        if rows:
            page.figure(f"{measure.split()[0]}.svg", draw(rows, systems, measure), f"{measure} in each category")
    for measure in (row["measure"] for row in whole):
        rows = [row for row in result["measures"] if row["measure"] == measure and row["category"] in categories]
        cells = [[r["category"], f"{r['n']:,}", *(bracketed(r[c]) for c in columns)] for r in rows if r["n"]]
        if cells:
            page.table([measure, "answers", *columns], cells)
    page.heading("Some answers")
    step = max(1, len(answered) // EXAMPLES)
    page.table(
        ["question", "reference", *systems],
        [
            [shortened(text, LONGEST_SHOWN) for text in (each.question, each.reference, *each.answers.values())]
            for each in answered[::step][:EXAMPLES]
        ],
        is_text=True,
    )
    page.write(folder)


def _stereotypes(page: Page, result: dict[str, Any]) -> None:
    page.heading("Stereotypes")
    shares = [f"{name} {bracketed(value)}%" for name, value in result["stereotypes"].items()]
    n = next(iter(result["stereotypes"].values()))["n"]
    page.paragraph(
        f"Of {n} pairs of sentences, the one that says what is commonly supposed is likelier in: {', '.join(shares)}. "
        "Without a preference it would be 50%. So few pairs show strong preferences only."
    )


def _judge(page: Page, judged: dict[str, Any]) -> None:
    page.heading("Another model as judge")
    page.paragraph(
        f"{judged['model']} compared {judged['n']} pairs of answers, each twice, with the positions swapped. It "
        f"preferred {judged['first']} in {judged['wins']}, {judged['second']} in {judged['losses']}, and called "
        f"{judged['ties']} equal or changed its mind with the positions ({judged['n_inconsistent']} of them). Share of "
        f"wins, ties counted half: {bracketed(judged['win_rate'])}%."
    )


def bracketed(number: dict[str, Any]) -> str:
    """Return a number with its interval, as text."""
    if number["value"] is None:
        return "-"
    if number["low"] is None:
        return _short(number["value"])
    return f"{_short(number['value'])} [{_short(number['low'])}, {_short(number['high'])}]"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:z.1f}" if abs(value) >= 10 else f"{value:z.2f}"


def draw(rows: Sequence[dict[str, Any]], systems: Sequence[str], measure: str) -> bytes:
    """Return a figure of one measure: a point with its interval per category and model, as SVG."""
    with figure(figsize=(7.0, 0.9 + 0.32 * len(rows))) as (drawing, axes):
        for place, name in enumerate(systems):
            heights = [row + 0.22 * (place - (len(systems) - 1) / 2) for row in range(len(rows))]
            values = [row[name]["value"] for row in rows]
            below = [row[name]["value"] - (row[name]["low"] or row[name]["value"]) for row in rows]
            above = [(row[name]["high"] or row[name]["value"]) - row[name]["value"] for row in rows]
            errors = [[max(0.0, x) for x in below], [max(0.0, x) for x in above]]
            axes.errorbar(values, heights, xerr=errors, fmt="o", markersize=4, label=name)
        axes.set_yticks(range(len(rows)), [f"{row['category']} ({row['n']})" for row in rows])
        axes.invert_yaxis()
        axes.set(xlabel=measure, xscale="log" if measure.startswith("perplexity") else "linear")
        axes.legend(loc="best")
        content = io.BytesIO()
        drawing.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()
