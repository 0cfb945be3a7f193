"""The tables of the chapter's page, from the stored reports in results/."""

import textwrap
from pathlib import Path
from typing import Any

from finetuning.classification import ablations
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
    """Return the comparison as a table in Markdown, and what to think of it."""
    rows = []
    for name, label in ROWS.items():
        texts = "IMDb" if name.startswith("imdb") else "sentences"
        path = results / f"{name}.json"
        cells = _cells(read_json(path)) if path.exists() else ["not run here", "", "", "", "", ""]
        rows.append([texts, label, *cells])
    return f"{markdown_table(COLUMNS, rows)}\n\n{_remarks(results)}"


def changes(results: Path = RESULTS) -> str:
    """Return what each change of the recipe does, as a table in Markdown, and how it was measured."""
    result = read_json(results / "ablations.json")
    seeds = len(result["rows"][0]["runs"])
    text = f"""
        The demo's model on {result["texts"]:,} of the sentences, read {result["epochs"]} times, with {seeds} seeds
        each. A difference that is not well above sd, the standard deviation among seeds, says nothing.
    """
    return f"{ablations.table(result)}\n\n{_filled(text)}"


def pools(results: Path = RESULTS) -> str:
    """Return what the head can read, in a causal model, as a table in Markdown, and how it was measured."""
    result = read_json(results / "pool_sms.json")
    text = f"""
        {result["texts"]} messages of the SMS Spam Collection, as many spam as not, read {result["epochs"]} times by the
        demo's model, one seed: too little for more than the shape. A table that others published has 75% for the first
        position and 95% for the last.
    """
    return f"{ablations.table(result)}\n\n{_filled(text)}"


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False)


def _remarks(results: Path) -> str:
    """Return the sentences below the table."""
    names = ("sentences_bag_of_words", "sentences_gpt_demo", "imdb_bag_of_words", "imdb_pairs")
    sentences, gpt, imdb, pairs = (read_json(results / f"{name}.json") for name in names)
    speed, accuracy = imdb["reviews_per_second"], {"gpt": gpt, "words": sentences, "imdb": imdb, "pairs": pairs}
    accuracy = {name: f"{report['test']['accuracy']:.1%}" for name, report in accuracy.items()}
    half = next(row for row in sentences["learning_curve"] if row["share"] == 0.5)["val_accuracy"]
    half_of_gpt = read_json(results / "sentences_gpt_demo_half.json")["test"]["accuracy"]
    text = f"""
        On IMDb a bag of words is often said to reach {imdb["usual_claim"]:.1%}. Here it reaches {accuracy["imdb"]},
        has {imdb["model"]["megabytes"]:.1f} MB of numbers, is trained in {imdb["seconds"]["all"]:.0f} s by the clock,
        PyTorch's twin included, and classifies {speed["measured"]:,} reviews per second in {speed["processes"]}
        processes. Fitted by PyTorch, it reaches {imdb["torch"]["test_accuracy"]:.1%}. On the sentences the GPT,
        pretrained on Jane Austen alone, is below the bag of words, {accuracy["gpt"]} against {accuracy["words"]}.
        With half of the sentences it reaches {half_of_gpt:.1%}, and the bag of words {half:.1%} of the validation
        texts. A published run of GPT-2 small on IMDb reached 91.9% with 256 tokens of each review, on another split;
        counting pairs of words reaches {accuracy["pairs"]} here. No GPT-2 has been run here: there are no GPU hours,
        energy or cost to report yet.
    """
    return _filled(text)


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
