"""Prompts: suites to measure with, and the classifier of live requests."""
