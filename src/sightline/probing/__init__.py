"""Which vision model knows 3D: read Gaussians out of frozen features, judge them by novel views.

Feat2GS (Chen et al. 2025, arXiv:2412.09606, github.com/fanegg/Feat2GS) with its protocol as data,
error bars, and a runner that never repeats finished work. Start with `probing.config.ProbeConfig`
and `probing.grid.run_grid`; ``docs/probing.md`` explains it.
"""
