"""Small classifiers of every kind, and texts that are easy to tell apart."""

import torch

from finetuning.classification.classifier import GPTClassifier, Pool
from gpt_model import GPT, GPTConfig

VARIANTS = {
    "mha": {},
    "rope": {"position": "rope"},
    "gqa": {"attention": "gqa", "n_kv_groups": 2, "position": "rope"},
    "mla": {"attention": "mla", "latent_dim": 8, "rope_dim": 4, "position": "rope"},
    "swa": {"attention": "swa", "window_size": 4, "n_sinks": 1},
}


def tiny_classifier(pool: Pool = "last", n_classes: int = 2, **overrides: object) -> GPTClassifier:
    shape = {"vocab_size": 64, "context_length": 32, "d_model": 16, "n_layers": 3, "n_heads": 4}
    torch.manual_seed(0)
    return GPTClassifier(GPT(GPTConfig(**{**shape, **overrides})), n_classes, pool=pool).eval()
