"""Parts of guides: initialisations, inner loops, variational families, divergences, capabilities of models."""
