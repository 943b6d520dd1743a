# SPDX-License-Identifier: BSD-3-Clause
"""Descriptions of networks, and the full-precision twins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from brevitas_examples.bnn_pynq.models import get_model_cfg, model_impl, model_with_cfg
from torch import nn

from brevitas_divqat.bnn_pynq import float_twin, read_network, zoo_names
from brevitas_divqat.errors import ConfigError

ZOO = [
    *("CNV_1W1A", "CNV_1W2A", "CNV_2W2A", "LFC_1W1A", "LFC_1W2A", "RESNET18_4W4A"),
    *("SFC_1W1A", "SFC_1W2A", "SFC_2W2A", "TFC_1W1A", "TFC_1W2A", "TFC_2W2A"),
]


def images(arch: str, count: int = 2) -> torch.Tensor:
    return torch.rand(count, *((1, 28, 28) if arch == "FC" else (3, 32, 32)))


def test_the_whole_zoo_is_there() -> None:
    assert zoo_names() == ZOO


@pytest.mark.parametrize("name", ZOO)
def test_a_twin_has_the_weights_of_its_network(name: str) -> None:
    quantized, _ = model_with_cfg(name, False)
    theirs = {k: v.shape for k, v in quantized.state_dict().items() if "quant" not in k}
    ours = {k: v.shape for k, v in float_twin(get_model_cfg(name)).state_dict().items()}
    assert ours == theirs


@pytest.mark.parametrize("name", ["TFC_2W2A", "CNV_1W1A"])
def test_a_network_of_many_bits_comes_close_to_its_twin(name: str) -> None:
    torch.manual_seed(0)
    config = get_model_cfg(name)
    twin = float_twin(config)
    for key in ("WEIGHT_BIT_WIDTH", "ACT_BIT_WIDTH", "IN_BIT_WIDTH"):
        config.set("QUANT", key, "16")
    quantized = model_impl[config.get("MODEL", "ARCH")](config)
    quantized.load_state_dict(twin.state_dict())
    x = images(config.get("MODEL", "ARCH"), 16)
    results = []
    for model in (twin, quantized):
        model.train()  # batches' own statistics: untrained ones leave every activation at a limit
        for dropout in (m for m in model.modules() if isinstance(m, nn.Dropout)):
            dropout.eval()
        results.append(model(x))
    a, b = results
    assert (a - b).abs().max() < 0.05 * a.std()


def test_the_twin_of_an_fc_network_is_not_linear() -> None:
    torch.manual_seed(0)
    twin = float_twin(get_model_cfg("TFC_2W2A")).eval()
    a, b = images("FC"), images("FC")
    assert not torch.allclose(twin((a + b) / 2), (twin(a) + twin(b)) / 2, atol=1e-3)


def test_a_resnet_comes_close_to_its_twin() -> None:
    torch.manual_seed(0)
    config = get_model_cfg("RESNET18_4W4A")
    twin = float_twin(config)
    config.set("QUANT", "WEIGHT_BIT_WIDTH", "8")
    config.set("QUANT", "ACT_BIT_WIDTH", "8")
    quantized = model_impl["RESNET18"](config)
    missing = quantized.load_state_dict(twin.state_dict(), strict=False).missing_keys
    assert missing
    assert all("act_quant" in key for key in missing)
    x = images("RESNET18", 4)
    a, b = twin.train()(x), quantized.train()(x)
    assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.98


# A user's own description


def test_a_user_s_own_network_is_built(description: str, tmp_path: Path) -> None:
    path = tmp_path / "Mine.ini"
    path.write_text(description)
    network = read_network(str(path))
    assert network.name == "Mine"
    assert network.build().eval()(images("FC")).shape == (2, 10)
    assert network.build(full_precision=True).eval()(images("FC")).shape == (2, 10)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ARCH: FC", "ARCH: VGG", "ARCH is 'VGG'"),
        ("DATASET: MNIST", "DATASET: CIFAR10", "DATASET is 'CIFAR10'"),
        ("NUM_CLASSES: 10", "NUM_CLASSES: 2", "NUM_CLASSES is '2'"),
        ("[16]", "16", "OUT_FEATURES is '16'"),
        ("WEIGHT_BIT_WIDTH: 3", "WEIGHT_BIT_WIDTH: 0", "WEIGHT_BIT_WIDTH is '0'"),
        ("WEIGHT_BIT_WIDTH: 3", "WEIGHT_BIT_WIDTH: 33", "at most 32"),
        ("NUM_CLASSES: 10", "NUM_CLASSES: 10%", "NUM_CLASSES is '10%'"),
        ("ACT_BIT_WIDTH: 3", "", "ACT_BIT_WIDTH is missing"),
        ("[MODEL]", "MODEL", "no .ini file"),
    ],
)
def test_a_description_that_is_none_is_refused(
    old: str, new: str, message: str, description: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.ini"
    path.write_text(description.replace(old, new, 1))
    with pytest.raises(ConfigError) as error:
        read_network(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_comment_in_a_description_changes_nothing(description: str, tmp_path: Path) -> None:
    plain, remarked = tmp_path / "plain.ini", tmp_path / "remarked.ini"
    plain.write_text(description)
    remarked.write_text(description.replace("[16]", "[ 16 ]  # 5%"))
    one, other = read_network(str(plain)), read_network(str(remarked))
    assert one.identity == other.identity
    assert other.build().eval()(images("FC")).shape == (2, 10)


def test_an_unknown_network_is_refused_with_the_names() -> None:
    with pytest.raises(ConfigError, match=r"TFC_3W3A.*CNV_1W1A.*RESNET18_4W4A"):
        read_network("TFC_3W3A")


def test_a_missing_description_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.ini"):
        read_network(str(tmp_path / "none.ini"))
