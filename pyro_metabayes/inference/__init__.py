"""Parts of guides: initialisations, inner loops, families, divergences, capabilities of models."""
