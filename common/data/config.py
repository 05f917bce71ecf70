"""Settings that say which images are read, and how."""

from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, Field, field_validator, model_validator

from smalti.common.config import Settings

Pixels = Annotated[int, Field(ge=1, le=2**13)]  # a side of an image
Binarize = Literal["none", "nearest", "fixed", "dynamic"]


class Pictured(Protocol):
    """Settings that give the size and channels of the images a model takes."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Return height and width, in pixels."""

    @property
    def image_channels(self) -> int:
        """Return 1 for grey, 3 for RGB, 4 for RGBA."""


class SplitNames(Settings):
    """The source's own names of its splits, where they are none of the usual ones."""

    train: str | None = None
    """the split, folder or data file (without its suffix) that is trained on"""
    validation: str | None = None
    """the one that training is watched with"""
    test: str | None = None
    """the one that figures are of"""

    def given(self) -> dict[str, str]:
        return {split: name for split, name in self if name is not None}


class DataFiles(Settings):
    """The files of each split, as patterns inside the source's folder: `*.parquet`, `train/**`, `a/0.png`."""

    train: tuple[str, ...] | None = Field(None, min_length=1)
    """files that are trained on, as patterns inside the source; with any of the three given, other files are not
    read"""
    validation: tuple[str, ...] | None = Field(None, min_length=1)
    """files that training is watched with"""
    test: tuple[str, ...] | None = Field(None, min_length=1)
    """files that figures are of"""

    @field_validator("*", mode="before")
    @classmethod
    def _one_is_several(cls, patterns: Any) -> Any:
        if isinstance(patterns, str):
            return (patterns,)
        return tuple(patterns) if isinstance(patterns, list) else patterns

    def given(self) -> dict[str, list[str]]:
        return {split: list(patterns) for split, patterns in self if patterns is not None}


def _gone(margin: int) -> int:
    if margin:
        raise ValueError(
            "there is no margin any more, which resampled every picture and cut off its rim; "
            f"`shift: {-(-margin // 2)}` in its place moves them as far and reads them as they are"
        )
    return margin


class ImagesConfig(Settings):
    """The source of the images, and how they are brought to the size of the model."""

    source: str = "digits"
    """`digits` (1,797 of 8x8 pixels, built in), the name of a data set on the Hugging Face Hub, or a local folder of
    Parquet, Arrow (also save_to_disk), WebDataset .tar shards or image files"""
    subset: str | None = None
    """the data set's configuration, where it has several"""
    split: SplitNames = SplitNames()
    """which splits of the source are train, validation and test; without it, those called so: train, training;
    validation, valid, val, dev; test, testing, eval, evaluation; in any letter case, and with a number, as
    train-00000-of-00005"""
    data_files: DataFiles = DataFiles()
    """which files are of which split, in place of their names; without it also a README's `configs: data_files:` says
    so"""
    reach: Literal["folder", "anywhere"] = "folder"
    """files that a link or a row of a table names outside the source's folder: refused (folder), or read (anywhere); a
    stranger's folder could so name your own files"""
    image_column: str | None = None
    """the column of images; null finds it by its type"""
    label_column: str | None = None
    """the column of class labels, of a table or of metadata files; null finds it by its type (`label` in metadata
    files), and without one the images are unlabelled"""
    resize: Literal["crop", "stretch"] = "crop"
    """crop: the shorter side to size and the centre of the longer one; stretch: both sides to size"""
    shift: int = Field(0, ge=0, le=2**13)
    """pixels that training images are moved at most, either way on both axes; what comes in is the side's own rim,
    repeated"""
    margin: Annotated[int, AfterValidator(_gone)] = Field(0, exclude=True)
    """gone; 0 is accepted, as earlier runs wrote it; any other value is an error that names images.shift"""
    flip: bool = False
    """mirror half of the training images left-right"""
    binarize: Binarize = "none"
    """bring every channel of a pixel to 0 or 255, as model.likelihood.kind bernoulli needs. nearest: to whichever is
    nearer; fixed: to 255 with its grey as the probability, drawn once for each image; dynamic: drawn anew in each
    epoch, where held-out images keep one draw. A figure in nats is of the images so binarized, and of no others"""
    white: int = Field(65_535, ge=255, le=65_535)
    """of pictures of 16 bits a channel: the value that is white; cameras and microscopes often use fewer bits, as 12:
    4095"""
    validation_share: float = Field(0.05, gt=0, le=0.5)
    """share of the training images held out where the source has no split `validation` (val, valid, dev)"""
    corrupt: Literal["refuse", "skip"] = "refuse"
    """what to do with a row whose image cannot be decoded, or whose label is none of the classes: stop and name it, or
    leave it out and count it"""
    animated: Literal["first", "skip", "refuse"] = "first"
    """of an image of several frames: take the first, leave it out, or stop and name it"""
    duplicates: Literal["keep", "skip", "refuse"] = "keep"
    """of a row whose file is that of another, within a split or between them: keep it, leave it out (of train rather
    than of what is held out, which a model would else memorise), or stop and name it"""
    max_pixels: int = Field(89_478_485, ge=1, le=178_956_970)
    """width x height from which an image counts as corrupt, unseen: a small file may claim more pixels than there is
    memory"""
    memory: float = Field(1.0, ge=0)
    """GiB of decoded pixels kept in memory; a set that needs more is read from disk batch by batch"""

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_run(cls, given: Any) -> Any:
        """Take `black_and_white: true`, as earlier runs wrote it, for `binarize: nearest`."""
        if not isinstance(given, dict) or not isinstance(given.get("black_and_white"), bool):
            return given
        rest = {name: value for name, value in given.items() if name != "black_and_white"}
        return {"binarize": "nearest", **rest} if given["black_and_white"] else rest
