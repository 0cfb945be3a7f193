"""Whether one classifier is better than another, or was lucky.

    python -m finetuning.classification.compare --first runs/baseline --second runs/sentiment

Both must have been tested on the same texts: with the same data and split. Then each text is asked of both, and only
those that exactly one of them got right say something.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetuning.classification.evaluation import bootstrap, mcnemar
from finetuning.classification.report import PREDICTIONS
from finetuning.classification.reviews import LONGEST_FIELD
from utils.command_line import show
from utils.files import InputError


@dataclass(frozen=True)
class Config:
    """Compare two classifiers on the texts that both were tested on."""

    first: Path
    """A folder with predictions.csv: a baseline's report, or a run directory."""
    second: Path
    """Another one."""


def read_right(folder: Path) -> dict[str, bool]:
    """Return whether each text of a folder's predictions.csv is classified rightly.

    Raises:
        InputError: if there is no such file, or it is not one.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        raise InputError(f"{folder} has no {PREDICTIONS}: a baseline or a finished training run writes it")
    csv.field_size_limit(LONGEST_FIELD)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
        names = [name[2:-1] for name in rows[0] if name.startswith("p(")]
        return {
            row["text"]: max(names, key=lambda name, row=row: float(row[f"p({name})"])) == row["label"] for row in rows
        }
    except (csv.Error, UnicodeDecodeError, LookupError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} is damaged: it must have the columns text, label and p(class) for each class"
        ) from error


def main(config: Config) -> dict[str, Any]:
    """Compare, print, and return what was found.

    Raises:
        InputError: if a folder has no predictions, or the texts are not the same.
    """
    first, second = read_right(config.first), read_right(config.second)
    if first.keys() != second.keys():
        raise InputError(
            f"{config.first} and {config.second} were tested on different texts: use the same data and split"
        )
    first_N, second_N = (np.array([right[text] for text in first]) for right in (first, second))
    low, high = bootstrap(second_N.astype(float) - first_N)
    found = {
        "texts": len(first_N),
        "accuracies": [float(first_N.mean()), float(second_N.mean())],
        "difference_interval": [low, high],
        **mcnemar(first_N, second_N),
    }
    show(
        f"{config.first}: {first_N.mean():.4f}\n{config.second}: {second_N.mean():.4f}, which is "
        f"{second_N.mean() - first_N.mean():+.4f} ({low:+.4f} to {high:+.4f}, 95%)\n"
        f"of {found['texts']:,} texts only the first got {found['only_first']:,} right, only the second "
        f"{found['only_second']:,}; McNemar's p = {found['p']:.2g}\n"
    )
    return found


if __name__ == "__main__":
    from utils.command_line import run

    run(main, Config)
