"""The grid of a convolutional network: one place for each square of pixels."""


def grid_of(image_size: tuple[int, int], patch: int, levels: int) -> tuple[int, int]:
    """Return (h, w) of the places of an image of (H, W) pixels, each `patch` * 2^(levels - 1) pixels a side.

    Raises:
        ValueError: a side does not divide by that; it names the nearest that does.
    """
    factor = patch * 2 ** (levels - 1)
    for side, pixels in zip(("height", "width"), image_size, strict=True):
        if pixels % factor:
            near = max(1, round(pixels / factor)) * factor
            raise ValueError(
                f"image_size: a {side} of {pixels} does not divide by the downsampling {factor} "
                f"(patch {patch} and {levels - 1} halvings); {near} would"
            )
    return image_size[0] // factor, image_size[1] // factor


def halved(grid: tuple[int, int]) -> tuple[int, int]:
    """Return (h, w) of a grid of half the sides, odd ones rounded up."""
    h, w = grid
    return (h + 1) // 2, (w + 1) // 2
