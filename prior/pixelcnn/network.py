"""The two stacks of the gated PixelCNN: the features of each place, from the places before it in raster order.

    vertical      at row i depends on all columns of rows 0, ..., i
    horizontal    at place (i, j) depends on row i up to column j − 1, and on the vertical stack at row i − 1

One masked convolution leaves a blind spot above and to the right of each place; two stacks leave none. Every layer is
gated by tanh(a) · sigmoid(b), and the class adds a bias to a and b. (van den Oord et al. 2016, Conditional image
generation with PixelCNN decoders, https://arxiv.org/abs/1606.05328, sec. 2.1 to 2.3 and figure 2.) A hint makes that
bias depend on the place (eq. 5).

Shapes: B samples, C channels, h x w places; x (B, C, h, w) embedded codes, condition (B, C), features (B, C, h, w);
hint (B, h, w, C); told (B, h, w, C), the condition with the hint, or (B, 1, 1, C) without one.
With an odd kernel size k a layer sees r = k // 2 places to the left, to the right and above.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def gated(x: Tensor) -> Tensor:
    """Return tanh of the first half of the channels times the sigmoid of the second (eq. 2)."""
    a, b = x.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()


def told_at(condition: Tensor, hint: Tensor | None) -> Tensor:
    """Return what the layers are told at each place, of a condition (B, C)."""
    told = condition[:, None, None]
    return told if hint is None else told + hint


class GatedLayer(nn.Module):
    """A layer of both stacks (figure 2)."""

    def __init__(self, channels: int, kernel: int, dropout: float, *, first: bool):
        """
        Args:
            first: the horizontal stack must not see the place itself, whose input is the code to predict.
        """
        super().__init__()
        self.radius = kernel // 2
        self.first = first
        self.vertical = nn.Conv2d(channels, 2 * channels, (self.radius + 1, kernel))
        self.horizontal = nn.Conv2d(channels, 2 * channels, (1, self.radius + (not first)))
        self.link = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)  # from the vertical stack to the horizontal
        self.condition = nn.Linear(channels, 4 * channels, bias=False)
        self.out = nn.Conv2d(channels, channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, v: Tensor, h: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        """Return v and h of the next layer, from v and h (B, C, h, w)."""
        of_v, of_h = self.biases(told)
        r = self.radius
        seen = self.vertical(F.pad(v, (r, r, r, 0)))  # rows i − r, ..., i
        above = F.pad(seen, (0, 0, 1, 0))[:, :, :-1]  # of row i − 1
        before = self.horizontal(F.pad(h, (r, -1, 0, 0)) if self.first else F.pad(h, (r, 0, 0, 0)))
        return gated(seen + of_v), self.join(h, before + self.link(above) + of_h)

    def biases(self, told: Tensor) -> tuple[Tensor, Tensor]:
        """Return the biases of the vertical and of the horizontal stack, each (B, 2C, h, w) or (B, 2C, 1, 1)."""
        of_v, of_h = rearrange(self.condition(told), "b h w c -> b c h w").chunk(2, dim=1)
        return of_v, of_h

    def join(self, h: Tensor, x: Tensor) -> Tensor:
        """Return the horizontal stack's output. The first layer has no residual: it must not pass its input on."""
        new = self.out(self.dropout(gated(x)))
        return new if self.first else h + new


class Stacks(nn.Module):
    """All layers, from embedded codes to features; the features at a place depend only on the codes before it."""

    def __init__(self, channels: int, layers: int, kernel: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(GatedLayer(channels, kernel, dropout, first=n == 0) for n in range(layers))

    def forward(self, x: Tensor, condition: Tensor, hint: Tensor | None = None) -> Tensor:
        """Return features (B, C, h, w) of x (B, C, h, w) and condition (B, C)."""
        v, h, told = x, x, told_at(condition, hint)
        for layer in self.layers:
            v, h = layer(v, h, told)
        return h


class RowByRow:
    """The stacks computed one place after the other: what earlier places have given is kept and not computed again.

    Of the vertical stack a layer keeps its last r + 1 input rows, since a row is computed once, when it is whole; of
    the horizontal stack the r places to the left. A place costs a few products with (B, C · k / 2) and no convolution.

        for each place in raster order:  features = stacks.features(j); ...; stacks.put(j, embedded code)
        after each row:                  stacks.end_row()
    """

    def __init__(self, stacks: Stacks, condition: Tensor, width: int, hint: Tensor | None = None):
        self.layers: list[GatedLayer] = list(stacks.layers)  # type: ignore[arg-type]  # torch says only that they are modules
        self.width = width
        size = (len(condition), condition.shape[1])
        self.told = told_at(condition, hint)
        self.of_v, self.of_h = self._biases(0)
        self.i = 0
        self.row = condition.new_zeros(*size, width)  # embedded codes of the row
        # of each layer: link(vertical) of the row before, the inputs of the vertical stack, and of the horizontal one
        self.above = [condition.new_zeros(size[0], 2 * size[1], width) for _ in self.layers]
        self.rows = [condition.new_zeros(*size, layer.radius + 1, width) for layer in self.layers]
        self.left = [condition.new_zeros(*size, layer.radius + width) for layer in self.layers]
        self.weights = [layer.horizontal.weight.flatten(1) for layer in self.layers]  # (2C, C · places)

    def features(self, j: int) -> Tensor:
        """Return the features (B, C) of the place in column j of the present row."""
        h = self.row[:, :, j]  # zeros, and not read by the first layer
        for n, layer in enumerate(self.layers):
            r = layer.radius
            self.left[n][:, :, r + j] = h
            window = self.left[n][:, :, j : j + r + (not layer.first)]
            before = F.linear(window.flatten(1), self.weights[n], layer.horizontal.bias)
            x = before + self.above[n][:, :, j] + self.of_h[n][:, :, j]
            h = layer.join(h[..., None, None], x[..., None, None])[..., 0, 0]
        return h

    def put(self, j: int, embedded: Tensor) -> None:
        """Take the embedded code (B, C) of the place in column j."""
        self.row[:, :, j] = embedded
        self.left[0][:, :, self.layers[0].radius + j] = embedded

    def end_row(self) -> None:
        """Compute the vertical stack of the complete row, and begin the next row."""
        v = self.row
        for n, layer in enumerate(self.layers):
            self.rows[n] = torch.cat([self.rows[n][:, :, 1:], v[:, :, None]], dim=2)
            seen = layer.vertical(F.pad(self.rows[n], (layer.radius, layer.radius)))  # (B, 2C, 1, w)
            self.above[n] = layer.link(seen)[:, :, 0]
            v = gated(seen[:, :, 0] + self.of_v[n])
        self.row = torch.zeros_like(self.row)
        for left in self.left:
            left.zero_()
        self.i += 1
        if self.i < self.told.shape[1]:  # without a hint all rows are told the same
            self.of_v, self.of_h = self._biases(self.i)

    def _biases(self, i: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return the biases of row i of both stacks, each (B, 2C, w) for each layer."""
        of = [layer.biases(self.told[:, i : i + 1]) for layer in self.layers]
        of_v, of_h = ([bias[:, :, 0].expand(-1, -1, self.width) for bias in biases] for biases in zip(*of, strict=True))
        return of_v, of_h
