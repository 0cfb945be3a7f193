"""What the marks of several raters say: means, who wins, and how far the raters agree."""

import csv
import io
import json
import math
from itertools import combinations
from typing import Any

import numpy as np

from finetuning.instruction.scoring.agreement import cohens_kappa, krippendorffs_alpha
from finetuning.instruction.scoring.report import bracketed
from finetuning.instruction.scoring.study import CRITERIA, Study
from finetuning.instruction.scoring.text_metrics import Measure, bootstrap, interval, mean_of
from finetuning.pages import Page
from utils.files import write_atomically

NUMBERS, TABLE = "human_evaluation.json", "marks.csv"
OVERALL = "overall"


def summarise(study: Study) -> dict[str, Any]:
    """Return means with intervals, win rates and agreement, as numbers that JSON can hold.

    Intervals are from the bootstrap over questions, whose marks are first averaged over raters: two marks of the same
    answer are not two independent answers.
    """
    raters, marks_RQMC = study.table()
    means = {}
    for place, model in enumerate(study.models):
        of_model_QC = _mean_of_raters(marks_RQMC[:, :, place])
        columns = {**dict(zip(CRITERIA, of_model_QC.T, strict=True)), OVERALL: of_model_QC.mean(axis=1)}
        means[model] = {name: _summary(values_Q) for name, values_Q in columns.items()}
    wins = [
        {"first": study.models[one], "second": study.models[other], **_summary(_wins(marks_RQMC, one, other))}
        for other, one in combinations(range(len(study.models)), 2)
    ]
    n_answers = len(study.questions) * len(study.models)
    alphas = {
        criterion: _number(krippendorffs_alpha(marks_RQMC[..., place].reshape(len(raters), n_answers)))
        for place, criterion in enumerate(CRITERIA)
    }
    kappas = [
        {"first": raters[one], "second": raters[other], **_kappas(marks_RQMC[one], marks_RQMC[other])}
        for one, other in combinations(range(len(raters)), 2)
    ]
    return {
        "n_questions": len(study.questions), "models": list(study.models),
        "raters": {rater: int(np.isfinite(marks_RQMC[row]).any(axis=(1, 2)).sum()) for row, rater in enumerate(raters)},
        "means": means, "wins": wins, "alpha": alphas, "kappa": kappas,
    }  # fmt: skip


def _mean_of_raters(marks_RQC: np.ndarray) -> np.ndarray:
    """Return the mean over raters of each question's marks, (Q, C); NaN where nobody gave one."""
    counts_QC = np.isfinite(marks_RQC).sum(axis=0)
    return np.where(counts_QC > 0, np.nansum(marks_RQC, axis=0), np.nan) / np.maximum(counts_QC, 1)


def _wins(marks_RQMC: np.ndarray, one: int, other: int) -> np.ndarray:
    """Return for each question the share of raters, in percent, who gave one model more in total; a tie is half."""
    totals_RQM = marks_RQMC.sum(axis=3)
    difference_RQ = totals_RQM[:, :, one] - totals_RQM[:, :, other]
    won_RQ = np.where(np.isfinite(difference_RQ), 50 * (np.sign(difference_RQ) + 1), np.nan)
    return _mean_of_raters(won_RQ[:, :, None])[:, 0]


def _kappas(one_QMC: np.ndarray, other_QMC: np.ndarray) -> dict[str, Any]:
    """Return how many answers two raters have both marked, and their kappas per criterion."""
    result: dict[str, Any] = {"n": int(np.isfinite(one_QMC + other_QMC).all(axis=2).sum())}
    for name, is_weighted in (("weighted", True), ("unweighted", False)):
        result[name] = {
            criterion: _number(
                cohens_kappa(one_QMC[..., place].ravel(), other_QMC[..., place].ravel(), is_weighted=is_weighted)
            )
            for place, criterion in enumerate(CRITERIA)
        }
    return result


def _summary(values_Q: np.ndarray) -> dict[str, Any]:
    """Return the mean over questions, its interval, and how many questions have a value."""
    given = [float(value) if math.isfinite(value) else None for value in values_Q]
    mean: Measure = mean_of("mean", given)
    low, high = interval(bootstrap([mean], np.isfinite(values_Q))[:, 0])
    n = sum(value is not None for value in given)
    return {"value": _number(mean.value()), "low": _number(low), "high": _number(high), "n": n}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write_summary(study: Study, result: dict[str, Any]) -> None:
    """Write the page, the numbers, and a table of all marks, into the study's folder."""
    page = Page("Answers, as people mark them")
    marked = ", ".join(f"{rater} {n:,}" for rater, n in result["raters"].items()) or "nobody yet"
    page.paragraph(
        f"{result['n_questions']:,} questions; marked by: {marked}. Marks go from 1 to 5. In brackets: 95% intervals "
        "from the bootstrap over questions, the marks of all raters averaged first."
    )
    if result["raters"]:
        columns = [*CRITERIA, OVERALL]
        page.table(
            ["model", *columns], [[m, *(bracketed(of[c]) for c in columns)] for m, of in result["means"].items()]
        )
        page.heading("Who wins")
        page.table(
            ["model", "against", "wins, in percent", "questions"],
            [[each["first"], each["second"], bracketed(each), f"{each['n']:,}"] for each in result["wins"]],
        )
        page.heading("Do the raters agree?")
        page.paragraph(
            "Agreement beyond chance: 1 is full, 0 is none. Krippendorff's alpha is over all raters, Cohen's kappa "
            "of two, with squared distances as weights."
        )
        agreed = [["alpha, all raters", *(_rounded(result["alpha"][c]) for c in CRITERIA)]]
        agreed += [
            [f"kappa, {each['first']} and {each['second']}", *(_rounded(each["weighted"][c]) for c in CRITERIA)]
            for each in result["kappa"]
        ]
        page.table(["", *CRITERIA], agreed)
    page.write(study.folder)
    with write_atomically(study.folder / NUMBERS) as file:
        file.write(json.dumps(result, indent=1).encode())
    with write_atomically(study.folder / TABLE) as file:
        file.write(marks_table(study).encode())


def marks_table(study: Study) -> str:
    """Return all marks as CSV, a line for each rater and answer."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("rater", "question", "category", "model", *CRITERIA))
    for rater in study.raters():
        for question, marks in sorted(study.marks(rater).items()):
            category = study.questions[question].category
            for model, given in marks.items():
                writer.writerow((rater, question + 1, category, model, *(given[criterion] for criterion in CRITERIA)))
    return text.getvalue()


def _rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
