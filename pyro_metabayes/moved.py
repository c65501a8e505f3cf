"""Where modules and settings of earlier versions, which checkpoints and commands name, are now."""

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
MOVED_SETTINGS = {"task.train_shift": "data.train_shift, a setting of data=digit_domains and data=pacs"}
