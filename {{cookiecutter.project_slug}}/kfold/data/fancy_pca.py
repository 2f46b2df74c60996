"""Fancy PCA: light of a little other strength and colour, by the principal components of ImageNet's colours.

Source: Krizhevsky, Sutskever and Hinton, ImageNet Classification with Deep Convolutional Neural Networks, section 4.1,
proceedings.neurips.cc/paper/2012/hash/c399862d3b9d6b76c8436e924a68c45b-Abstract.html
Not albumentations' FancyPCA (2.0.8): it multiplies the components by the pixels, and changed half of the images by less
than 0.01 grey levels on average.
"""

import numpy as np

SPREAD = 0.1  # standard deviation of each component's factor
# Of RGB values in 0..1, as in fb.resnet.torch (datasets/imagenet.lua)
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def shift_colours(image: np.ndarray, noise: np.random.Generator) -> np.ndarray:
    """The image (H, W, 3) uint8 with one colour added to all pixels: eigenvectors x (factors x eigenvalues)."""
    factors = noise.normal(0, SPREAD, 3)
    shift = np.rint(255 * EIGENVECTORS @ (factors * EIGENVALUES)).astype(np.int16)
    return np.clip(image + shift, 0, 255).astype(np.uint8)
