"""Conda environments: solving, locks, layers and images of them. Works in Jobs and on a developer's machine."""
