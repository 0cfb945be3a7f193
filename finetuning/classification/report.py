"""What a run writes about how well it does: for programs, for people, and text by text.

report.json        all measures
report.md, .html   the same to be read, with the surest mistakes, and which tokens made them
predictions.csv    each test text with its probabilities: what `compare.py` reads
"""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetuning.classification.attribution import Pieces
from finetuning.classification.reviews import Reviews
from finetuning.classification.slices import slices
from utils.files import printable, write_atomically
from utils.measuring import markdown_table

REPORT, PREDICTIONS, MARKDOWN, PAGE = "report.json", "predictions.csv", "report.md", "report.html"
REPORT_FILES = (REPORT, PREDICTIONS, MARKDOWN, PAGE)

MISTAKES = 10  # that are shown
LONGEST_SHOWN = 60  # pieces of a text
WORDS_NAMED = 5  # per mistake, in Markdown, which has no colours
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; } th, td { padding: .2em .8em; border-bottom: 1px solid #ccc; }
td:not(:first-child), th:not(:first-child) { text-align: right; } .text { margin: .2em 0 1.2em; }
.note { color: #555; } svg { max-width: 100%; height: auto; }
"""


@dataclass(frozen=True)
class Mistake:
    """A test text that is classified wrongly."""

    label: str
    predicted: str
    probability: float
    pieces: Pieces


@dataclass(frozen=True)
class Section:
    """A part of the report, in whatever form it is written."""

    title: str
    note: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    picture: str = ""
    """An SVG, for HTML."""
    mistakes: Sequence[Mistake] = ()


def write_report(
    folder: Path,
    content: dict[str, Any],
    test: Reviews,
    probabilities_NK: np.ndarray,
    explain: Callable[[str], Pieces],
) -> None:
    """Write the four files into a folder; slices are added to the content.

    Args:
        folder: of the run, or of the report alone.
        content: of report.json; "test" are the `measures`.
        test: the texts.
        probabilities_NK: what the model gives each class.
        explain: returns the tokens of a text, with what each speaks for the predicted class.
    """
    content["slices"] = slices(test, probabilities_NK.argmax(1) == test.labels)
    mistakes = surest_mistakes(test, probabilities_NK, explain)
    sections = [*_measured(content), *_learning_curve(content), _mistakes(mistakes)]
    title = f"{content['kind']} on {content['settings']['data']}"
    for name, text in (
        (PREDICTIONS, _predictions(test, probabilities_NK)),
        (MARKDOWN, _markdown(title, sections)),
        (PAGE, _page(title, sections)),
        (REPORT, json.dumps(content, indent=1)),
    ):
        with write_atomically(folder / name) as file:
            file.write(text.encode())


def surest_mistakes(test: Reviews, probabilities_NK: np.ndarray, explain: Callable[[str], Pieces]) -> list[Mistake]:
    """Return the wrong predictions that the model was surest of."""
    predicted_N = probabilities_NK.argmax(1)
    wrong = np.flatnonzero(predicted_N != test.labels)
    wrong = wrong[np.argsort(-probabilities_NK.max(1)[wrong], kind="stable")][:MISTAKES]
    return [
        Mistake(
            test.names[test.labels[at]], test.names[predicted_N[at]], float(probabilities_NK[at].max()),
            explain(test.texts[at])[:LONGEST_SHOWN],
        )
        for at in wrong
    ]  # fmt: skip


def _predictions(test: Reviews, probabilities_NK: np.ndarray) -> str:
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["text", "label", *(f"p({name})" for name in test.names)])
    for text, label, row in zip(test.texts, test.labels, probabilities_NK.tolist(), strict=True):
        writer.writerow([text, test.names[label], *(f"{p:.6f}" for p in row)])
    return table.getvalue()


def _measured(content: dict[str, Any]) -> list[Section]:
    test, names = content["test"], list(content["test"]["classes"])
    low, high = test["accuracy_interval"]
    numbers = {
        "accuracy": f"{test['accuracy']:.4f} ({low:.4f} to {high:.4f})",
        "F1": f"{test['f1']:.4f}",
        "ROC-AUC": _four(test["roc_auc"]),
        "average precision": _four(test["average_precision"]),
        "cross-entropy, nats": f"{test['log_loss']:.4f}",
        "expected calibration error": f"{test['calibration_error']:.4f}",
    }
    classes = [
        [name, str(row["texts"]), *(f"{row[measure]:.4f}" for measure in ("precision", "recall", "f1"))]
        for name, row in test["classes"].items()
    ]
    confusion = [[name, *map(str, row)] for name, row in zip(names, test["confusion"], strict=True)]
    bins = [[f"{row['confidence']:.2f}", f"{row['accuracy']:.2f}", str(row["texts"])] for row in test["reliability"]]
    parts = [
        [row["slice"], str(row["texts"]), f"{row['accuracy']:.3f}", "{:.3f} to {:.3f}".format(*row["interval"])]
        for row in content["slices"]
    ]
    return [
        Section(
            "Measures", "Where 95% of test sets like this one would lie is in brackets (bootstrap).",
            ("measure", "value:"), list(numbers.items()),
        ),
        Section("Classes", "", ("class", "texts:", "precision:", "recall:", "F1:"), classes),
        Section("What was taken for what", "A row is what is right, a column what was predicted.",
                ("", *(f"{name}:" for name in names)), confusion),
        Section("Calibration", "A calibrated model is right as often as it says.",
                ("confidence", "accuracy:", "texts:"), bins, reliability_diagram(test["reliability"])),
        Section("Parts of the test texts", "Cues are words, see slices.py.",
                ("part", "texts:", "accuracy:", "95%:"), parts),
    ]  # fmt: skip


def _learning_curve(content: dict[str, Any]) -> list[Section]:
    rows = [
        [f"{row['share']:.0%}", f"{row['texts']:,}", f"{row['val_accuracy']:.4f}"]
        for row in content.get("learning_curve", ())
    ]
    columns = ("share of the training texts", "texts:", "accuracy:")
    return [Section("Learning curve", "On the validation texts.", columns, rows)] if rows else []


def _mistakes(mistakes: list[Mistake]) -> Section:
    note = "What speaks for the class that was predicted is orange, what speaks against it blue (gradient times input)."
    return Section("The surest mistakes", note, mistakes=mistakes)


def _four(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def reliability_diagram(rows: Sequence[dict[str, float]]) -> str:
    """Return an SVG of how often predictions of each confidence are right; on the diagonal they are calibrated."""
    size, margin = 300, 40

    def x(value: float) -> float:
        return margin + value * size

    def y(value: float) -> float:
        return margin / 2 + (1 - value) * size

    most = max(row["texts"] for row in rows)
    marks = ""
    for row in rows:
        radius = 3 + 9 * (row["texts"] / most) ** 0.5
        centre = f'cx="{x(row["confidence"]):.1f}" cy="{y(row["accuracy"]):.1f}"'
        marks += f'<circle {centre} r="{radius:.1f}" fill="#3f87d9"/>'
    ticks = "".join(
        f'<text x="{x(value):.0f}" y="{y(0) + 18:.0f}" text-anchor="middle">{value:g}</text>'
        f'<text x="{margin - 8}" y="{y(value) + 5:.0f}" text-anchor="end">{value:g}</text>'
        for value in (0, 0.5, 1)
    )
    return (
        f'<svg viewBox="0 0 {size + 2 * margin} {size + 2 * margin}" width="{size + 2 * margin}" role="img" '
        'font-family="sans-serif" font-size="13" fill="#555">'
        "<title>Accuracy against confidence: a circle for each tenth, larger for more texts</title>"
        f'<rect x="{x(0)}" y="{y(1)}" width="{size}" height="{size}" fill="none" stroke="#808080"/>'
        f'<line x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}" stroke="#808080" stroke-dasharray="4"/>{marks}{ticks}'
        f'<text x="{x(0.5):.0f}" y="{y(0) + 36:.0f}" text-anchor="middle">confidence</text>'
        f'<text x="12" y="{y(0.5):.0f}" text-anchor="middle" transform="rotate(-90 12 {y(0.5):.0f})">accuracy</text>'
        "</svg>"
    )  # fmt: skip


def _markdown(title: str, sections: Sequence[Section]) -> str:
    blocks = [f"# {_plain(title)}"]
    for section in sections:
        blocks += [f"## {section.title}", section.note]
        if section.rows:
            blocks.append(markdown_table(section.columns, [list(map(_plain, row)) for row in section.rows]))
        for mistake in section.mistakes:
            blocks += [_plain(f"{_heading(mistake)}: {_why(mistake)}"), f"> {_plain(_text(mistake))}"]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _plain(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line."""
    text = printable(" ".join(text.split()))
    return "".join(f"\\{character}" if character in "\\`*_{}[]<>#|" else character for character in text)


def _page(title: str, sections: Sequence[Section]) -> str:
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        parts.append(f'<h2>{section.title}</h2><p class="note">{section.note}</p>{section.picture}')
        if section.rows:
            heads = "".join(f"<th>{html.escape(column.removesuffix(':'))}</th>" for column in section.columns)
            rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in section.rows)
            parts.append(f"<table><tr>{heads}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>")
        for mistake in section.mistakes:
            parts.append(f'<div>{html.escape(_heading(mistake))}</div><p class="text">{_coloured(mistake.pieces)}</p>')
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _heading(mistake: Mistake) -> str:
    return f"{mistake.label}, taken for {mistake.predicted} ({mistake.probability:.3f})"


def _text(mistake: Mistake) -> str:
    return "".join(piece for piece, _ in mistake.pieces)


def _why(mistake: Mistake) -> str:
    """Name the pieces that spoke most for the wrong class."""
    most = sorted(mistake.pieces, key=lambda piece: -piece[1])[:WORDS_NAMED]
    return ", ".join(f"{piece.strip()!r} {worth:+.2f}" for piece, worth in most if worth > 0)


def _coloured(pieces: Pieces) -> str:
    largest = max((abs(worth) for _, worth in pieces), default=0) or 1
    spans = []
    for piece, worth in pieces:
        colour = "217,122,31" if worth > 0 else "63,135,217"
        strength = 0.75 * abs(worth) / largest
        title = f' title="{worth:+.3f}"' if worth else ""
        spans.append(f'<span style="background:rgba({colour},{strength:.2f})"{title}>{html.escape(piece)}</span>')
    return "".join(spans)
