"""The command experiments.embed: features of a folder of images from a pretrained network."""
