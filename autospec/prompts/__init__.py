"""Prompts to measure with: suites, and (later) the classifier of prompt types."""
