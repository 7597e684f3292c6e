"""Whole layers by C kernels on the CPU, in float32: compiled once a machine, loaded by ctypes, called by autograd."""
