# SPDX-License-Identifier: BSD-3-Clause
"""The command line: Brevitas' flags, parsed by Brevitas' own parser, and those of DivQAT."""

from __future__ import annotations

import contextlib
import difflib
import io
import math
import re
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.loss import PRESETS, Direction, LossConfig, OutlierKind, Weighting
from brevitas_divqat.loss.config import OUTLIER_SHARE

__all__ = ["Settings", "check_arguments", "help_text", "parse"]

LOSS_FLAGS = (
    "preset", "temperature", "direction", "weighting", "cap", "warmup_steps", "outliers",
    "outlier_share",
)  # fmt: skip
# Brevitas' trainer reads no images but its data set's.
OUTLIERS = tuple(kind for kind in get_args(OutlierKind) if kind != "given")
AT_LEAST = {
    "batch_size": 1,
    "epochs": 0,
    "log_freq": 1,
    "num_workers": 0,
    "lr": 0,
    "momentum": 0,
    "weight_decay": 0,
}
CHOICES = {
    "optim": ("ADAM", "SGD"),
    "loss": ("SqrHinge", "CrossEntropy"),
    "scheduler": ("FIXED", "STEP"),
}


@dataclass(frozen=True)
class Settings:
    """What this program adds to Brevitas' settings.

    Args:
        loss: of the training; with an alpha of 0, the default here, it is Brevitas' own.
        reference: checkpoint of the full-precision twin; needed with an alpha above 0.
        full_precision: train the twin itself.
        validation: number of training images that are held out to select ``best.tar``; not 1.

    Raises:
        ConfigError: if the settings contradict each other.
    """

    loss: LossConfig = field(default_factory=lambda: LossConfig(alpha=0.0))
    reference: Path | None = None
    full_precision: bool = False
    validation: int = 0

    def __post_init__(self) -> None:
        if self.validation < 0 or self.validation == 1:
            raise ConfigError(
                f"--divqat_validation is {self.validation}: give the number of training images to "
                "hold out, 2 or more, or 0"
            )
        if self.full_precision and (self.loss.weight > 0 or self.reference is not None):
            raise ConfigError(
                "--divqat_float trains the full-precision twin, which diverges from nothing: leave "
                "out --divqat_alpha and --divqat_reference, or --divqat_float"
            )


class _Parser(ArgumentParser):
    """Raises its errors instead of printing the usage and leaving the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(" ".join(message.split()))


def _own_parser() -> _Parser:
    parser = _Parser(usage=SUPPRESS, add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("DivQAT")
    alpha = PRESETS[LossConfig.preset]["alpha"]
    for name, options in {
        "alpha": {
            "type": float,
            "help": "weight of the divergence (default 0: Brevitas' training; "
            f"preset {LossConfig.preset}: {alpha})",
        },
        "preset": {
            "choices": list(PRESETS),
            "help": f"of the settings that follow (default {LossConfig.preset})",
        },
        "temperature": {"type": float, "help": "softens both predictions in the divergence"},
        "direction": {"choices": get_args(Direction), "help": "of the divergence"},
        "weighting": {
            "choices": get_args(Weighting),
            "help": "loss - alpha D, or (1 - alpha) loss - alpha D (default additive)",
        },
        "cap": {
            "type": float,
            "help": "the most that one image's divergence counts, in nats T² (preset F1: "
            f"{PRESETS['F1']['cap']:g}, others: no limit); needed with direction p||q",
        },
        "warmup_steps": {
            "type": int,
            "help": "steps over which alpha grows from 0 (default 0)",
        },
        "outliers": {
            "nargs": "+",
            "choices": list(OUTLIERS),
            "metavar": "KIND",
            "help": "diverge on images of no class, made up in each step, and no more on the "
            f"training images; one or more of {', '.join(OUTLIERS)}",
        },
        "outlier_share": {
            "type": float,
            "metavar": "S",
            "help": f"outliers per training image (default {OUTLIER_SHARE:g})",
        },
        "reference": {
            "type": Path,
            "metavar": "FILE",
            "help": "full-precision twin: a best.tar of --divqat_float, or its state_dict",
        },
        "float": {
            "action": "store_true",
            "help": "train the full-precision twin of --network",
        },
        "validation": {
            "type": int,
            "default": 0,
            "metavar": "N",
            "help": "hold out N training images and select best.tar by them (default 0: by the "
            "test images, as Brevitas does)",
        },
    }.items():
        group.add_argument(f"--divqat_{name}", **options)  # type: ignore[arg-type]
    return parser


def _brevitas_parse(argv: Sequence[str]) -> Namespace:
    """Parse with Brevitas' own parser; its complaints, and its help, become ours.

    Raises:
        ConfigError: if it does not take the arguments.
        SystemExit: with status 0, after the help was printed.
    """
    # Here, since importing Brevitas' script sets how torch prints tensors.
    from brevitas_examples.bnn_pynq.bnn_pynq_train import (  # type: ignore[import-untyped]
        parse_args,
    )

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(io.StringIO()):
            return parse_args(list(argv))
    except SystemExit as stop:
        if not stop.code:
            print(help_text())
            raise
        message = complaint.getvalue().rpartition("error: ")[2]
        raise ConfigError(" ".join(message.split()) + _suggestion(message)) from stop


def _brevitas_help() -> str:
    from brevitas_examples.bnn_pynq.bnn_pynq_train import (
        parse_args,
    )

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        parse_args(["--help"])
    return text.getvalue()


def help_text() -> str:
    """Return Brevitas' help, followed by that of DivQAT's flags."""
    return f"{_brevitas_help()}\n{_own_parser().format_help()}"


def _suggestion(message: str) -> str:
    """Name the flag that was probably meant, where an unknown one was given."""
    if not message.startswith("unrecognized arguments"):
        return ""
    flags = re.findall(r"--\w+", help_text())
    for wrong in re.findall(r"--[\w-]+", message):
        for close in difflib.get_close_matches(wrong, flags, n=1, cutoff=0.7):
            return f"; did you mean {close}?"
    return "; --help lists the flags"


def parse(argv: Sequence[str]) -> tuple[Namespace, Settings]:
    """Split the command line into Brevitas' arguments and the settings of DivQAT.

    Raises:
        ConfigError: if a flag is unknown, or a value of DivQAT's is out of range.
        SystemExit: with status 0, after the help was printed.
    """
    own, rest = _own_parser().parse_known_args(list(argv))
    args = _brevitas_parse(rest)
    given = {name: getattr(own, f"divqat_{name}") for name in LOSS_FLAGS}
    given = {name: value for name, value in given.items() if value is not None}
    if own.divqat_alpha is None and (given or own.divqat_reference):
        raise ConfigError(
            "flags of the divergence are given without --divqat_alpha, which is 0 by default: "
            f"choose one ({PRESETS[LossConfig.preset]['alpha']} is the preset's), or leave them out"
        )
    settings = Settings(
        loss=LossConfig(alpha=own.divqat_alpha or 0.0, **given),
        reference=own.divqat_reference,
        full_precision=own.divqat_float,
        validation=own.divqat_validation,
    )
    return args, settings


def check_arguments(args: Namespace, settings: Settings) -> None:
    """Refuse what would fail later, or quietly do something else than was asked for.

    Raises:
        ConfigError: naming the flag, its value and what is expected.
    """
    for name, least in AT_LEAST.items():
        value = getattr(args, name)
        if not (math.isfinite(value) and value >= least):
            raise ConfigError(f"--{name} is {value}: it must be {least} or more")
    for name, choices in CHOICES.items():
        if getattr(args, name) not in choices:
            raise ConfigError(f"--{name} is {getattr(args, name)}: choose from {list(choices)}")
    if not -(2**63) <= args.random_seed < 2**64:
        raise ConfigError(f"--random_seed is {args.random_seed}: it must be from -2^63 to 2^64 - 1")
    if args.scheduler == "STEP":
        _numbers("milestones", args.milestones)
    _check_gpus(args, settings)
    _check_files(args, settings)


def _numbers(name: str, text: str | None) -> list[int]:
    try:
        numbers = [int(part) for part in (text or "").split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--{name} is {text!r}: give whole numbers separated by commas"
        ) from error
    if any(number < 0 for number in numbers):
        raise ConfigError(f"--{name} is {text!r}: each number must be 0 or more")
    return numbers


def _check_gpus(args: Namespace, settings: Settings) -> None:
    if args.gpus is None:
        return
    gpus, there = _numbers("gpus", args.gpus), torch.cuda.device_count()
    if max(gpus) >= there or len(set(gpus)) < len(gpus):
        found = f"GPUs 0 to {there - 1}" if there else "no CUDA device"
        raise ConfigError(
            f"--gpus is {args.gpus!r}, torch finds {found}: name each that is to be used once, or "
            "leave the flag out to train on the CPU"
        )
    if len(gpus) > 1 and settings.loss.weight > 0 and not args.evaluate:
        raise ConfigError(
            f"--gpus is {args.gpus!r} with a divergence: DataParallel hands each replica, in a "
            "thread of its own, a part of the batch, so that reference and network would see "
            "different images; give one GPU, or train with DistributedDataParallel in a script "
            "of your own"
        )


def _check_files(args: Namespace, settings: Settings) -> None:
    exports = args.export_qonnx or args.export_qcdq_onnx
    if exports and _jit_enabled():
        raise ConfigError("Brevitas cannot export with its JIT enabled: set BREVITAS_JIT=0")
    if exports and settings.full_precision:
        raise ConfigError(
            "--divqat_float: the twin has no quantizers to export, leave out --export_*"
        )
    if exports and args.dry_run and not args.evaluate:
        raise ConfigError(
            "--export_* writes the best weights, which --dry_run does not keep: leave one out"
        )
    if exports and args.epochs == 0 and not (args.evaluate or args.resume):
        raise ConfigError(
            "--epochs is 0, which leaves no weights to export: train, leave out --export_*, or "
            "add --evaluate"
        )
    if args.state_dict_to_pth and (args.dry_run or args.evaluate):
        raise ConfigError(
            "--state_dict_to_pth writes a file, which --dry_run and --evaluate forbid: leave them "
            "out, it trains nothing"
        )
    if args.pretrained and settings.full_precision and not args.resume:
        raise ConfigError(
            "--pretrained gives the weights of the quantized network, --divqat_float trains its "
            "full-precision twin: leave one out"
        )
    if settings.loss.weight > 0 and settings.reference is None and not args.evaluate:
        raise ConfigError(
            f"alpha is {settings.loss.weight} and there is no --divqat_reference: train the "
            f"full-precision twin first, with --network {args.network} --divqat_float, and give "
            "its best.tar"
        )
    if settings.reference is not None and not settings.reference.is_file():
        raise ConfigError(
            f"--divqat_reference {settings.reference}: No such file, give the best.tar of a "
            "training with --divqat_float"
        )
    writes = exports or args.state_dict_to_pth or not args.evaluate
    if args.resume and writes and Path(args.resume).parent.name != "checkpoints":
        raise ConfigError(
            f"--resume {args.resume}: what is written goes beside the folder `checkpoints` of the "
            "run, and this file lies in none; move it to RUN/checkpoints/, or only --evaluate it"
        )


def _jit_enabled() -> Any:
    from brevitas import config

    return config.JIT_ENABLED
