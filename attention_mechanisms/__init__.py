"""Attention: who looks at whom (`Mask`), how it is computed (`attend`), what is remembered (`KVCache`)."""

import utils.early_interrupt  # noqa: F401 - first, since what follows takes a second

# isort: split
from attention_mechanisms.grouped_query import GroupedQueryAttention
from attention_mechanisms.kernels import KERNELS, attend, explain_kernel
from attention_mechanisms.kv_cache import KVCache, LayerCache
from attention_mechanisms.latent import MultiHeadLatentAttention
from attention_mechanisms.masks import CAUSAL, Mask
from attention_mechanisms.multi_head import MultiHeadAttention
from attention_mechanisms.ring_cache import RingCache
from attention_mechanisms.sliding_window import SlidingWindowAttention

__all__ = [
    "CAUSAL",
    "KERNELS",
    "GroupedQueryAttention",
    "KVCache",
    "LayerCache",
    "Mask",
    "MultiHeadAttention",
    "MultiHeadLatentAttention",
    "RingCache",
    "SlidingWindowAttention",
    "attend",
    "explain_kernel",
]
