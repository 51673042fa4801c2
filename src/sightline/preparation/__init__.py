"""Pictures, videos and rasters of any modality into one prepared data set with a manifest.

`prepare.prepare` is the whole; `options.PrepareOptions` decides what it makes.
"""
