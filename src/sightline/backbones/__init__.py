"""Any vision model as an encoder of this package's records, and the fusion of two of them."""
