"""Pages that people click."""
