"""What a checkpoint is worth, measured: equality with the reference."""
