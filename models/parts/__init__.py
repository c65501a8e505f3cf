"""Parts that models, priors and backbones share, such as set encoders and products of weights and features."""
