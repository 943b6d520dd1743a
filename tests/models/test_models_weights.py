# SPDX-License-Identifier: BSD-3-Clause
"""Loading trained full-precision weights: prefixes, files, scales, reports, refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import pytest
import torch
from brevitas import config
from safetensors.torch import save_file
from torch import Tensor, nn

from brevitas_divqat.errors import CheckpointError, ConfigError
from brevitas_divqat.models import Precision, build, load_float_weights

State = dict[str, Tensor]
ACT_SCALE = "act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value"
WEIGHT_SCALE = "weight_quant.tensor_quant.scaling_impl.value"


class Block(nn.Module):
    """torchvision's basic block, in the layers that are given."""

    def __init__(self, conv: Callable[..., nn.Module], relu: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1 = conv(8, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = relu()
        self.conv2 = conv(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch."""
        out: Tensor = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)
        return out


class Net(nn.Module):
    """A small residual network with torchvision's names, in either precision."""

    def __init__(self, quantized: bool = True, classes: int = 10, **scale: Any) -> None:
        super().__init__()

        def conv(*args: Any, **kwargs: Any) -> nn.Module:
            if not quantized:
                return nn.Conv2d(*args, **kwargs)
            layer: nn.Module = qnn.QuantConv2d(*args, **kwargs, weight_bit_width=4, **scale)
            return layer

        def relu() -> nn.Module:
            return qnn.QuantReLU(bit_width=4) if quantized else nn.ReLU()

        linear = qnn.QuantLinear if quantized else nn.Linear
        self.conv1 = conv(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = relu()
        self.layer1 = nn.Sequential(Block(conv, relu), Block(conv, relu))
        self.fc = linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify (N, 3, H, W) images."""
        x = self.layer1(self.relu(self.bn1(self.conv1(x))))
        scores: Tensor = self.fc(x.mean((2, 3)))
        return scores


@pytest.fixture(autouse=True)
def flags() -> Iterator[None]:
    """Hold Brevitas' flags to what they were."""
    before = config.IGNORE_MISSING_KEYS, config.REINIT_ON_STATE_DICT_LOAD
    yield
    assert before == (config.IGNORE_MISSING_KEYS, config.REINIT_ON_STATE_DICT_LOAD)


def snapshot(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_float_weights_reach_their_layers() -> None:
    twin, model = Net(quantized=False), Net()
    report = load_float_weights(model, twin.state_dict())
    found, wanted = model.state_dict(), twin.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert report.loaded == tuple(sorted(wanted))
    assert report.initialised == tuple(
        f"{relu}.{ACT_SCALE}" for relu in ("layer1.0.relu", "layer1.1.relu", "relu")
    )
    assert (report.unexpected, report.missing) == ((), ())
    assert str(report) == f"{len(wanted)} loaded, 3 initialised"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
        lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
        lambda s: {k.replace("layer1.", "layer1._orig_mod."): v for k, v in s.items()},
        lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "epoch": 3},
        lambda s: {f"net.{k}": v for k, v in s.items()},
        lambda s: {f"student.model._orig_mod.{k}": v for k, v in s.items()},
        lambda s: {"model": s, "optimizer": {}},
        lambda s: {"net": {f"module.{k}": v for k, v in s.items()}, "acc": 1.0, "epoch": 3},
    ],
    ids=["DataParallel", "compiled", "both", "compiled part", "Lightning", "net", "student"]
    + ["torchvision", "net's own"],
)
def test_wrappers_are_taken_off(wrap: Any) -> None:
    twin, model = Net(quantized=False), Net()
    load_float_weights(model, wrap(twin.state_dict()))
    assert torch.equal(model.layer1[1].conv2.weight, twin.layer1[1].conv2.weight)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models_are_looked_into(wrap: Any) -> None:
    twin, model = Net(quantized=False), Net()
    load_float_weights(wrap(model), twin.state_dict())
    assert torch.equal(model.fc.weight, twin.fc.weight)


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def test_what_stands_beside_the_network_is_told() -> None:
    twin, model = Net(quantized=False), Net()
    beside = {"criterion.step": torch.tensor(3), "criterion.weight": torch.ones(10)}
    report = load_float_weights(model, prefixed("net.", twin.state_dict()) | beside)
    assert equal(
        {name: model.state_dict()[name] for name in twin.state_dict()}, dict(twin.state_dict())
    )
    assert report.unexpected == ("criterion.step", "criterion.weight")
    assert report.missing == ()


def test_a_name_beside_the_prefix_is_not_taken_for_the_network_s() -> None:
    twin, model = Net(quantized=False), Net()
    state = prefixed("net.", twin.state_dict()) | {"bn1.bias": torch.full((8,), 5.0)}
    report = load_float_weights(model, state)
    assert torch.equal(model.bn1.bias, twin.bn1.bias)
    assert report.unexpected == ("bn1.bias",)


@pytest.mark.parametrize(
    ("left", "message"),
    [
        ({"net.head.scale": torch.ones(1)}, "unexpected head.scale"),
        ({"model.scale": torch.ones(1)}, "beside the network's.*'model.net.': model.scale"),
        ({"head.weight": torch.ones(2, 2)}, "beside the network's.*: head.weight; give the names"),
        (
            {"head.weight": torch.ones(2, 2), "head.bias": torch.ones(2)},
            "head.bias, head.weight; give the names that start with 'model.net.' alone, or strict",
        ),
    ],
)
def test_what_may_be_the_network_s_is_refused(left: State, message: str) -> None:
    model, state = Net(), prefixed("model.net.", Net(quantized=False).state_dict())
    if "net.head.scale" in left:
        left = prefixed("model.", left)
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_float_weights(model, state | left)
    assert "\n" not in str(caught.value)
    assert equal(before, model.state_dict())
    assert len(load_float_weights(model, state | left, strict=False).unexpected) == len(left)


def test_two_networks_that_fit_are_not_chosen_between() -> None:
    state = Net(quantized=False).state_dict()
    both = prefixed("student.", state) | prefixed("teacher.", state)
    with pytest.raises(CheckpointError, match=r"under student\., teacher\.: give the names of one"):
        load_float_weights(Net(), both, strict=False)
    twice = state | prefixed("ema.", state)  # the plain names are the model's own
    with pytest.raises(CheckpointError, match=r"unexpected ema\.bn1\.bias"):
        load_float_weights(Net(), twice)


def test_shared_quantizers() -> None:
    """A quantizer of two layers' weights is listed under both, and lists both weights."""
    first = qnn.QuantLinear(
        4, 4, weight_bit_width=4, weight_scaling_impl_type="parameter_from_stats"
    )
    model = nn.Sequential(first, qnn.QuantLinear(4, 4, weight_quant=first.weight_quant))
    twin = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    report = load_float_weights(model, twin.state_dict())
    assert report.loaded == ("0.bias", "0.weight", "1.bias", "1.weight")
    assert report.initialised == (f"0.{WEIGHT_SCALE}", f"1.{WEIGHT_SCALE}")
    greatest = max(float(p.detach().abs().max()) for p in (twin[0].weight, twin[1].weight))
    assert torch.allclose(model[1].quant_weight().scale, torch.tensor(greatest / 7))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files(suffix: str, tmp_path: Path) -> None:
    twin, path = Net(quantized=False), tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(twin.state_dict(), path)
    model = Net()
    load_float_weights(model, path)
    assert torch.equal(model.fc.weight, twin.fc.weight)


def test_torchvision_s_resnet_and_other_classes() -> None:
    torchvision = pytest.importorskip("torchvision")
    state = torchvision.models.resnet18(num_classes=7).state_dict()
    model = torchvision.models.resnet18(num_classes=3)
    model.conv1 = qnn.QuantConv2d(3, 64, 7, stride=2, padding=3, bias=False, weight_bit_width=4)
    model.relu = qnn.QuantReLU(bit_width=4)
    model.fc = qnn.QuantLinear(512, 3)
    own = model.fc.weight.detach().clone()
    with pytest.raises(CheckpointError, match=r"fc\.weight.*\(7, 512\).*\(3, 512\).*skip=\('fc\.'"):
        load_float_weights(model, state)
    report = load_float_weights(model, state, skip=("fc.",))
    assert torch.equal(model.conv1.weight, state["conv1.weight"])
    assert torch.equal(model.fc.weight, own)
    assert {"fc.weight", "fc.bias", f"relu.{ACT_SCALE}"} <= set(report.initialised)
    assert report.unexpected == ()


@pytest.mark.parametrize("reinit", [True, False])
@pytest.mark.parametrize("used", [True, False])
def test_scales_from_statistics_start_from_the_loaded_weights(
    used: bool, reinit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "REINIT_ON_STATE_DICT_LOAD", reinit)
    twin = Net(quantized=False)
    with torch.no_grad():
        twin.conv1.weight.mul_(20)
    model = Net(weight_scaling_impl_type="parameter_from_stats")
    if used:  # its scales are set by what it was initialised with
        model(torch.rand(2, 3, 8, 8))
    report = load_float_weights(model, twin.state_dict())
    assert f"conv1.{WEIGHT_SCALE}" in report.initialised
    greatest = twin.conv1.weight.detach().abs().max()
    assert torch.allclose(model.conv1.quant_weight().scale, greatest / 7)


def test_missing_keys_are_told_also_where_brevitas_was_told_to_ignore_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(config, "IGNORE_MISSING_KEYS", True)
    report = load_float_weights(Net(), Net(quantized=False).state_dict())
    assert len(report.initialised) == 3


def test_our_own_networks() -> None:
    twin = build("lenet5", (1, 8, 8), 10, precision=None)
    model = build("lenet5", (1, 8, 8), 10, precision=Precision())
    report = load_float_weights(model, twin.state_dict())
    assert len(report.loaded) == len(twin.state_dict())
    assert all(name.endswith(ACT_SCALE) for name in report.initialised)


def test_a_quantized_checkpoint_needs_all_its_scales() -> None:
    trained, model = Net(), Net()
    trained(torch.rand(2, 3, 8, 8))
    state = trained.state_dict()
    assert load_float_weights(model, state).initialised == ()
    assert equal(model.state_dict(), state)
    del state[f"relu.{ACT_SCALE}"]
    with pytest.raises(CheckpointError, match=rf"has no relu\.{ACT_SCALE}.*strict=False") as caught:
        load_float_weights(model, state)
    assert "\n" not in str(caught.value)
    assert load_float_weights(model, state, strict=False).initialised == (f"relu.{ACT_SCALE}",)


def test_what_does_not_fit_is_reported_where_that_is_wished() -> None:
    model, state = Net(), Net(quantized=False).state_dict()
    del state["bn1.bias"]
    state["head.weight"] = torch.zeros(1)
    report = load_float_weights(model, state, strict=False)
    assert (report.unexpected, report.missing) == (("head.weight",), ("bn1.bias",))
    assert "1 unexpected (head.weight), 1 missing (bn1.bias)" in str(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("bn1.bias"), "missing bn1.bias, unexpected nothing"),
        (lambda s: s.update({"head.weight": torch.zeros(1)}), "unexpected head.weight"),
        (lambda s: s.update({"fc.bias": torch.zeros(4)}), r"fc\.bias has shape \(4,\)"),
        (lambda s: s.update({"fc.bias": 3}), "an? int under 'fc.bias'"),
        (lambda s: s.clear(), "holds nothing"),
    ],
)
def test_weights_of_another_network_leave_the_model_untouched(change: Any, message: str) -> None:
    model, state = Net(), dict(Net(quantized=False).state_dict())
    model(torch.rand(2, 3, 8, 8))
    before, parameters = snapshot(model), [*map(id, model.parameters())]
    change(state)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_float_weights(model, state)
    assert "\n" not in str(caught.value)
    assert equal(before, model.state_dict())
    assert parameters == [*map(id, model.parameters())]


def test_flags_are_restored_when_torch_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = Net(), []

    def fail(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        seen.append((config.IGNORE_MISSING_KEYS, config.REINIT_ON_STATE_DICT_LOAD))
        raise RuntimeError("size mismatch\nfor something")

    monkeypatch.setattr(Net, "load_state_dict", fail)
    with pytest.raises(CheckpointError, match="another network: size mismatch for something"):
        load_float_weights(model, Net(quantized=False).state_dict())
    assert seen == [(False, True)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.pth", None, "cannot read the checkpoint"),
        ("broken.pth", b"no checkpoint", "damaged"),
        ("broken.safetensors", b"no checkpoint", "damaged"),
    ],
)
def test_bad_files(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_float_weights(Net(), path)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(Net(quantized=False), path)
    with pytest.raises(CheckpointError, match=r"save model\.state_dict\(\) alone"):
        load_float_weights(Net(), path)


@pytest.mark.parametrize(
    ("skip", "message"),
    [(("cf.",), "did you mean 'fc.'"), ("fc.", "give a tuple"), (("",), "in no name")],
)
def test_bad_skip(skip: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_float_weights(Net(), Net(quantized=False).state_dict(), skip=skip)


def test_other_names_and_other_things_are_refused() -> None:
    with pytest.raises(CheckpointError, match="none of their names is in the model"):
        load_float_weights(Net(), {"alien.kernel": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"an? int under 'epoch'.*here perhaps \['ema'\]"):
        load_float_weights(Net(), {"epoch": 3, "ema": Net(quantized=False).state_dict()})
    with pytest.raises(CheckpointError, match="a Net: give names and tensors"):
        load_float_weights(Net(), Net())  # type: ignore[arg-type]
