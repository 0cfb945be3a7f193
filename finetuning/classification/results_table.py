"""The tables of the chapter's page, from the stored reports in results/."""

from pathlib import Path
from typing import Any

from utils.files import read_json
from utils.measuring import markdown_table

RESULTS = Path(__file__).parent / "results"
# What there is to compare, on which texts; of what no machine has run yet there is no file.
ROWS = {
    "sentences_bag_of_words": "bag of words",
    "sentences_pairs": "bag of words and pairs",
    "sentences_gpt_demo": "GPT, pretrained by the demo",
    "imdb_bag_of_words": "bag of words",
    "imdb_pairs": "bag of words and pairs",
    "imdb_gpt2": "GPT-2 small",
    "imdb_gpt2-medium": "GPT-2 medium",
    "imdb_gpt2-large": "GPT-2 large",
    "imdb_gpt2-xl": "GPT-2 XL",
}
COLUMNS = ("texts", "classifier", "accuracy, %:", "95%:", "ROC-AUC:", "ECE:", "numbers:", "seconds:")


def tables(results: Path = RESULTS) -> str:
    """Return the comparison as a table in Markdown."""
    rows = []
    for name, label in ROWS.items():
        texts = "IMDb" if name.startswith("imdb") else "sentences"
        path = results / f"{name}.json"
        cells = _cells(read_json(path)) if path.exists() else ["not run here", "", "", "", "", ""]
        rows.append([texts, label, *cells])
    return markdown_table(COLUMNS, rows)


def _cells(report: dict[str, Any]) -> list[str]:
    test, model, seconds = report["test"], report["model"], report["seconds"]
    low, high = test["accuracy_interval"]
    return [
        f"{100 * test['accuracy']:.1f}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{test['roc_auc']:.3f}",
        f"{test['calibration_error']:.3f}",
        f"{model.get('parameters', model.get('features')):,}",
        f"{seconds['all_of_processor'] if isinstance(seconds, dict) else seconds:,.0f}",
    ]
