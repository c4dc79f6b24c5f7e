"""What a checkpoint is worth, measured: equal to the reference, and how it is heard."""
