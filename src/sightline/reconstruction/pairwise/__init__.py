"""Scenes from pairs of pictures: what DUSt3R, MASt3R and Splatt3R predict, put into one world.

Data flow: `images` (pictures at network size) -> `graph` (which pairs) -> `inference` (pointmaps of
every pair) -> `align` or `sparse` (one world) -> `estimators` (a ``Reconstruction``).
"""
