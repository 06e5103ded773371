"""AdamW over whatever learns. What passes read in bfloat16 is the upper half of a float32 weight; the rest lies
here, so that steps far smaller than a bfloat16 can tell apart are not lost."""

import math
from collections.abc import Iterable, Mapping
from weakref import WeakMethod

import torch
from torch import Tensor, nn

from towpath.models.cpu import dispatch, plain, split_bf16
from towpath.models.cpu.plain import Move

SLOTS = "exp_avg", "exp_avg_sq", "step"


class Adam:
    """Groups of weights by their peak rates. Gradients are looked for where autograd leaves them; those of halved
    weights are in bfloat16, and summed in float32 as soon as there is more than one pass to sum."""

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
        self.rest: dict[nn.Parameter, Tensor] = {}
        self.sums: dict[nn.Parameter, Tensor] = {}
        self.slots: dict[nn.Parameter, dict[str, Tensor]] = {}

    @property
    def weights(self) -> list[nn.Parameter]:
        """All that learns."""
        return [weight for _, weights in self.groups for weight in weights]

    def halve(self, weight: nn.Parameter) -> None:
        """From now on the weight itself is the upper half."""
        weight.data, self.rest[weight] = split_bf16.parted(weight.data)
        # a hook is held where Python's collector does not look: a circle through one is never let go
        summed = WeakMethod(self._summed)

        def hook(weight: Tensor) -> None:
            if (method := summed()) is not None:
                method(weight)

        weight.register_post_accumulate_grad_hook(hook)

    def another_pass(self) -> None:
        """Another pass adds to the gradients there are."""
        for weight in self.rest:
            if weight.grad is not None:
                self.sums[weight], weight.grad = weight.grad.float(), None

    def _summed(self, weight: Tensor) -> None:
        if weight in self.sums and weight.grad is not None:
            self.sums[weight].add_(weight.grad)  # pyright: ignore[reportArgumentType]
            weight.grad = None

    def gradients(self) -> dict[nn.Parameter, Tensor]:
        """Of every weight that has one."""
        found = {weight: self.sums.get(weight, weight.grad) for weight in self.weights}
        return {weight: grad for weight, grad in found.items() if grad is not None}

    def norm(self) -> float:
        """Of all gradients together."""
        squares = [dispatch.of(grad).squares(grad.contiguous()) for grad in self.gradients().values()]
        return math.sqrt(float(torch.stack(squares).sum())) if squares else 0.0

    @torch.no_grad()
    def step(self, rate: float, scale: float) -> None:
        """Move every weight by `rate` of its peak rate, its gradient times `scale`."""
        gradients = self.gradients()
        for peak, weights in self.groups:
            for weight in weights:
                if weight in gradients:
                    self._move(weight, gradients[weight].contiguous(), peak * rate, scale)

    def _move(self, weight: nn.Parameter, grad: Tensor, rate: float, scale: float) -> None:
        rest, (first, second) = self.rest.get(weight), self.betas
        if weight not in self.slots:
            wide = torch.float32 if rest is not None else weight.dtype
            mean, square = (torch.zeros(weight.shape, dtype=wide, device=weight.device) for _ in range(2))
            self.slots[weight] = dict(zip(SLOTS, (mean, square, torch.tensor(0.0)), strict=True))
        mean, square, done = self.slots[weight].values()
        count = float(done.add_(1))
        move = Move(
            scale,
            first,
            second,
            rate / (1 - first**count),
            1 / math.sqrt(1 - second**count),
            self.eps,
            1 - rate * self.weight_decay,
        )
        ops = dispatch.of(mean) if rest is not None or weight.dtype == torch.float32 else plain
        ops.moved(weight.data, rest, grad, mean, square, move)

    def clear(self) -> None:
        """No gradients."""
        self.sums.clear()
        for weight in self.weights:
            weight.grad = None

    def put(self, weight: nn.Parameter, given: Mapping[str, Tensor]) -> None:
        """Moments and count as they were kept."""
        moments = {name: given[name].to(weight.device).clone() for name in SLOTS[:2]}
        self.slots[weight] = moments | {"step": given["step"].clone()}
