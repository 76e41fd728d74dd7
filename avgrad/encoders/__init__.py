"""Checked images, sounds and texts to what a network takes: pixels, spectrograms, token ids."""
