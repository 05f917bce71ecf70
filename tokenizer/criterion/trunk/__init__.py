"""The trunks: frozen networks whose feature maps the perceptual distance and the feature discriminator read.

classifier    trained here, on the training images' labels, or to tell their rotations apart where they have none
torchscript   a network saved as TorchScript, from a file
torchvision   a network of torchvision, its weights from a file
timm          a network of timm, likewise
"""
