"""`classifier`: the convolutional levels of a small classifier of the user's own training images.

It is trained on the labels of the training split, as the evaluation's classifier is (`metrics/classifier.py`), from
another seed: distances on the evaluation's features shall not be on the very features that training made small. Where
images have no labels it is trained to tell apart the four rotations of an image (Gidaris et al. 2018,
https://arxiv.org/abs/1803.07728), with the same network and recipe.
"""

from collections.abc import Mapping
from typing import Self

from torch import Tensor

from smalti.common import state
from smalti.metrics.classifier import Classifier, classifier_config, load_or_train
from smalti.metrics.feature_extractor import identity_of
from smalti.tokenizer.criterion.trunk.base import Place, Trunk
from smalti.tokenizer.criterion.trunk.config import OwnClassifierConfig, TrunkConfig
from smalti.tokenizer.labelled import as_read, labelled, rotated

LABELLED = 2  # classes at least


@OwnClassifierConfig.register
class OwnClassifier(Trunk):
    """The convolutional levels of a classifier of the training images."""

    def __init__(self, classifier: Classifier, title: str):
        super().__init__()
        self.classifier, self.title = classifier, title
        self.identity = identity_of(
            "rectified levels of a classifier", Classifier.feature_maps, classifier.state_dict()
        )

    @classmethod
    def open(cls, config: TrunkConfig, place: Place, kept: Mapping[str, Tensor] | None) -> Self:
        assert isinstance(config, OwnClassifierConfig)
        splits = place.images.splits
        there = set(splits["train"].labels.tolist()) - {-1}  # a filtered set may have names without images
        by_labels = config.task == "auto" and place.images.class_names is not None and len(there) >= LABELLED
        source = labelled if by_labels else rotated
        train, known = source(splits["train"]), source(splits["validation"])
        mirror, seed = config.recipe.mirror or place.settings.flip, config.recipe.seed + 1
        recipe = config.recipe.model_copy(update={"mirror": mirror, "seed": seed})
        told = "classes" if by_labels else "rotations"
        if kept is not None:
            classifier = Classifier(classifier_config(train, known, recipe)).to(place.accelerator.device)
            state.restore(classifier, kept)
            return cls(classifier, f"a classifier of the {told} of the training images").freeze()
        with place.accelerator.main_process_first():
            classifier = load_or_train(
                train, known, as_read(place.images, place.settings), place.cache, recipe, place.accelerator.device
            )
        how = "" if classifier.accuracy is None else f", right for {classifier.accuracy:.1%} of validation"
        return cls(classifier, f"a classifier of the {told} of the training images{how}").freeze()

    def feature_maps(self, pixels: Tensor) -> list[Tensor]:
        return self.classifier.feature_maps(pixels)

    def kept(self) -> dict[str, Tensor]:
        return self.classifier.state_dict()
