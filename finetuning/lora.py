r"""LoRA: leave each weight as it is, and learn a change of low rank beside it.

    x -------> W, b (frozen) -------> + ---> y         W    (out, in)
     \                               /                 A    (rank, in), random
      `--> A --> B --> * alpha/rank '                  B    (out, rank), zero: training begins with the model as it was

Of a layer of 768 x 768 numbers, rank 8 trains 2 x 8 x 768: one in 48. Optimizers keep two numbers for each of these
alone, the file of a fine-tuned model has a few MB, and once trained, B A can be added to W, so that using it costs
nothing. Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1.

    add_lora(model, "attention", rank=8, alpha=16)      only adapters are trained from here on
    save_adapter(model, Path("adapter.safetensors"))
    merge(model)                                        the plain model again, with other weights
"""

import hashlib
import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from gpt_model.model_files import check_finite, read_tensors
from utils.files import InputError, write_atomically

FORMAT = "lora"


class LoRALinear(nn.Module):
    """A linear layer, frozen, with a trainable change beside it.

    Args:
        linear: the layer; it is kept, not copied.
        rank: of the change.
        alpha: the change is multiplied by alpha / rank, so that another rank needs no other learning rate.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.alpha = alpha
        self.scale = alpha / rank
        self.A = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.B = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # as nn.Linear begins

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.A), self.B)

    @property
    def weight(self) -> Tensor:
        """The weight (out, in) of the plain layer that computes the same; made anew each time."""
        return self.linear.weight + self.scale * self.B @ self.A

    @property
    def bias(self) -> Tensor | None:
        """The layer's own bias."""
        return self.linear.bias


def add_lora(model: nn.Module, pattern: str, rank: int, alpha: float) -> None:
    """Freeze a model, and put an adapter beside each of its linear layers that the pattern names.

    Whatever else is to be trained, such as a new output layer, is unfrozen afterwards. An embedding that serves as
    output layer, too, is not a linear layer, and stays.

    Args:
        model: changed in place.
        pattern: a regular expression that is found in the names of the layers: "attention", "qkv|expand", or "" for
            all of them.
        rank: of each change.
        alpha: what each change is multiplied by, times rank.

    Raises:
        InputError: if the pattern cannot be read or names no linear layer, the rank is more than a layer can have, or
            the model has adapters already; the model is as it was.
    """
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise InputError(f"the pattern {pattern!r} is not a regular expression: {error}") from error
    layers = _linear_layers(model)
    chosen = [name for name in layers if wanted.search(name)]
    if not chosen:
        kinds = sorted({name.rpartition(".")[2] for name in layers})
        raise InputError(f"no linear layer's name has the pattern {pattern!r}: there are {', '.join(kinds)}")
    _adapt(model, chosen, rank, alpha)


def merge(model: nn.Module) -> dict[str, LoRALinear]:
    """Replace adapted layers by plain ones that compute the same: the model has its old names and no adapter any more.

    Returns:
        what was replaced, by name: what `unmerge` puts back, weights and all, bit for bit.
    """
    adapted = adapted_layers(model)
    for name, layer in adapted.items():
        with torch.device("meta"):
            plain = nn.Linear(*reversed(layer.linear.weight.shape), bias=layer.bias is not None)
        plain.weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
        plain.bias = layer.bias
        model.set_submodule(name, plain)
    return adapted


def unmerge(model: nn.Module, adapted: Mapping[str, LoRALinear]) -> None:
    """Put back what `merge` has replaced."""
    for name, layer in adapted.items():
        model.set_submodule(name, layer)


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """Have the model be what it was before `add_lora`, until the block ends."""
    adapted = adapted_layers(model)
    unmerge(model, {name: layer.linear for name, layer in adapted.items()})
    try:
        yield
    finally:
        unmerge(model, adapted)


def adapted_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Return the layers that have an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def save_adapter(model: nn.Module, path: Path) -> None:
    """Write all that is trained, and which model it belongs to, as a safetensors file of a few MB.

    Raises:
        InputError: if the model has no adapters.
    """
    adapted = adapted_layers(model)
    if not adapted:
        raise InputError("the model has no adapters to save")
    trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    metadata = {
        "format": FORMAT,
        "base": fingerprint(model, without=trained),
        "rank": str(next(iter(adapted.values())).A.shape[0]),
        "alpha": str(next(iter(adapted.values())).alpha),
    }
    with write_atomically(path) as file:
        file.write(save({name: tensor.cpu().contiguous() for name, tensor in trained.items()}, metadata))


def load_adapter(model: nn.Module, path: Path) -> None:
    """Adapt a model as the one that `save_adapter` was given; only what is in the file is trainable then.

    Raises:
        InputError: if the file is damaged or not an adapter, or another model's; the model is as it was.
    """
    tensors, rank, alpha, base = _read(path)
    layers = _linear_layers(model)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    chosen = [name for name in layers if f"{name}.A" in tensors or f"{name}.B" in tensors]
    adapters = {}
    for name in chosen:
        adapters[f"{name}.A"] = torch.Size((rank, layers[name].in_features))
        adapters[f"{name}.B"] = torch.Size((layers[name].out_features, rank))
    shapes |= adapters
    fits = tensors.keys() >= adapters.keys() and all(shapes.get(name) == x.shape for name, x in tensors.items())
    if not fits or fingerprint(model, without=tensors) != base:
        raise InputError(f"{path} is an adapter for another model: its base has other weights than this one")
    _adapt(model, chosen, rank, alpha)
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        parameters[name].requires_grad_(True).data.copy_(tensor)


def fingerprint(model: nn.Module, without: Collection[str] = ()) -> str:
    """Return the SHA-256 of a model's weights, in hexadecimal: of names, shapes and numbers, adapters left out.

    Args:
        model: with adapters or without.
        without: names of weights that do not count, since they are trained.
    """
    digest = hashlib.sha256()
    with without_lora(model):
        for name, tensor in sorted(model.state_dict().items()):
            if name not in without:
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
                digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return all linear layers inside a model that has no adapters, by name."""
    if adapted_layers(model):
        raise InputError("the model has adapters already: merge them first")
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and name}


def _adapt(model: nn.Module, names: Collection[str], rank: int, alpha: float) -> None:
    """Freeze a model, and put an adapter beside the layers of these names."""
    layers = {name: model.get_submodule(name) for name in names}
    for name, layer in layers.items():
        most = min(layer.weight.shape)
        if not 1 <= rank <= most:
            raise InputError(f"rank must be at least 1 and at most {most}, the smaller side of {name}, got {rank}")
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, LoRALinear(layer, rank, alpha))


def _read(path: Path) -> tuple[dict[str, Tensor], int, float, str]:
    """Return what an adapter file holds: its tensors, rank, alpha, and the fingerprint of its base."""
    if path.suffix != ".safetensors":
        raise InputError(f"an adapter is a .safetensors file, got {path}")
    tensors = read_tensors(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} is not an adapter: it was not written by save_adapter")
    try:
        rank, alpha, base = int(metadata["rank"]), float(metadata["alpha"]), metadata["base"]
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged: its metadata lacks a rank, an alpha or the base") from error
    if not math.isfinite(alpha):
        raise InputError(f"{path} is damaged: alpha must be finite, got {alpha}")
    for name, tensor in tensors.items():
        check_finite(tensor, name, path)
    return tensors, rank, alpha, base
