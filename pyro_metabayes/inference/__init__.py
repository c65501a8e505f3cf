"""Parts of guides: initialisations, inner loops, variational families, divergences and capabilities of models."""
