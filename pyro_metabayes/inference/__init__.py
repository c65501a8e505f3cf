"""What guides are built from: inner loops, families, divergences, closed forms."""
