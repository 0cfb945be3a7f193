"""Weights in eight bits: an integer from -127 to 127 for each, and one scale for each row of a matrix.

    w  ~  scale[row] * q        scale[row] = max |w[row]| / 127

Decoding one token reads every weight once, so half the bytes of bfloat16 is up to twice the speed. Only weights are
rounded, activations are not ("weight-only", per channel; Dettmers et al. 2022, https://arxiv.org/abs/2208.07339,
section 2.1, calls it row-wise).

Processors multiply integers by integers. To keep what x holds, it goes in as two integers, a coarse one and what
is left, x ~ unit * (128 coarse + fine): 14 bits, where bfloat16 has 8. Both share one reading of the weights.

Shapes: O outputs, I inputs, N rows of x.
"""

import functools
import itertools
import weakref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_mechanisms import MultiHeadLatentAttention

LARGEST_INTEGER = 127  # not -128, so that the grid is symmetric
ZERO_POINT = 128  # what a signed byte is moved by to become an unsigned one

# Integers in the layout that the processor's instructions want. A compiled program cannot be handed a tensor of such
# a layout, so it is handed a number, under which `integer_product` finds it.
_packed: dict[int, Tensor] = {}
_numbers = itertools.count()


def quantize_rows(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Return integers (O, I), int8, and the scale of each row (O,), float32. A row of zeros stays one."""
    weight_OI = weight_OI.float()
    scale_O = weight_OI.abs().amax(dim=1) / LARGEST_INTEGER
    return (weight_OI / scale_O.clamp(min=1e-30)[:, None]).round().to(torch.int8), scale_O


def split(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Return coarse and fine integers (2 N, I), int8, and each row's unit (N, 1): x ~ unit * (128 coarse + fine)."""
    x_NI = x_NI.float()
    unit_N1 = x_NI.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / (128 * LARGEST_INTEGER)
    whole_NI = (x_NI / unit_N1).round()
    coarse_NI = (whole_NI / 128).round()
    return torch.cat([coarse_NI, whole_NI - 128 * coarse_NI]).to(torch.int8), unit_N1


@torch.library.custom_op("gpt_model::integer_product", mutates_args=())
def integer_product(x_NI: Tensor, scale_O: Tensor, number: int) -> Tensor:
    """Return scale * (x W^T), W being the packed integers of this number: (N, O), float32."""
    return _multiply(x_NI, scale_O, _packed[number])


@integer_product.register_fake
def _(x_NI: Tensor, scale_O: Tensor, number: int) -> Tensor:
    return scale_O.new_empty(x_NI.shape[0], scale_O.shape[0])


def _multiply(x_NI: Tensor, scale_O: Tensor, packed: Tensor) -> Tensor:
    # Processors without matrix instructions multiply unsigned bytes by signed ones. So x goes in with 128 added and
    # that as its zero point; as signed bytes, oneDNN would compute the same 2,000 times slower there.
    unsigned_NI = x_NI.view(torch.uint8) ^ ZERO_POINT
    zero_O = torch.zeros(len(scale_O), dtype=torch.int32)
    return torch.ops.onednn.qlinear_pointwise(
        unsigned_NI, 1.0, ZERO_POINT, packed, scale_O, zero_O, None, 1.0, 0, torch.float32, "none", [], ""
    )


@functools.cache
def products_are_exact() -> bool:
    """Return whether PyTorch has an integer product here that is exact.

    It may be built without oneDNN, and old processors add pairs of products up in 16 bits, which overflow.
    """
    largest = torch.full((64, 64), LARGEST_INTEGER, dtype=torch.int8)
    try:
        product = _multiply(largest, torch.ones(64), torch.ops.onednn.qlinear_prepack(largest, None))
    except (AttributeError, RuntimeError):
        return False
    return bool((product == 64 * LARGEST_INTEGER**2).all())


def pack(quantized_OI: Tensor) -> int | None:
    """Return the number by which `integer_product` finds these integers; None where there is no exact product."""
    if quantized_OI.device.type != "cpu" or not products_are_exact():
        return None
    _packed[number := next(_numbers)] = torch.ops.onednn.qlinear_prepack(quantized_OI, None)
    return number


class Int8Linear(nn.Module):
    """What `linear` computes, from weights in eight bits."""

    scale: Tensor
    quantized: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = linear.bias
        self.dtype = linear.weight.dtype
        quantized_OI, scale_O = quantize_rows(linear.weight.detach())
        self.register_buffer("scale", scale_O)
        self.number = pack(quantized_OI)
        self.register_buffer("quantized", quantized_OI if self.number is None else None)
        if self.number is not None:
            weakref.finalize(self, _packed.pop, self.number)

    @property
    def weight(self) -> Tensor:
        """The matrix (O, I) that the integers stand for, in the layer's dtype."""
        integers_OI = self.quantized if self.number is None else _packed[self.number].to_dense().T
        return (integers_OI * self.scale[:, None]).to(self.dtype)

    @property
    def nbytes(self) -> int:
        """What a product reads."""
        vectors = self.scale.nbytes + (0 if self.bias is None else self.bias.nbytes)
        return self.in_features * self.out_features + vectors

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., I) to (..., O), in x's dtype."""
        if self.number is None:
            return F.linear(x, self.weight, self.bias)
        x_2NI, unit_N1 = split(x.reshape(-1, self.in_features))
        coarse_NO, fine_NO = integer_product(x_2NI, self.scale, self.number).chunk(2)
        y_NO = ((128 * coarse_NO + fine_NO) * unit_N1).to(x.dtype)
        y_NO = y_NO if self.bias is None else y_NO + self.bias
        return y_NO.view(*x.shape[:-1], self.out_features)


class Int8Embedding(nn.Module):
    """A table in eight bits; a row becomes the table's dtype when it is looked up."""

    quantized: Tensor
    scale: Tensor

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.dtype = table.weight.dtype
        quantized_VC, scale_V = quantize_rows(table.weight.detach())
        self.register_buffer("quantized", quantized_VC)
        self.register_buffer("scale", scale_V)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up token ids of any shape; return their rows, with a dimension C added."""
        return (self.quantized[ids] * self.scale[ids][..., None]).to(self.dtype)


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
