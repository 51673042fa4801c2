"""Layers that several model families share, under the parameter names of the originals."""
