"""How a normalization disappears into the weights around it; used by `passes.fuse_batchnorm`."""
