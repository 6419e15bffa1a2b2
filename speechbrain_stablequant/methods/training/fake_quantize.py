"""Fake quantization with a learned step size, on plain tensors."""

import math

import torch

from speechbrain_stablequant.core.numerics import round_to_levels

__all__ = ["fake_quantize_learned", "step_gradient_scale"]


def step_gradient_scale(count: int, scheme) -> float:
    """Return what LSQ multiplies the gradient of a step size by.

    Arguments
    ---------
    count : int
        Number of values that share the step size.
    scheme : QuantizationScheme
        Integer scheme.

    Returns
    -------
    float
        ``1 / sqrt(count * qmax)``: it brings the gradient of a step size, a
        sum over all of its values, to the order of a single weight's.
    """
    return 1.0 / math.sqrt(max(1, count) * max(1, scheme.qmax))


def fake_quantize_learned(
    x, log_step, scheme, zero_point=None, gradient_scale=1.0
):
    """Quantize and dequantize with a gradient for values and step sizes.

    Learned step size quantization (LSQ, Esser et al. 2020, arXiv 1902.08153),
    with the logarithm of the step as its parameter as in TQT (Jain et al.
    2020, arXiv 1903.08066): a step stays positive, and an update of an
    optimizer such as Adam is relative to it.

    Arguments
    ---------
    x : torch.Tensor
        Values, any shape.
    log_step : torch.Tensor
        Natural logarithm of the scale; broadcasts to ``x``.
    scheme : QuantizationScheme
        Integer scheme.
    zero_point : torch.Tensor, optional
        Not learned; broadcasts to ``x``. None when symmetric.
    gradient_scale : float
        See `step_gradient_scale`.

    Returns
    -------
    torch.Tensor
        Same shape and type as ``x``.

    Example
    -------
    >>> from speechbrain_stablequant.core.plan import QuantizationScheme
    >>> x = torch.tensor([0.1, 0.26, 5.0], requires_grad=True)
    >>> log_step = torch.tensor(0.25).log().requires_grad_()
    >>> y = fake_quantize_learned(x, log_step, QuantizationScheme(bits=3))
    >>> y.tolist()
    [0.0, 0.25, 0.75]
    >>> y.sum().backward()
    >>> x.grad.tolist()  # none for what saturates
    [1.0, 1.0, 0.0]
    """
    return _LearnedStep.apply(x, log_step, zero_point, scheme, gradient_scale)


class _LearnedStep(torch.autograd.Function):
    """Straight-through gradient inside the range, LSQ's for the step."""

    @staticmethod
    def forward(ctx, x, log_step, zero_point, scheme, gradient_scale):
        step = log_step.detach().to(torch.float32).exp()
        levels = round_to_levels(x.to(torch.float32) / step, scheme, zero_point)
        if zero_point is not None:
            levels = levels.sub_(zero_point)
        levels = levels.mul_(step).to(x.dtype)
        ctx.save_for_backward(x, step, zero_point, levels)
        ctx.scheme, ctx.gradient_scale = scheme, gradient_scale
        return levels

    @staticmethod
    def backward(ctx, gradient):
        x, step, zero_point, levels = ctx.saved_tensors
        scheme = ctx.scheme
        levels = levels.to(torch.float32)
        gradient, real = gradient.to(torch.float32), x.to(torch.float32)
        offset = 0 if zero_point is None else zero_point
        # Rounding still reaches the last level from half a step beyond it; what
        # lies further out saturates, and no change of it changes the output.
        margin = scheme.level_step / 2
        low = (scheme.qmin - offset - margin) * step
        high = (scheme.qmax - offset + margin) * step
        x_gradient = gradient * ((real >= low) & (real <= high))
        # d(step * q) / d(log step) = step * q - x inside, step * q beyond.
        if step.numel() == 1:
            # The usual case of an input: two dot products need no tensor of
            # its size, of which activations have many values.
            total = torch.dot(gradient.flatten(), levels.flatten())
            total -= torch.dot(x_gradient.flatten(), real.flatten())
            step_gradient = total.reshape(step.shape)
        else:
            change = (gradient * levels).addcmul_(x_gradient, real, value=-1)
            step_gradient = change.sum_to_size(step.shape)
        step_gradient = step_gradient * ctx.gradient_scale
        return x_gradient.to(x.dtype), step_gradient, None, None, None
