"""A condition is what a sample is told of: nothing, or its class. A latents dataset has a column of it, a batch a
tensor, and each kind a value that stands for none: of samples that have no condition, and of guidance.

Shapes: condition (B, ...) whatever its kind takes a sample; of a class (B,) int64, the number of classes for none.
"""

import math
from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from smalti.common.classes import check_names, untrained
from smalti.common.config import Kind

if TYPE_CHECKING:  # torch takes seconds, and reading settings does without
    import numpy as np
    import torch
    from torch import Tensor, nn

    from smalti.common.class_embedding import ClassEmbedding

ABSENT = -1  # a row's number in the column of classes where it has none


class Condition(Kind):
    """The condition of the samples of one set."""

    kinds: ClassVar[dict[str, Any]] = {}
    usual: ClassVar[str] = "nothing"
    column: ClassVar[str | None] = None  # of the latents dataset

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Return the names of the classes, in the order of their numbers; None where a sample is told of none."""
        return None

    @property
    def num_classes(self) -> int:
        return len(self.class_names or ())

    @property
    def told(self) -> bool:
        """Return whether a sample is told of anything."""
        return self.column is not None

    # ---------------------------------------------------------------------------------------------- what a kind decides

    @abstractmethod
    def feature(self) -> Any:
        """Return the type of the column, as `datasets` names it."""

    @abstractmethod
    def check_column(self, values: "np.ndarray") -> None:
        """Raise ValueError unless a column (N, ...) is such as this condition has."""

    def check_train(self, values: "np.ndarray") -> None:
        """Raise ValueError where the train split's column (N, ...) has what this condition says it lacks."""
        return None

    @abstractmethod
    def check(self, condition: "Tensor") -> None:
        """Raise ValueError unless a batch (B, ...) is such as this condition has."""

    @abstractmethod
    def none(self, samples: int, device: "torch.device | str | None" = None) -> "Tensor":
        """Return the condition (samples, ...) of samples that are told of nothing."""

    @abstractmethod
    def of_column(self, values: "np.ndarray") -> "Tensor":
        """Return the condition of rows (N, ...) of the column."""

    @abstractmethod
    def lacking(self, values: "np.ndarray") -> "np.ndarray":
        """Return which rows of the column (N, ...) have no condition, (N,) bool."""

    @abstractmethod
    def nats(self, condition: "Tensor") -> "Tensor":
        """Return what it costs to say a condition (B, ...) without a model of it, (B,) float64, in nats."""

    @abstractmethod
    def embedding(self, dim: int) -> "nn.Module":
        """Return what maps a condition (B, ...) to vectors (B, dim)."""

    def seen(self, values: "np.ndarray | None") -> "Condition":
        """Return this condition, knowing what a train split's column has of it."""
        return self

    def untrained(self, asked: Collection[int] | None = None) -> Iterator[str]:
        """Yield a line on what no training row was told of and is asked for, if there is anything; on all of it when
        nothing is asked."""
        yield from ()

    # ----------------------------------------------------------------------------------------------- what follows of it

    def of_rows(self, values: "np.ndarray | None", samples: int) -> "Tensor":
        """Return the condition of rows of a dataset, which may have no column of it."""
        return self.none(samples) if values is None or not self.told else self.of_column(values)

    def hide(self, condition: "Tensor", share: float) -> "Tensor":
        """Return a condition (B, ...) with none in a random share of its samples, for classifier-free guidance."""
        import torch

        hidden = torch.rand(len(condition), device=condition.device) < share
        hidden = hidden.view(-1, *[1] * (condition.ndim - 1))
        return torch.where(hidden, self.none(len(condition), condition.device), condition)

    def share_hidden(self, values: "np.ndarray | None", dropout: float) -> float:
        """Return the share of rows that `hide` leaves without a condition, those included that never had one."""
        lacking = 1.0 if values is None else float(self.lacking(values).mean())
        return lacking + (1 - lacking) * dropout


class _Numbered(Condition):
    """A condition that is a whole number from 0 to `num_classes`, which stands for none."""

    def check_column(self, values: "np.ndarray") -> None:
        if values.size and not (values.min() >= ABSENT and values.max() < self.num_classes):
            raise ValueError(f"labels must lie in [0, {self.num_classes}), got {values.min()} to {values.max()}")

    def check(self, condition: "Tensor") -> None:
        if condition.is_floating_point() or condition.ndim != 1:
            raise ValueError(
                f"labels must be whole numbers (B,), got {condition.dtype} of shape {tuple(condition.shape)}"
            )
        if condition.numel() and not (condition.min() >= 0 and condition.max() <= self.num_classes):
            raise ValueError(f"labels must lie in [0, {self.num_classes}], got {condition.min()} to {condition.max()}")

    def none(self, samples: int, device: "torch.device | str | None" = None) -> "Tensor":
        import torch

        return torch.full((samples,), self.num_classes, device=device)

    def of_column(self, values: "np.ndarray") -> "Tensor":
        import numpy as np
        import torch

        numbers = torch.from_numpy(np.asarray(values, np.int64))
        return torch.where(numbers < 0, self.num_classes, numbers)

    def lacking(self, values: "np.ndarray") -> "np.ndarray":
        return values < 0

    def nats(self, condition: "Tensor") -> "Tensor":
        return (condition < self.num_classes).double() * math.log(max(self.num_classes, 1))

    def embedding(self, dim: int) -> "ClassEmbedding":
        from smalti.common.class_embedding import ClassEmbedding

        return ClassEmbedding(self.num_classes + 1, dim)


class Nothing(_Numbered):
    kind: Literal["nothing"] = "nothing"
    """samples are told of nothing"""

    def feature(self) -> Any:
        raise TypeError("a latents dataset has no column of nothing")


class Classes(_Numbered):
    kind: Literal["class"] = "class"
    """a sample is told of its class"""
    names: tuple[str, ...] = ()
    """of the classes, in the order of their numbers; a training reads them from its data"""
    absent: tuple[int, ...] = ()
    """numbers of the classes that no training row has: what is drawn of them is untrained"""
    column: ClassVar[str | None] = "label"

    @model_validator(mode="after")
    def _known(self) -> "Classes":
        check_names(self.names)
        if any(not 0 <= number < len(self.names) for number in self.absent):
            raise ValueError(f"absent {self.absent} must be numbers of the {len(self.names)} classes")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.names

    def feature(self) -> Any:
        from datasets import ClassLabel  # half a second, and reading does without

        return ClassLabel(names=list(self.names))

    def check_train(self, values: "np.ndarray") -> None:
        import numpy as np

        if there := sorted(set(self.absent) & set(np.unique(values).tolist())):
            raise ValueError(f"absent must be classes without a training row, got {there}, which have some")

    def untrained(self, asked: Collection[int] | None = None) -> Iterator[str]:
        absent = self.absent if asked is None else sorted(set(asked) & set(self.absent))
        yield from untrained(absent, self.names)

    def seen(self, values: "np.ndarray | None") -> "Classes":
        if values is None:
            return self
        import numpy as np

        absent = np.setdiff1d(np.arange(len(self.names)), values)
        return self.model_copy(update={"absent": tuple(absent.tolist())})


Condition.kinds |= {kind.name(): kind for kind in (Nothing, Classes)}


def condition_of(class_names: Sequence[str] | None) -> Condition:
    """Return the condition of a set with these classes, or without any."""
    return Nothing() if class_names is None else Classes(names=tuple(class_names))


def condition_of_format_1(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with a condition in the place of the names of classes, and what went with them in format 1."""
    if "class_names" not in settings:
        return settings
    said = {name: value for name, value in settings.items() if name not in ("class_names", "absent_classes")}
    if "labels_hidden" in said:
        said["hidden"] = said.pop("labels_hidden")
    names = settings["class_names"]
    if names is None:
        return {**said, "condition": {"kind": "nothing"}}
    absent = settings.get("absent_classes", [])
    return {**said, "condition": {"kind": "class", "names": names, "absent": absent}}


def condition_in_format_1(condition: Condition) -> dict[str, Any]:
    """Return what format 1 said of a condition, and the condition where format 1 had no words for it."""
    if type(condition) not in (Nothing, Classes):
        return {"condition": condition.model_dump(mode="json")}
    return {"class_names": None if condition.class_names is None else list(condition.class_names)}
