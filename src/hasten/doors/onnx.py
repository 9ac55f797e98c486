"""The ONNX door: a file or a proto becomes a Model: checked, lifted to the house's opset, its history restored. Nothing is folded here."""

from __future__ import annotations

import functools
import gzip
import lzma
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveInitializersFromInputsPass

from hasten import packed
from hasten.errors import BadInput, HastenError, Unsupported
from hasten.model import HISTORY_KEY, IR_VERSION, OPSET, Model, all_nodes, read_history
from hasten.shapes import infer

OLDEST_OPSET = 7
KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "hasten")
UNPACKED_LIMIT = 8 << 30
"""A compressed file may unpack to this many bytes at most."""


def load_onnx(path: str | os.PathLike[str], shapes: Mapping[str, int] | None = None, check: bool = True) -> Model:
    """Read an ONNX file (`.onnx`, compressed `.onnx.xz` / `.onnx.gz`, or packed by hasten, `.packed`). `check`: see `doors.load`.

    Raises BadInput for a file that is missing, empty, cut off, not ONNX or has NaN weights; Unsupported, naming node and operator,
    for what hasten can't carry.
    """
    file = Path(path)
    if not file.exists():
        raise BadInput(f"{file} does not exist; expected an ONNX file")
    if not file.is_file():
        raise BadInput(f"{file} is a folder; expected an ONNX file")
    if file.stat().st_size == 0:
        raise BadInput(f"{file} is empty; expected an ONNX file")
    data = _unpacked(file)
    if file.suffix == packed.SUFFIX or data[: len(packed.MAGIC)] == packed.MAGIC:
        return _from_packed(file, bytes(data), shapes, check)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, ValueError) as e:
        raise BadInput(f"{file} can't be read as ONNX ({e}): it is cut off or another format; export or copy it again") from e
    del data
    return from_proto(proto, file.parent, shapes, check)


def _from_packed(file: Path, data: bytes, shapes: Mapping[str, int] | None, check: bool) -> Model:
    """A Model from a packed file; one whose graph was made up is bad input too, whatever the libraries say to it."""
    proto = onnx.ModelProto.FromString(packed.unpack(data, str(file)))
    try:
        return from_proto(proto, None, shapes, check)
    except (HastenError, MemoryError):
        raise
    except Exception as e:
        text = " ".join(str(e).split())[:200]
        raise BadInput(f"{file} holds no graph that can be read ({type(e).__name__}: {text}); pack the model again") from e


def from_proto(proto: onnx.ModelProto, base: Path | None = None, shapes: Mapping[str, int] | None = None, check: bool = True) -> Model:
    """A Model from a ModelProto, which is left as it is. `base` is the folder that external data lies in; errors as `load_onnx`."""
    _refuse_nonsense(proto)
    _refuse_unknown_operators(proto)
    _check_external_data(proto, base)
    version = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), OPSET)
    if not check and version != OPSET and (lifted := _lifted_unread(proto)) is not None:
        proto, version = lifted, OPSET
    model = ir.from_proto(proto)
    if base is not None:
        ir.external_data.set_base_dir(model.graph, base)
    history = read_history(model)
    _refuse_training_mode(model)
    _refuse_bad_weights(model)
    if version != OPSET:
        # Before initializers leave the inputs: in files older than IR 4 the converter finds them there only.
        model = _lifted(model, version, check)
    model.opset_imports.pop("ai.onnx", None)
    RemoveInitializersFromInputsPass()(model)
    _name_all(model)
    _name_constants(model)
    ClearMetadataAndDocStringPass()(model)
    if shapes:
        _fix_axes(model, shapes)
    if check:
        infer(model)
    model.ir_version = IR_VERSION
    model.metadata_props.pop(HISTORY_KEY, None)
    _freeze(model)
    return Model(model, history)


def _unpacked(file: Path) -> bytes | memoryview:
    """The bytes of the ONNX file, mapped; a compressed one is unpacked up to a limit."""
    openers: dict[str, Any] = {".xz": lzma.open, ".gz": gzip.open}
    if file.suffix not in openers:
        with file.open("rb") as plain:
            return memoryview(mmap.mmap(plain.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        with openers[file.suffix](file, "rb") as f:
            data: bytes = f.read(UNPACKED_LIMIT + 1)
    except (OSError, EOFError, lzma.LZMAError) as e:
        raise BadInput(f"{file} can't be unpacked ({e}); it is cut off or not {file.suffix}") from e
    if len(data) > UNPACKED_LIMIT:
        raise BadInput(f"{file} unpacks to more than {UNPACKED_LIMIT >> 30} GiB; unpack it yourself if that is meant")
    return data


def _refuse_nonsense(proto: onnx.ModelProto) -> None:
    if not proto.HasField("graph") or not proto.opset_import:
        raise BadInput("this is not an ONNX model: it has no graph or no opset; expected a file that an exporter wrote")
    if not proto.graph.output:
        raise BadInput("the ONNX graph has no output: there is nothing to compute; export the model again")


def _refuse_unknown_operators(proto: onnx.ModelProto) -> None:
    """Unsupported for an operator that is neither in the standard, nor a contribution of onnxruntime's, nor a function of the file."""
    versions = {o.domain: o.version for o in proto.opset_import}
    version = versions.get("", versions.get("ai.onnx", OPSET))
    if version < OLDEST_OPSET:
        raise Unsupported(f"the model has opset {version}, hasten reads opset {OLDEST_OPSET} and newer; export it again with a newer opset")
    functions = {(f.domain, f.name) for f in proto.functions}

    def visit(nodes: Any) -> None:
        for node in nodes:
            where = f"node {node.name or node.output[0] if node.output else node.op_type!r} ({node.domain or 'ai.onnx'}::{node.op_type})"
            if (node.domain, node.op_type) not in functions:
                if node.domain not in KNOWN_DOMAINS:
                    raise Unsupported(
                        f"{where}: the operator's domain is unknown and the file has no function for it; export it in ONNX's own"
                    )
                if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type, domain="", max_inclusive_version=max(version, OPSET)):
                    raise Unsupported(f"{where}: ONNX has no such operator at opset {version}; export the model again")
                if node.domain == "ai.onnx.ml" and not onnx.defs.has(node.op_type, domain=node.domain):
                    raise Unsupported(f"{where}: ONNX has no such operator; export the model again")
                if node.domain == "com.microsoft" and node.op_type not in _contributed():
                    raise Unsupported(f"{where}: onnxruntime has no such operator; export the model again")
            for attribute in node.attribute:
                visit(attribute.g.node)
                for graph in attribute.graphs:
                    visit(graph.node)

    visit(proto.graph.node)


@functools.cache
def _contributed() -> frozenset[str]:
    """The operators that onnxruntime adds to ONNX's."""
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    return frozenset(schema.name for schema in ort.get_all_operator_schema() if schema.domain == "com.microsoft")


def _check_external_data(proto: onnx.ModelProto, base: Path | None) -> None:
    """External data only below the model's own folder, and as long as it claims, before any of it is allocated. Raises BadInput."""
    for tensor in proto.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {e.key: e.value for e in tensor.external_data}
        location, what = entries.get("location", ""), f"weight {tensor.name!r}"
        if base is None:
            raise BadInput(f"{what} lies in an external file, and a model in memory has no folder; give the path of the file")
        place = (base / location).resolve()
        if not location or Path(location).is_absolute() or not place.is_relative_to(base.resolve()):
            raise BadInput(f"{what} points outside of the model's folder ({location!r}); external data must lie below it")
        if not place.is_file():
            raise BadInput(f"{what} lies in {location!r}, which does not exist beside the model; copy it there")
        try:
            offset = int(entries.get("offset", 0))
            expected = int(np.prod(tensor.dims, dtype=object)) * ir.DataType(tensor.data_type).bitwidth // 8 if tensor.dims else 1
            length = int(entries.get("length", expected))
        except ValueError as e:
            raise BadInput(f"{what} has external data with offset or length that are no numbers ({e})") from e
        if offset < 0 or length < 0 or offset + length > place.stat().st_size or length < expected:
            raise BadInput(
                f"{what} claims bytes {offset} to {offset + max(length, expected)} of {location!r}, which has {place.stat().st_size}; "
                "it is cut off: copy it again"
            )


def _refuse_training_mode(model: ir.Model) -> None:
    for node in all_nodes(model.graph):
        where = f"node {node.name or node.outputs[0].name!r} ({node.op_type})"
        if node.op_type == "BatchNormalization" and node.attributes.get_int("training_mode", 0) != 0:
            raise Unsupported(f"{where} is in training mode: export the model in eval mode")
        if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
            mode = ir.convenience.get_const_tensor(node.inputs[2])
            if mode is None or bool(mode.numpy().any()):
                raise Unsupported(f"{where} is in training mode: export the model in eval mode")


def _refuse_bad_weights(model: ir.Model) -> None:
    """NaN or infinite weights, and weights whose bytes do not fit their shape. Raises BadInput."""
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            raise BadInput(f"weight {name!r} has no data; export the model again")
        try:
            if tensor.dtype.is_floating_point() and tensor.dtype.bitwidth >= 16:
                array = tensor.numpy()
                if not np.isfinite(array).all():
                    raise BadInput(
                        f"weight {name!r} holds {int(np.sum(~np.isfinite(array)))} values that are NaN or infinite; "
                        "train or export the model again"
                    )
            elif tensor.dtype != ir.DataType.STRING:
                tensor.numpy()
        except (ValueError, TypeError) as e:
            raise BadInput(f"weight {name!r} can't be read: its data does not fit shape {list(tensor.shape)} ({e})") from e


def _lifted_unread(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """The same graph at opset 21 without a look at it, which for 10,000 nodes is a second; None where that fails: `_lifted` says why."""
    try:
        lifted = onnx.version_converter.convert_version(proto, OPSET)
    except Exception:  # noqa: BLE001 - the converters raise all kinds; the long way tells them apart
        return None
    kept = {entry.key for entry in lifted.metadata_props}
    for entry in proto.metadata_props:
        if entry.key in kept:
            continue
        lifted.metadata_props.add(key=entry.key, value=entry.value)
    return lifted


def _lifted(model: ir.Model, version: int, compare: bool) -> ir.Model:
    """The same graph at opset 21. Raises Unsupported where the converters can't, or where the results differ."""
    from hasten import check

    before = ir.to_proto(model)
    try:
        after = onnx.version_converter.convert_version(before, OPSET)
    except Exception as e:
        raise Unsupported(f"the model has opset {version} and can't be lifted to {OPSET}: {' '.join(str(e).split())[:300]}") from e
    lifted = ir.from_proto(after)
    lifted.metadata_props.update(model.metadata_props)
    if not compare:
        return lifted
    before_inputs, after_inputs = (RemoveInitializersFromInputsPass()(m.clone()).model for m in (model, lifted))
    try:
        check.same(Model(before_inputs), Model(after_inputs), within=check.FLOAT32)
    except check.CheckFailed as e:
        raise Unsupported(f"lifting the model from opset {version} to {OPSET} changes its results: {e}") from e
    return lifted


def _name_all(model: ir.Model) -> None:
    """Every node gets a name of its own."""
    seen: set[str] = set()
    for number, node in enumerate(all_nodes(model.graph)):
        name = node.name or f"{node.op_type}_{number}"
        while name in seen:
            name = f"{name}_{number}"
        node.name = name
        seen.add(name)


def _name_constants(model: ir.Model) -> None:
    """The tensor in a Constant bears its output's name: onnx_ir would write it there later, into a tensor that all clones share."""
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for node in [n for body in bodies for n in all_nodes(body)]:
        attribute = node.attributes.get("value")
        if node.op_type != "Constant" or node.domain != "" or attribute is None or attribute.is_ref():
            continue
        tensor = attribute.as_tensor()
        if tensor.dtype != ir.DataType.STRING:
            named = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=tensor.shape, name=node.outputs[0].name)  # type: ignore[arg-type]
            node.attributes["value"] = ir.AttrTensor("value", named)


def _fix_axes(model: ir.Model, shapes: Mapping[str, int]) -> None:
    """Give named dynamic axes of the inputs a size. Raises BadInput listing the axes that there are."""
    names = {str(d) for v in model.graph.inputs if v.shape is not None for d in v.shape if not isinstance(d, int)}
    if unknown := sorted(set(shapes) - names):
        raise BadInput(f"the model has no dynamic axis {unknown[0]!r}; it has {', '.join(sorted(names)) or 'none'}")
    for value in [*model.graph.inputs, *model.graph.outputs]:
        if value.shape is not None:
            value.shape = ir.Shape([shapes.get(str(d), d) if not isinstance(d, int) else d for d in value.shape])
    for node in all_nodes(model.graph):
        for value in node.outputs:
            if value.shape is not None and value not in model.graph.outputs:
                value.shape = None


def _freeze(model: ir.Model) -> None:
    """Make the weights' arrays read-only: clones share them."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.Tensor) and isinstance(tensor.raw, np.ndarray):
            tensor.raw.flags.writeable = False
