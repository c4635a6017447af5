"""Time requests, pair them, and derive verdicts from the pairs."""
