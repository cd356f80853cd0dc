"""TensorRT engines from a bundle: lower its graphs, build each in a process of its own, keep them.

`drl-build` is the front door. Needs TensorRT or TensorRT for RTX, and no GPU for the latter.
"""
