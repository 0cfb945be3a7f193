"""Measures, held against plain definitions and against libraries."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from finetuning.classification.attribution import explain, explain_words
from finetuning.classification.evaluation import bootstrap, calibration_error, mcnemar, measures, reliability
from finetuning.classification.linear import BagOfWords, fit_sklearn, fit_torch, make_vectorizer
from finetuning.classification.report import reliability_diagram
from finetuning.classification.reviews import Reviews
from finetuning.classification.slices import slices
from finetuning.classification.text_classifier import TextClassifier
from tests.finetuning.classification.models import tiny_classifier
from working_with_text_data.minbpe import BasicTokenizer

TEXTS = ("a good film", "not a good film", "bad, bad film", "good good", "so bad", "it's good", "bad") * 3
LABELS = np.array([1, 0, 0, 1, 0, 1, 0] * 3)


def test_measures_of_a_case_that_can_be_counted_on_fingers() -> None:
    p = np.array([0.9, 0.8, 0.4, 0.3, 0.2])
    labels = np.array([1, 0, 1, 0, 0])
    found = measures(np.stack([1 - p, p], 1), labels, ("no", "yes"))
    assert found["accuracy"] == 3 / 5
    assert found["classes"]["yes"] == {"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "texts": 2}
    assert found["confusion"] == [[2, 1], [1, 1]]
    assert found["roc_auc"] == 5 / 6  # of six pairs, only 0.8 is above 0.4 wrongly
    assert found["average_precision"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.2, 0.4, 0.7, 0.8]).mean())


def test_three_classes_and_a_test_set_with_one_class_are_measured_too() -> None:
    probabilities = np.eye(3)[[0, 1, 2, 2]] * 0.7 + 0.1
    found = measures(probabilities, np.array([0, 1, 2, 0]), ("a", "b", "c"))
    assert found["accuracy"] == 0.75
    assert 0.5 < found["roc_auc"] <= 1
    assert measures(probabilities, np.zeros(4, int), ("a", "b", "c"))["roc_auc"] is None


def test_calibration() -> None:
    """A thousand predictions of 80% of which 60% are right are 20 points too sure."""
    probabilities = np.tile([0.2, 0.8], (1000, 1))
    labels = np.array([1] * 600 + [0] * 400)
    assert calibration_error(probabilities, labels) == pytest.approx(0.2)
    assert reliability(probabilities, labels) == [{"confidence": pytest.approx(0.8), "accuracy": 0.6, "texts": 1000}]
    assert reliability(np.array([[0.0, 1.0]]), np.array([1]))[0]["texts"] == 1, "a confidence of 1 has a bin"
    assert b"<svg" in reliability_diagram(reliability(probabilities, labels))


def test_the_bootstrap_agrees_with_the_formula_for_a_share() -> None:
    right = np.arange(1000) % 10 < 8
    low, high = bootstrap(right)
    spread = 1.96 * math.sqrt(0.8 * 0.2 / 1000)
    assert (low, high) == pytest.approx((0.8 - spread, 0.8 + spread), abs=0.004)
    assert bootstrap(right) == (low, high)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (3, 3), (1, 9), (40, 20), (900, 1000)])
def test_mcnemar_is_the_exact_binomial_test(only_first: int, only_second: int) -> None:
    first = np.array([True] * only_first + [False] * only_second + [True] * 5)
    second = np.array([False] * only_first + [True] * only_second + [True] * 5)
    found = mcnemar(first, second)
    n = only_first + only_second
    assert found["p"] == pytest.approx(binomtest(only_first, n).pvalue if n else 1)


def test_sklearn_and_torch_find_the_same_line() -> None:
    for labels in (LABELS, LABELS + np.arange(21) % 2):
        features = make_vectorizer(100, 2, stop_words=False).fit_transform(TEXTS)
        fits = [fit(features, labels, 3.0) for fit in (fit_sklearn, fit_torch)]
        for ours, theirs in zip(*fits, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_the_words_of_a_linear_model_add_up_to_its_margin() -> None:
    vectorizer = make_vectorizer(100, 2, stop_words=False)
    model = BagOfWords(vectorizer, *fit_sklearn(vectorizer.fit_transform(TEXTS), LABELS, 3.0))
    for text in ("Not a GOOD film, not at all -- it's bad", "good", "unknown words only"):
        pieces = explain_words(model, text)
        assert "".join(piece for piece, _ in pieces) == text
        probability = model.probabilities([text])[0].max()
        bias = model.bias[0] * (1 if model.probabilities([text])[0].argmax() else -1) / 2
        margin = math.log(probability / (1 - probability)) / 2
        assert sum(worth for _, worth in pieces) + bias == pytest.approx(margin, abs=1e-5)
    assert model.nbytes == 4 * (2 * len(vectorizer.vocabulary_) + 1)


def test_gradient_times_input_is_what_finite_differences_say() -> None:
    tokenizer = BasicTokenizer()
    tokenizer.train("", 256)
    model = tiny_classifier(vocab_size=256).double()
    text = "a fine film"
    pieces = explain(TextClassifier(model, tokenizer, ("bad", "good"), 32, "both"), text)
    assert "".join(piece for piece, _ in pieces) == text
    ids_BT = torch.tensor([list(text.encode())])

    def margin(scale: float, at: int) -> float:
        def shrink(module: object, arguments: object, x_BTC: torch.Tensor) -> torch.Tensor:
            factors = torch.ones(x_BTC.shape[1], 1, dtype=torch.float64)
            factors[at] = scale
            return x_BTC * factors

        hook = model.gpt.token_embedding.register_forward_hook(shrink)
        with torch.no_grad():
            logits = model(ids_BT, torch.tensor([len(text)]))[0]
        hook.remove()
        return (logits.max() - logits.mean()).item()

    for at in (0, 5, len(text) - 1):
        assert pieces[at][1] == pytest.approx((margin(1 + 1e-5, at) - margin(1 - 1e-5, at)) / 2e-5, rel=1e-4)


def test_slices_are_parts_of_the_texts() -> None:
    texts = tuple([f"it is not {'very ' * at}good" for at in range(20)] + ["fine, but long"] * 10 + ["fine"] * 10)
    reviews = Reviews(texts, np.zeros(40, int), ("a", "b"), np.linspace(1, 10, 40))
    right = np.array([False] * 20 + [True] * 20)
    rows = {row["slice"]: row for row in slices(reviews, right)}
    assert (rows["with cues of negation"]["texts"], rows["with cues of negation"]["accuracy"]) == (20, 0.0)
    assert (rows["without cues of negation"]["texts"], rows["without cues of negation"]["accuracy"]) == (20, 1.0)
    assert rows["with cues of a turn"]["texts"] == 10
    assert "with cues of irony" not in rows, "too few to say something"
    assert sum(rows[f"{name} ratings"]["texts"] for name in ("lukewarm", "clear", "extreme")) == 40
