# SPDX-License-Identifier: BSD-3-Clause
"""The lowering to standard operators, node by node against qonnx's own executor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx

from brevitas_divqat.errors import GraphError
from brevitas_divqat.executors.lowering import ROUNDINGS, lowered
from brevitas_divqat.executors.sessions import open_session

DOMAIN = "qonnx.custom_op.general"
CHANNELS = 3
SHAPE = (1, CHANNELS, 43)
Floats = NDArray[np.float32]


def graph_of(
    nodes: Sequence[Any],
    constants: dict[str, NDArray[Any]],
    *,
    shape: Sequence[int] = SHAPE,
    output_shape: Sequence[int] | None = None,
    version: int = 1,
) -> ModelWrapper:
    """Return a graph from ``x`` to ``y``."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output_shape or shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid(DOMAIN, version)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    return ModelWrapper(model)


def custom(op_type: str, inputs: Sequence[str], **attributes: Any) -> Any:
    return helper.make_node(op_type, inputs, ["y"], domain=DOMAIN, **attributes)


def run(graph: ModelWrapper, x: Floats) -> Floats:
    session = open_session(lowered(graph), Path("test"), optimised=False)
    (answer,) = session.run(None, {"x": x})
    return answer


def assert_same(graph: ModelWrapper, x: Floats) -> None:
    """Assert that the lowered graph gives what qonnx gives, to the bit, the sign of 0 included."""
    before = graph.model.SerializeToString()
    with np.errstate(all="ignore"):
        expected = execute_onnx(graph, {"x": x})["y"]
    got = run(graph, x)
    assert expected.dtype == got.dtype == np.float32
    wrong = got.view(np.uint32) != expected.view(np.uint32)
    assert not wrong.any(), [a[wrong][:5] for a in (x.reshape(got.shape), got, expected)]
    assert graph.model.SerializeToString() == before, "the graph stays as it is"


def float32s(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(float(np.float32(low)), float(np.float32(high)), width=32)


scales = st.one_of(
    st.integers(-20, 10).map(lambda power: 2.0**power),
    float32s(1e-6, 1e3),
    st.sampled_from([1.0, 0.1, 1 / 3, 1e-20, 1e20]),
)
zero_points = st.one_of(
    st.just(0.0), st.just(-0.0), st.integers(-200, 200).map(float), float32s(-3, 3)
)
bit_widths = st.sampled_from([*range(1, 9), 16, 24, 32])
EDGES = [0.0, 1e-45, 1e-40, 1.1754944e-38, 1e-30, 1e10, 2.0**31, 1e30, 3.4028235e38]


def per_channel(one: st.SearchStrategy[float]) -> st.SearchStrategy[Floats]:
    """Draw one value for all, of either shape, or one per channel."""
    return st.one_of(
        one.map(np.float32).map(np.asarray),
        one.map(lambda v: np.float32([v])),
        st.lists(one, min_size=CHANNELS, max_size=CHANNELS).map(
            lambda v: np.float32(v).reshape(1, CHANNELS, 1)
        ),
    )


@st.composite
def inputs(draw: st.DrawFn, scale: Floats, zero: Floats) -> Floats:
    """Draw values at, next to and between the steps of a quantizer, and at the ends of float32."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    reach = draw(st.sampled_from([2, 8, 200, 70000]))
    steps = rng.integers(-2 * reach, 2 * reach + 1, SHAPE) / 2 - np.rint(zero)
    with np.errstate(all="ignore"):
        x = (steps * scale).astype(np.float32)
        direction = rng.choice(np.float32([-np.inf, np.inf]), SHAPE)
        x = np.where(rng.random(SHAPE) < 0.3, np.nextafter(x, direction), x)
        x = np.where(rng.random(SHAPE) < 0.2, rng.normal(0, reach, SHAPE) * scale, x)
    special = np.float32([*EDGES, *(-v for v in EDGES)])
    x.reshape(-1)[rng.permutation(x.size)[: len(special)]] = special
    x = np.clip(x, np.float32(-3.4028235e38), np.float32(3.4028235e38))
    return x.astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_quant(data: st.DataObject) -> None:
    scale, zero = data.draw(per_channel(scales)), data.draw(per_channel(zero_points))
    bits = np.float32(data.draw(bit_widths))
    attributes = {
        "signed": data.draw(st.integers(0, 1)),
        "narrow": data.draw(st.integers(0, 1)),
        "rounding_mode": data.draw(st.sampled_from([*ROUNDINGS, "round", "half_up", "Floor"])),
    }
    node = custom(data.draw(st.sampled_from(["Quant", "IntQuant"])), ["x", "s", "z", "b"])
    node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
    graph = graph_of([node], {"s": scale, "z": zero, "b": bits})
    assert_same(graph, data.draw(inputs(scale, zero)))


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("zero", [0.0, -0.0, 3.0])
def test_every_rounding_mode_at_every_tie_and_both_zeros(
    mode: str, signed: int, zero: float
) -> None:
    x = np.float32([k / 4 for k in range(-60, 60)] + [-0.0, 0.0, -1e-45, 1e-45, -0.1])
    node = custom("Quant", ["x", "s", "z", "b"], signed=signed, narrow=0, rounding_mode=mode)
    constants = {"s": np.float32(1), "z": np.float32(zero), "b": np.float32(4)}
    for size in (1, 3, 4, 8, 17, len(x)):  # kernels treat what a vector does not fill by itself
        for part in np.split(x[: len(x) // size * size], len(x) // size):
            assert_same(graph_of([node], constants, shape=(1, size)), part[None])
            if size == 1 and part[0] > 0.2:
                break


@pytest.mark.parametrize("signed", [0, 1])
def test_a_missing_rounding_mode_is_to_nearest_even(signed: int) -> None:
    node = custom("Quant", ["x", "s", "z", "b"], signed=signed, narrow=0)
    constants = {"s": np.float32(0.5), "z": np.float32(0), "b": np.float32(3)}
    x = np.linspace(-4, 4, 65, dtype=np.float32)[None]
    assert_same(graph_of([node], constants, shape=x.shape), x)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bipolar_quant(data: st.DataObject) -> None:
    scale = data.draw(per_channel(scales))
    graph = graph_of([custom("BipolarQuant", ["x", "s"])], {"s": scale})
    assert_same(graph, data.draw(inputs(scale, np.float32(0))))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_trunc_of_the_second_version(data: st.DataObject) -> None:
    scale = data.draw(per_channel(scales))
    zero = data.draw(per_channel(zero_points))
    ratio = data.draw(st.one_of(st.integers(0, 8).map(lambda p: 2.0**p), float32s(0.5, 40)))
    out_scale = np.asarray(scale * np.float32(ratio), np.float32)
    assume(np.isfinite(out_scale).all())
    constants = {
        "s": scale,
        "z": zero,
        "i": np.float32(data.draw(bit_widths)),
        "t": out_scale,
        "o": np.float32(data.draw(bit_widths)),
    }
    attributes = {
        "rounding_mode": data.draw(st.sampled_from(list(ROUNDINGS))),
        **({"signed": data.draw(st.integers(0, 1))} if data.draw(st.booleans()) else {}),
        **({"narrow": data.draw(st.integers(0, 1))} if data.draw(st.booleans()) else {}),
    }
    node = custom("Trunc", ["x", *constants], **attributes)
    assert_same(graph_of([node], constants, version=2), data.draw(inputs(scale, zero)))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_trunc_of_the_first_version(data: st.DataObject) -> None:
    scale = data.draw(per_channel(scales))
    zero = data.draw(per_channel(zero_points))
    width = data.draw(st.integers(2, 16))
    constants = {
        "s": scale,
        "z": zero,
        "i": np.float32(width),
        "o": np.float32(data.draw(st.integers(1, width))),
    }
    node = custom(
        "Trunc", ["x", *constants], rounding_mode=data.draw(st.sampled_from([*ROUNDINGS]))
    )
    assert_same(graph_of([node], constants), data.draw(inputs(scale, zero)))


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("mode", ["ROUND", "FLOOR", "HALF_UP"])
def test_infinities(signed: int, mode: str) -> None:
    x = np.float32([[np.inf, -np.inf, 1.0]])
    constants = {"s": np.float32(0.5), "z": np.float32(0), "b": np.float32(4)}
    node = custom("Quant", ["x", "s", "z", "b"], signed=signed, narrow=1, rounding_mode=mode)
    assert_same(graph_of([node], constants, shape=x.shape), x)
    node = custom("BipolarQuant", ["x", "s"])
    assert_same(graph_of([node], {"s": np.float32(0.5)}, shape=x.shape), x)


def test_no_number_stays_none() -> None:
    x = np.float32([[np.nan, 1.0]])
    constants = {"s": np.float32(0.5), "z": np.float32(0), "b": np.float32(4)}
    node = custom("Quant", ["x", "s", "z", "b"], signed=1, narrow=1, rounding_mode="ROUND")
    got = run(graph_of([node], constants, shape=x.shape), x)
    assert np.isnan(got[0, 0])
    assert got[0, 1] == 1.0


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("narrow", [0, 1])
def test_quantized_biases_are_folded_and_added(bits: int, narrow: int) -> None:
    """A bias of 32 bits has bounds that float32 does not hold."""
    rng = np.random.default_rng(bits)
    constants = {
        "w": rng.normal(size=(6, 4)).astype(np.float32),
        "ws": np.float32(0.25),
        "c": (rng.normal(size=4) * 10.0 ** np.arange(4) * 1e4).astype(np.float32),
        "cs": np.float32(2.0**-7),
        "z": np.float32(0),
        "wb": np.float32(4),
        "cb": np.float32(bits),
    }
    options = {"signed": 1, "narrow": narrow, "rounding_mode": "ROUND", "domain": DOMAIN}
    nodes = [
        helper.make_node("Quant", ["w", "ws", "z", "wb"], ["wq"], **options),
        helper.make_node("Quant", ["c", "cs", "z", "cb"], ["cq"], **options),
        helper.make_node("Gemm", ["x", "wq", "cq"], ["y"]),
    ]
    graph = graph_of(nodes, constants, shape=(1, 6), output_shape=(1, 4))
    graph.set_tensor_shape("wq", (6, 4))
    graph.set_tensor_shape("cq", (4,))
    assert_same(graph, np.float32([[1, -2, 0.5, 3, 0, 7]]))


@pytest.mark.parametrize(
    ("target", "output_shape"),
    [([1, 12], (1, 12)), ([1, -1], (1, 12)), ([-1, 12], (1, 12)), ([1, 3, 2, 2], (1, 3, 2, 2))],
)
def test_a_reshape_that_was_traced_with_one_image_takes_any_number(
    target: list[int], output_shape: tuple[int, ...]
) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Reshape", ["r", "t"], ["f"]),
        custom("Quant", ["f", "s", "z", "b"], signed=1, narrow=0, rounding_mode="ROUND"),
    ]
    constants = {"t": np.int64(target), "s": np.float32(1), "z": np.float32(0), "b": np.float32(8)}
    graph = graph_of(nodes, constants, shape=(1, 3, 4), output_shape=output_shape)
    graph.set_tensor_shape("r", (1, 3, 4))
    graph.set_tensor_shape("f", output_shape)
    assert_same(graph, np.arange(12, dtype=np.float32).reshape(1, 3, 4))
    for count in (1, 2, 33):
        x = np.arange(12 * count, dtype=np.float32).reshape(count, 3, 4)
        answer = run(graph, x)
        assert answer.shape == (count, *output_shape[1:])
        np.testing.assert_array_equal(answer.ravel(), np.minimum(x.ravel(), 127))


def test_quantizers_in_a_row_keep_their_tensors_apart() -> None:
    options = {"signed": 1, "narrow": 0, "rounding_mode": "HALF_UP", "domain": DOMAIN}
    constants = {"s": np.float32(0.25), "z": np.float32(1), "b": np.float32(5), "b2": np.float32(3)}
    nodes = [
        helper.make_node("Quant", ["x", "s", "z", "b"], ["a"], **options),
        helper.make_node("Quant", ["a", "s", "z", "b2"], ["c"], **options),
        helper.make_node("Quant", ["x", "s", "z", "b2"], ["d"], **options),
        helper.make_node("Add", ["c", "d"], ["y"]),
    ]
    graph = graph_of(nodes, constants)
    for name in "acd":
        graph.set_tensor_shape(name, SHAPE)
    x = np.linspace(-6, 6, int(np.prod(SHAPE)), dtype=np.float32).reshape(SHAPE)
    assert_same(graph, x)


# What is refused


def refused(graph: ModelWrapper, *words: str) -> None:
    with pytest.raises(GraphError) as caught:
        lowered(graph)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("op_type", "domain"),
    [
        ("FloatQuant", DOMAIN),
        ("MultiThreshold", DOMAIN),
        ("Im2Col", DOMAIN),
        ("Gelu", "com.microsoft"),
        ("Relu", "finn.custom_op.fpgadataflow"),
    ],
)
def test_an_unknown_custom_operator_is_refused_by_its_layer_s_name(
    op_type: str, domain: str
) -> None:
    node = helper.make_node(op_type, ["x"], ["y"], name="node_7", domain=domain)
    refused(graph_of([node], {}), "node_7", op_type, "--executor reference")
    node.doc_string = "features.3"
    refused(graph_of([node], {}), "features.3", op_type)


@pytest.mark.parametrize("op_type", ["Quant", "Trunc"])
@pytest.mark.parametrize("mode", ["STOCHASTIC", "", "ROUND_HALF"])
def test_an_unknown_rounding_mode_is_refused(op_type: str, mode: str) -> None:
    one, eight = np.float32(1), np.float32(8)
    constants = {"s": one, "z": np.float32(0), "b": eight}
    if op_type == "Trunc":
        constants |= {"t": one, "o": eight}
    node = custom(op_type, ["x", *constants], signed=1, narrow=0, rounding_mode=mode)
    node.doc_string = "act.2"
    refused(graph_of([node], constants, version=2), "act.2", repr(mode), "HALF_EVEN")


def test_bit_widths_per_channel_are_refused() -> None:
    constants = {
        "s": np.float32(1),
        "z": np.float32(0),
        "b": np.float32([2, 3, 4]).reshape(1, 3, 1),
    }
    node = custom("Quant", ["x", *constants], signed=1, narrow=0, rounding_mode="ROUND")
    refused(graph_of([node], constants), "3 bit widths")


@settings(max_examples=100, deadline=None)
@given(bits=bit_widths, signed=st.booleans(), narrow=st.booleans())
@example(bits=1, signed=True, narrow=True)
def test_every_level_is_a_fixed_point(bits: int, signed: bool, narrow: bool) -> None:
    """What a quantizer gave, it gives back: nothing is shifted by the lowering."""
    assume(not (bits == 1 and narrow))
    low = -(2 ** (min(bits, 8) - 1)) + narrow if signed else 0
    levels = np.arange(low, low + 2 ** min(bits, 8) - narrow, dtype=np.float32)
    if bits == 1 and signed:
        levels = np.float32([-1, 1])
    if bits > 8:
        levels = levels[:100]
    x = (levels * np.float32(0.1))[None]
    constants = {"s": np.float32(0.1), "z": np.float32(0), "b": np.float32(bits)}
    node = custom(
        "Quant", ["x", *constants], signed=int(signed), narrow=int(narrow), rounding_mode="ROUND"
    )
    np.testing.assert_array_equal(run(graph_of([node], constants, shape=x.shape), x), x)
