"""The training of a discriminator beside the tokenizer's: one step of it with each step of the tokenizer.

Images and reconstructions of a micro-batch pass the discriminator once each. From these logits come the gradient of
−E D(x̂) to the reconstructions, for the tokenizer, and the gradient of hinge and LeCam to the weights, for the
discriminator's own AdamW. Both models thus move by the weights before the step.

The adaptive weight is measured over the whole step, all micro-batches and processes, and so holds for the next one:
the same on one process and on several. The paper measures it in each process's batch.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import Parameter

from smalti.common import state
from smalti.common.finite import MicroBatch, SkippedSteps
from smalti.common.run_folder import Means
from smalti.common.schedule import warmup_cosine
from smalti.common.seeds import uniforms_of_rows
from smalti.tokenizer.config import TrainConfig
from smalti.tokenizer.criterion.adversarial.augmentation import DRAWS, augmented
from smalti.tokenizer.criterion.adversarial.base import Discriminator
from smalti.tokenizer.criterion.adversarial.config import DiscriminatorConfig
from smalti.tokenizer.criterion.adversarial.health import Health
from smalti.tokenizer.criterion.adversarial.loss import accuracy, adaptive_weight, adversarial_loss, hinge_loss, lecam

ANCHORED = 0.99  # decay of the running means of logits, which begin as plain means
SALT = 2**40  # between the seeds of the augmentation here and of the images


class Verdict(NamedTuple):
    """The adversarial loss of a micro-batch, and its gradient to the reconstructions; 0 where it is not finite."""

    loss: Tensor  # ()
    gradient: Tensor  # (B, C, H, W)


class Adversary:
    """A discriminator and the state of its training."""

    def __init__(
        self, config: DiscriminatorConfig, discriminator: Discriminator, c: TrainConfig, accelerator: Accelerator
    ):
        self.config, self.c, self.accelerator = config, c, accelerator
        self.discriminator = discriminator
        self.parameters = [*discriminator.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.lr, betas=(0.5, 0.9), weight_decay=c.weight_decay, fused=True
        )
        self.anchors = torch.zeros(2, discriminator.heads, device=accelerator.device)
        self.adaptive = torch.zeros((), device=accelerator.device)  # λ of this step
        self.means, self.skipped, self.health = Means(accelerator), self._skipped(), Health()
        self._forget()

    @staticmethod
    def _skipped(**counts: int) -> SkippedSteps:
        return SkippedSteps(**counts, whose=" of the discriminator", remedy="a lower adversarial.lr")

    def _forget(self) -> None:
        """Forget what the micro-batches of a step gave."""
        self._parts: list[MicroBatch] = []
        self._logits = torch.zeros_like(self.anchors)  # means over the step's images
        self._at_last: tuple[Tensor, Tensor] | None = None  # gradients at the last layer, of the rest and of this loss
        self.optimizer.zero_grad()

    def trains(self, step: int) -> bool:
        """Return whether the discriminator is trained at a step."""
        return self.config.trains(step / self.c.steps)

    def counted(self, step: int) -> float:
        """Return the share of the adversarial weight that counts at a step."""
        return self.config.counted(step / self.c.steps)

    def judge(self, images: Tensor, reconstructions: Tensor, rows: Tensor, step: int) -> Verdict:
        """Return the adversarial loss of reconstructions, and add to the gradient of the discriminator's own.

        Args:
            rows: (B,) of the images in train, on which their augmentation depends.
        """
        reconstructions = reconstructions.detach().requires_grad_()
        numbers = rows.cpu().numpy()
        draws = uniforms_of_rows(self.c.seed + SALT, np.full_like(numbers, step), numbers, DRAWS)
        with self.accelerator.autocast():
            real, fake = (
                [head.float() for head in self.discriminator(augmented(each, draws, self.config.augment))]
                for each in (images, reconstructions)
            )
        loss = adversarial_loss(fake)
        (gradient,) = torch.autograd.grad(loss, reconstructions, retain_graph=True)

        hinge, regularizer = hinge_loss(real, fake), lecam(real, fake, self.anchors)
        own = (hinge + self.config.lecam * regularizer) / self.c.accumulate
        for parameter, part in zip(self.parameters, torch.autograd.grad(own, self.parameters), strict=True):
            parameter.grad = part if parameter.grad is None else parameter.grad + part
        means = torch.stack([torch.stack([head.detach().mean() for head in heads]) for heads in (real, fake)])
        self._logits += means / self.c.accumulate
        figures = {
            "adversarial_loss": loss,
            "discriminator_loss": hinge,
            "lecam": regularizer,
            "real_logits": means[0].mean(),
            "fake_logits": means[1].mean(),
            "discriminator_accuracy": accuracy(real, fake),
            "adaptive_weight": self.adaptive,
        }
        values = torch.stack([head.detach().mean(1) for head in (*real, *fake)], 1)  # (B, 2 heads)
        self._parts.append(MicroBatch("the discriminator's output", values, figures, rows))
        sound = loss.isfinite() & gradient.isfinite().all()
        return Verdict(torch.where(sound, loss, 0.0).detach(), torch.where(sound, gradient, 0.0))

    def weigh(self, rest: Tensor, reconstructions: Tensor, gradient: Tensor, last: Parameter) -> None:
        """Add to the gradients at the decoder's last layer, of all other losses and of the adversarial one.

        Args:
            rest: () the sum of the other losses.
            gradient: (B, C, H, W) of the adversarial loss to the reconstructions.
        """
        (of_rest,) = torch.autograd.grad(rest, last, retain_graph=True)
        (of_this,) = torch.autograd.grad(reconstructions, last, gradient, retain_graph=True)
        here = (of_rest / self.c.accumulate, of_this / self.c.accumulate)
        there = self._at_last
        self._at_last = here if there is None else (there[0] + here[0], there[1] + here[1])

    def step(self, step: int) -> None:
        """Take the discriminator's own step, unless its gradient is not finite, and find the next adaptive weight."""
        if not self._parts:
            return
        assert self._at_last is not None
        self._average()
        for group in self.optimizer.param_groups:
            group["lr"] = warmup_cosine(step, peak=self.config.lr, warmup=0, total=self.c.steps)
        if self.skipped.clip(step + 1, self.discriminator, self.c.clip, self._parts):
            self.optimizer.step()
            steps = 1 + step - math.ceil(self.config.start * self.c.steps)  # of the discriminator
            self.anchors.lerp_(self._logits, max(1 - ANCHORED, 1 / max(1, steps)))
            found = adaptive_weight(*self._at_last, self.config.most)
            self.adaptive = torch.where(found.isfinite(), found, self.adaptive)
            for part in self._parts:
                self.means.add(**part.losses)
        self._forget()

    def _average(self) -> None:
        """Average over processes what each has of the step."""
        if self.accelerator.num_processes == 1:
            return
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        assert self._at_last is not None
        ours = [*gradients, self._logits, *self._at_last]
        whole = self.accelerator.reduce(torch.cat([each.flatten() for each in ours]), "mean")
        for each, mean in zip(ours, whole.split([each.numel() for each in ours]), strict=True):
            each.copy_(mean.view_as(each))

    def figures(self, step: int) -> dict[str, float]:
        """Return what is logged after a step: means since the last time, and how many steps were skipped."""
        found = self.means.take()
        return {**found, "discriminator_skipped_steps": self.skipped.total} if self.trains(step) else {}

    # ------------------------------------------------------------------------------------------------------- its state

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the state of the training that are tensors; every process must call this."""
        self.means.check_finite()
        return {
            "discriminator": self.discriminator.state_dict(),
            "discriminator_optimizer": state.optimizer_tensors(self.optimizer),
            "discriminator_means": self.means.state_dict(),
            "adversary": {"anchors": self.anchors, "adaptive": self.adaptive},
        }

    def info(self) -> dict[str, Any]:
        """Return the rest of the state."""
        return {"skipped": self.skipped.state(), "health": self.health.state()}

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], info: Mapping[str, Any]) -> None:
        """Take a state up again. Raises what does not fit, see `common.state.restoring`."""
        state.restore(self.discriminator, tensors["discriminator"])
        state.load_optimizer(self.optimizer, tensors["discriminator_optimizer"])
        self.means.load_state_dict(tensors["discriminator_means"])
        anchors, adaptive = tensors["adversary"]["anchors"], tensors["adversary"]["adaptive"]
        if anchors.shape != self.anchors.shape or adaptive.shape:
            raise ValueError(f"anchors {tuple(anchors.shape)} and weight {tuple(adaptive.shape)} of the discriminator")
        self.anchors, self.adaptive = (each.to(self.accelerator.device).float() for each in (anchors, adaptive))
        self.skipped, self.health = self._skipped(**info["skipped"]), Health(**info["health"])
