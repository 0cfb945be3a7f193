"""REINFORCE: try answers, and make those that earned more than their siblings likelier.

    prompt --> the model draws several answers --> each earns a reward r --> advantage = r - mean of the siblings' r
    loss of an answer = - advantage * log p(answer | prompt)

The gradient of this loss is, on average, that of minus the expected reward (Williams 1992,
https://doi.org/10.1007/BF00992696). The mean that is subtracted does not depend on what is being judged, so it changes
no direction on average, and takes away most of the noise.

What the names say: comparing an answer with its siblings instead of with what a second network expects is the heart of
GRPO (Shao et al. 2024, https://arxiv.org/abs/2402.03300). GRPO also has a ratio of probabilities that is clipped, as in
PPO. Both are for answers that were drawn by an older model; here each answer is used once, by the model that drew it,
where the ratio is 1 and nothing is ever clipped. So what is left is REINFORCE with a baseline.

GRPO divides by more than we do, and both divisors are known to tilt it (Liu et al. 2025,
https://arxiv.org/abs/2503.20783). Divided by its length, a long wrong answer is blamed less per token than a short one,
and wrong answers grow: the length bias. Divided by the spread of the rewards, questions that are nearly always answered
rightly, or wrongly, count more than others. We divide by the number of answers, and by nothing else.

Shapes: P prompts, S siblings of one prompt, N = P S answers, T time, V vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finetuning.instruction.likelihood import log_likelihood
from gpt_model import GPT
from gpt_model.generation import END_OF_TEXT
from gpt_model.gpt import NOT_COUNTED
from pretraining.engine.callbacks import Callback
from pretraining.engine.objective import Batch
from working_with_text_data.minbpe import Tokenizer

Reward = Callable[[str, str], float]

LATELY = 0.2  # of what a prompt is known for is what its newest answers earned
LEAST = 0.02  # a prompt whose answers are always right is still drawn, one time for 51 of one whose never are


class PolicyGradient:
    """Make answers with a positive advantage likelier, others less likely.

    A batch is (ids (N, T), targets (N, T), advantages (N,)); targets of -100 are not part of the answer.

    Args:
        measure: returns what is to be known of a model; "val_loss" among it.
    """

    def __init__(self, measure: Callable[[GPT], dict[str, float]]) -> None:
        self.measure = measure

    def count(self, batch: Batch) -> int:
        """Return the number of answers: not of their tokens, so that a long answer has no more and no less to say."""
        return len(batch[0])

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum over answers; only its gradient means something."""
        ids_NT, targets_NT, advantages_N = batch
        return -(advantages_N * log_likelihood(model, ids_NT, targets_NT)).sum()

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return what `measure` says of the model; there is no batch to be evaluated on."""
        return self.measure(model)


def advantages(rewards_PS: Tensor) -> Tensor:
    """Return what each answer earned more than its prompt's answers did on average, (P, S)."""
    return rewards_PS - rewards_PS.mean(dim=1, keepdim=True)


@torch.no_grad()
def draw(model: GPT, prompts_NT: Tensor, n_new: int, end: int, generator: torch.Generator | None) -> Tensor:
    """Return prompts continued by tokens drawn as likely as the model finds them, (N, T + n_new).

    After the token `end` a row is filled up with it.

    Args:
        model: in evaluation mode, or without dropout.
        prompts_NT: prompts of one length.
        n_new: tokens per answer at most.
        end: the token that ends an answer.
        generator: decides what is drawn; None: the likeliest token is taken.
    """
    ids_NT = prompts_NT
    cache = model.new_cache(len(prompts_NT), prompts_NT.shape[1] + n_new)
    new_N1 = prompts_NT
    for _ in range(n_new):
        logits_N1V, _ = model(new_N1, cache=cache, last_only=True)
        if generator is None:
            chosen_N1 = logits_N1V[:, -1].argmax(-1, keepdim=True)
        else:
            chosen_N1 = torch.multinomial(logits_N1V[:, -1].softmax(-1), 1, generator=generator)
        ended_N1 = (ids_NT[:, prompts_NT.shape[1] :] == end).any(1, keepdim=True)
        new_N1 = torch.where(ended_N1, end, chosen_N1)
        ids_NT = torch.cat([ids_NT, new_N1], 1)
    return ids_NT


def answer_targets(ids_NT: Tensor, n_prompt: int, end: int) -> Tensor:
    """Return the targets of drawn rows, (N, T - 1): the answer with its first `end`, and -100 elsewhere."""
    targets_NT = ids_NT[:, 1:].clone()
    targets_NT[:, : n_prompt - 1] = NOT_COUNTED
    ended_before = (ids_NT[:, n_prompt:-1] == end).cummax(1).values
    targets_NT[:, n_prompt:][ended_before] = NOT_COUNTED
    return targets_NT


class Rollouts:
    """Batches that the model makes itself: prompts, its answers to them, and what these earned.

    Each batch is drawn by the model as it is at that moment, which is what "on policy" means. Prompts are drawn the
    more often, the less their answers have earned of late. Drawn evenly, the prompts that are learned first decide what
    the model becomes sure of; the others are then answered wrongly by all siblings, and nothing can be learned from
    them any more.

    Args:
        model: the one that is trained.
        tokenizer: with an <|endoftext|>, which ends an answer.
        prompts: all of one length in tokens.
        reward: from 0 to 1, of an answer, given its prompt; an answer that does not end is judged by what it has.
        n_prompts: P, at most as many as there are.
        n_siblings: S.
        n_new: tokens of an answer at most, its end included.
        seed: decides which prompts, and what is drawn.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        reward: Reward,
        *,
        n_prompts: int,
        n_siblings: int,
        n_new: int,
        seed: int,
    ) -> None:
        device = model.token_embedding.weight.device
        self.model = model
        self.tokenizer = tokenizer
        self.end = tokenizer.special_tokens[END_OF_TEXT]
        self.prompts = prompts
        self.prompts_QT = torch.tensor([tokenizer.encode_ordinary(prompt) for prompt in prompts], device=device)
        self.reward = reward
        self.n_prompts, self.n_siblings, self.n_new = n_prompts, n_siblings, n_new
        self.generator = torch.Generator(device).manual_seed(seed)
        self.earned_Q = torch.zeros(len(prompts), device=device)  # by each prompt's answers of late
        self.rewards: list[float] = []  # the mean of each batch since they were last looked at

    def next(self) -> Batch:
        """Return the ids, targets and advantages of N = P S answers."""
        weights_Q = (1 - self.earned_Q).clamp(min=0) ** 3 + LEAST
        chosen_P = torch.multinomial(weights_Q, self.n_prompts, generator=self.generator)
        chosen_N = chosen_P.repeat_interleave(self.n_siblings)
        ids_NT = draw(self.model, self.prompts_QT[chosen_N], self.n_new, self.end, self.generator)
        rewards_N = torch.tensor(self.earned(chosen_N.tolist(), ids_NT), device=self.earned_Q.device)
        rewards_PS = rewards_N.view(self.n_prompts, self.n_siblings)
        self.rewards.append(rewards_N.mean().item())
        self.earned_Q[chosen_P] += LATELY * (rewards_PS.mean(1) - self.earned_Q[chosen_P])
        advantages_N = advantages(rewards_PS).flatten()
        return ids_NT[:, :-1], answer_targets(ids_NT, self.prompts_QT.shape[1], self.end), advantages_N

    def greedy_rewards(self) -> list[float]:
        """Return what the model's likeliest answer to each prompt earns."""
        ids_QT = draw(self.model, self.prompts_QT, self.n_new, self.end, None)
        return self.earned(range(len(self.prompts)), ids_QT)

    def earned(self, which: Iterable[int], ids_NT: Tensor) -> list[float]:
        """Return the reward of each row, which answers the prompt of that number."""
        n_prompt = self.prompts_QT.shape[1]
        rewards = []
        for number, row in zip(which, ids_NT[:, n_prompt:].tolist(), strict=True):
            answer = row[: row.index(self.end)] if self.end in row else row
            rewards.append(float(self.reward(self.prompts[number], self.tokenizer.decode(answer))))
        return rewards

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next batch depends on besides the model."""
        return {"generator": self.generator.get_state(), "earned": self.earned_Q.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.generator.set_state(state["generator"])
        self.earned_Q = state["earned"].to(self.earned_Q.device, copy=True)


class LogReward(Callback):
    """Log the mean reward of the answers that were drawn: what the loss of a policy gradient does not say."""

    def __init__(self, rollouts: Rollouts) -> None:
        self.rollouts = rollouts

    def after_reading(self, entry: dict[str, float], norms: Sequence[float]) -> None:
        """Add the mean since the last look."""
        if self.rollouts.rewards:
            entry["reward"] = sum(self.rollouts.rewards) / len(self.rollouts.rewards)
        self.rollouts.rewards = []
