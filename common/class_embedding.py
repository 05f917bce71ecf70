"""The embedding of classes, told from other embeddings where a model of other classes begins from it."""

from torch import nn


class ClassEmbedding(nn.Embedding):
    """The vectors of classes (N + 1, D), in the order of their numbers; the last row is none."""
