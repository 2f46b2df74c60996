"""The network, in the order in which it is made.

torchvision_backbone: what timm lacks; norms: other ones in place of BatchNorm; pooling, neck, heads: after the
backbone; network: all of it; build: from names and ImageNet weights. zero_gamma, prior: other initial weights; stages,
freeze: what does not learn. weights: files with what is needed to rebuild it.
"""
