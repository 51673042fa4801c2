"""Starting weights for networks that are trained from nothing."""

from torch import nn


def init_vit_weights(module: nn.Module) -> None:
    """Fill a layer as ViT training does, for ``network.apply``.

    Linear weights are normal with deviation 0.02 (truncated at 2 units), biases zero; everything
    else keeps torch's defaults.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
