# SPDX-License-Identifier: BSD-3-Clause
"""The console script `divqat-bnn-pynq-train`: Brevitas' `brevitas_bnn_pynq_train`, and DivQAT.

A user's mistake prints one line and exits with status 2.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from brevitas_divqat.errors import ConfigError, DivQATError, TrainingDiverged

if TYPE_CHECKING:
    from brevitas_divqat.bnn_pynq.trainer import DivQATTrainer

# What imports Brevitas is imported in the functions, after `_quieten`.

__all__ = ["launch", "main"]

PROGRAM = "divqat-bnn-pynq-train"
PATHS = ("datadir", "experiments", "resume")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        The exit status: 0, 2 for a user's mistake, 130 for an interruption.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _quieten()
    try:
        launch(arguments)
    except DivQATError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        print(f"{PROGRAM}: error: cannot read or write{where}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("; ".join([f"{PROGRAM}: interrupted", *map(str, stop.args)]), file=sys.stderr)
        return 130
    except SystemExit as stop:  # how --help ends, and Brevitas' trainer after --state_dict_to_pth
        return int(stop.code or 0)
    return 0


def _quieten() -> None:
    """Keep other packages' notes, on which a user of this program cannot act, off the terminal."""
    for category in (UserWarning, DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def launch(argv: Sequence[str]) -> DivQATTrainer:
    """Train, evaluate or export, as the arguments say.

    Args:
        argv: arguments without the program's name.

    Returns:
        The trainer, which has done it.

    Raises:
        DivQATError: if the user can mend it.
        KeyboardInterrupt: with a word on what to resume from, if a training is interrupted.
        SystemExit: with status 0, after ``--help`` and after ``--state_dict_to_pth``.
    """
    from brevitas_divqat.bnn_pynq.arguments import check_arguments, parse
    from brevitas_divqat.bnn_pynq.networks import read_network
    from brevitas_divqat.bnn_pynq.trainer import DivQATTrainer

    args, settings = parse(argv)
    check_arguments(args, settings)
    network = read_network(args.network)
    if args.export_qcdq_onnx and 1 in network.bit_widths.values():
        raise ConfigError(
            f"{network.name} has binary quantizers, for which QCDQ has no form: leave out "
            "--export_qcdq_onnx, --export_qonnx has one"
        )
    for name in PATHS:
        if getattr(args, name) is not None:
            setattr(args, name, os.path.abspath(getattr(args, name)))
    args.dry_run = args.dry_run or args.evaluate
    with _own_log():
        return _run(DivQATTrainer(args, network, settings), args)


def _run(trainer: DivQATTrainer, args: Namespace) -> DivQATTrainer:
    import torch

    if args.evaluate:
        with torch.no_grad():
            trainer.eval_model()
            trainer.export()
        return trainer
    try:
        trainer.train_model()
    except RuntimeError as error:
        if args.detect_nan and "returned nan values" in str(error):
            raise TrainingDiverged(
                f"--detect_nan: {' '.join(str(error).split())} Lower --lr or --divqat_alpha"
            ) from error
        raise
    except KeyboardInterrupt as error:
        if trainer.resumable is None:
            raise
        raise KeyboardInterrupt(f"go on with --resume {trainer.resumable}") from error
    finally:
        torch.autograd.set_detect_anomaly(False)
    return trainer


@contextmanager
def _own_log() -> Iterator[None]:
    """Take away, in the end, the handlers that Brevitas' logger adds for each of its trainers."""
    log = logging.getLogger("log")
    before, propagate, level = list(log.handlers), log.propagate, log.level
    try:
        yield
    finally:
        for handler in [h for h in log.handlers if h not in before]:
            log.removeHandler(handler)
            handler.close()
        log.propagate = propagate
        log.setLevel(level)


if __name__ == "__main__":
    raise SystemExit(main())
