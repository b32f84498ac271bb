"""The shared mathematics of merging: pure functions on tensors, independent of files, devices and threads."""
