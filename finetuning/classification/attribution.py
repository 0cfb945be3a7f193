"""Which tokens made a classifier say what it says: gradient times input.

How much would the logit of the predicted class change, in a straight line, if a token's embedding were taken away? The
gradient with respect to the embedding says it per number, and the embedding itself is how far it would go (Shrikumar et
al. 2016, https://arxiv.org/abs/1605.01713). For a model that is linear this is the whole truth, and the parts add up to
the logit. A GPT is not linear: there it is a first guess.

Shapes: B batch (1 here), T time, C width.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from finetuning.classification.text_classifier import TextClassifier

if TYPE_CHECKING:
    from finetuning.classification.linear import BagOfWords

Pieces = list[tuple[str, float]]
"""A text in pieces, and how much each speaks for the predicted class."""


def explain(classifier: TextClassifier, text: str) -> Pieces:
    """Return the tokens that are read of a text, each with its attribution."""
    (ids,) = classifier.encode([text])
    embedded: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple[Any, ...], output_BTC: Tensor) -> Tensor:
        embedded.append(output_BTC.detach().requires_grad_())
        return embedded[0]

    device = next(classifier.model.parameters()).device
    ids_BT = torch.from_numpy(ids.astype(np.int64))[None].to(device)
    hook = classifier.model.gpt.token_embedding.register_forward_hook(keep)
    try:
        logits_K = classifier.model(ids_BT, torch.tensor([len(ids)], device=device))[0]
    finally:
        hook.remove()
    margin = logits_K.max() - logits_K.mean()  # what speaks for all classes alike speaks for none
    (gradient_BTC,) = torch.autograd.grad(margin, embedded)
    worth_T = (gradient_BTC * embedded[0].detach()).sum(-1)[0]
    pieces = [classifier.tokenizer.decode_bytes([id_]).decode(errors="replace") for id_ in ids.tolist()]
    return list(zip(pieces, worth_T.tolist(), strict=True))


def explain_words(model: BagOfWords, text: str) -> Pieces:
    """Return the words of a text, and what is between them, each with its share of the margin, without the bias."""
    (row,) = model.vectorizer.transform([text]).toarray()
    logits_K = row @ model.weights + model.bias
    if len(logits_K) == 1:
        weights_F = model.weights[:, 0] * (1 if logits_K[0] > 0 else -1) / 2
    else:
        weights_F = model.weights[:, logits_K.argmax()] - model.weights.mean(1)
    return _in_the_text(model, text, row * weights_F)


def _in_the_text(model: BagOfWords, text: str, worth_F: np.ndarray) -> Pieces:
    """Return a text in pieces, each word with the worth of its feature and of pairs that begin with it.

    A feature's worth is shared out evenly over the places where it stands.
    """
    words = [(match[0].lower(), *match.span()) for match in re.finditer(model.vectorizer.token_pattern, text)]
    words = [word for word in words if word[0] not in (model.vectorizer.get_stop_words() or ())]
    features = [[word, *([f"{word} {words[at + 1][0]}"] if at + 1 < len(words) else [])]
                for at, (word, *_) in enumerate(words)]  # fmt: skip
    vocabulary = model.vectorizer.vocabulary_
    counts: dict[str, int] = {}
    for feature in (feature for found in features for feature in found if feature in vocabulary):
        counts[feature] = counts.get(feature, 0) + 1
    pieces, end = [], 0
    for (_, start, stop), found in zip(words, features, strict=True):
        if start > end:
            pieces.append((text[end:start], 0.0))
        worth = sum(float(worth_F[vocabulary[name]]) / counts[name] for name in found if name in counts)
        pieces.append((text[start:stop], worth))
        end = stop
    return pieces if end == len(text) else [*pieces, (text[end:], 0.0)]
