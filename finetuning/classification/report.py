"""What a run writes about how well it does: for programs, for people, and text by text.

report.json        all measures
report.md, .html   the same to be read, with the surest mistakes and the tokens that made them, and reliability.svg
predictions.csv    each test text with its probabilities: what `compare.py` reads
"""

from __future__ import annotations

import csv
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
from finetuning.pages import Page
from utils.figures import INK, figure, svg_bytes
from utils.files import write_atomically

REPORT, PREDICTIONS, RELIABILITY = "report.json", "predictions.csv", "reliability.svg"
REPORT_FILES = (REPORT, PREDICTIONS, "report.md", "report.html", RELIABILITY)

MISTAKES = 10  # that are shown
LONGEST_SHOWN = 60  # pieces of a text
PIECES_NAMED = 5  # per mistake


@dataclass(frozen=True)
class Mistake:
    """A test text that is classified wrongly."""

    label: str
    predicted: str
    probability: float
    pieces: Pieces


def write_report(
    folder: Path,
    content: dict[str, Any],
    test: Reviews,
    probabilities_NK: np.ndarray,
    explain: Callable[[str], Pieces],
) -> None:
    """Write the files of a report into a folder; slices are added to the content.

    Args:
        folder: of the run, or of the report alone.
        content: of report.json; "test" are the `measures`.
        test: the texts.
        probabilities_NK: what the model gives each class.
        explain: returns the tokens of a text, with what each speaks for the predicted class.
    """
    content["slices"] = slices(test, probabilities_NK.argmax(1) == test.labels)
    page = Page(f"{content['kind']} on {content['settings']['data']}")
    _show_measures(page, content)
    _show_slices(page, content["slices"])
    _show_learning_curve(page, content.get("learning_curve", []))
    _show_mistakes(page, surest_mistakes(test, probabilities_NK, explain))
    page.write(folder)
    for name, text in ((PREDICTIONS, _predictions(test, probabilities_NK)), (REPORT, json.dumps(content, indent=1))):
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


def _show_measures(page: Page, content: dict[str, Any]) -> None:
    test, names = content["test"], list(content["test"]["classes"])
    low, high = test["accuracy_interval"]
    page.heading("Measures")
    page.paragraph("Where the accuracy lies for 95% of test sets like this one is in brackets (bootstrap).")
    numbers = {
        "accuracy": f"{test['accuracy']:.4f} ({low:.4f} to {high:.4f})",
        "F1": _four(test["f1"]),
        "ROC-AUC": _four(test["roc_auc"]),
        "average precision": _four(test["average_precision"]),
        "cross-entropy, nats": _four(test["log_loss"]),
        "expected calibration error": _four(test["calibration_error"]),
    }
    page.table(("measure", "value"), list(numbers.items()))
    rows = [
        [name, f"{row['texts']:,}", *(_four(row[measure]) for measure in ("precision", "recall", "f1"))]
        for name, row in test["classes"].items()
    ]
    page.table(("class", "texts", "precision", "recall", "F1"), rows)
    page.heading("What was taken for what")
    page.paragraph("A row is what is right, a column what was predicted.")
    page.table(("", *names), [[name, *map(str, row)] for name, row in zip(names, test["confusion"], strict=True)])
    page.heading("Calibration")
    page.paragraph("A calibrated model is right as often as it says: its circles lie on the diagonal.")
    page.figure(RELIABILITY, reliability_diagram(test["reliability"]), "Accuracy against confidence")
    rows = [[f"{row['confidence']:.2f}", f"{row['accuracy']:.2f}", f"{row['texts']:,}"] for row in test["reliability"]]
    page.table(("confidence", "accuracy", "texts"), rows)


def _show_slices(page: Page, rows: Sequence[dict[str, Any]]) -> None:
    page.heading("Parts of the test texts")
    page.paragraph("Cues are words, see slices.py. In the last column is where 95% of test sets would lie.")
    cells = [
        [row["slice"], f"{row['texts']:,}", f"{row['accuracy']:.3f}", "{:.3f} to {:.3f}".format(*row["interval"])]
        for row in rows
    ]
    page.table(("part", "texts", "accuracy", "95%"), cells)


def _show_learning_curve(page: Page, rows: Sequence[dict[str, float]]) -> None:
    if rows:
        page.heading("Learning curve")
        page.paragraph("Accuracy on the validation texts, after learning from some of the training texts.")
        cells = [[f"{row['share']:.0%}", f"{row['texts']:,}", _four(row["val_accuracy"])] for row in rows]
        page.table(("share", "texts", "accuracy"), cells)


def _show_mistakes(page: Page, mistakes: Sequence[Mistake]) -> None:
    page.heading("The surest mistakes")
    page.paragraph(
        "Coloured is what speaks for the class that was predicted (gradient times input); the most is named."
    )
    for mistake in mistakes:
        most = sorted(mistake.pieces, key=lambda piece: -piece[1])[:PIECES_NAMED]
        why = ", ".join(f"{piece.strip()!r} {worth:+.2f}" for piece, worth in most if worth > 0)
        page.paragraph(f"{mistake.label}, taken for {mistake.predicted} ({mistake.probability:.3f}): {why}")
        page.coloured(mistake.pieces)


def _four(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def reliability_diagram(rows: Sequence[dict[str, float]]) -> bytes:
    """Return an SVG of how often predictions of each confidence are right, a larger circle for more texts."""
    with figure(figsize=(4, 4)) as (drawing, axes):
        axes.plot([0, 1], [0, 1], "--", color=INK, linewidth=1)
        sizes = np.array([row["texts"] for row in rows])
        places = [[row[name] for row in rows] for name in ("confidence", "accuracy")]
        axes.scatter(*places, s=20 + 300 * sizes / sizes.max(), alpha=0.8)
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.05), ylim=(0, 1.05))
        return svg_bytes(drawing)
