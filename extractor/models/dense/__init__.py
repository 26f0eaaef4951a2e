"""Dense models: how the bridges read and enter them, and the training of our own small GPT-2."""
