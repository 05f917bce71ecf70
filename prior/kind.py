"""The kinds of prior there are, for a setting to name one."""

KIND = """`transformer`: attention over all codes before; `pixelcnn`: gated convolutions over the rows above and what stands to
the left"""
