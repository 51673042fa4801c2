"""How good a picture, a pose or a point is."""
