# SPDX-License-Identifier: BSD-3-Clause
"""Each hardware layer as one SystemVerilog module with plain stream ports.

A layer is FINN's generated RTL with its weight memory and its unused AXI-Lite port inside, or one
of our own modules (`hdl/`) where FINN has C++ for Vitis HLS alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import getCustomOp

from brevitas_divqat.errors import HardwareError

__all__ = ["HDL", "LayerModule", "stream_width", "translate_layer"]

HDL = Path(__file__).parent / "hdl"
"""Our own modules."""

MEMORY_FILE = re.compile(r'"[^"\n]*/(memblock\w*\.dat)"')
AXI_LITE_INPUT = re.compile(r"\binput\b[^\n]*?\b(s_axilite_\w+)")
MODULE = "module {}\\b"


@dataclass(frozen=True)
class LayerModule:
    """A layer's SystemVerilog.

    Attributes:
        name: of the module.
        text: of the module.
        inputs: bits of each input stream's words.
        outputs: bits of each output stream's words.
        sources: files that it needs, by name: their text.
        memories: contents of its memories, by file name.
    """

    name: str
    text: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    sources: Mapping[str, str]
    memories: Mapping[str, str] = field(default_factory=dict)


def translate_layer(
    node: NodeProto, model: ModelWrapper, *, part: str, clock_ns: float, scratch: Path
) -> LayerModule:
    """Generate the RTL of a node of a folded hardware graph.

    Args:
        node: the node.
        model: its graph, whose streams have equal widths at both ends.
        part: the device.
        clock_ns: clock period in ns.
        scratch: an empty folder for what FINN generates.

    Raises:
        HardwareError: if the node has no RTL, or FINN cannot generate it.
    """
    own = OWN_MODULES.get(node.op_type)
    if own is not None:
        return own(node, model)
    if node.op_type == "StreamingDataWidthConverter_rtl":
        return _converter(node)
    if not node.op_type.endswith("_rtl"):
        raise HardwareError(
            f"{node.doc_string}: {node.op_type} has no RTL: expected one of FINN's _rtl layers or "
            f"{', '.join(OWN_MODULES)}"
        )
    return _finn_layer(node, model, part, clock_ns, scratch)


def stream_width(bits: int) -> int:
    """Return the width of a stream's port for words of ``bits``: whole bytes."""
    return (bits + 7) // 8 * 8


def _stream_ports(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> str:
    lines = ["input wire clk", "input wire rst_n"]
    for i, bits in enumerate(inputs):
        lines += [
            f"input wire [{bits - 1}:0] in{i}_tdata",
            f"input wire in{i}_tvalid",
            f"output wire in{i}_tready",
        ]
    for i, bits in enumerate(outputs):
        lines += [
            f"output wire [{bits - 1}:0] out{i}_tdata",
            f"output wire out{i}_tvalid",
            f"input wire out{i}_tready",
        ]
    return ",\n".join(f"    {line}" for line in lines)


def _instance(
    module: str, name: str, ports: Mapping[str, str], parameters: Mapping[str, Any] | None = None
) -> str:
    given = ", ".join(f".{key}({value})" for key, value in (parameters or {}).items())
    connected = ",\n".join(f"      .{port}({signal})" for port, signal in ports.items())
    return f"  {module} {f'#({given}) ' if given else ''}{name} (\n{connected}\n  );\n"


def _module(name: str, inputs: tuple[int, ...], outputs: tuple[int, ...], body: str) -> str:
    return f"module {name} (\n{_stream_ports(inputs, outputs)}\n);\n{body}endmodule\n"


def _streams(inputs: int, outputs: int) -> dict[str, str]:
    """Connect the stream ports of an inner module to those of the layer."""
    ports = {"ap_clk": "clk", "ap_rst_n": "rst_n"}
    names = [f"in{i}" for i in range(inputs)] + [f"out{i}" for i in range(outputs)]
    for name in names:
        for signal in ("TDATA", "TVALID", "TREADY"):
            ports[f"{name}_V_{signal}"] = f"{name}_{signal.lower()}"
    return ports


# FINN's layers


def _finn_layer(
    node: NodeProto, model: ModelWrapper, part: str, clock_ns: float, scratch: Path
) -> LayerModule:
    from finn.util.settings import get_settings

    layer: Any = getCustomOp(node)
    layer.set_nodeattr("code_gen_dir_ipgen", str(scratch))
    try:
        layer.code_generation_ipgen(model, part, clock_ns)
    except Exception as error:  # assertions and arithmetic errors about the layer's sizes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise HardwareError(
            f"{node.doc_string}: FINN cannot generate {node.name} ({reason}): choose another "
            "kernel, stride or --fps"
        ) from error
    files = [Path(str(file)) for file in layer.get_rtl_file_list(abspath=True)]
    inner = layer.get_nodeattr("gen_top_module") or node.name
    inputs = (layer.get_instream_width_padded(0),)
    outputs = (layer.get_outstream_width_padded(0),)
    ports = _streams(1, 1)
    body = ""
    if node.op_type == "MVAU_rtl":
        library = Path(get_settings().finn_rtllib)
        files += [
            library / "axi/hdl/axilite.sv",
            library / "memstream/hdl/memstream_axi.sv",
            library / "memstream/hdl/memstream.sv",
            scratch / f"{node.name}_memstream_wrapper.v",
        ]
        body = _weight_stream(node.name, layer.get_instream_width_padded(1), files[-1])
        ports |= {
            "in1_V_TDATA": "weights_tdata",
            "in1_V_TVALID": "weights_tvalid",
            "in1_V_TREADY": "weights_tready",
            "ap_clk2x": "clk",
        }
    if node.op_type == "Thresholding_rtl":
        ports |= {"in1_V_TDATA": "'0", "in1_V_TVALID": "1'b0"}
    ports |= _idle_axi_lite(_module_text(inner, files))
    body += _instance(inner, "core", ports)
    name = f"{node.name}_layer"
    return LayerModule(
        name=name,
        text=_module(name, inputs, outputs, body),
        inputs=inputs,
        outputs=outputs,
        sources={file.name: _localised(node.name, file.read_text()) for file in files},
        memories={
            _memory_name(node.name, file.name): file.read_text() for file in scratch.glob("*.dat")
        },
    )


def _converter(node: NodeProto) -> LayerModule:
    """Change the width of words, in two steps where neither width divides the other.

    FINN's converter takes a + b - 1 cycles for a words of one side and b of the other: no more than
    the longer side's only if the shorter one's is 1. By way of the least common multiple it is.
    """
    from finn.util.settings import get_settings

    layer: Any = getCustomOp(node)
    given, result = layer.get_nodeattr("inWidth"), layer.get_nodeattr("outWidth")
    common = math.lcm(given, result)
    widths = [given, result] if common in (given, result) else [given, common, result]
    padded = [stream_width(bits) for bits in widths]
    streams = ["in0", *(["joined"] if len(widths) > 2 else []), "out0"]
    body = ""
    if len(widths) > 2:
        body = f"  wire [{padded[1] - 1}:0] joined_tdata;\n  wire joined_tvalid, joined_tready;\n"
    for step in range(len(widths) - 1):
        ports = {"ap_clk": "clk", "ap_rst_n": "rst_n"}
        for side, stream in (("s", streams[step]), ("m", streams[step + 1])):
            for signal in ("tdata", "tvalid", "tready"):
                ports[f"{side}_axis_{signal}"] = f"{stream}_{signal}"
        sizes = {"IBITS": widths[step], "OBITS": widths[step + 1]}
        body += _instance("dwc_axi", f"step{step}", ports, sizes)
    library = Path(get_settings().finn_rtllib) / "dwc/hdl"
    name, inputs, outputs = f"{node.name}_layer", (padded[0],), (padded[-1],)
    return LayerModule(
        name=name,
        text=_module(name, inputs, outputs, body),
        inputs=inputs,
        outputs=outputs,
        sources={file: (library / file).read_text() for file in ("dwc_axi.sv", "vpc.sv")},
    )


def _weight_stream(node: str, bits: int, wrapper: Path) -> str:
    """Read a layer's weights over and over from their memory."""
    ports = {
        "ap_clk": "clk",
        "ap_clk2x": "clk",
        "ap_rst_n": "rst_n",
        "s_axis_0_tvalid": "1'b0",
        "s_axis_0_tdata": "'0",
        "m_axis_0_tdata": "weights_tdata",
        "m_axis_0_tvalid": "weights_tvalid",
        "m_axis_0_tready": "weights_tready",
    } | _idle_axi_lite(wrapper.read_text())
    wires = f"  wire [{bits - 1}:0] weights_tdata;\n  wire weights_tvalid, weights_tready;\n"
    return wires + _instance(f"{node}_memstream_wrapper", "weights", ports)


def _idle_axi_lite(text: str) -> dict[str, str]:
    """Hold the inputs of a module's AXI-Lite port, over which nobody speaks, at zero."""
    return dict.fromkeys(AXI_LITE_INPUT.findall(text), "'0")


def _module_text(name: str, files: list[Path]) -> str:
    for file in files:
        text = file.read_text()
        if re.search(MODULE.format(re.escape(name)), text):
            return text
    raise HardwareError(f"FINN generated no module {name}: install finn-plus 1.6.1")


def _memory_name(node: str, file: str) -> str:
    return file if file.startswith(node) else f"{node}_{file}"


def _localised(node: str, text: str) -> str:
    """Name a layer's memory file by the layer, beside the RTL, instead of by an absolute path."""
    return MEMORY_FILE.sub(rf'"{node}_\1"', text)


# Our own modules


def _own(
    node: NodeProto,
    module: str,
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    parameters: Mapping[str, Any],
    *,
    ports: Mapping[str, str] | None = None,
    memories: Mapping[str, str] | None = None,
) -> LayerModule:
    ports = _streams(len(inputs), len(outputs)) if ports is None else ports
    name = f"{node.name}_layer"
    return LayerModule(
        name=name,
        text=_module(name, inputs, outputs, _instance(module, "core", ports, parameters)),
        inputs=inputs,
        outputs=outputs,
        sources={f"{module}.sv": (HDL / f"{module}.sv").read_text()},
        memories=memories or {},
    )


def _flag(value: bool) -> str:
    return f"1'b{int(value)}"


def _pool(node: NodeProto, model: ModelWrapper) -> LayerModule:
    layer: Any = getCustomOp(node)
    given, result = layer.get_input_datatype(), layer.get_output_datatype()
    pe, window = layer.get_nodeattr("PE"), int(np.prod(layer.get_nodeattr("KernelSize")))
    streams = (
        (stream_width(pe * given.bitwidth()),),
        (stream_width(pe * result.bitwidth()),),
    )
    signed = _flag(given.signed())
    if layer.get_nodeattr("Function") == "MaxPool":
        sizes = {"BITS": given.bitwidth(), "SIGNED": signed, "PE": pe, "WINDOW": window}
        return _own(node, "stream_max_pool", *streams, sizes)
    sizes = {
        "IN_BITS": given.bitwidth(),
        "OUT_BITS": result.bitwidth(),
        "SIGNED": signed,
        "PE": pe,
        "WINDOW": window,
        "SHIFT": layer.get_nodeattr("Size"),
    }
    return _own(node, "stream_average_pool", *streams, sizes)


def _duplicate(node: NodeProto, model: ModelWrapper) -> LayerModule:
    layer: Any = getCustomOp(node)
    width, copies = layer.get_instream_width_padded(0), layer.get_nodeattr("NumOutputStreams")
    joined = {
        signal: "{" + ", ".join(f"out{i}_{signal}" for i in reversed(range(copies))) + "}"
        for signal in ("tvalid", "tready")
    }
    ports = {
        **_streams(1, 0),
        "out_V_TDATA": "out0_tdata",
        "out_V_TVALID": joined["tvalid"],
        "out_V_TREADY": joined["tready"],
    }
    sizes = {"WORD_BITS": width, "COPIES": copies}
    made = _own(node, "stream_duplicate", (width,), (width,) * copies, sizes, ports=ports)
    copied = "".join(f"  assign out{i}_tdata = out0_tdata;\n" for i in range(1, copies))
    text = made.text.replace("endmodule\n", f"{copied}endmodule\n")
    return LayerModule(made.name, text, made.inputs, made.outputs, made.sources)


def _add(node: NodeProto, model: ModelWrapper) -> LayerModule:
    layer: Any = getCustomOp(node)
    a, b = (layer.get_input_datatype(i) for i in range(2))
    total, pe = layer.get_output_datatype(), layer.get_nodeattr("PE")
    sizes = {
        "A_BITS": a.bitwidth(),
        "A_SIGNED": _flag(a.signed()),
        "B_BITS": b.bitwidth(),
        "B_SIGNED": _flag(b.signed()),
        "OUT_BITS": total.bitwidth(),
        "PE": pe,
    }
    inputs = (stream_width(pe * a.bitwidth()), stream_width(pe * b.bitwidth()))
    return _own(node, "stream_add", inputs, (stream_width(pe * total.bitwidth()),), sizes)


def _depthwise(node: NodeProto, model: ModelWrapper) -> LayerModule:
    layer: Any = getCustomOp(node)
    given, weights = layer.get_input_datatype(0), layer.get_input_datatype(1)
    total, pe = layer.get_output_datatype(), layer.get_nodeattr("PE")
    channels, kernel = layer.get_nodeattr("Channels"), int(np.prod(layer.get_nodeattr("Kernel")))
    file = f"{node.name}_kernels.dat"
    values = model.get_initializer(node.input[1]).reshape(channels // pe, pe, kernel)
    sizes = {
        "ACT_BITS": given.bitwidth(),
        "ACT_SIGNED": _flag(given.signed()),
        "WEIGHT_BITS": weights.bitwidth(),
        "ACC_BITS": total.bitwidth(),
        "CHANNELS": channels,
        "KERNEL": kernel,
        "PE": pe,
        "WEIGHTS_FILE": f'"./{file}"',
    }
    inputs = (stream_width(pe * given.bitwidth()),)
    outputs = (stream_width(pe * total.bitwidth()),)
    memories = {file: _memory_words(values.transpose(0, 2, 1), weights.bitwidth())}
    return _own(node, "stream_depthwise_mvu", inputs, outputs, sizes, memories=memories)


def _memory_words(values: np.ndarray[Any, Any], bits: int) -> str:
    """Write (…, n) integers as hexadecimal words of n elements, the first one lowest."""
    lines = []
    for row in values.reshape(-1, values.shape[-1]).astype(int).tolist():
        word = sum((value & ((1 << bits) - 1)) << (bits * i) for i, value in enumerate(row))
        lines.append(f"{word:x}\n")
    return "".join(lines)


OWN_MODULES: dict[str, Callable[[NodeProto, ModelWrapper], LayerModule]] = {
    "Pool_hls": _pool,
    "DuplicateStreams_hls": _duplicate,
    "ElementwiseAdd_hls": _add,
    "VVAU_hls": _depthwise,
    "VVAU_rtl": _depthwise,  # FINN has it for Versal alone
}
