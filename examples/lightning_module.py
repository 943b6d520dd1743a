# SPDX-License-Identifier: BSD-3-Clause
"""DivQAT in Lightning: a module whose criterion is DivQATLoss, and a callback that watches it.

Needs ``pip install pytorch-lightning``. Prints, on the embedded digits (about 20 seconds)::

    full precision: 94.0 % of the validation images
    epoch 4: cross-entropy 0.033, divergence 3.6 nats T², maximum probability 0.97, entropy 0.12
    epoch 9: cross-entropy 0.024, divergence 5.7 nats T², maximum probability 0.98, entropy 0.10
    DivQAT, 4 bits: 96.7 %
    exported to digits.onnx

(The figures depend on the machine's rounding.)
"""

import logging
import tempfile
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from brevitas_divqat import DivQATLoss, load_float_weights
from brevitas_divqat.data import DataConfig, load
from brevitas_divqat.export import GraphMetadata, export_qonnx
from brevitas_divqat.models import Precision, build
from brevitas_divqat.training import calibrate

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")  # Lightning's advice on data loader workers


class Classifier(pl.LightningModule):
    """Trains any network with any criterion of (logits, labels)."""

    def __init__(self, model, criterion, lr):
        super().__init__()
        self.model, self.criterion, self.lr = model, criterion, lr

    def training_step(self, batch, index):
        images, labels = batch
        return self.criterion(self.model(images), labels)

    def validation_step(self, batch, index):
        images, labels = batch
        self.log("accuracy", (self.model(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.model.parameters(), lr=self.lr)


class WatchDefence(pl.Callback):
    """Averages the criterion's report over each epoch: logs it, and prints every fifth."""

    def on_train_epoch_start(self, trainer, module):
        self.reports = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.reports.append(module.criterion.report)

    def on_train_epoch_end(self, trainer, module):
        names = ("cross_entropy", "divergence", "max_probability", "entropy")
        means = {n: torch.stack([getattr(r, n) for r in self.reports]).mean() for n in names}
        module.log_dict(means)
        if trainer.current_epoch % 5 == 4:
            print(
                f"epoch {trainer.current_epoch}: cross-entropy {means['cross_entropy']:.3f}, "
                f"divergence {means['divergence']:.1f} nats T², maximum probability "
                f"{means['max_probability']:.2f}, entropy {means['entropy']:.2f}"
            )


def loader(part, **options):
    images = torch.from_numpy(part.images).float() / 256
    return DataLoader(TensorDataset(images, torch.from_numpy(part.labels)), 50, **options)


def train(model, criterion, epochs, lr, callbacks=()):
    """Return the accuracy on the validation images, in percent."""
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Classifier(model, criterion, lr)
    trainer.fit(module, loader(digits.train, shuffle=True))
    (result,) = trainer.validate(module, loader(digits.validation), verbose=False)
    return 100 * result["accuracy"]


pl.seed_everything(0, verbose=False)
digits = load(DataConfig(data="digits"))
original = build("lenet5", digits.image_shape, 10, precision=None)
accuracy = train(original, nn.CrossEntropyLoss(), epochs=20, lr=2e-3)
print(f"full precision: {accuracy:.1f} % of the validation images")

quantized = build("lenet5", digits.image_shape, 10, precision=Precision(weight=4, activation=4))
load_float_weights(quantized, original.state_dict())
calibrate(quantized, digits.train.images)
hardened = DivQATLoss(original, model=quantized, alpha=0.04)
accuracy = train(quantized, hardened, epochs=10, lr=1e-3, callbacks=[WatchDefence()])
print(f"DivQAT, 4 bits: {accuracy:.1f} %")

with tempfile.TemporaryDirectory() as folder:
    metadata = GraphMetadata(digits.image_shape, 256.0, digits.class_names)
    file = export_qonnx(quantized.eval(), Path(folder) / "digits.onnx", metadata)
    print(f"exported to {file.name}")
