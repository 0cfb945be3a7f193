"""Weights in eight bits: an integer from -127 to 127 for each, and one scale for each row of a matrix.

    w  ~  scale[row] * q        scale[row] = max |w[row]| / 127

Decoding one token reads every weight once, so a quarter of the bytes is up to four times the speed. Only weights
are rounded, activations are not ("weight-only", per channel; Dettmers et al. 2022, https://arxiv.org/abs/2208.07339,
section 2.1, calls it row-wise).

Processors multiply integers by integers. To keep what x holds, it goes in as two integers, a coarse one and what
is left, x ~ unit * (128 coarse + fine): 14 bits, where bfloat16 has 8. Both share one reading of the weights.

Shapes: O outputs, I inputs, N rows of x.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_mechanisms import MultiHeadLatentAttention

LARGEST = 127  # not -128, so that the grid is symmetric


def quantize_rows(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Integers (O, I), int8, and the scale of each row (O,), float32. A row of zeros stays one."""
    weight_OI = weight_OI.float()
    scale_O = weight_OI.abs().amax(dim=1) / LARGEST
    return (weight_OI / scale_O.clamp(min=1e-30)[:, None]).round().to(torch.int8), scale_O


def split(x_I: Tensor) -> tuple[Tensor, Tensor]:
    """x as a coarse and a fine integer for each number (2, I), int8, and their unit, x ~ unit * (128 coarse + fine)."""
    x_I = x_I.float()
    unit = x_I.abs().amax().clamp(min=1e-30) / (128 * LARGEST)
    whole_I = (x_I / unit).round()
    coarse_I = (whole_I / 128).round()
    return torch.stack([coarse_I, whole_I - 128 * coarse_I]).to(torch.int8), unit


@torch.library.custom_op("gpt_model::integer_product", mutates_args=())
def integer_product(x_2I: Tensor, weight_OI: Tensor) -> Tensor:
    """x W^T of int8 matrices, summed without overflow: (2, O), int32. An operator of its own, since the compiler
    would take this apart into loops that read memory more slowly."""
    return torch._int_mm(x_2I, weight_OI.t())


@integer_product.register_fake
def _(x_2I: Tensor, weight_OI: Tensor) -> Tensor:
    return x_2I.new_empty(2, weight_OI.shape[0], dtype=torch.int32)


class Int8Linear(nn.Module):
    """What `linear` computes, from weights in eight bits."""

    quantized: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.dtype = linear.weight.dtype
        quantized_OI, scale_O = quantize_rows(linear.weight.detach())
        self.register_buffer("quantized", quantized_OI)
        self.register_buffer("scale", scale_O)

    @property
    def weight(self) -> Tensor:
        """The matrix (O, I) that the integers stand for, in the layer's dtype."""
        return (self.quantized * self.scale[:, None]).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O), in x's dtype."""
        if x.numel() != self.in_features or x.device.type != "cpu":
            return F.linear(x, self.weight, self.bias)
        x_2I, unit = split(x.flatten())
        coarse_O, fine_O = integer_product(x_2I, self.quantized).float()
        y_O = (128 * coarse_O + fine_O) * (unit * self.scale)
        y_O = y_O.to(x.dtype) if self.bias is None else y_O.to(x.dtype) + self.bias
        return y_O.view(*x.shape[:-1], self.out_features)


class Int8Embedding(nn.Module):
    """A table of which a row is made whole when it is looked up; shares the integers of the output layer."""

    def __init__(self, table: Int8Linear) -> None:
        super().__init__()
        self.table = table

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids of any shape -> the same with a dimension C added."""
        table = self.table
        return (table.quantized[ids] * table.scale[ids][..., None]).to(table.dtype)


def quantize_linears(module: nn.Module) -> None:
    """Replace every linear layer inside `module`, in place.

    What latent attention multiplies into its queries is left as it is: absorbed, it is used as a matrix.
    """
    for name, child in module.named_children():
        if isinstance(module, MultiHeadLatentAttention) and name == "up":
            continue
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            quantize_linears(child)
