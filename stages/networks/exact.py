"""Arithmetic whose results have the same bits on every processor and with any number of threads.

A floating-point sum depends on its order, and each library, vector width and number of threads
has its own order. Here no sum is ever rounded, so the order does not matter:

1. A number is *on the grid* of step d, a power of two, if it is a whole multiple of d.
2. The product of a number on the grid of step c and one on that of step d is on the grid of step
   c d, and so is every sum of such products.
3. A float32 holds every multiple of s up to 2^24 s in size exactly, a float64 up to 2^53 s.
4. So if the sizes of all products add up to at most that, then every partial sum is a float, in
   every order, grouping and slicing. Nothing is rounded. A fused multiply-add changes nothing
   either. Each way of adding gives the one exact sum.

Before a product, :func:`on_grid` therefore rounds its operands to grids. They are as fine as point
4 allows. The step follows from the largest size or from an exact sum of sizes, never from a rounded
sum. Everything else is addition, multiplication, division, rounding and comparison, element by
element. IEEE 754 defines these to the last bit. exp, log and tanh are made of them, because those
of a library are rounded differently on different processors. Even its square root is.

Two things are assumed. PyTorch's eager operations follow IEEE 754, one operation at a time, and do
not flush subnormal numbers to zero. A matrix product is a sum of products: there is no Strassen
algorithm, and no operand is shortened to TF32 or bfloat16. Two kinds of operations are not used:
those that may fuse a product and a sum (addcmul, lerp, `add` with `alpha`), and a division by a
Python number (some devices multiply by its reciprocal instead). Convolutions are written as matrix
products, because those of a library may use a Winograd or a Fourier transform.

NaN passes through all of this into the loss. So does infinity, unless tanh or ReLU turns it into a
finite number.

An exported model holds PyTorch's own operations instead of these.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_exporting

SINGLE, DOUBLE = 24, 53  # bits of float32 and float64: they hold all integers up to 2^24, 2^53
KERNEL = 5  # the height and width of each convolution's kernel
GRADIENT = 512  # the most steps in the gradient of a convolution's outputs
FEWEST = 32  # the fewest steps in an operand of a convolution: with fewer, the sum is too long
STEPS, LONGEST = 2.0**20, 2**13  # of a fully connected layer: 20 + 20 + 13 = 53 bits
CACHED = 64  # images at a time: their numbers fit into a processor's cache. Changes no bit
TINY = 2.0**-60  # smaller numbers get the grid of this one


def power_of_two(x: Tensor) -> Tensor:
    """The smallest power of two above each of float32 ``x`` > 0: its exponent, plus one."""
    return (x.view(torch.int32) & 0x7F800000).view(torch.float32) * 2


def on_grid(x: Tensor, step: float | Tensor) -> Tensor:
    """``x`` rounded to whole multiples of ``step``: at most 2^22 of them, 2^51 in float64.

    Around 1.5 * 2^23 steps, neighbouring float32 are one step apart. So this addition rounds.
    """
    bits = SINGLE if x.dtype == torch.float32 else DOUBLE
    shift = 1.5 * 2.0 ** (bits - 1) * step
    return (x + shift).sub_(shift)


def step_for(largest: float, steps: float) -> float:
    """The step of a grid on which ``largest`` has at most so many steps, and at least half."""
    if not math.isfinite(largest):
        return largest
    return math.ldexp(1.0, math.frexp(max(largest, TINY) / steps)[1])


def total(x: Tensor, dim: int = 0) -> Tensor:
    """Sums over ``dim``, as float64. Only the elements are rounded, not the sums."""
    length, largest = max(x.shape[dim], 1), x.detach().abs().max().item()
    return on_grid(x.double(), step_for(largest, 2.0 ** (DOUBLE - 2) / length)).sum(dim)


# Fully connected layers: in float64, with 20 bits for each operand


def fine(x: Tensor, largest: float | None = None) -> Tensor:
    """``x`` as float64, on a grid with 2^20 steps in its largest element, or in ``largest``."""
    if largest is None:
        largest = x.abs().max().item()
    return on_grid(x.double(), step_for(largest, STEPS))


class Linear(torch.autograd.Function):
    """The operation of :func:`linear`, and its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, largest: float | None) -> Tensor:
        if max(weight.shape) > LONGEST:
            raise ValueError(f"layer {tuple(weight.shape)}: a sum over its weights is too long")
        weight64 = fine(weight)
        if largest is None:  # each row on its own grid, whatever else is in the batch
            above = power_of_two(x.abs().amax(1, keepdim=True).clamp(min=TINY))
            rows = on_grid(x.double(), above.double() * (1 / STEPS))
        else:
            rows = fine(x, largest)
        ctx.save_for_backward(x if largest is None else rows, weight64)
        return (rows @ weight64.T).add_(bias.double()).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight64 = ctx.saved_tensors
        if len(x) > LONGEST:
            raise ValueError(f"layer {tuple(weight64.shape)}: a sum over {len(x)} rows is too long")
        if x.dtype == torch.float32:
            x = fine(x)
        gradient = fine(gradient)
        to_x = (gradient @ weight64).float() if ctx.needs_input_grad[0] else None
        return to_x, (gradient.T @ x).float(), gradient.sum(0).float(), None


def linear(x: Tensor, weight: Tensor, bias: Tensor, largest: float | None = None) -> Tensor:
    """x (B, I) times weight (O, I) transposed, plus bias (O,).

    Args:
        largest: The largest possible |x|. If left out, the largest of each row is used.
    """
    if is_exporting():
        return F.linear(x, weight, bias)
    result: Tensor = Linear.apply(x, weight, bias, largest)  # type: ignore[no-untyped-call]
    return result


# Convolutions: in float32, as products of two matrices. A window is the part of an image that
# `run` neighbouring outputs depend on. The second matrix holds each kernel `run` times, each time
# shifted by one column, and zeros. A larger `run` copies less and multiplies more zeros.


def windows(x: Tensor, run: int) -> Tensor:
    """Images (B, H, W, C) to their windows (B, rows * runs, KERNEL * (run + KERNEL - 1) * C)."""
    size, height, width, channels = x.shape
    rows, runs, span = height - KERNEL + 1, (width - KERNEL + 1) // run, run + KERNEL - 1
    line = width * channels
    view = x.as_strided(
        (size, rows, runs, KERNEL, span * channels), (height * line, line, run * channels, line, 1)
    )
    return view.reshape(size, rows * runs, KERNEL * span * channels)


def spread(weight: Tensor, run: int) -> Tensor:
    """Kernels (O, C, 5, 5) to the matrix (size of a window, run * O) to multiply windows with."""
    outputs, channels = weight.shape[:2]
    matrix = weight.new_zeros(KERNEL, run + KERNEL - 1, channels, run, outputs)
    for place in range(run):
        matrix[:, place : place + KERNEL, :, place] = weight.permute(2, 3, 1, 0)
    return matrix.view(-1, run * outputs)


def gather(matrix: Tensor, shape: torch.Size) -> Tensor:
    """The transposed matrix of :func:`spread` to kernels: sums over the places of each kernel."""
    outputs, channels = shape[:2]
    run = len(matrix) // outputs
    places = matrix.view(run, outputs, KERNEL, run + KERNEL - 1, channels)
    kernels = [places[place, :, :, place : place + KERNEL] for place in range(run)]
    return torch.stack(kernels).sum(0).permute(0, 3, 1, 2)


def overlap(y: Tensor, out: Tensor, run: int) -> None:
    """Windows to images, into ``out``: for each pixel, the sum over the windows that hold it."""
    size, height, width, channels = out.shape
    rows, runs, span = height - KERNEL + 1, (width - KERNEL + 1) // run, run + KERNEL - 1
    y = y.view(size, rows, runs, KERNEL, span * channels)
    lines = y.new_zeros(size, height, runs, span * channels)
    for row in range(KERNEL):
        lines[:, row : row + rows] += y[:, :, :, row]
    blocks = out.zero_().view(size, height, width // run, run * channels)
    for block in range(span // run):
        columns = slice(block * run * channels, (block + 1) * run * channels)
        blocks[:, :, block : block + runs] += lines[..., columns]


def parts(size: int) -> list[slice]:
    """Slices of CACHED images each, of a batch of ``size`` images."""
    return [slice(start, start + CACHED) for start in range(0, size, CACHED)]


def weight_step(sizes: Tensor, room: float, length: float, shape: torch.Size) -> float:
    """The step with which the largest of ``sizes`` has at most ``room`` steps.

    Raises:
        ValueError: The mean of the ``length`` numbers of the sum has too few steps.
    """
    if room < FEWEST * length:
        raise ValueError(f"convolution {tuple(shape)}: a sum over its weights is too long")
    return step_for(sizes.max().item(), room)


class ConvTanhPool(torch.autograd.Function):
    """The operation of :func:`conv_tanh_pool`, and its gradient. In memory, channels come last."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, largest: float, step: float, run: int
    ) -> Tensor:
        x = on_grid(x.permute(0, 2, 3, 1).contiguous(), step)
        size, height, width, _ = x.shape
        length = weight[0].numel()
        # The sizes of the products of a sum and its bias add up to at most 2^24 of their steps
        sizes = total(weight.flatten(1).abs(), 1) * largest + bias.abs()
        room = 2.0**SINGLE * step - largest * length - step  # minus what rounding may add
        grid = weight_step(sizes, room, largest * length, weight.shape)
        matrix = spread(on_grid(weight.double(), grid).float(), run)
        added = on_grid(bias.double(), grid * step).float().repeat(run)
        t = x.new_empty(size, height - KERNEL + 1, width - KERNEL + 1, len(weight))
        pooled = x.new_empty(size, t.shape[1] // 2, t.shape[2] // 2, len(weight))
        for part in parts(size):
            y = torch.addmm(added, windows(x[part], run).flatten(0, 1), matrix)
            rational_tanh(y.view_as(t[part]), t[part])
            rows = t[part, ::2] + t[part, 1::2]
            torch.add(rows[:, :, ::2], rows[:, :, 1::2], out=pooled[part]).mul_(0.25)
        ctx.save_for_backward(x, weight, t)
        ctx.steps, ctx.run = largest / step, run
        return pooled.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, t = ctx.saved_tensors
        run, size, outputs, number = ctx.run, len(x), len(weight), t[0, ..., 0].numel() // ctx.run
        # Each image's gradient has its own grid, so that a small one counts beside a large one. Its
        # sums over the image are exact in float32, and the sums over the batch in float64
        steps = min(GRADIENT, int(2**SINGLE / (ctx.steps * number)))
        if steps < FEWEST:
            raise ValueError(f"convolution {tuple(weight.shape)}: a sum over {number} is too long")
        pooled = gradient.permute(0, 2, 3, 1) * 0.25
        spare = DOUBLE - SINGLE - (size * run).bit_length()
        coarse = power_of_two(pooled.abs().max().clamp(min=TINY) * (1 / steps)) * 2.0**-spare
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x, length = torch.empty_like(x), weight[:, 0].numel()
            sizes = total(weight.transpose(0, 1).flatten(1).abs(), 1)
            grid = weight_step(sizes, 2.0**SINGLE / steps - length, length, weight.shape)
            matrix = spread(on_grid(weight.double(), grid).float(), run).T.contiguous()
        span = KERNEL * (run + KERNEL - 1) * x.shape[3]
        to_weight = x.new_zeros(run * outputs, span, dtype=torch.float64)
        to_bias = x.new_zeros(run * outputs, dtype=torch.float64)
        for part in parts(size):
            rows = torch.empty_like(t[part, ::2])
            rows[:, :, ::2] = rows[:, :, 1::2] = pooled[part]
            g = (t[part] * t[part]).neg_().add_(1)
            g.unflatten(1, (-1, 2)).mul_(rows.unsqueeze(2))
            g = g.view(len(g), number, run * outputs)
            own = power_of_two(g.abs().amax((1, 2), keepdim=True).clamp(min=TINY) * (1 / steps))
            g = on_grid(g, torch.maximum(own, coarse))
            to_weight += torch.bmm(g.mT, windows(x[part], run)).sum(0, dtype=torch.float64)
            to_bias += g.sum(1).sum(0, dtype=torch.float64)
            if to_x is not None:
                overlap(g.flatten(0, 1) @ matrix, to_x[part], run)
        kernels = gather(to_weight, weight.shape).float()
        added = to_bias.view(run, outputs).sum(0).float()
        to_x = None if to_x is None else to_x.permute(0, 3, 1, 2)
        return to_x, kernels, added, None, None, None


def conv_tanh_pool(
    x: Tensor, weight: Tensor, bias: Tensor, largest: float, step: float, run: int
) -> Tensor:
    """A convolution with 5x5 kernels without padding, plus bias; tanh; 2x2 average pooling.

    Args:
        x: (B, C, H, W).
        weight: (O, C, 5, 5).
        largest: The largest possible |x|.
        step: The step of the grid that x is rounded to.
        run: How many neighbouring outputs one window gives. It changes the time, and the grid of
            the gradients. It must be even, and a divisor of the number of outputs in a row.
    """
    if is_exporting():  # the same grids, unless rounding moves a sum across a power of two
        room = (2.0**SINGLE - 1) * step - largest * weight[0].numel()
        grid = power_of_two((weight.abs().sum((1, 2, 3)) * largest + bias.abs()).max() / room)
        added = on_grid(bias.double(), grid * step).float()
        y = F.conv2d(on_grid(x, step), on_grid(weight, grid), added)
        return F.avg_pool2d(rational_tanh(y.detach(), torch.empty_like(y)), 2)
    result: Tensor = ConvTanhPool.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, largest, step, run
    )
    return result


# Elementwise functions


def rational_tanh(x: Tensor, out: Tensor) -> Tensor:
    """tanh of float32, within 2.4e-5: a polynomial of degree 7 over one of degree 4."""
    x = x.clamp(-6, 6)
    q = x * x
    torch.mul(q, -0.0001624208979480252, out=out).add_(0.06565358587676728)
    out.mul_(q).add_(7.174578374686297).mul_(q).add_(65.83511550186887).mul_(x)
    below = torch.add(q, 29.110855944998136, out=x).mul_(q).add_(65.83824475275695)
    return out.div_(below)


class Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        t = rational_tanh(x, torch.empty_like(x))
        ctx.save_for_backward(t)
        return t

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (t,) = ctx.saved_tensors
        to_x: Tensor = (t * t).neg_().add_(1).mul_(gradient)
        return to_x


def tanh(x: Tensor) -> Tensor:
    if is_exporting():
        return rational_tanh(x.detach(), torch.empty_like(x))
    result: Tensor = Tanh.apply(x)  # type: ignore[no-untyped-call]
    return result


def exp(x: Tensor) -> Tensor:
    """exp of float64 up to 0: 2^n times the Taylor series of exp(r), with |r| <= ln(2) / 2."""
    x = x.clamp(min=-700.0)
    n = (x * 1.4426950408889634).round_()
    r = (x - n * 0.6931471803691238).sub_(n * 1.9082149292705877e-10)  # ln 2 in two parts
    series = torch.full_like(r, 1 / math.factorial(13))
    for power in range(12, -1, -1):
        series.mul_(r).add_(1 / math.factorial(power))
    return series.mul_(((n.nan_to_num().long() + 1023) << 52).view(torch.float64))


def log(x: Tensor) -> Tensor:
    """log of float64 above 0: x = m 2^n, and log m = 2 artanh((m - 1) / (m + 1))."""
    m, n = torch.frexp(x)
    m, n = m * 2, n.double() - 1
    half = (m > math.sqrt(2)).double()
    m, n = m * (1 - 0.5 * half), n + half
    t = (m - 1) / (m + 1)
    q = t * t
    series = torch.full_like(q, 1 / 25)
    for power in range(23, 0, -2):
        series.mul_(q).add_(1 / power)
    return (series * t).mul_(2).add_(n * 0.6931471805599453)


def _sum_of_columns(x: Tensor) -> Tensor:
    """(B, N) to (B, 1), added from left to right."""
    result = x[:, :1]
    for column in range(1, x.shape[1]):
        result = result + x[:, column : column + 1]
    return result


def _powers(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` (B, N) less its largest in each row, as float64; exp of it; its sums (B, 1)."""
    x = x.double() - x.amax(1, keepdim=True).double()
    powers = exp(x)
    return x, powers, _sum_of_columns(powers)


def probabilities(x: Tensor) -> Tensor:
    """softmax of (B, N), as float64."""
    _, powers, sums = _powers(x)
    return powers / sums


class Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        p = probabilities(x).float()
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        to_x: Tensor = (gradient - _sum_of_columns(gradient * p)) * p
        return to_x


def softmax(x: Tensor) -> Tensor:
    """(B, N) to probabilities (B, N), with a gradient."""
    if is_exporting():
        return x.softmax(1)
    result: Tensor = Softmax.apply(x)  # type: ignore[no-untyped-call]
    return result


def _mean(losses: Tensor) -> Tensor:
    """The mean of (B, 1), float64. fsum rounds its sum once, at the end."""
    mean = math.fsum(losses.flatten().tolist()) / len(losses)
    return torch.tensor(mean, dtype=torch.float64, device=losses.device)


class CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, labels: Tensor) -> Tensor:
        x, powers, sums = _powers(x)
        labels = labels.unsqueeze(1)
        ctx.save_for_backward(powers / sums, labels)
        return _mean(log(sums) - x.gather(1, labels))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        p, labels = ctx.saved_tensors
        result = p.scatter(1, labels, p.gather(1, labels) - 1)
        return (result * (gradient * (1 / len(p)))).float(), None


def cross_entropy(x: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch, float64, of -log softmax(x)[label]; x (B, N), labels (B,)."""
    result: Tensor = CrossEntropy.apply(x, labels)  # type: ignore[no-untyped-call]
    return result


class SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, targets: Tensor) -> Tensor:
        x, powers, sums = _powers(x)
        ctx.save_for_backward(powers / sums, targets)
        return _mean(_sum_of_columns((log(sums) - x) * targets))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        p, targets = ctx.saved_tensors
        return ((p - targets) * (gradient * (1 / len(p)))).float(), None


def soft_cross_entropy(x: Tensor, targets: Tensor) -> Tensor:
    """Mean over the batch, float64, of -sum(targets * log softmax(x)); x (B, N).

    Args:
        targets: Probabilities (B, N), float64. Each row sums to 1.
    """
    result: Tensor = SoftCrossEntropy.apply(x, targets)  # type: ignore[no-untyped-call]
    return result
