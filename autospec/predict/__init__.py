"""Predict the speed of every drafting from one recorded answer per prompt and one pass of each draft model."""
