# SPDX-License-Identifier: BSD-3-Clause
"""Brevitas' BNN-PYNQ trainer, with what it lacks and with DivQAT."""

from __future__ import annotations

import copy
import os
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from brevitas_examples.bnn_pynq import trainer as brevitas_trainer  # type: ignore[import-untyped]
from torch import nn
from torch.utils.data import DataLoader, Subset

from brevitas_divqat.bnn_pynq import checkpoints
from brevitas_divqat.bnn_pynq.arguments import Settings
from brevitas_divqat.bnn_pynq.criterion import DivQATCrossEntropyLoss, DivQATSqrHingeLoss
from brevitas_divqat.bnn_pynq.networks import Network
from brevitas_divqat.data import Augmentation
from brevitas_divqat.errors import CheckpointError, ConfigError, DataError, ExportError
from brevitas_divqat.inspection import unwrapped
from brevitas_divqat.loss import LossConfig
from brevitas_divqat.seeding import generator
from brevitas_divqat.training import augmentation_of

__all__ = ["DivQATTrainer"]

BEST, LATEST = "best.tar", "checkpoint.tar"
# The images held out are the same ones whatever --random_seed is, so that twin, plain and DivQAT
# training of a comparison share them.
SPLIT_SEED = 0
# What Brevitas' trainer does to its training images.
AUGMENTATIONS: dict[str, Augmentation] = {"MNIST": "none", "CIFAR10": "shift-flip"}


@contextmanager
def _networks_built_by(build: Callable[[str, bool], tuple[nn.Module, Any]]) -> Iterator[None]:
    """Let Brevitas' trainer get its network from ``build``.

    Its constructor looks the network up by its name and offers no other way in: a user's own
    description, or the full-precision twin, cannot be handed to it.
    """
    original = brevitas_trainer.model_with_cfg
    brevitas_trainer.model_with_cfg = build
    try:
        yield
    finally:
        brevitas_trainer.model_with_cfg = original


class DivQATTrainer(brevitas_trainer.Trainer):
    """Brevitas' trainer; with default settings it trains the same weights bit for bit.

    Brevitas' own leaves the initial weights to chance; here ``random_seed`` sets them too. They are
    those of Brevitas after ``torch.manual_seed(random_seed)``.

    Args:
        args: Brevitas' arguments, with absolute paths, checked.
        network: what is trained.
        settings: of DivQAT.

    Attributes:
        resumable: the file to resume from after an interruption; None while there is none.

    Raises:
        CheckpointError: if the checkpoint to resume from, or the reference, does not fit.
        ConfigError: if an output folder cannot be made, or the images do not fit the batch size.
        DataError: if the images cannot be read or fetched.
    """

    model: Any
    train_loader: Any
    test_loader: Any
    optimizer: Any
    scheduler: Any
    criterion: Any

    def __init__(self, args: Namespace, network: Network, settings: Settings) -> None:
        self.network, self.settings = network, settings
        diverging = settings.loss.weight > 0 and not args.evaluate
        reference = None
        if diverging:
            assert settings.reference is not None
            reference = checkpoints.load_reference(settings.reference, network)
        self._objective = _objective(args.loss, settings.loss, reference)
        self._package = self._read_resumed(args)
        self.resumable: Path | None = Path(args.resume) if args.resume else None
        _check_data(network.config.get("MODEL", "DATASET"), args.datadir)
        _make_experiments_folder(args)
        # Under evaluation the constructor leaves out its own way of resuming a training, which
        # fails; and it shall name files after the network, not after the path of its description.
        shown = Namespace(**vars(args) | {"evaluate": True, "network": self._name()})
        shown.pretrained = args.pretrained and not args.resume
        with _networks_built_by(self._build):
            # Brevitas seeds after it has built the network, whose initial weights then differ from
            # process to process.
            torch.manual_seed(args.random_seed)
            super().__init__(shown)
        self.args = Namespace(**vars(shown) | {"evaluate": args.evaluate})
        if settings.validation and not args.evaluate:
            self._hold_out(settings.validation)
        self._mend_test_batches()
        if not args.evaluate:
            self._check_last_batch()
        if reference is not None:
            self._set_criterion(reference)
        if self._package is not None and not args.evaluate:
            self._resume(self._package)

    # Setting up

    def _name(self) -> str:
        return self.network.name + ("_float" if self.settings.full_precision else "")

    def _build(self, name: str, pretrained: bool) -> tuple[nn.Module, Any]:
        model = self.network.build(
            pretrained=pretrained, full_precision=self.settings.full_precision
        )
        return model, self.network.config

    def validate(self, args: Namespace) -> None:
        """Do nothing: the arguments have been checked, and Brevitas' own check miscounts GPUs."""

    def _read_resumed(self, args: Namespace) -> dict[str, Any] | None:
        if not args.resume:
            return None
        path = Path(args.resume)
        package = checkpoints.read_package(path)
        trains = not (args.evaluate or args.state_dict_to_pth)
        if trains:
            checkpoints.check_resumable(package, path)
        checkpoints.check_same_training(
            package,
            path,
            self.network,
            full_precision=self.settings.full_precision,
            validation=self.settings.validation if trains else None,
            objective=self._objective if trains else None,
        )
        return package

    def load_checkpoint(self, model: nn.Module, checkpoint_path: str, strict: bool) -> nn.Module:
        """Load a checkpoint's weights into a model and return it, on the CPU.

        Raises:
            CheckpointError: if the file is missing or damaged, or lacks weights of the model.
        """
        model = self.to_cpu(model)
        path = Path(checkpoint_path)
        unused = checkpoints.load_weights(
            model, checkpoints.read_package(path)["state_dict"], path, strict=strict
        )
        self.logger.info(f"Loaded {path}" + (f", {unused} entries left aside" if unused else ""))
        return model

    def _hold_out(self, count: int) -> None:
        """Select the best weights by ``count`` training images instead of the test images."""
        images: Any = self.train_loader.dataset
        if count >= len(images):
            raise ConfigError(
                f"--divqat_validation is {count}: it must leave some of the {len(images)} training "
                "images to train on"
            )
        plain = copy.copy(images)
        plain.transform = self.test_loader.dataset.transform
        # VisionDataset keeps it in two places.
        plain.transforms = self.test_loader.dataset.transforms
        order = torch.randperm(len(images), generator=generator(SPLIT_SEED, "validation")).tolist()
        batches = {"batch_size": self.args.batch_size, "num_workers": self.args.num_workers}
        kept, held = Subset(images, order[:-count]), Subset(plain, order[-count:])
        self.train_loader = DataLoader(kept, shuffle=True, **batches)
        self.test_loader = DataLoader(held, shuffle=False, **batches)

    def _check_last_batch(self) -> None:
        """Refuse to train on a batch of one image, in which Brevitas' trainer would fail.

        Batch normalisation of FC and CNV has nothing to normalise in it, and with the squared hinge
        loss its label loses the dimension that the accuracy is counted over.
        """
        images, batch = len(self.train_loader.dataset), self.args.batch_size
        fragile = self.network.arch != "RESNET18" or self.args.loss == "SqrHinge"
        if fragile and _last_batch(images, batch) == 1:
            raise ConfigError(
                f"--batch_size is {batch}: of {images} images the last batch would hold one, which "
                f"{self.network.arch} with --loss {self.args.loss} cannot train on; choose another "
                "size"
            )

    def _mend_test_batches(self) -> None:
        """Evaluate in batches none of which holds one image; the accuracy is the same.

        Brevitas' trainer fails in such a batch with the squared hinge loss, e.g. in the last one of
        10,000 test images in batches of 99.
        """
        images, batch = self.test_loader.dataset, self.args.batch_size
        if self.args.loss != "SqrHinge" or _last_batch(len(images), batch) != 1:
            return
        while _last_batch(len(images), batch) == 1:
            batch += 1
        self.test_loader = DataLoader(
            images, batch_size=batch, shuffle=False, num_workers=self.args.num_workers
        )

    def _set_criterion(self, reference: checkpoints.Reference) -> None:
        if not reference.verified:
            self.logger.info(
                f"--divqat_reference {self.settings.reference} is a bare state_dict, which does "
                "not say what it is of: names and shapes fit, but that it is the full-precision "
                "twin and not a quantized network cannot be verified"
            )
        hinge = self.args.loss == "SqrHinge"
        kind = DivQATSqrHingeLoss if hinge else DivQATCrossEntropyLoss
        model = reference.model.to(self.device)
        augment = augmentation_of(AUGMENTATIONS[self.network.config.get("MODEL", "DATASET")])
        self.criterion = kind(model, self.settings.loss, augment).to(self.device)

    def _resume(self, package: dict[str, Any]) -> None:
        """Take up a training after the epoch that a checkpoint was written in."""
        mark = {"ADAM": "betas", "SGD": "momentum"}[self.args.optim]
        try:
            same = all(mark in group for group in package["optim_dict"]["param_groups"])
            if same:
                self.optimizer.load_state_dict(package["optim_dict"])
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise CheckpointError(
                f"{self.args.resume} holds no state of --optim {self.args.optim} for this network: "
                "give the optimizer and the network that it was trained with"
            )
        rates = ", ".join(f"{group['lr']:g}" for group in self.optimizer.param_groups)
        self.logger.info(
            f"Going on after epoch {package['epoch']} with the optimizer's settings that the "
            f"checkpoint holds: learning rate {rates}; --lr, --momentum and --weight_decay have no "
            "effect"
        )
        self.starting_epoch = package["epoch"] + 1
        self.best_val_acc = package["best_val_acc"]
        if self.scheduler is not None:
            self.scheduler.last_epoch = package["epoch"]
        own = package.get("divqat")
        if own is None:
            self.logger.info(
                "The checkpoint was written by Brevitas' own trainer, which keeps no random state: "
                "the training goes on, but not with the images in the order they would have had"
            )
            return
        checkpoints.restore_statistics(unwrapped(self.model), own["statistics"])
        if self._diverging():
            self.criterion.step = own["step"]
            learnt = own.get("criterion", {})
            checkpoints.load_criterion(self.criterion, learnt, Path(self.args.resume))

    # Training

    def _diverging(self) -> bool:
        return isinstance(self.criterion, (DivQATSqrHingeLoss, DivQATCrossEntropyLoss))

    def train_model(self) -> str | None:
        """Train, then export the best weights where that was asked for.

        Returns:
            The path of ``best.tar``, even if no epoch was left to train; None with ``--dry_run``.
        """
        if self._package is not None and "divqat" in self._package:
            checkpoints.restore_random_state(self._package["divqat"]["random"])
        self._package = None
        if self.starting_epoch > self.args.epochs:
            self.logger.info(
                f"Epoch {self.starting_epoch - 1} of {self.args.epochs} is finished: nothing is "
                "left to train"
            )
        wanted = self.args
        # Brevitas forgets to load the best weights when the QCDQ graph alone is wanted.
        self.args = Namespace(**vars(wanted) | {"export_qonnx": False, "export_qcdq_onnx": False})
        hooks = []
        if self._diverging():
            hooks = [
                self.model.register_forward_pre_hook(self.criterion.observe),
                self.model.register_forward_hook(self.criterion.withhold),
            ]
        try:
            with warnings.catch_warnings():
                # Brevitas passes the epoch, on which its schedule depends, to `scheduler.step`.
                warnings.filterwarnings("ignore", message="The epoch parameter in")
                best: str | None = super().train_model()
        finally:
            self.args = wanted
            for hook in hooks:
                hook.remove()
        if best is not None and (wanted.export_qonnx or wanted.export_qcdq_onnx):
            self.model = self.load_checkpoint(self.model, best, strict=True)
            self.export()
        return best

    def eval_model(self, epoch: int | None = None) -> float:
        """Evaluate; in a training, on what selects the best weights, after a word on DivQAT."""
        if epoch is not None and self._diverging() and self.criterion.last is not None:
            self.logger.info(
                f"DivQAT: [{epoch}]\tAlpha {self.criterion.current_alpha():g}\t"
                f"Divergence of the last batch {self.criterion.last.item():.4f}"
            )
        accuracy: float = super().eval_model(epoch)
        return accuracy

    def checkpoint_best(self, epoch: int, name: str) -> None:
        """Write ``best.tar`` if due, and ``checkpoint.tar``, which is always the last epoch's.

        In this order: whoever is interrupted in between resumes the epoch before, repeats this one
        and writes the same ``best.tar``. The other way round, ``checkpoint.tar`` would hold an
        accuracy of weights that were never written.
        """
        model = unwrapped(self.model)
        package = {
            "state_dict": model.state_dict(),
            "optim_dict": self.optimizer.state_dict(),
            "epoch": epoch,
            "best_val_acc": self.best_val_acc,
            "divqat": {
                "network": self.network.identity,
                "full_precision": self.settings.full_precision,
                "validation": self.settings.validation,
                "objective": dict(self._objective),
                "step": self.criterion.step if self._diverging() else 0,
                "criterion": self.criterion.state_dict() if self._diverging() else {},
                "statistics": checkpoints.statistics(model),
                "random": checkpoints.random_state(),
            },
        }
        for file in dict.fromkeys((name, LATEST)):
            path = Path(self.checkpoints_dir_path) / file
            self.logger.info(f"Saving checkpoint model to {path}")
            checkpoints.write_package(path, package)
            self.resumable = path

    # Exporting

    def export(self) -> None:
        """Write the graphs that the arguments ask for."""
        if self.args.export_qonnx:
            self.export_qonnx()
        if self.args.export_qcdq_onnx:
            self.export_qcdq_onnx()

    def export_onnx(self, onnx_type: str) -> None:
        """Write one graph, named after its content.

        A copy is exported, with the TorchScript exporter: torch's newer one drops the quantized
        tensors at residual adds (Xilinx/brevitas#1608).

        Args:
            onnx_type: ``"qonnx"`` or ``"qcdq"``.

        Raises:
            ExportError: if Brevitas has no such form of the network.
        """
        from brevitas.export import export_onnx_qcdq, export_qonnx

        write = {"qonnx": export_qonnx, "qcdq": export_onnx_qcdq}[onnx_type]
        model = copy.deepcopy(unwrapped(self.model)).cpu().eval()
        image = self.test_loader.dataset[0][0].unsqueeze(0)
        name = self._name().lower()
        folder = Path(self.output_onnx_path)
        part = folder / f".{name}.part"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                write(model, image, str(part), dynamo=False)
            digest = sha256(part.read_bytes()).hexdigest()[:8]
            path = folder / f"{name}-{onnx_type}-{digest}.onnx"
            part.replace(path)
        except (AssertionError, RuntimeError) as error:
            raise ExportError(
                f"Brevitas cannot export {self.network.name} as {onnx_type} "
                f"({' '.join(str(error).split())[:200]})"
            ) from error
        finally:
            part.unlink(missing_ok=True)
        self.logger.info(f"Exporting {onnx_type.upper()} to {path}")


def _objective(
    loss: str, config: LossConfig, reference: checkpoints.Reference | None
) -> checkpoints.Objective:
    """Return what a resumed training must agree with."""
    shared: dict[str, str | float | None] = {"--loss": loss, "--divqat_alpha": config.weight}
    if reference is None:
        return shared
    return shared | {
        "--divqat_temperature": config.temperature,
        "--divqat_direction": config.direction,
        "--divqat_weighting": config.weighting,
        "--divqat_cap": config.cap,
        "--divqat_warmup_steps": config.warmup_steps,
        "--divqat_outliers": " ".join(config.kinds) or None,
        "--divqat_outlier_share": config.outlier_share,
        "--divqat_reference": reference.digest,
    }


def _last_batch(images: int, batch: int) -> int:
    """Return the size of the last of the batches that images are dealt into."""
    return images % batch or batch


def _check_data(dataset: str, folder: str) -> None:
    """Read the test images once, so that whatever is wrong is told before anything is written."""
    builder = {"MNIST": brevitas_trainer.MirrorMNIST, "CIFAR10": brevitas_trainer.CIFAR10}[dataset]
    try:
        builder(root=folder, train=False, download=True)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise DataError(
            f"cannot read {dataset} in --datadir {folder}, nor fetch it there "
            f"({' '.join(str(error).split())[:200]}): give the folder that holds "
            f"{_layout(builder)}, or one that can be written to, with a connection"
        ) from error


def _layout(builder: Any) -> str:
    return getattr(builder, "base_folder", f"{builder.__name__}/raw")


def _make_experiments_folder(args: Namespace) -> None:
    if args.dry_run or args.resume:
        return
    try:
        os.makedirs(args.experiments, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make the folder --experiments {args.experiments} ({error.strerror}): choose "
            "another"
        ) from error
