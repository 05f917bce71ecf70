"""The losses of the decoded image that stand beside a tokenizer's own terms: perceptual and adversarial.

    criteria = open_criteria(c, tokenizer, images, run, accelerator, saved)
    loss, logged = criteria.add(loss, terms, images, rows, step)       # for each micro-batch
    criteria.step(step)                                                # the discriminator's own step

Both reach the tokenizer through the reconstruction alone, so each network is passed backwards once, to a gradient of
the reconstruction, from which both the adaptive weight and the gradient of the tokenizer follow.

Shapes: images and reconstructions (B, C, H, W) in [-1, 1].
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from smalti.common.config import read_yaml
from smalti.common.data.images import ImageSet
from smalti.common.errors import UserError
from smalti.common.finite import SkippedSteps
from smalti.common.history import START, read_history
from smalti.common.run_folder import settings_of
from smalti.common.seeds import generator
from smalti.common.state import State, restoring
from smalti.tokenizer.base import DecodesByNetwork, Terms, TrainedTokenizer
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.criterion.adversarial.adversary import Adversary
from smalti.tokenizer.criterion.adversarial.base import build_discriminator
from smalti.tokenizer.criterion.adversarial.config import DiscriminatorConfig
from smalti.tokenizer.criterion.perceptual.config import FeatureDistanceConfig
from smalti.tokenizer.criterion.perceptual.features import FeatureDistance
from smalti.tokenizer.criterion.trunk.base import Place, Trunk
from smalti.tokenizer.run_features import features_cache

FIGURES = {  # of the discriminator, which are no terms of the loss
    "discriminator_loss",
    "lecam",
    "real_logits",
    "fake_logits",
    "discriminator_accuracy",
    "adaptive_weight",
    "discriminator_skipped_steps",
}

PUBLISHED = "those it was published with"  # of a converted tokenizer


class WithGradient(torch.autograd.Function):
    """A loss of the reconstruction whose value and gradient are known already."""

    @staticmethod
    def forward(ctx: Any, reconstructions: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return outer[0] * gradient, None, None


class Criteria:
    """The perceptual distance, if there is one, and the adversary, if there is one."""

    def __init__(
        self,
        tokenizer: TrainedTokenizer,
        accelerator: Accelerator,
        distance: FeatureDistance | None = None,
        adversary: Adversary | None = None,
        trunks: Mapping[str, Trunk] | None = None,
    ):
        self.tokenizer, self.accelerator = tokenizer, accelerator
        self.distance, self.adversary, self.trunks = distance, adversary, trunks or {}

    def add(
        self, loss: Tensor, terms: Terms, images: Tensor, rows: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a micro-batch with what these criteria add to it, and their values by name."""
        judged = self.adversary is not None and self.adversary.trains(step)
        if self.distance is None and not judged:
            return loss, {}
        assert isinstance(self.tokenizer, DecodesByNetwork) and terms.output is not None  # see `open_criteria`
        reconstructions, logged = self.tokenizer.likelihood.mean(terms.output), dict[str, Tensor]()
        if self.distance is not None:
            value, gradient = self._perceptual(images, reconstructions)
            weight = self.distance.config.weight * self.tokenizer.error_weight()
            loss = loss + WithGradient.apply(reconstructions, weight * value, weight * gradient)
            logged["perceptual_loss"] = value
        if judged:
            assert self.adversary is not None
            verdict = self.adversary.judge(images, reconstructions, rows, step)
            self.adversary.weigh(loss, reconstructions, verdict.gradient, self.tokenizer.last_layer())
            weight = self.adversary.config.weight * self.adversary.counted(step) * self.adversary.adaptive
            loss = loss + WithGradient.apply(reconstructions, weight * verdict.loss, weight * verdict.gradient)
        return loss, logged

    def _perceptual(self, images: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean perceptual distance, and its gradient to the reconstructions."""
        assert self.distance is not None
        reconstructions = reconstructions.detach().requires_grad_()
        with self.accelerator.autocast():
            value = self.distance(images, reconstructions).mean()
        (gradient,) = torch.autograd.grad(value, reconstructions)
        return value.detach(), gradient

    def step(self, step: int) -> None:
        """Take the discriminator's own step, where there is one."""
        if self.adversary is not None:
            self.adversary.step(step)

    def skipped(self) -> tuple[SkippedSteps, ...]:
        """Return the skipped steps of the discriminator, where there is one."""
        return () if self.adversary is None else (self.adversary.skipped,)

    def figures(self, step: int) -> dict[str, float]:
        """Return what is logged after a step, and warn of a discriminator that is too strong or dead."""
        if self.adversary is None:
            return {}
        found = self.adversary.figures(step)
        self._warn(step + 1, self.adversary.health.of_figures(found, self.adversary.counted(step) > 0))
        return found

    def begun(self, psnr: float) -> None:
        """Note the PSNR of the weights that the training begins from, which it should not fall much below."""
        if self.adversary is not None:
            self.adversary.health.before = psnr

    def evaluated(self, step: int, psnr: float) -> None:
        """Warn, after so many steps, of reconstructions that get worse since the discriminator counts."""
        if self.adversary is not None:
            counted = self.adversary.counted(step - 1) > 0  # in the last step that was taken
            self._warn(step, self.adversary.health.of_evaluation(psnr, counted))

    def _warn(self, step: int, warnings: Iterator[str]) -> None:
        for warning in warnings:
            self.accelerator.print(f"step {step}: {warning}", file=sys.stderr)

    # ------------------------------------------------------------------------------------------------------- its state

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the state that are tensors; every process must call this."""
        kept = {f"trunk_{name}": trunk.kept() for name, trunk in self.trunks.items()}
        found: dict[str, Mapping[str, Tensor]] = {name: weights for name, weights in kept.items() if weights}
        return found if self.adversary is None else found | self.adversary.tensors()

    def info(self) -> dict[str, Any]:
        """Return the rest of the state: what the trunks are, and counts of the adversary."""
        trunks = {"trunks": {name: trunk.identity for name, trunk in self.trunks.items()}} if self.trunks else {}
        return trunks if self.adversary is None else trunks | {"adversary": self.adversary.info()}


def losses_of(run: Path) -> tuple[str, ...]:
    """Return the criteria that a run's weights were trained with, in its stage's folder, and those it began from."""
    c = settings_of(run, TrainConfig)
    criteria = {} if c is None else {"perceptual": c.perceptual, "adversarial": c.adversarial}
    own = [f"{name} {each.name()}" for name, each in criteria.items() if each.name() != "none"]
    path = run / "config.yaml"
    converted = [PUBLISHED] if c is None and path.is_file() and "checkpoint" in read_yaml(path) else []
    before = [name for change in read_history(run) if change.setting == START for name in change.losses or ()]
    return tuple(dict.fromkeys([*before, *converted, *own]))


def remark_on_losses(run: Path) -> str | None:
    """Return what a reader of a run's bits and distances should know of these criteria, or None without any."""
    if not (chosen := losses_of(run)):
        return None
    bits = (
        f"trained with losses beside the likelihood ({', '.join(chosen)}): bits are those of the best p(x | z) around "
        "pictures that were made for these losses too"
    )
    if not any(name.endswith("features") for name in chosen):
        return bits
    return f"{bits}; a distance on features like those of its trunk is made small by them, so compare on others"


def open_criteria(
    c: TrainConfig,
    tokenizer: TrainedTokenizer,
    images: ImageSet,
    run: Path,
    accelerator: Accelerator,
    saved: State | None,
) -> Criteria:
    """Return the criteria that the settings choose, at their beginning or as saved.

    Raises:
        UserError: the tokenizer decodes to no image of which there is a gradient, a trunk cannot be opened or is
            another than the run began with, or the state does not fit.
    """
    if not isinstance(c.perceptual, FeatureDistanceConfig) and not isinstance(c.adversarial, DiscriminatorConfig):
        return Criteria(tokenizer, accelerator)
    if not isinstance(tokenizer, DecodesByNetwork):
        raise UserError(
            f"perceptual and adversarial losses are of the decoded image, and model.kind {c.model.name()} gives none "
            "with a gradient; set perceptual.kind and adversarial.kind to none"
        )
    place = Place(images, c.images, c.model.image_size, c.model.image_channels, features_cache(run.parent), accelerator)
    wanted = {"perceptual": c.perceptual.reads, "adversarial": c.adversarial.reads}
    trunks = _open_trunks({name: reads for name, reads in wanted.items() if reads is not None}, place, run, saved)
    distance, adversary = None, None
    if isinstance(c.perceptual, FeatureDistanceConfig):
        distance = FeatureDistance(c.perceptual, trunks["perceptual"])
    if isinstance(c.adversarial, DiscriminatorConfig):
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator(c.seed).get_state())  # the same weights on every process
            discriminator = build_discriminator(c.adversarial, place, trunks.get("adversarial"))
        adversary = Adversary(c.adversarial, discriminator.to(accelerator.device), c, accelerator)
    if saved is not None and adversary is not None:
        with restoring(run):
            adversary.restore(saved.tensors, saved.info["adversary"])
    return Criteria(tokenizer, accelerator, distance, adversary, trunks)


def _open_trunks(wanted: Mapping[str, Any], place: Place, run: Path, saved: State | None) -> dict[str, Trunk]:
    """Return the trunk of each criterion by its name; the same settings share one."""
    found: dict[str, Trunk] = {}
    for name, config in wanted.items():
        same = next((other for other in found if wanted[other] == config), None)
        if same is not None:
            found[name] = found[same]
            continue
        with nullcontext() if saved is None else restoring(run):
            found[name] = config.builds.open(config, place, saved and saved.tensors.get(f"trunk_{name}"))
        found[name].check(place)
        place.accelerator.print(f"{name} trunk: {found[name].title}, SHA-256 {found[name].identity[:12]}")
    for name, trunk in found.items() if saved is not None else ():
        assert saved is not None
        before = str(saved.info.get("trunks", {}).get(name))
        if before != trunk.identity:
            raise UserError(
                f"{run} was trained with a {name} trunk of SHA-256 {before[:12]}, and {trunk.title} is "
                f"{trunk.identity[:12]}: give the file it began with, or another --run"
            )
    return found
