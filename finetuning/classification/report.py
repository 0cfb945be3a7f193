"""What a run writes about how well it does: for programs, for a page, and text by text."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from finetuning.classification.reviews import Reviews
from utils.files import write_atomically

REPORT, PREDICTIONS = "report.json", "predictions.csv"
REPORT_FILES = (REPORT, PREDICTIONS, "report.md", "report.html")


def write_report(folder: Path, content: dict[str, Any], test: Reviews, probabilities_NK: np.ndarray) -> None:
    """Write report.json and predictions.csv into a folder."""
    with write_atomically(folder / PREDICTIONS) as file:
        file.write(_predictions(test, probabilities_NK).encode())
    with write_atomically(folder / REPORT) as file:
        file.write(json.dumps(content, indent=1).encode())


def _predictions(test: Reviews, probabilities_NK: np.ndarray) -> str:
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["text", "label", *(f"p({name})" for name in test.names)])
    for text, label, row in zip(test.texts, test.labels, probabilities_NK.tolist(), strict=True):
        writer.writerow([text, test.names[label], *(f"{p:.6f}" for p in row)])
    return table.getvalue()
