"""The torch door: an nn.Module or ExportedProgram becomes a Model, checked against the module's own prediction. Batch norm is kept."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from hasten.doors import Loaded, Origin
from hasten.doors.onnx import from_proto
from hasten.errors import BadInput, Unsupported
from hasten.model import OPSET, Model

BATCHES = (1, 2, 5)
"""Batch sizes at which the ONNX model is compared with the module."""

TOLERANCE = 1e-3
"""Largest error allowed, relative to the output's own scale: two float32 libraries that order their sums in other ways."""


def load_torch(source: Any, example_inputs: Any, shapes: Mapping[str, int] | None, workdir: Path) -> Loaded:
    """Export a copy in eval mode, batch dynamic where the module allows it.

    example_inputs: an array, a tuple or a dict by argument name (numpy or torch); an ExportedProgram brings its own.
    Raises BadInput without example inputs, Unsupported for what torch can't export, or what computes something else once exported.
    """
    notes: list[str] = []
    if isinstance(source, Path):
        try:
            with _quiet():
                source = torch.export.load(source)
        except Exception as e:
            raise BadInput(f"{source} can't be read as a torch ExportedProgram: {_one_line(e)}") from e
    if isinstance(source, torch.export.ExportedProgram):
        program = source
        args, kwargs = source.example_inputs or ((), {})
    else:
        args, kwargs = _examples(example_inputs)
        program = export(source, args, kwargs, notes)
    proto, names = to_onnx(program, args, kwargs)
    model = from_proto(proto, None, shapes)
    feeds_names = [p.name for p in model.inputs]
    tensors = [*args, *kwargs.values()]
    if len(tensors) != len(feeds_names):
        raise Unsupported(f"the module takes {len(tensors)} tensors, the exported graph {len(feeds_names)}; pass only tensors that it uses")
    dynamic = any(p.shape and not isinstance(p.shape[0], int) for p in model.inputs)
    _check(program, model, args, kwargs, dynamic)
    path = workdir / "origin.pt2"
    torch.export.save(program, path)
    (workdir / "origin.names").write_text("\n".join([*feeds_names, "", *names]))
    notes.append(
        f"torch {torch.__version__}: exported, compared with the module at batch {', '.join(map(str, BATCHES if dynamic else BATCHES[:1]))}"
    )
    return Loaded(model, Origin("torch", path), tuple(notes))


def _examples(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named tensors from what the user gave."""
    if given is None:
        raise BadInput("a torch module needs example inputs to be exported; give --example-input 1x3x224x224, or example_inputs=")
    if isinstance(given, Mapping):
        return (), {k: _tensor(v) for k, v in given.items()}
    if isinstance(given, (tuple, list)):
        return tuple(_tensor(v) for v in given), {}
    return (_tensor(given),), {}


def _tensor(value: Any) -> Any:
    return value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))


def export(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], notes: list[str]) -> Any:
    """A copy in eval mode as an ExportedProgram: with a dynamic batch, else with a fixed one, and said so. The module is left as it is."""
    module = copy.deepcopy(module).eval()
    batch = torch.export.Dim("batch", min=1, max=1 << 16)

    def dynamic(tensor: Any) -> dict[int, Any] | None:
        return {0: batch} if isinstance(tensor, torch.Tensor) and tensor.ndim else None

    # A batch of 1 would be burnt in: torch specialises sizes of 0 and 1.
    wide_args = tuple(_widened(a) for a in args)
    wide_kwargs = {k: _widened(v) for k, v in kwargs.items()}
    dims = tuple(dynamic(a) for a in args), {k: dynamic(v) for k, v in kwargs.items()}
    for a, k, shapes in ((wide_args, wide_kwargs, dims), (args, kwargs, None)):
        try:
            with _quiet(), torch.no_grad():
                return torch.export.export(module, a, k, dynamic_shapes=_by_argument(module, shapes), strict=False)
        except Exception as e:
            if shapes is None:
                raise Unsupported(f"torch can't export the module: {_one_line(e)}") from e
            notes.append(f"the batch is fixed at {len(args[0]) if args else '?'}: with a dynamic one the export fails ({_one_line(e)})")
    raise AssertionError("the last attempt returns or raises")


def _by_argument(module: Any, shapes: tuple[tuple[Any, ...], dict[str, Any]] | None) -> Any:
    """Dynamic axes as torch.export wants them: by argument name, those of `*tensors` in a tuple of their own."""
    if shapes is None:
        return None
    parameters = list(inspect.signature(module.forward).parameters.values())
    if parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return {parameters[0].name: shapes[0]}
    return dict(zip((p.name for p in parameters), shapes[0], strict=False)) | shapes[1]


def _widened(tensor: Any) -> Any:
    if not isinstance(tensor, torch.Tensor) or not tensor.ndim or tensor.shape[0] != 1:
        return tensor
    return torch.cat([tensor, tensor])


def to_onnx(program: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[onnx.ModelProto, list[str]]:
    """The ONNX proto, its outputs under names that nothing else has: an output named like an inner value makes a file no runtime loads."""
    try:
        with _quiet(), torch.no_grad():
            exported = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False, opset_version=OPSET)
    except Exception as e:
        raise Unsupported(f"torch can't export the module to ONNX: {_one_line(e)}") from e
    assert exported is not None
    model = exported.model
    inner = {o.name for n in model.graph for o in n.outputs} | {v.name for v in model.graph.inputs} | set(model.graph.initializers)
    names: list[str] = []
    for number, value in enumerate(list(model.graph.outputs)):
        name = "output" if len(model.graph.outputs) == 1 else f"output_{number}"
        while name in inner:
            name += "_"
        inner.add(name)
        producer = value.producer()
        if producer is None or value.is_initializer() or list(model.graph.outputs).count(value) > 1 or value.is_graph_input():
            node = ir.node("Identity", [value], name=f"{name}_identity")
            node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, value.type, value.shape
            model.graph.append(node)
            model.graph.outputs[number] = node.outputs[0]
        else:
            value.name = name
        names.append(name)
    _split_plainly(model)
    _name_batch(model)
    _drop_junk(model)
    return ir.to_proto(model), names


def _split_plainly(model: ir.Model) -> None:
    """torch writes `split` and `chunk` as a sequence that is taken apart again, under a type that no runtime loads: one Split is the same."""
    for node in list(model.graph):
        if node.op_type != "SplitToSequence" or not node.attributes.get_int("keepdims", 1) or len(node.inputs) < 2:
            continue
        source, stored = node.inputs[0], ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
        readers = [use.node for use in node.outputs[0].uses()]
        places = [
            ir.convenience.get_const_tensor(r.inputs[1]) if r.op_type == "SequenceAt" and r.inputs[1] is not None else None for r in readers
        ]
        if source is None or source.shape is None or stored is None or any(place is None for place in places):
            continue
        axis = node.attributes.get_int("axis", 0) or 0
        whole, sizes = source.shape[axis], stored.numpy().reshape(-1).tolist()
        if not stored.shape.rank() and isinstance(whole, int):
            sizes = [min(sizes[0], whole - start) for start in range(0, whole, sizes[0])]
        elif not stored.shape.rank():
            continue
        given = ir.node("Constant", [], {"value": ir.tensor(np.array(sizes, np.int64))}, name=f"{node.name}_sizes")
        given.outputs[0].name = f"{node.name}_sizes_value"
        made = ir.node("Split", [source, given.outputs[0]], {"axis": axis}, num_outputs=len(sizes), name=f"{node.name}_plain")
        for number, output in enumerate(made.outputs):
            output.name = f"{node.name}_part_{number}"
        model.graph.insert_before(node, [given, made])
        for reader, place in zip(readers, places, strict=True):
            assert place is not None
            old, new = reader.outputs[0], made.outputs[int(place.numpy())]
            new.type, new.shape = old.type, old.shape
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            if new.is_graph_output():
                old.name, new.name = f"{old.name}_", old.name
            model.graph.remove(reader, safe=True)
        model.graph.remove(node, safe=True)


def _name_batch(model: ir.Model) -> None:
    """torch calls a dynamic batch s77 or the like; call it `batch`. Shapes in between are inferred again by the ONNX door."""
    first = next((v.shape[0] for v in model.graph.inputs if v.shape is not None and len(v.shape)), None)
    if first is None or isinstance(first, int):
        return
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    for value in [*model.graph.inputs, *model.graph.outputs]:
        if value.shape is not None:
            value.shape = ir.Shape(["batch" if not isinstance(d, int) and str(d) == str(first) else d for d in value.shape])


def _drop_junk(model: ir.Model) -> None:
    """Inline torch's helper functions; our own domain stays."""
    from onnx_ir.passes.common import InlinePass, RemoveUnusedFunctionsPass, RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

    for step in (InlinePass, RemoveUnusedNodesPass, RemoveUnusedFunctionsPass, RemoveUnusedOpsetsPass):
        step()(model)  # type: ignore[no-untyped-call,unused-ignore]


def _check(program: Any, model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: bool) -> None:
    """Raises Unsupported where the ONNX model and the module differ on inputs like the examples, at several batch sizes."""
    from hasten import check

    session = check.oracle(model)
    module = program.module()
    rng = np.random.default_rng(0)
    tensors = [*args, *kwargs.values()]
    for batch in BATCHES if dynamic else (None,):
        values = [_like(t, batch, rng) for t in tensors]
        with torch.no_grad():
            given = dict(zip(kwargs, values[len(args) :], strict=True))
            expected = torch.utils._pytree.tree_leaves(module(*values[: len(args)], **given))
        found = session.run(None, {p.name: v.numpy() for p, v in zip(model.inputs, values, strict=True)})
        for port, a, b in zip(model.outputs, expected, found, strict=True):
            reference = a.detach().to(torch.float64).numpy() if a.is_floating_point() else a.numpy()
            scale = float(np.max(np.abs(reference), initial=0.0))
            error = float(np.max(np.abs(reference - b), initial=0.0)) if reference.shape == b.shape else float("inf")
            if not error <= TOLERANCE * max(scale, 1e-6):
                raise Unsupported(
                    f"the exported graph is not the module: output {port.name!r} at batch {len(b) if b.ndim else 1} is off by {error:.3g} "
                    f"at scale {scale:.3g}, {TOLERANCE:g} of it is allowed"
                )


def _like(tensor: Any, batch: int | None, rng: np.random.Generator) -> Any:
    """Random values of an example's type, range and shape, at another batch size."""
    shape = list(tensor.shape)
    if batch is not None and shape:
        shape[0] = batch
    if tensor.is_floating_point():
        low, high = float(tensor.min()), float(tensor.max())
        return torch.from_numpy(rng.uniform(low, high if high > low else low + 1, shape)).to(tensor.dtype)
    low, high = int(tensor.min()), int(tensor.max())
    return torch.from_numpy(rng.integers(low, high + 1, shape)).to(tensor.dtype)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter prints and warns on the way; what counts is what comes out, and that is checked."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _one_line(error: BaseException, limit: int = 300) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", " ".join(str(error).split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"
