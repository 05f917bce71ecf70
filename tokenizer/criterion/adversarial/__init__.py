"""The discriminators, which are trained to tell reconstructions from images, and the tokenizer to mislead them.

none        none
patches     PatchGAN: decides for each patch of pixels
features    decides by the feature maps of a frozen trunk
"""
