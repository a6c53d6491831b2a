"""Which weights are matrices to the optimizer Muon; it leaves the rest to AdamW.

Muon is for the hidden layers: the weights of linear layers and of convolutions, as [out, in k k]. Layers that
meet images or labels (``Network.edges``), embeddings, biases and norms are AdamW's (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/).
"""

from __future__ import annotations

from math import prod

from torch import nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def matrices(network: nn.Module) -> dict[str, tuple[int, int]]:
    """(rows, columns) of each of Muon's weights by its parameter's name, in the parameters' order.

    By layer and name alone, so that a network in shares (ZeRO-3) has the same as a whole one.
    """
    found = {}
    edges = set(getattr(network, "edges", ()))
    for path, module in network.named_modules():
        if isinstance(module, LAYERS) and edges.isdisjoint(path.split(".")):
            weight = module.weight
            rows, *columns = getattr(weight, "ds_shape", weight.shape)
            found[f"{path}.weight" if path else "weight"] = (int(rows), prod(columns))
    # A weight that layers share is one parameter.
    return {name: found[name] for name, _ in network.named_parameters() if name in found}
