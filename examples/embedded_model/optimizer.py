"""One optimizer out of two: Muon for the matrices, AdamW for everything else.

Muon (https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by the nearest
orthogonal matrix, and needs about half as many steps as AdamW here. It fits only matrices inside a
network: embeddings, norms and biases stay with AdamW.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

# https://kellerjordan.github.io/posts/muon/: coefficients of an odd quintic that drives singular
# values towards one in few rounds, without needing to reach it exactly.
QUINTIC = (3.4445, -4.7750, 2.0315)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for parameters with two dimensions that are no embedding, AdamW for the others.

    Parameters are told apart by shape alone: a matrix with more than `longest` rows or columns is
    taken for an embedding table. `lr` is AdamW's; a matrix moves by `matrix_lr_ratio * lr` with
    an update whose entries have the root mean square that AdamW's would have (0.2 * sqrt(longer side)
    times an orthogonal matrix, https://arxiv.org/abs/2502.16982). Matrices are orthogonalized in
    `product_dtype`: float32 is faster where the processor does not multiply bfloat16.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        *,
        matrix_lr_ratio: float = 2.0,
        betas: tuple[float, float] = (0.9, 0.98),
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        longest: int = 1900,
        product_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        trainable = [p for p in params if p.requires_grad]
        matrices = [p for p in trainable if p.ndim == 2 and max(p.shape) <= longest]
        chosen = {id(p) for p in matrices}
        others = [p for p in trainable if id(p) not in chosen]
        common = {"lr": lr, "weight_decay": weight_decay}
        groups = [
            {**common, "params": matrices, "matrices": True, "ratio": matrix_lr_ratio},
            {**common, "params": others, "matrices": False, "ratio": 1.0, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.product_dtype = product_dtype
        super().__init__(groups, {"betas": betas, "momentum": momentum, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            if group["matrices"]:
                self._step_matrices(group, moving)
            else:
                self._step_others(group, moving)
        return loss

    def _step_matrices(self, group: dict, params: list[Tensor]) -> None:
        by_shape: dict[tuple[int, int], list[Tensor]] = {}
        for p in params:
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.lerp_(p.grad, 1.0 - group["momentum"])
            by_shape.setdefault((p.shape[0], p.shape[1]), []).append(p)
        rate = group["lr"] * group["ratio"]
        for shape, same in by_shape.items():  # equal shapes in one batch: fewer, larger products
            ahead = [
                p.grad.lerp(self.state[p]["momentum"], group["momentum"])  # Nesterov's look-ahead
                for p in same
            ]
            updates = orthogonalized(torch.stack(ahead), self.product_dtype)
            size = 0.2 * max(shape) ** 0.5
            for p, update in zip(same, updates, strict=True):
                p.mul_(1.0 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-rate * size)

    def _step_others(self, group: dict, params: list[Tensor]) -> None:
        slow, fast = group["betas"]
        for p in params:
            state = self.state[p]
            if not state:
                state.update(mean=torch.zeros_like(p), square=torch.zeros_like(p), steps=0)
            state["steps"] += 1
            state["mean"].lerp_(p.grad, 1.0 - slow)
            state["square"].lerp_(p.grad.square(), 1.0 - fast)
            mean = state["mean"] / (1.0 - slow ** state["steps"])
            square = state["square"] / (1.0 - fast ** state["steps"])
            p.mul_(1.0 - group["lr"] * group["weight_decay"])
            p.addcdiv_(mean, square.sqrt_().add_(group["eps"]), value=-group["lr"])


def orthogonalized(batch: Tensor, dtype: torch.dtype = torch.bfloat16, rounds: int = 5) -> Tensor:
    """Return matrices (N, rows, columns) with all singular values drawn near one.

    Each round applies the quintic a*s + b*s^3 + c*s^5 to the singular values s, by products alone.
    """
    a, b, c = QUINTIC
    x = batch.to(dtype)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT.contiguous()
    x = x / x.float().norm(dim=(1, 2), keepdim=True).clamp_min(1e-7).to(x.dtype)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(batch.dtype)
