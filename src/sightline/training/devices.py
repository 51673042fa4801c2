"""Devices, processes and precision, by Lightning Fabric."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sightline.errors import InputError, MissingExtraError
from sightline.training.average import whole
from sightline.training.task import ParameterGroup, TrainTask

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_PRECISION: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def launch(task: TrainTask) -> "Fabric":
    """Start the processes that a task's settings ask for, and return this one's Fabric.

    Raises:
        MissingExtraError: If Lightning is not installed.
        InputError: If there is no such device.
    """
    try:
        from lightning.fabric import Fabric
        from lightning.fabric.strategies.ddp import DDPStrategy
        from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
    except ImportError as error:
        raise MissingExtraError("training", "lightning", "train") from error
    settings = task.settings
    cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not cuda:
        raise InputError("--device cuda needs a GPU and there is none; use --device cpu")
    use_cuda = cuda and settings.device != "cpu"
    if settings.devices == 0 and not use_cuda:
        raise InputError("--devices 0 takes all GPUs and there is none; give a number")
    if settings.precision == "16" and not use_cuda:
        raise InputError("--precision 16 needs a GPU; use bf16 or 32 on the CPU")
    devices = settings.devices or torch.cuda.device_count()
    strategy: Any = "auto"
    if devices * settings.nodes > 1 and settings.strategy == "fsdp":
        from torch.distributed import fsdp

        if not hasattr(fsdp, "fully_shard"):
            msg = (
                f"--strategy fsdp needs torch 2.6 or newer, got {torch.__version__}; update torch, "
                "or take --strategy ddp"
            )
            raise InputError(msg)
        strategy = ModelParallelStrategy(
            _shard, data_parallel_size=devices * settings.nodes, tensor_parallel_size=1
        )
    elif devices * settings.nodes > 1:
        strategy = DDPStrategy(find_unused_parameters=task.unused, broadcast_buffers=False)
    fabric = Fabric(
        accelerator="cuda" if use_cuda else "cpu",
        devices=devices,
        num_nodes=settings.nodes,
        strategy=strategy,
        precision=_PRECISION[settings.precision],
    )
    fabric.launch()
    return fabric


def is_sharded(fabric: "Fabric") -> bool:
    """Tell whether each process holds a share of the weights only."""
    from lightning.fabric.strategies.model_parallel import ModelParallelStrategy

    return isinstance(fabric.strategy, ModelParallelStrategy)


def _shard(task: nn.Module, mesh: Any) -> nn.Module:  # noqa: ANN401
    """Split weights over processes (FSDP2): the parts that the task names, then what is left."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    assert isinstance(task, TrainTask)
    # All of them give their weights back after a pass: outside of one, a weight is a share.
    options: dict[str, Any] = {"mesh": mesh["data_parallel"], "reshard_after_forward": True}
    for part in task.shards():
        fully_shard(part, **options)
    fully_shard(task, **options)
    for method in ("validate", "pictures"):
        register_fsdp_forward_method(task, method)
    return task


def clip_gradients(
    fabric: "Fabric",
    optimizer: torch.optim.Optimizer,
    groups: Sequence[ParameterGroup],
    largest: float,
) -> dict[str, Tensor]:
    """Scale gradients down to a largest norm for every clip name; return the norms before.

    Args:
        fabric: For the loss scale of 16-bit training, which is taken off first.
        optimizer: Whose gradients they are.
        groups: With their clip names.
        largest: Norm; 0 only measures.
    """
    precision = fabric.strategy.precision
    if hasattr(precision, "unscale_gradients"):
        precision.unscale_gradients(getattr(optimizer, "optimizer", optimizer))
    norms: dict[str, Tensor] = {}
    for name in dict.fromkeys(group.clip for group in groups):
        parameters = [p for g in groups if g.clip == name for p in g.parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            continue
        if largest:
            norm = torch.nn.utils.clip_grad_norm_(parameters, largest)
        else:
            norm = torch.stack([torch.linalg.vector_norm(g) for g in gradients]).norm()
        norms["grad_norm" if name == "all" else f"grad_norm_{name}"] = whole(norm)
    return norms
