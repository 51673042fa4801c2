"""Stable Diffusion and Zero123 as backbones, through diffusers (extra ``hf``).

As in DIFT (Tang et al. 2023): a picture is encoded, a little noise of step 1 is added, and one pass
of the U-Net is read after an up-block; layers 0 and 1 are the outputs of up-blocks 0 and 1, at
strides 32 and 16. Unlike there, the encoder's mean is taken instead of a sample, and the noise is
one drawing from a seed for all views, so that features repeat. Stable Diffusion gets the empty
prompt, Zero123 the picture itself and no change of view.

Weights come from a folder in the layout of diffusers or from the Hugging Face cache; nothing is
downloaded and no code of a repository is run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sightline.backbones.base import HALF, NetworkBackbone, Tokens, captured, fixed_size
from sightline.backbones.hf import extra, find_file, read_description
from sightline.backbones.remapped import CLIP_MEAN, CLIP_STD
from sightline.backbones.request import Request, drawn_from
from sightline.checkpoints import read_weights
from sightline.errors import CheckpointError, FileFormatError

UP_BLOCK = 1
"""The last up-block that is computed; DIFT's choice."""
STEP = 1
"""Which of the thousand steps of noise."""
ZERO123_SIDE = 512


class LatentUNet(nn.Module):
    """The parts of a latent diffusion model that features pass."""

    def __init__(self, vae: Any, unet: Any, signal: float, seed: int) -> None:
        """Keep the U-Net up to `UP_BLOCK`; ``signal`` is the share of variance that is picture."""
        super().__init__()
        self.vae, self.unet = vae, unet
        self.signal, self.seed = signal, seed
        unet.up_blocks = unet.up_blocks[: UP_BLOCK + 1]
        unet.conv_norm_out, unet.conv_out = None, nn.Identity()

    def noisy(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Add the noise of `STEP`, the same to every picture of a size."""
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn((1, *latents.shape[1:]), generator=generator).to(latents)
        return self.signal**0.5 * latents + (1 - self.signal) ** 0.5 * noise

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Return the unscaled latents of pictures in [-1, 1]."""
        return self.vae.encode(images).latent_dist.mode()

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> None:
        """Run the U-Net; its blocks are read by hooks."""
        latents = self.encode(images)
        sample = self.noisy(latents * self.vae.config.scaling_factor)
        sample, condition = self.condition(images, latents, sample)
        self.unet(sample, STEP, encoder_hidden_states=condition)

    def condition(
        self, images: Tensor, latents: Tensor, sample: Tensor
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b n d"]]:
        """Return the U-Net's input and what it attends to."""
        raise NotImplementedError


class PromptUNet(LatentUNet):
    """Stable Diffusion with one prompt for all pictures."""

    def __init__(self, *parts: Any, prompt: Float[Tensor, "1 n d"]) -> None:
        """Keep the encoded prompt."""
        super().__init__(*parts)
        self.prompt: Tensor
        self.register_buffer("prompt", prompt)

    def condition(
        self, images: Tensor, latents: Tensor, sample: Tensor
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b n d"]]:
        """Return the noisy latents and the prompt."""
        return sample, self.prompt.expand(len(sample), -1, -1)


class ViewUNet(LatentUNet):
    """Zero123: the picture is what it is conditioned on, seen from where it was taken."""

    def __init__(self, *parts: Any, image_encoder: Any, projection: nn.Linear) -> None:
        """Keep the encoder of the conditioning picture and the projection of picture and view."""
        super().__init__(*parts)
        self.image_encoder, self.projection = image_encoder, projection

    def condition(
        self, images: Tensor, latents: Tensor, sample: Tensor
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b n d"]]:
        """Return noisy and clean latents, and the picture's embedding with no change of view."""
        side = self.image_encoder.config.image_size
        small = functional.interpolate(images, (side, side), mode="bicubic", antialias=True)
        mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
        picture = self.image_encoder((small.clamp(-1, 1) / 2 + 0.5 - mean) / std).image_embeds
        # Change of elevation, sine and cosine of the change of azimuth, change of distance.
        view = images.new_tensor([0.0, 0.0, 1.0, 0.0]).expand(len(images), -1)
        embedded = self.projection(torch.cat((picture, view), 1)).unsqueeze(1)
        return torch.cat((sample, latents), 1), embedded


def stable_diffusion(request: Request) -> NetworkBackbone:
    """Make a backbone of Stable Diffusion's U-Net; see the module.

    Raises:
        MissingExtraError: diffusers or transformers is not installed.
        CheckpointError: The model is not there, or lacks weights.
    """
    parts = _Parts(request)
    text: Any = parts.load("transformers", "CLIPTextModel", "text_encoder")
    tokenizer = parts.load_tokenizer()
    length = min(tokenizer.model_max_length, text.config.max_position_embeddings)
    words = tokenizer([""], padding="max_length", max_length=length, truncation=True)
    with torch.no_grad():
        prompt = text(torch.tensor(words["input_ids"])).last_hidden_state
    return _backbone(PromptUNet(*parts.latent(), prompt=prompt), request, request.options)


def zero123(request: Request) -> NetworkBackbone:
    """Make a backbone of Zero123's U-Net; pictures are stretched to a square of 512.

    Raises:
        MissingExtraError: diffusers or transformers is not installed.
        CheckpointError: The model is not there, or lacks weights.
    """
    parts = _Parts(request)
    encoder = parts.load("transformers", "CLIPVisionModelWithProjection", "image_encoder")
    network = ViewUNet(*parts.latent(), image_encoder=encoder, projection=parts.projection())
    return _backbone(
        network, request, fixed_size("Zero123", request.options, "square", ZERO123_SIDE)
    )


def read_unet(network: Any, images: Tensor, layers: Sequence[int], norm: bool) -> dict[int, Tokens]:
    """Read up-blocks of a U-Net; there is no final norm."""
    with captured(network.unet.up_blocks, layers) as found:
        network(images)
    return {layer: Tokens(maps) for layer, maps in found.items()}


def _backbone(network: LatentUNet, request: Request, options: dict[str, Any]) -> NetworkBackbone:
    config = network.unet.config
    widths = config.block_out_channels
    step = 2 ** (len(network.vae.config.block_out_channels) - 1) * 2 ** (len(widths) - 1)
    return NetworkBackbone(
        network.to(request.device, request.dtype),
        read_unet,
        patch_size=step // 2 ** (UP_BLOCK + 1),
        embed_dim=widths[::-1][UP_BLOCK],
        depth=UP_BLOCK + 1,
        mean=HALF,
        std=HALF,
        step=step,
        **options,
    )


class _Parts:
    """The parts of one pipeline: subfolders of a folder or repository."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.source = str(request.checkpoint or request.source)
        self.modules = {name: extra(name, request.name) for name in ("diffusers", "transformers")}

    def latent(self) -> tuple[Any, Any, float, int]:
        """Return autoencoder, U-Net, share of the picture at `STEP`, and seed."""
        vae = self.load("diffusers", "AutoencoderKL", "vae")
        unet = self.load("diffusers", "UNet2DConditionModel", "unet")
        return vae, unet, self.signal(), self.request.seed

    def load(self, module: str, name: str, part: str) -> Any:
        """Return one network, whole."""
        build = getattr(self.modules[module], name)
        options = {"subfolder": part, "local_files_only": True}
        try:
            if self.request.random:
                return self._drawn(build, module, options)
            network, report = build.from_pretrained(
                self.source, output_loading_info=True, **options
            )
        except Exception as error:  # whatever the libraries make of a stranger's description
            raise self._not_there(part, error) from error
        missing = sorted(report["missing_keys"])
        if missing:
            raise CheckpointError(
                f"{self.source}/{part} lacks {len(missing)} tensors, such as {missing[0]}; "
                "download it again"
            )
        return network

    def _drawn(self, build: Any, module: str, options: dict[str, Any]) -> Any:
        with drawn_from(self.request.seed):
            if module == "diffusers":
                return build.from_config(build.load_config(self.source, **options))
            return build(build.config_class.from_pretrained(self.source, **options))

    def load_tokenizer(self) -> Any:
        """Return the tokenizer."""
        try:
            return self.modules["transformers"].CLIPTokenizer.from_pretrained(
                self.source, subfolder="tokenizer", local_files_only=True
            )
        except Exception as error:  # as above
            raise self._not_there("tokenizer", error) from error

    def signal(self) -> float:
        """Return how much of the variance is still picture after `STEP` steps of noise."""
        path = find_file(self.source, "scheduler/scheduler_config.json")
        content = {} if path is None else read_description(path)
        start, end = content.get("beta_start", 0.00085), content.get("beta_end", 0.012)
        steps = content.get("num_train_timesteps", 1000)
        schedule = content.get("beta_schedule", "scaled_linear")
        power = {"linear": 1, "scaled_linear": 2}.get(schedule) if isinstance(schedule, str) else 0
        numbers = all(isinstance(beta, float) and 0 < beta < 1 for beta in (start, end))
        if not power or not numbers or not isinstance(steps, int) or not STEP < steps <= 100_000:
            raise FileFormatError(
                f"expected a linear or scaled_linear schedule of noise in {path}, got {schedule} "
                f"from {start} to {end} in {steps} steps; give another model"
            )
        roots = (start ** (1 / power), end ** (1 / power))
        betas = torch.linspace(*roots, steps, dtype=torch.float64) ** power
        return float((1 - betas).cumprod(0)[STEP])

    def projection(self) -> nn.Linear:
        """Return Zero123's projection of picture and view."""
        names = [f"cc_projection/diffusion_pytorch_model.{kind}" for kind in ("safetensors", "bin")]
        path = next((p for name in names if (p := find_file(self.source, name))), None)
        if path is None:
            raise self._not_there("cc_projection", FileNotFoundError("no weights in it"))
        state = read_weights(path)
        weight, bias = state.get("projection.weight"), state.get("projection.bias")
        if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise CheckpointError(f"expected projection.weight and .bias in {path}; get it again")
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight.float(), "bias": bias.float()})
        return layer

    def _not_there(self, part: str, error: Exception) -> CheckpointError:
        if Path(self.source).is_dir():
            reason = " ".join(str(error).split())[:200]
            return CheckpointError(f"{self.source} has no usable {part}: {reason}")
        return CheckpointError(
            f"{self.source} is neither a folder nor in the Hugging Face cache, and nothing is "
            f'downloaded unasked: fetch it with "hf download {self.source}", or give its folder '
            "with --checkpoint"
        )
