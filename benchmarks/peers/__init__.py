"""Other engines on the same model, each in an environment and a process of its own."""
