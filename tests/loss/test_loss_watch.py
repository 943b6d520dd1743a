# SPDX-License-Identifier: BSD-3-Clause
"""The criterion of a loop that hands over no inputs: it watches the model."""

from __future__ import annotations

import copy
import gc
import threading
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from brevitas.nn import QuantIdentity, QuantLinear, QuantReLU
from torch import Tensor, nn

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.loss import DivQATLoss, divqat_loss
from brevitas_divqat.quant import Int4WeightPerTensorFloat, Uint4ActPerTensorFloat


def quantized(*, seed: int = 0, quant_tensor: bool = False) -> nn.Sequential:
    """A small Brevitas network whose activation scale is set: 4 features, 5 classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            QuantLinear(4, 8, bias=False, weight_quant=Int4WeightPerTensorFloat),
            QuantReLU(act_quant=Uint4ActPerTensorFloat, collect_stats_steps=1),
            QuantLinear(8, 5, bias=False, weight_quant=Int4WeightPerTensorFloat),
        )
        if quant_tensor:
            model.append(QuantIdentity(return_quant_tensor=True, collect_stats_steps=1))
        model.train()
        with torch.no_grad():
            model(torch.rand(64, 4))
            model(torch.rand(64, 4))
    return model


@pytest.fixture
def float_model() -> nn.Module:
    """Return a reference that a watching criterion can have."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5))


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    found = {name: p.grad for name, p in model.named_parameters()}
    assert any(gradient is not None for gradient in found.values())
    return found


def same(first: dict[str, Tensor | None], second: dict[str, Tensor | None]) -> bool:
    return first.keys() == second.keys() and all(
        a is b is None or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(first.values(), second.values(), strict=True)
    )


def handed_over(
    float_model: nn.Module, batch: Any, **options: Any
) -> tuple[Tensor, dict[str, Any]]:
    """Loss and gradients of a loop that hands over the inputs."""
    model = quantized(**options)
    loss = DivQATLoss(float_model, preset="F3", alpha=0.3)(
        model(batch.inputs), batch.targets, batch.inputs
    )
    loss.backward()
    return loss, gradients(model)


# --- the same as handing over the inputs -------------------------------------------------------


@pytest.mark.parametrize("quant_tensor", [False, True], ids=["Tensor", "QuantTensor"])
def test_watching_gives_the_loss_and_gradients_of_handing_over(
    float_model: nn.Module, batch: Any, quant_tensor: bool
) -> None:
    expected, expected_gradients = handed_over(float_model, batch, quant_tensor=quant_tensor)
    model = quantized(quant_tensor=quant_tensor)
    loss = DivQATLoss(float_model, preset="F3", model=model, alpha=0.3)(
        model(batch.inputs), batch.targets
    )
    loss.backward()
    assert torch.equal(loss, expected)
    assert same(gradients(model), expected_gradients)


AFTERWARDS: dict[str, Callable[[Tensor], Tensor]] = {
    "cast": lambda logits: logits.double().float(),
    "view": lambda logits: logits.unsqueeze(0).squeeze(0),
    "scaled": lambda logits: logits * 1.0,
    "log-probabilities": lambda logits: F.log_softmax(logits, dim=1),
    "log-probabilities, last dimension": lambda logits: F.log_softmax(logits, dim=-1),
    "masked classes": lambda logits: logits.masked_fill(torch.zeros(5, dtype=torch.bool), -1e4),
}


@pytest.mark.parametrize("change", AFTERWARDS.values(), ids=AFTERWARDS)
def test_logits_are_followed_through_what_loops_do_to_them(
    float_model: nn.Module, batch: Any, change: Callable[[Tensor], Tensor]
) -> None:
    model = quantized()
    criterion = DivQATLoss(float_model, preset="F3", model=model, alpha=0.3)
    loss = criterion(change(model(batch.inputs)), batch.targets)
    # Log-probabilities are logits of the same softmax, rounded once more.
    torch.testing.assert_close(loss, handed_over(float_model, batch)[0])


def test_one_pass_serves_two_calls_as_mixup_makes_them(float_model: nn.Module, batch: Any) -> None:
    model = quantized()
    criterion = DivQATLoss(float_model, preset="F3", model=model, alpha=0.3)
    logits = model(batch.inputs)
    assert torch.equal(criterion(logits, batch.targets), criterion(logits, batch.targets))


def test_gradients_accumulate_over_parts_of_a_batch(float_model: nn.Module, batch: Any) -> None:
    expected = handed_over(float_model, batch)[1]
    model = quantized()
    criterion = DivQATLoss(float_model, preset="F3", model=model, alpha=0.3)
    for part in (slice(0, 2), slice(2, 4), slice(4, 6)):
        (criterion(model(batch.inputs[part]), batch.targets[part]) / 3).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)


class Several(nn.Module):
    """Wraps a model's logits as other networks do."""

    def __init__(self, inner: nn.Module, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = inner, kind

    def forward(self, x: Tensor) -> Any:
        logits = self.inner(x)
        if self.kind == "dict":
            return {"features": x, "logits": logits}
        return (logits, [x]) if self.kind == "tuple" else Output(x, logits)


@dataclass
class Output:
    """What some libraries' models return."""

    features: Tensor
    logits: Tensor


@pytest.mark.parametrize("kind", ["tuple", "dict", "dataclass"])
def test_logits_are_found_in_what_the_model_returns(
    float_model: nn.Module, batch: Any, kind: str
) -> None:
    model = Several(quantized(), kind)
    criterion = DivQATLoss(float_model, preset="F3", model=model, alpha=0.3)
    output = model(batch.inputs)
    logits = {"tuple": lambda: output[0], "dict": lambda: output["logits"]}.get(
        kind, lambda: output.logits
    )()
    assert torch.equal(criterion(logits, batch.targets), handed_over(float_model, batch)[0])


def test_another_base_loss_keeps_its_class_weights(float_model: nn.Module, batch: Any) -> None:
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    model = quantized()
    base = nn.CrossEntropyLoss(weight=weight)
    criterion = DivQATLoss(float_model, preset="F3", model=model, alpha=0.3, base=base)
    logits = model(batch.inputs)
    plain = divqat_loss(
        logits, batch.targets, float_model(batch.inputs), alpha=0.3, temperature=4.0
    )
    expected = F.cross_entropy(logits, batch.targets, weight=weight) - 0.3 * plain.divergence
    torch.testing.assert_close(criterion(logits, batch.targets), expected)
    with pytest.raises(ConfigError, match="label_smoothing is 0.1 and base is given"):
        DivQATLoss(float_model, preset="F3", base=base, label_smoothing=0.1)


def test_a_reference_that_changes_its_input_leaves_the_batch(batch: Any) -> None:
    reference = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 5))
    inputs = batch.inputs - 0.5
    before = inputs.clone()
    model = quantized()
    criterion = DivQATLoss(reference, preset="F3", model=model, alpha=0.3)
    criterion(model(inputs), batch.targets).backward()
    assert torch.equal(inputs, before)


def test_keyword_arguments_reach_the_reference(batch: Any) -> None:
    class Scaled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor, *, factor: Tensor) -> Any:
            return self.inner(x * factor)

    reference = nn.Linear(4, 5)
    model = Scaled(quantized())
    criterion = DivQATLoss(Scaled(reference), preset="F3", model=model, alpha=0.3)
    factor = torch.tensor(2.0)
    logits = model(batch.inputs, factor=factor)
    expected = divqat_loss(
        logits, batch.targets, reference(batch.inputs * factor), alpha=0.3, temperature=4.0
    )
    assert torch.equal(criterion(logits, batch.targets), expected.loss)


def test_autocast_gives_finite_losses_in_float32(float_model: nn.Module, batch: Any) -> None:
    model = quantized()
    criterion = DivQATLoss(float_model, preset="F3", model=model, alpha=0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(batch.inputs)
        inside = criterion(logits, batch.targets)
    assert logits.dtype == torch.bfloat16
    assert inside.dtype == torch.float32
    inside.backward()
    assert all(g is None or bool(torch.isfinite(g).all()) for g in gradients(model).values())
    torch.testing.assert_close(
        inside, handed_over(float_model, batch)[0], rtol=0.05, atol=0.05
    )  # bfloat16 has 8 bits


@pytest.mark.parametrize("order", ["compiled, then watched", "watched, then compiled", "step"])
def test_compiled_models_are_watched(float_model: nn.Module, batch: Any, order: str) -> None:
    import torch._dynamo

    torch._dynamo.reset()
    model: Any = quantized()
    named = dict(model.named_parameters())
    if order == "compiled, then watched":
        model = torch.compile(model, backend="aot_eager")
    criterion = DivQATLoss(float_model, preset="F3", model=model, alpha=0.3)
    if order == "watched, then compiled":
        model = torch.compile(model, backend="aot_eager")

    def step() -> Tensor:
        return criterion(model(batch.inputs), batch.targets)

    run = torch.compile(step, backend="aot_eager") if order == "step" else step
    # Dynamo cannot trace Brevitas' QuantTensor (torch 2.12, Brevitas 0.13): it may fall back.
    with torch._dynamo.config.patch(suppress_errors=True):
        loss = run()
    loss.backward()
    expected, expected_gradients = handed_over(float_model, batch)
    torch.testing.assert_close(loss, expected)
    for name, parameter in named.items():
        torch.testing.assert_close(parameter.grad, expected_gradients[name])
    torch._dynamo.reset()


# --- evaluation --------------------------------------------------------------------------------


def test_a_model_in_evaluation_mode_gets_the_cross_entropy(
    never_called: nn.Module, batch: Any
) -> None:
    model = quantized()
    criterion = DivQATLoss(never_called, preset="F3", model=model, alpha=0.3)
    logits = model.eval()(batch.inputs)
    with pytest.warns(UserWarning, match="the model is in evaluation mode while") as caught:
        loss = criterion(logits, batch.targets)
    assert caught[0].filename == __file__
    assert torch.equal(loss, F.cross_entropy(logits, batch.targets))
    assert criterion.step == 0


def test_a_criterion_in_evaluation_mode_says_so_where_the_model_trains(
    never_called: nn.Module, batch: Any
) -> None:
    model = quantized()
    criterion = DivQATLoss(never_called, preset="F3", model=model, alpha=0.3).eval()
    logits = model(batch.inputs)
    with pytest.warns(UserWarning, match=r"it is in evaluation mode .* criterion.train\(\)"):
        loss = criterion(logits, batch.targets)
    assert torch.equal(loss, F.cross_entropy(logits, batch.targets))
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion(model(batch.inputs), batch.targets)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_is_the_cross_entropy(
    never_called: nn.Module, batch: Any, off: Callable[[], Any]
) -> None:
    model = quantized()
    criterion = DivQATLoss(never_called, preset="F3", model=model, alpha=0.3)
    with off():
        logits = model(batch.inputs)
        loss = criterion(logits, batch.targets)
        handed = DivQATLoss(never_called, preset="F3", alpha=0.3)(
            logits, batch.targets, batch.inputs
        )
        expected = F.cross_entropy(logits, batch.targets)
    assert torch.equal(loss, expected)
    assert torch.equal(handed, expected)


def test_an_evaluation_in_between_does_not_disturb(float_model: nn.Module, batch: Any) -> None:
    model = quantized()
    criterion = DivQATLoss(float_model, preset="F3", model=model, alpha=0.3)
    logits = model(batch.inputs)
    with torch.no_grad():
        model(torch.rand(3, 4))
    assert torch.equal(criterion(logits, batch.targets), handed_over(float_model, batch)[0])


# --- what watching must not do -----------------------------------------------------------------


def test_the_model_s_state_and_copies_are_those_of_an_unwatched_one(
    float_model: nn.Module, batch: Any
) -> None:
    model = quantized()
    keys = list(model.state_dict())
    criterion = DivQATLoss(float_model, preset="F3", model=model, alpha=0.3)
    model(batch.inputs)
    assert list(model.state_dict()) == keys
    twin = copy.deepcopy(model)
    logits = model(batch.inputs)
    twin(torch.rand(2, 4))  # a copy's pass is none of the model's
    criterion(logits, batch.targets)


def test_the_hook_goes_with_the_criterion(float_model: nn.Module) -> None:
    model = quantized()
    criterion = DivQATLoss(float_model, preset="F3", model=model, alpha=0.3)
    assert (len(model._forward_pre_hooks), len(model._forward_hooks)) == (1, 1)
    del criterion
    gc.collect()
    assert (len(model._forward_pre_hooks), len(model._forward_hooks)) == (0, 0)


def test_at_alpha_0_nothing_is_hooked(float_model: nn.Module) -> None:
    model = quantized()
    DivQATLoss(float_model, model=model, alpha=0.0)
    assert len(model._forward_hooks) == 0


def test_a_batch_is_let_go_once_its_loss_is_known(float_model: nn.Module, batch: Any) -> None:
    model = quantized()
    criterion = DivQATLoss(float_model, preset="F3", model=model, alpha=0.3)
    inputs = batch.inputs.clone()
    gone = weakref.ref(inputs)
    criterion(model(inputs), batch.targets).backward()
    del inputs
    gc.collect()
    assert gone() is None


class Trainer(nn.Module):
    """A module that owns model and criterion, as Lightning's do."""

    def __init__(self, model: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion


@pytest.mark.parametrize("warmup", [0, 5])
def test_checkpoints_of_plain_and_hardened_trainings_fit_each_other(
    float_model: nn.Module, warmup: int
) -> None:
    model = quantized()
    plain = Trainer(model, nn.CrossEntropyLoss())
    hardened = Trainer(
        model, DivQATLoss(float_model, preset="F3", model=model, warmup_steps=warmup)
    )
    hardened.load_state_dict(plain.state_dict())
    if warmup == 0:
        assert hardened.state_dict().keys() == plain.state_dict().keys()
        plain.load_state_dict(hardened.state_dict())
    counted = DivQATLoss(float_model, preset="F3", warmup_steps=5)
    counted.step += 3
    other = DivQATLoss(float_model, preset="F3", warmup_steps=warmup)
    other.load_state_dict(counted.state_dict())
    assert int(other.step) == (3 if warmup else 0)


# --- mistakes ----------------------------------------------------------------------------------


def test_without_inputs_and_model_it_says_what_to_do(float_model: nn.Module, batch: Any) -> None:
    with pytest.raises(TypeError, match=r"DivQATLoss\(reference, model=model\)"):
        DivQATLoss(float_model, preset="F3", alpha=0.3)(batch.logits, batch.targets)


def test_logits_of_an_earlier_pass_are_refused(float_model: nn.Module, batch: Any) -> None:
    model = quantized()
    criterion = DivQATLoss(float_model, preset="F3", model=model, alpha=0.3)
    first = model(batch.inputs)
    model(batch.inputs)
    with pytest.raises(ConfigError, match="are not what the model's last forward pass returned"):
        criterion(first, batch.targets)


def compiled_flip(logits: Tensor) -> Tensor:
    flip: Callable[[Tensor], Tensor] = torch.compile(lambda x: x.flip(0), backend="aot_eager")
    return flip(logits)


MIXED: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "reordered": lambda model, x: model(x)[torch.tensor([1, 0, 2, 3, 4, 5])],
    "a part": lambda model, x: model(x)[:6],
    "compiled reordering": lambda model, x: compiled_flip(model(x)),
    "softmax over images": lambda model, x: F.log_softmax(model(x), dim=0),
    "two passes": lambda model, x: (model(x) + model(x.flip(0))) / 2,
}


@pytest.mark.parametrize("mix", MIXED.values(), ids=MIXED)
def test_logits_of_other_images_than_the_pass_s_are_refused(
    float_model: nn.Module, batch: Any, mix: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    model = quantized()
    criterion = DivQATLoss(float_model, preset="F3", model=model, alpha=0.3)
    with pytest.raises(ConfigError, match="image by image"):
        criterion(mix(model, batch.inputs), batch.targets)


def test_inputs_changed_by_the_loop_or_the_model_are_refused(
    float_model: nn.Module, batch: Any
) -> None:
    class Normalising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = quantized()

        def forward(self, x: Tensor) -> Any:
            return self.inner(x.sub_(0.5))

    model = quantized()
    criterion = DivQATLoss(float_model, preset="F3", model=model, alpha=0.3)
    inputs = batch.inputs.clone()
    logits = model(inputs)
    inputs.zero_()
    with pytest.raises(ConfigError, match="changed in place since its forward pass began"):
        criterion(logits, batch.targets)
    normalising = Normalising()
    criterion = DivQATLoss(float_model, preset="F3", model=normalising, alpha=0.3)
    with pytest.raises(ConfigError, match="changed in place since its forward pass began"):
        criterion(normalising(batch.inputs.clone()), batch.targets)


def test_a_copied_criterion_says_that_it_watches_nothing(
    float_model: nn.Module, batch: Any
) -> None:
    model = quantized()
    both = Trainer(model, DivQATLoss(float_model, preset="F3", model=model, alpha=0.3))
    copied = copy.deepcopy(both)
    with pytest.raises(ConfigError, match="is a copy, and watches no model: make a new one"):
        copied.criterion(copied.model(batch.inputs), batch.targets)
    loss = copied.criterion(copied.model(batch.inputs), batch.targets, batch.inputs)
    assert torch.equal(loss, handed_over(float_model, batch)[0])


def test_a_base_loss_is_one_number(float_model: nn.Module, batch: Any) -> None:
    base = nn.CrossEntropyLoss(reduction="none")
    criterion = DivQATLoss(float_model, preset="F3", alpha=0.3, base=base)
    with pytest.raises(ConfigError, match=r"base returns a loss of shape \(6,\)"):
        criterion(batch.logits, batch.targets, batch.inputs)


def test_a_reference_that_cannot_be_copied_is_refused(float_model: nn.Module) -> None:
    float_model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="the reference Sequential cannot be copied: .*lock"):
        DivQATLoss(float_model, preset="F3")


@pytest.mark.parametrize("reference", [None, nn.Linear(4, 5).forward, {}])
def test_a_reference_is_a_module(reference: Any) -> None:
    with pytest.raises(ConfigError, match="reference is a .*: give the full-precision nn.Module"):
        DivQATLoss(reference, preset="F3")


def test_a_model_is_a_module(float_model: nn.Module) -> None:
    with pytest.raises(ConfigError, match="model is a str: give the nn.Module that is trained"):
        DivQATLoss(float_model, preset="F3", model="model")  # type: ignore[arg-type]


def test_a_scripted_reference_serves(float_model: nn.Module, batch: Any) -> None:
    scripted = torch.jit.script(float_model)
    model = quantized()
    loss = DivQATLoss(scripted, preset="F3", model=model, alpha=0.3)(
        model(batch.inputs), batch.targets
    )
    torch.testing.assert_close(loss, handed_over(float_model, batch)[0])


def test_a_reference_of_another_type_is_refused(float_model: nn.Module, batch: Any) -> None:
    criterion = DivQATLoss(float_model, preset="F3", alpha=0.3)
    with pytest.raises(ConfigError, match=r"is of .*float32, .* call criterion.to\(torch.float64"):
        criterion(batch.logits.double(), batch.targets, batch.inputs.double())


def test_given_reference_logits_get_no_gradient_and_are_a_tensor(
    float_model: nn.Module, batch: Any
) -> None:
    criterion = DivQATLoss(float_model, preset="F3", alpha=0.3)
    given = float_model(batch.inputs)
    criterion(batch.logits, batch.targets, reference_logits=given).backward()
    assert all(p.grad is None for p in float_model.parameters())
    with pytest.raises(TypeError, match="reference_logits is a ndarray: give a tensor"):
        criterion(batch.logits, batch.targets, reference_logits=given.detach().numpy())
    with pytest.raises(ConfigError, match=r"\(3, 5\), the model \(6, 5\): .* the same images"):
        criterion(batch.logits, batch.targets, reference_logits=given[:3])


def test_logits_without_any_pass_are_refused(float_model: nn.Module, batch: Any) -> None:
    criterion = DivQATLoss(float_model, preset="F3", model=quantized(), alpha=0.3)
    with pytest.raises(ConfigError, match="has seen no training pass"):
        criterion(batch.logits, batch.targets)


def test_data_parallel_is_refused_with_the_reason(float_model: nn.Module, batch: Any) -> None:
    model = quantized()
    with pytest.raises(ConfigError, match="DataParallel, whose replicas .* DistributedDataPara"):
        DivQATLoss(float_model, preset="F3", model=nn.DataParallel(model), alpha=0.3)
    criterion = DivQATLoss(float_model, preset="F3", model=model, alpha=0.3)
    replica = model._replicate_for_data_parallel()  # what DataParallel runs on each GPU
    with pytest.raises(ConfigError, match="runs in DataParallel"):
        replica(batch.inputs)
    assert criterion.step == 0


def test_a_model_without_quantizers_is_refused(float_model: nn.Module) -> None:
    with pytest.raises(ConfigError, match="Linear has no enabled quantizer: .*quantize"):
        DivQATLoss(float_model, preset="F3", model=nn.Linear(4, 5), alpha=0.3)


def test_the_trained_model_as_its_own_reference_is_refused() -> None:
    model = quantized()
    with pytest.raises(ConfigError, match="is quantized, being the trained model itself: give"):
        DivQATLoss(model, preset="F3", model=model, alpha=0.3)
    with pytest.raises(ConfigError, match="the reference Sequential is quantized: give"):
        DivQATLoss(model, preset="F3", alpha=0.3)


def test_a_reference_that_was_put_in_training_mode_is_refused(
    float_model: nn.Module, batch: Any
) -> None:
    criterion = DivQATLoss(float_model, preset="F3", alpha=0.3)
    criterion.reference.train()
    with pytest.raises(ConfigError, match=r"Sequential is in training mode: call .*eval\(\)"):
        criterion(batch.logits, batch.targets, batch.inputs)


def test_a_reference_on_another_device_is_refused(float_model: nn.Module, batch: Any) -> None:
    criterion = DivQATLoss(float_model, preset="F3", alpha=0.3)
    with pytest.raises(ConfigError, match=r"is on cpu, .* on meta: call criterion.to\('meta'\)"):
        criterion(batch.logits, batch.targets, batch.inputs.to("meta"))


def test_inputs_that_the_reference_cannot_take_are_refused(batch: Any) -> None:
    criterion = DivQATLoss(nn.Linear(7, 5), preset="F3", alpha=0.3)
    with pytest.raises(ConfigError, match=r"Linear cannot take .* \[\(6, 4\)\] .*float32"):
        criterion(batch.logits, batch.targets, batch.inputs)


def test_a_reference_of_other_classes_is_refused(batch: Any) -> None:
    criterion = DivQATLoss(nn.Linear(4, 3), preset="F3", alpha=0.3)
    with pytest.raises(ConfigError, match=r"logits of shape \(6, 3\), the model \(6, 5\)"):
        criterion(batch.logits, batch.targets, batch.inputs)


def test_a_reference_that_returns_no_logits_is_refused(batch: Any) -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    criterion = DivQATLoss(Pair(), preset="F3", alpha=0.3)
    with pytest.raises(ConfigError, match=r"Pair gives tuple: it must return logits"):
        criterion(batch.logits, batch.targets, batch.inputs)
