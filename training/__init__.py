"""Training of the bundled model: data pools, voices and the training loop."""
