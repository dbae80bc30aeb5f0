"""The optimizer of the diffusion model: Adam, with orthogonal updates of the convolutions' kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..checks import SettingError, is_number

# Jordan et al.'s polynomial of degree 5, in so many steps: all singular values but the smallest end between 0.7 and 1.2
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """Replace the singular values of a matrix by about 1, by Newton and Schulz's iteration.

    The iteration X <- (a + b X X' + c (X X')^2) X multiplies by polynomials of the first X X'. So it is done on that
    square alone, whose side is the shorter one of the matrix.

    Args:
        matrix: shape (rows, columns).

    Returns:
        The same shape; zeros stay zeros.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalize(matrix.T).T
    a, b, c = COEFFICIENTS
    matrix = matrix / matrix.norm().clamp(min=1e-20)
    gram = matrix @ matrix.T
    factor = identity = torch.eye(len(gram), device=gram.device)
    for _ in range(ITERATIONS):
        polynomial = a * identity + b * gram + c * gram @ gram
        factor = polynomial @ factor
        gram = polynomial @ gram @ polynomial
    return factor @ matrix


class Muon(torch.optim.Adam):
    """Muon for the kernels of convolutions, and Adam for all other weights.

    Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") moves a matrix along the
    nearest orthogonal one to its momentum: the rare directions of a gradient learn as fast as the common ones. A
    kernel is the matrix of its outputs by all else. The update has a root mean square of 0.2, about what Adam's has,
    so that both share one rate (Liu et al. 2025, "Muon is Scalable for LLM Training", equation 4). The last kernel,
    which makes the output, is Adam's too, as Jordan et al. advise. PyTorch's own Muon takes matrices alone.

    Args:
        params: the weights, in the order of the layers.
        lr: rate of both.
        momentum: of the kernels' gradients; Nesterov's.
        betas: Adam's.

    Raises:
        SettingError: when ``momentum`` is not from 0 to below 1.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        if not is_number(momentum) or not 0 <= momentum < 1:
            raise SettingError(f"optimizer#momentum={momentum!r}: must be a number from 0 to below 1.")
        weights = list(params)
        kernels = [weight for weight in weights if weight.dim() > 2][:-1]
        chosen = {id(kernel) for kernel in kernels}
        others = [weight for weight in weights if id(weight) not in chosen]
        # not fused: a gradient scaler would leave it to the kernel to skip a step
        super().__init__([{"params": others}, {"params": kernels, "momentum": momentum}], lr, betas, foreach=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; a weight without a gradient stays."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        group = self.param_groups[1]
        kernels = [kernel for kernel in group["params"] if kernel.grad is not None]
        directions = [self._find_direction(kernel, group["momentum"]) for kernel in kernels]
        gradients = [kernel.grad for kernel in kernels]
        for kernel in kernels:
            kernel.grad = None  # Adam passes it over
        super().step()
        for kernel, gradient, direction in zip(kernels, gradients, directions, strict=True):
            kernel.grad = gradient
            update = orthogonalize(direction) * 0.2 * max(direction.shape) ** 0.5
            kernel.sub_(group["lr"] * update.view_as(kernel))
        return loss

    def _find_direction(self, kernel: nn.Parameter, momentum: float) -> torch.Tensor:
        """Return the gradient with momentum as a matrix, shape (outputs, all else)."""
        state = self.state[kernel]
        if not state:
            # Adam counts steps too, and looks for the count in what it loads
            state["step"], state["momentum"] = torch.tensor(0.0), torch.zeros_like(kernel)
        state["step"] += 1
        average = state["momentum"].lerp_(kernel.grad, 1 - momentum)
        return kernel.grad.lerp(average, momentum).flatten(1)
