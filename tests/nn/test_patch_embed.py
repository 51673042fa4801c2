import pytest
import torch

from sightline.errors import ShapeError
from sightline.nn.patch_embed import PatchEmbed, widen_projection


def widened(layer: PatchEmbed, channels: int) -> PatchEmbed:
    wide = PatchEmbed(16, 4, channels, layer.embed_dim)
    state = layer.state_dict()
    wide.load_state_dict(state | {"proj.weight": widen_projection(state["proj.weight"], channels)})
    return wide


def test_one_channel_is_grey_repeated() -> None:
    layer, grey = PatchEmbed(16, 4, 3, 10), torch.randn(2, 1, 16, 16)
    expected = layer(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(widened(layer, 1)(grey), expected)


def test_further_channels_begin_as_the_mean_of_colours() -> None:
    layer, images = PatchEmbed(16, 4, 3, 10), torch.randn(2, 7, 16, 16)
    wide = widened(layer, 7)
    silent = images.clone()
    silent[:, 3:] = 0
    torch.testing.assert_close(wide(silent), layer(images[:, :3]))
    mean = layer.proj.weight.mean(1)
    torch.testing.assert_close(wide.proj.weight[:, 5], mean)


def test_no_channels_are_refused() -> None:
    with pytest.raises(ShapeError, match="channels must be 1 or more, got 0"):
        widen_projection(torch.zeros(2, 3, 4, 4), 0)
