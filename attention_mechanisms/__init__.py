"""Attention: who looks at whom (`Mask`), how it is computed (`attend`), what is remembered (`KVCache`)."""

from attention_mechanisms.kernels import KERNELS, attend
from attention_mechanisms.kv_cache import KVCache, LayerCache
from attention_mechanisms.masks import Mask
from attention_mechanisms.multi_head import MultiHeadAttention

__all__ = ["KERNELS", "KVCache", "LayerCache", "Mask", "MultiHeadAttention", "attend"]
