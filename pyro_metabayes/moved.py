"""Where the modules that settings and checkpoints of earlier versions name are now."""

# Version 0.1: sources of data stood in pyro_metabayes.data.
_SOURCES = (
    "cifar_fs",
    "fc100",
    "digit_domains",
    "features",
    "gaussian_features",
    "glyphs",
    "groups",
    "image_folder",
    "leo_embeddings",
    "linear_gaussian",
    "mini_imagenet",
    "omniglot",
    "pacs",
    "sine_and_line",
    "sinusoid",
    "spinning_lines",
    "tiered_imagenet",
)
MOVED = {f"pyro_metabayes.data.{name}": f"pyro_metabayes.data.sources.{name}" for name in _SOURCES}
