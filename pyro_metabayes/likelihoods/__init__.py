"""Predictions by family of the likelihood. Importing the package registers the families of all files."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
