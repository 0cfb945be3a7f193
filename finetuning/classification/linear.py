"""A bag of words: which words a text has, how telling each is, and a line between two classes.

TF-IDF weighs a word by how often the text has it, and by how few texts have it at all:

    (1 + log count) * (1 + log((1 + texts) / (1 + texts with the word))),  and each text's vector has length 1

(Spärck Jones 1972; Salton & Buckley 1988). Logistic regression then learns a number for each word. Their sum, over the
words of a text, is the logarithm of the odds for the second class. All that word order says is lost, but for word
pairs: "not good" can be a feature of its own (Wang & Manning 2012, https://aclanthology.org/P12-2018).

Shapes: N texts, F features, K outputs: one for two classes, else one for each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")  # "don't" is a word, punctuation is not
MOST_ITERATIONS = 1000
TOLERANCE = 1e-5  # largest element of the gradient at which fitting ends


@dataclass(frozen=True)
class BagOfWords:
    """A trained linear classifier."""

    vectorizer: TfidfVectorizer
    weights: np.ndarray
    """(F, K)"""
    bias: np.ndarray
    """(K,)"""

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Return the probability of each class for each text, (N, number of classes)."""
        return probabilities(self.vectorizer.transform(texts) @ self.weights + self.bias)

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers: a weight for each output and an inverse frequency for each feature."""
        return self.weights.nbytes + self.bias.nbytes + self.vectorizer.idf_.nbytes


def make_vectorizer(n_features: int, longest: int, *, stop_words: bool) -> TfidfVectorizer:
    """Return what makes vectors of texts, before it has seen any.

    Args:
        n_features: how many words are kept, the most frequent ones.
        longest: words of a feature at most: 2 for pairs.
        stop_words: leave out words like "the"; the usual list has "not" and "no", too.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        max_features=n_features, ngram_range=(1, longest), token_pattern=WORD.pattern, lowercase=True,
        stop_words="english" if stop_words else None, sublinear_tf=True, dtype=np.float32,
    )  # fmt: skip


def fit_sklearn(features_NF: csr_matrix, labels_N: np.ndarray, inverse_penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (F, K) and bias (K,) that scikit-learn finds.

    Args:
        features_NF: of the texts.
        labels_N: their classes.
        inverse_penalty: C: the larger, the less weights are pulled toward zero.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=inverse_penalty, tol=TOLERANCE, max_iter=MOST_ITERATIONS).fit(features_NF, labels_N)
    return model.coef_.T.astype(np.float32), model.intercept_.astype(np.float32)


def fit_torch(features_NF: csr_matrix, labels_N: np.ndarray, inverse_penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and bias of the same model, found by PyTorch's L-BFGS; arguments as in `fit_sklearn`.

    The sum of a text's features, each times its weight, is what `embedding_bag` computes: each feature has an embedding
    of K numbers. The loss is the mean cross-entropy, and the squared weights / (2 C N).
    """
    N, n_classes = len(labels_N), int(labels_N.max()) + 1
    indices, values = (torch.from_numpy(part) for part in (features_NF.indices, features_NF.data))
    offsets_N = torch.from_numpy(features_NF.indptr[:-1])
    K = 1 if n_classes == 2 else n_classes
    targets_NK = F.one_hot(torch.from_numpy(labels_N), n_classes).float()[:, -K:]
    weights_FK = torch.zeros(features_NF.shape[1], K, requires_grad=True)
    bias_K = torch.zeros(K, requires_grad=True)
    cross_entropy = F.binary_cross_entropy_with_logits if K == 1 else F.cross_entropy
    optimizer = torch.optim.LBFGS(
        [weights_FK, bias_K], max_iter=MOST_ITERATIONS, tolerance_grad=TOLERANCE, line_search_fn="strong_wolfe"
    )

    def loss_and_gradient() -> Tensor:
        optimizer.zero_grad()
        logits_NK = F.embedding_bag(indices, weights_FK, offsets_N, mode="sum", per_sample_weights=values) + bias_K
        penalty = weights_FK.square().sum() / (2 * inverse_penalty * N)
        loss = cross_entropy(logits_NK, targets_NK) + penalty
        loss.backward()
        return loss

    optimizer.step(loss_and_gradient)
    return weights_FK.detach().numpy(), bias_K.detach().numpy()


def probabilities(logits_NK: np.ndarray) -> np.ndarray:
    """Return the probability of each class, (N, number of classes), for the outputs of a linear model."""
    logits = torch.from_numpy(np.asarray(logits_NK, dtype=np.float32))
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    return logits.softmax(1).numpy()
