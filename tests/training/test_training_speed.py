# SPDX-License-Identifier: BSD-3-Clause
"""Faster quantizers: the same bits as Brevitas', in every part of a training."""

from __future__ import annotations

import copy
from collections.abc import Callable

import brevitas.config
import pytest
import torch
import torch.nn.functional as F
from brevitas.inject.enum import FloatToIntImplType, RestrictValueType
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from brevitas_divqat import quant
from brevitas_divqat.errors import ConfigError
from brevitas_divqat.models import Precision, build
from brevitas_divqat.seeding import seeded
from brevitas_divqat.training import calibrate
from brevitas_divqat.training.speed import FusedIntQuant, _limits, speed_up

STEPS = 4


def bits_of(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).numpy().tobytes()


def network(name: str, bits: int, calibrated: bool) -> nn.Module:
    shape = (1, 28, 28) if name == "lenet5" else (3, 32, 32)
    with seeded(0):
        model = build(name, shape, 10, precision=Precision(bits, bits), width=0.25)
        images = torch.randint(256, (16, *shape), dtype=torch.uint8)
    if calibrated:
        calibrate(model, images.numpy())
    return model


def train(model: nn.Module, x: Tensor, *, bfloat16: bool = False) -> dict[str, bytes]:
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    targets = torch.arange(len(x)) % 10
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(model(x).float(), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = {name: bits_of(tensor) for name, tensor in model.state_dict().items()}
    return found | {"scores": bits_of(model.eval()(x)), "loss": bits_of(loss)}


@pytest.mark.parametrize("calibrated", [True, False], ids=["calibrated", "collecting"])
@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize(("name", "bits"), [("lenet5", 2), ("lenet5", 4), ("cnv", 3)])
def test_weights_scores_and_loss_are_the_same_bits(
    name: str, bits: int, channels_last: bool, bfloat16: bool, calibrated: bool
) -> None:
    plain = network(name, bits, calibrated)
    fast = copy.deepcopy(plain)
    assert speed_up(fast)
    channels, side = (1, 28) if name == "lenet5" else (3, 32)
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(256, (8, side, side, channels), generator=generator) / 256
    x = x.permute(0, 3, 1, 2)
    if not channels_last:
        x = x.contiguous()
    expected = train(plain, x, bfloat16=bfloat16)
    assert train(fast, x, bfloat16=bfloat16) == expected


@given(
    st.lists(st.floats(-40, 40, width=32), min_size=1, max_size=24),
    st.integers(2, 8),
    st.sampled_from([0.5, 0.1, 1 / 3, -0.7]),
)
def test_values_and_gradients_at_every_step_are_the_same_bits(
    values: list[float], bits: int, scale: float
) -> None:
    plain = QuantReLU(act_quant=quant.Uint8ActPerTensorFloat, bit_width=bits).train()
    impl = plain.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl
    impl.counter = impl.collect_stats_steps + 1
    impl.value.data.fill_(scale * (2**bits - 1))
    fast = copy.deepcopy(plain)
    assert speed_up(fast) == ["act_quant"]
    # Multiples of half a step lie on the borders of rounding and clamping.
    points = torch.tensor([*values, *(abs(scale) * n / 2 for n in range(-3, 2 ** (bits + 1) + 3))])
    results = []
    for layer in (plain, fast):
        x = points.clone().requires_grad_()
        y = layer(x)
        y.backward(torch.linspace(-1, 2, len(points)))
        parameters = [p.grad for p in layer.parameters()]
        results.append([bits_of(t) for t in (y, x.grad, *parameters) if t is not None])
    assert results[0] == results[1]
    assert len(results[0]) == 3


@pytest.mark.parametrize("weight_quant", ["channel", "tensor"])
def test_a_weight_s_gradient_is_the_same_bits(weight_quant: str) -> None:
    chosen = {
        "channel": quant.Int4WeightPerChannelFloat,
        "tensor": quant.Int4WeightPerTensorFloat,
    }[weight_quant]
    with seeded(0):
        plain = QuantConv2d(3, 4, 3, bias=False, weight_quant=chosen)
    plain.weight.data[0, 0, 0] = 1.5  # several elements are the greatest
    plain.weight.data[1] = 0.0
    fast = copy.deepcopy(plain)
    assert speed_up(fast) == ["weight_quant"]
    found = []
    for layer in (plain, fast):
        weight = layer.quant_weight()
        (weight.value.square().sum() + weight.scale.sum()).backward()
        found.append([bits_of(weight.value), bits_of(weight.scale), bits_of(layer.weight.grad)])
    assert found[0] == found[1]


def test_loading_a_state_dict_keeps_quantizers_fast_and_keys_plain() -> None:
    plain = network("lenet5", 4, True)
    fast = network("lenet5", 4, False)
    names = speed_up(fast)
    fast.load_state_dict(plain.state_dict())
    kinds = [type(module) for module in fast.modules()]
    assert kinds.count(FusedIntQuant) == len(names) == 10
    assert list(fast.state_dict()) == list(plain.state_dict())
    x = torch.rand(4, 1, 28, 28)
    plain.load_state_dict(fast.state_dict())
    assert bits_of(plain.eval()(x)) == bits_of(fast.eval()(x))


def test_an_optimizer_made_before_stays_valid() -> None:
    model = network("lenet5", 4, True)
    before = [id(parameter) for parameter in model.parameters()]
    speed_up(model)
    assert [id(parameter) for parameter in model.parameters()] == before
    assert speed_up(model) == []


def rounds_down() -> nn.Module:
    class Floor(quant.Uint8ActPerTensorFloat):
        float_to_int_impl_type = FloatToIntImplType.FLOOR

    return QuantReLU(act_quant=Floor)


def other_scale() -> nn.Module:
    class PowerOfTwo(quant.Uint8ActPerTensorFloat):
        restrict_scaling_type = RestrictValueType.POWER_OF_TWO

    return QuantReLU(act_quant=PowerOfTwo)


@pytest.mark.parametrize(("make", "fused"), [(rounds_down, 0), (other_scale, 1)])
def test_other_quantizers_keep_their_results(make: Callable[[], nn.Module], fused: int) -> None:
    with seeded(0):
        plain = nn.Sequential(QuantLinear(6, 5, bias=False), make())
    fast = copy.deepcopy(plain)
    assert len(speed_up(fast)) == 1 + fused
    x = torch.linspace(-2, 2, 24).view(4, 6)
    assert train(fast, x) == train(plain, x)


def test_a_model_without_quantizers_is_refused() -> None:
    with pytest.raises(ConfigError, match="no integer quantizer"):
        speed_up(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ConfigError, match="no integer quantizer"):
        speed_up(QuantIdentity(act_quant=None))


def test_compiled_quantizers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brevitas.config, "JIT_ENABLED", True)
    with pytest.raises(ConfigError, match="BREVITAS_JIT"):
        speed_up(network("lenet5", 4, True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("low", "high"), [(0, 15), (0, 255), (-7, 7), (-8, 7), (-2, 1)])
def test_the_limits_are_where_rounding_leaves_the_range(
    low: int, high: int, dtype: torch.dtype
) -> None:
    below, above = _limits(low, high, dtype)
    near = torch.tensor([low - 0.5, low - 0.25, low, high, high + 0.25, high + 0.5], dtype=dtype)
    infinity = torch.full_like(near, torch.inf)
    points = torch.cat([near, torch.nextafter(near, infinity), torch.nextafter(near, -infinity)])
    inside = (points.round() >= low) & (points.round() <= high)
    assert torch.equal((points > below) & (points < above), inside)
