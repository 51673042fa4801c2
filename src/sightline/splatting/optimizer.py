"""Adam over the rows of splat tensors: fused on the CPU, and aware of which rows were visible.

One row is one splat. Rows can be removed, copied and reset with their moments, which density
control needs; ``torch.optim`` keeps moments by parameter object and makes that awkward.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from sightline.splatting.kernels import adam_rows
from sightline.splatting.rasterize.jit import run_chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamConfig:
    """Constants of Adam (Kingma & Ba 2015); ``eps`` is 3DGS's."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-15
    visible_only: bool = True
    """Leave rows (moments too) untouched that the step did not see: SelectiveAdam of Taming-3DGS,
    which also has no bias correction."""


class RowAdam:
    """Adam for named tensors that share their first axis.

    The state is plain tensors: ``m`` and ``v`` by name, and one step counter.
    """

    def __init__(self, params: Mapping[str, Tensor], config: AdamConfig | None = None) -> None:
        """Start with zero moments for ``params`` (kept by reference, updated in place)."""
        self.config = config or AdamConfig()
        self.steps = 0
        self.params = dict(params)
        self.m = {name: torch.zeros_like(p, requires_grad=False) for name, p in params.items()}
        self.v = {name: torch.zeros_like(p, requires_grad=False) for name, p in params.items()}

    @torch.no_grad()
    def step(
        self,
        grads: Mapping[str, Tensor],
        rates: Mapping[str, float | tuple[float, float]],
        visible: Bool[Tensor, " n"] | None = None,
    ) -> None:
        """Update every tensor that has a gradient.

        Args:
            grads: Gradient by name.
            rates: Learning rate by name; of a pair, the first is for the first entry along the
                second axis and the second for all others (spherical harmonics need this).
            visible: Rows to update; all when None, and then with bias correction.
        """
        self.steps += 1
        if not self.config.visible_only:
            visible = None
        correct1 = correct2 = 1.0
        if visible is None:
            correct1 = 1 - self.config.beta1**self.steps
            correct2 = 1 - self.config.beta2**self.steps
        for name, grad in grads.items():
            tensors = (self.params[name].detach(), grad, self.m[name], self.v[name])
            pair = rates[name]
            first, others = pair if isinstance(pair, tuple) else (pair, pair)
            scale = correct2**0.5 / correct1
            constants = (first * scale, others * scale, self.config.eps * correct2**0.5)
            if grad.device.type == "cpu" and grad.dtype == torch.float32:
                self._step_cpu(tensors, visible, constants)
            else:
                self._step_torch(tensors, visible, constants)

    def _step_cpu(
        self,
        tensors: tuple[Tensor, ...],
        visible: Tensor | None,
        constants: tuple[float, float, float],
    ) -> None:
        rows = tensors[0].shape[0]
        flat = [t.contiguous().numpy().reshape(rows, -1) for t in tensors]
        head = flat[0].shape[1] // tensors[0].shape[1] if tensors[0].dim() > 1 else 1
        mask = np.ones(1, bool) if visible is None else visible.numpy()
        numbers = [np.float32(c) for c in (self.config.beta1, self.config.beta2, *constants)]
        run_chunks(adam_rows, rows, 4096, *flat, mask, visible is None, head, *numbers)

    def _step_torch(
        self,
        tensors: tuple[Tensor, ...],
        visible: Tensor | None,
        constants: tuple[float, float, float],
    ) -> None:
        param, grad, m, v = tensors
        first, others, eps = constants
        beta1, beta2 = self.config.beta1, self.config.beta2
        new_m = torch.lerp(grad, m, beta1)
        new_v = beta2 * v + (1 - beta2) * grad.square()
        rate = torch.full_like(param, others)
        if first != others:
            rate[:, :1] = first
        change = rate * new_m / (new_v.sqrt() + eps)
        if visible is None:
            m.copy_(new_m)
            v.copy_(new_v)
            param.sub_(change)
            return
        keep = visible.view(-1, *(1,) * (param.dim() - 1))
        m.copy_(torch.where(keep, new_m, m))
        v.copy_(torch.where(keep, new_v, v))
        param.sub_(torch.where(keep, change, 0))

    @torch.no_grad()
    def select_rows(self, rows: Int64[Tensor, " m"], params: Mapping[str, Tensor]) -> None:
        """Follow a change of rows: row ``i`` now has the moments of old row ``rows[i]``.

        Args:
            rows: Old row of each new one; -1 for a row that starts with zero moments.
            params: The new tensors.
        """
        old = rows.clamp(min=0)
        fresh = rows < 0
        for state in (self.m, self.v):
            for name, value in state.items():
                state[name] = value[old]
                state[name][fresh] = 0
        self.params = dict(params)

    @torch.no_grad()
    def reset_rows(self, rows: Int64[Tensor, " m"], names: tuple[str, ...] | None = None) -> None:
        """Zero the moments of ``rows``, of all tensors or of those named."""
        for state in (self.m, self.v):
            for name in names or tuple(state):
                state[name][rows] = 0
