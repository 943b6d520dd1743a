# SPDX-License-Identifier: BSD-3-Clause
"""The accelerator's top: layers, the FIFOs between them, and an AXI-Stream at either end."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx import NodeProto
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import getCustomOp
from qonnx.transformation.general import GiveUniqueNodeNames

from brevitas_divqat.errors import HardwareError
from brevitas_divqat.files import make_folder, write_text
from brevitas_divqat.progress import Progress, silent

from .layers import HDL, LayerModule, stream_width, translate_layer
from .layout import FILE_LIST, LAYOUT_FILE, Channel, InputStream, Layer, Layout, OutputStream
from .patches import patched

__all__ = ["TOP", "resize_fifos", "write_rtl"]

TOP = "accelerator"
TOP_FILE = f"{TOP}.sv"
LAYERS_FILE = "layers.sv"
LEAST_DEPTH = 2
USUAL_DEPTH = 32
"""Words of a FIFO before the depths are measured: enough to level out neighbours' pauses."""


def write_rtl(
    dataflow: ModelWrapper,
    folder: Path,
    *,
    part: str,
    clock_ns: float,
    model_sha256: str,
    exported_sha256: str,
    estimates: Mapping[str, Mapping[str, float]] | None = None,
    progress: Progress = silent,
) -> Layout:
    """Write a folded hardware graph as SystemVerilog.

    Args:
        dataflow: what `fold` gave; not changed.
        folder: receives the RTL; created.
        part: the device.
        clock_ns: clock period in ns.
        model_sha256: of the integer graph's file.
        exported_sha256: of the exported graph that it was made from.
        estimates: FINN's estimates of resources by node, kept in `rtl.json`.
        progress: shows the layers.

    Returns:
        What `rtl.json` in the folder says.

    Raises:
        HardwareError: if a layer has no RTL.
        ToolError: if finn-rtllib is not the one that this version was made for.
    """
    model = _with_converters(dataflow, part)
    modules: dict[str, LayerModule] = {}
    with progress("generating RTL", len(model.graph.node)) as show:
        for node in model.graph.node:
            with tempfile.TemporaryDirectory() as scratch:
                modules[node.name] = translate_layer(
                    node, model, part=part, clock_ns=clock_ns, scratch=Path(scratch)
                )
            show(1, node.name)
    layout = _layout(model, modules, estimates or {})
    layout = replace(
        layout,
        part=part,
        clock_ns=clock_ns,
        model_sha256=model_sha256,
        exported_sha256=exported_sha256,
    )
    make_folder(folder)
    (folder / LAYOUT_FILE).unlink(missing_ok=True)
    sources = _sources(modules)
    for name, text in sources.items():
        write_text(folder / name, text)
    for module in modules.values():
        for name, text in module.memories.items():
            write_text(folder / name, text)
    write_text(folder / LAYERS_FILE, _header() + "\n".join(m.text for m in modules.values()))
    write_text(folder / TOP_FILE, _top_text(model, modules, layout))
    files = [*sources, LAYERS_FILE, TOP_FILE]
    write_text(folder / FILE_LIST, "".join(f"{name}\n" for name in _packages_first(files)))
    layout.write(folder)  # last: without it the folder is not taken for RTL
    return layout


def resize_fifos(folder: Path, depths: Mapping[str, int]) -> Layout:
    """Give the FIFOs of written RTL other depths.

    Args:
        folder: what `write_rtl` wrote.
        depths: words by FIFO, at least 2 each; FIFOs that are not named keep theirs.

    Raises:
        HardwareError: if the folder holds no RTL, it is damaged, or there is no such FIFO.
    """
    layout = Layout.read(folder)
    known = {channel.fifo for channel in layout.channels}
    if not depths.keys() <= known:
        unknown = sorted(depths.keys() - known)
        raise HardwareError(f"{folder} has no FIFO {unknown[0]}: it has {', '.join(sorted(known))}")
    channels = tuple(
        replace(channel, depth=max(LEAST_DEPTH, depths.get(channel.fifo, channel.depth)))
        for channel in layout.channels
    )
    text = (folder / TOP_FILE).read_text(encoding="utf-8")
    for channel in channels:
        # Whatever depth it has there: an interruption may have left another one than the layout's.
        head = rf"  stream_fifo #\(\.BITS\({channel.bits}\), \.DEPTH\(\d+\)\) {channel.fifo} \("
        text, found = re.subn(head, _fifo_head(channel), text)
        if found != 1:
            raise HardwareError(
                f"{folder / TOP_FILE} has {found} FIFOs {channel.fifo} of {channel.bits} bits, "
                "expected 1: build the folder again"
            )
    write_text(folder / TOP_FILE, text)
    layout = replace(layout, channels=channels)
    layout.write(folder)
    return layout


def _with_converters(dataflow: ModelWrapper, part: str) -> ModelWrapper:
    """Insert width converters where a layer's words have more elements than the next one's."""
    from finn.transformation.fpgadataflow.insert_dwc import InsertDWC
    from finn.transformation.fpgadataflow.specialize_layers import SpecializeLayers

    layers = {name: node.doc_string for node in dataflow.graph.node for name in node.output}
    model = dataflow.transform(InsertDWC())
    for node in model.graph.node:
        if node.op_type == "StreamingDataWidthConverter":
            getCustomOp(node).set_nodeattr("preferred_impl_style", "rtl")
            layers[node.output[0]] = layers[node.input[0]]
    model = model.transform(SpecializeLayers(part)).transform(GiveUniqueNodeNames())
    for node in model.graph.node:
        node.doc_string = layers[node.output[0]]
    return model


def _header() -> str:
    return "// Generated by `divqat build`; changes are lost when the folder is built again.\n\n"


def _sources(modules: Mapping[str, LayerModule]) -> dict[str, str]:
    """Return the files that the layers need, with their edits, and those of the top."""
    from finn.util.settings import get_settings

    sources: dict[str, str] = {}
    for module in modules.values():
        sources |= {name: patched(name, text) for name, text in module.sources.items()}
    fifo = Path(get_settings().finn_rtllib) / "fifo/hdl/fifo.sv"
    sources["fifo.sv"] = patched("fifo.sv", fifo.read_text())
    for name in ("stream_fifo.sv", "stream_scores.sv"):
        sources[name] = (HDL / name).read_text()
    return sources


def _packages_first(files: list[str]) -> list[str]:
    return sorted(files, key=lambda name: not name.endswith("_pkg.sv"))


# What there is


@dataclass(frozen=True)
class _Edge:
    """A stream from one layer to the next."""

    producer: NodeProto
    output: int
    consumer: NodeProto
    input: int
    words: int


def _edges(model: ModelWrapper) -> list[_Edge]:
    edges = []
    for node in model.graph.node:
        for index, tensor in enumerate(node.output):
            consumer = model.find_consumer(tensor)
            if consumer is not None:
                words = math.prod(getCustomOp(node).get_folded_output_shape(index)[:-1])
                entry = list(consumer.input).index(tensor)
                edges.append(_Edge(node, index, consumer, entry, words))
    return edges


def _layout(
    model: ModelWrapper,
    modules: Mapping[str, LayerModule],
    estimates: Mapping[str, Mapping[str, float]],
) -> Layout:
    first, last = _ends(model)
    entry: Any = getCustomOp(first)
    leaving: Any = getCustomOp(last)
    given, scores = entry.get_input_datatype(), leaving.get_output_datatype()
    elements = entry.get_folded_input_shape()[-1]
    shape = model.get_tensor_shape(model.graph.input[0].name)
    outputs = model.get_tensor_shape(model.graph.output[0].name)[-1]
    layers = tuple(
        Layer(
            name=node.name,
            kind=node.op_type.rsplit("_", 1)[0],
            layer=node.doc_string,
            instance=f"layer_{node.name}",
            module=modules[node.name].name,
            cycles=int(getCustomOp(node).get_exp_cycles()),
            estimate=dict(estimates.get(node.name, {})),
        )
        for node in model.graph.node
    )
    return Layout(
        top=TOP,
        input=InputStream(
            bits=given.bitwidth(),
            signed=given.signed(),
            elements_per_word=elements,
            word_bits=modules[first.name].inputs[0],
            words_per_frame=math.prod(shape) // elements,
            shape=(shape[1], shape[2], shape[3]),
        ),
        output=OutputStream(
            bits=scores.bitwidth(),
            signed=scores.signed(),
            elements_per_word=1,
            word_bits=stream_width(scores.bitwidth()),
            words_per_frame=outputs,
            outputs=outputs,
        ),
        channels=tuple(
            Channel(
                name=f"{edge.producer.name} -> {edge.consumer.name}",
                fifo=f"fifo_{i}",
                bits=modules[edge.producer.name].outputs[edge.output],
                depth=_first_depth(edge),
            )
            for i, edge in enumerate(_edges(model))
        ),
        layers=layers,
        cycles_per_frame=max(layer.cycles for layer in layers),
        part="",
        clock_ns=0.0,
        model_sha256="",
        exported_sha256="",
    )


def _first_depth(edge: _Edge) -> int:
    """Choose a depth before any is measured.

    Where two branches join, one waits for the other, for a frame at most.
    """
    joins = edge.consumer.op_type.startswith("ElementwiseAdd")
    return max(LEAST_DEPTH, edge.words) if joins else USUAL_DEPTH


def _ends(model: ModelWrapper) -> tuple[NodeProto, NodeProto]:
    source, target = model.graph.input[0].name, model.graph.output[0].name
    return model.find_consumer(source), model.find_producer(target)


# The text of the top


def _fifo_head(channel: Channel) -> str:
    return f"  stream_fifo #(.BITS({channel.bits}), .DEPTH({channel.depth})) {channel.fifo} ("


def _top_text(model: ModelWrapper, modules: Mapping[str, LayerModule], layout: Layout) -> str:
    first, last = _ends(model)
    channels = list(zip(_edges(model), layout.channels, strict=True))
    into = {(e.consumer.name, e.input): c.fifo for e, c in channels}
    out_of = {(e.producer.name, e.output): c.fifo for e, c in channels}
    body = [_wires(channel) for _, channel in channels]
    body.append(_score_wires(modules[last.name].outputs[0]))
    for node in model.graph.node:
        module = modules[node.name]
        ports = {"clk": "clk", "rst_n": "rst_n"}
        for i in range(len(module.inputs)):
            source = "s_axis" if node.name == first.name else f"{into[node.name, i]}_out"
            ports |= _stream(f"in{i}", source)
        for i in range(len(module.outputs)):
            target = "scores" if node.name == last.name else f"{out_of[node.name, i]}_in"
            ports |= _stream(f"out{i}", target)
        body.append(_connected(f"  {module.name} layer_{node.name} (", ports))
    for index, (_, channel) in enumerate(channels):
        body.append(_fifo(channel, index))
    body.append(_scores(getCustomOp(last), layout))
    return _header() + _ports(layout) + "\n".join(body) + "\nendmodule\n"


def _stream(port: str, signal: str) -> dict[str, str]:
    return {f"{port}_{part}": f"{signal}_{part}" for part in ("tdata", "tvalid", "tready")}


def _connected(head: str, ports: Mapping[str, str]) -> str:
    lines = ",\n".join(f"      .{port}({signal})" for port, signal in ports.items())
    return f"{head}\n{lines}\n  );\n"


def _wires(channel: Channel) -> str:
    sides = (f"{channel.fifo}_in", f"{channel.fifo}_out")
    data = "".join(f"  wire [{channel.bits - 1}:0] {side}_tdata;\n" for side in sides)
    return data + "".join(f"  wire {side}_tvalid, {side}_tready;\n" for side in sides)


def _score_wires(bits: int) -> str:
    return f"  wire [{bits - 1}:0] scores_tdata;\n  wire scores_tvalid, scores_tready;\n"


def _fifo(channel: Channel, index: int) -> str:
    ports = {"clk": "clk", "rst_n": "rst_n"}
    ports |= _stream("in", f"{channel.fifo}_in") | _stream("out", f"{channel.fifo}_out")
    counts = {
        "count": f"{channel.fifo}_count",
        "max_count": f"{channel.fifo}_max_count",
    }
    wires = f"  wire [31:0] {channel.fifo}_count, {channel.fifo}_max_count;\n"
    probes = f"""`ifdef DIVQAT_PROBES
  assign probe_in_valid[{index}] = {channel.fifo}_in_tvalid;
  assign probe_in_ready[{index}] = {channel.fifo}_in_tready;
  assign probe_out_valid[{index}] = {channel.fifo}_out_tvalid;
  assign probe_out_ready[{index}] = {channel.fifo}_out_tready;
  assign probe_count[{32 * index}+:32] = {channel.fifo}_count;
  assign probe_max_count[{32 * index}+:32] = {channel.fifo}_max_count;
`endif
"""
    return wires + _connected(_fifo_head(channel), ports | counts) + probes


def _scores(last: Any, layout: Layout) -> str:
    """Send the last layer's sums one by one, each as whole bytes."""
    out = layout.output
    head = (
        f"  stream_scores #(.BITS({out.bits}), .SIGNED(1'b{int(out.signed)}), "
        f".PE({last.get_folded_output_shape()[-1]}), .OUTPUTS({out.outputs}), "
        f".OUT_BITS({out.word_bits})) output_scores ("
    )
    ports = {"ap_clk": "clk", "ap_rst_n": "rst_n"}
    for part in ("TDATA", "TVALID", "TREADY"):
        ports[f"in0_V_{part}"] = f"scores_{part.lower()}"
        ports[f"out0_V_{part}"] = f"m_axis_{part.lower()}"
    return _connected(head, ports | {"out0_V_TLAST": "m_axis_tlast"})


def _ports(layout: Layout) -> str:
    count = len(layout.channels)
    probes = ""
    if count:
        probes = f"""`ifdef DIVQAT_PROBES
    ,
    output wire [{count - 1}:0] probe_in_valid,
    output wire [{count - 1}:0] probe_in_ready,
    output wire [{count - 1}:0] probe_out_valid,
    output wire [{count - 1}:0] probe_out_ready,
    output wire [{32 * count - 1}:0] probe_count,
    output wire [{32 * count - 1}:0] probe_max_count
`endif
"""
    return f"""module {layout.top} (
    input wire clk,
    input wire rst_n,  // synchronous, active low

    input  wire [{layout.input.word_bits - 1}:0] s_axis_tdata,
    input  wire s_axis_tvalid,
    output wire s_axis_tready,

    output wire [{layout.output.word_bits - 1}:0] m_axis_tdata,
    output wire m_axis_tvalid,
    output wire m_axis_tlast,
    input  wire m_axis_tready
{probes});
"""
