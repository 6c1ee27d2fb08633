"""Configs by name: recommenders, encoders, datasets."""
