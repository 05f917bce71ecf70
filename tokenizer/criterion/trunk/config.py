"""The settings of every trunk."""

from typing import Any, ClassVar

from smalti.common.config import Kind


class TrunkConfig(Kind):
    """A frozen network whose feature maps images are compared by."""

    kinds: ClassVar[dict[str, Any]] = {}
    usual: ClassVar[str] = "classifier"
