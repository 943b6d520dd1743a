# SPDX-License-Identifier: BSD-3-Clause
"""The criterion never touches its reference, and at alpha 0 it is plain cross-entropy."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brevitas_divqat.loss import DivQATLoss, LossConfig, divqat_loss


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that must not change: tensors, modes, and what is trained."""
    return {
        "state": {name: t.clone() for name, t in model.state_dict().items()},
        "training": {name: module.training for name, module in model.named_modules()},
        "trained": {name: p.requires_grad for name, p in model.named_parameters()},
        "gradients": {name: p.grad is not None for name, p in model.named_parameters()},
    }


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    states = first.pop("state"), second.pop("state")
    return (
        first == second
        and states[0].keys() == states[1].keys()
        and all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    )


# --- alpha 0 is plain training ---------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.bfloat16],
    ids=["float32", "float64", "bfloat16"],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("preset", ["F1", "F3"])
def test_alpha_0_is_cross_entropy_bit_for_bit(
    batch: Any, never_called: nn.Module, preset: Any, smoothing: float, dtype: torch.dtype
) -> None:
    criterion = DivQATLoss(never_called, preset=preset, alpha=0.0, label_smoothing=smoothing)
    logits = batch.logits.detach().to(dtype).requires_grad_()
    plain = logits.detach().clone().requires_grad_()
    loss = criterion(logits, batch.targets, batch.inputs)
    expected = F.cross_entropy(plain, batch.targets, label_smoothing=smoothing)
    loss.backward()
    expected.backward()
    assert torch.equal(loss, expected)
    assert torch.equal(logits.grad, plain.grad)


def test_alpha_0_needs_no_inputs(batch: Any, never_called: nn.Module) -> None:
    criterion = DivQATLoss(never_called, alpha=0.0, warmup_steps=5)
    assert torch.equal(
        criterion(batch.logits, batch.targets), F.cross_entropy(batch.logits, batch.targets)
    )


def test_evaluation_is_cross_entropy_without_the_reference(
    batch: Any, never_called: nn.Module
) -> None:
    criterion = DivQATLoss(never_called, preset="F3", alpha=0.5, label_smoothing=0.1).eval()
    expected = F.cross_entropy(batch.logits, batch.targets, label_smoothing=0.1)
    assert torch.equal(criterion(batch.logits, batch.targets, batch.inputs), expected)
    assert torch.equal(criterion(batch.logits, batch.targets), expected)
    assert criterion.step == 0


# --- the loss itself ---------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["F1", "F3"])
def test_loss_is_that_of_the_function(batch: Any, reference: nn.Module, preset: Any) -> None:
    criterion = DivQATLoss(reference, preset=preset)
    config = LossConfig(preset)
    with torch.no_grad():
        reference_logits = copy.deepcopy(reference).eval()(batch.inputs)
    expected = divqat_loss(
        batch.logits,
        batch.targets,
        reference_logits,
        alpha=config.weight,
        direction=config.direction,
        temperature=config.softness,
    )
    assert torch.equal(criterion(batch.logits, batch.targets, batch.inputs), expected.loss)
    assert torch.equal(criterion.report.divergence, expected.divergence)
    assert torch.equal(criterion.report.cross_entropy, expected.cross_entropy)
    assert criterion.report.alpha == config.weight


def test_report_carries_no_gradient(batch: Any, reference: nn.Module) -> None:
    criterion = DivQATLoss(reference, preset="F3")
    criterion(batch.logits, batch.targets, batch.inputs)
    tensors = [value for value in criterion.report if isinstance(value, Tensor)]
    assert len(tensors) == 4
    assert not any(value.requires_grad for value in tensors)


def test_report_measures_confidence(batch: Any, reference: nn.Module) -> None:
    criterion = DivQATLoss(reference, preset="F3")
    criterion(torch.zeros(6, 5), batch.targets, batch.inputs)
    assert criterion.report.max_probability == pytest.approx(0.2)
    assert criterion.report.entropy == pytest.approx(torch.log(torch.tensor(5.0)).item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("preset", ["F1", "F3"])
def test_saturated_logits_under_autocast_stay_finite(
    batch: Any, reference: nn.Module, preset: Any, dtype: torch.dtype
) -> None:
    with torch.no_grad():
        reference[-1].weight.mul_(1e4)
    criterion = DivQATLoss(reference, preset=preset, temperature=1.0)
    logits = (1e4 * batch.logits.detach().sign()).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion(logits, batch.targets, batch.inputs)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert all(torch.isfinite(value) for value in criterion.report[:4])


def test_missing_inputs_are_refused_with_the_corrected_call(
    batch: Any, reference: nn.Module
) -> None:
    with pytest.raises(TypeError, match=r"criterion\(logits, targets, inputs\)"):
        DivQATLoss(reference, preset="F3")(batch.logits, batch.targets)


def test_refused_call_does_not_count_as_a_step(batch: Any, reference: nn.Module) -> None:
    criterion = DivQATLoss(reference, preset="F3", warmup_steps=4)
    with pytest.raises(TypeError):
        criterion(batch.logits, batch.targets)
    assert criterion.step == 0


# --- warm-up -----------------------------------------------------------------------------------


def alphas(criterion: DivQATLoss, batch: Any, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        criterion(batch.logits, batch.targets, batch.inputs)
        found.append(criterion.report.alpha)
    return found


def test_warm_up_grows_linearly_from_0_to_alpha(batch: Any, reference: nn.Module) -> None:
    criterion = DivQATLoss(reference, preset="F3", alpha=0.5, warmup_steps=4)
    assert alphas(criterion, batch, 6) == [0.0, 0.125, 0.25, 0.375, 0.5, 0.5]


def test_without_warm_up_alpha_is_constant(batch: Any, reference: nn.Module) -> None:
    assert alphas(DivQATLoss(reference, preset="F3", alpha=0.5), batch, 3) == [0.5] * 3


def test_evaluation_does_not_advance_the_warm_up(batch: Any, reference: nn.Module) -> None:
    criterion = DivQATLoss(reference, preset="F3", alpha=0.5, warmup_steps=4)
    alphas(criterion, batch, 2)
    criterion.eval()(batch.logits, batch.targets)
    assert alphas(criterion.train(), batch, 1) == [0.25]


def test_warm_up_survives_a_state_dict_round_trip(batch: Any, reference: nn.Module) -> None:
    first = DivQATLoss(reference, preset="F3", alpha=0.5, warmup_steps=4)
    alphas(first, batch, 3)
    second = DivQATLoss(reference, preset="F3", alpha=0.5, warmup_steps=4)
    second.load_state_dict(first.state_dict())
    assert alphas(second, batch, 2) == alphas(first, batch, 2) == [0.375, 0.5]


# --- the reference -----------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_reference_and_its_copy_never_change(
    batch: Any, reference: nn.Module, training: bool
) -> None:
    reference.train(training)
    reference[0].weight.requires_grad_(False)
    before = snapshot(reference)
    criterion = DivQATLoss(reference, preset="F3", alpha=0.5)
    copied = snapshot(criterion.reference)
    model = nn.Linear(4, 5)
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.1)
    for _ in range(3):
        criterion.train()
        optimizer.zero_grad()
        criterion(model(batch.inputs), batch.targets, batch.inputs).backward()
        optimizer.step()
    assert same(snapshot(reference), before)
    assert not any(copied["training"].values())
    assert not any(copied["trained"].values())
    assert same(snapshot(criterion.reference), copied)


def test_reference_is_a_copy_that_the_caller_cannot_change(
    batch: Any, reference: nn.Module
) -> None:
    criterion = DivQATLoss(reference, preset="F3", alpha=0.5)
    before = criterion(batch.logits, batch.targets, batch.inputs)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.zero_()
    assert torch.equal(criterion(batch.logits, batch.targets, batch.inputs), before)


def test_no_gradient_reaches_the_inputs_through_the_reference(
    batch: Any, reference: nn.Module
) -> None:
    inputs = batch.inputs.clone().requires_grad_()
    DivQATLoss(reference, preset="F3")(batch.logits, batch.targets, inputs).backward()
    assert inputs.grad is None


def test_reference_is_no_part_of_the_module(reference: nn.Module) -> None:
    criterion = DivQATLoss(reference, preset="F3")
    assert list(criterion.state_dict()) == []
    assert list(DivQATLoss(reference, preset="F3", warmup_steps=1).state_dict()) == ["step"]
    assert list(criterion.parameters()) == []
    assert [name for name, _ in criterion.named_children()] == ["outliers"]


def test_reference_stays_out_of_the_state_of_a_module_that_owns_the_criterion(
    reference: nn.Module,
) -> None:
    owner = nn.ModuleDict(
        {"model": nn.Linear(4, 5), "criterion": DivQATLoss(reference, preset="F3")}
    )
    assert list(owner.state_dict()) == ["model.weight", "model.bias"]


def test_reference_keeps_evaluating_when_an_owner_trains(reference: nn.Module) -> None:
    criterion = DivQATLoss(reference, preset="F3")
    nn.ModuleList([criterion]).train().requires_grad_(True)
    assert not any(module.training for module in criterion.reference.modules())
    assert not any(p.requires_grad for p in criterion.reference.parameters())


def test_to_moves_the_reference_to_a_dtype_and_not_the_caller_s_model(
    batch: Any, reference: nn.Module
) -> None:
    criterion = DivQATLoss(reference, preset="F3", alpha=0.5).to(torch.float64)
    assert {p.dtype for p in criterion.reference.parameters()} == {torch.float64}
    assert {p.dtype for p in reference.parameters()} == {torch.float32}
    assert criterion.step.dtype == torch.int64
    loss = criterion(batch.logits.double(), batch.targets, batch.inputs.double())
    assert loss.dtype == torch.float64


def test_to_moves_the_reference_to_a_device(reference: nn.Module) -> None:
    criterion = DivQATLoss(reference, preset="F3").to("meta")
    tensors = [*criterion.reference.parameters(), *criterion.reference.buffers(), criterion.step]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_copied_criterion_has_a_reference_of_its_own(reference: nn.Module) -> None:
    criterion = DivQATLoss(reference, preset="F3")
    other = copy.deepcopy(criterion)
    with torch.no_grad():
        other.reference[0].weight.zero_()
    assert criterion.reference[0].weight.abs().max() > 0


def test_quant_tensors_are_unwrapped() -> None:
    from brevitas.nn import QuantLinear
    from brevitas.quant import Int8ActPerTensorFloat

    layer = QuantLinear(4, 3, bias=False, output_quant=Int8ActPerTensorFloat)
    layer.return_quant_tensor = True
    x, y = torch.rand(8, 4), torch.randint(3, (8,))
    logits = layer(x)
    assert not isinstance(logits, torch.Tensor)
    reference = nn.Linear(4, 3)
    wrapped = DivQATLoss(reference, preset="F3", alpha=0.1)(logits, y, x)
    plain = DivQATLoss(reference, preset="F3", alpha=0.1)(logits.value, y, x)
    assert torch.equal(wrapped, plain)


@pytest.mark.parametrize("classes", [1, 7])
def test_a_reference_of_other_classes_is_refused(classes: int) -> None:
    criterion = DivQATLoss(nn.Linear(4, classes), preset="F3", alpha=0.1)
    x, y = torch.rand(8, 4), torch.randint(3, (8,))
    with pytest.raises(ValueError, match="both need the same classes"):
        criterion(nn.Linear(4, 3)(x), y, x)
    assert int(criterion.step) == 0
