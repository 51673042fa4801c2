"""Scenes from folders, files and procedures."""
