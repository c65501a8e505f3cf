"""Features of a folder of images from a pretrained network."""
