"""Training data: its forms, read, checked and converted, and the codes of its clips."""
