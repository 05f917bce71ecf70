"""The gated PixelCNN: convolutions that see only what stands before."""
