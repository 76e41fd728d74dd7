"""What turns a sound, a text or an image into the numbers that a network takes."""
