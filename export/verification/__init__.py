"""Hold backends against PyTorch, layer by layer: `drl-verify`."""
