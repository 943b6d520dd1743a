# SPDX-License-Identifier: BSD-3-Clause
"""What else was tried to make the defence bite: one way to train a quantized network per name.

The rows of the ablation in docs/method.md that no option of `divqat train` makes. Without arguments
it prints the names::

    the form of the divergence: cosine, margin, symmetric, jensen-shannon, moving, consistent
    the quantiser as the place: quantiser, quantiser-outliers, scales, rounding
    what outliers are answered: outliers, uniform, constant, least-likely, rolled, decoy, surrogate
    how they meet BatchNorm: own-pass, frozen
    which images: mixup, noise, signs, adversarial
    baselines: confidence, nasty, nasty-qat

and with a run of `divqat train --method qat` and a name it trains a network from the run's
full-precision weights, with the run's settings but another loss: `python examples/directions.py RUN
constant --weight 0.3 --out DIR`, then `divqat export DIR` and `divqat attack DIR/model-integer.onnx
--reference RUN/float …`. Outliers are textures, patches and shapes, half as many as there are
training images, in the same batch, unless a direction says otherwise.
"""

import argparse
import copy
import math
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from brevitas.graph.calibrate import quantization_status_manager
from torch import nn

from brevitas_divqat.data import load
from brevitas_divqat.errors import ConfigError, DivQATError
from brevitas_divqat.evaluation import RunConfig, settings_of
from brevitas_divqat.evaluation.theft import check_no_file_in_the_way
from brevitas_divqat.loss import DivQATLoss
from brevitas_divqat.loss.functional import per_sample_divergence
from brevitas_divqat.loss.outliers import outliers_like
from brevitas_divqat.progress import bar
from brevitas_divqat.training import (
    CheckpointInfo,
    augmentation_of,
    cross_entropy,
    fit,
    load_checkpoint,
    measure_accuracy,
    save_checkpoint,
    start_quantized,
)

T = 4.0
KINDS = ("textures", "patches", "shapes")


@dataclass
class Batch:
    """What a direction sees of a step: x, y, z of training images; xo, zo, po of the others."""

    x: torch.Tensor
    y: torch.Tensor
    z: torch.Tensor
    xo: torch.Tensor
    zo: torch.Tensor
    time: float  # share of the training that is over, 0 to 1


class Direction(DivQATLoss):
    """Cross-entropy, plus `weight` times what a direction adds."""

    images = None  # which images are appended to the batch
    adds_share = 0.5
    augment = None  # what varies the images that are appended as the training images are varied

    def __init__(self, reference, model, weight, steps):
        super().__init__(reference, preset="F3")
        self.parts = (model,)  # in a tuple, so that the model is no part of this module
        self.weight, self.steps, self.done = weight, steps, 0
        self.prepare()

    @property
    def model(self):
        return self.parts[0]

    def prepare(self):
        pass

    def with_outliers(self, x, model=None):
        if self.images is None:
            return x
        return torch.cat([x, self.made(x)])

    def made(self, x):
        made = self.images(x, max(1, int(self.adds_share * len(x)))).detach()
        return made if self.augment is None else self.augment(made)

    def forward(self, logits, targets, inputs):
        n = len(targets)
        batch = Batch(inputs[:n], targets, logits[:n], inputs[n:], logits[n:], self.now())
        self.done += 1
        return F.cross_entropy(batch.z, targets) + self.weight * self.term(batch)

    def now(self):
        return min(1.0, self.done / self.steps)

    def term(self, batch):
        raise NotImplementedError

    @torch.no_grad()
    def original(self, x):
        return self.reference(x)

    def far(self, z, p, direction="q||p"):
        return per_sample_divergence(z, p, direction=direction, temperature=T)


class Outliers(Direction):
    def images(self, x, count):
        return outliers_like(x, KINDS, count)


# The form of the divergence, on the training images


class Cosine(Direction):
    """F3 with a weight that rises along a cosine."""

    def term(self, b):
        return -0.5 * (1 - math.cos(math.pi * b.time)) * self.far(b.z, self.original(b.x)).mean()


class Margin(Direction):
    """F3 where the image is classified correctly with a margin of 0.5 alone."""

    def term(self, b):
        top = b.z.softmax(1).detach().topk(2, dim=1)
        sure = (top.indices[:, 0] == b.y) & (top.values[:, 0] - top.values[:, 1] > 0.5)
        return -(self.far(b.z, self.original(b.x)) * sure).mean()


class Symmetric(Direction):
    """The mean of both directions, capped at half of T² log K."""

    def term(self, b):
        p = self.original(b.x)
        both = (self.far(b.z, p) + self.far(b.z, p, "p||q")) / 2
        return -both.clamp(max=0.5 * T * T * math.log(b.z.shape[1])).mean()


class JensenShannon(Direction):
    """The Jensen-Shannon divergence, which needs no cap."""

    def term(self, b):
        q, p = (b.z / T).softmax(1), (self.original(b.x) / T).softmax(1)
        middle = ((q + p) / 2).log()
        parts = [(r * (r.clamp_min(1e-12).log() - middle)).sum(1) for r in (q, p)]
        return -T * T * (parts[0] + parts[1]).mean() / 2


class Moving(Direction):
    """F3 away from a moving average of the network itself instead of the original."""

    def prepare(self):
        self.average = (copy.deepcopy(self.reference),)

    def term(self, b):
        own = self.model.state_dict()
        with torch.no_grad():
            for name, value in self.average[0].state_dict().items():
                if name in own and value.is_floating_point():
                    value.lerp_(own[name].reshape(value.shape), 0.002)
            p = self.average[0](b.x)
        return -self.far(b.z, p).mean()


class Consistent(Direction):
    """F3, whose answers must agree between an image and its noisy neighbour."""

    def term(self, b):
        noisy = self.model(b.x + 0.02 * torch.randn_like(b.x))
        apart = (b.z.softmax(1) - noisy.softmax(1)).square().sum(1).mean()
        return 10 * apart - self.far(b.z, self.original(b.x)).mean()


# The quantiser as the place of the defence


class Quantiser(Direction):
    """The divergence of the network from itself with quantisation off, on the training images."""

    def unquantized(self, x):
        off = quantization_status_manager(
            self.model, disable_act_quant=True, disable_weight_quant=True, is_training=True
        )
        with off:
            return self.model(x)

    def term(self, b):
        p = self.unquantized(b.x)
        return F.cross_entropy(p, b.y) - self.far(b.z, p).clamp(max=T * T).mean()


class QuantiserOutliers(Outliers):
    """The same on outliers, of which the unquantized network must think as the original does."""

    unquantized = Quantiser.unquantized

    def term(self, b):
        p = self.unquantized(torch.cat([b.x, b.xo]))[len(b.x) :]
        like = self.far(p, self.original(b.xo), "p||q").mean()
        return like - self.far(b.zo, p).clamp(max=T * T * math.log(p.shape[1])).mean()


class OutlierF3(Outliers):
    """F3 on the outliers: the reference of the rows below, and what `divqat train` does."""

    def term(self, b):
        return -self.far(b.zo, self.original(b.xo)).mean()


class Scales(OutlierF3):
    """The same, from a plain network, where nothing but scales of activations is trained."""

    def prepare(self):
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("scaling_impl" in name)


class Rounding(OutlierF3):
    """The same, from a plain network, whose weights move by half a quantisation step at most."""

    def prepare(self):
        self.bounds = []
        for module in self.model.modules():
            if hasattr(module, "weight_quant") and module.weight is not None:
                half = module.quant_weight().scale.detach() / 2
                weight = module.weight.detach().clone()
                self.bounds.append((module.weight, weight - half, weight + half))
        self.model.register_forward_pre_hook(lambda *_: self.clamp())

    @torch.no_grad()
    def clamp(self):
        for weight, low, high in self.bounds:
            weight.copy_(weight.clamp(low, high))


# What is answered on the outliers


class Uniform(Outliers):
    """The same probability for every class."""

    def term(self, b):
        return -b.zo.log_softmax(1).mean()


class Constant(Outliers):
    """One class, whatever is asked."""

    def term(self, b):
        return -b.zo.log_softmax(1)[:, -1].mean()


class LeastLikely(Outliers):
    """The class that the original deems least likely."""

    def term(self, b):
        return F.cross_entropy(b.zo, self.original(b.xo).argmin(1))


class Rolled(Outliers):
    """The original's answer, moved by three classes."""

    def term(self, b):
        return F.cross_entropy(b.zo, self.original(b.xo).softmax(1).roll(3, dims=1))


class Decoy(Outliers):
    """The answers of a secret linear classifier of coarse pixels: consistent, and of no use."""

    def prepare(self):
        self.secret = torch.Generator().manual_seed(1)

    def term(self, b):
        coarse = F.adaptive_avg_pool2d(b.xo, 4).flatten(1)
        coarse = coarse - coarse.mean(1, keepdim=True)
        coarse = coarse / (coarse.std(1, keepdim=True) + 0.02)
        self.secret.manual_seed(1)
        plane = torch.randn(coarse.shape[1], b.zo.shape[1], generator=self.secret)
        scores = 3 * coarse @ plane / math.sqrt(coarse.shape[1])
        return F.cross_entropy(b.zo, scores.softmax(1))


class Surrogate(Outliers):
    """Away from a student that learns from the answers all along (after InI, ACM MM 2023)."""

    def prepare(self):
        self.student = (copy.deepcopy(self.reference).train(),)
        for module in self.student[0].modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        parameters = list(self.student[0].parameters())
        for parameter in parameters:
            parameter.requires_grad_(True)
        self.learner = torch.optim.Adam(parameters, lr=2e-3)

    def term(self, b):
        x = torch.cat([b.x, b.xo])
        answers = torch.cat([b.z, b.zo]).detach().softmax(1)
        self.learner.zero_grad()
        with torch.enable_grad():
            F.cross_entropy(self.student[0](x), answers).backward()
        self.learner.step()
        with torch.no_grad():
            student = self.student[0](b.xo)
        return -self.far(b.zo, student).mean()


# How the outliers meet BatchNorm


class OwnPass(Outliers):
    """F3 on outliers in a training pass of their own."""

    def with_outliers(self, x, model=None):
        return x

    def term(self, b):
        xo = self.made(b.x)
        return -self.far(self.model(xo), self.original(xo)).mean()


class Frozen(OwnPass):
    """F3 on outliers in a pass of their own, with BatchNorm's running statistics."""

    def term(self, b):
        xo = self.made(b.x)
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.eval()
        logits = self.model(xo)
        for norm in norms:
            norm.train()
        return -self.far(logits, self.original(xo)).mean()


# Which images


class Mixup(OutlierF3):
    """F3 on means of two training images."""

    def images(self, x, count):
        one, other = (torch.randint(len(x), (count,)) for _ in range(2))
        return (x[one] + x[other]) / 2


class Noise(OutlierF3):
    """F3 on uniform noise."""

    def images(self, x, count):
        return torch.rand(count, *x.shape[1:]) * x.max()


class Signs(OutlierF3):
    """F3 on outliers, and on training images plus 15 to 30 levels of a random pattern of signs."""

    def images(self, x, count):
        made = outliers_like(x, (*KINDS, "textures"), count)
        n = count // 4
        pattern = outliers_like(x, ("textures",), n)
        pattern = (pattern - pattern.median()).sign()
        levels = torch.empty(n, 1, 1, 1).uniform_(15, 30) / 256
        made[:n] = (x[torch.randint(len(x), (n,))] + levels * pattern).clamp(0, 255 / 256)
        return made


class Adversarial(Signs):
    """F3 on outliers, and on training images moved along the original's gradient by as much."""

    def images(self, x, count):
        made = outliers_like(x, (*KINDS, "textures"), count)
        n = count // 4
        near = x[torch.randint(len(x), (n,))].clone().requires_grad_(True)
        with torch.enable_grad():
            self.reference(near).amax(1).sum().backward()
        levels = torch.empty(n, 1, 1, 1).uniform_(15, 30) / 256
        sides = torch.randn(n, 1, 1, 1).sign()
        made[:n] = (near.detach() + sides * levels * near.grad.sign()).clamp(0, 255 / 256)
        return made


# Baselines


class Confidence(Direction):
    """The confidence penalty of Pereyra et al., ICLR 2017 workshop: minus the entropy."""

    def term(self, b):
        return (b.z.softmax(1) * b.z.log_softmax(1)).sum(1).mean()


GROUPS = {
    "the form of the divergence": {
        "cosine": Cosine,
        "margin": Margin,
        "symmetric": Symmetric,
        "jensen-shannon": JensenShannon,
        "moving": Moving,
        "consistent": Consistent,
    },
    "the quantiser as the place": {
        "quantiser": Quantiser,
        "quantiser-outliers": QuantiserOutliers,
        "scales": Scales,
        "rounding": Rounding,
    },
    "what outliers are answered": {
        "outliers": OutlierF3,
        "uniform": Uniform,
        "constant": Constant,
        "least-likely": LeastLikely,
        "rolled": Rolled,
        "decoy": Decoy,
        "surrogate": Surrogate,
    },
    "how they meet BatchNorm": {"own-pass": OwnPass, "frozen": Frozen},
    "which images": {
        "mixup": Mixup,
        "noise": Noise,
        "signs": Signs,
        "adversarial": Adversarial,
    },
    "baselines": {"confidence": Confidence, "nasty": None, "nasty-qat": None},
}
DIRECTIONS = {name: kind for group in GROUPS.values() for name, kind in group.items()}
NASTY = ("nasty", "nasty-qat")
"""Nasty Teacher (ICLR 2021) in full precision, then quantised: calibrated alone, or trained on."""
FROM_PLAIN = ("scales", "rounding")


def config_of(run):
    flat = settings_of(run)
    groups = {}
    for group in fields(RunConfig):
        default = getattr(RunConfig(), group.name)
        if group.name == "seed":
            groups["seed"] = flat["seed"]
        else:
            own = {f.name: flat[f.name] for f in fields(default) if f.name in flat}
            places = {"data_root", "pool", "surrogate_weights", "outlier_images"}
            own = {k: Path(v) if k in places and v is not None else v for k, v in own.items()}
            groups[group.name] = type(default)(**own)
    return RunConfig(**groups)


def train(run, name, weight, out, epochs):
    config = config_of(run)
    dataset = load(config.data, foreign=False)
    reference, info = load_checkpoint(run / "float")
    own = config.training.fit_config(quantized=True, augmentation=dataset.augmentation)
    if epochs is not None:
        own = type(own)(**{f.name: getattr(own, f.name) for f in fields(own)} | {"epochs": epochs})
    steps = own.epochs * (len(dataset.train) // own.batch_size)

    def fitted(model, criterion, fit_config):
        return fit(
            model,
            criterion,
            dataset.train.images,
            dataset.train.labels,
            config=fit_config,
            seed=config.seed,
            validation=dataset.validation,
            progress=bar,
            name=name,
        )

    def quantized(start):
        return start_quantized(start, config.model, config.training, dataset, seed=config.seed)

    if name in NASTY:
        nasty = copy.deepcopy(reference)
        first = config.training.fit_config(quantized=False, augmentation=dataset.augmentation)
        result = fitted(nasty, DivQATLoss(reference, preset="F3", alpha=weight), first)
        model = quantized(nasty).eval()
        if name == "nasty-qat":
            result = fitted(model, cross_entropy, own)
    else:
        model = load_checkpoint(run / "qat")[0] if name in FROM_PLAIN else quantized(reference)
        criterion = DIRECTIONS[name](reference, model, weight, steps)
        criterion.augment = augmentation_of(own.augmentation)
        result = fitted(model, criterion, own)
    accuracy = measure_accuracy(model, dataset.validation, "cpu")
    print(f"{name}: {100 * accuracy:.2f} % of the validation images (epoch {result.best_epoch})")
    save_checkpoint(
        out,
        model,
        CheckpointInfo(
            model=info.model,
            width=info.width,
            precision=config.model.precision,
            image_shape=info.image_shape,
            class_names=info.class_names,
            data=info.data,
            method={"name": name, "weight": weight},
            seed=config.seed,
            best_epoch=result.best_epoch,
            validation_accuracy=accuracy,
            history=[dict(record) for record in result.history],
        ),
    )


def check(settings):
    if settings.out.exists():
        raise ConfigError(f"{settings.out} exists: choose another --out")
    check_no_file_in_the_way(settings.out)
    if not 0 < settings.weight < math.inf:
        raise ConfigError(f"--weight is {settings.weight}: it must be more than 0, and finite")
    if settings.name == "nasty" and settings.epochs is not None:
        raise ConfigError(
            "--epochs is of quantized training, which nasty has none of: leave it out"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="a folder of `divqat train`")
    parser.add_argument("name", choices=DIRECTIONS, nargs="?")
    parser.add_argument("--weight", type=float, default=0.04)
    parser.add_argument("--epochs", type=int, help="the run's by default")
    parser.add_argument("--out", type=Path)
    settings = parser.parse_args()
    if settings.run is None:
        for title, directions in GROUPS.items():
            print(f"{title}: {', '.join(directions)}")
        return
    if settings.name is None or settings.out is None:
        parser.error("give a run, a name and --out")
    try:
        check(settings)
        train(settings.run, settings.name, settings.weight, settings.out, settings.epochs)
    except DivQATError as error:
        parser.exit(2, f"directions.py: error: {error}\n")


if __name__ == "__main__":
    main()
