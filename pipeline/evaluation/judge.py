"""The quality of drawn images: their distance to real ones, their agreement with the labels, and copies among them.

Shapes: images (M, C, H, W) uint8, labels (M,), features (M, D)
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from smalti.common.spacing import evenly_spaced
from smalti.metrics.classifier import Classifier, LabelledSource, accuracy_score
from smalti.metrics.distances import density_coverage, frechet_distance, kernel_distance, precision_recall
from smalti.metrics.feature_extractor import Features
from smalti.metrics.neighbours import Memorised, measure_memorisation, nearest_codes

NEIGHBOURHOODS = 10_000  # images of each side at most, evenly spaced, in precision, recall, density and coverage
SHOWN = 10  # drawn images in the picture of neighbours


class Drawn(NamedTuple):
    """Drawn images with their codes, labels and features."""

    images: Tensor  # (M, C, H, W) uint8
    codes: Tensor  # (M, T)
    labels: Tensor  # (M,), the number of classes for an image without a class
    features: Tensor | None  # (M, D)

    def at(self, places: Tensor) -> "Drawn":
        """Return the images at these places alone."""
        features = None if self.features is None else self.features[places]
        return Drawn(self.images[places], self.codes[places], self.labels[places], features)


def compare_features(drawn: Tensor, real: Tensor, train: Tensor, name: str) -> dict[str, Any]:
    """Return the distances of drawn to real features, (M, D) and (N, D), and of training features to the real ones.

    Figures that need more images than there are are left out.
    """
    drawn, real, train = drawn.cpu(), real.cpu(), train.cpu()
    figures: dict[str, Any] = {}
    if min(map(len, (drawn, real, train))) > drawn.shape[1]:
        figures[name], figures[f"{name}_train"] = frechet_distance(real, drawn), frechet_distance(real, train)
    figures["kernel_distance"] = kernel_distance(real, drawn)
    some, few = (each[evenly_spaced(NEIGHBOURHOODS, len(each))] for each in (real, drawn))
    return figures | precision_recall(some, few)._asdict() | density_coverage(some, few)._asdict()


def ask_classifier(
    drawn: Drawn, classifier: Classifier, held_out: LabelledSource, class_names: tuple[str, ...], device: torch.device
) -> dict[str, Any]:
    """Return how often a classifier agrees with the labels of drawn images, and how well one learns from them."""
    figures: dict[str, Any] = {"classifier_accuracy": classifier.accuracy}
    asked = drawn.labels < len(class_names)
    images, labels = drawn.images[asked], drawn.labels[asked]
    if not len(labels):
        return figures
    right = classifier.predict(images) == labels
    figures["class_agreement"] = right.double().mean().item()
    there = [(i, name) for i, name in enumerate(class_names) if (labels == i).any()]
    figures["agreement_by_class"] = {name: right[labels == i].double().mean().item() for i, name in there}
    if len(there) > 1:
        source = LabelledSource.in_memory(images, labels)
        score = accuracy_score(source, held_out, classifier.config.recipe, device)
        figures["classification_accuracy_score"] = score
    return figures


class RealImages(NamedTuple):
    """The training images that drawn images may be copies of, and held-out images, which cannot have been copied."""

    train: Tensor  # (N, C, H, W) uint8
    held_out: Tensor  # (V, C, H, W) uint8
    train_features: Tensor | None  # (N, D)
    train_codes: Tensor  # (N, T)
    held_out_codes: Tensor  # (V, T)


def look_up(drawn: Drawn, real: RealImages, features: Features | None) -> tuple[dict[str, Any], Tensor]:
    """Compare how near drawn and held-out images are to training images, in pixels, features and codes.

    Returns:
        The shares of copies; and images, a row of drawn ones and a row of their nearest in each of the three.
    """
    found: dict[str, Memorised] = {
        "pixels": measure_memorisation(drawn.images.flatten(1), real.train.flatten(1), real.held_out.flatten(1))
    }
    if features is not None:
        assert drawn.features is not None and real.train_features is not None  # both have features, or neither
        found["features"] = measure_memorisation(
            drawn.features.cpu(), real.train_features.cpu(), features(real.held_out).cpu()
        )
    by_distance = (drawn.codes, real.train_codes, real.held_out_codes)
    vectors = drawn.codes.is_floating_point()
    found["codes"] = (
        measure_memorisation(*by_distance) if vectors else measure_memorisation(*by_distance, search=nearest_codes)
    )
    shown = evenly_spaced(SHOWN, len(drawn.images))
    rows = [drawn.images[shown]] + [real.train[each.nearest.indices[shown, 0]] for each in found.values()]
    return {f"memorised_{name}": each.share for name, each in found.items()}, torch.cat(rows)
