"""Translation with imported models."""
