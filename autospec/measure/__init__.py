"""Requests become measurements; measurements become pairs; pairs become a verdict."""
