"""TensorRT engines of a bundle: where they lie, whether they fit this machine, and how they run."""
