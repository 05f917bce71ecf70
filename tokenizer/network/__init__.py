"""The networks of encoders and decoders: images to the numbers of a posterior, and vectors back to pixels.

convolutional   residual convolutional blocks, the encoder and decoder of the VQ-VAE
mlp             fully connected layers, for small images
linear          one linear layer each way: probabilistic PCA
"""
