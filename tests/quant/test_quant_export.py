# SPDX-License-Identifier: BSD-3-Clause
"""Every quantizer is made of standard Brevitas proxies and so has a QONNX form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from brevitas.nn import QuantConv2d, QuantIdentity, QuantReLU
from brevitas.proxy import ActQuantProxyFromInjector, WeightQuantProxyFromInjector
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import getCustomOp
from torch import nn

from brevitas_divqat import quant
from brevitas_divqat.export import GraphMetadata, export_qonnx


def one_conv_network(bits: int, scale: str) -> nn.Sequential:
    weight_quant = getattr(quant, f"Int{bits}WeightPer{scale}Float")
    act_quant = getattr(quant, f"Uint{bits}ActPerTensorFloat")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            QuantIdentity(act_quant=quant.Uint8InputPerTensorConst),
            QuantConv2d(1, 3, 4, bias=False, weight_quant=weight_quant),
            QuantReLU(act_quant=act_quant),
            nn.Flatten(),
        )
        model.train()(torch.rand(8, 1, 4, 4))
    return model.eval()


@pytest.mark.parametrize("scale", ["Channel", "Tensor"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_one_conv_network_exports_with_its_quantizers(
    bits: int, scale: str, tmp_path: Path
) -> None:
    model = one_conv_network(bits, scale)
    metadata = GraphMetadata((1, 4, 4), 256.0, ("a", "b", "c"))
    graph = ModelWrapper(str(export_qonnx(model, tmp_path / "net.onnx", metadata)))
    found = []
    for node in graph.get_nodes_by_op_type("Quant"):
        value, node_scale, zero_point, width = (graph.get_initializer(i) for i in node.input)
        attributes = getCustomOp(node)
        found.append(
            (
                "weight" if value is not None else "activation",
                int(width),
                int(np.max(np.abs(zero_point))),
                attributes.get_nodeattr("signed"),
                attributes.get_nodeattr("narrow"),
                node_scale.size,
            )
        )
    assert sorted(found) == sorted(
        [
            ("activation", 8, 0, 0, 0, 1),
            ("weight", bits, 0, 1, 1, 3 if scale == "Channel" else 1),
            ("activation", bits, 0, 0, 0, 1),
        ]
    )


@pytest.mark.parametrize("scale", ["Channel", "Tensor"])
def test_proxies_are_those_of_brevitas(scale: str) -> None:
    pixels, conv, relu, _ = one_conv_network(4, scale)
    assert type(conv.weight_quant) is WeightQuantProxyFromInjector
    assert type(pixels.act_quant) is ActQuantProxyFromInjector
    assert type(relu.act_quant) is ActQuantProxyFromInjector


@pytest.mark.parametrize("scale", ["Channel", "Tensor"])
def test_one_bit_exports_as_bipolar_quantizers(scale: str, tmp_path: Path) -> None:
    weight_quant = getattr(quant, f"SignedBinaryWeightPer{scale}Float")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            QuantIdentity(act_quant=quant.Uint8InputPerTensorConst),
            QuantConv2d(1, 3, 4, bias=False, weight_quant=weight_quant),
            QuantIdentity(act_quant=quant.SignedBinaryActPerTensorConst),
            nn.Flatten(),
        ).eval()
    metadata = GraphMetadata((1, 4, 4), 256.0, ("a", "b", "c"))
    graph = ModelWrapper(str(export_qonnx(model, tmp_path / "net.onnx", metadata)))
    nodes = graph.get_nodes_by_op_type("BipolarQuant")
    weights, signs = sorted(nodes, key=lambda node: graph.get_initializer(node.input[0]) is None)
    found = graph.get_initializer(weights.input[1]).flatten()
    expected = model[1].quant_weight().scale.detach().numpy().flatten()
    np.testing.assert_array_equal(found, expected)
    assert graph.get_initializer(signs.input[1]) == 1
