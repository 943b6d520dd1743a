# SPDX-License-Identifier: BSD-3-Clause
"""Graph mode keeps what calls in place, clips, hooks and parametrizations do, or refuses them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import brevitas.nn as qnn
import pytest
import torch
import torch.nn.functional as F
from brevitas.proxy.parameter_quant import WeightQuantProxyFromInjectorBase
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjectorBase
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from brevitas_divqat.conversion import quantize
from brevitas_divqat.errors import ConfigError

SHAPE = (3, 8, 8)
Forward = Callable[["Parts", Tensor], Tensor]


class Parts(nn.Module):
    """Layers from which each test builds a network of its own, by a forward that it gives."""

    def __init__(self, way: Forward) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.b = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.c = nn.Conv2d(3, 4, 3, padding=1)
        self.drop, self.same, self.flat = nn.Dropout(0.1), nn.Identity(), nn.Flatten()
        self.relu, self.silu = nn.ReLU(inplace=True), nn.SiLU(inplace=True)
        self.fc = nn.Linear(4 * 64, 5, bias=False)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.way(self, x).flatten(1))


def images() -> Tensor:
    return torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def scores(model: nn.Module) -> Tensor:
    return model.eval()(images())


def unquantized(model: nn.Module) -> nn.Module:
    """Return a copy whose quantizers let values through; those of ReLU6 keep its limit."""
    twin = copy.deepcopy(model)
    for module in list(twin.modules()):
        if isinstance(module, ActQuantProxyFromInjectorBase | WeightQuantProxyFromInjectorBase):
            module.disable_quant = True
        elif isinstance(module, qnn.QuantReLU):
            injector = module.act_quant.quant_injector
            limit = injector.limit if "limit" in injector else torch.inf
            module.register_forward_hook(lambda m, x, y, limit=limit: y.clamp(max=limit))
    return twin


def assert_same_function(float_model: nn.Module, *, example: bool) -> None:
    model = quantize(float_model.eval(), SHAPE if example else None)
    torch.testing.assert_close(
        scores(unquantized(model)), scores(float_model), rtol=1e-4, atol=1e-5
    )


def after_dropout(s: Parts, x: Tensor) -> Tensor:
    y = s.a(x)
    return F.relu(s.b(s.relu(s.drop(y))) + y)


def after_identity(s: Parts, x: Tensor) -> Tensor:
    y = s.a(x)
    z = s.same(y)
    s.relu(z)
    return F.relu(s.b(z) + y)


def before_identity(s: Parts, x: Tensor) -> Tensor:
    y = s.a(x)
    z = F.dropout(y, training=s.training)
    F.relu(y, True)
    return s.b(z) + s.drop(s.relu(s.c(x)))


def named_twice(s: Parts, x: Tensor) -> Tensor:
    y = s.a(x)
    z = y
    y += s.c(x)
    y *= 0.5
    return s.b(y) + F.relu(z)


def kept_activation(s: Parts, x: Tensor) -> Tensor:
    y = s.a(x)
    return s.b(s.silu(y)) + y


def pieces_apart(s: Parts, x: Tensor) -> Tensor:
    left, right = s.a(x).chunk(2, 1)
    return s.b(torch.cat([left.relu_(), right], 1))


def only_size_is_read(s: Parts, x: Tensor) -> Tensor:
    y = s.a(x)
    v = y.view(y.size(0), -1)
    v.relu_()
    return v.view(y.size(0), 4, y.shape[2], y.size(3))


def number_that_grows(s: Parts, x: Tensor) -> Tensor:
    y = s.a(x)
    width = size = y.size(3)
    width += 1
    return s.b(y.relu_()) * (width / size)


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize(
    "way",
    [
        after_dropout,
        after_identity,
        before_identity,
        named_twice,
        kept_activation,
        pieces_apart,
        only_size_is_read,
        number_that_grows,
    ],
)
def test_what_is_changed_in_place_is_changed_under_each_of_its_names(
    way: Forward, example: bool
) -> None:
    assert_same_function(Parts(way), example=example)


def through_view(s: Parts, x: Tensor) -> Tensor:
    y = s.a(x)
    y.view(y.shape[0], -1).relu_()
    return F.relu(s.b(y))


def through_contiguous(s: Parts, x: Tensor) -> Tensor:
    y = s.a(x)
    s.relu(y.contiguous())
    return F.relu(s.b(y))


def through_chunk(s: Parts, x: Tensor) -> Tensor:
    y = s.a(x)
    y.chunk(2, 1)[0].relu_()
    return F.relu(s.b(y))


def through_flatten(s: Parts, x: Tensor) -> Tensor:
    y = s.a(x)
    z = s.relu(s.flat(y))
    return z + s.b(y).flatten(1)


def through_unknown_view(s: Parts, x: Tensor) -> Tensor:
    y = s.a(x)
    torch.narrow(y, 1, 0, 2).mul_(2)
    return s.b(y)


def view_is_read(s: Parts, x: Tensor) -> Tensor:
    y = s.a(x)
    v = y.flatten(1)
    s.relu(y)
    return v


def unlike_divisions(s: Parts, x: Tensor) -> Tensor:
    y = s.a(x)
    left, lower = y.chunk(2, 1)[0], y.chunk(2, 2)[1]
    left.relu_()
    return torch.cat([lower, lower], 2)


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize(
    "way",
    [
        through_view,
        through_contiguous,
        through_chunk,
        through_flatten,
        through_unknown_view,
        view_is_read,
        unlike_divisions,
    ],
)
def test_a_view_of_what_is_changed_in_place_is_refused_by_name(way: Forward, example: bool) -> None:
    with pytest.raises(ConfigError, match=r"in place, and .* afterwards, as .*inplace=False"):
        quantize(Parts(way), SHAPE if example else None)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (lambda s, x: s.a(x).fill_(1), r"fill_ changes a tensor in place: write it out"),
        (lambda s, x: torch.add(s.a(x), 1, out=s.c(x)), "add writes into out"),
    ],
)
def test_what_has_no_form_out_of_place_is_refused(way: Forward, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quantize(Parts(way))


def test_the_argument_keeps_working_in_place() -> None:
    float_model = Parts(kept_activation)
    assert not quantize(float_model, SHAPE).get_submodule("silu").inplace
    assert float_model.silu.inplace


# Clips


@pytest.mark.parametrize(
    "way",
    [
        lambda s, x: F.relu6(50 * s.a(x)) + F.relu(9 * s.c(x)),
        lambda s, x: s.b(F.hardtanh(s.a(x), 0, 0.5) + F.relu6(9 * s.c(x))),
        lambda s, x: s.b(torch.cat([F.relu6(50 * s.a(x)), F.relu(9 * s.c(x))], 1)[:, 2:6]),
    ],
)
def test_unlike_limits_that_are_joined_are_kept_and_reported(way: Forward) -> None:
    float_model = Parts(way).eval()
    assert_same_function(float_model, example=True)
    problems = quantize(float_model, SHAPE).report.problems
    assert any("clips at" in p.why and p.severity == "costs area" for p in problems)


def test_unlike_limits_that_are_joined_can_be_built() -> None:
    model = quantize(Parts(lambda s, x: s.b(F.relu6(s.a(x)) + F.relu(s.c(x)))), SHAPE)
    assert model.report.buildable, model.report


def test_alike_limits_share_one_quantizer() -> None:
    model = quantize(Parts(lambda s, x: s.b(F.relu6(s.a(x)) + F.relu6(s.c(x)))), SHAPE)
    assert sum(isinstance(m, qnn.QuantReLU) for m in model.modules()) == 1
    assert not any("clips at" in p.why for p in model.report.problems)


@pytest.mark.parametrize(("clip", "first"), [(F.relu6, "drop"), (F.relu, "relu")])
def test_a_clip_stays_behind_dropout_which_scales(
    clip: Callable[[Tensor], Tensor], first: str
) -> None:
    model = quantize(Parts(lambda s, x: s.b(clip(s.drop(s.a(x))))), SHAPE)
    targets = [str(n.target) for n in model.graph.nodes if str(n.target) in ("drop", "relu6")]
    order = [str(n.target).replace("relu6", "relu") for n in model.graph.nodes]
    assert targets
    assert min(("drop", "relu"), key=lambda t: order.index(t) if t in order else 99) == first


# Hooks


def hooked(hook: Callable[..., Tensor | None]) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5, bias=False)
    ).eval()
    model[1].register_forward_hook(hook)
    return model


def test_a_hook_that_changes_results_is_refused_where_scores_are_compared() -> None:
    with pytest.raises(ConfigError, match=r"hooks change the model's scores \(1\)"):
        quantize(hooked(lambda m, i, o: o * 2), SHAPE)


def test_without_an_example_a_hook_breaks_finn() -> None:
    problems = quantize(hooked(lambda m, i, o: o * 2)).report.problems
    assert {p.layer: p.severity for p in problems if "hooks" in p.why} == {"1": "breaks FINN"}


def test_a_hook_that_only_records_goes_on_working_on_the_argument() -> None:
    seen: list[Tensor] = []
    model = hooked(lambda m, i, o: seen.append(o))
    result = quantize(model, SHAPE)
    assert result.report.buildable
    assert {p.layer: p.severity for p in result.report.problems} == {"1": "costs area"}
    count = len(seen)
    scores(result)
    assert len(seen) == count
    scores(model)
    assert len(seen) == count + 1


# Weights that are computed


def pruned() -> nn.Module:
    return prune.l1_unstructured(nn.Conv2d(3, 4, 3), "weight", 0.5)


def pruned_bias() -> nn.Module:
    return prune.l1_unstructured(nn.Conv2d(3, 4, 3), "bias", 0.5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.utils.weight_norm(nn.Conv2d(3, 4, 3)),
        lambda: nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)),
        lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
        pruned,
        pruned_bias,
    ],
)
def test_a_weight_that_is_no_parameter_is_refused_with_the_remedy(
    make: Callable[[], nn.Module],
) -> None:
    with pytest.raises(ConfigError, match=r"^0\.(weight|bias) is computed .*prune\.remove"):
        quantize(nn.Sequential(make(), nn.Flatten(), nn.Linear(144, 5)), SHAPE)


def test_a_pruned_weight_is_taken_once_it_is_a_parameter() -> None:
    layer = pruned()
    prune.remove(layer, "weight")
    model = quantize(nn.Sequential(layer, nn.Flatten(), nn.Linear(144, 5)), SHAPE)
    assert int((model.get_submodule("0").weight == 0).sum()) == 54


# Reports


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv1d(3, 4, 3), nn.Conv2d(4, 4, (1, 3))
        self.fc = nn.Linear(4 * 60, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.first(x.flatten(2)).unsqueeze(2))
        return self.fc(F.relu(x).flatten(1))


def test_a_layer_that_stays_in_floating_point_is_no_arithmetic_on_pixels() -> None:
    problems = quantize(Sequence(), SHAPE).report.problems
    assert any(p.layer == "first" and p.severity == "breaks FINN" for p in problems)
    assert not any("pixels" in p.why for p in problems)


@pytest.mark.parametrize(
    ("join", "layer"), [(lambda y: y + y, "add"), (lambda y: torch.cat([y, y], 1)[:, :4], "cat")]
)
def test_a_join_of_a_tensor_with_itself_is_named(
    join: Callable[[Tensor], Tensor], layer: str
) -> None:
    problems = quantize(Parts(lambda s, x: s.b(join(F.relu(s.a(x)))))).report.problems
    assert {p.layer for p in problems if "twice" in p.why} == {layer}
