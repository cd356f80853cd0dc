"""The routing operators of DRL.

`drl.plugins.ops` defines each one: its schema, its NumPy reference and its body in standard
ONNX operators. Kernels for a device stand beside it and are held to that definition:
`drl.plugins.native` has those for the CPU.
"""
