"""The perceptual distances between an image and its reconstruction, beside the likelihood.

none        none
features    distance of the feature maps of a trunk
"""
