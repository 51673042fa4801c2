"""Pure maths of cameras and points: no files, no state, batched.

Import from the modules: ``rotation``, ``pose``, ``camera``, ``sh``, ``align``, ``pointmap``,
``trajectory``.
"""
