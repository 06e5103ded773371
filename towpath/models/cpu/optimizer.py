"""AdamW with one kernel a weight, and with weights that passes read in bfloat16.

A bfloat16 weight here is the upper half of a float32 whose low bits only the optimizer reads: steps far smaller than a
bfloat16 can tell apart are not lost.
"""

import math
from collections.abc import Iterable, Mapping
from weakref import WeakMethod

import torch
from torch import Tensor, nn

from towpath.models import foreach
from towpath.models.cpu import kernels, plain
from towpath.models.cpu.plain import AdamWStep
from towpath.models.cpu.split_bf16 import merge_float32, split_float32

__all__ = ["AdamW", "merge_float32", "split_float32"]


class AdamW:
    """Groups of weights by peak learning rate. Gradients are where autograd leaves them; those of split weights are
    bfloat16, and summed in float32 as soon as there is more than one pass to sum."""

    STATE = ("exp_avg", "exp_avg_sq", "step")

    def __init__(
        self,
        groups: Iterable[tuple[float, list[nn.Parameter]]],
        eps: float,
        weight_decay: float,
        betas: tuple[float, float],
    ) -> None:
        self.groups = list(groups)
        self.eps = eps
        self.weight_decay = weight_decay
        self.betas = betas
        self.low_bits: dict[nn.Parameter, Tensor] = {}
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        self._sums: dict[nn.Parameter, Tensor] = {}

    @property
    def weights(self) -> list[nn.Parameter]:
        """All weights that train."""
        return [weight for _, weights in self.groups for weight in weights]

    def split_bf16(self, weight: nn.Parameter) -> None:
        """Make a float32 weight a bfloat16 one, and keep its low bits."""
        weight.data, self.low_bits[weight] = split_float32(weight.data)
        # torch holds a hook where Python's collector does not look: a reference circle through one is never freed
        add_gradient = WeakMethod(self._add_gradient)

        def hook(weight: Tensor) -> None:
            if (method := add_gradient()) is not None:
                method(weight)

        weight.register_post_accumulate_grad_hook(hook)

    def accumulate(self) -> None:
        """Start another backward pass, whose gradients are added to the present ones."""
        for weight in self.low_bits:
            if weight.grad is not None:
                self._sums[weight] = weight.grad.float()
                weight.grad = None

    def _add_gradient(self, weight: Tensor) -> None:
        if weight in self._sums and weight.grad is not None:
            self._sums[weight].add_(weight.grad)  # pyright: ignore[reportArgumentType]
            weight.grad = None

    def gradients(self) -> dict[nn.Parameter, Tensor]:
        """The gradient of every weight that has one."""
        gradients = {weight: self._sums.get(weight, weight.grad) for weight in self.weights}
        return {weight: grad for weight, grad in gradients.items() if grad is not None}

    def set_gradient(self, weight: nn.Parameter, gradient: Tensor) -> None:
        """Replace the gradient of a weight, as by the sum over several processes."""
        if weight in self.low_bits:
            self._sums[weight] = gradient
            weight.grad = None
        else:
            weight.grad = gradient

    def norm(self) -> float:
        """The norm of all gradients together."""
        grads = [grad.contiguous() for grad in self.gradients().values()]
        if not grads:
            return 0.0
        if self._by_lists:
            return math.sqrt(float(foreach.squared_norm(grads)))
        squares = [kernels.dispatch(grad).sum_of_squares(grad) for grad in grads]
        return math.sqrt(float(torch.stack(squares).sum()))

    @property
    def _by_lists(self) -> bool:
        """Whether all weights are updated by a few kernels, as they are on a GPU."""
        return next((weight.device.type != "cpu" for weight in self.weights), False)

    @torch.no_grad()
    def step(self, rate: float, scale: float) -> None:
        """Update every weight with `rate` times its peak rate; gradients are multiplied by `scale`."""
        gradients = self.gradients()
        by_lists = self._by_lists
        lists: dict[tuple[AdamWStep, torch.dtype], list[foreach.Update]] = {}
        for peak, weights in self.groups:
            for weight in weights:
                if weight in gradients:
                    step, update = self._update(weight, gradients[weight].contiguous(), peak * rate, scale)
                    if by_lists:
                        lists.setdefault((step, update.mean.dtype), []).append(update)
                    else:
                        ops = kernels.dispatch(update.mean) if update.mean.dtype == torch.float32 else plain
                        ops.adamw_step(*update, step)
        for (step, _), updates in lists.items():
            foreach.adamw_step(updates, step)

    def state_of(self, weight: nn.Parameter) -> dict[str, Tensor]:
        """Moments and step count of a weight, zeros before its first step."""
        if weight not in self.state:
            dtype = torch.float32 if weight in self.low_bits else weight.dtype
            mean, square = (torch.zeros(weight.shape, dtype=dtype, device=weight.device) for _ in range(2))
            self.state[weight] = dict(zip(self.STATE, (mean, square, torch.tensor(0.0)), strict=True))
        return self.state[weight]

    def _update(
        self, weight: nn.Parameter, grad: Tensor, rate: float, scale: float
    ) -> tuple[AdamWStep, foreach.Update]:
        """The numbers of a weight's next step, and the tensors that it changes."""
        low_bits = self.low_bits.get(weight)
        mean, square, steps = self.state_of(weight).values()
        count = float(steps.add_(1))
        beta1, beta2 = self.betas
        step = AdamWStep(
            scale,
            beta1,
            beta2,
            rate / (1 - beta1**count),
            1 / math.sqrt(1 - beta2**count),
            self.eps,
            1 - rate * self.weight_decay,
        )
        return step, foreach.Update(weight.data, low_bits, grad, mean, square)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self._sums.clear()
        for weight in self.weights:
            weight.grad = None

    def load_state(self, weight: nn.Parameter, state: Mapping[str, Tensor]) -> None:
        """Set the moments and the step count of a weight."""
        moments = {name: state[name].to(weight.device).clone() for name in self.STATE[:2]}
        self.state[weight] = moments | {"step": state["step"].clone()}
