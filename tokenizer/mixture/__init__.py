"""A mixture of Gaussians of image patches: K-means with soft assignment and a width of every component."""
