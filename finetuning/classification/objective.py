"""The objective: say which class a text is of. All that classification writes for the engine of `pretraining`.

Shapes: B batch, T time, K classes.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.engine.objective import Batch


class Classification:
    """Guess the class of each text. A batch is ids (B, T), lengths (B,) and labels (B,).

    Args:
        weights: of the classes, (K,), see `class_weights`; by default all weigh the same.
    """

    def __init__(self, weights: Tensor | None = None) -> None:
        self.weights = weights

    def count(self, batch: Batch) -> int:
        """Return the number of texts."""
        return len(batch[2])

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed cross-entropy, in nats, each text times the weight of its class."""
        ids_BT, lengths_B, labels_B = batch
        logits_BK = model(ids_BT, lengths_B).float()  # bfloat16 is too coarse for probabilities near 1
        weights = None if self.weights is None else self.weights.to(logits_BK.device)
        return F.cross_entropy(logits_BK, labels_B, weight=weights, reduction="sum")

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the mean cross-entropy, unweighted, and the accuracy."""
        loss, right, count = 0.0, 0, 0
        for ids_BT, lengths_B, labels_B in batches:
            logits_BK = model(ids_BT, lengths_B).float()
            loss += F.cross_entropy(logits_BK, labels_B, reduction="sum").item()
            right += int((logits_BK.argmax(1) == labels_B).sum())
            count += len(labels_B)
        return {"val_loss": loss / count, "val_accuracy": right / count}


def class_weights(labels_N: np.ndarray, n_classes: int) -> Tensor:
    """Return weights (K,) that have each class count the same, in proportion to 1 / its number of texts.

    Their mean over the texts is 1, so that the loss, divided by the number of texts, keeps its size.
    """
    counts_K = np.bincount(labels_N, minlength=n_classes)
    return torch.from_numpy(len(labels_N) / (n_classes * counts_K.clip(min=1))).float()
