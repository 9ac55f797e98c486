"""LSTM, GRU and RNN: torch's fused kernels where the attributes allow, else step by step. Weights keep ONNX's layout; gradients flow to it.

Shapes, with D directions: x (T, N, I), W (D, G H, I), R (D, G H, H), B (D, 2 G H), states (D, N, H); y (T, D, N, H). layout = 1: batch first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

Tensor = Any

LSTM_ORDER, GRU_ORDER = (0, 2, 3, 1), (1, 0, 2)
"""Places of torch's gates (i, f, g, o; r, z, n) among ONNX's (i, o, f, c; z, r, h)."""

ACTIVATIONS: dict[str, Callable[[Tensor, float | None, float | None], Tensor]] = {
    "sigmoid": lambda x, a, b: torch.sigmoid(x),
    "tanh": lambda x, a, b: torch.tanh(x),
    "relu": lambda x, a, b: torch.relu(x),
    "softsign": lambda x, a, b: F.softsign(x),
    "softplus": lambda x, a, b: F.softplus(x),
    "affine": lambda x, a, b: (1.0 if a is None else a) * x + (0.0 if b is None else b),
    "leakyrelu": lambda x, a, b: F.leaky_relu(x, 0.01 if a is None else a),
    "elu": lambda x, a, b: F.elu(x, 1.0 if a is None else a),
    "hardsigmoid": lambda x, a, b: torch.clamp((0.2 if a is None else a) * x + (0.5 if b is None else b), 0, 1),
    "scaledtanh": lambda x, a, b: (1.0 if a is None else a) * torch.tanh((1.0 if b is None else b) * x),
    "thresholdedrelu": lambda x, a, b: torch.where(x > (1.0 if a is None else a), x, torch.zeros_like(x)),
}


def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    c: Tensor | None = None,
    p: Tensor | None = None,
    *,
    outputs: int,
    activation_alpha: tuple[float, ...] = (),
    activation_beta: tuple[float, ...] = (),
    activations: tuple[str, ...] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """(y, last h, last c). Hochreiter and Schmidhuber, 1997; peepholes p (D, 3 H) where given."""
    x, h, c = (_batch_second(v, layout) for v in (x, h, c))
    h, c = _state(h, x, r), _state(c, x, r)
    names = tuple(a.lower() for a in activations) or ("sigmoid", "tanh", "tanh") * w.shape[0]
    plain = names == ("sigmoid", "tanh", "tanh") * w.shape[0] and clip is None and lengths is None and p is None and not input_forget
    if plain:
        y, *last = _fused(
            lambda x, s, params, two: torch.lstm(x, s, params, True, 1, 0.0, False, two, False), x, w, r, b, (h, c), LSTM_ORDER, direction
        )
        return _laid(y, layout), *(_batch_first(v, layout) for v in last)
    apply = _activations(names, activation_alpha, activation_beta)

    def step(d: int, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = state
        f, g, o_act = apply[3 * d : 3 * d + 3]
        i, o, forget, new = _limited(_gates(x, h, w[d], r[d], None if b is None else b[d]), clip).chunk(4, -1)
        pi, po, pf = (0.0, 0.0, 0.0) if p is None else p[d].chunk(3)
        i = f(i + pi * c)
        forget = 1 - i if input_forget else f(forget + pf * c)
        c = forget * c + i * g(new)
        return f(o + po * c) * o_act(c), c

    y, ends = _steps(step, x, lengths, (h, c), direction)
    return _laid(y, layout), *(_batch_first(v, layout) for v in ends)


def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    *,
    outputs: int,
    activation_alpha: tuple[float, ...] = (),
    activation_beta: tuple[float, ...] = (),
    activations: tuple[str, ...] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Tensor, ...]:
    """(y, last h). Cho et al., arXiv 1406.1078; linear_before_reset = 1 is cuDNN's and torch's variant."""
    x, h = (_batch_second(v, layout) for v in (x, h))
    h = _state(h, x, r)
    names = tuple(a.lower() for a in activations) or ("sigmoid", "tanh") * w.shape[0]
    if names == ("sigmoid", "tanh") * w.shape[0] and clip is None and lengths is None and linear_before_reset:
        y, last = _fused(
            lambda x, s, params, two: torch.gru(x, s[0], params, True, 1, 0.0, False, two, False), x, w, r, b, (h,), GRU_ORDER, direction
        )
        return _laid(y, layout), _batch_first(last, layout)
    apply = _activations(names, activation_alpha, activation_beta)

    def step(d: int, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (h,) = state
        f, g = apply[2 * d : 2 * d + 2]
        size = h.shape[-1]
        wb, rb = (None, None) if b is None else b[d].chunk(2)
        a = F.linear(x, w[d], wb)
        gates = a[:, : 2 * size] + F.linear(h, r[d][: 2 * size], None if rb is None else rb[: 2 * size])
        z, reset = f(_limited(gates, clip)).chunk(2, -1)
        tail, tail_bias = r[d][2 * size :], None if rb is None else rb[2 * size :]
        inner = reset * F.linear(h, tail, tail_bias) if linear_before_reset else F.linear(reset * h, tail, tail_bias)
        return ((1 - z) * g(_limited(a[:, 2 * size :] + inner, clip)) + z * h,)

    y, (last,) = _steps(step, x, lengths, (h,), direction)
    return _laid(y, layout), _batch_first(last, layout)


def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    *,
    outputs: int,
    activation_alpha: tuple[float, ...] = (),
    activation_beta: tuple[float, ...] = (),
    activations: tuple[str, ...] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """(y, last h): h ← f(W x + R h + b)."""
    x, h = (_batch_second(v, layout) for v in (x, h))
    h = _state(h, x, r)
    names = tuple(a.lower() for a in activations) or ("tanh",) * w.shape[0]
    kernels = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}
    if len(set(names)) == 1 and names[0] in kernels and clip is None and lengths is None:
        kernel = kernels[names[0]]
        y, last = _fused(
            lambda x, s, params, two: kernel(x, s[0], params, True, 1, 0.0, False, two, False), x, w, r, b, (h,), (0,), direction
        )
        return _laid(y, layout), _batch_first(last, layout)
    apply = _activations(names, activation_alpha, activation_beta)

    def step(d: int, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (apply[d](_limited(_gates(x, state[0], w[d], r[d], None if b is None else b[d]), clip)),)

    y, (last,) = _steps(step, x, lengths, (h,), direction)
    return _laid(y, layout), _batch_first(last, layout)


def _batch_second(value: Tensor | None, layout: int) -> Tensor | None:
    return value.transpose(0, 1) if layout and value is not None else value


def _batch_first(value: Tensor, layout: int) -> Tensor:
    return value.transpose(0, 1) if layout else value


def _laid(y: Tensor, layout: int) -> Tensor:
    """(T, D, N, H), batch first (N, T, D, H)."""
    return y.permute(2, 0, 1, 3) if layout else y


def _state(given: Tensor | None, x: Tensor, r: Tensor) -> Tensor:
    return x.new_zeros(r.shape[0], x.shape[1], r.shape[2]) if given is None else given


def _fused(
    kernel: Callable[..., Any],
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    states: tuple[Tensor, ...],
    order: tuple[int, ...],
    direction: str,
) -> tuple[Tensor, ...]:
    """One layer in torch's kernel, gates in its order. `reverse` is `forward` over the flipped sequence."""
    gates, two = len(order), direction == "bidirectional"

    def ordered(weight: Tensor) -> Tensor:
        return weight if gates == 1 else torch.cat([weight.chunk(gates)[i] for i in order])

    params: list[Tensor] = []
    for d in range(w.shape[0]):
        bias = (x.new_zeros(w.shape[1]),) * 2 if b is None else b[d].chunk(2)
        params += [ordered(w[d]), ordered(r[d]), ordered(bias[0]), ordered(bias[1])]
    y, *last = kernel(x.flip(0) if direction == "reverse" else x, tuple(s.contiguous() for s in states), params, two)
    y = y.reshape(y.shape[0], y.shape[1], w.shape[0], -1).transpose(1, 2)
    return y.flip(0) if direction == "reverse" else y, *last


def _activations(names: tuple[str, ...], alphas: tuple[float, ...], betas: tuple[float, ...]) -> list[Callable[[Tensor], Tensor]]:
    """Each activation with its α and β; the lists hold them for those that have any, in order."""
    found: list[Callable[[Tensor], Tensor]] = []
    alpha, beta = iter(alphas), iter(betas)
    for name in names:
        function = ACTIVATIONS[name]
        a = next(alpha, None) if name in ("affine", "leakyrelu", "elu", "hardsigmoid", "scaledtanh", "thresholdedrelu") else None
        b = next(beta, None) if name in ("affine", "hardsigmoid", "scaledtanh") else None
        found.append(lambda x, function=function, a=a, b=b: function(x, a, b))  # type: ignore[misc]
    return found


def _gates(x: Tensor, h: Tensor, w: Tensor, r: Tensor, b: Tensor | None) -> Tensor:
    wb, rb = (None, None) if b is None else b.chunk(2)
    return F.linear(x, w, wb) + F.linear(h, r, rb)


def _limited(x: Tensor, clip: float | None) -> Tensor:
    return x if clip is None else torch.clamp(x, -clip, clip)


def _steps(
    step: Callable[[int, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]],
    x: Tensor,
    lengths: Tensor | None,
    states: tuple[Tensor, ...],
    direction: str,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Step by step in each direction. Beyond a sample's length its state stays and its output is 0."""
    backwards = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    ys, lasts = [], []
    for d, back in enumerate(backwards):
        state = tuple(s[d] for s in states)
        outs: list[Tensor] = [x] * x.shape[0]
        for t in reversed(range(x.shape[0])) if back else range(x.shape[0]):
            new = step(d, x[t], state)
            if lengths is None:
                state, outs[t] = new, new[0]
            else:
                alive = (t < lengths).unsqueeze(1)
                state = tuple(torch.where(alive, n, o) for n, o in zip(new, state, strict=True))
                outs[t] = torch.where(alive, new[0], torch.zeros_like(new[0]))
        ys.append(torch.stack(outs))
        lasts.append(state)
    return torch.stack(ys, 1), tuple(torch.stack(parts) for parts in zip(*lasts, strict=True))
