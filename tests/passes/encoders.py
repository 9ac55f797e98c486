"""Small transformers with random weights, and how they are exported: what the tests of the fusions look at."""

import io
import warnings

import numpy as np
import onnx

from hasten.doors import load
from hasten.doors.onnx import from_proto
from hasten.model import Model
from hasten.passes.cleanup import Cleanup, cleanup
from hasten.passes.fold_constants import FoldConstants, fold_constants

WIDTH, HEADS, TOKENS = 32, 4, 8


def encoder(gelu: str = "none", attention: str = "by hand", norm: str = "layer"):
    """Two encoder layers and the mean over the tokens: x (N, 8, 32) → (N, 32); with a mask as second input if attention is `masked`.

    norm: `layer`; `rms`, torch's own RMS normalization; one `by hand`, as Llama has it.
    """
    import torch
    from torch import nn

    class ByHand(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.weight = nn.Parameter(1 + torch.rand(width))

        def forward(self, x):
            return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))

    made = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "by hand": ByHand}[norm]

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
            self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
            self.norm_1, self.norm_2 = made(WIDTH), made(WIDTH)

        def forward(self, x, bias=None):
            q, k, v = (part(x).reshape(x.shape[0], TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2) for part in (self.q, self.k, self.v))
            if attention in ("by hand", "masked"):
                scores = q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5
                mixed = torch.softmax(scores if bias is None else scores + bias, -1) @ v
            else:
                mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=attention == "causal")
            x = self.norm_1(x + self.out(mixed.transpose(1, 2).reshape(x.shape)))
            return self.norm_2(x + self.down(nn.functional.gelu(self.up(x), approximate=gelu)))

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Layer() for _ in range(2))

        def forward(self, x, mask=None):
            bias = None if mask is None else ((1.0 - mask.to(torch.float32)) * -10000.0)[:, None, None, :]
            for layer in self.layers:
                x = layer(x, bias)
            return x.mean(1)

    torch.manual_seed(0)
    return Encoder().eval()


def transformer_layer():
    """torch's own encoder layer."""
    from torch import nn

    return nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, batch_first=True, activation="gelu").eval()


def examples(masked: bool = False) -> tuple:
    """(x) or (x, mask) for a batch of two."""
    import torch

    x, mask = torch.randn(2, TOKENS, WIDTH), torch.ones(2, TOKENS, dtype=torch.int64)
    return (x, mask) if masked else (x,)


def exported(module, inputs: tuple, exporter: str) -> Model:
    """The model, by torch's exporter `dynamo` or by the older one at `opset N`, cleaned up."""
    if exporter == "dynamo":
        return cleaned(load(module, example_inputs=inputs).model)
    file, names = io.BytesIO(), [f"x{i}" for i in range(len(inputs))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch

        torch.onnx.export(
            module,
            inputs,
            file,
            dynamo=False,
            opset_version=int(exporter.removeprefix("opset ")),
            input_names=names,
            dynamic_axes={name: {0: "N"} for name in names},
        )
    return cleaned(from_proto(onnx.load_from_string(file.getvalue())))


def cleaned(model: Model) -> Model:
    """After what stands before the fusions."""
    return fold_constants(cleanup(model, Cleanup(), None), FoldConstants(), None)


def feeds(model: Model, batch: int = 3) -> dict[str, np.ndarray]:
    """Random inputs; a mask hides some positions, never all."""
    rng = np.random.default_rng(batch)
    made = {}
    for port in model.inputs:
        shape = [batch if not isinstance(d, int) else d for d in port.shape]
        made[port.name] = rng.standard_normal(shape).astype(np.float32) if "float" in port.dtype else rng.integers(0, 2, shape)
        if "int" in port.dtype:
            made[port.name][:, 0] = 1
    return made
