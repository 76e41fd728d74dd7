"""What turns a sound, a text or a picture into the numbers that a network takes."""
