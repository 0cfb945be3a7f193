"""How likely a model finds whole answers: what preferences and rewards are learned from.

Shapes: B batch, T time, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt_model.gpt import NOT_COUNTED


def log_likelihood(model: nn.Module, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the log-probability of each row's answer, (B,), in nats: the sum over its tokens, not their mean.

    Args:
        model: a GPT.
        ids_BT: prompts and answers, filled up on the right with any id.
        targets_BT: the ids that come next; -100 where they are not part of the answer. Each row has one.
    """
    length = int((targets_BT != NOT_COUNTED).any(0).nonzero().max()) + 1  # what follows the longest answer is no use
    ids_BT, targets_BT = ids_BT[:, :length], targets_BT[:, :length]
    logits_BTV, _ = model(ids_BT)
    wide = torch.promote_types(logits_BTV.dtype, torch.float32)  # bfloat16 is too coarse for a sum over the vocabulary
    losses = F.cross_entropy(
        logits_BTV.flatten(0, 1).to(wide), targets_BT.flatten(), ignore_index=NOT_COUNTED, reduction="none"
    )
    return -losses.view_as(targets_BT).sum(-1)
