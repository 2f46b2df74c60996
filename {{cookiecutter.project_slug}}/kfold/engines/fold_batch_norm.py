"""BatchNorm folded into the convolution before it: in evaluation the two are one convolution with other weights.

Source: Jacob and others, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
arxiv.org/abs/1712.05877, section 3.2.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode

REST_OF: dict[type, Callable[[Any], nn.Module]] = {  # what a norm still does once its arithmetic is folded away
    nn.BatchNorm2d: lambda norm: nn.Identity(),
    BatchNormAct2d: lambda norm: nn.Sequential(norm.drop, norm.act),
}


class Record(TorchDispatchMode):
    """Every operation while it is active: (operation, tensors that go in, what comes out), the tensors kept alive.

    It sees what is executed, whatever Python or TorchScript the network is written in, so no consumer escapes it.
    """

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[Any, tuple, Any]] = []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        self.calls.append((operation.overloadpacket, (*arguments, *(options or {}).values()), result))
        return result


def fold_batch_norm(model: nn.Module, images: torch.Tensor) -> int:
    """Fold, in place, every BatchNorm that only follows one convolution; how many there were.

    images: (B, 3, H, W), which the network is watched with, on its device; two are enough.
    """
    pairs = find_pairs(model, images)
    for convolution, norm in pairs:
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    rest = {id(norm): REST_OF[type(norm)](norm) for _, norm in pairs}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if id(module) in rest:
            model.set_submodule(name, rest[id(module)])
    return len(pairs)


def find_pairs(model: nn.Module, images: torch.Tensor) -> list[tuple[nn.Conv2d, nn.Module]]:
    """Convolutions, and the norms that alone take what they give; both used once in the whole network."""
    convolutions = {id(module.weight): module for module in model.modules() if isinstance(module, nn.Conv2d)}
    norms = {id(module.running_mean): module for module in model.modules() if type(module) in REST_OF}
    with torch.inference_mode(), Record() as record:
        output = model.eval()(images)
    uses, made_by = Counter([id(output)]), {}
    for operation, given, result in record.calls:
        uses.update(id(tensor) for tensor in tensors_in(given))
        made_by |= {id(tensor): (operation, given) for tensor in tensors_in([result])}
    pairs = []
    for operation, given, _ in record.calls:
        if operation is not torch.ops.aten.batch_norm:
            continue
        maps, running_mean = given[0], given[3]
        maker, maker_given = made_by.get(id(maps), (None, ()))
        norm = norms.get(id(running_mean))
        if maker is not torch.ops.aten.conv2d or norm is None:
            continue
        convolution = convolutions.get(id(maker_given[1]))  # None where the weights themselves are calculated
        if convolution is not None and all(uses[id(one)] == 1 for one in (maps, convolution.weight, running_mean)):
            pairs.append((convolution, norm))
    return pairs


def tensors_in(values: Any) -> list[torch.Tensor]:
    """The tensors among values and lists of them."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_in(value)
    return found
